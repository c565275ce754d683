"""Datagrams read one by one become what the kernel would have made of them."""

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES
from alpha_trio.proto.packets import Train, frames
from alpha_trio.proto.packets.train import MOST_BARE
from tests.proto.inner import ACK, FIN, TCP, UDP, Packet, parse
from tests.proto.simulation import Simulation

FIRST = Packet(protocol=UDP, payload=b"first", ip_id=9)
IPV6 = Packet("fd00::60", "fd00::61", UDP, payload=b"first")
BARE = Packet(protocol=TCP, tcp_options=bytes(12))
BARE_IPV6 = Packet("fd00::60", "fd00::61", TCP)


def framed(packet: Packet) -> memoryview:
    """As programs of this host send it: the checksum is left to the network card."""
    return packet.frame(needs_csum=True)


def train_of(*read: memoryview) -> memoryview:
    """The frame of these, if the first is a train and takes all others."""
    train = Train.of(read[0])
    assert train is not None
    frame = bytearray(read[0])
    for other in read[1:]:
        assert train.takes(other)
        frame += other[train.head :]
    assert len(frame) == train.size
    train.finish(memoryview(frame))
    return memoryview(frame)


def joined(*packets: Packet) -> list[bytes]:
    """The packets as they arrive, as one train."""
    cut = frames.cut(train_of(*map(framed, packets)), 60_000)
    assert cut is not None
    segments = cut.segments
    first, count = len(cut.headers) + len(segments[0]), len(segments)
    arrived = frames.finished(frames.join_untrusted(cut.word, count, first, cut.data))
    return [bytes(packet) for packet in arrived]


@settings(deadline=None, derandomize=True)
@given(st.sampled_from([FIRST, IPV6]), st.integers(1, 90), st.integers(1, 9))
def test_a_train_arrives_as_what_was_sent(first, size, count):
    packets = [
        evolve(first, payload=bytes([i]) * size, ip_id=(first.ip_id + i) & 0xFFFF)
        for i in range(count)
    ]
    assert joined(*packets) == [packet.build() for packet in packets]


@pytest.mark.parametrize(
    "other",
    [
        evolve(FIRST, payload=b"other size"),
        evolve(FIRST, ports=(1, 2)),
        evolve(FIRST, source="192.168.10.9"),
        evolve(FIRST, destination="192.168.10.9"),
        evolve(FIRST, traffic_class=1),
        evolve(FIRST, dont_fragment=False),
        evolve(FIRST, protocol=TCP),
        IPV6,
    ],
)
def test_what_is_of_another_kind_is_not_taken(other):
    train = Train.of(framed(FIRST))
    assert train is not None
    assert not train.takes(framed(other))
    assert train.count == 1
    assert train.takes(framed(FIRST))


@pytest.mark.parametrize(
    "packet",
    [
        evolve(FIRST, protocol=TCP),
        evolve(FIRST, payload=b""),
        evolve(FIRST, payload=bytes(2000), segment_size=500),
        evolve(FIRST, ip_options=b"\1\1\1\1"),
        evolve(FIRST, dont_fragment=False),
    ],
)
def test_what_cannot_be_joined_begins_none(packet):
    assert Train.of(framed(packet)) is None


def test_one_whose_checksum_is_complete_begins_none():
    """It may be wrong, and must not be made right."""
    assert Train.of(FIRST.frame()) is None


def test_a_train_ends_at_what_one_send_takes():
    for size in (1, 2000):
        frame = framed(evolve(FIRST, payload=bytes(size)))
        train = Train.of(frame)
        assert train is not None
        while train.takes(frame):
            pass
        assert train.count <= MAX_DATAGRAMS
        assert train.size <= MAX_SEND_BYTES
        assert train.count == min(MAX_DATAGRAMS, (MAX_SEND_BYTES - 28) // size)


@pytest.mark.parametrize("first", [BARE, BARE_IPV6])
@pytest.mark.parametrize("needs_csum", [True, False])
@pytest.mark.parametrize("mode", ["adaptive", "c", "plain"])
def test_acknowledgments_share_a_frame_and_arrive_as_they_were(first, needs_csum, mode):
    sim = Simulation(mode=mode)
    sim.host("vm1", first.source)
    vm2 = sim.host("vm2", first.destination)
    sim.peer("vm1", "vm2")
    sim.peer("vm2", "vm1")
    assert sim.ping("vm1", "vm2")
    packets = [evolve(first, sequence=i, ip_id=i) for i in range(MOST_BARE)]
    frame = train_of(*(p.frame(needs_csum=needs_csum) for p in packets))
    assert frames.packets(frame) == MOST_BARE
    before = len(vm2.received), sim.session("vm1", "vm2").counters.tx_packets
    sim.emit("vm1", frame)
    sim.run(1)
    assert vm2.received[before[0] :] == [parse(packet.build()) for packet in packets]
    sent = sim.session("vm1", "vm2").counters.tx_packets - before[1]
    assert sent == MOST_BARE


@pytest.mark.parametrize(
    "other",
    [
        evolve(BARE, flags=ACK | FIN),
        evolve(BARE, ports=(1, 2)),
        evolve(BARE, tcp_options=bytes(16)),
        evolve(BARE, tcp_options=b"", payload=bytes(12)),
        evolve(BARE, traffic_class=1),
        FIRST,
    ],
)
def test_what_is_no_such_acknowledgment_is_not_taken(other):
    train = Train.of(framed(BARE))
    assert train is not None
    assert not train.takes(framed(other))
    assert train.takes(framed(evolve(BARE, sequence=2**31)))


@pytest.mark.parametrize(
    "packet",
    [
        evolve(BARE, payload=b"x"),
        evolve(BARE, ip_options=b"\1\1\1\1"),
        evolve(BARE, flags=ACK | 2),
        Packet(payload=bytes(1200), protocol=TCP),
    ],
)
def test_what_may_have_another_place_begins_no_train(packet):
    assert Train.of(framed(packet)) is None


def test_no_more_acknowledgments_share_a_frame_than_an_s1_takes():
    frame = framed(evolve(BARE_IPV6, tcp_options=bytes(40)))
    train = Train.of(frame)
    assert train is not None
    while train.takes(frame):
        pass
    assert train.count == MOST_BARE
