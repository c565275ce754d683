"""A queue that stands, and what its senders are told."""

from collections import Counter
from itertools import pairwise

import pytest

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.transport.standing import INTERVAL, TARGET, StandingQueue
from tests.proto.simulation import Simulation
from tests.proto.transport.test_early import far

STEP = 0.001
ECT_0, CE = 2, 3
BULK, SPARSE = (4000, 2323), (4001, 53)


def lost(queue: StandingQueue, waits, start: float = 0.0) -> list[float]:
    """When a packet is lost, of one each STEP that has waited so long."""
    times = [start + number * STEP for number in range(len(waits))]
    pairs = zip(times, waits, strict=True)
    return [now for now, wait in pairs if queue.tells(wait, TARGET, INTERVAL, now)]


def test_a_burst_that_is_taken_up_within_an_interval_loses_nothing():
    queue = StandingQueue()
    for number in range(20):
        begin = number * 2 * INTERVAL
        assert not lost(queue, [20 * TARGET] * 90 + [0.0], begin)


def test_short_waits_lose_nothing_however_long():
    assert not lost(StandingQueue(), [TARGET * 0.99] * 5000)


def test_a_queue_that_stands_loses_more_and_more_often():
    times = lost(StandingQueue(), [2 * TARGET] * 2000)
    assert times[0] == pytest.approx(INTERVAL, abs=2 * STEP)
    gaps = [after - before for before, after in pairwise(times)]
    # RFC 8289, 5.3: by the square root of their number.
    expected = [INTERVAL / (number + 1) ** 0.5 for number in range(len(gaps))]
    assert gaps == pytest.approx(expected, abs=2 * STEP)


def test_one_packet_that_waited_little_ends_it():
    queue = StandingQueue()
    assert lost(queue, [2 * TARGET] * 150)
    assert not lost(queue, [0.0] + [2 * TARGET] * 99, 0.15)


def test_a_queue_that_stands_again_soon_is_met_as_it_was_left():
    queue = StandingQueue()
    before = len(lost(queue, [2 * TARGET] * 1000))
    lost(queue, [0.0], 1.0)
    again = len(lost(queue, [2 * TARGET] * 1000, 1.001))
    later = StandingQueue()
    assert again > before == len(lost(later, [2 * TARGET] * 1000))


# -- in a session


def overload(sim: Simulation, seconds: float, **fields) -> int:
    """vm1 sends more than the path takes; how many packets that were."""
    sent, until = 0, sim.now + seconds
    while sim.now < until:
        packet = sim.packet("vm1", "vm2", payload=b"x" * 1000, ports=BULK, **fields)
        for _ in range(2):
            sim.emit("vm1", packet.frame())
            sent += 1
        sim.run(0.001)
    return sent


def narrow(**options) -> Simulation:
    """A session that takes a packet a round, so that its queue stands."""
    sim = Simulation(mode="n", **options)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.link.one_way = 0.02
    return sim


def test_what_stands_loses_packets_and_each_is_counted():
    sim = narrow()
    sent = overload(sim, 0.4)
    sim.run(4)
    dropped = sim.hosts["vm1"].drops()
    assert set(dropped) == {Drop.QUEUE_FULL}
    assert len(sim.hosts["vm2"].received) - 1 == sent - dropped[Drop.QUEUE_FULL]


def test_where_the_ends_understand_marks_nothing_is_lost():
    sim = narrow()
    sent = overload(sim, 0.5, traffic_class=ECT_0)
    sim.run(1.2)
    shown = Counter(shown for kind, shown in sim.classes if kind == Kind.S2)
    assert sim.hosts["vm1"].drops() == Counter()
    assert 0 < shown[CE] < shown[ECT_0]
    assert shown[CE] + shown[ECT_0] <= sent


def test_who_has_nothing_more_waiting_loses_nothing():
    sim = narrow()
    overload(sim, 0.2)
    asked = {b"query %d" % number for number in range(12)}
    for payload in sorted(asked):
        packet = sim.packet("vm1", "vm2", payload=payload, ports=SPARSE)
        sim.emit("vm1", packet.frame())
        overload(sim, 0.02)
    sim.run(4)
    assert sim.hosts["vm1"].drops()[Drop.QUEUE_FULL]
    arrived = set(sim.hosts["vm2"].payloads())
    assert asked <= arrived


def test_reliable_rounds_lose_nothing():
    sim = narrow(reliable=True)
    sent = overload(sim, 0.5)
    sim.run(15)
    assert sim.hosts["vm1"].drops() == Counter()
    assert len(sim.hosts["vm2"].received) - 1 == sent


def test_what_a_long_way_keeps_for_its_distances_does_not_stand():
    sim = far()
    for _ in range(12):
        assert sim.ping("vm1", "vm2")
    for _ in range(300):
        sim.emit("vm1", sim.packet("vm1", "vm2", payload=b"x" * 900).frame())
        sim.run(0.003)
    sim.run(1)
    assert sim.hosts["vm1"].drops() == Counter()
