"""The state directory: small files that neither a crash nor a full disk loses.

Saving writes a new file beside the old one and renames it, so that at every moment
one complete file is there.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alpha_trio import holders
from alpha_trio.errors import StartError, StateError
from alpha_trio.settings import files

_log = logging.getLogger("alpha_trio")

_NEW_FILE = ".new"

_LET_WRITE = "run this as root, or give the daemon the right to write there"

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space or raise the quota there",
    errno.EROFS: "mount it writable or choose another place by --state-dir",
    errno.EACCES: _LET_WRITE,
    errno.EPERM: _LET_WRITE,
}
_OTHER_REMEDY = "mend that or choose another place by --state-dir"


class StateDirectory:
    """The directory where one daemon keeps what has to outlive it.

    It is locked as long as this is open: a second daemon would overwrite what this
    one saved.  The kernel drops the lock of a dead process.

    Args:
      path: created with mode 0700 if absent; the modes of an existing directory are
        left alone.

    Raises:
      StartError: the directory cannot be used, or another daemon uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: dict[str, bytes] = {}  # of the files, as far as is known
        self._incomplete = False
        self._saving = threading.Lock()  # two savers would share one temporary file
        self._fd = _open(path)
        try:
            _lock(self._fd, path)
        except BaseException:
            self.close()
            raise
        # What a daemon killed while saving left behind; only ours, thanks to the lock.
        self._remove_new_file()

    def read(self, name: str) -> bytes | None:
        """The content of a file that nobody else may write; None if there is none.

        Raises StateError.
        """
        try:
            with files.ordinary(name, self._fd) as file:
                self._refuse_others(name, os.fstat(file.fileno()), files.WRITE)
                self._content[name] = file.read()
                return self._content[name]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(
                f"{self.path / name}: cannot be read: {error.strerror}; "
                f"{_remedy(error)}"
            ) from None

    @property
    def is_gone(self) -> bool:
        """Whether somebody has removed it, and not all is there again."""
        if self._fd != -1 and not os.fstat(self._fd).st_nlink:
            self._incomplete = True
        return self._incomplete

    def restore(self) -> None:
        """Make it anew if it is gone, with what is known to have been in it.

        Raises StateError.
        """
        with self._saving:
            self._restore()

    def remember(self, name: str, content: bytes) -> None:
        """Restore this file, too, which others have read."""
        self._content[name] = content

    def refuse_readers(self, name: str) -> None:
        """Raise StateError if somebody else may read a file that is there."""
        status = os.stat(name, dir_fd=self._fd)
        self._refuse_others(name, status, files.READ)

    def create(self, name: str, content: bytes) -> None:
        """As `replace`, but what is there already, even a dangling link, stays."""
        self._save(name, content, os.link)

    def replace(self, name: str, content: bytes) -> None:
        """Save a file of mode 0600; on return it survives a loss of power.

        Takes some milliseconds, for the disk: call it in a worker thread.  Calls from
        several threads follow one another; keeping them in the right order is up to
        the caller.

        Raises:
          StateError: nothing was saved, what was saved before is still there.
        """
        self._save(name, content, os.rename)

    def close(self) -> None:
        """Give the directory free for another daemon; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)

    def _refuse_others(self, name: str, status: os.stat_result, right: int) -> None:
        path = self.path / name
        if (command := files.remedy(path, status, right)) is not None:
            done = "read the secrets in it" if right == files.READ else "change it"
            raise StateError(f"{path}: others may {done}; forbid it by '{command}'")

    def _save(self, name: str, content: bytes, put: Callable[..., None]) -> None:
        with self._saving:
            self._restore()
            self._put(name, content, put)
            self._content[name] = content

    def _put(self, name: str, content: bytes, put: Callable[..., None]) -> None:
        try:
            _write(_NEW_FILE, content, self._fd)
            put(_NEW_FILE, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)  # the new name itself
        except OSError as error:
            raise StateError(
                f"{self.path / name}: cannot be saved: {error.strerror}; "
                f"{_remedy(error)} (what was saved before is still there)"
            ) from None
        finally:
            self._remove_new_file()

    def _restore(self) -> None:
        if not self.is_gone:
            return
        if not os.fstat(self._fd).st_nlink:
            self._open_anew()
        # What somebody has put there meanwhile, as from a backup, is not ours to undo.
        there = os.listdir(self._fd)
        for name, content in self._content.items():
            if name not in there:
                self._put(name, content, os.link)
        self._incomplete = False
        _log.warning("The state directory was removed: restored.")

    def _open_anew(self) -> None:
        try:
            fd = _open(self.path)
        except StartError as error:
            raise StateError(str(error)) from None
        try:
            _lock(fd, self.path)
        except StartError as error:
            os.close(fd)
            raise StateError(str(error)) from None
        gone, self._fd = self._fd, fd
        os.close(gone)

    def _remove_new_file(self) -> None:
        with suppress(OSError):
            os.unlink(_NEW_FILE, dir_fd=self._fd)


def _open(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartError(
            f"state directory {path} cannot be used: {error.strerror}; {_remedy(error)}"
        ) from None
    # Sticky or not: who may make files in there makes those that are not there yet.
    if (command := files.remedy(path, os.fstat(fd), files.WRITE)) is not None:
        os.close(fd)
        raise StartError(
            f"state directory {path} can be written by others, who could then add "
            f"peers; forbid it by '{command}' or choose another place by --state-dir"
        )
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = holders.of_lock(fd)
        by = f": {holder}" if holder else ""
        stop = f"stop it by '{holder.stop}'" if holder else "stop that one"
        raise StartError(
            f"state directory {path} is in use by another daemon{by}; "
            f"{stop} or choose another place by --state-dir"
        ) from None
    except OSError as error:  # some network file systems have no locks
        raise StartError(
            f"state directory {path} cannot be locked: {error.strerror}; "
            "choose one on a local disk by --state-dir"
        ) from None


def _write(name: str, content: bytes, dir_fd: int) -> None:
    """A new file with this content, on the disk when this returns."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(name, flags, 0o600, dir_fd=dir_fd), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, _OTHER_REMEDY)
