"""The data path without authentication: cutting, numbering, joining, counting."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.batch import (
    MAX_DATAGRAMS,
    MAX_SEND_BYTES,
    Buffer,
    Counters,
    Drop,
    Outbox,
)
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.handshake.exchange import Offer
from alpha_trio.proto.messages import DATA, Syn
from alpha_trio.proto.packets import frames
from alpha_trio.proto.primitives import SessionKeys
from alpha_trio.proto.transport import Arrival, PlainTransport
from alpha_trio.proto.transport.modes import PLAIN_OVERHEAD
from tests.proto.inner import TCP, Packet

REMOTE = ("192.168.10.61", 1234)
THEIRS = Syn(9, bytes(16), bytes(32), bytes(32), bytes(16), bytes(16))

fixed = settings(deadline=None, derandomize=True)


class Pair:
    """A transport at either end, and the counters of the receiving one."""

    def __init__(self) -> None:
        self.sent, self.counters = Counters(), Counters()
        self.sender = _transport(1, 2, self.sent)
        self.receiver = _transport(2, 1, self.counters)

    def datagrams(self, *packets: Packet, room: int = 65_000) -> list[bytes]:
        """What goes on the wire for ``packets``."""
        out = Outbox()
        for packet in packets:
            self.sender.outgoing(frames.cut(packet.frame(), room), 0.0, out)
        return [bytes(d) for send in out.sends for d in send.datagrams()]

    def receive(self, data: bytes, stride: int = 0, *, own: bool = True) -> list[bytes]:
        """The packets the TUN gets when ``data`` arrives in one piece."""
        out, view, arrival = Outbox(), memoryview(data), Arrival.NOTHING
        while view:
            consumed, arrival = self.receiver.incoming(
                view, stride or len(data), REMOTE, b"", lambda packet: own, 0.0, out
            )
            assert consumed > 0
            view = view[consumed:]
        self.arrival, self.writes = arrival, len(out.delivers)
        return [bytes(p) for d in out.delivers for p in frames.finished(d.parts)]


def _transport(local_id: int, remote_id: int, counters: Counters) -> PlainTransport:
    random = Random(1).randbytes
    agreement = Agreement(
        local_id,
        remote_id,
        REMOTE,
        b"",
        SessionKeys.derive(bytes(32), bytes(32), initiator=True),
        Offer.make(random),
        THEIRS,
    )
    return PlainTransport(agreement, counters, 0.0, 0.0)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def anyone(packet: Buffer) -> bool:
    """Whoever sends may send anything."""
    return True


def tcp(number: int, segments: int, size: int = 100) -> Packet:
    """A super-packet of its own content, yet with a frame word like every other's."""
    return Packet(
        protocol=TCP,
        payload=bytes([number]) * size * segments,
        sequence=number * 1_000_000,
        segment_size=size,
    )


# -- sending


def test_a_super_packet_goes_in_as_few_sends_as_the_kernel_allows(pair):
    out = Outbox()
    packet = tcp(1, 2 * MAX_DATAGRAMS + 1)
    pair.sender.outgoing(frames.cut(packet.frame(), 1400), 0.0, out)
    assert [send.count for send in out.sends] == [MAX_DATAGRAMS, MAX_DATAGRAMS, 1]
    assert sum(send.packets for send in out.sends) == 2 * MAX_DATAGRAMS + 1


def test_no_send_is_larger_than_a_udp_datagram_may_be(pair):
    out = Outbox()
    packet = tcp(1, 45, 1400)
    for _ in range(2):
        pair.sender.outgoing(frames.cut(packet.frame(), 1440), 0.0, out)
    assert all(send.size <= MAX_SEND_BYTES for send in out.sends)
    assert sum(send.packets for send in out.sends) == 90


def test_a_packet_no_datagram_can_hold_is_left_to_the_kernel_to_refuse(pair):
    out = Outbox()
    packet = Packet(payload=bytes(MAX_SEND_BYTES - 28))
    pair.sender.outgoing(frames.cut(packet.frame(), 65_535), 0.0, out)
    (send,) = out.sends
    assert send.size > MAX_SEND_BYTES


def test_small_packets_of_one_size_share_a_send(pair):
    out = Outbox()
    for _ in range(3):
        packet = Packet(payload=bytes(50))
        pair.sender.outgoing(frames.cut(packet.frame(), 1400), 0.0, out)
    (send,) = out.sends
    assert (send.count, send.packets) == (3, 3)


def test_a_shorter_packet_ends_a_send_and_a_longer_one_begins_another(pair):
    out = Outbox()
    for size in (50, 40, 50, 60):
        packet = Packet(payload=bytes(size))
        pair.sender.outgoing(frames.cut(packet.frame(), 1400), 0.0, out)
    assert [send.count for send in out.sends] == [2, 1, 1]
    for send in out.sends:
        *full, last = [len(d) for d in send.datagrams()]
        assert all(size == send.stride for size in full)
        assert last <= send.stride


@fixed
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 9)), max_size=12))
def test_every_send_is_one_the_kernel_takes(shapes):
    out, pair = Outbox(), Pair()
    packets = [tcp(i, segments, size) for i, (size, segments) in enumerate(shapes)]
    for packet in packets:
        pair.sender.outgoing(frames.cut(packet.frame(), 1400), 0.0, out)
    arrived = []
    for send in out.sends:
        datagrams = [bytes(d) for d in send.datagrams()]
        assert len(datagrams) == send.count <= MAX_DATAGRAMS
        assert {len(d) for d in datagrams[:-1]} <= {send.stride}
        assert len(datagrams[-1]) <= send.stride
        run = b"".join(datagrams)
        assert len(run) == send.size
        received = pair.receive(run, send.stride)
        assert sum(map(len, received)) == send.packet_bytes
        assert len(received) == send.packets
        arrived += received
    assert arrived == [s.build() for packet in packets for s in packet.segments()]


