"""The control server: commands over a Unix socket, one task per client.

A client may be slow, broken or hostile, and may not hold up the daemon:

- its whole existence is one cancel scope.  Whatever goes wrong with it (it hangs up,
  stalls, is evicted) cancels that scope, and nothing is raised into the nursery;
- at most MAX_CLIENTS are served.  When all places are taken, the one that has kept us
  waiting for a request longest loses its place: idle connections cannot lock out the
  operator.  If none is idle the newcomer is refused;
- reading a request and writing a reply have deadlines, and lengths are checked before a
  byte of the body is read;
- events have none: whoever listens may stop reading for a while, as a pager does.  They
  wait in a bounded queue that counts its losses, so that costs little memory and holds
  up nobody, and it is noticed when the client leaves.

Who may connect is decided by the file system alone: the socket is 0600 in a directory
of 0700, or 0660 in 0750 for the group of the configuration.
"""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import socket
import stat
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import trio
from attrs import define, field
from trio import socket as trio_socket  # noqa: TID251 - a listener, not the data path

from alpha_trio import rpc
from alpha_trio.config import DEFAULT_SOCKET, Settings
from alpha_trio.errors import AlphaTrioError, StartError

MAX_CLIENTS = 64
READ_SECONDS = 10.0  # for a whole request, from the previous reply on
WRITE_SECONDS = 10.0  # for one result or error
LOCK_SECONDS = 5.0  # for another daemon that is just binding in the same directory
EVENT_QUEUE = 256  # events waiting for one subscriber

Event = Mapping[str, Any]
Command = Callable[[Mapping[str, Any]], Awaitable[Any] | AsyncGenerator[Event, None]]

log = logging.getLogger(__name__)


class ControlServer:
    """Serves ``commands``: name to a coroutine function (its value is the result) or
    an async generator function (its values are events, its end is the result).

    A coroutine runs to its end even if the client leaves, so that nothing is left half
    done; a generator is cancelled when the client leaves.
    """

    def __init__(self, settings: Settings, commands: Mapping[str, Command]) -> None:
        self._settings = settings
        self._commands = commands
        self._clients = 0
        self._idle: dict[_Client, None] = {}  # owe us a request; longest first

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open the socket, report started, serve until cancelled, remove the socket.

        Raise StartError if the socket cannot be had.
        """
        listener = await ControlSocket.open(
            self._settings.socket, self._settings.socket_group
        )
        async with listener:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            client = _Client(stream, scope)
            if not self._make_room():
                await client.send(_refusal(f"{MAX_CLIENTS} clients are served already"))
                return
            self._clients += 1
            try:
                while True:
                    await self._answer(client, await self._next_request(client))
            except rpc.BadFrame as error:
                # Where the next frame begins is anyone's guess now: answer, hang up.
                await client.send(_refusal(str(error)))
            finally:
                self._clients -= 1

    def _make_room(self) -> bool:
        if self._clients < MAX_CLIENTS:
            return True
        for client in self._idle:
            del self._idle[client]
            client.scope.cancel()
            return True
        return False

    async def _next_request(self, client: _Client) -> rpc.Request:
        self._idle[client] = None
        try:
            return await client.receive()
        finally:
            self._idle.pop(client, None)

    async def _answer(self, client: _Client, request: rpc.Request) -> None:
        command = self._commands.get(request.command)
        if command is None:
            known = ", ".join(sorted(self._commands))
            text = f"unknown command {request.command!r}: this daemon knows {known}"
            await client.send(_refusal(text))
            return
        answer = command(request.args)
        if isinstance(answer, AsyncGenerator):
            reply = await self._stream(client, answer)
        else:
            reply = await _reply(request.command, answer)
        await client.send(reply)

    async def _stream(
        self, client: _Client, events: AsyncGenerator[Event, None]
    ) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch)
            reply = await _reply("stream", _forward(client, events))
            nursery.cancel_scope.cancel()
        return reply


async def _forward(client: _Client, events: AsyncGenerator[Event, None]) -> None:
    async with aclosing(events):
        async for event in events:
            await client.send_patiently(rpc.encode_event(event))


async def _reply(command: str, answer: Awaitable[Any]) -> bytes:
    """What ``answer`` comes to, as a frame; a bug in a command must not end the tunnel.

    (Everything in here is our own doing: what a client does wrong cancels its scope.)
    """
    try:
        return rpc.encode_result(await answer)
    except AlphaTrioError as error:
        return rpc.encode_error(str(error), error.exit_code)
    except Exception:
        log.exception("The control command %s failed.", command)
        return _refusal("the daemon failed to carry this out: its log says why")


def _refusal(text: str) -> bytes:
    return rpc.encode_error(text, AlphaTrioError.exit_code)


@define(eq=False)
class _Client:
    """One connection; every failure of it cancels ``scope``."""

    stream: trio.SocketStream
    scope: trio.CancelScope

    async def hang_up(self) -> NoReturn:
        self.scope.cancel()
        await trio.sleep_forever()

    async def receive(self) -> rpc.Request:
        """The next request; raise BadFrame if there comes something else."""
        with trio.move_on_after(READ_SECONDS):
            header = await self._receive_exactly(rpc.HEADER.size)
            length = rpc.body_length_untrusted(header, rpc.MAX_REQUEST)
            return rpc.decode_request_untrusted(await self._receive_exactly(length))
        return await self.hang_up()

    async def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += await self._receive_some(size - len(data))
        return bytes(data)

    async def _receive_some(self, limit: int) -> bytes:
        with suppress(trio.BrokenResourceError):
            if data := await self.stream.receive_some(limit):
                return bytes(data)
        return await self.hang_up()

    async def send(self, frame: bytes) -> None:
        with trio.move_on_after(WRITE_SECONDS):
            await self.send_patiently(frame)
            return
        await self.hang_up()

    async def send_patiently(self, frame: bytes) -> None:
        """Wait until the client has taken it; with ``watch`` beside, or a deadline."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(frame)
            return
        await self.hang_up()

    async def watch(self) -> None:
        """End the client when it leaves, or says anything, while a stream runs."""
        await self._receive_some(1)
        await self.hang_up()


class EventHub:
    """Hands each event to all subscribers; a slow one loses events, and is told."""

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()

    def publish(self, event: Event) -> None:
        """Queue ``event`` (with at least event, peer and time); never blocks."""
        for subscriber in self._subscribers:
            subscriber.offer(event)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """All events from here on.  In the place of those that found none comes one
        event ``lost`` with their ``count``."""
        send, receive = trio.open_memory_channel[Event](EVENT_QUEUE + 1)
        subscriber = _Subscriber(send)
        self._subscribers.add(subscriber)
        try:
            with send, receive:
                yield receive
        finally:
            self._subscribers.remove(subscriber)


@define(eq=False)
class _Subscriber:
    queue: trio.MemorySendChannel[Event]
    _lost: dict[str, Any] | None = None  # the event that is last in the queue, if any

    def offer(self, event: Event) -> None:
        """Queue it, or count it; the queue's last place is for telling of the loss."""
        if self.queue.statistics().current_buffer_used < EVENT_QUEUE:
            self._lost = None  # on its way now
            self.queue.send_nowait(event)
        elif self._lost is None:
            self._lost = {
                "event": "lost",
                "peer": None,
                "time": event["time"],
                "count": 1,
            }
            self.queue.send_nowait(self._lost)
        else:
            self._lost["count"] += 1


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
