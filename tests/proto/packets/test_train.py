"""Datagrams read one by one become what the kernel would have made of them."""

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES
from alpha_trio.proto.packets import Train, frames
from tests.proto.inner import TCP, UDP, Packet

FIRST = Packet(protocol=UDP, payload=b"first", ip_id=9)
IPV6 = Packet("fd00::60", "fd00::61", UDP, payload=b"first")


def framed(packet: Packet) -> memoryview:
    """As programs of this host send it: the checksum is left to the network card."""
    return packet.frame(needs_csum=True)


def joined(*packets: Packet) -> list[bytes]:
    """The packets as they arrive, if the first is a train and takes all others."""
    read = [framed(packet) for packet in packets]
    train = Train.of(read[0])
    assert train is not None
    frame = bytearray(read[0])
    for other in read[1:]:
        assert train.takes(other)
        frame += other[train.head :]
    assert len(frame) == train.size
    train.finish(memoryview(frame))
    cut = frames.cut(memoryview(frame), 60_000)
    assert cut is not None
    first = len(cut.headers) + min(cut.size, len(cut.payload))
    data, count = cut.headers + cut.payload, len(cut.segments)
    arrived = frames.finished(frames.join_untrusted(cut.word, count, first, data))
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
