"""Hearing that the machine was suspended, without asking again and again.

A TimerFD on the wall clock with TFD_TIMER_CANCEL_ON_SET is told of whenever the
kernel moves that clock against CLOCK_MONOTONIC: when somebody sets it, and on resume,
when the time in suspend is added to it (fs/timerfd.c, timerfd_resume).  Which of them
it was the other clocks tell: only suspend moves CLOCK_BOOTTIME against
CLOCK_MONOTONIC.  So the wall clock may be set as anybody likes.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from struct import Struct
from typing import Self

import trio

_CANCEL_ON_SET, _ABSOLUTE = 2, 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ITIMERSPEC = Struct("@llll")  # interval, and when: seconds and nanoseconds of both
_NEVER = (1 << 31) - 1 if _ITIMERSPEC.size < 32 else 1 << 40  # s since 1970

_libc = ctypes.CDLL(None, use_errno=True)


def suspended() -> float:
    """Seconds this machine has spent in suspend since boot; never too many."""
    # In this order: what is in between makes them fewer, and can feign no suspend.
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot - time.clock_gettime(time.CLOCK_MONOTONIC)


class ClockWatch:
    """Tells when the wall clock was moved, by resume or by whomever."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    async def open(cls) -> Self:
        """Begin to watch.  Raises OSError if the host refuses it."""
        wall = int(time.CLOCK_REALTIME)
        watch = cls(_checked(_libc.timerfd_create(wall, _NONBLOCK_CLOEXEC)))
        never, flags = _ITIMERSPEC.pack(0, 0, _NEVER, 0), _ABSOLUTE | _CANCEL_ON_SET
        try:
            _checked(_libc.timerfd_settime(watch._fd, flags, never, None))
        except OSError:
            watch.close()
            raise
        return watch

    async def wait_moved(self) -> None:
        """Return when the wall clock was moved since the last call."""
        await trio.lowlevel.wait_readable(self._fd)
        with suppress(OSError):  # ECANCELED is what it has to say
            os.read(self._fd, 8)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
