"""What is sent to the daemon, and what can go wrong, for either client."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from alpha_trio import wire
from alpha_trio.errors import AlphaTrioError, NoDaemon, TimedOut, WrongUsage

AT_ONCE = 8
"""Calls of one client that are under way at a time; the others wait for their turn.

The daemon has 64 places for all its clients, 16 for those who only ask, and lets go of
one that has not come to its question when another wants its place.
"""

ANSWER_SECONDS = 10.0
STOP_SECONDS = 10.0  # the daemon promises 5

# struct ucred: process, user and group id of the other side.
CREDENTIALS = struct.Struct("iii")

ABSENT = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)
"""What connecting fails with where no daemon listens."""

Document = dict[str, Any]
"""What the daemon knows, as ``--json`` of the commands prints it."""

Event = dict[str, Any]
"""Something that happened: ``event`` (a word), ``peer`` (a name or None), ``time``
(seconds since 1970), and more; docs/operations.md lists them."""


class PeerSettings(TypedDict, total=False):
    """What may be set of a peer, as in the configuration file; None: the default."""

    endpoint: str | None  # HOST, HOST:PORT, IPV6 or [IPV6]:PORT
    port: int | None
    key: str | None  # 32 bytes in base64
    allow: list[str] | None  # prefixes
    only: list[str] | None  # PROTO[/PORT[-PORT]]
    keepalive: float | None  # seconds
    mode: str | None
    reliable: bool | None
    early: bool | None
    mtu: int | str | None  # bytes, or "auto"
    psk: str | None  # 32 bytes in base64
    psk_file: str | None  # where that is from


class Changes(TypedDict):
    """Names of peers that a reload has touched, and of settings it could not."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    restart: list[str]  # take effect at the next start


class Imported(TypedDict):
    """Names of peers that an import has found, or made, so."""

    added: list[str]
    changed: list[str]
    unchanged: list[str]


def socket_path(given: str | os.PathLike[str] | None) -> str:
    """The socket to use: the one given, else the environment's, else the usual one."""
    return os.fspath(
        given or os.environ.get("ALPHA_TRIO_SOCKET") or wire.DEFAULT_SOCKET
    )


def peer_args(name: str, settings: Mapping[str, Any], take_over: bool) -> Document:
    return {"name": name, "settings": dict(settings), "take_over": take_over}


def request(command: str, args: Mapping[str, Any]) -> bytes:
    """The frame that asks for a command; WrongUsage if there can be none."""
    try:
        return wire.encode_request(command, args)
    except wire.BadFrame as error:
        raise WrongUsage(f"{command} cannot be asked for: {error}") from None
    except TypeError as error:
        raise WrongUsage(
            f"{command} cannot be asked for: {error}; give text, numbers, lists, maps"
        ) from None


def open_process(getsockopt: Callable[[int, int, int], bytes]) -> int | None:
    """A descriptor that becomes readable when the daemon at a socket has ended.

    None if it lives in a process namespace that we cannot see into.
    """
    credentials = getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    process, _, _ = CREDENTIALS.unpack(credentials)
    try:
        return os.pidfd_open(process)
    except OSError:
        return None


# -- what goes wrong


def absent(path: str) -> NoDaemon:
    return NoDaemon(
        f"no daemon answers at {path}: start it with 'alpha-trio run', or name its "
        "socket with --socket"
    )


def forbidden(path: str) -> AlphaTrioError:
    return AlphaTrioError(
        f"no permission to use {path}: run this as root, or as a member of the group "
        "that socket_group in the daemon's configuration names, or, only to ask, "
        "status_group"
    )


def unusable(path: str, error: OSError) -> AlphaTrioError:
    return AlphaTrioError(
        f"cannot use the socket {path}: {error.strerror or error}; name the daemon's "
        "socket with --socket"
    )


def ended(path: str) -> NoDaemon:
    return NoDaemon(f"the daemon at {path} ended before it answered: see its log")


def hung_up(path: str) -> NoDaemon:
    return NoDaemon(
        f"the daemon at {path} has closed the connection: either it was stopped, or "
        "its log says more"
    )


def silent(path: str) -> TimedOut:
    return TimedOut(f"the daemon at {path} did not answer in time: try again")


def no_session(name: str, timeout: float) -> TimedOut:
    return TimedOut(
        f"no session with {name} within {timeout:g} s: 'alpha-trio status {name}' says "
        "why"
    )


def not_ended(path: str) -> TimedOut:
    return TimedOut(
        f"the daemon at {path} was told to stop but still runs after "
        f"{STOP_SECONDS:g} s: see its log"
    )
