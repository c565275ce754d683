"""Inner packets in pieces: joined again, as the far host does, they are whole."""

import struct
from random import Random

import pytest

from alpha_trio.proto.packets import IPV6_LEAST, split_frame
from alpha_trio.proto.packets.frames import VIRTIO_SIZE, checksum
from tests.proto.inner import Packet

NUMBER = 0xFFFF_FFFF
SIX = "fd00::60", "fd00::61"
FOUR = "192.168.10.60", "192.168.10.61"


def joined_v6(pieces):
    """Reassemble as RFC 8200 4.5 says; the fragments of one packet, in any order."""
    parts, total, heads = {}, None, set()
    for piece in pieces:
        assert int.from_bytes(piece[4:6]) == len(piece) - 40
        at, next_at = 40, 6
        while piece[next_at] != 44:
            next_at, at = at, at + (piece[at + 1] + 1) * 8
        kind, _, field, number = struct.unpack_from("!BBHI", piece, at)
        heads.add((number, piece[:4], piece[6:at], at, next_at, kind))
        payload = piece[at + 8 :]
        parts[field & ~7] = payload
        if field & 1:
            assert not len(payload) % 8
        else:
            total = (field & ~7) + len(payload)
    assert len(heads) == 1
    _, first, rest, at, next_at, kind = heads.pop()
    body = b"".join(parts[offset] for offset in sorted(parts))
    assert len(body) == total
    head = bytearray(first + (at - 40 + total).to_bytes(2) + rest)
    head[next_at] = kind
    return bytes(head) + body


def joined_v4(pieces):
    """Reassemble as RFC 791 3.2 says."""
    parts = {}
    for piece in pieces:
        assert checksum(piece[:20]) == 0
        assert int.from_bytes(piece[2:4]) == len(piece)
        field = int.from_bytes(piece[6:8])
        parts[(field & 0x1FFF) * 8] = piece[20:]
        assert bool(field & 0x2000) == (piece is not pieces[-1])
    body = b"".join(parts[offset] for offset in sorted(parts))
    head = bytearray(pieces[0][:20])
    head[2:4] = (20 + len(body)).to_bytes(2)
    head[6:8] = head[10:12] = bytes(2)
    head[10:12] = checksum(head).to_bytes(2)
    return bytes(head) + body


def whole(packet):
    """The packet complete, as it is without any offload."""
    return bytes(packet.build())


@pytest.mark.parametrize("room", [456, 1000, 1168, 1279])
@pytest.mark.parametrize("size", [500, 1200, IPV6_LEAST - 48])
def test_ipv6(room, size):
    packet = Packet(*SIX, payload=Random(size).randbytes(size))
    pieces = split_frame(packet.frame(), room, NUMBER)
    assert all(len(piece) <= room for piece in pieces)
    if len(pieces) == 1:
        assert pieces == [whole(packet)]
    else:
        assert joined_v6(reversed(pieces)) == whole(packet)


def test_ipv6_above_what_it_counts_on_is_for_its_sender_to_cut():
    packet = Packet(*SIX, payload=bytes(IPV6_LEAST - 47))
    assert split_frame(packet.frame(), 1168, NUMBER) is None


def test_a_udp_super_packet_is_finished_and_then_split():
    packet = Packet(*SIX, payload=Random(1).randbytes(3500), segment_size=1200)
    pieces = split_frame(packet.frame(), 1168, NUMBER)
    numbers = {piece[44:48] for piece in pieces if piece[6] == 44}
    assert len(numbers) == 2  # the third segment fits
    datagrams = [
        joined_v6([p for p in pieces if p[6] == 44 and p[44:48] == number])
        for number in sorted(numbers, reverse=True)
    ]
    datagrams += [piece for piece in pieces if piece[6] != 44]
    assert sorted(map(len, datagrams)) == [1148, 1248, 1248]
    for datagram in datagrams:
        pseudo = (
            datagram[8:40] + (len(datagram) - 40).to_bytes(4) + bytes([0, 0, 0, 17])
        )
        assert checksum(pseudo + datagram[40:]) == 0


def test_a_fragment_is_split_further():
    packet = Packet(*SIX, payload=Random(2).randbytes(1200))
    first, last = split_frame(packet.frame(), 1000, NUMBER)
    again = [
        piece
        for fragment in (first, last)
        for piece in split_frame(memoryview(bytes(VIRTIO_SIZE) + fragment), 456, 7)
    ]
    assert len(again) > 2
    assert joined_v6(again) == whole(packet)


def test_headers_for_every_hop_stay_in_front():
    packet = whole(Packet(*SIX, payload=bytes(range(200)) * 5))
    options = bytes([17, 0, 1, 4, 0, 0, 0, 0])  # hop-by-hop, all padding
    length = (len(packet) - 40 + 8).to_bytes(2)
    longer = packet[:4] + length + b"\0" + packet[7:40] + options + packet[40:]
    pieces = split_frame(memoryview(bytes(VIRTIO_SIZE) + longer), 600, NUMBER)
    assert all(piece[6] == 0 and piece[40] == 44 for piece in pieces)
    assert joined_v6(pieces) == longer


@pytest.mark.parametrize("room", [456, 576, 1168])
def test_ipv4_where_it_is_allowed(room):
    packet = bytearray(whole(Packet(*FOUR, payload=Random(3).randbytes(1400))))
    packet[6:8] = packet[10:12] = bytes(2)
    packet[10:12] = checksum(packet[:20]).to_bytes(2)
    pieces = split_frame(memoryview(bytes(VIRTIO_SIZE) + packet), room, NUMBER)
    assert all(len(piece) <= room for piece in pieces)
    assert joined_v4(pieces) == packet
    packet[6] = 0x40
    assert split_frame(memoryview(bytes(VIRTIO_SIZE) + packet), room, NUMBER) is None


def test_no_bytes_break_it():
    dice = Random(4)
    for _ in range(3000):
        size = dice.randrange(40, 1300)
        packet = bytearray(dice.randbytes(size))
        packet[0] = dice.choice((0x45, 0x46, 0x60))
        packet[6] = dice.choice((0, 17, 43, 44, 60))
        frame = memoryview(bytes(VIRTIO_SIZE) + packet)
        for piece in split_frame(frame, 456, NUMBER) or ():
            assert len(piece) <= 456
