"""Which process has what we want, so that an error can say how to get it.

As far as /proc tells: of others' containers, or without privilege, it does not.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from attrs import frozen

_PROC = Path("/proc")
_CREDENTIALS = struct.Struct("3i")  # ucred: process, user, group

# A unit's own process is a child of systemd; what a shell or cron starts is not, and
# would not be what is meant by the unit it runs in.
_UNIT = re.compile(r":/system\.slice/(?:[^/\n]+\.slice/)*([^/\n]+)\.service$", re.M)


@frozen
class Holder:
    """A process, and the unit that would start it again."""

    pid: int
    name: str
    unit: str = ""

    @classmethod
    def of(cls, pid: int) -> Holder | None:
        """None for one that cannot be seen."""
        place = _PROC / str(pid)
        with suppress(OSError):
            name = (place / "comm").read_text(errors="replace").strip()
            status = (place / "status").read_text(errors="replace")
            return cls(pid, name, unit_of((place / "cgroup").read_text(), status))
        return None

    @property
    def shown(self) -> str:
        """Its name, which it chose itself: it is to make no lines of ours."""
        return "".join(sign if sign.isprintable() else "?" for sign in self.name)

    def __str__(self) -> str:
        return f"{self.shown} (process {self.pid})"

    @property
    def stop(self) -> str:
        """The command that ends it, and keeps it from being started again."""
        return f"systemctl stop {self.unit}" if self.unit else f"kill {self.pid}"


def unit_of(cgroups: str, status: str) -> str:
    """The system's unit whose main process it is; nothing if it is none's."""
    found = _UNIT.search(cgroups)
    by_systemd = re.search(r"^PPid:\s+1$", status, re.M)
    return found[1] if found and by_systemd else ""


def of_lock(descriptor: int) -> Holder | None:
    """Who has locked a file that we have open."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with suppress(OSError):
        for line in (_PROC / "locks").read_text().splitlines():
            words = line.split()
            if f"{device}:{status.st_ino}" in words and "->" not in words:
                return Holder.of(int(words[4]))
    return None


class Connected(Protocol):
    """A Unix socket, whoever's class it is of."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """See socket.socket."""


def behind(sock: Connected) -> tuple[int, int]:
    """Process and user at the other end of a connected Unix socket.  Raises OSError."""
    size = _CREDENTIALS.size
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


def of_listener(connected: socket.socket) -> Holder | None:
    """Who listens at the other end of a Unix socket."""
    with suppress(OSError):
        return Holder.of(behind(connected)[0])
    return None


def of_udp_port(port: int) -> Holder | None:
    """Who has bound a UDP port in our network namespace."""
    wanted = {f"socket:[{inode}]" for inode in _sockets_at(port)}
    for place in _PROC.glob("[0-9]*") if wanted else ():
        with suppress(OSError):
            for link in (place / "fd").iterdir():
                if os.readlink(link) in wanted:
                    return Holder.of(int(place.name))
    return None


def _sockets_at(port: int) -> Iterator[str]:
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[1].endswith(f":{port:04X}"):
                    yield words[9]
