"""What a test leaves behind: found, named, and removed before the next one begins.

Looked at are processes, namespaces and folders of labs, files in the folder for
temporary ones and at the top of the checkout, and links, routing rules and tables of
packet filters of this machine itself, whose hosts are what tests are to change.  Other
runs may go on beside this one: a lab has its owner's pid in its name, a process is a
child of its worker, and the temporary folder is the worker's own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.ground import ROOT
from tools import lab

Left = tuple[str, str]
"""What it is, and its name or number."""

_HOST = "namespace"
_PR_SET_CHILD_SUBREAPER = 36
_GRACE = 2.0  # seconds for what was told to end and is about to
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE = 3  # NLMSG_DONE
_RTM_GETRULE, _FRA_PRIORITY = 34, 6
_NETLINK_NETFILTER, _NFT_MSG_GETTABLE, _NFTA_TABLE_NAME = 12, 10 << 8 | 1, 1


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own one ends, so that none is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def present(*, hosts: bool) -> set[Left]:
    """Return all there is now; ``hosts``: also what only tests with hosts can leave."""
    there = {("process", str(pid)) for pid in _children()}
    temporary = Path(tempfile.gettempdir())
    there |= {("file", str(temporary / name)) for name in os.listdir(temporary)}
    # Caches and the files of editors begin with a dot.
    names = [name for name in os.listdir(ROOT) if name[0] != "."]
    there |= {("file of the checkout", name) for name in names}
    return there | set(_of_hosts()) if hosts else there


def since(before: set[Left], *, hosts: bool) -> list[Left]:
    """Return what has come since, once all that was about to end has ended."""
    deadline = time.monotonic() + _GRACE
    homes = {_network(lab.NAMESPACES / name) for kind, name in before if kind == _HOST}
    homes.discard(0)
    while True:
        new = present(hosts=hosts) - before
        left = [each for each in new if not _is_over(each) and not _is_at(each, homes)]
        waiting = any(kind == "process" for kind, _ in left)
        if not waiting or time.monotonic() > deadline:
            return sorted(left)
        time.sleep(0.01)


def described(left: Left) -> str:
    """Return it in words."""
    kind, name = left
    if kind == "process":
        words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        name += f" ({os.fsdecode(b' '.join(words)).strip()})"
    return f"{kind} {name}"


def remove(left: Left) -> None:
    """End or remove it, unless it may be somebody's work or belongs to the machine."""
    kind, name = left
    if kind == "process":
        os.kill(int(name), signal.SIGKILL)
        os.waitpid(int(name), 0)
    elif kind in (_HOST, "folder"):
        lab.remove(lambda found, _: name.startswith(found))
    elif kind == "file":
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _children() -> Iterator[int]:
    """All children of this process, also those that have ended."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            yield from map(int, (thread / "children").read_text().split())


def _is_over(left: Left) -> bool:
    """Whether it is a process that has ended; it is then forgotten."""
    kind, name = left
    if kind != "process":
        return False
    try:
        return os.waitpid(int(name), os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def _is_at(left: Left, homes: set[int]) -> bool:
    """Whether it is a process on a host that was there before, and ends with it."""
    return left[0] == "process" and _network(Path("/proc", left[1], "ns/net")) in homes


def _network(path: Path) -> int:
    """The number of a network namespace, 0 when it is gone."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _of_hosts() -> Iterator[Left]:
    own = f"at-{os.getpid()}-"
    for kind, place in ((_HOST, lab.NAMESPACES), ("folder", lab.DIRECTORIES)):
        for path in place.iterdir() if place.is_dir() else ():
            if path.name.startswith(own):
                yield kind, path.name
    for _, name in socket.if_nameindex():
        if name.startswith("alpha"):
            yield "link of this machine", name
    for payload in _dump(socket.NETLINK_ROUTE, _RTM_GETRULE):
        priority = _attribute(payload[12:], _FRA_PRIORITY) or bytes(4)
        name = f"with priority {int.from_bytes(priority, sys.byteorder)}"
        yield "routing rule of this machine", f"{name} ({payload.hex()})"
    for payload in _dump(_NETLINK_NETFILTER, _NFT_MSG_GETTABLE):
        table = _attribute(payload[4:], _NFTA_TABLE_NAME)
        yield "packet filter table of this machine", table.rstrip(b"\0").decode()


def _dump(protocol: int, kind: int) -> Iterator[bytes]:
    """The kernel's answers to a request without arguments, each without its header.

    A program that asks (ip, nft) takes a hundred times longer to start.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + 16, kind, _DUMP, 0, 0) + bytes(16))
        while True:
            data = netlink.recv(1 << 16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                yield data[_HEADER.size : length]
                data = data[length + 3 & ~3 :]


def _attribute(data: bytes, wanted: int) -> bytes:
    while data:
        length, kind = struct.unpack_from("=HH", data)
        if kind == wanted:
            return data[4:length]
        data = data[length + 3 & ~3 :]
    return b""
