"""One question to the path: does a datagram of this size arrive?

It is a control round whose S2 is padded to the size, so that ALPHA itself proves the
question to the peer and, by A2, the answer to us; relays see a control round like any
other.  S1 and A1 are small: they also tell whether anybody answers at all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from math import inf

from attrs import define

from alpha_trio.proto.batch import Outbox
from alpha_trio.proto.messages import CONTROL_MESSAGE, S2_SIZE, Control

COPIES = 3
"""Datagrams of one size that have to be lost before it counts as too large."""

LAST_WAIT = 0.2
"""Seconds at least for an answer to the last of them: a large datagram takes longer
over a slow link than the small ones by which the round trip is measured."""

PROBE_PATIENCE = 0.1
"""Seconds a probe gives way to packets; then it takes its turn like any message."""

STUCK_AFTER = 4
"""Tries after which a round that holds an association may be in a probe's way."""


class Outcome(Enum):
    """What became of a size that was asked for."""

    ARRIVED = auto()
    LOST = auto()  # COPIES of them, while the peer answered what was smaller
    STUCK = auto()  # likewise, of packets that wait to be acknowledged
    SILENT = auto()  # the peer did not answer what was small either


Told = Callable[["SizeProbe", Outcome, float, Outbox], None]


@define(eq=False)
class SizeProbe:
    """A size that is being asked for; ``told`` learns the outcome, once."""

    size: int  # of the datagram, bytes of UDP payload
    since: float  # when it began to wait for an association
    told: Told
    sent: int = 0  # datagrams of this size
    due: float = inf  # when the answer to the last of them should have been there

    @property
    def body(self) -> bytes:
        """Padding, of which the last message may be cut short."""
        room = self.size - S2_SIZE
        padding = CONTROL_MESSAGE.pack(Control.PADDING, 0, b"")
        return (padding * -(-room // len(padding)))[:room]
