"""The per-packet trace of ``-vv``: what crossed the TUN and the UDP socket."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from ipaddress import ip_address

from alpha_trio.proto.batch import Buffer, Deliver, Remote, Send
from alpha_trio.proto.messages import (
    EARLY_ROUND,
    HEADER_SIZE,
    NODE_SIZE,
    S1_FIXED_SIZE,
    TAG_SIZE,
    Kind,
)
from alpha_trio.proto.packets import VIRTIO_SIZE

_log = logging.getLogger("alpha_trio.trace")

_MESSAGES = {int(kind): kind.name for kind in Kind if kind is not Kind.DATA}
_SHAPE_AT = HEADER_SIZE + 2  # of a message of a round
_EMPTY_S1 = S1_FIXED_SIZE + NODE_SIZE + TAG_SIZE  # bytes, with one root
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


def enabled() -> bool:
    """Whether packets are to be logged; ask once per batch."""
    return _log.isEnabledFor(logging.DEBUG)


def describe(packet: bytes) -> str:
    """One line about an IP packet, a super-packet by its whole length."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        protocol, ttl = packet[9], packet[8]
        source, destination = packet[12:16], packet[16:20]
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        protocol, ttl = packet[6], packet[7]
        source, destination = packet[8:24], packet[24:40]
    else:
        return f"unknown packet ({len(packet)} bytes)"
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    return (
        f"{name} packet from {ip_address(source)} to {ip_address(destination)} "
        f"(ttl {ttl}, {len(packet)} bytes)"
    )


def from_tun(frame: memoryview) -> None:
    """A frame was read from the TUN."""
    _log.debug("--tun--> %s", describe(bytes(frame[VIRTIO_SIZE:])))


def to_tun(deliver: Deliver) -> None:
    """A frame was written to the TUN."""
    _log.debug("<--tun-- %s", describe(b"".join(deliver.parts)[VIRTIO_SIZE:]))


def sent(send: Send) -> None:
    """Datagrams were sent; those that carry a packet have a line for it as well."""
    target = address(send.remote)
    for datagram in send.datagrams():
        if (name := _MESSAGES.get(datagram[0])) is not None:
            _log.debug("Sending %s (%d bytes) to %s", name, len(datagram), target)
        if datagram[0] == Kind.S1 and _carries_packet(datagram):
            _log.debug("Sending encapsulated packet to %s", target)
    for _ in range(send.packets):
        _log.debug("Sending encapsulated packet to %s", target)


def received(view: memoryview, stride: int, remote: Remote) -> None:
    """Datagrams arrived, ``stride`` bytes apart; 0 is that of an empty one."""
    source, size = address(remote), len(view)
    for at in range(0, size, max(stride, 1)):
        length = min(stride, size - at)
        name = _MESSAGES.get(view[at])
        if name is not None:
            _log.debug("Received %s (%d bytes) from %s", name, length, source)
        if _carries_packet(view[at : at + length]):
            line = "Received encapsulated packet (%d bytes) from %s"
            _log.debug(line, length, source)


def _carries_packet(datagram: Buffer) -> bool:
    """By its head: S2 unless its S1 did before, and all that is not ours to read."""
    kind = datagram[0]
    early = len(datagram) > _SHAPE_AT and datagram[_SHAPE_AT] & EARLY_ROUND
    if kind == Kind.S1:
        return bool(early) and len(datagram) > _EMPTY_S1
    return (kind == Kind.S2 and not early) or kind not in _MESSAGES


def address(remote: Remote) -> str:
    """HOST:PORT, with brackets where the host is an IPv6 address, and its zone."""
    host, port, *more = remote
    if scope := more and more[-1]:
        with suppress(OSError):  # the link is gone
            host = f"{host}%{socket.if_indextoname(scope)}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