# -- receiving


def test_a_run_is_joined_into_one_write(pair):
    packet = tcp(1, 10)
    datagrams = pair.datagrams(packet)
    received = pair.receive(b"".join(datagrams), len(datagrams[0]))
    assert received == [segment.build() for segment in packet.segments()]
    assert pair.writes == 1


def test_super_packets_in_one_run_are_told_apart(pair):
    packets = [tcp(i, 3) for i in range(4)]
    datagrams = pair.datagrams(*packets)
    received = pair.receive(b"".join(datagrams), len(datagrams[0]))
    assert received == [s.build() for packet in packets for s in packet.segments()]
    assert pair.writes == 4


def test_what_a_repeated_segment_parts_is_not_joined(pair):
    """Of A0 B0 B1, B0 came before: B1 looks like the segment after A0."""
    first, second = tcp(1, 2), tcp(2, 2)
    a0, a1, b0, b1 = pair.datagrams(first, second)
    del a1
    pair.sender.counter = 0  # the same numbers, without a gap
    a0, b0, b1 = (
        DATA.pack(DATA.unpack_from(d)[0], i) + d[DATA.size :]
        for i, d in enumerate((a0, b0, b1))
    )
    expected = [first.segments()[0], *second.segments()]
    assert pair.receive(b0) == [expected[1].build()]
    late = pair.receive(a0 + b0 + b1, len(a0))
    assert late == [expected[0].build(), expected[2].build()]
    assert pair.counters.drops == {Drop.REPLAYED: 1}


@fixed
@given(st.randoms(use_true_random=False))
def test_each_packet_arrives_once_however_datagrams_are_repeated_and_mixed(random):
    pair = Pair()
    packets = [tcp(i, random.randint(1, 6)) for i in range(8)]
    datagrams = pair.datagrams(*packets)
    arriving = [random.choice(datagrams) for _ in datagrams] + datagrams
    if random.random() < 0.5:
        random.shuffle(arriving)
    received = []
    while arriving:
        run = [arriving.pop(0)]
        while arriving and len(arriving[0]) == len(run[0]) and random.random() < 0.8:
            run.append(arriving.pop(0))
        received += pair.receive(b"".join(run), len(run[0]))
    expected = [s.build() for packet in packets for s in packet.segments()]
    assert sorted(received) == sorted(expected)
    assert pair.counters.drops == {Drop.REPLAYED: len(datagrams)}


def test_a_datagram_of_another_session_ends_the_run(pair):
    datagrams = pair.datagrams(tcp(1, 3))
    run = b"".join(datagrams[:2]) + bytes(len(datagrams[0]))
    out = Outbox()
    consumed, _ = pair.receiver.incoming(
        memoryview(run), len(datagrams[0]), REMOTE, b"", anyone, 0.0, out
    )
    assert consumed == 2 * len(datagrams[0])


@pytest.mark.parametrize("size", range(9, PLAIN_OVERHEAD + 1))
def test_a_datagram_without_a_body_is_a_keepalive_or_malformed(pair, size):
    (datagram,) = pair.datagrams(Packet(payload=b"x"))
    pair.receive(datagram[:size])
    if size == DATA.size:
        assert pair.arrival is Arrival.KEEPALIVE
        assert not pair.counters.drops
    else:
        assert pair.arrival is Arrival.NOTHING
        assert pair.counters.drops == {Drop.MALFORMED: 1}


def test_a_keepalive_counts_once(pair):
    out = Outbox()
    pair.sender.keepalive(0.0, out)
    (datagram,) = out.sends[0].datagrams()
    pair.receive(datagram)
    assert pair.arrival is Arrival.KEEPALIVE
    pair.receive(datagram)
    assert pair.arrival is Arrival.NOTHING
    assert pair.counters.drops == {Drop.REPLAYED: 1}


def test_a_wrong_source_is_counted_per_packet(pair):
    datagrams = pair.datagrams(tcp(1, 5))
    assert not pair.receive(b"".join(datagrams), len(datagrams[0]), own=False)
    assert pair.counters.drops == {Drop.WRONG_SOURCE: 5}


def test_a_body_that_is_no_frame_is_counted_per_packet(pair):
    datagrams = pair.datagrams(tcp(1, 5))
    broken = [d[:17] + b"\0" + d[18:] for d in datagrams]  # header length
    assert not pair.receive(b"".join(broken), len(broken[0]))
    assert pair.counters.drops == {Drop.MALFORMED: 5}


def test_mangled_datagrams_are_delivered_or_counted(pair):
    random = Random(1)
    for i in range(500):
        datagrams = pair.datagrams(tcp(i % 256, random.randint(1, 5)))
        run = bytearray(b"".join(datagrams))
        for _ in range(3):
            run[random.randrange(len(run))] ^= 1 << random.randrange(8)
        word = pair.receiver.word_in.to_bytes(8)
        stride, counters, out = len(datagrams[0]), Counters(), Outbox()
        pair.receiver.counters = counters
        for at in range(0, len(run), stride):
            run[at : at + 8] = word
        view, seen = memoryview(run), 0
        while view:
            consumed, _ = pair.receiver.incoming(
                view, stride, REMOTE, b"", anyone, 0.0, out
            )
            view = view[consumed:]
        for deliver in out.delivers:
            seen += len(frames.finished(deliver.parts))
        assert seen + sum(counters.drops.values()) == len(datagrams)
