"""The sending half of a session: queue, rounds, repetition, modes."""

from itertools import chain, pairwise
from random import Random

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    CONTROL,
    MAX_PACKETS,
    MIN_RTO,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    Kind,
)
from alpha_trio.proto.packets import Cut
from alpha_trio.proto.packets.frames import cut
from alpha_trio.proto.transport.queue import FlowQueue, Waiting
from alpha_trio.proto.transport.sender import (
    HELD_BYTES,
    QUEUE_AGE,
    ROUND_LIFETIME,
    UNDER_WAY_BYTES,
)
from alpha_trio.proto.transport.timing import (
    BACKED_OFF_RTO,
    FIRST_RTO,
    LOSS_OVER,
    MAX_RTO,
    RTO_GROWTH,
    RTO_MARGIN,
    RoundTrip,
)
from tests.proto.ends import End, Ends, batch, head, of_kind, packets_of
from tests.proto.inner import Packet
from tests.proto.simulation import DELAY, Link, Simulation

MODES = ["n", "c", "m", "cm"]
LARGE = Packet(payload=bytes(60 * 900), segment_size=900)


def accounted(end: End) -> int:
    """Packets that wait, or were dropped for a reason."""
    return end.sender.queued_packets + sum(end.drops.values())


def held(end: End) -> int:
    return end.sender.queued_bytes + end.sender.under_way_bytes


# -- repetition


def test_s1_is_repeated_to_the_byte_with_growing_delay():
    ends = Ends.make()
    sent, times = ends.one.emit(batch()), [0.0]
    while ends.one.transport.deadline < ROUND_LIFETIME:
        times.append(ends.one.transport.deadline)
        sent += ends.one.serve(times[-1])
    assert len(set(sent)) == 1
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == sorted(gaps)
    assert len(sent) == len(times) >= 3


@pytest.mark.parametrize("lost", ["S1", "A1"])
def test_a_lost_message_is_repeated_and_the_round_goes_on(lost):
    ends = Ends.make()
    s1 = ends.one.emit(batch())
    if lost == "A1":
        ends.two.take(*s1)
    again = ends.one.serve(ends.one.transport.deadline)
    assert again == s1
    ends.settle(*again, now=0.6)
    assert ends.two.received == packets_of(batch())
    assert ends.two.drops == ends.one.drops == {}


def test_a_round_nobody_answers_is_given_up_and_counted_exactly():
    ends = Ends.make()
    ends.one.emit(batch())
    ends.one.emit(batch(seed=1))
    ends.one.serve(ROUND_LIFETIME + MAX_RTO)
    assert ends.one.drops[Drop.NO_AGREEMENT] == 7
    assert accounted(ends.one) == 14
    assert ends.one.sender.under_way_bytes == 0


def test_what_comes_after_a_round_that_was_given_up_arrives():
    ends = Ends.make()
    ends.one.emit(batch())
    now = ROUND_LIFETIME + MAX_RTO
    ends.one.serve(now)
    ends.settle(*ends.one.emit(batch(seed=1), now=now), now=now)
    assert ends.two.received == packets_of(batch(seed=1))


def test_a_round_that_was_given_up_is_never_disclosed():
    ends = Ends.make()
    a1 = ends.two.take(*ends.one.emit(batch()))
    ends.one.serve(ROUND_LIFETIME + MAX_RTO)
    assert ends.one.take(*a1, now=ROUND_LIFETIME + MAX_RTO) == []


def test_a_keepalive_nobody_answers_is_no_lost_packet():
    ends = Ends.make()
    ends.one.transport.keepalive(0.0, ends.one.out)
    assert ends.one.sender.queued_packets == 0
    ends.one.serve(ROUND_LIFETIME + MAX_RTO)
    assert sum(ends.one.drops.values()) == 0


# -- the round-trip time


