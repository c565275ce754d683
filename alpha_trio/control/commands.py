"""The control commands: what each takes, checks, asks of the node, and answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, NoReturn, Protocol

import trio
from attrs import asdict

from alpha_trio.control.server import Command, asker
from alpha_trio.errors import (
    AlphaTrioError,
    ConfigError,
    PeerError,
    UnknownPeer,
    WrongUsage,
)
from alpha_trio.journal import Event
from alpha_trio.settings import PeerSettings, Settings, parse_peer, peer_values

Args = Mapping[str, Any]

STOPPING: Event = {"event": "stopping"}
DEFAULT_SECONDS = 2.0  # of a trace
MOST_SECONDS = 3600.0


class NodeAPI(Protocol):
    """What the commands need of the running daemon."""

    @property
    def settings(self) -> Settings: ...

    async def status(self, name: str | None = None) -> dict[str, Any]:
        """The document of ``status --json``; with a name, of this peer alone.

        Raise UnknownPeer.
        """

    def keys(self) -> dict[str, dict[str, Any]]:
        """By the peers' names the ``key`` that counts for each, and ``key_source``."""

    def peers(self) -> list[tuple[PeerSettings, str]]:
        """Every peer with its origin: ``config`` (the file) or ``state`` (added)."""

    async def add_peer(self, peer: PeerSettings, take_over: bool) -> bool:
        """Return False if it was there already with the same settings.

        ``take_over``: its prefixes may be taken from peers that hold them now.
        Raise PeerError if it exists with other settings, or cannot be added.
        """

    async def set_peer(self, peer: PeerSettings, take_over: bool) -> None:
        """Replace the settings of an existing peer; raise UnknownPeer, PeerError."""

    async def add_peers(
        self, peers: Sequence[PeerSettings], take_over: bool, replace: bool
    ) -> dict[str, list[str]]:
        """Add all of them, or none; the names ``added``, ``changed``, ``unchanged``.

        ``replace``: those that exist with other settings get these.  Raise PeerError.
        """

    def notes(self, name: str) -> list[str]:
        """What who configures a peer should know, though it is no mistake."""

    async def remove_peer(self, name: str) -> None:
        """Raise UnknownPeer."""

    async def forget_pin(self, name: str) -> None:
        """Forget the key a peer showed at the first contact; the next one counts.

        Nothing happens if none is pinned.  Raise UnknownPeer, StateError.
        """

    async def reload(self) -> dict[str, list[str]]:
        """Names of the peers under ``added``, ``changed`` and ``removed``.

        And those of settings that take effect at the next start under ``restart``.

        Raise ConfigError if the file is bad; then nothing was changed.
        """

    async def wait_established(self, name: str) -> None:
        """Ask the peer for a session, return when there is one; raise UnknownPeer."""

    async def walk(self, name: str) -> list[dict[str, Any]]:
        """The steps of ``doctor NAME``; raise UnknownPeer."""

    async def trace(self, name: str, seconds: float) -> dict[str, Any]:
        """The document of ``trace --json``; it takes ``seconds`` and a moment more.

        Raise UnknownPeer, PeerError if there is nothing to trace, TimedOut.
        """

    def stop(self, who: str) -> None:
        """Begin the orderly end of the daemon, which ``who`` has asked for."""

    def subscribe(
        self,
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        """All events from here on; see control.EventHub."""


def commands_for(node: NodeAPI) -> dict[str, Command]:
    """All commands by the name they have on the socket."""
    handlers = Handlers(node)
    return {
        "status": handlers.status,
        "peers.add": handlers.add,
        "peers.set": handlers.set,
        "peers.import": handlers.import_,
        "peers.remove": handlers.remove,
        "peers.list": handlers.list,
        "peers.show": handlers.show,
        "reload": handlers.reload,
        "wait": handlers.wait,
        "doctor": handlers.doctor,
        "trace": handlers.trace,
        "stop": handlers.stop,
        "monitor": handlers.monitor,
    }


QUESTIONS = frozenset({"status", "peers.list", "peers.show", "doctor", "monitor"})
"""What changes nothing, neither here nor at a peer, and keeps nobody from anything.

``wait`` and ``trace`` are none: they send, and there is one trace of a peer at a time.
"""


def questions_for(node: NodeAPI) -> dict[str, Command]:
    """All commands for those who may only ask; what changes something is refused."""
    return {
        name: command if name in QUESTIONS else partial(_refuse, name)
        for name, command in commands_for(node).items()
    }


async def _refuse(name: str, args: Args) -> NoReturn:
    raise AlphaTrioError(
        f"{name!r} is not for those who may only ask: run this as root, or as a member "
        "of the group that socket_group in the daemon's configuration names"
    )


class Handlers:
    """One method per command; ``args`` is what the client sent, unchecked."""

    def __init__(self, node: NodeAPI) -> None:
        self._node = node

    async def status(self, args: Args) -> dict[str, Any]:
        named = args.get("name") is not None
        return await self._node.status(_name(args) if named else None)

    async def add(self, args: Args) -> dict[str, Any]:
        name = _name(args)
        peer = _typed(name, _settings(args), "peers add")
        added = await self._node.add_peer(peer, _flag(args, "take_over"))
        return {"added": added, **self._notes([name])}

    async def import_(self, args: Args) -> dict[str, list[str]]:
        """All of them or none."""
        peers = [
            _typed(name, settings, f"peers import: {name}")
            for name, settings in _peers(args).items()
        ]
        take_over, replace = _flag(args, "take_over"), _flag(args, "replace")
        summary = await self._node.add_peers(peers, take_over, replace)
        return summary | self._notes((*summary["added"], *summary["changed"]))

    async def set(self, args: Args) -> dict[str, list[str]] | None:
        """Change only the settings that are named; the others stay.

        To empty the key is to trust the next contact, so a pinned key goes as well.
        """
        current, _ = self._find(args)
        given = _settings(args)
        values = peer_values(current)
        if "endpoint" in given:
            # HOST[:PORT] is one setting: a new host does not inherit the old port.
            values.pop("port", None)
        if "psk" in given:
            values.pop("psk_file", None)
        values |= given
        peer = _typed(current.name, values, "peers set")
        await self._node.set_peer(peer, _flag(args, "take_over"))
        if "key" in given and peer.key is None:
            await self._node.forget_pin(peer.name)
        return self._notes([peer.name]) or None

    def _notes(self, names: Iterable[str]) -> dict[str, list[str]]:
        """What there is to say about peers that were just configured, if there is."""
        notes = dict.fromkeys(note for n in names for note in self._node.notes(n))
        return {"notes": [*notes]} if notes else {}

    async def remove(self, args: Args) -> None:
        await self._node.remove_peer(_name(args))

    async def list(self, args: Args) -> list[dict[str, Any]]:
        """The settings, and, if there is one, the key that counts."""
        keys = self._node.keys()
        return [
            _document(peer, origin)
            | {name: value for name, value in keys[peer.name].items() if value}
            for peer, origin in self._node.peers()
        ]

    async def show(self, args: Args) -> dict[str, Any]:
        """The settings, and the key that counts, which may have been pinned."""
        peer, origin = self._find(args)
        return _document(peer, origin) | self._node.keys()[peer.name]

    async def reload(self, args: Args) -> dict[str, Any]:
        return dict(await self._node.reload())

    async def wait(self, args: Args) -> AsyncGenerator[Event, None]:
        """A stream of one event: unlike a plain result it ends when the client goes."""
        name = _name(args)
        await self._node.wait_established(name)
        yield {"event": "established", "peer": name}

    async def doctor(self, args: Args) -> dict[str, Any]:
        return {"steps": await self._node.walk(_name(args))}

    async def trace(self, args: Args) -> AsyncGenerator[Event, None]:
        """A stream of one event, too: nobody waits for the answers in vain."""
        yield await self._node.trace(_name(args), _seconds(args))

    async def stop(self, args: Args) -> AsyncGenerator[Event, None]:
        """Answer first: once the daemon stops, nothing is sent any more."""
        yield STOPPING
        self._node.stop(f"'stop' from {asker.get(_unknown)()}")

    async def monitor(self, args: Args) -> AsyncGenerator[Event, None]:
        async with self._node.subscribe() as events:
            async for event in events:
                yield event

    def _find(self, args: Args) -> tuple[PeerSettings, str]:
        name = _name(args)
        for peer, origin in self._node.peers():
            if peer.name == name:
                return peer, origin
        raise UnknownPeer(f"no peer is called {name!r}: see 'alpha-trio peers list'")


def _name(args: Args) -> str:
    name = args.get("name")
    if not isinstance(name, str):
        raise PeerError(f"the name of a peer must be text, not {name!r}: give a name")
    return name


def _seconds(args: Args) -> float:
    seconds = args.get("seconds", DEFAULT_SECONDS)
    if not isinstance(seconds, (int, float)) or not 0 <= seconds <= MOST_SECONDS:
        raise PeerError(
            f"the seconds of a trace must be a number from 0 to {MOST_SECONDS:g}, not "
            f"{seconds!r}"
        )
    return float(seconds)


def _settings(args: Args) -> Mapping[str, object]:
    settings = args.get("settings", {})
    if not isinstance(settings, dict):
        raise PeerError(
            f"the settings of a peer must be a map, not {type(settings).__name__}: see "
            "docs/control.md"
        )
    return settings


def _typed(name: str, values: Mapping[str, object], command: str) -> PeerSettings:
    """A peer as somebody wants it.  Raises WrongUsage for what no peer can be."""
    try:
        return parse_peer(name, values, command)
    except ConfigError as error:
        raise WrongUsage(str(error)) from None


def _peers(args: Args) -> Mapping[str, Mapping[str, object]]:
    peers = args.get("peers")
    if not isinstance(peers, dict) or not all(
        isinstance(settings, dict) for settings in peers.values()
    ):
        raise PeerError(
            "the peers of an import must be a map of maps, settings by name: see "
            "docs/control.md"
        )
    return peers


def _unknown() -> str:
    return "a command"


def _flag(args: Args, name: str) -> bool:
    return args.get(name) is True


def _document(peer: PeerSettings, origin: str) -> dict[str, Any]:
    """The settings; of a pre-shared key, and of programs, only that there are some."""
    values = peer_values(peer)
    if "psk" in values:
        values["psk"] = True
    if peer.hooks is not None:
        values["hooks"] = [key for key, words in asdict(peer.hooks).items() if words]
    return {"name": peer.name, "origin": origin, **values}
