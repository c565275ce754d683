"""The host this process runs on: its clock, limits and memory, what it may do there."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from attrs import define, field

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  # linux/prctl.h

_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13

_DESCRIPTORS = 4096
"""Ten times as many as ever are open, a relay's for other ports included.

What the daemon starts inherits the limit; some programs close all there may be.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 4 << 20

_RESERVED = 2  # for one client, and what is opened for it


def boottime() -> float:
    """Seconds since boot, time in suspend included: a session ages while we sleep.

    Never mix it with ``trio.current_time()``, which stops in suspend and has an
    offset of its own.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def has_net_admin() -> bool:
    """Whether this process may create interfaces, rules and routes."""
    return _has(_CAP_NET_ADMIN)


def has_net_raw() -> bool:
    """Whether this process may use raw sockets and foreign addresses."""
    return _has(_CAP_NET_RAW)


def _has(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def receive_buffer(size: int) -> memoryview:
    """A buffer of ``size`` bytes that takes memory only as far as it was ever filled.

    A bytearray is filled with zeros, and so takes all of it from the beginning.
    OSError if there is no memory for it.
    """
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def keep_freed_memory() -> None:
    """Let memory of buffers that are freed be used again, not given back.

    Each round has a buffer of a hundred KB.  By default the C library returns such as
    soon as they are on top of its heap, and gets them back a page fault a page.

    And it gives each thread memory of its own, where what that one leaves is of no use
    to others; but ours work by turns.
    """
    library = ctypes.CDLL(None)
    with suppress(AttributeError):  # another C library
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_ARENA_MAX, 1)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files towards the hard one; it never falls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def forbid_core_dumps() -> None:
    """Keep the memory of this process, which has keys in it, out of files.

    The limit alone does not hold for a program that the kernel pipes dumps into.  Not
    being dumpable also keeps debuggers of the same user out; root's still may.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # It fails only where a sandbox forbids it, and then the limit remains.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def spare_descriptors() -> int:
    """How many files this process can still open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _DESCRIPTORS
    try:
        return max(0, soft - len(os.listdir("/proc/self/fd")))
    except OSError:  # none at all, or nothing is known
        return 0


@define(eq=False)
class Reserve:
    """Descriptors that are held, to be given away when there are no others."""

    _held: list[int] = field(factory=list)

    def fill(self) -> bool:
        """Hold as many as are wanted; False if there are not so many."""
        with suppress(OSError):
            while len(self._held) < _RESERVED:
                self._held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        return len(self._held) == _RESERVED

    def give(self) -> None:
        """Let others have them."""
        while self._held:
            os.close(self._held.pop())

    def __enter__(self) -> Self:
        self.fill()
        return self

    def __exit__(self, *_: object) -> None:
        self.give()