def test_what_fits_the_path_no_more_is_given_up_not_repeated():
    ends = Ends.make()
    ends.one.emit(batch())
    ends.one.transport.line.datagram_size = 150
    assert ends.one.serve(FIRST_RTO) == []
    assert ends.one.drops == {Drop.TOO_BIG: 7}
    ends.settle(*ends.one.send(b"small", now=1.0))
    assert ends.two.received == [b"small"]


def test_the_timeout_follows_the_measurements_within_its_bounds():
    trip = RoundTrip()
    for _ in range(100):
        trip.sample(0.1)
    assert trip.smoothed == pytest.approx(0.1)
    assert trip.timeout(1) == pytest.approx(0.1 * (1 + RTO_MARGIN), rel=0.01)
    assert trip.timeout(2) == pytest.approx(RTO_GROWTH * trip.timeout(1))
    assert trip.timeout(50) == BACKED_OFF_RTO
    for _ in range(200):
        trip.sample(0.0001)
    assert trip.timeout(1) == MIN_RTO
    for _ in range(200):
        trip.sample(2.0)
    assert trip.timeout(1) == trip.timeout(50) == pytest.approx(2.5, rel=0.01)
    for _ in range(200):
        trip.sample(10.0)
    assert trip.timeout(1) == MAX_RTO
    for _ in range(30):
        trip.sample(0.001)
    trip.sample(36_000)  # the answer waited while the host slept
    assert trip.smoothed < 1


def test_a_repeated_exchange_is_no_measurement():
    """It cannot be told which of the two S1s was answered (Karn)."""
    ends = Ends.make()
    s1 = ends.one.emit(batch())
    ends.one.serve(1.0)
    ends.one.take(*ends.two.take(*s1), now=1.0)
    assert ends.one.sender.rtt.smoothed is None


# -- the queue


def test_what_is_held_is_bounded_and_every_packet_accounted_for():
    ends, handed_in = Ends.make(), 0
    most = 0
    for _ in range(300):  # 17 MB
        ends.one.emit(LARGE)
        handed_in += 60
        assert held(ends.one) <= HELD_BYTES
        assert accounted(ends.one) == handed_in
        most = max(most, held(ends.one))
    assert most > HELD_BYTES - 60 * 1000
    assert set(ends.one.drops) == {Drop.QUEUE_FULL}


def test_the_oldest_are_dropped_first():
    """But not what is under way."""
    ends = Ends.make()
    first = ends.one.emit(batch())
    for _ in range(200):
        ends.one.emit(LARGE)
    newest = [ends.one.send(b"newest %d" % i) for i in range(3)]
    assert newest == [[], [], []]
    ends.settle(*first)
    assert ends.two.received[:7] == packets_of(batch())
    newest = [p for p in ends.two.received if p.startswith(b"newest")]
    assert newest == [b"newest 0", b"newest 1", b"newest 2"]


def test_what_waited_too_long_is_dropped_and_counted():
    ends = Ends.make()
    ends.one.emit(batch())
    ends.one.emit(batch(seed=1), now=0.1)
    ends.one.emit(batch(seed=2), now=0.2 + QUEUE_AGE)
    assert ends.one.drops == {Drop.QUEUE_FULL: 7}
    assert ends.one.sender.queued_packets == 14


def test_no_round_begins_while_too_much_is_under_way():
    ends = Ends.make()
    first = ends.one.send(b"first")
    ends.one.send(b"so that associations are opened")
    ends.settle(*first)
    for _ in range(120):
        ends.one.emit(LARGE)
        ends.one.serve(0.0)
    sender = ends.one.sender
    sizes = [round_.datagrams.size for round_ in sender.order]
    assert sender.under_way_bytes == sum(sizes)
    assert sender.under_way_bytes <= UNDER_WAY_BYTES + max(sizes)


def test_on_a_short_way_two_full_rounds_are_under_way_and_the_rest_waits():
    ends = Ends.make()
    first = ends.one.send(b"first")
    ends.one.send(b"so that associations are opened")
    ends.settle(*first)
    for _ in range(20):
        ends.one.emit(LARGE)
    sender = ends.one.sender
    assert len(sender.associations) > 2
    assert [round_.packets for round_ in sender.order] == [60, 168]
    assert sender.queued_count == 20 * 60 - 228


