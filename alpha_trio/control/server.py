"""The control server: commands over a Unix socket, one task per client.

A client may be slow, broken or hostile, and may not hold up the daemon:

- its whole existence is one cancel scope.  Whatever goes wrong with it (it hangs up,
  stalls, is evicted) cancels that scope, and nothing is raised into the nursery;
- at most MAX_CLIENTS are served, and fewer where there are not so many descriptors:
  what routes packets needs some, too.  When all places are taken, the one that has kept
  us waiting for a request longest loses its place: idle connections cannot lock out the
  operator.  If none is idle the newcomer is refused;
- where others have taken all descriptors two in reserve let one client in, who is to be
  told what is wrong;
- reading a request and writing a reply have deadlines, and lengths are checked before a
  byte of the body is read;
- events have none: whoever listens may stop reading for a while, as a pager does.  They
  wait in a bounded queue that counts its losses, so that costs little memory and holds
  up nobody, and it is noticed when the client leaves.

Who may connect is decided by the file system alone: the socket is 0600 in a directory
of 0700, or 0660 in 0750 for the group of the configuration.  Another group may have a
socket of its own, by which it can ask and change nothing; its clients take no places of
those who can.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import trio
from attrs import define

from alpha_trio import wire
from alpha_trio.control.listener import (
    Access,
    ControlSocket,
    remove_leftover,
    who_is_behind,
)
from alpha_trio.errors import AlphaTrioError, refusal
from alpha_trio.journal import Event, Journal
from alpha_trio.net.host import Reserve, spare_descriptors
from alpha_trio.net.removals import Removals
from alpha_trio.settings import Settings
from alpha_trio.supervision import insist

MAX_CLIENTS = 64
MAX_ASKING = 16  # of those who can only ask
LEAST_CLIENTS = 2
OTHERS_DESCRIPTORS = 32
"""Left for what else is opened while we run: to route and save, to ask for names."""

READ_SECONDS = 10.0  # for a whole request, from the previous reply on
WRITE_SECONDS = 10.0  # for one result or error

_PIECE = 64 * 1024  # bytes of a request that are received at once

_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})

Command = Callable[[Mapping[str, Any]], Awaitable[Any] | AsyncGenerator[Event, None]]

log = logging.getLogger(__name__)

asker: ContextVar[Callable[[], str]] = ContextVar("asker")
"""Tells who gave the command that is carried out: a program, its process and user.

