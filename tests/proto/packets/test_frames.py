from contextlib import suppress
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.packets import frames
from tests.proto.inner import (
    ACK,
    CWR,
    FIN,
    NEEDS_CSUM,
    PSH,
    TCP,
    UDP,
    VIRTIO,
    Packet,
    destination_options,
    parse,
    word_sum,
)

ROOM = 65_535
ADDRESSES = [("192.168.10.60", "192.168.10.61"), ("fd00::60", "fd00::61")]
ADDRESS_PAIRS = st.sampled_from(ADDRESSES)
FLAGS = st.sets(st.sampled_from([FIN, PSH, CWR])).map(lambda chosen: ACK | sum(chosen))

fixed = settings(deadline=None, derandomize=True)


@st.composite
def super_packets(draw, protocol):
    """Super-packets of 2 to 8 segments, as TSO and USO make them."""
    size = draw(st.integers(1, 90))
    length = draw(st.integers(size + 1, 8 * size))
    source, destination = draw(ADDRESS_PAIRS)
    tcp = protocol == TCP
    return Packet(
        source,
        destination,
        protocol,
        payload=draw(st.binary(min_size=length, max_size=length)),
        ip_id=draw(st.integers(0xFFF0, 0xFFFF) | st.integers(0, 0xFFFF)),
        ip_options=b"\1" * draw(st.sampled_from([0, 4])) if ":" not in source else b"",
        sequence=draw(st.integers(2**32 - 99, 2**32 - 1) | st.integers(0, 99)),
        flags=draw(FLAGS) if tcp else ACK,
        tcp_options=bytes(draw(st.sampled_from([0, 12]))) if tcp else b"",
        segment_size=size,
    )


SUPER_PACKETS = super_packets(TCP) | super_packets(UDP)


def cut(packet: Packet, room: int = ROOM) -> frames.Cut:
    result = frames.cut(packet.frame(), room)
    assert result is not None
    return result


def framed(word: int, segments: list[bytes]) -> list:
    """The frame of bodies: the first with its headers, the others without."""
    first, data = len(segments[0]), b"".join(segments)
    return frames.join_untrusted(word, len(segments), first, data)


def join(cut: frames.Cut, numbers: list[int]) -> list[bytes]:
    """The packets that come out when the segments ``numbers`` arrive, in this order.

    Each run of consecutive ones is joined, as a receiver does.
    """
    packets = []
    for run in _runs(numbers):
        first = bytes(cut.headers) + bytes(cut.segments[run[0]])
        segments = [first, *(bytes(cut.segments[i]) for i in run[1:])]
        parts = framed(cut.word + run[0], segments)
        packets += [bytes(packet) for packet in frames.finished(parts)]
    return packets


def _runs(numbers: list[int]) -> list[list[int]]:
    runs = [numbers[:1]]
    for before, number in pairwise(numbers):
        if number != before + 1:
            runs.append([])
        runs[-1].append(number)
    return [run for run in runs if run]


# -- super-packets


@fixed
@given(SUPER_PACKETS)
def test_all_segments_together_are_the_frame_again(packet):
    whole = cut(packet)
    first = bytes(whole.headers) + bytes(whole.segments[0])
    parts = framed(whole.word, [first, *whole.segments[1:]])
    virtio, joined = b"".join(parts)[:10], b"".join(parts)[10:]
    assert VIRTIO.unpack(virtio) == VIRTIO.unpack(packet.frame()[:10])
    assert joined == packet.frame()[10:]


@fixed
@given(SUPER_PACKETS, st.data())
def test_any_segments_in_any_order_are_what_the_kernel_would_have_sent(packet, data):
    expected = packet.segments()
    numbers = data.draw(
        st.lists(st.integers(0, len(expected) - 1), unique=True)
        | st.permutations(range(len(expected)))
    )
    assert join(cut(packet), list(numbers)) == [expected[i].build() for i in numbers]


@fixed
@given(super_packets(TCP), st.integers(1, 100))
def test_a_tcp_super_packet_is_cut_smaller_where_the_path_wants_it(packet, size):
    room = packet.headers_size + size
    result = cut(packet, room)
    bodies = [len(result.headers) + len(segment) for segment in result.segments]
    assert max(bodies) == packet.headers_size + min(size, packet.segment_size)
    everything = list(range(len(bodies)))
    expected = packet.segments(min(size, packet.segment_size))
    assert join(result, everything) == [segment.build() for segment in expected]


def test_a_udp_super_packet_is_not_cut_smaller():
    packet = Packet(payload=bytes(3000), segment_size=1000)
    assert frames.cut(packet.frame(), 1028) is not None
    assert frames.cut(packet.frame(), 1027) is None


def test_no_room_for_headers_is_no_room_at_all():
    packet = Packet(protocol=TCP, payload=bytes(3000), segment_size=1000)
    assert frames.cut(packet.frame(), 41) is not None
    assert frames.cut(packet.frame(), 40) is None


def test_headers_beyond_what_a_frame_word_can_say_are_refused():
    options = destination_options(256, UDP)
    packet = Packet(
        *ADDRESSES[1], payload=bytes(3000), ip_options=options, segment_size=1000
    )
    assert frames.cut(packet.frame(), ROOM) is None


