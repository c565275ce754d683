"""Datagrams of one flow, read one after the other: a train, as one super-packet.

The kernel hands over super-packets of TCP, and of UDP where the sender asked for it
(UDP_SEGMENT); most send their datagrams one by one.  Equal ones that are there together
are joined to what the kernel would have made of them, so all that is done for a frame
is done for many of them, here and at the other end.
"""

from __future__ import annotations

from typing import Self

from attrs import define

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES
from alpha_trio.proto.packets.frames import (
    GSO_NONE,
    GSO_UDP_L4,
    NEEDS_CSUM,
    UDP_HEADER_SIZE,
    VIRTIO,
    VIRTIO_SIZE,
)

_UDP, _CHECKSUM_AT = 17, 6
_DONT_FRAGMENT = b"\x40\0"
# By where the UDP header begins: IPv4 without options, IPv6 without extensions.
_IPV4, _IPV6 = 20, 40


def _mask(size: int, *varying: int) -> int:
    """All bits of so many bytes, but for those at the places ``varying``."""
    return int.from_bytes(bytes(0 if i in varying else 0xFF for i in range(size)))


# What is equal in all datagrams of a train: the virtio header, and what stands before
# the payload, but for IPv4's identification and checksum.  Lengths and ports are.
_MASKS = {
    _IPV4: _mask(
        VIRTIO_SIZE + _IPV4 + UDP_HEADER_SIZE,
        *(VIRTIO_SIZE + at for at in (4, 5, 10, 11)),
    ),
    _IPV6: _mask(VIRTIO_SIZE + _IPV6 + UDP_HEADER_SIZE),
}


@define(eq=False)
class Train:
    """What the datagrams of one train have in common, and how many there are."""

    head: int  # bytes in front of each payload, the virtio header among them
    payload: int  # bytes of each datagram's
    _mask: int
    _common: int
    count: int = 1

    @classmethod
    def of(cls, frame: memoryview) -> Self | None:
        """A train that begins with this TUN frame; None if it cannot be one.

        The kernel's checksum has to be outstanding: then all are right, or none is.
        Datagrams that may be fragmented need the identification they have.
        """
        flags, gso_type, _, _, start, offset = VIRTIO.unpack_from(frame)
        if gso_type != GSO_NONE or flags != NEEDS_CSUM or offset != _CHECKSUM_AT:
            return None
        mask, head = _MASKS.get(start), VIRTIO_SIZE + start + UDP_HEADER_SIZE
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
        return cls(head, len(frame) - head, mask, common)

    @property
    def size(self) -> int:
        """Bytes of the frame they make."""
        return self.head + self.count * self.payload

    def takes(self, frame: memoryview) -> bool:
        """Whether ``frame`` is the next of it, which is then counted."""
        if len(frame) != self.head + self.payload:
            return False
        if int.from_bytes(frame[: self.head]) & self._mask != self._common:
            return False
        whole = self.size + self.payload - VIRTIO_SIZE
        if self.count >= MAX_DATAGRAMS or whole > MAX_SEND_BYTES:
            return False
        self.count += 1
        return True

    def finish(self, frame: memoryview) -> None:
        """Say in the virtio header of ``frame``, which has all payloads, what it is.

        Its IP and UDP headers stay the first one's: who joins segments again corrects
        lengths and checksums anyway.
        """
        if self.count > 1:
            start = self.head - VIRTIO_SIZE - UDP_HEADER_SIZE
            length = start + UDP_HEADER_SIZE
            sizes = length, self.payload, start, _CHECKSUM_AT
            VIRTIO.pack_into(frame, 0, NEEDS_CSUM, GSO_UDP_L4, *sizes)
