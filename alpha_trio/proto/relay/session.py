"""A session that passes a relay: its two ends, and what went towards each."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.batch import Remote
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay.verdict import (
    RelayDrop,
    RelayEnd,
)
from alpha_trio.proto.relay.watched import Meter
from alpha_trio.proto.relay.witness import Witness
from alpha_trio.proto.traces import Counts

EVENT_EVERY = 1.0  # s between two events about one kind of drop in one session

# Estimates of memory, in bytes.
SESSION_COST = 2_900


@define(eq=False)
class Tally:
    """What went towards one end, and what did not."""

    packets: int = 0
    bytes: int = 0
    s2s: int = 0  # of the packets
    lost: dict[RelayDrop, tuple[int, int, float]] | None = None
    """By reason: dropped, the part of it that was told, and when."""
    s2s_lost: dict[RelayDrop, int] | None = None  # of those dropped

    @property
    def drops(self) -> dict[RelayDrop, int]:
        """Datagrams by reason."""
        return {reason: count for reason, (count, _, _) in (self.lost or {}).items()}

    @property
    def counts(self) -> Counts:
        """As a REPORT has them."""
        lost = dict(self.s2s_lost or {})
        other = sum(self.drops.values()) - sum(lost.values())
        replayed = lost.pop(RelayDrop.REPLAYED, 0)
        unsolicited = lost.pop(RelayDrop.UNSOLICITED, 0)
        return Counts(self.s2s, sum(lost.values()), replayed, unsolicited, other)

    def drop(self, reason: RelayDrop, count: int, now: float) -> int:
        """Count drops; returns how many an event is to tell of now, 0 for none."""
        if self.lost is None:
            self.lost = {}
        total, told, when = self.lost.get(reason, (0, 0, now - EVENT_EVERY))
        total += count
        if now - when < EVENT_EVERY:
            self.lost[reason] = total, told, when
            return 0
        self.lost[reason] = total, total, now
        return total - told


@define(eq=False)
class End:
    """One end of a session: what is sent to it bears its id."""

    session: Session = field(init=False)
    id: int
    key: bytes | None
    address: Remote
    incoming: Witness  # of packets for it
    outgoing: Witness  # of packets from it
    tally: Tally = field(factory=Tally)
    traces: TokenBucket | None = None  # of the other end, since there was one

    @property
    def other(self) -> End:
        """The other end of the session."""
        session = self.session
        return session.responder if self is session.initiator else session.initiator

    def snapshot(self) -> RelayEnd:
        """For the control plane."""
        tally = self.tally
        counts = tally.packets, tally.bytes, tally.drops
        return RelayEnd(
            self.key, self.address, *counts, len(self.incoming.associations)
        )


@define(eq=False)
class Session:
    """A session that passes here."""

    initiator: End
    responder: End
    verified: bool
    established: float
    heard: float  # something new and authentic
    placed: float  # what ``heard`` was when it last got its place in the row
    meter: Meter
    network: str  # of who began it
    proven: bool = False  # a packet has passed that both ends agreed to

    @property
    def ends(self) -> tuple[End, End]:
        """Initiator and responder."""
        return self.initiator, self.responder

    @property
    def memory(self) -> int:
        """Bytes, estimated."""
        return SESSION_COST + self.meter.held
