"""The relay: which of other hosts' datagrams may pass, by what they said before.

A router between two hosts lets through only what the sender authenticated and the
receiver agreed to.  It needs no secret for that: the handshake that passes by tells the
anchors of both ends' hash chains (introduction.py), and what must be true of each
message after it follows from those (witness.py).

``Relay.transit`` takes what the kernel hands over, runs of equal-sized datagrams of one
UDP flow, and says which bytes of it go on.  Everything else is dropped, and counted
under exactly one reason.  A relay never makes, changes or repeats a datagram, but for
one field: with a limit of roots it lowers the number in bytes 12 and 13 of passing SYNs
and ACKs, which says how many roots an S1 may carry.  They are not signed; who alters
them can make rounds small, or have their S1 dropped here, and no more.

An answer is taken only from where its question went, and a packet goes on only to where
its answer came from: else who is alone on one side could play both ends (consent.py).

A datagram is found by the connection id in it.  Two hosts may have chosen the same, and
somebody may do so on purpose; so an id leads to a few sessions, and the one for whose
chains the datagram is right takes it.  None of them is disturbed by the others.  A new
one is refused when there are SAME_ID already, unless one of these, but the first, never
came to a packet: that one goes.

A handshake is signed, but nothing in it is a time: who recorded all of a session could
play it again.  So handshakes that were seen through are remembered beyond their
session, HANDSHAKES_KEPT of them; one that is older than those passes again, with all
that was said in its session.  The ends take none of it.

Sessions of mode plain have the same handshake.  Their DATA is dropped, since nothing in
it can be verified, unless the policy is to let pass what is unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import chain
from struct import Struct

from attrs import define, field

from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.proto.messages import (
    CONTROL_MESSAGE,
    HEADER,
    HEADER_SIZE,
    LEAST_ROOTS,
    NO_EARLY,
    PREVIOUS_LIFETIME,
    REFUSE_AFTER,
    VERSION,
    Ack,
    BadPacket,
    Control,
    Kind,
    Syn,
    first_word,
)
from alpha_trio.proto.primitives import RandomBytes, any_of
from alpha_trio.proto.rates import TokenBucket, network_of
from alpha_trio.proto.relay.consent import WrongSide
from alpha_trio.proto.relay.crowd import Crowd
from alpha_trio.proto.relay.introduction import (
    ANSWER_COST,
    COST,
    Introduction,
    Introductions,
)
from alpha_trio.proto.relay.session import End, Session, Tally
from alpha_trio.proto.relay.traces import TRACE_COST, PassingTraces
from alpha_trio.proto.relay.verdict import (
    Refused,
    RelayCounters,
    RelayDrop,
    RelayEarly,
    RelayEvent,
    RelayEventKind,
    RelayPolicy,
    RelaySession,
    Traced,
    Unseen,
    reason_of,
)
from alpha_trio.proto.relay.watched import Meter
from alpha_trio.proto.relay.witness import Witness
from alpha_trio.proto.traces import report_rate

LIFETIME = REFUSE_AFTER + PREVIOUS_LIFETIME  # s; after that a session carries nothing
HANDSHAKES_WAITING = 4096  # at most, as memory allows; the oldest goes
HANDSHAKES_KEPT = 16_384  # of the past, likewise
EVENTS_KEPT = 1000
REPORTS_RATE, REPORTS_BURST = 20.0, 20.0  # of ours, a second, at once
REPORTS_KEPT = 32  # to be made and sent
BURST = 0.1  # s of the rate of S1s that may come at once
LEAST_BURST = 64.0  # S1s: as many as there may be associations

SAME_ID = 4  # sessions with the same connection id
ROOM = 16  # the part of the memory that is freed at once when it is full

HANDSHAKE_COST = 150

_LIMIT, _LIMIT_AT, _MARKS_AT = Struct("!H"), 12, 14

_S1, _A1, _S2, _A2 = map(int, (Kind.S1, Kind.A1, Kind.S2, Kind.A2))
"""As numbers: a member of an enumeration is looked up in Python each time."""


@define(eq=False)
class Run:
    """The datagrams of one call, and what of them goes on."""

    view: memoryview
    stride: int
    crossing: Crossing
    now: float
    ranges: list[tuple[int, int]] = field(factory=list)


@define(eq=False)
class Relay:
    """All sessions that pass through this host."""

    policy: RelayPolicy
    started: float  # s, on the clock of ``now``
    random: RandomBytes  # that nobody can foretell
    counters: RelayCounters = field(factory=RelayCounters)
    events: list[RelayEvent] = field(factory=list)  # for the caller to take
    traced: list[Traced] = field(factory=list)  # likewise, and to answer
    _handshakes: Introductions = field(init=False)
    _ends: dict[int, tuple[End, ...]] = field(factory=dict)  # by connection id
    _crowds: tuple[Crowd, Crowd] = field(init=False)  # unverified and verified sessions
    _known: dict[bytes, None] = field(factory=dict)  # nonces of responders
    _paired: dict[tuple[Remote, Remote], float] = field(factory=dict)
    """When a packet of a verified session first passed between two addresses, for the
    first minutes."""
    _stray: Tally = field(factory=Tally)  # what belongs to no session
    _controls: list[bytes] = field(factory=list)  # of the witness that was just asked
    _held: int = 0  # bytes of all sessions, estimated
    _traces: PassingTraces = field(init=False)
    _reports: TokenBucket = field(
        factory=lambda: TokenBucket(REPORTS_RATE, REPORTS_BURST)
    )

    def __attrs_post_init__(self) -> None:
        policy = self.policy
        self._crowds = Crowd(), Crowd()
        self._traces = PassingTraces(policy.consent, self.random)
        # No flood of handshakes may take the place of the sessions.
        kept = min(HANDSHAKES_WAITING, policy.memory // 4 // (COST + ANSWER_COST))
        self._handshakes = Introductions(
            policy.keys, not policy.require_a1, kept, policy.consent, self.random
        )

    @property
    def memory(self) -> int:
        """Bytes of all state, estimated."""
        lists = HANDSHAKE_COST * len(self._known) + TRACE_COST * len(self._traces)
        return self._held + self._handshakes.memory + lists

    @property
    def idle(self) -> bool:
        """Whether there is nothing to forget, whatever the time; see forget_idle."""
        return not (self._count or self._handshakes.asked or self._traces)

    # -- datagrams -------------------------------------------------------------------

    def transit(
        self, view: memoryview, stride: int, crossing: Crossing, now: float
    ) -> list[tuple[int, int]]:
        """Which bytes of ``view`` go on to where they are addressed.

        ``view`` holds datagrams of one UDP flow, ``stride`` bytes apart, of which the
        last may be shorter.  It is borrowed, and must be writable for the limit of
        roots.  Returns ranges of bytes in order, none of them next to another, each of
        whole datagrams; all others are dropped and counted.
        """
        run = Run(view, stride, crossing, now)
        at, end = 0, len(view)
        if not end:  # that is a datagram, too
            self._drop(run, self._stray, None, RelayDrop.MALFORMED, 1)
        while at < end:
            left = end - at
            size = stride if stride < left else left
            try:
                size = self._pass_untrusted(run, at, size)
            except BadPacket as error:
                self._note(error)
                self._drop(run, self._stray, None, reason_of(error), 1)
            at += size
        return run.ranges

    def _pass_untrusted(self, run: Run, at: int, size: int) -> int:
        """Deal with what begins at ``at``; returns how many bytes that was."""
        if size < HEADER_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        kind, version, suite, receiver = HEADER.unpack_from(run.view, at)
        if version != VERSION:
            raise Refused(RelayDrop.VERSION)
        if _S1 <= kind <= _A2 and not suite:  # hot path
            ends = self._ends.get(receiver)
            if ends is not None:
                return self._on_round(run, at, size, kind, ends)
            self._on_unseen_untrusted(run, at, size)
        elif kind == Kind.REPORT and not suite:
            self._on_report_untrusted(run, at, size, receiver)
        elif kind == Kind.DATA and not suite:
            self._on_data_untrusted(run, at, size, receiver)
        else:
            self._on_handshake_untrusted(run, at, size, kind)
        return size

    def _on_round(
        self, run: Run, at: int, size: int, kind: int, ends: tuple[End, ...]
    ) -> int:
        if len(ends) > 1:  # cold path
            there = run.crossing.destination[:2]
            ends = tuple(sorted(ends, key=lambda end: end.address[:2] != there))
        refusal: BadPacket | None = None
        for end in ends:
            meter, before = end.session.meter, end.session.meter.held
            try:
                if kind == _S2:
                    size = self._on_s2_untrusted(run, at, end)
                else:
                    self._on_message_untrusted(run, at, size, kind, end)
            except BadPacket as error:
                refusal = refusal or error
                continue
            finally:  # its key may have freed something, whether it passes or not
                grown = meter.held - before
                self._held += grown
            if grown > 0 or self._traces:
                self._make_room()
            return size
        assert refusal is not None
        self._note(refusal)
        if kind == _S2:
            self._drop_s2s(run, ends[0], reason_of(refusal), 1)
        else:
            self._drop(run, ends[0].tally, ends[0].session, reason_of(refusal), 1)
        return size

    def _on_s2_untrusted(self, run: Run, at: int, end: End) -> int:
        # hot path
        witness, session = end.incoming, end.session
        stride, before = run.stride, end.tally.packets
        size, passed, forged, replayed = witness.on_s2_untrusted(
            run.view[at:], stride, run.crossing.goal, run.now
        )
        for start, until in passed:
            self._forward(run, at + start, at + until, end.tally)
        if passed:
            session.heard = run.now
            if not session.proven:
                self._prove(session, run)
            end.tally.s2s += end.tally.packets - before
        if forged:
            self._drop_s2s(run, end, RelayDrop.FORGED, forged)
        if replayed:
            self._drop_s2s(run, end, RelayDrop.REPLAYED, replayed)
        while self._controls:
            self._on_control(end, self._controls.pop(), run)
        return size

    def _prove(self, session: Session, run: Run) -> None:
        """Both ends agreed to a packet: what the two had before ends soon.

        A handshake alone says nothing of that: anybody can make one.
        """
        session.proven, room = True, len(self._paired) < HANDSHAKES_KEPT
        if session.verified and run.now - self.started <= REFUSE_AFTER and room:
            pair = _pair(run.crossing.source, run.crossing.destination)
            self._paired.setdefault(pair, run.now)

    def _on_message_untrusted(
        self, run: Run, at: int, size: int, kind: int, end: End
    ) -> None:
        datagram, now = bytes(run.view[at : at + size]), run.now
        crossing = run.crossing
        if kind == _S1:
            new = end.incoming.on_s1_untrusted(datagram, crossing, now)
        elif kind == _A1:
            new = end.outgoing.on_a1_untrusted(datagram, crossing, now)
        else:
            new = end.outgoing.on_a2_untrusted(datagram, crossing, now)
        if new:
            end.session.heard = now
            # Only what is new tells where they are: the rest may be a copy.
            end.address, end.other.address = crossing.destination, crossing.source
        self._forward(run, at, at + size, end.tally)

    def _on_control(self, end: End, body: bytes, run: Run) -> None:
        """Follow a verified control round.  The ends judge what it asks for."""
        size = CONTROL_MESSAGE.size
        for at in range(0, len(body) - len(body) % size, size):
            what, number, anchor = CONTROL_MESSAGE.unpack_from(body, at)
            if what == Control.PADDING:
                break  # nothing follows, but it may be long
            if what == Control.OPEN:
                end.incoming.add(number, anchor, None)
            elif what == Control.ACCEPT:
                end.outgoing.add(number, None, anchor)
            elif what == Control.CLOSE:
                end.incoming.close(number)
            elif what == Control.TRACE:
                self._on_trace(end, anchor, run)

    def _on_trace(self, end: End, nonce: bytes, run: Run) -> None:
        """Answers to it may pass, and one of them may be ours."""
        now = run.now
        if end.traces is None:
            end.traces = report_rate()
        if not end.traces.take(now):
            return
        asking = end.other
        self._traces.add(asking.id, nonce, end.key, run.crossing, now)
        room = self.policy.trace and len(self.traced) < REPORTS_KEPT
        if room and self._reports.take(now):
            counts = end.tally.counts, asking.tally.counts
            self.traced.append(Traced(asking.id, asking.address, nonce, *counts))

    def _on_report_untrusted(self, run: Run, at: int, size: int, receiver: int) -> None:
        if receiver not in self._ends:
            self._on_unseen_untrusted(run, at, size)
            return
        try:
            datagram = run.view[at : at + size]
            self._traces.take_untrusted(datagram, run.crossing, run.now)
        except Refused:
            raise
        except BadPacket:
            raise Refused(RelayDrop.BAD_REPORT) from None
        self._forward(run, at, at + size, self._stray)

    def _on_data_untrusted(self, run: Run, at: int, size: int, receiver: int) -> None:
        known = receiver in self._ends
        if self.policy.unseen is not Unseen.PASS:
            raise Refused(RelayDrop.PLAIN if known else RelayDrop.UNSEEN)
        self._let_unverified(run, at, size)

    def _on_unseen_untrusted(self, run: Run, at: int, size: int) -> None:
        if not self._tolerated(run):
            raise Refused(RelayDrop.UNSEEN)
        self._let_unverified(run, at, size)

    def _tolerated(self, run: Run) -> bool:
        """Whether the policy lets pass what belongs to no handshake we saw."""
        if self.policy.unseen is not Unseen.UNTIL_HANDSHAKE:
            return self.policy.unseen is Unseen.PASS
        if run.now - self.started > REFUSE_AFTER:
            return False  # whatever is alive has made a handshake since
        # The session before the verified one may still have something under way.
        ends = run.crossing.source, run.crossing.destination
        since = self._paired.get(_pair(*ends), run.now)
        return run.now - since <= PREVIOUS_LIFETIME

    def _let_unverified(self, run: Run, at: int, size: int) -> None:
        self.counters.unverified_packets += 1
        self._forward(run, at, at + size, self._stray)

    def _forward(self, run: Run, start: int, end: int, tally: Tally) -> None:
        size, ranges, counters = end - start, run.ranges, self.counters
        count = -(-size // run.stride)
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
        tally.packets += count
        tally.bytes += size
        counters.forwarded_packets += count
        counters.forwarded_bytes += size

    def _note(self, error: BadPacket) -> None:
        if isinstance(error, WrongSide):
            self.counters.same_link += error.same_link

    def _drop(
        self,
        run: Run,
        tally: Tally,
        session: Session | None,
        reason: RelayDrop,
        count: int,
    ) -> None:
        self.counters.drops[reason] = self.counters.drops.get(reason, 0) + count
        tell = tally.drop(reason, count, run.now)
        if tell and session is None:
            ends = run.crossing.source, run.crossing.destination
            self._add(
                RelayEvent(RelayEventKind.DROPPED, *ends, (None, None), reason, tell)
            )
        elif tell and session is not None:
            self._tell(RelayEventKind.DROPPED, session, reason, tell)

    def _drop_s2s(self, run: Run, end: End, reason: RelayDrop, count: int) -> None:
        tally = end.tally
        tally.s2s_lost = tally.s2s_lost or {}
        tally.s2s_lost[reason] = tally.s2s_lost.get(reason, 0) + count
        self._drop(run, tally, end.session, reason, count)

    def _tell(
        self,
        kind: RelayEventKind,
        session: Session,
        reason: RelayDrop | None = None,
        count: int = 1,
    ) -> None:
        one, other = session.ends
        keys = one.key, other.key
        self._add(RelayEvent(kind, one.address, other.address, keys, reason, count))

    def _add(self, event: RelayEvent) -> None:
        if len(self.events) < EVENTS_KEPT:
            self.events.append(event)
        else:
            self.counters.untold += 1

    # -- handshakes ------------------------------------------------------------------

    def _on_handshake_untrusted(self, run: Run, at: int, size: int, kind: int) -> None:
        datagram, introduction = bytes(run.view[at : at + size]), None
        known, crossing, now = self._handshakes, run.crossing, run.now
        try:
            if kind == Kind.SYN:
                known.on_syn_untrusted(datagram, crossing, now)
            elif kind == Kind.ACK:
                introduction = known.on_ack_untrusted(datagram, crossing, now)
            elif kind == Kind.ACKACK:
                introduction = known.on_ackack_untrusted(datagram, crossing, now)
            elif kind == Kind.COOKIE:
                known.on_cookie_untrusted(datagram, crossing, now)
            else:
                raise Refused(RelayDrop.MALFORMED)
        except Refused as refused:
            if refused.reason is not RelayDrop.UNSEEN:
                raise
            self._on_unseen_untrusted(run, at, size)
            return
        except BadPacket:
            raise Refused(RelayDrop.MALFORMED) from None
        if introduction is not None:
            self._establish_untrusted(introduction, now)
            known.confirm(introduction, datagram, now)
        self._make_room()  # what is remembered of it counts as well
        if kind in (Kind.SYN, Kind.ACK):
            self._announce(run.view, at)
        self._forward(run, at, at + size, self._stray)

    def _announce(self, view: memoryview, at: int) -> None:
        """Tell the ends how many roots an S1 may have, unless others want less.

        And whether it may have early data.
        """
        if self.policy.early is RelayEarly.OFF:
            view[at + _MARKS_AT] |= NO_EARLY
        if self.policy.roots:
            (others,) = _LIMIT.unpack_from(view, at + _LIMIT_AT)
            ours = self._most_roots
            _LIMIT.pack_into(view, at + _LIMIT_AT, min(others or ours, ours))

    @property
    def _most_roots(self) -> int:
        return self.policy.roots and max(self.policy.roots, LEAST_ROOTS)

    def _establish_untrusted(self, introduction: Introduction, now: float) -> None:
        ack = introduction.ack
        if ack is not None and ack.nonce in self._known:
            raise Refused(RelayDrop.REPLAYED)
        ids = introduction.initiator_id, introduction.responder_id
        here = self._ends.get(ids[0], ())
        if ack is not None and any(e.incoming.sender_nonce == ack.nonce for e in here):
            return  # of a handshake whose other half goes another way, once more
        for each in ids:
            self._free_untrusted(each)
        session = self._session_of(introduction, now)
        one, other = (end.key for end in session.ends)
        if one is not None and other is not None:
            assert ack is not None
            self._remember(ack.nonce)
            self._handshakes.budgets.know(one, other)
            self._tell(RelayEventKind.VERIFIED, session)
        for end in session.ends:
            self._ends[end.id] = (*self._ends.get(end.id, ()), end)
        self._crowds[session.verified].add(session)
        self._held += session.memory
        self._make_room()

    def _free_untrusted(self, number: int) -> None:
        """Raises Refused if there is no place for one more session with this id."""
        here = self._ends.get(number, ())
        if len(here) < SAME_ID:
            return
        unproven = [end.session for end in here[1:] if not end.session.proven]
        if not unproven:
            raise Refused(RelayDrop.COLLISION)
        self._forget(unproven[any_of(len(unproven), self.random)])

    def _session_of(self, introduction: Introduction, now: float) -> Session:
        syn, ack, meter = introduction.syn, introduction.ack, Meter()
        ids = introduction.initiator_id, introduction.responder_id
        to_initiator = self._witness(ack, syn, ids[0], meter)
        to_responder = self._witness(syn, ack, ids[1], meter)
        initiator = End(
            ids[0],
            syn.identity if syn else None,
            introduction.initiator,
            to_initiator,
            to_responder,
        )
        responder = End(
            ids[1],
            ack.identity if ack else None,
            introduction.responder,
            to_responder,
            to_initiator,
        )
        verified, network = introduction.verified, network_of(introduction.initiator[0])
        times = now, now, now
        session = Session(initiator, responder, verified, *times, meter, network)
        initiator.session = responder.session = session
        return session

    def _witness(
        self,
        sender: Syn | Ack | None,
        receiver: Syn | Ack | None,
        receiver_id: int,
        meter: Meter,
    ) -> Witness:
        """Of the direction from one to the other; association 0 is there at once."""
        rate = self.policy.s1_rate
        witness = Witness(
            sender.nonce if sender else b"",
            receiver.nonce if receiver else b"",
            first_word(Kind.S2, receiver_id).to_bytes(HEADER_SIZE),
            self.policy.require_a1,
            self._most_roots,
            TokenBucket(rate, max(LEAST_BURST, rate * BURST)),
            meter,
            self._controls,
            self.random,
            self.policy.consent,
            self.policy.early,
        )
        signatures = sender.signatures if sender else None
        witness.add(0, signatures, receiver.acknowledgments if receiver else None)
        return witness

    def _remember(self, nonce: bytes) -> None:
        """This handshake has been."""
        room = min(HANDSHAKES_KEPT, self.policy.memory // 8 // HANDSHAKE_COST)
        if len(self._known) >= room:
            del self._known[next(iter(self._known))]
        self._known[nonce] = None

    # -- the end of sessions -----------------------------------------------------------

    @property
    def _count(self) -> int:
        unverified, verified = self._crowds
        return unverified.count + verified.count

    def _make_room(self) -> None:
        while self._count > self.policy.sessions:
            self._evict(self._crowd.largest().idlest(0.0))
        if self._count and self.memory > self.policy.memory:
            self._shed(self.policy.memory - self.policy.memory // ROOM)

    @property
    def _crowd(self) -> Crowd:
        """Those that make room first: sessions that could not be verified."""
        unverified, verified = self._crowds
        return unverified if unverified.count else verified

    def _shed(self, limit: int) -> None:
        """Forget sessions until there is room again.

        Of the network that holds most the one that is idle longest of those that hold
        more than the average: a few that take much must not drive out the many that are
        quiet.  All networks are weighed at once, so not for each session.
        """
        while self._count and self.memory > limit:
            crowd = self._crowd
            heap = [(-n.weigh(), at, n) for at, n in enumerate(crowd.networks.values())]
            heapify(heap)
            while heap and self.memory > limit:
                _, at, network = heappop(heap)
                session = network.idlest(self._held / self._count)
                network.held -= session.memory
                self._evict(session)
                if network.row:
                    heappush(heap, (-network.held, at, network))

    def _evict(self, session: Session) -> None:
        self.counters.evicted += 1
        self._tell(RelayEventKind.EVICTED, session)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        self._crowds[session.verified].remove(session)
        one, other = (end.key for end in session.ends)
        if one is not None and other is not None:
            self._handshakes.budgets.forget(one, other)
        self._held -= session.memory
        for end in session.ends:
            left = tuple(other for other in self._ends[end.id] if other is not end)
            if left:
                self._ends[end.id] = left
            else:
                del self._ends[end.id]

    def forget_idle(self, now: float) -> None:
        """Forget what is over.  To be called about once a second."""
        self._handshakes.forget_old(now)
        self._traces.forget_old(now)
        over = [s for s in self._all() if now - s.established > LIFETIME]
        for session in over:
            self._forget(session)
        if now - self.started > REFUSE_AFTER:
            self._paired.clear()

    def _all(self) -> Iterator[Session]:
        unverified, verified = self._crowds
        networks = chain(verified.networks.values(), unverified.networks.values())
        return chain.from_iterable(network.row for network in networks)

    # -- for the control plane -------------------------------------------------------

    @property
    def session_count(self) -> int:
        """How many there are."""
        return self._count

    def sessions(self, now: float) -> list[RelaySession]:
        """Snapshots of all sessions, the verified ones first."""
        return [
            RelaySession(
                session.initiator.snapshot(),
                session.responder.snapshot(),
                session.verified,
                now - session.established,
                now - session.heard,
                session.memory,
            )
            for session in self._all()
        ]


def _pair(one: Remote, other: Remote) -> tuple[Remote, Remote]:
    """Two UDP addresses, whoever of them sends."""
    first, second = sorted((one[:2], other[:2]))
    return first, second
