"""Super-packets from the TUN to datagram bodies, and back again.

With virtio headers and TSO/USO a TUN hands over up to 64 KiB of one flow in one
read: one IP and transport header, one long payload, and the size at which to cut
it.  We cut, but do not build finished packets: every body carries the headers as
they were read and one segment of the payload, so that each is deliverable alone,
and the receiver joins what arrives in sequence into one super-packet again.
Lengths, sequence number and checksum are then adjusted once per run, and the
kernel that finally forwards or receives the packet completes the rest.

A frame on the TUN is ``virtio_net_hdr`` (10 bytes, host byte order) | IP packet.
A body is the frame word (8 bytes, big-endian), headers, one segment::

     0               1               2               3
    +---------------+---------------+---------------+---------------+
    |   gso type    | header length |  csum start   |C| csum offset |
    +---------------+---------------+---------------+---------------+
    |           segment size        |         segment number        |
    +-------------------------------+-------------------------------+

gso type: virtio's number (0 none, 1 TCP/IPv4, 4 TCP/IPv6, 5 UDP, +0x80 with ECN).
header length: IP and transport header, 0 for a packet that is not segmented.
C: the transport checksum covers the pseudo header only and is to be completed
(``VIRTIO_NET_HDR_F_NEEDS_CSUM``).  The segment number comes last, so that the
next body of a run has just the next larger frame word.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import BadPacket, split

VIRTIO = Struct("=BBHHHH")  # flags, gso type, header length, gso size, csum start, off
VIRTIO_SIZE = VIRTIO.size
FRAME_WORD_SIZE = 8

NOT_ECT, ECT_1, ECT_0, CE = range(4)  # the two bits of ECN, RFC 3168

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
GSO_WHOLE = 0x40
"""Not virtio's: packets that stay whole, gso size bytes each, one behind the other.