@pytest.mark.parametrize("seed", range(5))
def test_packets_are_conserved_whatever_is_lost(seed):
    """Handed in: delivered, lost as S2, waiting, or counted as dropped."""
    random, ends, now = Random(seed), Ends.make(seed), 0.0
    handed_in, lost, to_two, to_one = 0, 0, [], []
    for _ in range(400):
        now += random.uniform(0, 0.3)
        for payload in range(random.randrange(4)):
            to_two += ends.one.send(b"packet %d" % payload, now=now)
            handed_in += 1
        to_two += ends.one.serve(now)
        arriving = []
        for message in to_two:
            if random.random() >= 0.3:
                arriving.append(message)
            elif message[0] == Kind.S2 and not head(message).shape & 0x40:
                lost += 1
        answers = ends.two.take(*arriving, now=now) + ends.two.serve(now)
        to_two = ends.one.take(*to_one, now=now)
        to_one = [m for m in answers if random.random() >= 0.3]
        on_the_way = sum(m[0] == Kind.S2 and not head(m).shape & 0x40 for m in to_two)
        delivered = len(ends.two.received)
        assert handed_in == delivered + lost + on_the_way + accounted(ends.one)
    assert lost
    assert delivered > handed_in / 3


# -- modes


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_is_asked_for_is_the_only_one(mode):
    ends = Ends.of_mode(mode)
    for seed in range(4):
        ends.settle(*ends.one.emit(batch(mode, seed)))
    assert {m: n for m, n in ends.one.sender.modes.items() if n} == {mode: 4}


def test_mode_n_takes_one_packet_a_round_whatever_waits():
    ends = Ends.make(mode="n")
    ends.settle(*ends.one.emit(batch("c")))
    assert ends.two.received == packets_of(batch("c"))
    assert ends.one.sender.modes == {"n": 7, "c": 0, "m": 0, "cm": 0}


def test_rounds_grow_with_what_waits():
    ends = Ends.make()
    ends.settle(*ends.one.send(b"alone"))
    assert ends.one.sender.modes["n"] == 1
    first = ends.one.send(b"first")
    for number in range(30):
        ends.one.send(b"%d" % number)
    carried = ends.settle(*first)
    largest = max(S1_COUNTS.unpack_from(m, ROUND_HEAD_SIZE)[0] for m in s1_of(carried))
    assert largest == 30
    assert ends.one.sender.modes["c"] == 1


def test_what_is_handed_in_together_shares_a_round():
    ends = Ends.make()
    for text in (b"one", b"two", b"three"):
        ends.one.transport.outgoing(Cut(0, b"", text, 5, 5), 0.0, ends.one.out)
    assert ends.one.sent() == []
    ends.one.transport.push(0.0, ends.one.out)
    assert packets_of_rounds(ends.settle(*ends.one.sent())) == [3]
    assert ends.two.received == [b"one", b"two", b"three"]


def packets_of_rounds(carried: list[bytes]) -> list[int]:
    """How many packets each round that carried some had."""
    return [
        S1_COUNTS.unpack_from(s1, ROUND_HEAD_SIZE)[0]
        for s1 in s1_of(carried)
        if not head(s1).shape & CONTROL
    ]


@pytest.mark.parametrize(
    ("size", "rounds"),
    [
        (40, [40, 120]),  # of 168 at most, two for each of 84 codes
        (60, [60, 168, 12]),
    ],
)
def test_a_super_packet_is_torn_apart_for_much_of_a_round_only(size, rounds):
    """The receiver would write its pieces to the TUN one by one."""
    ends = Ends.make()
    large = Packet(payload=bytes(size * 20), segment_size=20)
    begun = [s1 for _ in range(4) for s1 in ends.one.emit(large)]
    assert packets_of_rounds(ends.settle(*begun)) == rounds
    assert ends.two.received == packets_of(large) * 4


