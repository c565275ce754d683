"""A client of the control socket for programs on Trio."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    suppress,
)
from typing import Any, Unpack, cast

import trio

from alpha_trio import wire
from alpha_trio.rpc import asking
from alpha_trio.rpc.asking import Changes, Document, Event, Imported, PeerSettings


class TrioClient:
    """Asks the daemon; methods, values and errors are those of ``Client``.

    But nothing ends by time: that is for the caller's ``trio.fail_after``.  Any number
    of tasks may use one client; eight calls are under way at a time.

    Cancelling a call closes the connection of that call and nothing else, and the
    client can be used on.  What the daemon has begun to change by then (``add_peer``,
    ``set_peer``, ``remove_peer``, ``reload``, ``stop``) it carries out all the same;
    ``wait`` and ``trace`` it gives up.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Nothing is connected yet.

        ``path``: the control socket; by default that of ALPHA_TRIO_SOCKET, or
        DEFAULT_SOCKET.
        """
        self._path = asking.socket_path(path)
        self._places = trio.CapacityLimiter(asking.AT_ONCE)

    # -- peers

    async def peers(self) -> list[Document]:
        """All peers and their settings, as ``peers list --json``."""
        return cast(list[Document], await self.call("peers.list"))

    async def peer(self, name: str) -> Document:
        """One of them.  Raise UnknownPeer."""
        return cast(Document, await self.call("peers.show", {"name": name}))

    async def add_peer(
        self, name: str, *, take_over: bool = False, **settings: Unpack[PeerSettings]
    ) -> bool:
        """Add a peer durably; False: it was there already, with the same settings.

        ``take_over``: prefixes may be taken from the peers that have them.  Raise
        WrongUsage for settings that no peer can have, RemoteError if it is there with
        others.
        """
        args = asking.peer_args(name, settings, take_over)
        return bool((await self.call("peers.add", args))["added"])

    async def set_peer(
        self, name: str, *, take_over: bool = False, **settings: Unpack[PeerSettings]
    ) -> None:
        """Change these settings of a peer, and no others.  Raise UnknownPeer."""
        await self.call("peers.set", asking.peer_args(name, settings, take_over))

    async def import_peers(
        self,
        peers: Mapping[str, PeerSettings],
        *,
        take_over: bool = False,
        replace: bool = False,
    ) -> Imported:
        """Add many peers, by name their settings: all of them, or none.

        ``take_over``: prefixes may be taken from the peers that have them.
        ``replace``: peers that are there with other settings get these.  Raise
        WrongUsage for settings that no peer can have, RemoteError if some are there
        with others.
        """
        args = {"peers": peers, "take_over": take_over, "replace": replace}
        return cast(Imported, await self.call("peers.import", args))

    async def remove_peer(self, name: str) -> None:
        """Raise UnknownPeer."""
        await self.call("peers.remove", {"name": name})

    # -- how it stands

    async def status(self) -> Document:
        """The document of ``status --json``."""
        return cast(Document, await self.call("status"))

    async def doctor(self, name: str) -> list[Document]:
        """The way to a peer, step by step: ``ok``, ``what`` and ``remedy`` of each.

        Raise UnknownPeer.
        """
        found = await self.call("doctor", {"name": name})
        return cast(list[Document], found["steps"])

    async def wait(self, name: str) -> Event:
        """Ask a peer for a session unless there is one, and wait until there is.

        Raise UnknownPeer.
        """
        return await self._only_event("wait", {"name": name})

    async def trace(self, name: str, seconds: float = 2) -> Document:
        """The document of ``trace --json``, of what is counted in so many seconds.

        0 compares all since the session began.  Raise UnknownPeer, and TimedOut if no
        node on the way has answered.
        """
        return await self._only_event("trace", {"name": name, "seconds": seconds})

    def monitor(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Events from here on, until the block is left::

            async with client.monitor() as events:
                async for event in events:
                    print(event["event"], event["peer"])

        The loop raises NoDaemon when the daemon ends.  Who reads too slowly loses some,
        and finds an event ``lost`` with their ``count`` in their place.
        """
        return self.events("monitor")

    # -- the daemon itself

    async def reload(self) -> Changes:
        """Apply what has changed in the configuration file.

        Raise RemoteError if it has a mistake; nothing was changed then.
        """
        return cast(Changes, await self.call("reload"))

    async def stop(self) -> None:
        """Stop the daemon and return when its process has ended."""
        async with self._asking("stop", {}) as (stream, replies):
            process = asking.open_process(stream.socket.getsockopt)
            try:
                async for _ in replies:
                    pass  # the last is that the daemon hangs up
                if process is not None:
                    await trio.lowlevel.wait_readable(process)
            finally:
                if process is not None:
                    os.close(process)

    # -- any command

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        """The result of a command of docs/control.md; its events are skipped."""
        async with (
            self._places,
            self._asking(command, args or {}) as (_, replies),
        ):
            async for reply in replies:
                if reply.kind is wire.ReplyKind.RESULT:
                    return reply.value
        raise asking.ended(self._path)

    @asynccontextmanager
    async def events(
        self, command: str, args: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of a command until its end, or until the block is left.

        The daemon has been asked when the block begins.
        """
        async with (
            self._asking(command, args or {}) as (_, replies),
            aclosing(self._events(replies)) as events,
        ):
            yield events

    async def _events(
        self, replies: AsyncIterator[wire.Reply]
    ) -> AsyncGenerator[Event, None]:
        async for reply in replies:
            if reply.kind is wire.ReplyKind.RESULT:
                return
            yield reply.value
        raise asking.hung_up(self._path)

    async def _only_event(self, command: str, args: Mapping[str, Any]) -> Event:
        async with self.events(command, args) as events:
            async for event in events:
                return event
        raise asking.ended(self._path)

    @asynccontextmanager
    async def _asking(
        self, command: str, args: Mapping[str, Any]
    ) -> AsyncIterator[tuple[trio.SocketStream, AsyncIterator[wire.Reply]]]:
        """A connection on which a command was asked for, and its replies."""
        request = asking.request(command, args)
        async with await self._connect() as stream, aclosing(_replies(stream)) as told:
            # A daemon that refuses to serve us hangs up, but has said why before.
            with suppress(trio.BrokenResourceError):
                await stream.send_all(request)
            yield stream, told

    async def _connect(self) -> trio.SocketStream:
        try:
            return await trio.open_unix_socket(self._path)
        except asking.ABSENT:
            raise asking.absent(self._path) from None
        except PermissionError:
            try:  # perhaps we are one of those who may at least ask
                return await trio.open_unix_socket(wire.status_socket(self._path))
            except OSError:
                raise asking.forbidden(self._path) from None
        except OSError as error:
            raise asking.unusable(self._path, error) from None


async def _replies(stream: trio.SocketStream) -> AsyncGenerator[wire.Reply, None]:
    """Until the daemon hangs up."""
    while header := await _receive_exactly(stream, wire.HEADER.size):
        length = wire.body_length_untrusted(header, wire.MAX_REPLY)
        if not (body := await _receive_exactly(stream, length)):
            return
        yield wire.decode_reply_untrusted(body)


async def _receive_exactly(stream: trio.SocketStream, size: int) -> bytes:
    """So many bytes, or none if the daemon hangs up before."""
    data = bytearray()
    while len(data) < size:
        try:
            some = await stream.receive_some(min(size - len(data), 65536))
        except trio.BrokenResourceError:
            some = b""
        if not some:
            return b""
        data += some
    return bytes(data)
