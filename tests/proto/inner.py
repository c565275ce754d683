"""IP packets for the tests, made the slow and obvious way.

Nothing here uses the code under test: sums go word by word, and a super-packet is
cut by building every segment afresh.
"""

from functools import cache
from ipaddress import ip_address
from struct import Struct, unpack

from attrs import evolve, frozen

VIRTIO = Struct("=BBHHHH")
NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_ECN = 1, 4, 5, 0x80
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
CHECKSUM_OFFSETS = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}

address = cache(ip_address)  # the same few, thousands of times


def word_sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words, as RFC 1071 describes it."""
    padded = data + bytes(len(data) % 2)
    total = sum(unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(source: str, destination: str, protocol: int, length: int) -> bytes:
    addresses = address(source).packed + address(destination).packed
    return addresses + length.to_bytes(4) + protocol.to_bytes(4)


@frozen
class Packet:
    """A TCP, UDP or echo packet, or with ``segment_size`` a super-packet."""

    source: str = "192.168.10.60"
    destination: str = "192.168.10.61"
    protocol: int = UDP
    payload: bytes = b""
    ip_id: int = 0
    ip_options: bytes = b""  # IPv4 options, or one IPv6 extension header
    ports: tuple[int, int] = (4000, 2323)
    sequence: int = 0
    flags: int = ACK
    tcp_options: bytes = b""
    dont_fragment: bool = True
    segment_size: int = 0
    echo_type: int = 8
    traffic_class: int = 0

    @property
    def version(self) -> int:
        return address(self.source).version

    @property
    def csum_start(self) -> int:
        return (20 if self.version == 4 else 40) + len(self.ip_options)

    @property
    def csum_offset(self) -> int:
        return CHECKSUM_OFFSETS[self.protocol]

    @property
    def headers_size(self) -> int:
        transport = 20 + len(self.tcp_options) if self.protocol == TCP else 8
        return self.csum_start + transport

    def build(self) -> bytes:
        """The complete packet, all checksums right."""
        return self._build(partial=False)

    def frame(self, *, needs_csum: bool = False) -> memoryview:
        """What a TUN with virtio headers reads for it."""
        virtio = bytes(VIRTIO.size)
        if self.segment_size:
            fields = (self.headers_size, self.segment_size)
            offsets = (self.csum_start, self.csum_offset)
            virtio = VIRTIO.pack(NEEDS_CSUM, self._gso_type(), *fields, *offsets)
        elif needs_csum:
            offsets = (self.csum_start, self.csum_offset)
            virtio = VIRTIO.pack(NEEDS_CSUM, 0, 0, 0, *offsets)
        partial = bool(self.segment_size) or needs_csum
        return memoryview(virtio + self._build(partial=partial))

    def segments(self, size: int = 0) -> list["Packet"]:
        """The packets a super-packet stands for, each described afresh."""
        size = size or self.segment_size
        starts = range(0, len(self.payload), size)
        return [self._segment(i, at, size) for i, at in enumerate(starts)]

    def _segment(self, number: int, at: int, size: int) -> "Packet":
        flags = self.flags
        if number:
            flags &= ~CWR
        if at + size < len(self.payload):
            flags &= ~(FIN | PSH)
        return evolve(
            self,
            payload=self.payload[at : at + size],
            ip_id=(self.ip_id + number) % 2**16,
            sequence=(self.sequence + at) % 2**32,
            flags=flags,
            segment_size=0,
        )

    def _gso_type(self) -> int:
        if self.protocol == UDP:
            return GSO_UDP
        ecn = GSO_ECN if self.flags & CWR else 0
        return (GSO_TCPV4 if self.version == 4 else GSO_TCPV6) | ecn

    def _build(self, *, partial: bool) -> bytes:
        transport = bytearray(self._transport_header() + self.payload)
        pseudo = pseudo_header(
            self.source, self.destination, self.protocol, len(transport)
        )
        if self.protocol == ICMP:
            pseudo = b""
        if partial:
            check = word_sum(pseudo)
        else:
            # 0 means "no checksum" in UDP; its equal 0xFFFF is used for all.
            check = ~word_sum(pseudo + transport) & 0xFFFF or 0xFFFF
        at = self.csum_offset
        transport[at : at + 2] = check.to_bytes(2)
        return self._ip_header(len(transport)) + bytes(transport)

    def _transport_header(self) -> bytes:
        if self.protocol == TCP:
            offset = (20 + len(self.tcp_options)) // 4 << 4
            fixed = Struct("!HHIIBBHHH").pack(
                *self.ports, self.sequence, 77, offset, self.flags, 512, 0, 0
            )
            return fixed + self.tcp_options
        if self.protocol == UDP:
            length = 8 + len(self.payload)
            return Struct("!HHHH").pack(*self.ports, length, 0)
        return Struct("!BBHHH").pack(self.echo_type, 0, 0, *self.ports)

    def _ip_header(self, length: int) -> bytes:
        addresses = address(self.source).packed + address(self.destination).packed
        if self.version == 6:
            length += len(self.ip_options)
            first = 6 << 28 | self.traffic_class << 20
            head = Struct("!IHBB").pack(first, length, self._next_header(), 64)
            return head + addresses + self.ip_options
        words = 5 + len(self.ip_options) // 4
        total = 4 * words + length
        fragment = 0x4000 if self.dont_fragment else 0
        fields = (total, self.ip_id, fragment, 64, self.protocol)
        first = (0x40 | words, self.traffic_class)
        head = Struct("!BBHHHBBH").pack(*first, *fields, 0)
        head += addresses + self.ip_options
        check = ~word_sum(head) & 0xFFFF
        return head[:10] + check.to_bytes(2) + head[12:]

    def _next_header(self) -> int:
        return 60 if self.ip_options else self.protocol  # 60: destination options


def destination_options(size: int, next_header: int) -> bytes:
    """An IPv6 destination options header of ``size`` bytes, all padding."""
    padding = [1, size - 4, *bytes(size - 4)] if size <= 258 else None
    head = bytes([next_header, size // 8 - 1])
    if padding is not None:
        return head + bytes(padding)
    return head + bytes(size - 2)  # Pad1 all along


@frozen
class Parsed:
    """An IP packet taken apart; its checksums were right."""

    source: str
    destination: str
    protocol: int
    transport: bytes  # transport header and payload
    ttl: int
    traffic_class: int = 0

    @property
    def payload(self) -> bytes:
        offset = (self.transport[12] >> 4) * 4 if self.protocol == TCP else 8
        return self.transport[offset:]


def parse(packet: bytes) -> Parsed:
    """Take a complete packet apart; ValueError if a length or checksum is wrong."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        parsed = _parse_v4(packet)
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        parsed = _parse_v6(packet)
    else:
        raise ValueError("no IP packet")
    transport, covered = parsed.transport, parsed.transport
    if len(transport) < {TCP: 20}.get(parsed.protocol, 8):
        raise ValueError("cut short")
    if parsed.protocol != ICMP:
        addresses = parsed.source, parsed.destination
        covered = pseudo_header(*addresses, parsed.protocol, len(transport)) + transport
    if word_sum(covered) != 0xFFFF:
        raise ValueError("wrong transport checksum")
    if parsed.protocol == UDP and int.from_bytes(transport[4:6]) != len(transport):
        raise ValueError("wrong UDP length")
    return parsed


def _parse_v4(packet: bytes) -> Parsed:
    header = (packet[0] & 0xF) * 4
    if int.from_bytes(packet[2:4]) != len(packet) or word_sum(packet[:header]) != 65535:
        raise ValueError("wrong IPv4 header")
    source, destination = address(packet[12:16]), address(packet[16:20])
    ends = str(source), str(destination)
    return Parsed(*ends, packet[9], packet[header:], packet[8], packet[1])


def _parse_v6(packet: bytes) -> Parsed:
    if int.from_bytes(packet[4:6]) != len(packet) - 40:
        raise ValueError("wrong IPv6 payload length")
    source, destination = address(packet[8:24]), address(packet[24:40])
    protocol, start = packet[6], 40
    while protocol == 60:
        protocol, start = packet[start], start + (packet[start + 1] + 1) * 8
    ends = str(source), str(destination)
    traffic_class = int.from_bytes(packet[:2]) >> 4 & 0xFF
    return Parsed(*ends, protocol, packet[start:], packet[7], traffic_class)