def test_a_cut_counts_what_it_stands_for():
    packet = Packet(protocol=TCP, payload=bytes(3001), segment_size=1000)
    result = cut(packet)
    assert [len(segment) for segment in result.segments] == [1000, 1000, 1000, 1]
    assert result.packet_bytes == sum(len(s.build()) for s in packet.segments())
    assert result.size == 1000


@fixed
@given(SUPER_PACKETS)
def test_packets_of_a_super_packet(packet):
    assert frames.packets(packet.frame()) == len(packet.segments())


@fixed
@given(SUPER_PACKETS)
def test_packets_of_a_packet(packet):
    segment = packet.segments()[0]
    assert frames.packets(segment.frame()) == 1
    assert frames.packets(segment.frame(needs_csum=True)) == 1


# -- packets that stay whole


@fixed
@given(SUPER_PACKETS, st.booleans())
def test_a_packet_arrives_complete(packet, needs_csum):
    packet = packet.segments()[0]
    result = frames.cut(packet.frame(needs_csum=needs_csum), ROOM)
    parts = framed(result.word, result.segments)
    virtio = VIRTIO.unpack(parts[0][:10])
    assert virtio[0] == (NEEDS_CSUM if needs_csum else 0)
    assert b"".join(parts) == packet.frame(needs_csum=needs_csum)
    assert [bytes(p) for p in frames.finished(parts)] == [packet.build()]


def test_a_packet_may_just_fit():
    packet = Packet(payload=bytes(100))
    size = len(packet.build())
    assert frames.cut(packet.frame(), size) is not None
    assert frames.cut(packet.frame(), size - 1) is None


@pytest.mark.parametrize("size", [208, 216, 512])
def test_a_checksum_the_frame_word_cannot_point_to_is_completed(size):
    options = destination_options(size, UDP)
    packet = Packet(*ADDRESSES[1], payload=b"far", ip_options=options)
    result = frames.cut(packet.frame(needs_csum=True), ROOM)
    parts = framed(result.word, result.segments)
    assert [bytes(p) for p in frames.finished(parts)] == [packet.build()]
    parse(packet.build())


def test_a_checksum_far_from_where_it_starts_is_completed():
    packet = bytes([0x45]) + bytes(299)
    frame = memoryview(VIRTIO.pack(NEEDS_CSUM, 0, 0, 0, 20, 128) + packet)
    result = frames.cut(frame, ROOM)
    assert result.word == 0
    assert word_sum(bytes(result.segments[0])[20:]) == 0xFFFF


# -- untrusted words and bodies


def _word(*fields: int) -> int:
    return int.from_bytes(b"".join(map(lambda f, n: f.to_bytes(n), fields, WIDTHS)))


WIDTHS = (1, 1, 1, 1, 2, 2)  # of the frame word's fields, bytes
GSO_TYPES = st.sampled_from([0, 1, 4, 5, 0x81, 0x84, 0x85]) | st.integers(0, 255)
WORDS = st.integers(0, 2**64 - 1) | st.builds(
    _word,
    GSO_TYPES,
    st.sampled_from([0, 28, 40, 48, 60, 255]),
    st.sampled_from([0, 20, 40, 255]),
    st.sampled_from([0, 0x86, 0x90, 0xFF]),
    st.integers(0, 120),
    st.integers(0, 3) | st.integers(0, 0xFFFF),
)
BODIES = st.binary(max_size=120) | st.builds(
    bytes.__add__, st.sampled_from([b"\x45", b"\x60"]), st.binary(max_size=120)
)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(WORDS, BODIES, st.lists(st.binary(max_size=60), max_size=3))
def test_random_words_and_bodies_raise_only_bad_packet(word, body, others):
    with suppress(BadPacket):
        frames.finished(framed(word, [body, *others]))


@settings(deadline=None, derandomize=True, max_examples=250)
@given(SUPER_PACKETS, st.data())
def test_mangled_segments_raise_only_bad_packet(packet, data):
    result = cut(packet)
    word = result.word ^ 1 << data.draw(st.integers(0, 63))
    first = bytearray(bytes(result.headers) + bytes(result.segments[0]))
    for _ in range(data.draw(st.integers(0, 3))):
        first[data.draw(st.integers(0, len(first) - 1))] = data.draw(
            st.integers(0, 255)
        )
    first = first[: data.draw(st.integers(0, len(first)))]
    with suppress(BadPacket):
        segments = [bytes(first), *result.segments[1:]]
        frames.finished(framed(word, segments))


def test_udp_knows_no_congestion_bit():
    packet = Packet(payload=bytes(300), segment_size=100)
    result = cut(packet)
    first = bytes(result.headers) + bytes(result.segments[0])
    with pytest.raises(BadPacket):
        framed(result.word | 0x80 << 56, [first, *result.segments[1:]])


def test_a_segment_cannot_claim_to_lie_beyond_64_kib():
    packet = Packet(protocol=TCP, payload=bytes(300), segment_size=100)
    result = cut(evolve(packet, payload=bytes(65_000), segment_size=32_500))
    first = bytes(result.headers) + bytes(result.segments[0])
    with pytest.raises(BadPacket):
        framed(result.word, [first, *2 * result.segments])


# -- checksums


@fixed
@given(st.binary(max_size=200) | st.builds(bytes, st.integers(0, 50)))
def test_checksum_is_that_of_the_words(data):
    assert frames.checksum(data) == ~word_sum(data) & 0xFFFF
