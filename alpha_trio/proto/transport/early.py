"""Early data: a small packet that comes alone travels inside its S1.

It arrives half a round trip after it was sent, and not one and a half.  What that costs
is what a round is for: relays can check such packets only after they passed, when S2
brings the key, and the receiver's consent comes after, too.  The two ends lose nothing
but that: the bytes are encrypted, and the S1's tag is theirs alone.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf

from attrs import define

from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.messages import (
    EARLY,
    MAX_EARLY,
    NO_EARLY,
    NODE_SIZE,
    S1_FIXED_SIZE,
    TAG_SIZE,
)

# Rounds with early data at once: one, and one more for each ...
EARLY_EVERY = 0.004  # s of round-trip time.  Meanwhile packets gather for the next one.

TRIALS = 3  # empty ones without an answer, while other rounds had one, until we stop
LOSSES = 2  # rounds in a row that were given up with packets in them
TRIES = 6  # of one S1, while other rounds are answered, until we think it cannot pass
TRIAL_PAUSE = 1.0  # s before another trial


class EarlyState(StrEnum):
    """Whether small packets travel inside S1, or why not; the value is for machines."""

    ON = "on"
    TRYING = "trying"  # some did not arrive: another is tried, without a packet
    OFF_HERE = "off-here"  # by our own settings
    OFF_PEER = "off-peer"  # the peer does not take it
    OFF_RELAY = "off-relay"  # a relay on the way asks not to
    LOST = "lost"  # it was agreed on, but does not arrive
    NO_SESSION = "no-session"
    NO_USE = "no-use"  # reliable rounds, or a mode other than adaptive

    @property
    def text(self) -> str:
        """One sentence for people, with the remedy if there is one."""
        return _TEXTS[self]


_TEXTS = {
    EarlyState.ON: "small packets that come alone go early",
    EarlyState.TRYING: "some did not arrive, the path is being tried",
    EarlyState.OFF_HERE: "switched off for this peer here (peers set NAME --early on)",
    EarlyState.OFF_PEER: "the peer has it switched off for us",
    EarlyState.OFF_RELAY: (
        "a relay on the way does not let it pass; its operator can (early in [relay])"
    ),
    EarlyState.LOST: (
        "something on the way does not let it pass; a later session tries it again"
    ),
    EarlyState.NO_SESSION: "there is no session",
    EarlyState.NO_USE: "there is none with reliable, nor in a mode other than adaptive",
}


def room_for_early(datagram_size: int) -> int:
    """Bytes of early data that an S1 takes in a datagram so large."""
    return min(MAX_EARLY, datagram_size - S1_FIXED_SIZE - NODE_SIZE - TAG_SIZE)


@define(eq=False)
class Early:
    """What a Sender knows of whether early data arrives in its session."""

    state: EarlyState
    allowed: bool = True  # by our own settings
    under_way: int = 0  # rounds whose A1 has not come, but is not overdue either
    _arrived: bool = False  # ever, in this session
    _failed: int = 0  # trials that got no answer
    _unjudged: bool = False  # one more got none, but nor did anything else meanwhile
    _lost: int = 0  # rounds that were given up since one was answered
    _pause: float = -inf  # until when nothing is tried
    _heard: float = -inf  # when another round was answered last

    @classmethod
    def agreed(cls, agreement: Agreement) -> Early:
        """As the handshake has it.

        Without anything against it there is no need to try: relays that check sessions
        have checked the signatures under which both ends said so, and would have put
        their mark on it.
        """
        theirs = agreement.theirs
        if theirs.marks & NO_EARLY:
            return cls(EarlyState.OFF_RELAY)
        if not theirs.options & EARLY:
            return cls(EarlyState.OFF_PEER)
        return cls(EarlyState.ON)

    def succeed(self, before: Early) -> None:
        """Take over from the session before this one what it knew of the path.

        Where none ever arrived a trial goes first, or each renewal would cost packets
        anew.  Where some did the path only loses much.
        """
        doubted = before.state in (EarlyState.LOST, EarlyState.TRYING)
        if doubted and not before._arrived and self.state is EarlyState.ON:
            self.state = EarlyState.TRYING

    @property
    def usable(self) -> bool:
        """Whether packets may go so."""
        return self.state is EarlyState.ON and self.allowed

    def is_due(self, now: float) -> bool:
        """Whether it is time to try the path, with an S1 that has none in it."""
        untried = self.state is EarlyState.TRYING and self.allowed
        return untried and now >= self._pause

    def room(self, round_trip: float | None) -> int:
        """How many more rounds may go at once."""
        return max(0, 1 + int((round_trip or 0.0) / EARLY_EVERY) - self.under_way)

    def on_answer(self, packets: int) -> None:
        """The A1 of such a round came, of a trial if it had no packets."""
        self._arrived = True
        if self.state is EarlyState.TRYING:
            self.state, self._failed, self._unjudged = EarlyState.ON, 0, False
        if packets:
            self._lost = 0

    def on_other_answer(self, now: float) -> None:
        """So the peer is there, and the path lets S1 and A1 pass.

        A trial that made way for this round had no answer for another reason then; but
        of all that failed while nobody answered only one counts.
        """
        self._heard = now
        if self._unjudged:
            self._unjudged = False
            self._failed += 1
            self._judge()

    def on_silence(self, started: float, tries: int) -> bool:
        """Its S1 went ``tries`` times; whether that says that none will arrive.

        A trial may then make way for what waits.  That packets in others did not
        arrive is not sure: these go on being repeated, but no further ones follow.
        """
        if tries < TRIES or self._heard <= started:
            return False
        if self.state is EarlyState.ON:
            self.state = EarlyState.LOST
        return True

    def on_lost(self, packets: int, started: float, now: float) -> None:
        """A round was given up."""
        if packets:
            self._lost += 1
        elif self._heard > started:
            self._failed += 1
        else:
            self._unjudged = True
        self._pause = now + TRIAL_PAUSE
        if self.state is EarlyState.ON:
            self.state = EarlyState.TRYING
        self._judge()

    def _judge(self) -> None:
        if self._failed >= TRIALS or self._lost >= LOSSES:
            self.state = EarlyState.LOST
