"""A blocking client of the control socket."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from threading import Semaphore
from typing import Any, Self, Unpack, cast

from alpha_trio import wire
from alpha_trio.errors import TimedOut
from alpha_trio.rpc import asking
from alpha_trio.rpc.asking import Changes, Document, Event, Imported, PeerSettings


class Client:
    """Asks the daemon, and waits for its answer.

    Every method may raise, from ``alpha_trio.errors``:

    - NoDaemon: nobody answers at the socket, or the daemon ended meanwhile;
    - TimedOut: there was no answer in time;
    - WrongUsage: what was asked for can never be, such as a key of 31 bytes;
    - UnknownPeer: no peer has this name;
    - AlphaTrioError, of which all these are: everything else, such as no permission, or
      RemoteError for whatever the daemon could not do.

    The text is one line for a person, ``exit_code`` what ``alpha-trio`` ends with.
    A client may be used by several threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
          path: the control socket; by default that of ALPHA_TRIO_SOCKET, or
            DEFAULT_SOCKET.
          timeout: seconds that an answer may take, by default 10.
        """
        self._path = asking.socket_path(path)
        self._places = Semaphore(asking.AT_ONCE)
        self._timeout = timeout

    # -- peers

    def peers(self) -> list[Document]:
        """All peers and their settings, as ``peers list --json``."""
        return cast(list[Document], self.call("peers.list"))

    def peer(self, name: str) -> Document:
        """One of them.  Raise UnknownPeer."""
        return cast(Document, self.call("peers.show", {"name": name}))

    def add_peer(
        self, name: str, *, take_over: bool = False, **settings: Unpack[PeerSettings]
    ) -> bool:
        """Add a peer durably; return when its packets take the tunnel.

        False: it was there already, with the same settings.  ``take_over``: prefixes
        may be taken from the peers that have them.  Raise WrongUsage for settings that
        no peer can have, RemoteError if it is there with others.
        """
        args = asking.peer_args(name, settings, take_over)
        return bool(self.call("peers.add", args)["added"])

    def set_peer(
        self, name: str, *, take_over: bool = False, **settings: Unpack[PeerSettings]
    ) -> None:
        """Change these settings of a peer, and no others.  Raise UnknownPeer."""
        self.call("peers.set", asking.peer_args(name, settings, take_over))

    def import_peers(
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
        return cast(Imported, self.call("peers.import", args))

    def remove_peer(self, name: str) -> None:
        """Raise UnknownPeer."""
        self.call("peers.remove", {"name": name})

    # -- how it stands

    def status(self) -> Document:
        """The document of ``status --json``."""
        return cast(Document, self.call("status"))

    def doctor(self, name: str) -> list[Document]:
        """The way to a peer, step by step: ``ok``, ``what`` and ``remedy`` of each.

        Raise UnknownPeer.
        """
        return cast(list[Document], self.call("doctor", {"name": name})["steps"])

    def wait(self, name: str, timeout: float | None = None) -> Event:
        """Ask a peer for a session unless there is one, and wait until there is.

        ``timeout``: seconds; None: for ever.  Raise TimedOut, UnknownPeer.
        """
        events = self.events("wait", {"name": name}, timeout=timeout)
        try:
            return self._only(events)
        except TimedOut:
            raise asking.no_session(name, timeout or 0) from None

    def trace(self, name: str, seconds: float = 2) -> Document:
        """The document of ``trace --json``, of what is counted in so many seconds.

        0 compares all since the session began.  Raise UnknownPeer, and TimedOut if no
        node on the way has answered.
        """
        args = {"name": name, "seconds": seconds}
        return self._only(
            self.events("trace", args, timeout=seconds + self._answer_seconds)
        )

    def monitor(self) -> Iterator[Event]:
        """Events from now on, until the daemon ends: NoDaemon.

        Who reads too slowly loses some, and finds an event ``lost`` with their
        ``count`` in their place.  The connection is closed with the iterator.
        """
        return self.events("monitor")

    # -- the daemon itself

    def reload(self) -> Changes:
        """Apply what has changed in the configuration file.

        Raise RemoteError if it has a mistake; nothing was changed then.
        """
        return cast(Changes, self.call("reload"))

    def stop(self) -> None:
        """Stop the daemon and return when its process has ended; TimedOut after 10 s.

        Only then is the system as it was before: the daemon closes the connection
        first and its routes after.
        """
        with _Connection(self._path, self._answer_seconds) as connection:
            connection.stop()

    # -- any command

    def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        """The result of a command of docs/control.md; its events are skipped."""
        with self._places, _Connection(self._path, self._answer_seconds) as connection:
            for reply in connection.replies(command, args or {}):
                if reply.kind is wire.ReplyKind.RESULT:
                    return reply.value
        raise asking.ended(self._path)

    def events(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """The events of a command until its end; ``timeout`` seconds for each."""
        with _Connection(self._path, timeout) as connection:
            for reply in connection.replies(command, args or {}):
                if reply.kind is wire.ReplyKind.RESULT:
                    return
                yield reply.value
        raise asking.hung_up(self._path)

    @property
    def _answer_seconds(self) -> float:
        return self._timeout or asking.ANSWER_SECONDS

    def _only(self, events: Iterator[Event]) -> Event:
        """That of a stream of one."""
        # Not left to the garbage: the daemon waits for the peer while we are there.
        with closing(cast(Any, events)):
            for event in events:
                return event
        raise asking.ended(self._path)


class _Connection:
    """One connection to the daemon, for one request."""

    def __init__(self, path: str, timeout: float | None) -> None:
        """``timeout``: seconds that each reply may take; None: for ever."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout or asking.ANSWER_SECONDS)
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def replies(self, command: str, args: Mapping[str, Any]) -> Iterator[wire.Reply]:
        """Up to the result, or until the daemon hangs up."""
        request = asking.request(command, args)
        # A daemon that refuses to serve us hangs up, but has said why before.
        with suppress(EOFError):
            with suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(request)
            while True:
                header = self._receive_exactly(wire.HEADER.size)
                length = wire.body_length_untrusted(header, wire.MAX_REPLY)
                yield wire.decode_reply_untrusted(self._receive_exactly(length))

    def stop(self) -> None:
        process = asking.open_process(self._socket.getsockopt)
        poll = select.poll()
        if process is None:
            poll.register(self._socket, 0)  # hanging up is reported unasked
        else:
            poll.register(process, select.POLLIN)
        try:
            next(self.replies("stop", {}), None)
            has_ended = poll.poll(asking.STOP_SECONDS * 1000)
        finally:
            if process is not None:
                os.close(process)
        if not has_ended:
            raise asking.not_ended(self._path)

    def _connect(self) -> None:
        try:
            self._socket.connect(self._path)
        except asking.ABSENT:
            raise asking.absent(self._path) from None
        except PermissionError:
            if not self._connect_to_ask():
                raise asking.forbidden(self._path) from None
        except TimeoutError:
            raise asking.silent(self._path) from None
        except OSError as error:
            raise asking.unusable(self._path, error) from None

    def _connect_to_ask(self) -> bool:
        """Whether we are one of those who may at least ask."""
        path = wire.status_socket(self._path)
        with suppress(OSError):
            self._socket.connect(path)
            self._path = path
            return True
        return False

    def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self._receive_some(size - len(data))
        return bytes(data)

    def _receive_some(self, limit: int) -> bytes:
        try:
            if data := self._socket.recv(min(limit, 65536)):
                return data
        except TimeoutError:
            raise asking.silent(self._path) from None
        except ConnectionResetError:
            pass
        raise EOFError