To find out takes three files of /proc, and hardly any command wants to know.
"""


class ControlServer:
    """Serves ``commands``: name to a coroutine function (its value is the result) or
    an async generator function (its values are events, its end is the result).

    A coroutine runs to its end even if the client leaves, so that nothing is left half
    done; a generator is cancelled when the client leaves.

    ``questions`` are those served to the group that may only ask, if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        commands: Mapping[str, Command],
        journal: Journal,
        questions: Mapping[str, Command] | None = None,
    ) -> None:
        self._journal = journal
        self._unused: list[Path] = []  # where an earlier daemon may have left something
        self._doors = [
            _Door(
                Access.to_all(settings),
                commands,
                journal,
                MAX_CLIENTS,
                OTHERS_DESCRIPTORS,
                wire.MAX_REQUEST,
            )
        ]
        if settings.status_group is None:
            self._unused = [settings.status_socket]
        else:
            self._doors.append(
                _Door(
                    Access.to_status(settings),
                    questions or {},
                    journal,
                    MAX_ASKING,
                    OTHERS_DESCRIPTORS + MAX_CLIENTS,
                    wire.MAX_QUESTION,
                )
            )

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open the sockets, report started, serve until cancelled, remove the sockets.

        Raise StartError if a socket cannot be had.
        """
        async with AsyncExitStack() as sockets:
            # In this order, since the directory goes with the first, which closes last.
            listeners = [
                await sockets.enter_async_context(await ControlSocket.open(door.access))
                for door in self._doors
            ]
            for path in self._unused:
                remove_leftover(path)
            async with trio.open_nursery() as nursery, sockets.pop_all():
                for door, listener in zip(self._doors, listeners, strict=True):
                    await nursery.start(door.serve, listener, nursery)
                task_status.started()
                await self._keep(listeners)

    async def _keep(self, listeners: Sequence[ControlSocket]) -> NoReturn:
        """Put back sockets that others remove: nobody could command us any more."""
        directory = listeners[0].path.parent
        while True:
            for listener in listeners:
                if not listener.is_there:
                    await insist(
                        listener.restore,
                        self._journal,
                        f"control socket {listener.path}",
                        f"the control socket {listener.path} was removed",
                    )

            async def wait() -> None:
                with Removals(directory) as removals:
                    if all(listener.is_there for listener in listeners):
                        await removals.wait()

            await insist(
                wait,
                self._journal,
                "watching the control socket",
                "a control socket that is removed stays away",
            )


class _Door:
    """One socket: who comes in by it, what is answered there.

    Args:
      most: clients that are served at once, if there are descriptors for them.
      spared: descriptors that are left for others.
      longest: bytes of a request.
    """

    def __init__(
        self,
        access: Access,
        commands: Mapping[str, Command],
        journal: Journal,
        most: int,
        spared: int,
        longest: int,
    ) -> None:
        self.access = access
        self._commands = commands
        self._journal = journal
        self._reserve = Reserve()
        self._places = most
        self._spared = spared
        self._longest = longest
        self._clients = 0
        self._idle: dict[_Client, None] = {}  # owe us a request; longest first

    async def serve(
        self,
        listener: ControlSocket,
        nursery: trio.Nursery,
        *,
        task_status: trio.TaskStatus[None],
    ) -> NoReturn:
        with self._reserve:
            spare = spare_descriptors() - self._spared
            self._places = max(LEAST_CLIENTS, min(self._places, spare))
            task_status.started()
            await self._take_clients(listener, nursery)

    async def _take_clients(
        self, listener: ControlSocket, nursery: trio.Nursery
    ) -> NoReturn:
        accept = partial(self._accept, listener)
        while True:
            stream = await insist(
                accept, self._journal, "control socket", "commands have to wait"
            )
            nursery.start_soon(self._attend, stream)

    async def _accept(self, listener: ControlSocket) -> trio.SocketStream:
        """The next client, even when the host has no descriptor for it.

        Raises OSError if nothing could be done; then the client waits.
        """
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            late = f"commands may fail, and routes be late: {refusal(error)}"
            self._journal.trouble("descriptors", late)
            self._evict()
            self._reserve.give()
        return await listener.accept()

    async def _attend(self, stream: trio.SocketStream) -> None:
        try:
            await self._serve(stream)
        finally:
            await trio.aclose_forcefully(stream)
            if self._reserve.fill():
                self._journal.recovered("descriptors")

    async def _serve(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            client = _Client(stream, scope, self._longest)
            if not self._make_room():
                await client.send(
                    _refusal(f"{self._places} clients are served already")
                )
                return
            self._clients += 1
            asker.set(partial(who_is_behind, stream.socket))
            try:
                while True:
                    await self._answer(client, await self._next_request(client))
            except wire.BadFrame as error:
                # Where the next frame begins is anyone's guess now: answer, hang up.
                await client.send(_refusal(str(error)))
            finally:
                self._clients -= 1

    def _make_room(self) -> bool:
        return self._clients < self._places or self._evict()

    def _evict(self) -> bool:
        """Take the place of the client that has been idle longest, if one is."""
        for client in self._idle:
            del self._idle[client]
            client.scope.cancel()
            return True
        return False

    async def _next_request(self, client: _Client) -> wire.Request:
        self._idle[client] = None
        try:
            return await client.receive()
        finally:
            self._idle.pop(client, None)

    async def _answer(self, client: _Client, request: wire.Request) -> None:
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
            await client.send_patiently(wire.encode_event(event))


async def _reply(command: str, answer: Awaitable[Any]) -> bytes:
    """What ``answer`` comes to, as a frame; a bug in a command must not end the tunnel.

    (Everything in here is our own doing: what a client does wrong cancels its scope.)
    """
    try:
        return wire.encode_result(await answer)
    except AlphaTrioError as error:
        return wire.encode_error(str(error), error.exit_code)
    except Exception as error:
        if (reason := refusal(error)) is not None:
            return _refusal(f"the host refuses what this needs: {reason}")
        log.exception("The control command %s failed.", command)
        return _refusal("the daemon failed to carry this out: its log says why")


def _refusal(text: str) -> bytes:
    return wire.encode_error(text, AlphaTrioError.exit_code)


@define(eq=False)
class _Client:
    """One connection; every failure of it cancels ``scope``."""

    stream: trio.SocketStream
    scope: trio.CancelScope
    longest: int  # bytes of a request

    async def hang_up(self) -> NoReturn:
        self.scope.cancel()
        await trio.sleep_forever()

    async def receive(self) -> wire.Request:
        """The next request; raise BadFrame if there comes something else."""
        with trio.move_on_after(READ_SECONDS):
            header = await self._receive_exactly(wire.HEADER.size)
            length = wire.body_length_untrusted(header, self.longest)
            return wire.decode_request_untrusted(await self._receive_exactly(length))
        return await self.hang_up()

    async def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += await self._receive_some(min(size - len(data), _PIECE))
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
