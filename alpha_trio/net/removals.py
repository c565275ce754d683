"""Hearing that a file in a directory was removed, by inotify(7)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Self

import trio

# sys/inotify.h
_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_ROOM = 4096  # bytes of notices, whose content does not matter

_libc = ctypes.CDLL(None, use_errno=True)


class Removals:
    """Notices of a directory that is there.

    Raises:
      OSError: there is none, or the host has no more of what watches it.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = _checked(_libc.inotify_init1(_FLAGS))
        wanted = _IN_MOVED_FROM | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
        try:
            path = os.fsencode(directory)
            _checked(_libc.inotify_add_watch(self._fd, path, wanted))
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    async def wait(self) -> None:
        """Return when something in it, or it itself, was removed or moved away."""
        await trio.lowlevel.wait_readable(self._fd)
        os.read(self._fd, _ROOM)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
