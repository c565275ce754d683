"""What a witness remembers of a round under way, and of its association."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.messages import (
    MIN_RTO,
    RELIABLE,
)
from alpha_trio.proto.primitives import (
    ChainVerifier,
    Checker,
)
from alpha_trio.proto.relay.verdict import Refused, RelayDrop

REPEAT_AFTER = MIN_RTO / 2  # s; half, as a repetition may have travelled faster

REPEATS = 100  # of an S1 or A1: more than fit into the life of a round

S2_REPEATS = 64  # of a packet in a reliable round


@define(eq=False)
class Said:
    """An S1 or A1 that passed: what it said, and how often."""

    digest: bytes  # of the message without its tag
    first: float
    shape: int
    packets: int
    roots: list[bytes]  # of an A1: that of the acknowledgment tree
    last: float = field(init=False)
    times: int = 1

    def __attrs_post_init__(self) -> None:
        self.last = self.first

    def again(self, now: float) -> None:
        """Raises Refused unless it may pass once more."""
        if now - self.last < REPEAT_AFTER or self.times >= REPEATS:
            raise Refused(RelayDrop.REPLAYED)
        self.last = now
        self.times += 1


@define(eq=False)
class WatchedRound:
    """A round under way: what was said of it, and what of it has passed."""

    number: int
    element: bytes  # of its S1
    s1s: tuple[Said, ...]  # the first and one other; after the A1 the one that counts
    a1s: tuple[Said, ...] = ()
    prefix: bytes = b""  # what its S2s begin with, once the key is known
    checker: Checker | None = None  # as long as some packet may pass
    seen: int = 0  # bit i: packet i passed
    repeats: dict[int, int] | None = None  # by packet
    ack_key: bytes = b""  # of its A2, once that is known
    acked: int = 0  # bit i: a verdict on packet i passed
    a2_repeats: int = 0
    weight: int = 0  # bytes, estimated

    @property
    def counted(self) -> Said:
        """The S1 that counts, as far as is known."""
        return self.s1s[0]

    @property
    def finished(self) -> bool:
        """Whether all of it has passed, and nothing may pass again."""
        return self.checker is None and self.prefix != b""

    def repeat(self, packet: int) -> bool:
        """Whether a packet that passed may pass once more."""
        if self.finished or not self.counted.shape & RELIABLE:
            return False
        if self.repeats is None:
            self.repeats = {}
        times = self.repeats[packet] = self.repeats.get(packet, 0) + 1
        return times <= S2_REPEATS

    def finish(self) -> None:
        """Nothing may pass any more; what is left tells repetitions by their key."""
        self.s1s = self.a1s = ()
        self.checker, self.element = None, b""


@define(eq=False)
class WatchedAssociation:
    """A signature chain of the sender's, an acknowledgment chain of the receiver's."""

    number: int
    signatures: ChainVerifier | None  # None: its OPEN went another way
    acks: ChainVerifier | None  # None: no ACCEPT passed yet
    current: WatchedRound | None = None
    previous: WatchedRound | None = None

    def round(self, number: int) -> WatchedRound | None:
        """The round with that number, if its S1 passed not long ago."""
        for candidate in (self.current, self.previous):
            if candidate is not None and candidate.number == number:
                return candidate
        return None


@define(eq=False)
class Meter:
    """What the state of a session takes, estimated."""

    held: int = 0  # bytes
