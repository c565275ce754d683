"""Our rounds: what waits, S1, the wait for A1, S2, and in reliable rounds for A2.

An association is one signature chain of ours with one acknowledgment chain of the
peer's.  It has at most one open round: a second S1 on the same chain would disclose
an element from which the first round's key follows.  Several associations run side
by side, so throughput is (rounds in flight) x (bytes a round) / RTT.

A round starts at once when an association is idle, and takes all that waits.  Under
load packets queue up while associations wait for their A1, so rounds grow by
themselves: one packet (mode N) on an idle line, dozens (C) under load, low trees (C+M)
for more than an S1 has room for, and high ones when even that does not fill bandwidth
times delay.  pace.py has how far apart
rounds start on a long way.

Keys are disclosed in the order in which rounds were started, whatever the order of
their A1s, unless they have no flow in common: packets of a flow are never overtaken by
later ones.

A reliable round keeps its association after that, until each of its packets has its
verdict: S2s without one are repeated, and the key is public, so they go as they were.
It holds up nobody else.  So a packet that was lost comes after later ones of its flow;
to hold those back would cost every loss a standstill, and what cares puts them in
order itself.

Small packets that come alone need not wait for an A1: they travel inside their S1, if
both ends and the relays between them agree (early.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

from attrs import define, field

from alpha_trio.proto.batch import Buffer, Drop, Outbox, Place, Remote
from alpha_trio.proto.messages import (
    A1,
    CONTROL,
    EARLY_ROUND,
    HEADER_SIZE,
    MAX_PACKETS,
    MAX_RELIABLE,
    MAX_ROOTS,
    MIN_RTO,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    TAG_SIZE,
    BadPacket,
    Kind,
    join_early,
)
from alpha_trio.proto.packets import FRAME_WORD_SIZE, Cut, flow_of
from alpha_trio.proto.primitives import (
    EARLY_USE,
    depth_for,
    digest_of,
    early_packet,
)
from alpha_trio.proto.traces import Counts
from alpha_trio.proto.transport.controls import Controls
from alpha_trio.proto.transport.conversation import NOTICED, Conversations
from alpha_trio.proto.transport.early import Early, EarlyState, room_for_early
from alpha_trio.proto.transport.layout import HEADS_SIZE, Datagrams, Group, Opening
from alpha_trio.proto.transport.line import Line
from alpha_trio.proto.transport.modes import MODES, depth_of
from alpha_trio.proto.transport.pace import Pace, distance, early_waiting, is_long
from alpha_trio.proto.transport.queue import (
    MOST_LOOKED_AT,
    FlowQueue,
    Waiting,
    waiting_again,
)
from alpha_trio.proto.transport.round import OutAssociation, Round
from alpha_trio.proto.transport.sized import (
    Outcome,
)
from alpha_trio.proto.transport.standing import (
    INTERVAL,
    INTERVAL_TRIPS,
    TARGET,
    StandingQueue,
)
from alpha_trio.proto.transport.timing import RTO_JITTER, RoundTrip
from alpha_trio.proto.transport.transport import ECN

HELD_BYTES = 7_500_000  # waiting and under way; oldest waiting dropped first
# In rounds: until disclosed, or until answered.  On a long way this, by the round trip,
# is the rate: 560 Mbit/s at 100 ms.
UNDER_WAY_BYTES = 7_000_000
QUEUE_AGE = 2.0  # s, likewise
# No more rounds are under way than this: what cannot be answered yet waits here, where
# an echo may pass it, and not in the peer's socket, where nothing can.  The least
# round-trip time tells how many the way itself holds; the present one would count that
# queue as well.
MOST_ROUNDS = 5
# Nor more than have room for so many packets together; but two, so that the peer has
# one to work at while the answer to the other is on its way.
MOST_ASKED = 420
ROUNDS_MORE_EVERY = 0.0005  # s of the least round-trip time

LIGHT = 4  # bytes held by small packets for each that they have

UNHEARD = 4  # tries of one S1, until an association that never had an answer is closed

OVERTAKEN = 3  # later rounds answered, until an S1 is repeated before its time

LEAST_SHARE = 4  # a super-packet is torn apart for this part of a round, not for less

ROUND_LIFETIME = 3.0  # s until an unanswered round holds up those behind it no more
CONTROL_LIFETIME = 3.0  # s, or six round trips, until a control message makes way
# Where two of three exchanges fail, one of a hundred thousand fails twenty times.
RELIABLE_LIFETIME = 20.0  # s for S1 and A1, as much for S2 and A2, and to wait before

_NO_SIZE = 1 << 16


@define(eq=False)
class Sender:
    """All our rounds with one peer in one session."""

    line: Line
    associations: dict[int, OutAssociation] = field(factory=dict)
    rtt: RoundTrip = field(factory=RoundTrip)
    mode: str = "adaptive"
    reliable: bool = False  # whether the next rounds are
    modes: dict[str, int] = field(factory=lambda: dict.fromkeys(MODES, 0))
    queue: FlowQueue = field(factory=FlowQueue)
    queued_bytes: int = 0
    queued_count: int = 0  # packets
    under_way_bytes: int = 0  # held for rounds that may still need them
    deadline: float = inf  # when an answer may be overdue; looked at anew then
    under_way: int = 0  # rounds whose A1 has not come, but is not overdue either
    doubted_size: int = _NO_SIZE  # bytes of a datagram that a narrow path may not take
    large: bool = False  # a round had larger ones since somebody last looked
    pace: Pace = field(factory=Pace)
    standing: StandingQueue = field(factory=StandingQueue)
    controls: Controls = field(init=False)
    early: Early = field(init=False)
    talks: Conversations = field(factory=Conversations)
    trial: Round | None = None  # of early data, under way
    order: deque[Round] = field(factory=deque)  # started, key not yet disclosed
    starved: bool = False  # something waits because every association is busy
    trees: bool = False  # and there are as many of those as there may be
    sent: int = 0  # S2s, repetitions included
    _answered: float = -inf  # when an A1 came last

    def __attrs_post_init__(self) -> None:
        self.controls = Controls(self)
        self.early = Early.agreed(self.line.agreement)

    @property
    def counts(self) -> Counts:
        """What we have sent, as a REPORT has it."""
        return Counts(self.sent)

    def restrict(self, mode: str, rounds: dict[str, int]) -> None:
        """Use one mode only, for measuring, or "adaptive"; count into ``rounds``."""
        self.mode, self.modes = mode, rounds

    def succeed(self, old: Sender, now: float, out: Outbox) -> None:
        """Send what the session before this one has not: no packet is lost by that.

        A round whose key was not disclosed was not delivered either, so its packets
        go again, before those that wait.  What was disclosed may have arrived: its
        repetition is left to the old session, which knows each packet once.
        """
        if old.rtt.smoothed is not None:
            self.rtt.begin(old.rtt.smoothed)
        self.early.succeed(old.early)
        self.talks = old.talks
        for round_ in old.order:
            old.finish(round_)
            for waiting in old.reopen(round_, now):
                self._queue(waiting, in_order=True)
        old.order.clear()
        while old.queue:
            self._queue(old.queue.popleft(), in_order=True)
        old.queued_bytes = old.queued_count = 0
        self.start(now, out)

    def abandon(self) -> None:
        """The session ends: count what is lost with it."""
        if lost := self.queued_packets:
            self.line.counters.drop(Drop.NO_SESSION, lost)
        self.queue.clear()
        self.order.clear()
        for association in self.associations.values():
            for round_ in association.open_rounds:
                self._count_unanswered(round_)
                association.end(round_)

    def reopen(self, round_: Round, now: float) -> Iterator[Waiting]:
        """The packets of an undisclosed round, as they were in the queue."""
        number = round_.association.number
        bodies = round_.datagrams.opened(self.line.encrypt, number, round_.number)
        return waiting_again(bodies, now)

    @property
    def queued_packets(self) -> int:
        """Packets that wait for an association, or for their A1."""
        under_way = sum(round_.inner_packets for round_ in self.order)
        return under_way + sum(waiting.packets for waiting in self.queue)

    @property
    def elements_left(self) -> int:
        """Elements of our signature chains that were not disclosed yet."""
        return sum(2 * a.rounds_left for a in self.associations.values())

    # -- the queue -------------------------------------------------------------

    def outgoing(self, cut: Cut, now: float) -> None:
        """Queue the segments of ``cut``; ``start`` sends them."""
        word, headers, payload, size, _, begin = cut
        flow = flow_of(headers or payload)
        waiting = Waiting(word, headers, payload, size, now, flow, begin=begin)
        if self.early.usable and self.rtt.least >= NOTICED:
            waiting.may_go_early = self.talks.may_go_early(
                waiting,
                room_for_early(self.line.datagram_size),
                queued=self.queue.has_more(flow),
            )
        self._queue(waiting)

    def _queue(self, waiting: Waiting, *, in_order: bool = False) -> None:
        if in_order:
            self.queue.append_in_order(waiting)
        else:
            self.queue.append(waiting)
        self.queued_bytes += waiting.held
        self.queued_count += waiting.count
        while self.queued_bytes + self.under_way_bytes > HELD_BYTES and self.queue:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self.queue.pop_oldest()
        self.queued_bytes -= oldest.held
        self.queued_count -= oldest.count
        self.line.counters.drop(Drop.QUEUE_FULL, oldest.packets)

    # -- S1 --------------------------------------------------------------------

    def start(self, now: float, out: Outbox) -> None:
        """Start a round on every idle association, as long as something waits."""
        self.controls.start(now, out)
        self._drop_old(now)
        self.start_early(now, out)
        if not self.queue or self._better_wait_for_early():
            return
        room, roots = self._capacity()
        if self._better_wait(room, now):
            return
        flags = RELIABLE if self.reliable else 0
        most = self._most_rounds(room)
        for association in self.associations.values():
            if self.under_way >= most or self.under_way_bytes > UNDER_WAY_BYTES:
                return
            if association.idle:
                if taken := self._take(room, now):
                    self._start_round(association, taken, roots, flags, now, out)
                if not self.queue:
                    self.standing.rest(now)
                    self.starved = self.trees = False
                    return
                if is_long(self.rtt.smoothed) and self._better_wait(room, now):
                    return
        # What only waits for a probe's answer needs no further associations.
        self.starved = not self.controls.put_off_sized(now, out)

    def _drop_old(self, now: float) -> None:
        age = RELIABLE_LIFETIME if self.reliable else QUEUE_AGE
        while self.queue and now - self.queue.oldest.since > age:
            self._drop_oldest()

    # -- early data ------------------------------------------------------------

    @property
    def _goes_early(self) -> bool:
        return self.early.usable and not self.reliable and self.mode == "adaptive"

    def start_early(self, now: float, out: Outbox) -> None:
        """Let go inside S1s what overtakes nothing of its flow by that."""
        if self.early.state is EarlyState.TRYING:
            self._try_early(now, out)
        if not self.queue or not self._goes_early:
            return
        trip, early = self.rtt.smoothed, self.early
        room = room_for_early(self.line.datagram_size)
        light = self._is_light(room)
        if not light and not self.queue.has_single(room):
            return  # hot path: there is nothing but streams
        if self.pace.must_wait_early(early.under_way, trip, now):
            return
        idle = [a for a in self.associations.values() if a.idle]
        most = min(
            len(idle), early.room(trip), self.pace.early_at_once(early.under_way)
        )
        if not most:
            return
        held: set[bytes] = set().union(*(round_.flows for round_ in self.order))
        times = early_waiting(trip) if light else 1
        looked_at = times * MOST_LOOKED_AT
        whole = not (light and self.queue.is_small(times * room, looked_at))
        packed = self.queue.take_early(room, most, held, looked_at, whole=whole)
        for association, taken in zip(idle, packed, strict=False):
            self.queued_bytes -= sum(waiting.held for waiting in taken)
            self.queued_count -= sum(waiting.count for waiting in taken)
            self._start_early_round(association, taken, now, out)

    def _is_light(self, room: int) -> bool:
        """Whether so little waits that it is worth to look at each packet."""
        return self.queued_bytes <= LIGHT * room * early_waiting(self.rtt.smoothed)

    def _better_wait_for_early(self) -> bool:
        """Whether what waits goes early, once the rounds before it are out.

        These are out sooner than another round would be, and it arrives half a round
        trip later.  But not if one of them is overdue: to wait for each loss in turn
        would make of rounds side by side one after the other.
        """
        if not self._goes_early or not (self.order or self.early.under_way):
            return False
        if any(not round_.agreed and round_.attempts > 1 for round_ in self.order):
            return False
        room = room_for_early(self.line.datagram_size)
        if not self._is_light(room):
            return False
        times = early_waiting(self.rtt.smoothed)
        if not self.queue.is_small(times * room, times * MOST_LOOKED_AT):
            return False
        busy = not any(a.idle for a in self.associations.values())
        self.starved = busy and self.early.room(self.rtt.smoothed) > 0
        return True

    def _try_early(self, now: float, out: Outbox) -> None:
        """See whether S1s with something in them pass, as long as nothing waits."""
        if self.trial is not None:
            overdue = self.trial.attempts > 1 or now >= self.trial.resend_at
            if self.queue and overdue:
                self.give_up(self.trial, Drop.NO_AGREEMENT, now)
            return
        wanted = self.early.is_due(now) and not self.reliable
        if not wanted or self.queue or self.mode != "adaptive":
            return
        idle = next((a for a in self.associations.values() if a.idle), None)
        if idle is not None:
            self.trial = self._start_early_round(idle, [], now, out)

    def _start_early_round(
        self,
        association: OutAssociation,
        taken: list[Waiting],
        now: float,
        out: Outbox,
    ) -> Round:
        bodies = [body for waiting in taken for body in waiting.bodies()]
        opening = association.open(EARLY_ROUND, self.line)
        place = association.number, opening.number, 0
        early = self.line.encrypt.apply(*place, join_early(bodies), EARLY_USE)
        round_ = self.announce(
            association,
            opening,
            Datagrams.bare(b"", opening, early_packet(early)),
            now,
            out,
            early=early,
            traffic_class=taken[0].traffic_class if taken else 0,
        )
        self.early.under_way += 1
        self.pace.early_started = now
        round_.early = count = len(bodies)
        # Sent once, however often repeated; and even if the kernel refuses it now.
        counters = self.line.counters
        counters.early_sent += count
        counters.tx_packets += count
        counters.tx_bytes += sum(map(len, bodies)) - count * FRAME_WORD_SIZE
        return round_

    def _better_wait(self, room: int, now: float) -> bool:
        """Whether what waits, less than a full round, waits for more."""
        if self.rtt.smoothed is None or self.queued_count >= room:
            return False
        return self.pace.must_wait(self.under_way, self.rtt.smoothed, now)

    def _capacity(self) -> tuple[int, int]:
        """Most packets for the next round, and most roots its S1 may carry."""
        room = self.line.datagram_size - S1_FIXED_SIZE - TAG_SIZE
        fit = min(room // NODE_SIZE, MAX_ROOTS)
        roots = min(fit, self.line.most_roots)
        depth = depth_of(self.mode)
        most = MAX_RELIABLE if self.reliable else MAX_PACKETS
        if self.mode == "n":
            return 1, 1
        if self.mode == "m":
            return min(1 << depth, most), 1
        if self.mode == "cm":
            trees = max(1, roots >> depth)
            return min(trees << depth, most), trees
        trees = self.trees or is_long(self.rtt.smoothed) or roots < fit
        if self.mode == "c":
            return min(roots, most), roots
        if not trees:
            # A node for each two packets costs less than what is done once a round.
            depth = min(depth, int(self.queued_count > roots))
        return min(roots << depth, most), roots

    def _most_rounds(self, room: int) -> int:
        """How many rounds may be under way, of so many packets each."""
        more = int(min(self.rtt.least, 1.0) / ROUNDS_MORE_EVERY)
        return max(2, min(MOST_ROUNDS, MOST_ASKED // room)) + more

    def _take(self, room: int, now: float) -> list[Waiting]:
        spare = room // LEAST_SHARE
        tell = self._stands(now)
        taken: list[Waiting] = []
        while self.queue and room:
            waiting = self.queue.popleft()
            if taken and room < spare and waiting.count > room:
                # What is sent together arrives as one super-packet, else as two.
                self.queue.appendleft(waiting)
                break
            self.queued_bytes -= waiting.held
            if waiting.count > room:
                waiting, rest = waiting.split(room)
                self.queue.appendleft(rest)
                self.queued_bytes += rest.held
            self.queued_count -= waiting.count
            if tell and self.queue.has_more(waiting.flow):
                tell = False
                if not self._told(waiting):
                    continue
            room -= waiting.count
            taken.append(waiting)
        return taken

    def _stands(self, now: float) -> bool:
        """Whether a sender inside is to be told that it is too fast."""
        if self.reliable or not self.queue:
            return False
        trip = self.rtt.smoothed or 0.0
        target, interval = TARGET + distance(trip), max(INTERVAL, INTERVAL_TRIPS * trip)
        return self.standing.tells(now - self.queue.oldest.since, target, interval, now)

    def _told(self, waiting: Waiting) -> bool:
        """Lose one packet, or mark them all; False if nothing is left of the frame.

        Only of a flow that has more waiting: it is the one whose queue it is.
        """
        if waiting.traffic_class & ECN:
            waiting.marked = True
            return True
        self.line.counters.drop(Drop.QUEUE_FULL)
        return waiting.lose_first()

    def _start_round(
        self,
        association: OutAssociation,
        taken: list[Waiting],
        roots: int,
        flags: int,
        now: float,
        out: Outbox,
    ) -> None:
        packets = sum(waiting.count for waiting in taken)
        depth = depth_for(packets, roots)
        opening = association.open(flags | depth, self.line)
        datagrams = Datagrams.sealed(taken, depth, opening, self.line)
        round_ = self.announce(association, opening, datagrams, now, out)
        round_.flows = frozenset(waiting.flow for waiting in taken)
        self.order.append(round_)
        self.pace.started = now
        self.under_way_bytes += datagrams.size
        if flags:
            self.line.counters.reliable_rounds += 1

    def announce(
        self,
        association: OutAssociation,
        opening: Opening,
        datagrams: Datagrams,
        now: float,
        out: Outbox,
        place: Place | None = None,
        early: Buffer = b"",
        traffic_class: int = 0,
    ) -> Round:
        """Say in an S1 what the round that was opened will bring.

        ``place``: say it there alone.  ``early``: what the S1 itself brings, encrypted,
        of packets with this ``traffic_class``.
        """
        _, number, shape, *_ = opening
        element = association.chain.element(2 * number + 1)
        packets, roots = datagrams.packets, len(datagrams.roots) // NODE_SIZE
        message = b"".join(
            (
                self.line.head(Kind.S1, association.number, shape, number, element),
                S1_COUNTS.pack(packets, roots, 0),
                datagrams.roots,
                early,
            )
        )
        s1, digest = self.line.tagged(message), digest_of(message)
        round_ = Round(association, number, shape, datagrams, s1, digest, now, now)
        round_.asked_at, round_.traffic_class = place, traffic_class
        association.round = round_
        self._expect(round_, now)
        self.under_way += 1
        if not shape & CONTROL:
            self.large = self.large or round_.largest > self.doubted_size
            self.modes[_mode(packets, datagrams.depth, roots)] += 1
        self.line.send(s1, out, place, traffic_class)
        return round_

    def _expect(self, round_: Round, now: float) -> None:
        """Note when the answer to what was just sent will be overdue."""
        timeout = self.rtt.timeout(round_.attempts)
        if round_.attempts > 1:
            share = self.line.random(1)[0] / 256
            timeout *= 1 + RTO_JITTER * (share - 0.5)
        round_.resend_at = due = now + timeout
        if due < self.deadline:
            self.deadline = due

    def hasten(self, now: float) -> None:
        """Repeat the S1s that have no answer yet.

        Not right after their first copy, as relays would not let the second one pass.
        """
        for association in self.associations.values():
            round_ = association.round
            if round_ is not None and not round_.agreed:
                due = max(now, round_.started + MIN_RTO)
                round_.resend_at = min(round_.resend_at, due)
                self.deadline = min(self.deadline, round_.resend_at)

    def hasten_larger(self, size: int) -> None:
        """Look at once at rounds that the path does not take any more."""
        for association in self.associations.values():
            round_ = association.round
            if round_ is not None and round_.largest > size and round_.sized is None:
                round_.resend_at = self.deadline = -inf

    # -- A1 and S2 ---------------------------------------------------------------

    def on_a1_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> bool:
        """The receiver holds the pre-signatures: the key may be disclosed.

        False if it answers a repeated S1 and tells nothing new.  Raises BadPacket
        unless the A1 answers exactly the S1 of an open round.
        """
        message = self.line.untagged_untrusted(datagram)
        if len(message) != ROUND_HEAD_SIZE + A1.size:
            raise BadPacket
        number, _, _, index, element = ROUND.unpack_from(message, HEADER_SIZE)
        digest, root = A1.unpack_from(message, ROUND_HEAD_SIZE)
        round_ = self._open_round_untrusted(number, index)
        if round_ is None or round_.agreed:
            if self.associations[number].expects_again(index):
                self.rtt.doubt(now)
            return False
        if digest != round_.digest:
            raise BadPacket
        round_.association.take_answer_untrusted(2 * index + 1, element)
        elsewhere = self.line.elsewhere(remote, local)
        if elsewhere is not None and elsewhere == round_.asked_at:
            self.line.proven = elsewhere
        self._on_agreed(round_, now)
        round_.agreed, round_.ack_root = True, root
        if round_.shape & (CONTROL | EARLY_ROUND):
            self._disclose(round_, now, out)
        if not round_.shape & CONTROL:
            self._release(now, out)
        if elsewhere is not None and elsewhere != round_.asked_at:
            self.controls.challenge(elsewhere, now, out)
        return True

    def _on_agreed(self, round_: Round, now: float) -> None:
        """See what an A1 tells of the path."""
        self._answered = now
        self.rtt.answered(repeated=round_.attempts > 1)
        if round_.attempts == 1:
            self.rtt.sample(now - round_.started)
            self._leave(round_)
        else:
            self.rtt.unsure = True
            round_.association.repeated = round_.number, round_.attempts - 1
        if round_.shape & EARLY_ROUND:
            self.early.on_answer(round_.early)
        else:
            self.early.on_other_answer(now)
        if self.under_way > 0:
            self._note_overtaken(round_, now)

    def _note_overtaken(self, answered: Round, now: float) -> None:
        """Of an S1 sent before that has no answer one of the two was lost, it seems.

        After OVERTAKEN later ones that is sure enough not to wait for the timer; but
        relays let nothing pass again at once.
        """
        for association in self.associations.values():
            round_ = association.round
            if round_ is None or round_.agreed or round_.started >= answered.started:
                continue
            round_.overtaken += 1
            if round_.overtaken == OVERTAKEN and round_.attempts == 1:
                round_.resend_at = max(now, round_.started + MIN_RTO)
                self.deadline = min(self.deadline, round_.resend_at)

    def _open_round_untrusted(self, association: int, index: int) -> Round | None:
        """The round a message is about; None if that is over.

        Raises BadPacket if there never was one.
        """
        found = self.associations.get(association)
        if found is None or index >= found.next_round:
            raise BadPacket
        for round_ in (found.round, found.settling):  # hot path
            if round_ is not None and round_.number == index:
                return round_
        return None

    def _release(self, now: float, out: Outbox) -> None:
        """Disclose what is agreed, for each flow in the order in which it was sent."""
        while self.order and self.order[0].agreed:
            self._disclose(self.order.popleft(), now, out)
        if any(round_.agreed for round_ in self.order):
            self._pass_by(now, out)
        self.start(now, out)

    def _pass_by(self, now: float, out: Outbox) -> None:
        """Disclose what is agreed, and has no flow in common with what is before it.

        So a lost S1 costs the others nothing.
        """
        held: set[bytes] = set()
        for round_ in list(self.order):
            if round_.agreed and held.isdisjoint(round_.flows):
                self.order.remove(round_)
                self._disclose(round_, now, out)
            else:
                held |= round_.flows

    def _disclose(self, round_: Round, now: float, out: Outbox) -> None:
        for group in round_.datagrams.groups:
            self._send_s2(round_, group, out)
        if round_.shape & RELIABLE:
            self._await_verdicts(round_, now)
            if round_.is_message:
                round_.association.settle()
        else:
            self.finish(round_)

    def _send_s2(self, round_: Round, group: Group, out: Outbox) -> None:
        """Send packets of one round, all of one size but the last."""
        line, around = self.line, round_.datagrams.fixed + HEADS_SIZE
        run, stride = group.run, group.stride
        # Those of reliable rounds are counted once, however often they are sent.
        counted = around if stride > around and not round_.shape & RELIABLE else None
        self.sent += -(-len(run) // stride)
        out.send(
            line.remote,
            line.local,
            line.counters,
            run,
            stride,
            counted,
            group.traffic_class & line.visible,
        )

    def finish(self, round_: Round) -> None:
        """The round is over: its association is free, its packets are forgotten."""
        round_.association.end(round_)
        if round_ is self.trial:
            self.trial = None
        if not round_.agreed and round_.attempts == 1:
            self._leave(round_)
        if not round_.shape & (CONTROL | EARLY_ROUND):
            self.under_way_bytes -= round_.datagrams.size

    def _leave(self, round_: Round) -> None:
        """It is not under way any more: answered, overdue or over."""
        self.under_way -= 1
        self.early.under_way -= round_.shape & EARLY_ROUND != 0

    # -- A2 ---------------------------------------------------------------------

    def on_a2_untrusted(self, datagram: bytes, now: float, out: Outbox) -> bool:
        """The receiver's verdicts on packets of a reliable round: do not repeat these.

        False if it answers a repeated S2 and tells nothing new.  Raises BadPacket
        unless all of it opens the acknowledgment tree of the round's A1.
        """
        message = self.line.untagged_untrusted(datagram)
        if len(message) < ROUND_HEAD_SIZE:
            raise BadPacket
        number, _, _, index, key = ROUND.unpack_from(message, HEADER_SIZE)
        round_ = self._open_round_untrusted(number, index)
        if round_ is None:
            return False
        openings = message[ROUND_HEAD_SIZE:]
        new, refused = round_.on_openings_untrusted(key, openings)
        if not new:
            return False
        if refused:
            self.line.counters.drop(Drop.REFUSED, refused)
        if round_.unanswered:
            round_.attempts = 1
            self._expect(round_, now)
        else:
            self.controls.end_sized(round_, Outcome.ARRIVED, now, out)
            self.start(now, out)
        return True

    def _await_verdicts(self, round_: Round, now: float) -> None:
        """The S2s of a reliable round went out for the first time."""
        round_.unanswered = (1 << round_.packets) - 1
        round_.attempts = 1
        if round_.probe is not None:
            round_.probe.sent = self.counts
        if round_.is_reliable_data:
            round_.started = now
            # Sent once, however often repeated; and even if the kernel refuses it now.
            self.line.counters.tx_packets += round_.inner_packets
            self.line.counters.tx_bytes += round_.inner_bytes
        self._expect(round_, now)
        if round_.sized is not None:
            self.controls.count_copy(round_, now)

    def repeat_s2(self, round_: Round, now: float, out: Outbox) -> None:
        """Send again, byte for byte, what has no verdict yet."""
        for group in round_.datagrams.among(round_.unanswered):
            self._send_s2(round_, group, out)
        self._expect(round_, now)

    # -- time --------------------------------------------------------------------

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Repeat what was not answered, give up what is too old."""
        if now >= self.pace.resume:
            self.pace.resume = inf
            self.start(now, out)
        if now < self.deadline:
            return
        for association in self.associations.values():
            for round_ in association.open_rounds:
                if now >= round_.resend_at:
                    self._on_overdue(round_, now, out)
        self.deadline = min(
            (r.resend_at for a in self.associations.values() for r in a.open_rounds),
            default=inf,
        )
        self._release(now, out)

    def _on_overdue(self, round_: Round, now: float, out: Outbox) -> None:
        if now - round_.started >= self._lifetime(round_):
            self.give_up(round_, Drop.NO_AGREEMENT, now)
            if round_.sized is not None:
                round_.sized.told(round_.sized, Outcome.SILENT, now, out)
        elif round_.largest > self.line.datagram_size and not round_.shape & CONTROL:
            self.give_up(round_, Drop.TOO_BIG, now)  # the path has shrunk meanwhile
        elif not round_.agreed:
            self._on_no_answer(round_, now, out)
        elif round_.probe is not None:
            self.finish(round_)  # a TRACE goes once
        elif round_.sized is not None:
            self.controls.repeat_sized(round_, now, out)
        elif round_.unanswered:
            round_.attempts += 1
            self.repeat_s2(round_, now, out)
        else:
            round_.resend_at = inf  # waits for those before it

    def _on_no_answer(self, round_: Round, now: float, out: Outbox) -> None:
        if round_.attempts == 1:
            self._leave(round_)  # others need not wait for it
        if round_.shape & EARLY_ROUND:
            silent = self.early.on_silence(round_.started, round_.attempts)
            if silent and round_ is self.trial:
                self.give_up(round_, Drop.NO_AGREEMENT, now)
                return
        round_.attempts += 1
        self._expect(round_, now)
        self._repeat_s1(round_, now, out)

    def _repeat_s1(self, round_: Round, now: float, out: Outbox) -> None:
        """Announce the round again, also where the peer was until not long ago.

        Where it has moved to somebody may have stood who lets nothing more pass.
        """
        round_.asked_at = None
        self.line.send(round_.s1, out, None, round_.traffic_class)
        if former := self.line.former(now):
            self.line.send(round_.s1, out, former, round_.traffic_class)

    def _lifetime(self, round_: Round) -> float:
        """How long a round may take; a control one not as long, as packets wait."""
        if round_.shape & CONTROL:
            trips = 10 if round_.sized is not None else 6
            return max(CONTROL_LIFETIME, trips * (self.rtt.smoothed or 0.0))
        return RELIABLE_LIFETIME if round_.shape & RELIABLE else ROUND_LIFETIME

    def give_up(self, round_: Round, reason: Drop, now: float) -> None:
        """Nobody answers: what it had under way is lost."""
        self.finish(round_)
        association = round_.association
        unheard = not association.heard and round_.attempts >= UNHEARD
        if unheard and self._answered > round_.started:
            # The peer answers others: a relay did not see how this one was opened.
            association.exhaust()
        if round_.shape & EARLY_ROUND:
            self.early.on_lost(round_.early, round_.started, now)
        if round_ in self.order:
            self.order.remove(round_)
            self.line.counters.drop(reason, round_.inner_packets)
        self._count_unanswered(round_)

    def _count_unanswered(self, round_: Round) -> None:
        """Whether these packets arrived nobody will ever know: they do not go again."""
        lost = round_.inner_among(round_.unanswered)
        lost += 0 if round_.agreed else round_.early
        if lost:
            self.line.counters.drop(Drop.UNACKNOWLEDGED, lost)


def _mode(packets: int, depth: int, roots: int) -> str:
    if packets == 1:
        return "n"
    if not depth:
        return "c"
    return "m" if roots == 1 else "cm"
