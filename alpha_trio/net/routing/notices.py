"""The kernel's notices of changes of links, addresses, routes, rules and settings."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

# Bits of sockaddr_nl.nl_groups: links, IPv4 and IPv6 addresses, routes and rules,
# and settings such as rp_filter.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23

_SO_RCVBUFFORCE = 33

_ROOM = 4 << 20  # bytes of notices, as of our own first thousand routes

_NOTICE = struct.Struct("=12xI")  # nlmsghdr, up to the netlink port of who caused it


def subscribe() -> socket.socket:
    """Return a socket that hears of every change of the host's network."""
    # pyroute2 would decode each notice in the thread that carries packets, and there
    # may be thousands; all there is to know is whose doing it was.
    events = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        0,
    )
    with suppress(OSError):  # in a container the host's limit may apply
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    events.bind((0, _GROUPS))
    return events


def drain(events: socket.socket, own_port: int) -> bool:
    """Read all that is there; tell whether something was not our own doing."""
    changed = False
    while True:
        try:
            (port,) = _NOTICE.unpack(events.recv(_NOTICE.size))
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # there was too much of it to keep
        else:
            changed = changed or port != own_port
