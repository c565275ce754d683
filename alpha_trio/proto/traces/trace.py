"""Asking the hops of a path what they counted, and where packets get lost.

A ``Trace`` is one question of an operator's: a TRACE every PROBE_EVERY for some time,
each with a nonce of its own, and the REPORTs that came back.  From two of them follows
what happened between two nodes in the time between::

    missing     passed at the one, less passed at the other
    altered     of these, as many as the other refused because they are forged
    lost        the rest
    injected    what the other refused beyond that
    repeated    copies that the other refused

An altered packet is one missing and one forged; so a forged one that was added while
another got lost cannot be told from an altered one.  What comes too late to be wanted
any more is missing and unsolicited, and counts as lost.

A REPORT proves what its signer says, not that it is true: a relay may report any
counters, and claim any place.  What a segment's two ends say together is as good as
both are.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

from attrs import define, field, frozen

from alpha_trio.proto.messages import NONCE_SIZE, BadPacket
from alpha_trio.proto.primitives import RandomBytes, any_of
from alpha_trio.proto.traces.report import (
    MAX_HOPS,
    REPORT_RATE,
    TRACE_LIFETIME,
    Counts,
    Report,
    Role,
)

PROBE_EVERY = 1 / REPORT_RATE  # s from one TRACE to the next: none of them unanswered
MAX_CHECKS = 4 * MAX_HOPS
"""Signatures checked for one TRACE: forged REPORTs must not cost more."""
PATIENCE = 2.0  # s at least for the answers to the last TRACE, or so many round trips:
ROUND_TRIPS = 6.0
SETTLE = 0.1  # s after the peer's answer: those of relays may have been overtaken
PROBES_KEPT = 16
"""Of a long trace: the first ones, and then only the latest."""


@define(eq=False)
class Probe:
    """One TRACE, and what came back."""

    nonce: bytes
    asked: float
    random: RandomBytes
    sent: Counts | None = None  # ours, as it left; None: it waits for its A1
    back: Counts = field(factory=Counts)  # what we had from the peer when we asked
    reports: dict[bytes, Report] = field(factory=dict)  # by key
    checks: int = 0  # of signatures that pretend to be a relay's
    peer_checks: int = 0  # or the peer's

    def take_untrusted(self, report: Report, peer: bytes) -> None:
        """Take a REPORT.  Raises BadPacket unless it is a new and authentic one.

        ``peer``: the key of the session's other end, and of nobody else.
        """
        theirs = report.key == peer
        if report.key in self.reports or theirs != (report.role is Role.END):
            raise BadPacket
        checks = self.peer_checks if theirs else self.checks
        if self.sent is None or checks >= MAX_CHECKS:
            raise BadPacket
        if theirs:
            self.peer_checks += 1
        else:
            self.checks += 1
        report.verify_untrusted()
        if not theirs:
            self._make_room(peer)
        self.reports[report.key] = report

    def _make_room(self, peer: bytes) -> None:
        """Anybody can sign as a relay: who came first has no right to stay."""
        relays = [key for key in self.reports if key != peer]
        if len(relays) >= MAX_HOPS - 1:
            del self.reports[relays[any_of(len(relays), self.random)]]


@frozen
class Hop:
    """A node of the path, as far as it answers."""

    key: bytes
    report: Report | None  # its latest; None: we ourselves
    forth: Counts  # since the session began
    back: Counts


@frozen
class Segment:
    """What became of the datagrams between a node and the next one that answers."""

    seconds: float | None  # over which; None: since the session began
    packets: int  # S2s that came into it
    lost: int
    altered: int
    injected: int
    repeated: int

    @classmethod
    def between(cls, here: Counts, there: Counts, seconds: float | None) -> Segment:
        """From what the nodes at its two ends counted."""
        missing = max(0, here.passed - there.passed)
        altered = min(missing, there.forged)
        late = min(missing - altered, there.unsolicited)
        injected = there.forged - altered + there.unsolicited - late
        lost = missing - altered
        return cls(seconds, here.passed, lost, altered, injected, there.replayed)


@define(eq=False)
class Trace:
    """One question to the nodes between us and a peer."""

    ours: bytes  # our key
    peer: bytes  # the key the other end has
    session: int  # our connection id: a new session counts from zero
    started: float
    seconds: float  # how long to compare; 0: all since the session began
    rtt: float  # s, expected
    random: RandomBytes
    probes: list[Probe] = field(factory=list)
    done: bool = False
    _next: float = field(init=False)
    _ends: float = field(init=False)  # at the latest
    _settled: float = inf  # when the answers to the last TRACE are all there

    def __attrs_post_init__(self) -> None:
        self._next = self.started
        patience = max(PATIENCE, ROUND_TRIPS * self.rtt)
        self._ends = self.started + self.seconds + min(patience, TRACE_LIFETIME)

    @property
    def deadline(self) -> float:
        """When ``due`` wants to be called."""
        return inf if self.done else min(self._next, self._settled, self._ends)

    def due(self, session: int, now: float) -> Probe | None:
        """The TRACE to be sent now, if any; after the last answers it is done."""
        if now >= min(self._settled, self._ends):
            self.done = True
        if self.done or now < self._next:
            return None
        if session != self.session:
            self.session = session
            self.probes.clear()
        probe = Probe(self.random(NONCE_SIZE), now, self.random)
        if len(self.probes) == PROBES_KEPT:
            del self.probes[PROBES_KEPT // 2]
        self.probes.append(probe)
        self._next = now + PROBE_EVERY
        return probe

    def on_report_untrusted(self, report: Report, now: float) -> None:
        """Take a REPORT.  Raises BadPacket if it answers no TRACE of ours, or badly."""
        if report.key == self.ours:
            raise BadPacket
        for probe in self.probes:
            if probe.nonce == report.nonce and now <= probe.asked + TRACE_LIFETIME:
                probe.take_untrusted(report, self.peer)
                break
        else:
            raise BadPacket
        last = probe.asked >= self.started + self.seconds
        if last and probe.reports.keys() >= self._known():
            self._settled = min(self._settled, now + SETTLE)

    def _known(self) -> set[bytes]:
        return {key for probe in self.probes for key in probe.reports} | {self.peer}

    # -- what follows ----------------------------------------------------------------

    def hops(self) -> list[Hop]:
        """Ourselves, the relays in order, the peer; whoever answered at least once."""
        ours = [p for p in self.probes if p.sent is not None]
        if not ours or ours[-1].sent is None:
            return []
        here = Hop(self.ours, None, ours[-1].sent, ours[-1].back)
        latest = {key: r for probe in self.probes for key, r in probe.reports.items()}
        relays = [report for report in latest.values() if report.role is Role.RELAY]
        relays.sort(key=lambda report: -report.hops)
        ordered = [*relays, *(r for r in latest.values() if r.role is Role.END)]
        return [here, *(Hop(r.key, r, r.forth, r.back) for r in ordered)]

    def segments(self) -> list[Segment | None]:
        """What happened between each two successive hops.

        None if they never answered the same TRACE, or, while comparing, not twice.
        """
        hops = self.hops()
        return [self._segment(*pair) for pair in pairwise(hops)]

    def _segment(self, here: Hop, there: Hop) -> Segment | None:
        pairs = [
            (probe.asked, one, other)
            for probe in self.probes
            if (one := self._counts(probe, here.key)) is not None
            and (other := self._counts(probe, there.key)) is not None
        ]
        if not pairs:
            return None
        end, one, other = pairs[-1]
        if not self.seconds:
            return Segment.between(one, other, None)
        begin, before, other_before = pairs[0]
        if begin == end:
            return None
        sums = one.since(before), other.since(other_before)
        return Segment.between(*sums, end - begin)

    def _counts(self, probe: Probe, key: bytes) -> Counts | None:
        if key == self.ours:
            return probe.sent
        report = probe.reports.get(key)
        return None if report is None else report.forth
