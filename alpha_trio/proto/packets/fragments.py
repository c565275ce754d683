"""Splitting inner packets that the path to the peer does not take whole.

Linux knows no IPv6 MTU below 1,280, which every IPv6 link has to carry (RFC 8200 5): so
where a session carries less, we do what such a link has to do, and split.  The pieces
are IPv6 fragments as the source itself could have sent them (RFC 8200 4.5), and the far
host's kernel joins them; it cannot tell the difference.  IPv4 packets that allow it are
split as any router would (RFC 791 3.2); mostly the kernel has done so before us.

A slow path: everything here makes new packets, one by one.
"""

from __future__ import annotations

from struct import Struct

from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.packets.frames import (
    VIRTIO_SIZE,
    checksum,
    cut,
    finished,
    join_untrusted,
)

IPV6_LEAST = 1280
"""Bytes of the IPv6 packets that every sender may take for granted."""

_FRAGMENT = Struct("!BBHI")  # next header, zero, offset in units of 8 and flag, number
_HOP_BY_HOP, _ROUTING, _FRAGMENTS, _DESTINATION = 0, 43, 44, 60
_AHEAD = frozenset({_HOP_BY_HOP, _ROUTING, _DESTINATION})  # of a fragment header
_IPV4_HEADER, _IPV6_HEADER = 20, 40
_DONT_FRAGMENT, _MORE_V4, _OFFSET_V4 = 0x4000, 0x2000, 0x1FFF
_MORE_V6, _UNIT = 1, 8
_LARGEST = 0xFFFF


def split_frame(frame: memoryview, room: int, number: int) -> list[bytes] | None:
    """The packets of a TUN frame in pieces of at most ``room`` bytes.

    ``number`` tells the fragments of a packet from those of others, as far as they have
    no number yet; a frame of many packets takes as many numbers from there on.  None if
    that may not be: an IPv4 packet that forbids it, an IPv6 one above IPV6_LEAST.
    """
    largest = IPV6_LEAST if frame[VIRTIO_SIZE] >> 4 == 6 else 0xFFFF
    whole = cut(frame, largest)
    if whole is None:
        return None
    segments = whole.segments
    first = len(whole.headers) + len(segments[0])
    try:
        packets = finished(join_untrusted(whole.word, len(segments), first, whole.data))
    except BadPacket:  # a super-packet with headers that no kernel makes
        return None
    pieces: list[bytes] = []
    for at, packet in enumerate(packets):
        made = _split(bytes(packet), room, (number + at) & 0xFFFF_FFFF)
        if made is None:
            return None
        pieces += made
    return pieces


def _split(packet: bytes, room: int, number: int) -> list[bytes] | None:
    if len(packet) <= room:
        return [packet]
    return (_split_v6 if packet[0] >> 4 == 6 else _split_v4)(packet, room, number)


def _split_v4(packet: bytes, room: int, _number: int) -> list[bytes] | None:
    """None also with options, which not every fragment may have."""
    field = int.from_bytes(packet[6:8])
    if field & _DONT_FRAGMENT or packet[0] != 0x45:
        return None
    step = (room - _IPV4_HEADER) // _UNIT * _UNIT
    payload, first = packet[_IPV4_HEADER:], field & _OFFSET_V4
    if first + len(payload) // _UNIT > _OFFSET_V4:
        return None
    pieces: list[bytes] = []
    for at in range(0, len(payload), step):
        part = payload[at : at + step]
        more = _MORE_V4 if at + step < len(payload) else field & _MORE_V4
        head = bytearray(packet[:_IPV4_HEADER])
        head[2:4] = (_IPV4_HEADER + len(part)).to_bytes(2)
        head[6:8] = (more | first + at // _UNIT).to_bytes(2)
        head[10:12] = bytes(2)
        head[10:12] = checksum(head).to_bytes(2)
        pieces.append(bytes(head) + part)
    return pieces


def _split_v6(packet: bytes, room: int, number: int) -> list[bytes] | None:
    ahead = _unfragmentable(packet)
    if ahead is None:
        return None
    at, next_at = ahead
    kind, first, last = packet[next_at], 0, 0
    head, payload = bytearray(packet[:at]), packet[at:]
    if kind == _FRAGMENTS:  # a fragment already: its pieces are of the same packet
        if len(payload) < _FRAGMENT.size:
            return None
        kind, _, field, number = _FRAGMENT.unpack_from(payload)
        first, last = field & ~(_UNIT - 1), field & _MORE_V6
        payload = payload[_FRAGMENT.size :]
    if first + len(payload) > _LARGEST:
        return None  # no such packet can be joined again
    head[next_at] = _FRAGMENTS
    step = (room - len(head) - _FRAGMENT.size) // _UNIT * _UNIT
    if step <= 0:
        return None
    pieces: list[bytes] = []
    for start in range(0, len(payload), step):
        part = payload[start : start + step]
        more = _MORE_V6 if start + step < len(payload) else last
        fragment = _FRAGMENT.pack(kind, 0, first + start | more, number)
        length = len(head) - _IPV6_HEADER + len(fragment) + len(part)
        head[4:6] = length.to_bytes(2)
        pieces.append(bytes(head) + fragment + part)
    return pieces


def _unfragmentable(packet: bytes) -> tuple[int, int] | None:
    """Where the headers end that every fragment has, and where the last names its next.

    Those are the ones that hops on the way read: all up to a routing header, else a
    hop-by-hop one.  None if they are cut short.
    """
    at, next_at = _IPV6_HEADER, 6
    found = at, next_at
    while packet[next_at] in _AHEAD:
        if at + _UNIT > len(packet):
            return None
        kind, next_at = packet[next_at], at
        at += (packet[at + 1] + 1) * _UNIT
        if kind != _DESTINATION:
            found = at, next_at
        if at > len(packet):
            return None
    if packet[next_at] == _FRAGMENTS:
        return at, next_at
    return found
