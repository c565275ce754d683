"""Files of the user's: what is in them, and whether anybody else may open them.

Where secrets and rights rest on one: root may do everything anyway, and so may who runs
this; nobody else counts as trusted, but root's group, which has no members where it
matters.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from attrs import field, frozen

from alpha_trio.errors import ConfigError
from alpha_trio.settings import values as v

READ, WRITE = stat.S_IROTH, stat.S_IWOTH

MOST = 256  # characters of a file that holds one key
MOST_TEXT = 8 << 20  # bytes of any other: some 40,000 peers

STDIN = Path("-")
_NOTHING = Path(os.devnull)
NOT_ORDINARY = "it is no ordinary file"


@frozen
class File:
    """A file as it was read."""

    path: Path  # as errors name it
    status: os.stat_result | None  # None: it is standard input, which nobody else reads
    text: str = field(repr=False)


class Absent(ConfigError):
    """There is no such file."""


def ordinary(path: str | Path, dir_fd: int | None = None) -> BinaryIO:
    """A file opened to be read, without ever waiting for who may write into it.

    Raises:
      OSError: also if it is a pipe, a device or the like.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode) and not os.path.isdir(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, NOT_ORDINARY)
    try:
        return open(fd, "rb")
    except BaseException:  # a directory, which open refuses in better words
        os.close(fd)
        raise


def read_text(path: Path, given_by: str = "the name", *, pipe: bool = False) -> File:
    """A file, or standard input, for ``-``.

    Args:
      given_by: what the path was given by.
      pipe: it may be one, and whoever writes into it is waited for.

    Raises:
      ConfigError: one line; Absent if there is none.
    """
    shown = Path("standard input") if path == STDIN else path
    try:
        raw, status = _read_bytes(path, pipe)
    except FileNotFoundError:
        raise Absent(f"{path}: there is no such file; check {given_by}") from None
    except OSError as error:
        raise ConfigError(
            f"{shown}: cannot be read: {error.strerror}; give a file you may read"
        ) from None
    if len(raw) > MOST_TEXT:
        raise ConfigError(
            f"{shown}: there are more than {MOST_TEXT >> 20} MiB in it, which no such "
            "file has; is it the right one?"
        )
    try:
        text = raw.decode().removeprefix("\ufeff")  # by which some editors begin
        return File(shown, status, text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown}:{line}: byte {raw[error.start]:#x} is not UTF-8; "
            "save the file in that encoding"
        ) from None


def _read_bytes(path: Path, pipe: bool) -> tuple[bytes, os.stat_result | None]:
    if path == STDIN:
        if sys.stdin is None:  # closed by who started us
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.buffer.read(MOST_TEXT + 1), None
    # Of a pipe there is nothing left when a daemon reads it again: no peers at all.
    # /dev/null is the usual name of a file that has nothing in it.
    waits = pipe or path == _NOTHING
    with path.open("rb") if waits else ordinary(path) as file:
        return file.read(MOST_TEXT + 1), os.fstat(file.fileno())


def remedy(path: Path, status: os.stat_result, right: int) -> str | None:
    """The command that takes a right from others; None if no one else has it.

    An owner may always give himself what he lacks.
    """
    if status.st_uid not in (0, os.geteuid()):
        return f"chown root {path}"
    group = 0 if status.st_gid == 0 else right << 3
    if status.st_mode & (right | group):
        return f"chmod {'go-rwx' if right == READ else 'go-w'} {path}"
    return None


def read_psk(path: Path) -> str:
    """The pre-shared key that a file holds, as text.

    Raises:
      ConfigError: one line without anything of the content.
    """
    try:
        with ordinary(path) as file:
            status = os.fstat(file.fileno())
            content = file.read(MOST)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; give a file that may be read"
        ) from None
    if (command := remedy(path, status, READ)) is not None:
        raise ConfigError(
            f"{path}: others may read this secret; forbid it by '{command}', and make "
            "a new one by 'key psk' if they did"
        )
    try:
        return v.psk(content.decode("ascii", "replace").strip())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