A frame of the TUN may be such (see train.py), a body never is."""

_TCP, _UDP = 6, 17
UDP_HEADER_SIZE = 8
_TCP_FIN_PSH, _TCP_CWR = 0x01 | 0x08, 0x80
_CSUM_FLAG = 0x80
_MAX_BYTE = 0xFF

_WORD = Struct("!BBBBHH")
_U16 = Struct("!H")
_U32 = Struct("!I")
_NO_GSO = bytes(VIRTIO_SIZE)


class Cut(NamedTuple):  # attrs' frozen classes take three times as long to make
    """A frame as it goes on the wire: equal headers, consecutive segments."""

    word: int  # frame word of segment 0
    headers: bytes  # before every segment; empty for a packet that stays whole
    payload: bytes  # ends with all segments, one after the other
    size: int  # bytes of every segment but the last
    packet_bytes: int  # of the inner IP packets this frame stands for
    begin: int = 0  # where in the payload the first segment begins

    @property
    def segments(self) -> list[bytes]:
        """The payload as it is cut."""
        return split(self.payload, self.begin, self.size) if self.payload else [b""]

    @property
    def data(self) -> bytes:
        """The first body and the segments of the others, without frame words."""
        return self.headers + self.payload[self.begin :]


def flow_of(head: bytes) -> bytes:
    """Which flow a packet belongs to: equal for all packets of one connection.

    ``head`` begins with its headers.  Fragments and packets with options may share
    one with others.
    """
    version = head[0] >> 4 if head else 0
    if version == 4:
        return head[9:10] + head[12:24]
    if version == 6:
        return head[6:7] + head[8:44]
    return b""  # a keepalive


def traffic_class_of(head: Buffer) -> int:
    """DSCP and ECN of the packet that begins so (RFC 2474, RFC 3168)."""
    if len(head) < 2:
        return 0  # a keepalive, or no packet
    if head[0] >> 4 == 6:
        return (head[0] << 4 | head[1] >> 4) & 0xFF
    return int(head[1])


def mark(parts: list[Buffer], ecn: int) -> bool:
    """Combine what routers said of the outer header with the inner one (RFC 6040, 4.2).

    ``parts`` is a TUN frame that is about to be written, ``ecn`` ECT(1) or CE.  False
    if it has to be dropped: its ends could not understand that there is congestion.
    """
    whole = len(parts[0]) == VIRTIO_SIZE  # then the packet is the second part
    at, start = (1, 0) if whole else (0, VIRTIO_SIZE)
    inner = traffic_class_of(parts[at][start : start + 2]) & CE
    if inner == NOT_ECT:
        return ecn != CE
    if inner in (ecn, CE):
        return True
    head = bytearray(parts[at])  # what it was lies in a buffer of others
    version = head[start] >> 4
    where = start + 1
    before = _U16.unpack_from(head, start)[0]
    head[where] = head[where] & ~(CE << (0 if version == 4 else 4)) & _MAX_BYTE
    head[where] |= ecn << (0 if version == 4 else 4)
    if version == 4:
        after = _U16.unpack_from(head, start)[0]
        was = _U16.unpack_from(head, start + 10)[0]
        # RFC 1624, equation 3.
        change = (~was & 0xFFFF) + (~before & 0xFFFF) + after
        change = (change & 0xFFFF) + (change >> 16)
        change = (change & 0xFFFF) + (change >> 16)
        _U16.pack_into(head, start + 10, ~change & 0xFFFF)
    parts[at] = head
    return True


def cut(frame: memoryview, room: int) -> Cut | None:
    """Cut a TUN frame into bodies of at most ``room`` bytes without frame word.

    None if it cannot be done: the packet is too big for the path.  A TCP
    super-packet is cut smaller than the kernel asked where the path wants that;
    a UDP one is not, since its segments are datagrams of their own.  The kernel
    is trusted to hand over well-formed super-packets.

    What is borrowed is copied; of a view of bytes, which nobody changes, they are kept.
    """
    flags, gso_type, _, gso_size, csum_start, csum_offset = VIRTIO.unpack_from(frame)
    packet = frame[VIRTIO_SIZE:]
    if gso_type in (GSO_NONE, GSO_WHOLE):
        size = gso_size or len(packet)
        return _whole(packet, size, flags, csum_start, csum_offset, room)
    kind = gso_type & ~GSO_ECN
    length = _headers_length(packet, kind, csum_start)
    size = gso_size
    if length + size > room:
        size = room - length
        if kind == GSO_UDP_L4 or size <= 0:
            return None
    if length > _MAX_BYTE:
        return None  # IPv6 extension headers beyond all use; TSO never makes them
    word = _word(gso_type, length, csum_start, csum_offset | _CSUM_FLAG, size)
    segments = len(packet) - length
    inner = segments + length * -(-segments // size)
    headers, kept = bytes(packet[:length]), frame.obj
    if type(kept) is bytes and len(kept) == len(frame):  # hot path
        return Cut(word, headers, kept, size, inner, VIRTIO_SIZE + length)
    return Cut(word, headers, bytes(packet[length:]), size, inner)


def packets(frame: memoryview) -> int:
    """How many IP packets the TUN frame stands for, as the kernel would cut it."""
    _, gso_type, _, gso_size, csum_start, _ = VIRTIO.unpack_from(frame)
    if gso_type == GSO_NONE:
        return 1
    packet, headers = frame[VIRTIO_SIZE:], 0
    if gso_type != GSO_WHOLE:
        headers = _headers_length(packet, gso_type & ~GSO_ECN, csum_start)
    segments: int = -(-(len(packet) - headers) // gso_size)
    return max(1, segments)


def _headers_length(packet: memoryview, kind: int, csum_start: int) -> int:
    # The kernel's header length is a hint that may reach into the payload.
    if kind == GSO_UDP_L4:
        return csum_start + UDP_HEADER_SIZE
    return csum_start + (packet[csum_start + 12] >> 4) * 4


def _whole(
    packets: memoryview,
    size: int,
    flags: int,
    csum_start: int,
    csum_offset: int,
    room: int,
) -> Cut | None:
    """Packets of ``size`` bytes, mostly one, as they are."""
    if size > room:
        return None
    word = 0
    body = bytes(packets)
    if flags & NEEDS_CSUM:
        if csum_start > _MAX_BYTE or csum_offset >= _CSUM_FLAG:
            body = _complete_checksum(packets, csum_start, csum_offset)
        else:
            word = _word(GSO_NONE, 0, csum_start, csum_offset | _CSUM_FLAG, 0)
    return Cut(word, b"", body, size, len(body))


@lru_cache(maxsize=256)  # those of packets that stay whole are few
def _word(gso_type: int, length: int, start: int, offset: int, size: int) -> int:
    return int.from_bytes(_WORD.pack(gso_type, length, start, offset, size, 0))


# Of whole packets that may be datagrams of one super-packet.
_UDP_OVER_IPV4 = _word(GSO_NONE, 0, 20, 6 | _CSUM_FLAG, 0)
_UDP_OVER_IPV6 = _word(GSO_NONE, 0, 40, 6 | _CSUM_FLAG, 0)
DATAGRAMS = frozenset({_UDP_OVER_IPV4, _UDP_OVER_IPV6})


def join_untrusted(word: int, count: int, first: int, data: Buffer) -> list[Buffer]:
    """The TUN frame for a run of bodies: virtio header and headers, then payload.

    ``word`` is the frame word of the first of ``count`` bodies; ``data`` what follows
    the frame words: the first with its headers, ``first`` bytes, the others without.
    Raises BadPacket if the words do not describe a packet; what is inside a well-formed
    one is the kernel's to judge.
    """
    if not word >> 56:
        virtio, least = _virtio_whole_untrusted(word)
        if count != 1 or len(data) < least:
            raise BadPacket
        return [virtio, data]
    gso_type, length, start, offset, size, number = _WORD.unpack(word.to_bytes(8))
    headers, payload = bytearray(data[:length]), len(data) - length
    _check_headers_untrusted(headers, gso_type, length, start, offset, size)
    if not 0 < first - length <= size or not 0 <= size * count - payload < size:
        raise BadPacket
    _adjust(headers, gso_type, start, number, size, payload)
    if count == 1:
        virtio = VIRTIO.pack(NEEDS_CSUM, 0, 0, 0, start, offset & ~_CSUM_FLAG)
    else:
        virtio = VIRTIO.pack(
            NEEDS_CSUM, gso_type, length, size, start, offset & ~_CSUM_FLAG
        )
    return [virtio + headers, memoryview(data)[length:]]


def same_flow(word: int, first: Buffer, other: Buffer) -> bool:
    """Whether two whole UDP packets could be datagrams of one super-packet.

    ``word`` is the frame word of both.  Only where the checksum is still to be
    completed, so that no wrong one is made right; same addresses, ports, TTL and
    class; no fragments and no options; ``other`` may be the shorter, last one.
    """
    if word == _UDP_OVER_IPV4:
        return (
            28 < len(other) <= len(first)
            and first[0] == 0x45
            and first[9] == _UDP
            and first[12:24] == other[12:24]
            and first[8:10] == other[8:10]
            and first[:2] == other[:2]
            and first[6:8] == other[6:8]
            and not first[6] & 0x3F
            and not first[7]
        )
    return (
        word == _UDP_OVER_IPV6
        and 48 < len(other) <= len(first)
        and first[6] == _UDP
        and first[6:44] == other[6:44]
        and first[:4] == other[:4]
    )


def join_datagrams(word: int, count: int, first: int, data: Buffer) -> list[Buffer]:
    """The TUN frame for ``count`` whole UDP packets of ``same_flow``: a super-packet.

    ``data`` is the first of them, ``first`` bytes, and the others without headers.
    """
    start = word >> 40 & _MAX_BYTE
    length = start + UDP_HEADER_SIZE
    headers, size = bytearray(data[:length]), first - length
    _adjust(headers, GSO_UDP_L4, start, 0, size, len(data) - length)
    virtio = VIRTIO.pack(NEEDS_CSUM, GSO_UDP_L4, length, size, start, 6)
    return [virtio + headers, memoryview(data)[length:]]


def finished(parts: list[Buffer]) -> list[Buffer]:
    """The packets of a TUN frame, complete, for a device that does no batches.

    ``parts`` is what :func:`join_untrusted` or :func:`join_datagrams` made.
    """
    head = memoryview(parts[0])
    flags, gso_type, _, size, start, offset = VIRTIO.unpack_from(head)
    if gso_type == GSO_NONE:
        packet = b"".join([head[VIRTIO_SIZE:], *parts[1:]])
        if flags & NEEDS_CSUM:
            packet = _complete_checksum(packet, start, offset)
        return [packet]
    packets: list[Buffer] = []
    for number, piece in enumerate(split(b"".join(parts[1:]), 0, size)):
        headers = bytearray(head[VIRTIO_SIZE:])
        _adjust(headers, gso_type, start, number, size, len(piece))
        packets.append(_complete_checksum(headers + piece, start, offset))
    return packets


@lru_cache(maxsize=256)
def _virtio_whole_untrusted(word: int) -> tuple[bytes, int]:
    """The virtio header of a packet that stays whole, and its least size in bytes."""
    _, length, start, offset, size, number = _WORD.unpack(word.to_bytes(8))
    if length or size or number:
        raise BadPacket
    if not offset & _CSUM_FLAG:
        return _NO_GSO, 0
    at = offset & ~_CSUM_FLAG
    return VIRTIO.pack(NEEDS_CSUM, 0, 0, 0, start, at), start + at + 2


def _check_headers_untrusted(
    headers: bytearray, gso_type: int, length: int, start: int, offset: int, size: int
) -> None:
    kind = gso_type & ~GSO_ECN
    if len(headers) != length or not size or not 20 <= start <= length - 8:
        raise BadPacket
    version = headers[0] >> 4
    if gso_type == GSO_UDP_L4:
        good = length == start + 8 and offset == 6 | _CSUM_FLAG
    elif kind in (GSO_TCPV4, GSO_TCPV6):
        good = offset == 16 | _CSUM_FLAG and length >= start + 20
        good = good and version == (4 if kind == GSO_TCPV4 else 6)
    else:
        good = False
    if not good or version not in (4, 6) or (version == 6 and start < 40):
        raise BadPacket


def _adjust(
    headers: bytearray, gso_type: int, start: int, number: int, size: int, payload: int
) -> None:
    """Turn the headers of the whole super-packet into those of this run."""
    version = headers[0] >> 4
    was = _U16.unpack_from(headers, 2 if version == 4 else 4)[0]
    before = was - (len(headers) if version == 4 else len(headers) - 40)
    if not number and payload == before:
        return  # hot path: nothing was lost, the headers are right as they are
    transport = len(headers) - start + payload
    if start + transport > 0xFFFF:
        raise BadPacket
    if version == 4:
        _U16.pack_into(headers, 2, start + transport)
        _U16.pack_into(headers, 4, (_U16.unpack_from(headers, 4)[0] + number) & 0xFFFF)
        _U16.pack_into(headers, 10, 0)
        _U16.pack_into(headers, 10, ~_sum(headers[:start]) & 0xFFFF)
        addresses = headers[12:20]
    else:
        _U16.pack_into(headers, 4, start - 40 + transport)
        addresses = headers[8:40]
    if gso_type == GSO_UDP_L4:
        protocol, check = _UDP, start + 6
        _U16.pack_into(headers, start + 4, transport)
    else:
        protocol, check = _TCP, start + 16
        skipped = number * size
        sequence = _U32.unpack_from(headers, start + 4)[0] + skipped
        _U32.pack_into(headers, start + 4, sequence & 0xFFFFFFFF)
        if number:
            headers[start + 13] &= ~_TCP_CWR & _MAX_BYTE
        if skipped + payload < before:
            headers[start + 13] &= ~_TCP_FIN_PSH & _MAX_BYTE
    pseudo = addresses + _U32.pack(transport) + _U32.pack(protocol)
    _U16.pack_into(headers, check, _sum(pseudo))


def _sum(data: Buffer) -> int:
    """The Internet checksum's one's complement sum (RFC 1071), not inverted.

    2**16 is 1 modulo 2**16 - 1, so the sum of 16-bit words is the whole number
    modulo 2**16 - 1; only that a non-zero sum never folds to zero.
    """
    odd = len(data) & 1
    total = int.from_bytes(data) << 8 * odd
    return (total - 1) % 0xFFFF + 1 if total else 0


def checksum(data: Buffer) -> int:
    """The Internet checksum over ``data`` (RFC 1071)."""
    return ~_sum(data) & 0xFFFF


def _complete_checksum(packet: Buffer, start: int, offset: int) -> bytes:
    whole = bytearray(packet)
    _U16.pack_into(whole, start + offset, checksum(whole[start:]) or 0xFFFF)
    return bytes(whole)
