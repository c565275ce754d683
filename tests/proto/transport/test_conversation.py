"""Which packets of TCP go early: one connection sees one round trip."""

import pytest

from alpha_trio.proto.messages import Kind
from alpha_trio.proto.transport.conversation import (
    MOST_CONNECTIONS,
    NOTICED,
    PROVEN,
    Conversations,
)
from alpha_trio.proto.transport.queue import Waiting
from tests.proto.inner import ACK, PSH, TCP, Packet
from tests.proto.simulation import Simulation
from tests.proto.transport.test_early import LARGE, ONE_WAY, far, is_early

SYN = 0x02
ROOM = 1400  # bytes of early data in an S1
EARLY, ROUND = pytest.approx(ONE_WAY), pytest.approx(3 * ONE_WAY)
INTERACTIVE, EXPEDITED, LOW_DELAY, BULK = 18 << 2, 46 << 2, 4 << 2, 8 << 2


def talking(one_way: float = ONE_WAY) -> Simulation:
    """Two hosts that know how long their way is, and have associations enough."""
    sim = far()
    sim.link.one_way = one_way
    for _ in range(12):
        assert sim.ping("vm1", "vm2")
    sim.sent.clear()
    return sim


def takes(sim: Simulation, source: str = "vm1", **fields) -> float:
    """Seconds that a packet of TCP needs to the other host, once all is quiet."""
    destination = "vm2" if source == "vm1" else "vm1"
    fields = {"protocol": TCP, "flags": ACK | PSH} | fields
    host = sim.hosts[destination]
    before, start = len(host.received), sim.now
    sim.emit(source, sim.packet(source, destination, **fields).frame())
    while len(host.received) == before:
        assert sim.now < start + 1
        sim.run(0.0005)
    duration = sim.now - start
    sim.run(0.5)
    return round(duration, 2)


def data(sim: Simulation, **fields) -> float:
    return takes(sim, payload=b"x" * 40, **fields)


def test_a_connection_sees_one_round_trip_while_it_may_become_a_transfer():
    sim = talking()
    syn = takes(sim, flags=SYN) + takes(sim, "vm2", flags=SYN | ACK)
    answer = takes(sim, "vm2", flags=SYN | ACK) + takes(sim, flags=ACK)
    small = data(sim) + takes(sim, "vm2", flags=ACK)
    payload = b"x" * 1200 * 30
    bulk = takes(sim, payload=payload, segment_size=1200) + takes(sim, "vm2", flags=ACK)
    assert [syn, answer, small, bulk] == [pytest.approx(4 * ONE_WAY)] * 4


def test_what_proved_to_be_a_conversation_goes_early():
    sim = talking()
    assert [data(sim) for _ in range(PROVEN)] == [ROUND] * PROVEN
    assert [data(sim) for _ in range(5)] == [EARLY] * 5
    # The other direction has to prove it for itself, and other connections as well.
    assert takes(sim, "vm2", payload=b"x") == ROUND
    assert data(sim, ports=(4001, 2323)) == ROUND


@pytest.mark.parametrize(
    "bulk",
    [
        {"payload": b"x" * 2400, "segment_size": 1200},
        {"payload": b"x" * (LARGE - 12)},  # it fits its S2, but no S1
    ],
)
def test_a_transfer_in_it_makes_it_prove_that_again(bulk):
    sim = talking()
    for _ in range(PROVEN + 1):
        data(sim)
    assert takes(sim, **bulk) == ROUND
    assert [data(sim) for _ in range(PROVEN + 1)] == [ROUND] * PROVEN + [EARLY]


def test_small_packets_that_come_together_prove_nothing_and_disprove_nothing():
    talks = Conversations()
    for _ in range(3 * PROVEN):
        assert not talks.may_go_early(waiting(), ROOM, queued=True)
    for _ in range(PROVEN):
        assert not talks.may_go_early(waiting(), ROOM, queued=False)
    for queued in (False, True, True):
        assert talks.may_go_early(waiting(), ROOM, queued=queued)


@pytest.mark.parametrize(
    ("traffic_class", "duration"),
    [(INTERACTIVE, EARLY), (EXPEDITED, EARLY), (LOW_DELAY, EARLY), (BULK, ROUND)],
)
def test_a_connection_may_say_itself_what_it_is(traffic_class, duration):
    sim = talking()
    assert data(sim, traffic_class=traffic_class) == duration


def test_on_a_short_way_all_of_them_go_early():
    sim = talking(NOTICED / 3)
    data(sim)
    takes(sim, "vm2", flags=SYN | ACK)
    assert len([s1 for s1 in sim.messages(Kind.S1) if is_early(s1.data)]) == 2


def test_what_is_left_of_a_torn_frame_is_what_it_was():
    transfer = Waiting(0, b"", b"xxx", 1, 0.0, b"flow", may_go_early=False)
    assert [part.may_go_early for part in transfer.split(2)] == [False, False]


def test_a_renewed_session_knows_the_conversations():
    sim = talking()
    for _ in range(PROVEN + 1):
        data(sim)
    sim.hosts["vm1"].table.ask(sim.session("vm1", "vm2"), sim.now)
    sim.run(1)
    assert sim.messages(Kind.ACKACK)
    assert data(sim) == EARLY


def test_connections_without_end_cost_no_memory_and_forget_the_oldest():
    talks = Conversations()
    for _ in range(PROVEN):
        talks.may_go_early(waiting(1), ROOM, queued=False)
    for port in range(2, 3 * MOST_CONNECTIONS):
        assert not talks.may_go_early(waiting(port), ROOM, queued=False)
        if port % 100 == 0:  # who goes on is not forgotten
            assert talks.may_go_early(waiting(1), ROOM, queued=False)
    assert len(talks._alone) == MOST_CONNECTIONS
    for port in range(MOST_CONNECTIONS):
        talks.may_go_early(waiting(1000 + port), ROOM, queued=False)
    assert not talks.may_go_early(waiting(1), ROOM, queued=False)


def waiting(port: int = 1) -> Waiting:
    packet = Packet(protocol=TCP, payload=b"x", ports=(port, 22)).build()
    return Waiting(
        0, b"", packet, len(packet), 0.0, flow=bytes([TCP]) + port.to_bytes(2)
    )
