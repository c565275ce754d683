"""How a session may protect its packets, and what that costs each of them."""

from __future__ import annotations

from alpha_trio.proto.messages import DATA_SIZE, NODE_SIZE, S2_SIZE
from alpha_trio.proto.packets import FRAME_WORD_SIZE

MODES = ("n", "c", "m", "cm")

_DEPTHS = {"n": 0, "c": 0, "m": 6, "cm": 3, "adaptive": 1}
"""Deepest trees by mode: their branches cost room in every S2."""

OUTER_HEADERS = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and UDP header by IP version."""

PLAIN_OVERHEAD = DATA_SIZE + FRAME_WORD_SIZE
"""Bytes between the UDP header and the inner packet in mode plain."""


def depth_of(mode: str) -> int:
    """Height of the deepest trees in this mode."""
    return _DEPTHS[mode]


def overhead(mode: str) -> int:
    """Bytes between the UDP header and the inner packet, at most."""
    if mode == "plain":
        return PLAIN_OVERHEAD
    return S2_SIZE + depth_of(mode) * NODE_SIZE + FRAME_WORD_SIZE
