"""A blocking client of the control socket."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

from alpha_trio import rpc
from alpha_trio.errors import AlphaTrioError, NoDaemon, TimedOut, WrongUsage

ANSWER_SECONDS = 10.0
STOP_SECONDS = 10.0  # the daemon promises 5

# struct ucred: process, user and group id of the other side.
CREDENTIALS = struct.Struct("iii")


class Client:
    """One connection to the daemon.  Errors are AlphaTrioError and its kin, one line:
    NoDaemon if nobody answers, TimedOut, or RemoteError with what the daemon said."""

    def __init__(self, path: str, patience: float | None = None) -> None:
        """``patience``: seconds that each answer may take."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience or ANSWER_SECONDS)
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        """The result of a command; its events, if any, are skipped."""
        try:
            for reply in self._replies(command, args or {}):
                if reply.kind is rpc.ReplyKind.RESULT:
                    return reply.value
        except EOFError:
            raise NoDaemon(
                f"the daemon at {self._path} ended before it answered: see its log"
            ) from None
        raise AssertionError("replies end with a result or an exception")

    def events(
        self,
        command: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The events of a command until its end; ``timeout`` seconds for each."""
        self._socket.settimeout(timeout)
        try:
            for reply in self._replies(command, args or {}):
                if reply.kind is rpc.ReplyKind.RESULT:
                    return
                yield reply.value
        except EOFError:
            raise NoDaemon(
                f"the daemon at {self._path} has closed the connection: either it was "
                "stopped, or its log says more"
            ) from None

    def stop(self) -> None:
        """Stop the daemon and return when its process has ended.

        Only then is the system as it was before: the daemon closes this connection
        first and its routes after.
        """
        process = self._open_process()
        poll = select.poll()
        if process is None:
            poll.register(self._socket, 0)  # hanging up is reported unasked
        else:
            poll.register(process, select.POLLIN)
        try:
            next(self.events("stop", timeout=ANSWER_SECONDS), None)
            ended = poll.poll(STOP_SECONDS * 1000)
        finally:
            if process is not None:
                os.close(process)
        if not ended:
            raise TimedOut(
                f"the daemon at {self._path} was told to stop but still runs after "
                f"{STOP_SECONDS:g} s: see its log"
            )

    def _open_process(self) -> int | None:
        """A descriptor that becomes readable when the daemon has ended."""
        credentials = self._socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size
        )
        process, _, _ = CREDENTIALS.unpack(credentials)
        try:
            return os.pidfd_open(process)
        except OSError:  # it lives in a process namespace we cannot see into
            return None

    def _connect(self) -> None:
        try:
            self._socket.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NoDaemon(
                f"no daemon answers at {self._path}: start it with 'alpha-trio run', "
                "or name its socket with --socket"
            ) from None
        except PermissionError:
            if not self._connect_to_ask():
                raise AlphaTrioError(
                    f"no permission to use {self._path}: run this as root, or as a "
                    "member of the group that socket_group in the daemon's "
                    "configuration names, or, only to ask, status_group"
                ) from None
        except TimeoutError:
            raise self._no_answer() from None
        except OSError as error:
            reason = error.strerror or error
            raise AlphaTrioError(
                f"cannot use the socket {self._path}: {reason}; name the daemon's "
                "socket with --socket"
            ) from None

    def _connect_to_ask(self) -> bool:
        """Whether we are one of those who may at least ask."""
        path = rpc.status_socket(self._path)
        with suppress(OSError):
            self._socket.connect(path)
            self._path = path
            return True
        return False

    def _replies(self, command: str, args: Mapping[str, Any]) -> Iterator[rpc.Reply]:
        """Up to the result.  Raises EOFError if the daemon hangs up before."""
        try:
            request = rpc.encode_request(command, args)
        except rpc.BadFrame as error:
            raise WrongUsage(f"{command} cannot be asked for: {error}") from None
        # A daemon that refuses to serve us hangs up, but has said why before.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request)
        while True:
            header = self._receive_exactly(rpc.HEADER.size)
            length = rpc.body_length_untrusted(header, rpc.MAX_REPLY)
            reply = rpc.decode_reply_untrusted(self._receive_exactly(length))
            yield reply
            if reply.kind is rpc.ReplyKind.RESULT:
                return

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
            raise self._no_answer() from None
        except ConnectionResetError:
            pass
        raise EOFError

    def _no_answer(self) -> TimedOut:
        return TimedOut(f"the daemon at {self._path} did not answer in time: try again")