def test_a_super_packet_larger_than_a_round_is_spread_over_several():
    ends = Ends.make(size=300)
    large = Packet(payload=bytes(50 * 20), segment_size=20)
    ends.settle(*ends.one.emit(large))
    assert ends.two.received == packets_of(large)
    assert ends.one.sender.modes["cm"] > 1


def s1_of(messages: list[bytes]) -> list[bytes]:
    return of_kind(Kind.S1, messages)


def test_trees_come_when_even_all_associations_are_too_few():
    ends = Ends.make()
    sender = ends.one.sender
    for _ in range(20):
        sender.outgoing(cut(LARGE.frame(), 60_000), 0.0)
        sender.start(0.0, ends.one.out)
    sender.trees = True
    capacity, _ = sender._capacity()
    (first,) = ends.one.sent()
    (s1,) = s1_of(ends.one.take(*ends.two.take(first)))
    packets, roots, _ = S1_COUNTS.unpack_from(s1, ROUND_HEAD_SIZE)
    assert packets == capacity > roots
    assert sender.modes["cm"] == 1


def test_trees_make_up_for_roots_that_a_relay_does_not_keep():
    ends = Ends.make(limit=8)
    (first,) = ends.one.send(b"first")
    for number in range(30):
        ends.one.send(b"%d" % number)
    carried = ends.settle(first)
    data = [s1 for s1 in s1_of(carried) if not head(s1).shape & CONTROL]
    counts = [S1_COUNTS.unpack_from(s1, ROUND_HEAD_SIZE)[:2] for s1 in data]
    assert counts == [(1, 1), (16, 8), (14, 7)]
    assert len(ends.two.received) == 31


@pytest.mark.parametrize("mode", [*MODES, "adaptive"])
@pytest.mark.parametrize("size", [8960, 65_000])
def test_no_round_is_larger_than_the_receiver_takes(mode, size):
    """Where datagrams are large, S1 has room for more packets than that."""
    ends = Ends.make(mode=mode, size=size)
    ends.one.sender.trees = True
    assert ends.one.sender._capacity()[0] <= MAX_PACKETS


# -- from one session to the next


def test_a_new_session_takes_over_what_was_not_disclosed_in_order():
    old, new = Ends.make(), Ends.make(seed=1)
    a1 = old.two.take(*old.one.emit(batch()))
    for number in range(5):
        old.one.send(b"%d" * (number + 1) % ((number,) * (number + 1)))
    new.one.sender.succeed(old.one.sender, 1.0, new.one.out)
    assert old.one.take(*a1) == []  # too late: it must not be sent twice
    new.settle(*new.one.sent(), now=1.0)
    texts = [str(n).encode() * (n + 1) for n in range(5)]
    assert new.two.received == packets_of(batch()) + texts
    assert (old.one.sender.queued_packets, held(old.one)) == (0, 0)
    assert old.one.sender.under_way == 0


def test_a_round_of_several_sizes_is_taken_over_in_order():
    old, new = Ends.make(), Ends.make(seed=1)
    first = old.one.send(b"first")
    texts = [b"%d" % n * (n % 3 + 1) for n in range(9)]
    old.one.send(*texts)
    old.one.take(*old.two.take(*first))
    (under_way,) = old.one.sender.order
    assert len(under_way.datagrams.groups) > 3
    new.one.sender.succeed(old.one.sender, 1.0, new.one.out)
    new.settle(*new.one.sent(), now=1.0)
    assert new.two.received == texts


@define
class Lengthening(Link):
    delay: float = DELAY

    def carry(self, datagram):
        yield self.delay, datagram


def test_a_way_that_becomes_longer_is_measured_anew():
    """Not for ever do repetitions go before the answer can have come."""
    link = Lengthening()
    sim = Simulation(link=link, mode="adaptive")
    sim.pair()
    for delay in (DELAY, 5 * DELAY, 20 * DELAY):
        link.delay = delay
        for _ in range(40):
            sim.send("vm1", "vm2")
            sim.run(1)
        last = [sent.data for sent in sim.messages(Kind.S1, "vm1")][-20:]
        rtt = sim.session("vm1", "vm2").current.sender.rtt
        assert rtt.smoothed == pytest.approx(2 * delay, rel=0.1)
    assert len(set(last)) == len(last)


