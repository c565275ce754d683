"""Whether a kernel does what the reference does, on a few rounds that have it all.

It takes a millisecond.  What it is for is a library that is not what it seems to be; of
a kernel that is wrong in a corner the tests tell, before anybody has it.
"""

from __future__ import annotations

from alpha_trio.proto.engine import reference
from alpha_trio.proto.engine.face import Frame, Kernel, round_place
from alpha_trio.proto.messages import NODE_SIZE, ROUND_HEAD_SIZE, S2_TAIL

_KEY, _LEAF, _KEYED = bytes(range(32)), b"l" * 64, b"s" * 64
_HEAD, _PLACE = b"\5" * ROUND_HEAD_SIZE, round_place(7, 9)
_WORD = 0x01_28_14_90_05DC_0000  # TCP over IPv4, 40 bytes of headers
_FRAMES: list[Frame] = [
    (_WORD, b"h" * 40, bytes(range(256)) * 9, 4, 2300, 500, 0),
    (0, b"", b"a packet that stays whole", 0, 25, 25, 2),
    (0, b"", b"another one of that size.", 0, 25, 25, 2),
]
_LEAST = S2_TAIL.size + 8


def differs(kernel: Kernel) -> str:
    """What it does otherwise, or fails at; empty if nothing."""
    try:
        place = bytes(range(16)), 9, bytes(16), 8
        if kernel.descend(*place) != reference.descend(*place):
            return "chains are made otherwise"
        for depth in (0, 2):
            if _sealed(kernel, depth) != _sealed(reference, depth):
                return f"rounds of depth {depth} are sealed otherwise"
            if _checked(kernel, depth) != _checked(reference, depth):
                return f"rounds of depth {depth} are checked otherwise"
        if _opened(kernel) != _opened(reference):
            return "packets are opened otherwise"
    except Exception as error:  # whatever it is, it is not to be used
        return f"{type(error).__name__}: {error}"
    return ""


def _sealed(kernel: Kernel, depth: int) -> tuple[bytes, object, bytes]:
    cipher = kernel.cipher(_KEY)
    sealing = _PLACE, _HEAD, _LEAF, _KEYED, depth
    buffer, spans, roots = kernel.seal(cipher, *sealing, _FRAMES)
    return bytes(buffer), spans, roots


def _checked(kernel: Kernel, depth: int) -> list[bytes]:
    """Once as it was sealed, and once with a bit of the second datagram changed."""
    buffer, spans, roots = _sealed(reference, depth)
    stride, packets = spans[0][4], spans[-1][1]  # type: ignore[index]
    altered = bytearray(buffer)
    altered[2 * stride - 1] ^= 1
    promised = _HEAD, _LEAST, depth, _LEAF, _KEYED, roots, packets
    return [kernel.check(view, stride, *promised) for view in (buffer, altered)]


def _opened(kernel: Kernel) -> object:
    buffer, spans, _ = _sealed(reference, 1)
    _, _, begin, end, stride, _ = spans[0]  # type: ignore[index]
    at = begin + ROUND_HEAD_SIZE + NODE_SIZE
    size = stride - (at - begin)
    where = _PLACE, at, buffer[at:end]
    return kernel.open(kernel.cipher(_KEY), *where, stride, size, 64, 65_000)
