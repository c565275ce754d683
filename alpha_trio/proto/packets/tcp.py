"""What a packet is to its TCP connection (RFC 9293)."""

from __future__ import annotations

from enum import Enum

TCP = 6

_IPV4_LEAST, _IPV6_SIZE, _LEAST = 20, 40, 20  # bytes of headers
_FRAGMENT = 0x1FFF  # offset of one that is not the first
_SYN, _ACK = 0x02, 0x10


class Role(Enum):
    """Of one packet."""

    OTHER = "other"  # it is no TCP, or it cannot be seen
    SYN = "syn"
    SYN_ACK = "syn-ack"
    BARE = "bare"  # no data: it acknowledges, or ends something
    DATA = "data"


def role_of(head: bytes, size: int) -> Role:
    """Of a packet of ``size`` bytes which begins with ``head``.

    OTHER as well where its TCP header is not there as a whole: behind extensions of
    IPv6, and in fragments.
    """
    at = _tcp_at(head)
    if at is None or len(head) < at + _LEAST:
        return Role.OTHER
    flags = head[at + 13]
    if flags & _SYN:
        return Role.SYN_ACK if flags & _ACK else Role.SYN
    return Role.DATA if size > at + (head[at + 12] >> 4) * 4 else Role.BARE


def _tcp_at(head: bytes) -> int | None:
    """Where the TCP header begins; None if nowhere."""
    version = head[0] >> 4 if head else 0
    if version == 4 and len(head) >= _IPV4_LEAST and head[9] == TCP:
        whole = not int.from_bytes(head[6:8]) & _FRAGMENT
        return (head[0] & 0x0F) * 4 if whole else None
    if version == 6 and len(head) >= _IPV6_SIZE and head[6] == TCP:
        return _IPV6_SIZE
    return None
