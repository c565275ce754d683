"""Which of this host's addresses datagrams leave from, and how sockets name it."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from alpha_trio.settings import IPAddress

_IPV6_ADDR_PREFERENCES, _PREFER_PUBLIC = 72, 2


def prefer_stable(sock: socket.socket) -> None:
    """Have the kernel choose no temporary address of this host (RFC 5014, RFC 8981).

    A peer knows this host by an address that stays, and a session outlives the others.
    """
    with suppress(OSError):  # an old kernel; then as the host's setting has it
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _PREFER_PUBLIC)


def stable_source(address: IPv6Address, port: int, mark: int) -> IPAddress | None:
    """The address from which a socket like ours with this mark sends to ``address``.

    None if there is none.  Asked by such a socket, as a look-up of the route would tell
    a temporary one.  Nothing is sent.
    """
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            prefer_stable(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            probe.connect((str(address), port))
        except OSError:
            return None
        return ip_address(probe.getsockname()[0].partition("%")[0])


def local_address(local: bytes) -> IPAddress | None:
    """The address of ours in what a socket reported with a datagram, if anything."""
    if not local:
        return None
    return IPv4Address(local[4:8]) if len(local) == 12 else IPv6Address(local[:16])
