"""The ICMP errors that tell an inner sender why its packet went no further.

RFC 792 and RFC 1191 for IPv4, RFC 4443 for IPv6.  The answer comes from the
address the packet was sent to: we have none of our own that the sender knows.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

from alpha_trio.proto.batch import Counters, Outbox
from alpha_trio.proto.packets.frames import VIRTIO_SIZE, checksum

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_ICMP = Struct("!BBHI")
_UDP = Struct("!HHHH")

_PROTOCOL_ICMP, _PROTOCOL_UDP, _PROTOCOL_ICMPV6 = 1, 17, 58
_TTL = 64
_V4_QUOTE = 548  # RFC 1812 4.3.2.3: the whole answer stays within 576 bytes
_V6_QUOTE = 1232  # RFC 4443 2.4 (c): the whole answer stays within 1,280 bytes
# RFC 1122 3.2.2 and RFC 4443 2.4 (e): no error about an error, or storms follow.
_V4_QUERIES = frozenset({0, 8, 13, 14, 17, 18})
_V6_FIRST_QUERY = 128
# A sender that is nobody or everybody cannot be answered.
_V4_MULTICAST, _V6_MULTICAST = 0xE0, 0xFF
_V4_NOBODY, _V6_NOBODY = bytes(4), bytes(16)


class Problem(Enum):
    """ICMP type and code: for IPv4, for IPv6."""

    UNREACHABLE = ((3, 1), (1, 3))  # host unreachable, address unreachable
    TOO_BIG = ((3, 4), (2, 0))  # fragmentation needed, packet too big


def answer(frame: memoryview, problem: Problem, out: Outbox, mtu: int = 0) -> None:
    """Have the TUN answer one of its frames by ``error``, if that has anything to say.

    It counts as nobody's packet.
    """
    message = error(frame[VIRTIO_SIZE:], problem, mtu)
    if message is not None:
        out.deliver([bytes(VIRTIO_SIZE), message], Counters(), 1, len(message))


def error(packet: memoryview, problem: Problem, mtu: int = 0) -> bytes | None:
    """The ICMP error to write to the TUN for ``packet``, an IP packet read there.

    ``mtu`` is the largest inner packet that would have fitted (TOO_BIG only).
    None where the RFCs want silence: about ICMP errors, fragments that are not
    the first, senders that are no single host, and, for TOO_BIG, IPv4 packets that
    allow fragmentation.  ``packet`` holds at least a fixed IP header.
    """
    if packet[0] >> 4 == 4:
        return _error_v4(packet, problem, mtu)
    return _error_v6(packet, problem, mtu)


def _error_v4(packet: memoryview, problem: Problem, mtu: int) -> bytes | None:
    header = (packet[0] & 0xF) * 4
    fragment = int.from_bytes(packet[6:8])
    if fragment & 0x1FFF:
        return None
    if problem is Problem.TOO_BIG and not fragment & 0x4000:
        return None
    if packet[9] == _PROTOCOL_ICMP and _type(packet, header) not in _V4_QUERIES:
        return None
    source, destination = bytes(packet[12:16]), bytes(packet[16:20])
    if source[0] >= _V4_MULTICAST or source == _V4_NOBODY:
        return None
    kind, code = problem.value[0]
    quote = bytes(packet[:_V4_QUOTE])
    body = _ICMP.pack(kind, code, checksum(_ICMP.pack(kind, code, 0, mtu) + quote), mtu)
    length = _IPV4.size + len(body) + len(quote)

    def ip(check: int) -> bytes:
        fields = (0x45, 0xC0, length, 0, 0, _TTL, _PROTOCOL_ICMP, check)
        return _IPV4.pack(*fields, destination, source)

    return ip(checksum(ip(0))) + body + quote


def _type(packet: memoryview, header: int) -> int:
    """The ICMP type behind the IP ``header``; -1 for a packet that ends before."""
    return packet[header] if len(packet) > header else -1


def _error_v6(packet: memoryview, problem: Problem, mtu: int) -> bytes | None:
    if packet[6] == _PROTOCOL_ICMPV6 and _type(packet, 40) < _V6_FIRST_QUERY:
        return None
    source, destination = bytes(packet[8:24]), bytes(packet[24:40])
    if source[0] == _V6_MULTICAST or source == _V6_NOBODY:
        return None
    kind, code = problem.value[1]
    quote = bytes(packet[:_V6_QUOTE])
    length = _ICMP.size + len(quote)
    pseudo = destination + source + length.to_bytes(4) + _PROTOCOL_ICMPV6.to_bytes(4)
    check = checksum(pseudo + _ICMP.pack(kind, code, 0, mtu) + quote)
    fields = (6 << 28, length, _PROTOCOL_ICMPV6, _TTL, destination, source)
    return _IPV6.pack(*fields) + _ICMP.pack(kind, code, check, mtu) + quote


def udp_packet(
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    hops: int,
    traffic_class: int,
    payload: memoryview,
) -> bytes:
    """The IP packet a datagram came in, for an error to quote.

    ``source`` and ``destination`` are packed addresses with their ports.  Not as it
    was in what sockets do not tell: its number, its flow label and UDP's checksum.
    It counts as one that may not be fragmented.
    """
    length = _UDP.size + len(payload)
    udp = _UDP.pack(source[1], destination[1], length, 0)
    if len(source[0]) == 16:
        flow = 6 << 28 | traffic_class << 20
        fields = (flow, length, _PROTOCOL_UDP, hops, source[0], destination[0])
        return _IPV6.pack(*fields) + udp + payload

    def ip(check: int) -> bytes:
        total = _IPV4.size + length
        head = (0x45, traffic_class, total, 0, 0x4000, hops, _PROTOCOL_UDP, check)
        return _IPV4.pack(*head, source[0], destination[0])

    return ip(checksum(ip(0))) + udp + payload
