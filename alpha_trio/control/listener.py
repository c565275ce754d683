"""The Unix socket of the control server: whose it is, who may connect, what is left."""

from __future__ import annotations

import fcntl
import grp
import logging
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
from attrs import define, field, frozen
from trio import socket as trio_socket  # noqa: TID251 - a listener, not the data path

from alpha_trio import holders
from alpha_trio.errors import StartError
from alpha_trio.settings import DEFAULT_SOCKET, Settings

_log = logging.getLogger("alpha_trio")

LOCK_SECONDS = 5.0  # for another daemon that is just binding in the same directory


@frozen
class Access:
    """Where a socket is, and who may connect to it beside root."""

    path: Path
    group: str | None
    setting: str  # where the group comes from
    directory_mode: int | None  # None: the directory is the other socket's business
    state_dir: Path  # ours alone, and so locked already

    @classmethod
    def to_all(cls, settings: Settings) -> Self:
        """The control socket, by which everything can be done."""
        mode = 0o700 if settings.socket_group is None else 0o750
        if settings.status_group is not None:
            # A directory has one group: the other one passes as everybody does, and
            # what they find in there has modes of its own.
            mode |= 0o011
        return cls(
            settings.socket,
            settings.socket_group,
            "socket_group",
            mode,
            settings.state_dir,
        )

    @classmethod
    def to_status(cls, settings: Settings) -> Self:
        """The socket beside it, by which can only be asked."""
        return cls(
            settings.status_socket,
            settings.status_group,
            "status_group",
            None,
            settings.state_dir,
        )


@define(eq=False)
class ControlSocket(trio.abc.Listener[trio.SocketStream]):
    """The listening socket together with its file, and its directory if we made it."""

    _access: Access
    _listener: trio.SocketListener
    _identity: tuple[int, int]
    _remove_directory: bool  # we made it, or a killed daemon did
    _closed: bool = field(default=False, init=False)

    @classmethod
    async def open(cls, access: Access) -> Self:
        """Listen at its path.  A socket nobody listens at any more is replaced.

        Two daemons that start at once would both find it dead, and the second would
        unlink the first one's: so looking and binding happen under a lock.  The lock is
        on the directory, since a lock file would be one more thing to leave behind.

        Raise StartError if a daemon answers there, or the path cannot be used.
        """
        path, gid = access.path, _group_id(access)
        try:
            directory, made = await _lock_directory(path.parent, access, gid)
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
        return cls(access, listener, identity, made or _is_ours(path.parent))

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._access.path

    @property
    def is_there(self) -> bool:
        """Whether its file still is, so that somebody can connect."""
        try:
            return _identity(self.path) == self._identity
        except OSError:
            return False

    async def restore(self) -> None:
        """Listen at its path anew, in place of a file that others have removed.

        Raise StartError as ``open`` does; then it stays as it was.
        """
        fresh = await ControlSocket.open(self._access)
        before, self._listener = self._listener, fresh._listener
        self._identity = fresh._identity
        self._remove_directory |= fresh._remove_directory
        await before.aclose()
        _log.warning("Others removed what is ours: put back %s.", self.path)

    async def accept(self) -> trio.SocketStream:
        while True:
            listener = self._listener
            try:
                return await listener.accept()
            except trio.ClosedResourceError:
                if listener is self._listener:
                    raise  # and not only restored

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


def cleanup(settings: Settings) -> list[str]:
    """Remove the sockets a killed daemon has left; return a line for each removed.

    Raise StartError if a daemon answers there.
    """
    paths = settings.socket, settings.status_socket
    left = [path for path in paths if path.exists()]
    _remove_dead_socket(settings.socket)
    remove_leftover(settings.status_socket)
    directory = settings.socket.parent
    if _is_ours(directory):
        with suppress(OSError):  # not there, or not empty
            directory.rmdir()
    return [f"control socket {path}" for path in left if not path.exists()]


def remove_leftover(path: Path) -> None:
    """Remove the socket of a killed daemon at a path that we do not need ourselves."""
    with suppress(StartError, OSError):  # it is somebody else's, or not there
        _remove_dead_socket(path)


def who_is_behind(sock: holders.Connected) -> str:
    """Name the program at the other end of a connection, its process and its user."""
    pid, uid = holders.behind(sock)
    holder = holders.Holder.of(pid)
    # None: of another container, or it is gone.
    name = "a program" if holder is None else holder.shown
    return f"{name} (process {pid}, user {uid})"


def _is_ours(directory: Path) -> bool:
    # Any other may be somebody's home, and stays even when it is empty.
    return directory == DEFAULT_SOCKET.parent


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _group_id(access: Access) -> int | None:
    if access.group is None:
        return None
    try:
        return grp.getgrnam(access.group).gr_gid
    except KeyError:
        raise StartError(
            f"the group {access.group!r} of the control socket does not exist: create "
            f"it with 'groupadd --system' or correct {access.setting}"
        ) from None


async def _lock_directory(
    path: Path, access: Access, gid: int | None
) -> tuple[int, bool]:
    """The open, locked directory, and whether we made it."""
    while True:
        made = _make_directory(path, access.directory_mode, gid)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _is_same(directory, access.state_dir):
                await _lock(directory, path)
            if os.fstat(directory).st_nlink:
                return directory, made
        except BaseException:
            os.close(directory)
            raise
        os.close(directory)  # a closing daemon removed it before we had the lock


def _make_directory(path: Path, mode: int | None, gid: int | None) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = True
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        made = False
    # Any other that was there is not ours to change: it may be /tmp.
    if (made or _is_ours(path)) and mode not in (None, 0o700):
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
    return made


def _is_same(directory: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(directory), path.stat())
    except OSError:
        return False


async def _lock(directory: int, path: Path) -> None:
    with trio.move_on_after(LOCK_SECONDS):
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            # It is held for a few system calls only; not worth a thread.
            await trio.sleep(0.01)
    holder = holders.of_lock(directory)
    stop = f"stop it by '{holder.stop}'" if holder else "end it"
    raise StartError(
        f"{holder or 'another program'} holds a lock on {path}: {stop} or choose "
        "another place for the control socket with --socket"
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
        holder = holders.of_listener(probe)
    stop = f"alpha-trio --socket {path} stop"
    if holder is not None and holder.unit:
        stop = holder.stop
    raise StartError(
        f"another daemon answers at {path}: stop it with '{stop}' or choose another "
        "place with --socket"
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