def test_a_session_that_ends_counts_what_is_lost_with_it():
    ends = Ends.make()
    ends.one.emit(batch())
    ends.one.emit(batch(seed=1))
    ends.one.transport.abandon()
    assert ends.one.drops == {Drop.NO_SESSION: 14}
    assert ends.one.sender.queued_packets == 0


def frames_of(flow: bytes, count: int, since: float = 0.0) -> list[Waiting]:
    return [Waiting(0, b"", bytes([i]), 1, since, flow) for i in range(count)]


def test_a_flow_with_nothing_waiting_goes_first():
    queue = FlowQueue()
    download, echo = frames_of(b"download", 5), frames_of(b"echo", 1)
    for waiting in (*download, *echo):
        queue.append(waiting)
    taken = [queue.popleft() for _ in range(len(queue))]
    assert taken == [download[0], *echo, *download[1:]]


@given(st.lists(st.sampled_from([b"a", b"b", b"c", None]), max_size=60))
def test_order_inside_a_flow_stays_whatever_is_taken_between(script):
    queue, number = FlowQueue(), 0
    left: dict[bytes, list[int]] = {b"a": [], b"b": [], b"c": []}
    for flow in script:
        if flow is None and len(queue):
            waiting = queue.popleft()
            assert left[waiting.flow].pop(0) == int(waiting.since)
        elif flow is not None:
            queue.append(Waiting(0, b"", b"", 0, float(number), flow))
            left[flow].append(number)
            number += 1
    assert sorted(int(w.since) for w in queue) == sorted(chain(*left.values()))


def test_what_the_last_session_left_goes_before_everything_new():
    queue = FlowQueue()
    old = [*frames_of(b"x", 2), *frames_of(b"y", 1)]
    for waiting in old:
        queue.append_in_order(waiting)
    new = frames_of(b"z", 1)
    queue.append(new[0])
    assert list(queue) == [*old, *new]


def test_the_oldest_is_found_on_either_side():
    queue = FlowQueue()
    for waiting in (*frames_of(b"x", 2, since=1.0), *frames_of(b"y", 1, since=2.0)):
        queue.append(waiting)
    assert [queue.pop_oldest().since for _ in range(3)] == [1.0, 1.0, 2.0]


# -- evidence of a loss


@pytest.mark.parametrize("lost", [Kind.S1, Kind.A1])
def test_three_later_answers_repeat_an_s1_before_its_time(lost):
    """On a way whose delay varies the timer would wait for long."""
    ends, now = Ends.make(), 1.0
    open_associations(ends, 6, now)
    ends.one.sender.rtt.begin(0.1)
    ends.one.sender.rtt.variation = 0.2  # s; so the timer is at 0.9
    first = ends.one.send(b"first", now=now)
    later = [ends.one.send(b"%d" % n, now=now + 0.01 * n)[0] for n in range(1, 6)]
    if lost is Kind.A1:
        ends.two.take(*first, now=now)
    answers = ends.two.take(*later, now=now + 0.05)
    again = []
    for number, a1 in enumerate(answers, 1):
        ends.one.take(a1, now=now + 0.1)
        again += ends.one.serve(now + 0.1)
        assert again == (first if number >= 3 else [])


def test_two_later_answers_may_be_chance():
    ends, now = Ends.make(), 1.0
    open_associations(ends, 6, now)
    ends.one.sender.rtt.begin(0.1)
    ends.one.send(b"first", now=now)
    later = [ends.one.send(b"%d" % n, now=now + 0.01 * n)[0] for n in range(1, 3)]
    ends.one.take(*ends.two.take(*later, now=now + 0.05), now=now + 0.1)
    assert ends.one.serve(now + 0.1) == []


