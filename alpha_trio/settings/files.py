"""Files on which secrets and rights rest: whether anybody else may open them.

Root may do everything anyway, and so may who runs this: nobody else counts as trusted,
but root's group, which has no members where it matters.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from alpha_trio.errors import ConfigError
from alpha_trio.settings import values as v

READ, WRITE = stat.S_IROTH, stat.S_IWOTH

MOST = 256  # characters of a file that holds one key


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


def _without_waiting(path: str, flags: int) -> int:
    """Nobody may ever write into a pipe that stands where a file should."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_psk(path: Path) -> str:
    """The pre-shared key that a file holds, as text.

    Raises:
      ConfigError: one line without anything of the content.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            content = file.read(MOST) if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; give a file that may be read"
        ) from None
    if content is None:
        raise ConfigError(f"{path}: this is no ordinary file; put the key into one")
    if (command := remedy(path, status, READ)) is not None:
        raise ConfigError(
            f"{path}: others may read this secret; forbid it by '{command}', and make "
            "a new one by 'key psk' if they did"
        )
    try:
        return v.psk(content.decode("ascii", "replace").strip())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
