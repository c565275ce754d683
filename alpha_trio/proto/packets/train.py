"""Packets of one flow, read one after the other: a train, as one frame.

The kernel hands over super-packets of TCP, and of UDP where the sender asked for it
(UDP_SEGMENT); most send their datagrams one by one.  Equal ones that are there together
are joined to what the kernel would have made of them, so all that is done for a frame
is done for many of them, here and at the other end.

Who receives by TCP answers each super-packet with a bare acknowledgment.  They differ,
so no kernel would join them, and they stay whole; but they share a frame up to where
datagrams are made of it.
"""

from __future__ import annotations

from typing import Self

from attrs import define

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES
from alpha_trio.proto.packets.frames import (
    GSO_NONE,
    GSO_UDP_L4,
    GSO_WHOLE,
    NEEDS_CSUM,
    UDP_HEADER_SIZE,
    VIRTIO,
    VIRTIO_SIZE,
)
from alpha_trio.proto.packets.tcp import Role, role_of

MOST_BARE = 10
"""Acknowledgments in a frame: as many as one S1 takes, with all their options."""

_UDP, _CHECKSUM_AT = 17, 6
_TCP_KIND_SIZE = 14  # a TCP header as far as its flags
_TCP_COUNTS = range(4, 12)  # what it says of how far the two ends are
_LARGEST_BARE = 40 + 60  # bytes of an IPv6 header and a TCP one with all options
_DONT_FRAGMENT = b"\x40\0"
# By where the transport header begins: IPv4 without options, IPv6 without extensions.
_IPV4, _IPV6 = 20, 40
_IPV4_VARYING = (4, 5, 10, 11)  # identification and checksum


def _mask(header: int, size: int, *varying: int) -> int:
    """All bits of the virtio header, and of ``header`` and ``size`` bytes behind it.

    But for the places ``varying`` of the latter two, and what IPv4 has varying.
    """
    if header == _IPV4:
        varying += _IPV4_VARYING
    fields = (0 if i in varying else 0xFF for i in range(header + size))
    return int.from_bytes(bytes([0xFF] * VIRTIO_SIZE) + bytes(fields))


# What is equal in all packets of a train.  Lengths and ports are.
_OF_DATAGRAMS = {start: _mask(start, UDP_HEADER_SIZE) for start in (_IPV4, _IPV6)}
_OF_BARE = {
    start: _mask(start, _TCP_KIND_SIZE, *(start + at for at in _TCP_COUNTS))
    for start in (_IPV4, _IPV6)
}


@define(eq=False)
class Train:
    """What the packets of one train have in common, and how many there are."""

    head: int  # bytes of each frame that the train has only once, its virtio header's
    payload: int  # and behind these
    _compared: int  # bytes at the beginning of each frame, where there is ...
    _mask: int
    _common: int
    _most: int  # packets
    _gso_type: int
    _length: int  # of headers, for virtio
    count: int = 1

    @classmethod
    def of(cls, frame: memoryview, *, datagrams: bool = True) -> Self | None:
        """A train that begins with this TUN frame; None if it cannot be one.

        ``datagrams``: also one that becomes a super-packet of UDP.
        """
        flags, gso_type, _, _, start, offset = VIRTIO.unpack_from(frame)
        if gso_type != GSO_NONE:
            return None  # hot path
        if flags == NEEDS_CSUM and offset == _CHECKSUM_AT:
            return cls._of_datagrams(frame, start) if datagrams else None
        return cls._of_bare(frame)

    @classmethod
    def _of_datagrams(cls, frame: memoryview, start: int) -> Self | None:
        """The kernel's checksum is outstanding: then all are right, or none is.

        Datagrams that may be fragmented need the identification they have.
        """
        mask, head = _OF_DATAGRAMS.get(start), VIRTIO_SIZE + start + UDP_HEADER_SIZE
        if mask is None or len(frame) <= head:
            return None
        packet = frame[VIRTIO_SIZE:]
        if start == _IPV4:
            good = packet[0] == 0x45 and packet[9] == _UDP
            good = good and packet[6:8] == _DONT_FRAGMENT
        else:
            good = packet[0] >> 4 == 6 and packet[6] == _UDP
        if not good:
            return None
        common = int.from_bytes(frame[:head]) & mask
        kind = MAX_DATAGRAMS, GSO_UDP_L4, start + UDP_HEADER_SIZE
        return cls(head, len(frame) - head, head, mask, common, *kind)

    @classmethod
    def _of_bare(cls, frame: memoryview) -> Self | None:
        size = len(frame) - VIRTIO_SIZE
        if size > _LARGEST_BARE:
            return None
        packet = bytes(frame[VIRTIO_SIZE:])
        if role_of(packet, size) is not Role.BARE:
            return None
        start = _IPV4 if packet[0] >> 4 == 4 else _IPV6
        if start == _IPV4 and packet[0] != 0x45:
            return None
        compared, mask = VIRTIO_SIZE + start + _TCP_KIND_SIZE, _OF_BARE[start]
        common = int.from_bytes(frame[:compared]) & mask
        return cls(VIRTIO_SIZE, size, compared, mask, common, MOST_BARE, GSO_WHOLE, 0)

    @property
    def size(self) -> int:
        """Bytes of the frame they make."""
        return self.head + self.count * self.payload

    def takes(self, frame: memoryview) -> bool:
        """Whether ``frame`` is the next of it, which is then counted."""
        if len(frame) != self.head + self.payload:
            return False
        if int.from_bytes(frame[: self._compared]) & self._mask != self._common:
            return False
        whole = self.size + self.payload - VIRTIO_SIZE
        if self.count >= self._most or whole > MAX_SEND_BYTES:
            return False
        self.count += 1
        return True

    def finish(self, frame: memoryview) -> None:
        """Say in the virtio header of ``frame``, which has all payloads, what it is.

        The IP and UDP headers of datagrams stay the first one's: who joins segments
        again corrects lengths and checksums anyway.
        """
        if self.count > 1:
            flags, _, _, _, start, offset = VIRTIO.unpack_from(frame)
            sizes = self._length, self.payload, start, offset
            VIRTIO.pack_into(frame, 0, flags, self._gso_type, *sizes)