def open_associations(ends: Ends, number: int, now: float) -> None:
    """Let the sender have so many, as if it had been busy."""
    ends.one.transport._wanted = number
    ends.one.transport._open_wanted()
    ends.settle(now=now)
    assert len(ends.one.sender.associations) >= number


# -- rounds that pass others


def flowing(number: int, payload: bytes) -> Packet:
    """A packet of the ``number``-th flow."""
    return Packet(payload=payload, ports=(5000 + number, 2323))


def with_associations() -> Ends:
    """Ends of which one may have four rounds under way, of a packet each."""
    ends = Ends.make(mode="n")
    first = ends.one.emit(batch("n"))
    ends.settle(*first, *ends.one.emit(batch("n")))
    assert len(ends.one.sender.associations) == 4
    ends.two.received.clear()
    return ends


def test_a_lost_s1_holds_up_its_own_flow_alone():
    ends = with_associations()
    lost = ends.one.emit(flowing(1, b"lost at first"))
    same = ends.one.emit(flowing(1, b"behind it"))
    other = ends.one.emit(flowing(2, b"of another flow"))
    assert [len(of_kind(Kind.S1, sent)) for sent in (lost, same, other)] == [1, 1, 1]
    ends.settle(*same, *other)
    assert payloads_of(ends.two) == [b"of another flow"]
    ends.settle(*lost)
    assert payloads_of(ends.two) == [b"of another flow", b"lost at first", b"behind it"]


def test_a_round_of_several_flows_waits_for_each_of_them():
    ends = with_associations()
    ends.one.sender.mode = "c"
    ends.one.sender.rtt.begin(0.05)
    lost = ends.one.emit(flowing(1, b"lost"), 0.1)
    for number in (2, 3, 1, 2):
        frame = flowing(number, b"%d" % number).frame()
        ends.one.transport.outgoing(cut(frame, 60_000), 0.11, ends.one.out)
    ends.one.transport.push(0.11, ends.one.out)
    together = ends.one.sent()
    after = ends.one.emit(flowing(3, b"after"), 0.12)
    assert [len(of_kind(Kind.S1, sent)) for sent in (lost, together, after)] == [1] * 3
    ends.settle(*together, *after, now=0.12)
    assert payloads_of(ends.two) == []
    ends.settle(*lost, now=0.12)
    arrived = payloads_of(ends.two)
    assert arrived[0] == b"lost"
    assert sorted(arrived[1:5]) == [b"1", b"2", b"2", b"3"]
    assert arrived[5:] == [b"after"]


def payloads_of(end: End) -> list[bytes]:
    """Of the UDP packets it delivered."""
    return [packet[28:] for packet in end.received]


# -- how much the way loses


def test_of_few_exchanges_no_loss_is_told():
    trip = RoundTrip()
    for _ in range(LOSS_OVER - 1):
        trip.answered(repeated=True)
    assert trip.loss is None
    trip.answered(repeated=True)
    assert trip.loss == 1.0


@given(st.integers(1, 50), st.integers(0, 1000))
def test_the_loss_that_is_told_is_that_of_late(every, seed):
    trip, dice = RoundTrip(), Random(seed)
    for _ in range(3 * LOSS_OVER):
        trip.answered(repeated=True)
    for _ in range(20 * LOSS_OVER):
        trip.answered(repeated=dice.random() < 1 / every)
    assert trip.loss == pytest.approx(1 / every, abs=0.12)


def test_a_way_that_loses_every_tenth_is_known_as_such():
    sim = Simulation(link=Losing(), mode="n", early=False)
    sim.pair()
    for _ in range(3 * LOSS_OVER):
        sim.send("vm1", "vm2")
        sim.run(0.05)
    loss = sim.session("vm1", "vm2").statistics(sim.now).loss
    assert loss == pytest.approx(0.1, abs=0.05)


@define
class Losing(Link):
    """Loses every tenth S1."""

    sent: int = 0

    def carry(self, datagram):
        self.sent += datagram[0] == Kind.S1
        if datagram[0] != Kind.S1 or self.sent % 10:
            yield from super().carry(datagram)
