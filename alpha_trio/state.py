"""Peers added at run time, kept so that neither a crash nor a full disk loses them.

They live apart from the config file: that one belongs to the user's editor, this one
to the daemon.  Saving writes a new file beside the old one and renames it, so that at
every moment one complete file is there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alpha_trio.config import PeerSettings, check_peers, parse_peer, peer_values
from alpha_trio.errors import ConfigError, StartError, StateError
from alpha_trio.values import shown

SCHEMA = 1
_FILE = "peers.json"
_NEW_FILE = f".{_FILE}.new"

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space or raise the quota there",
    errno.EROFS: "mount it writable or choose another place by --state-dir",
    errno.EACCES: "give the daemon the right to write there",
    errno.EPERM: "give the daemon the right to write there",
}
_OTHER_REMEDY = "mend that or choose another place by --state-dir"


class PeerStore:
    """The peers of one daemon in its state directory.

    The directory is locked as long as the store is open: a second daemon would
    overwrite what this one saved.  The kernel drops the lock of a dead process.

    Args:
      state_dir: created with mode 0700 if absent; the modes of an existing directory
        are left alone.

    Raises:
      StartError: the directory cannot be used, or another daemon uses it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE
        self._saving = threading.Lock()  # two savers would share one temporary file
        self._readable = False  # a file that was never understood is never replaced
        self._dir_fd = _open_directory(state_dir)
        try:
            _lock(self._dir_fd, state_dir)
        except BaseException:
            self.close()
            raise
        # What a daemon killed while saving left behind; only ours, thanks to the lock.
        with suppress(OSError):
            os.unlink(_NEW_FILE, dir_fd=self._dir_fd)

    def load(self) -> list[PeerSettings]:
        """The saved peers; none if nothing was saved yet.

        Raises:
          StateError: the file cannot be read or understood.  It stays as it is.
        """
        try:
            with open(os.open(_FILE, os.O_RDONLY, dir_fd=self._dir_fd), "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            peers = []
        except OSError as error:
            raise StateError(
                f"{self._path}: cannot be read: {error.strerror}; {_remedy(error)}"
            ) from None
        else:
            peers = self._parse(raw)
        self._readable = True
        return peers

    def save(self, peers: Iterable[PeerSettings]) -> None:
        """Replace the saved peers; on return they survive a loss of power.

        Takes some milliseconds, for the disk: call it in a worker thread.  Calls from
        several threads follow one another; keeping them in the right order is up to
        the caller.

        Raises:
          StateError: nothing was saved, what was saved before is still there.
        """
        document = {"schema": SCHEMA, "peers": [_entry(peer) for peer in peers]}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        with self._saving:
            if not self._readable:
                self.load()
            try:
                self._replace(text.encode())
            except OSError as error:
                raise StateError(
                    f"{self._path}: peers cannot be saved: {error.strerror}; "
                    f"{_remedy(error)} (what was saved before is still there)"
                ) from None

    def close(self) -> None:
        """Give the directory free for another daemon; may be called twice."""
        fd, self._dir_fd = self._dir_fd, -1
        if fd != -1:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _replace(self, content: bytes) -> None:
        try:
            _write(_NEW_FILE, content, self._dir_fd)
            os.rename(
                _NEW_FILE, _FILE, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd
            )
        except BaseException:
            with suppress(OSError):
                os.unlink(_NEW_FILE, dir_fd=self._dir_fd)
            raise
        os.fsync(self._dir_fd)  # the rename itself

    def _parse(self, raw: bytes) -> list[PeerSettings]:
        """Peers from the file's content.

        Unknown keys are refused rather than carried along: they can only be typing
        errors, since a version that adds a key also raises the schema, and dropping
        one silently could drop what protects a peer.
        """
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from None
        if not isinstance(document, dict):
            raise self._damaged("it holds no JSON object")
        self._check_schema(document.get("schema"))
        entries = document.get("peers")
        if not isinstance(entries, list):
            raise self._damaged("it has no list of peers")
        peers = [self._parse_entry(*entry) for entry in enumerate(entries, 1)]
        try:
            check_peers(peers)
        except ConfigError as error:
            raise self._damaged(str(error)) from None
        return peers

    def _check_schema(self, schema: object) -> None:
        if not isinstance(schema, int) or schema < 1:
            raise self._damaged("it has no schema number")
        if schema > SCHEMA:
            raise StateError(
                f"{self._path}: has schema {shown(schema)}, this version knows "
                f"{SCHEMA}: a newer one wrote it; install that or move the file away"
            )

    def _parse_entry(self, number: int, entry: object) -> PeerSettings:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise self._damaged(f"peer {number} of the list has no name")
        values = {key: value for key, value in entry.items() if key != "name"}
        try:
            return parse_peer(entry["name"], values, f"peer {number} of the list")
        except ConfigError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, what: str) -> StateError:
        return StateError(
            f"{self._path}: damaged: {what}; mend the file, or move it away to start "
            "without the peers in it"
        )


def _entry(peer: PeerSettings) -> dict[str, Any]:
    return {"name": peer.name, **peer_values(peer)}


def _open_directory(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartError(
            f"state directory {path} cannot be used: {error.strerror}; {_remedy(error)}"
        ) from None
    if os.fstat(fd).st_mode & stat.S_IWOTH:
        os.close(fd)
        raise StartError(
            f"state directory {path} can be written by everybody, who could then add "
            "peers; remove that right or choose another place by --state-dir"
        )
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(
            f"state directory {path} is in use by another daemon; "
            "stop that one or choose another place by --state-dir"
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
