"""What a witness remembers of a round under way, and of its association."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.messages import FIRST_CHAIN, LATER_CHAIN, MIN_RTO, RELIABLE
from alpha_trio.proto.primitives import (
    ChainVerifier,
    Promise,
    RandomBytes,
    any_of,
)
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay.consent import Sides
from alpha_trio.proto.relay.verdict import Refused, RelayDrop

REPEAT_AFTER = MIN_RTO / 2  # s; half, as a repetition may have travelled faster
S2S_AT_ONCE = 3  # repetitions of an S2: those of a size probe go together
REPEAT_FOR = 60.0  # s in which anything of a round may be repeated; ends give up before

EARLY_RATE, EARLY_BURST = 4096.0, 8192.0  # bytes a second, at once

VARIANTS = 8
"""Of one message, known at a time: what may differ in it is what we cannot check."""


@define(eq=False)
class Repeats:
    """Copies of one message, the same but for bytes that a relay cannot check.

    Each that is known may pass once more REPEAT_AFTER later, however often that was.
    So copies of the genuine one do its work, and never use up what it needs; altered
    ones take its place at most if they came before it, and then chance gives it one.
    """

    _last: dict[bytes, float] = field(factory=dict)  # when it passed, by digest

    def take_untrusted(self, digest: bytes, now: float, random: RandomBytes) -> None:
        """Let it pass.  Raises Refused if it has only just passed."""
        last = self._last.get(digest)
        if last is not None and now - last < REPEAT_AFTER:
            raise Refused(RelayDrop.REPLAYED)
        if last is None and len(self._last) >= VARIANTS:
            others = list(self._last)[1:]
            del self._last[others[any_of(len(others), random)]]
        self._last[digest] = now

    def again_untrusted(
        self, digest: bytes, spare: TokenBucket, now: float, random: RandomBytes
    ) -> None:
        """The same once more, or another version as far as there are to ``spare``.

        Raises Refused if it must not pass.
        """
        if digest not in self._last and not spare.take(now):
            raise Refused(RelayDrop.REPLAYED)
        self.take_untrusted(digest, now, random)


_OF_NOTHING = Repeats()  # of rounds in which it is not asked, not yet or not any more


@define(eq=False)
class Said:
    """What an S1 or A1 that passed says."""

    digest: bytes  # of the message without its tag; of an A1 that message itself
    shape: int
    packets: int
    roots: bytes  # of an A1: that of the acknowledgment tree
    s1: Said | None = None  # of an A1: what it agrees to
    agreed: bool = False  # of an S1: whether an A1 does
    early: bytes = b""  # of an S1: what is pre-signed in the place of early data
    early_size: int = 0  # bytes of that


@define(eq=False)
class Opened:
    """The packets of a round, by the S1s of one shape that were agreed to.

    The shape is in no root: an S1 in which it was altered fits the genuine packets,
    once it is altered in these.  So what passes of one takes nothing from another.
    """

    shape: int
    prefix: bytes  # what its S2s begin with
    promise: Promise | None  # as long as some packet may pass
    others: tuple[Promise, ...]  # for S1s that were agreed to as well
    packets: int  # at most
    least: int  # bytes of a packet
    early: bytes = b""  # what it has in the place of its packet, if that went early
    seen: int = 0  # bit i: packet i passed
    repeats: dict[int, float] | None = None  # by packet: how far its time is spent

    def repeat(self, packet: int, now: float) -> bool:
        """Whether a packet that passed may pass once more."""
        if not self.shape & RELIABLE:
            return False
        if self.repeats is None:
            self.repeats = {}
        spent = max(self.repeats.get(packet, now), now)
        if spent - now > (S2S_AT_ONCE - 0.5) * REPEAT_AFTER:
            return False
        self.repeats[packet] = spent + REPEAT_AFTER
        return True

    def finish(self) -> None:
        """Nothing of it may pass any more."""
        self.promise, self.others = None, ()


@define(eq=False)
class WatchedRound:
    """A round under way: what was said of it, and what of it has passed."""

    number: int
    element: bytes  # of its S1
    begun: float  # s
    sides: Sides  # where its S1 went
    s1s: tuple[Said, ...]  # the first and some others, until an A1 came
    s1_repeats: Repeats
    a1s: tuple[Said, ...] = ()  # the first and some others
    a1_repeats: Repeats = _OF_NOTHING  # its own since there is one
    a2_repeats: Repeats | None = None
    answered: bool = False  # an A1 passed
    key: bytes = b""  # of its S2s, once that is known
    opened: tuple[Opened, ...] = ()  # from then on, one for each shape agreed to
    ack_key: bytes = b""  # of its A2, once that is known
    acked: int = 0  # bit i: a verdict on packet i passed
    weight: int = 0  # bytes, estimated

    @property
    def finished(self) -> bool:
        """Whether all of it has passed, and nothing may pass again."""
        for each in self.opened:
            if each.promise is not None:
                return False
        return self.key != b""

    def of_shape(self, shape: int) -> Opened | None:
        """What may pass of this shape, once the key is known."""
        for each in self.opened:
            if each.shape == shape:
                return each
        return None

    def finish(self) -> None:
        """Nothing may pass any more; what is left tells repetitions by their key."""
        self.a1s, self.element = (), b""
        self.s1_repeats = self.a1_repeats = _OF_NOTHING


@define(eq=False)
class EarlyBuckets:
    """How many bytes of early data may pass an association before they are proven.

    What proves to be the sender's costs nothing.  Copies and other versions have a
    bucket of their own: who makes them takes nothing from what comes first.
    """

    first: TokenBucket = field(factory=lambda: TokenBucket(EARLY_RATE, EARLY_BURST))
    others: TokenBucket = field(factory=lambda: TokenBucket(EARLY_RATE, EARLY_BURST))


@define(eq=False)
class WatchedAssociation:
    """A signature chain of the sender's, an acknowledgment chain of the receiver's."""

    number: int
    signatures: ChainVerifier | None  # None: its OPEN went another way
    acks: ChainVerifier | None  # None: no ACCEPT passed yet
    current: WatchedRound | None = None
    previous: WatchedRound | None = None
    early: EarlyBuckets | None = None  # since an S1 had early data

    @property
    def length(self) -> int:
        """Elements of its chains, beyond the anchor."""
        return LATER_CHAIN if self.number else FIRST_CHAIN

    def round(self, number: int) -> WatchedRound | None:
        """The round with that number, if its S1 passed not long ago."""
        current, previous = self.current, self.previous
        if current is not None and current.number == number:
            return current
        if previous is not None and previous.number == number:
            return previous
        return None


@define(eq=False)
class Meter:
    """What the state of a session takes, estimated."""

    held: int = 0  # bytes
