"""The Unix socket of the control server: whose it is, who may connect, what is left."""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
from collections.abc import (
    Iterator,
)
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import trio
from attrs import define, field
from trio import socket as trio_socket  # noqa: TID251 - a listener, not the data path

from alpha_trio.errors import StartError
from alpha_trio.settings import DEFAULT_SOCKET

LOCK_SECONDS = 5.0  # for another daemon that is just binding in the same directory


@define(eq=False)
class ControlSocket(trio.abc.Listener[trio.SocketStream]):
    """The listening socket together with its file, and its directory if we made it."""

    path: Path
    _listener: trio.SocketListener
    _identity: tuple[int, int]
    _remove_directory: bool  # we made it, or a killed daemon did
    _closed: bool = field(default=False, init=False)

    @classmethod
    async def open(cls, path: Path, group: str | None) -> Self:
        """Listen at ``path``.  A socket nobody listens at any more is replaced.

        Two daemons that start at once would both find it dead, and the second would
        unlink the first one's: so looking and binding happen under a lock.  The lock is
        on the directory, since a lock file would be one more thing to leave behind.

        Raise StartError if a daemon answers there, or the path cannot be used.
        """
        gid = _group_id(group)
        try:
            directory, made = await _lock_directory(path.parent, gid)
            try:
                _remove_dead_socket(path)
                sock = _bind(path, gid)
                identity = _identity(path)
            finally:
                os.close(directory)  # drops the lock
        except OSError as error:
            reason = error.strerror or error
            raise StartError(
                f"cannot open the control socket {path}: {reason}; "
                "choose another place with --socket"
            ) from error
        listener = trio.SocketListener(trio_socket.from_stdlib_socket(sock))
        return cls(path, listener, identity, made or _is_ours(path.parent))

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        # The file goes first: as long as we listen, no other daemon takes the path for
        # its own, so what we look at is what we remove.
        if not self._closed:
            self._closed = True
            self._remove_file()
        await self._listener.aclose()

    def _remove_file(self) -> None:
        with suppress(OSError):  # gone already: somebody tidied up before us
            if _identity(self.path) == self._identity:
                self.path.unlink()
            if self._remove_directory:
                _remove_directory(self.path.parent)


def cleanup(path: Path) -> list[str]:
    """Remove the socket a killed daemon has left; return a line for what was removed.

    Raise StartError if a daemon answers there.
    """
    left = path.exists()
    _remove_dead_socket(path)
    if _is_ours(path.parent):
        with suppress(OSError):  # not there, or not empty
            path.parent.rmdir()
    return [f"control socket {path}"] if left else []


def _is_ours(directory: Path) -> bool:
    # Any other may be somebody's home, and stays even when it is empty.
    return directory == DEFAULT_SOCKET.parent


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(
            f"the group {name!r} of the control socket does not exist: create it with "
            "'groupadd --system' or correct socket_group"
        ) from None


async def _lock_directory(path: Path, gid: int | None) -> tuple[int, bool]:
    """The open, locked directory, and whether we made it."""
    while True:
        made = _make_directory(path, gid)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await _lock(directory, path)
            if os.fstat(directory).st_nlink:
                return directory, made
        except BaseException:
            os.close(directory)
            raise
        os.close(directory)  # a closing daemon removed it before we had the lock


def _make_directory(path: Path, gid: int | None) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False  # not ours to change: it may be /tmp
    if gid is not None:
        os.chown(path, -1, gid)
        path.chmod(0o750)
    return True


async def _lock(directory: int, path: Path) -> None:
    with trio.move_on_after(LOCK_SECONDS):
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            # It is held for a few system calls only; not worth a thread.
            await trio.sleep(0.01)
    raise StartError(
        f"another program holds a lock on {path}: end it or choose another place for "
        "the control socket with --socket"
    )


def _remove_directory(path: Path) -> None:
    # Whoever holds the lock is about to bind in there: then it is theirs to remove.
    with _opened(path) as directory, suppress(OSError):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.rmdir()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            _unlink_socket(path)
            return
        except BlockingIOError:
            pass  # its queue of connections is full: it lives
    raise StartError(
        f"another daemon answers at {path}: stop it with "
        f"'alpha-trio --socket {path} stop' or choose another place with --socket"
    )


def _unlink_socket(path: Path) -> None:
    # Connecting to an ordinary file is refused as well.
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise StartError(
            f"{path} exists and is not a socket: remove it or choose another place "
            "with --socket"
        )
    path.unlink()


def _bind(path: Path, gid: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file takes its mode from the unbound socket, so that it is never open
        # wider, not even between bind and chmod; umask is not ours to change.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock
