"""The configured peers: where they come from, where they are, and keeping it so.

A change is made in an order in which nothing can get lost: check everything, save
it durably, enter it into the peer table, route its packets; if routing refuses it, all
of it is taken back.  Changes come one at a time.
"""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Container, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import trio
from attrs import evolve, frozen

from alpha_trio.errors import (
    PeerError,
    RoutingError,
    StateError,
    UnknownPeer,
)
from alpha_trio.journal import Journal
from alpha_trio.net.host import boottime
from alpha_trio.net.routing import Router, Underlay
from alpha_trio.proto.batch import Event, EventKind, Remote
from alpha_trio.proto.peers import State
from alpha_trio.proto.primitives import key_text
from alpha_trio.proto.traces import Trace
from alpha_trio.registry.carriage import Carrier, Table
from alpha_trio.registry.endpoints import (
    MOST_ADDRESSES,
    refuse_unusable,
    usable_addresses,
)
from alpha_trio.registry.nested import notes
from alpha_trio.registry.peer import (
    FROM_CONFIG,
    FROM_STATE,
    Peer,
    host_of,
    place_of,
    remote_of,
)
from alpha_trio.registry.routing import Routing
from alpha_trio.registry.search import REFRESH_AFTER, Resolver, Search
from alpha_trio.settings import (
    DEFAULT_CONFIG,
    Backend,
    IPAddress,
    Mode,
    PeerSettings,
    Settings,
    allowed_prefixes,
    check_peers,
    values,
)
from alpha_trio.state import PeerStore, Pins
from alpha_trio.supervision import insist
from alpha_trio.threads import in_thread

_log = logging.getLogger("alpha_trio")

_UNANSWERED_SYNS = 3  # of which a peer known by a name may be elsewhere
_DOUBTFUL_AFTER = 5.0  # s in which nothing is heard of a peer that is asked

_TAKE_OVER = "take it over by --take-over, or take it from one of them"

_TOLD = frozenset({State.HANDSHAKING, State.ESTABLISHED, State.SILENT})
"""In which a peer knows some of our settings, or is about to."""

_WHERE_IT_IS = frozenset(
    {EventKind.ACK_RECEIVED, EventKind.ESTABLISHED, EventKind.MOVED}
)


@frozen
class _Before:
    """What a change returns to if routing refuses it."""

    peers: dict[str, tuple[PeerSettings, str]]  # by name: settings and origin
    shadowed: tuple[PeerSettings, ...]
    pins: dict[str, bytes]


class Registry:
    """All configured peers.  Shared by the control server and the watching tasks."""

    def __init__(
        self,
        settings: Settings,
        table: Table,
        router: Router,
        store: PeerStore,
        journal: Journal,
        carrier: Carrier,
        families: Iterable[int],
    ) -> None:
        """``families`` are the IP versions there is a socket for."""
        self.peers: dict[str, Peer] = {}
        self._settings = settings
        self._file_peers = settings.peers
        self._shadowed: list[PeerSettings] = []  # saved ones the config file overrides
        self._table = table
        self._routing = Routing(
            router,
            table,
            self.peers,
            journal,
            self._rerouted,
            by_hand=settings.routing.backend is Backend.NONE,
        )
        self._store = store
        self._journal = journal
        self._carrier = carrier
        self._families = frozenset(families)
        self._pins = Pins(store, journal)
        self._resolver = Resolver(journal)
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None

    @property
    def routing_error(self) -> str | None:
        """Why all peers' packets may not take the tunnel, while that lasts."""
        return self._routing.error

    @property
    def complaints(self) -> tuple[str, ...]:
        """What of this host's routing is wrong, a sentence for each thing."""
        return self._routing.complaints

    # -- running -------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Enter the peers of the config file and the saved ones, and keep watch.

        Reports started when all of them are routed.  Raises ConfigError, StateError,
        RoutingError before that.
        """
        async with trio.open_nursery() as self._nursery:
            await self._load()
            self._nursery.start_soon(self._resolver.run)
            self._nursery.start_soon(self._watch_network)
            self._nursery.start_soon(self._routing.watch_filters)
            self._nursery.start_soon(self._routing.keep_trying)
            self._nursery.start_soon(self._pins.keep_saved)
            self._nursery.start_soon(self._routing.watch_paths, self._carrier)
            self._nursery.start_soon(self._routing.watch_peers)
            task_status.started()

    async def _load(self) -> None:
        saved = await in_thread(self._store.load)
        await self._pins.load()
        names = {peer.name for peer in self._file_peers}
        self._shadowed = [peer for peer in saved if peer.name in names]
        for peer in self._shadowed:
            _log.warning(
                "Peer %s is in the config file and was added by command as well: "
                "the config file counts.",
                peer.name,
            )
        added = [peer for peer in saved if peer.name not in names]
        self._check_files(self._file_peers, added)
        for peer in self._file_peers:
            self._enter(peer, FROM_CONFIG)
        for peer in added:
            self._enter(peer, FROM_STATE)
        await self._routing.apply()

    def _check_files(
        self, file_peers: Sequence[PeerSettings], saved: Sequence[PeerSettings]
    ) -> None:
        """Refuse peers of the two files that clash, and say which is from which."""
        origins = dict.fromkeys(
            (peer.name for peer in saved),
            f"added by command, saved in {self._store.peers_file}",
        ) | dict.fromkeys(
            (peer.name for peer in file_peers), f"from {_config_file(self._settings)}"
        )
        check_peers(
            map(self._foreseen, [*file_peers, *saved]),
            lambda name: f"{name} ({origins[name]})",
        )

    def on_event(self, event: Event) -> None:
        """React to what happened to a peer: keep its key, look for it anew."""
        peer = self.peers.get(event.peer or "")
        if peer is None:
            return
        key = peer.session.key
        if event.kind is EventKind.PINNED and key is not None:
            self._pins.keys[peer.settings.name] = key
            self._pins.note()
        elif event.kind is EventKind.PATH_MTU:
            self._routing.peer_changed()
        elif peer.search and _is_lost(event):
            peer.search.lost()
        elif event.kind in _WHERE_IT_IS and peer.is_elsewhere:
            self._routing.peer_changed()

    def moved(self) -> None:
        """A peer is elsewhere than it was, or its path takes another size."""
        self._routing.peer_changed()

    async def _watch_network(self) -> None:
        while True:
            await self._routing.follow_network()
            self._resolver.network_changed()
            self._carrier.rearm()

    def _rerouted(self, peer: Peer, before: Underlay | None) -> None:
        """Let a peer hear from us at once if it would not find us otherwise.

        If there is no way to where it is, it may be found at another of its addresses.
        """
        underlay, session, now = peer.underlay, peer.session, boottime()
        if peer.remotes != self._remotes_of(peer):
            self._move(peer, peer.addresses)  # a link was made anew
        if underlay is None or before is None:
            return
        same = before.endpoint == underlay.endpoint
        if underlay.error and not before.error and session.places > 1:
            self._table.ask(session, now)
        elif underlay.lost or (same and before.interface != underlay.interface):
            self._table.readdress(session, now, lost=underlay.lost)
        self._carrier.rearm()

    async def forget_pin(self, name: str) -> bool:
        """Let the next contact decide about a peer's key; False if it does already.

        Raises StateError.
        """
        async with self._lock:
            peer = self.find(name)
            forgotten = await self._pins.forget(name) and peer.settings.key is None
            if forgotten:
                peer.session.reset()
                self._configure(peer)
            return forgotten

    # -- changes -------------------------------------------------------------

    def find(self, name: str) -> Peer:
        """The peer called ``name``.  Raises UnknownPeer."""
        try:
            return self.peers[name]
        except KeyError:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            ) from None

    def connect(self, name: str) -> bool:
        """Whether there is a session with a peer; if not, ask the peer for one.

        Raises UnknownPeer.
        """
        session, now = self.find(name).session, boottime()
        if session.state(now) is State.ESTABLISHED:
            return True
        self._table.connect(session, now)
        self._carrier.rearm()
        return False

    def trace(self, name: str, seconds: float) -> Trace:
        """Ask the nodes on the way to a peer what they count.

        Raises UnknownPeer, or PeerError if there is no session to ask in.
        """
        peer, now = self.find(name), boottime()
        if peer.settings.mode is Mode.PLAIN:
            raise PeerError(
                f"peer {name} has mode plain, in which nobody verifies or counts: set "
                "another one on both sides"
            )
        if peer.session.tracing is not None:
            raise PeerError(f"a trace to {name} is under way: wait until it has ended")
        trace = self._table.trace(peer.session, seconds, now)
        if trace is None:
            raise PeerError(
                f"no session with {name}: 'alpha-trio wait {name}' asks for one"
            )
        self._carrier.rearm()
        return trace

    async def add(self, wanted: PeerSettings, *, take_over: bool = False) -> bool:
        """Add a peer; False if it is there already with the same settings.

        Raises PeerError, ConfigError, StateError or RoutingError; then nothing has
        changed.
        """
        async with self._lock:
            present = self.peers.get(wanted.name)
            if present is not None:
                if present.settings == wanted:
                    return False
                raise PeerError(
                    f"peer {wanted.name} exists with other settings: change them with "
                    f"'alpha-trio peers set {wanted.name} ...'"
                )
            self._refuse_ourselves(wanted)
            await self._change([wanted], take_over)
            return True

    async def add_all(
        self, peers: Sequence[PeerSettings], *, take_over: bool, replace: bool
    ) -> dict[str, list[str]]:
        """Add peers, all or none; what nobody can give them for others they keep.

        That is a psk, which no export has, and what the config file has them run.
        Returns the names under ``added``, ``changed`` and ``unchanged``.  Raises
        PeerError if some are there with other settings, unless they are to be
        replaced, and what ``add`` raises; then nothing has changed.
        """
        async with self._lock:
            wanted = {peer.name: self._with_kept(peer) for peer in peers}
            if len(wanted) < len(peers):
                raise PeerError("a peer is there twice: give each its settings once")
            now = {n: self.peers[n].settings for n in wanted if n in self.peers}
            summary = {
                "added": [name for name in wanted if name not in now],
                "changed": [name for name in now if now[name] != wanted[name]],
                "unchanged": [name for name in now if now[name] == wanted[name]],
            }
            if summary["changed"] and not replace:
                raise PeerError(_other_settings(summary["changed"]))
            for name in summary["changed"]:
                _refuse_config_peer(self.peers[name], self._settings)
            new = [wanted[n] for n in (*summary["changed"], *summary["added"])]
            for peer in new:
                self._refuse_ourselves(peer)
                await trio.lowlevel.checkpoint()  # so many must not hold packets up
            if new:
                await self._change(new, take_over)
            return summary

    def _with_kept(self, wanted: PeerSettings) -> PeerSettings:
        present = self.peers.get(wanted.name)
        if present is None:
            return wanted
        was = present.settings
        wanted = evolve(wanted, hooks=was.hooks)
        if wanted.psk is None:
            wanted = evolve(wanted, psk=was.psk, psk_file=was.psk_file)
        return wanted

    def notes(self, name: str) -> list[str]:
        """What is legal about a peer, and still to be told to who configures it."""
        places = (peer.nested for peer in self.peers.values())
        return notes(name, (place for place in places if place is not None))

    async def set(self, wanted: PeerSettings, *, take_over: bool = False) -> bool:
        """Replace a peer's settings; its session lives on if its endpoint stays.

        False if it has these already.  Raises UnknownPeer and what ``add`` raises;
        then nothing has changed.
        """
        async with self._lock:
            peer = self.find(wanted.name)
            if peer.settings == wanted:
                return False
            _refuse_config_peer(peer, self._settings)
            self._refuse_ourselves(wanted)
            await self._change([wanted], take_over)
            return True

    async def remove(self, name: str) -> None:
        """Remove a peer.  Raises UnknownPeer, PeerError, StateError."""
        async with self._lock:
            _refuse_config_peer(self.find(name), self._settings)
            kept = [peer for peer in self._of_state() if peer.name != name]
            await self._save(kept)
            self._leave(name)
            await self._routing.apply_or_log()  # what is gone is gone

    async def reload(self, file_peers: Sequence[PeerSettings]) -> dict[str, list[str]]:
        """Make the config file's peers those of ``file_peers``; touch no others.

        Returns the names under ``added``, ``changed`` and ``removed``.  Raises
        ConfigError or RoutingError; then nothing has changed.
        """
        async with self._lock:
            wanted = {peer.name: peer for peer in file_peers}
            saved = [*self._of_state(), *self._shadowed]
            kept = [peer for peer in saved if peer.name not in wanted]
            self._check_files(file_peers, kept)
            summary = self._difference(wanted)
            for peer in _of_file(wanted, summary):
                self._refuse_ourselves(peer)
            before = self._snapshot()
            self._apply_file(wanted, summary)
            try:
                await self._routing.apply((*summary["added"], *summary["changed"]))
            except RoutingError:
                await self._restore(before)
                raise
            self._file_peers = tuple(file_peers)
            return summary

    def _difference(self, wanted: dict[str, PeerSettings]) -> dict[str, list[str]]:
        now = {name: (p.settings, p.origin) for name, p in self.peers.items()}
        then = {name: (peer, FROM_CONFIG) for name, peer in wanted.items()} | {
            peer.name: (peer, FROM_STATE) for peer in self._returning(wanted)
        }
        gone = [n for n, (_, origin) in now.items() if origin == FROM_CONFIG]
        return {
            "added": [name for name in then if name not in now],
            "changed": [n for n, peer in then.items() if now.get(n, peer) != peer],
            "removed": [name for name in gone if name not in then],
        }

    def _returning(self, wanted: Container[str]) -> list[PeerSettings]:
        """The hidden peers that count again if the config file has those wanted."""
        return [peer for peer in self._shadowed if peer.name not in wanted]

    def _apply_file(
        self, wanted: dict[str, PeerSettings], summary: dict[str, list[str]]
    ) -> None:
        for name in summary["removed"]:
            self._leave(name)
        for shadow in self._returning(wanted):
            self._shadowed.remove(shadow)
            self._enter(shadow, FROM_STATE)
        for settings in _of_file(wanted, summary):
            present = self.peers.get(settings.name)
            if present is not None and present.origin == FROM_STATE:
                self._shadowed.append(present.settings)
            self._enter(settings, FROM_CONFIG)

    async def _change(self, wanted: list[PeerSettings], take_over: bool) -> None:
        """Add or replace peers added by command, all or none."""
        if take_over:
            wanted = [*wanted, *self._give_way(wanted)]
        replaced = {peer.name: peer for peer in wanted}
        everyone = {name: peer.settings for name, peer in self.peers.items()} | replaced
        check_peers(map(self._foreseen, everyone.values()), remedy=_TAKE_OVER)
        await self._save(
            list(({p.name: p for p in self._of_state()} | replaced).values())
        )
        before = self._snapshot()
        for settings in wanted:
            if settings.name not in self.peers:
                # Somebody else had the name, in a file, until nobody ran.  Not dropped
                # at the start: a file may be missing, and its pins be wanted again.
                self._pins.keys.pop(settings.name, None)
            self._enter(settings, FROM_STATE)
        try:
            await self._routing.apply(replaced)
        except RoutingError:
            await self._restore(before)
            raise
        await self._pins.save()

    def _give_way(self, takers: Sequence[PeerSettings]) -> list[PeerSettings]:
        """The other peers' settings without the prefixes that are taken over."""
        names = {taker.name for taker in takers}
        taken = {
            prefix
            for taker in takers
            for prefix in allowed_prefixes(self._foreseen(taker))
        }
        losers = []
        for peer in self.peers.values():
            lost = taken.intersection(allowed_prefixes(self._foreseen(peer.settings)))
            if peer.settings.name in names or not lost:
                continue
            _refuse_config_peer(peer, self._settings)
            left = tuple(p for p in peer.settings.allow if p not in lost)
            if not left:
                raise PeerError(
                    f"peer {peer.settings.name} would keep no prefix: remove it with "
                    f"'alpha-trio peers remove {peer.settings.name}' first"
                )
            losers.append(evolve(peer.settings, allow=left))
        return losers

    def _foreseen(self, settings: PeerSettings) -> PeerSettings:
        """With the prefixes a peer will have: its name may be resolved already."""
        peer = self.peers.get(settings.name)
        if (
            settings.allow
            or peer is None
            or place_of(peer.settings) != place_of(settings)
        ):
            return settings
        return evolve(settings, allow=tuple(map(values.prefix_of, peer.addresses)))

    def _refuse_ourselves(self, settings: PeerSettings) -> None:
        """A host is no peer of itself: neither at its address nor with its key."""
        if settings.key == key_text(self._table.identity.public):
            raise PeerError(
                f"that key is this host's own: give the one that 'alpha-trio key show' "
                f"prints on {settings.name}"
            )
        refuse_unusable(settings)

    def _snapshot(self) -> _Before:
        peers = {name: (p.settings, p.origin) for name, p in self.peers.items()}
        return _Before(peers, tuple(self._shadowed), dict(self._pins.keys))

    async def _restore(self, before: _Before) -> None:
        with trio.CancelScope(shield=True):
            for name in [name for name in self.peers if name not in before.peers]:
                self._leave(name)
            self._shadowed = list(before.shadowed)
            self._pins.keys = before.pins | self._pins.keys  # newer ones hold as well
            for name, was in before.peers.items():
                if self._snapshot().peers.get(name) != was:
                    self._enter(*was)
            await self._save_or_insist()
            await self._pins.save()
            await self._routing.apply_or_log()

    async def _save_or_insist(self) -> None:
        """Save what counts now; if that fails, again and again beside all else."""
        try:
            await self._save(self._of_state())
        except (OSError, StateError):
            assert self._nursery is not None
            self._nursery.start_soon(self._insist_on_saving)

    async def _insist_on_saving(self) -> None:
        meanwhile = "a peer that was refused is there again after a restart"
        await insist(self._save_present, self._journal, "saved peers", meanwhile)

    async def _save_present(self) -> None:
        async with self._lock:
            await self._save(self._of_state())

    def _of_state(self) -> list[PeerSettings]:
        return [p.settings for p in self.peers.values() if p.origin == FROM_STATE]

    async def _save(self, peers: list[PeerSettings]) -> None:
        everything = [*peers, *self._shadowed]
        await in_thread(self._store.save, everything)

    # -- one peer ------------------------------------------------------------

    def _enter(self, settings: PeerSettings, origin: str) -> None:
        """Put a peer into the table, or change it there; routing comes later."""
        peer = self.peers.get(settings.name)
        if peer is None:
            session = self._table.add(settings.name, (), ())
            peer = self.peers[settings.name] = Peer(settings, origin, session)
        else:
            was, peer.settings, peer.origin = peer.settings, settings, origin
            if _foundation(was) != _foundation(settings):
                peer.session.reset()  # what it rests on is no longer what we want
            if place_of(settings) == place_of(was):
                self._configure(peer)
                if was.early != settings.early:
                    self._tell_anew(peer)
                return
            peer.session.reset()
            self._stop_search(peer)
            peer.addresses = peer.remotes = ()
        where = host_of(settings) or "waited for"
        _log.info("Adding host %s (%s).", settings.name, where)
        self._locate(peer)

    def _leave(self, name: str) -> None:
        peer = self.peers.pop(name)
        self._stop_search(peer)
        self._table.remove(name)
        if self._pins.keys.pop(name, None) is not None:
            self._pins.note()
        where = host_of(peer.settings) or "waited for"
        _log.info("Deleting host %s (%s).", name, where)

    def _locate(self, peer: Peer) -> None:
        host, found = host_of(peer.settings), []
        try:
            found = [ip_address(host)]
        except ValueError:
            if host:
                resolved = partial(self._resolved, peer, host)
                silence = partial(_silence_of, peer)
                search = Search(host, resolved, silence)
                peer.search = self._resolver.watch(search)
        self._move(peer, found)

    def _move(self, peer: Peer, addresses: Iterable[IPAddress]) -> None:
        usable = tuple(a for a in addresses if a.version in self._families)
        peer.addresses = usable
        peer.remotes = self._remotes_of(peer)
        self._configure(peer)

    def _remotes_of(self, peer: Peer) -> tuple[Remote, ...]:
        return tuple(remote_of(a, peer.settings.port) for a in peer.addresses)

    def _configure(self, peer: Peer) -> None:
        networks = tuple(values.prefix_of(address) for address in peer.addresses)
        peer.prefixes = peer.settings.allow or networks
        self._table.configure(
            peer.session,
            peer.remotes,
            peer.prefixes,
            peer.settings.keepalive,
            self._key_of(peer),
            str(peer.settings.mode),
            peer.settings.reliable,
            peer.settings.waits,
            None if peer.settings.psk is None else b64decode(peer.settings.psk),
            peer.settings.early,
        )
        self._carrier.rearm()  # there may be something to say to it at once

    def _tell_anew(self, peer: Peer) -> None:
        """Tell a peer that we take early data now, or no more: only a handshake can.

        The old session serves until the new one has proven itself, so nothing is lost.
        """
        session, now = peer.session, boottime()
        if session.state(now) not in _TOLD or peer.settings.mode is Mode.PLAIN:
            return  # the next handshake tells it, or there is nothing to tell
        session.stop_asking()  # what was asked says what held before
        self._table.ask(session, now)
        self._carrier.rearm()

    def _key_of(self, peer: Peer) -> bytes | None:
        """The key a peer must have: the configured one, else the pinned one."""
        if peer.settings.key is not None:
            return b64decode(peer.settings.key)
        return self._pins.keys.get(peer.settings.name)

    def _stop_search(self, peer: Peer) -> None:
        if peer.search is not None:
            peer.search.stop()
            peer.search = None

    async def _resolved(self, peer: Peer, host: str, found: list[IPAddress]) -> None:
        """Reach a peer at what its name stands for now; what works is not replaced.

        Raises ConfigError or PeerError if that is of no use, RoutingError if routing
        refuses it; then the peer stays where it was.
        """
        async with self._lock:
            if peer.search is None or peer.search.host != host:
                return  # removed, or elsewhere, since this was asked
            usable = usable_addresses(peer, found, self.peers, self._families)
            if set(usable) == set(peer.addresses):
                return
            if peer.addresses and _is_found(peer):
                return
            before = peer.addresses
            self._move(peer, usable)
            try:
                await self._routing.apply()
            except RoutingError:
                self._move(peer, before)
                await self._routing.apply_or_log()
                raise
            names = ", ".join(map(str, usable))
            if len(usable) == MOST_ADDRESSES < len(found):
                names += f" (and {len(found) - len(usable)} more, which are not tried)"
            _log.info("%s is %s.", host_of(peer.settings), names)


def _foundation(settings: PeerSettings) -> tuple[object, ...]:
    """What a session rests on: with another one it ends."""
    return settings.key, settings.mode, settings.psk


def _is_lost(event: Event) -> bool:
    """Whether a peer does not seem to be where its name says any more."""
    unanswered = event.kind is EventKind.SYN_SENT and event.count >= _UNANSWERED_SYNS
    return unanswered or event.kind in (EventKind.GAVE_UP, EventKind.SILENT)


def _silence_of(peer: Peer) -> float:
    """For how many seconds nothing was heard of a peer; inf without a session."""
    return boottime() - peer.session.heard


def _is_found(peer: Peer) -> bool:
    """Whether what there is works, as far as is known, and so is not replaced."""
    session, silence = peer.session, _silence_of(peer)
    if session.state(boottime()) is not State.ESTABLISHED:
        return False
    asking = session.attempts is not None
    return silence < (_DOUBTFUL_AFTER if asking else REFRESH_AFTER)


def _of_file(
    wanted: dict[str, PeerSettings], summary: dict[str, list[str]]
) -> list[PeerSettings]:
    """What the config file changes or adds; a hidden peer that returns is not in it."""
    names = (*summary["changed"], *summary["added"])
    return [wanted[name] for name in names if name in wanted]


def _other_settings(names: Sequence[str]) -> str:
    who, are = ("peers", "are") if len(names) > 1 else ("peer", "is")
    return (
        f"{who} {', '.join(names)} {are} there with other settings: give --replace to "
        "have those that are imported, or change them by 'alpha-trio peers set'"
    )


def _refuse_config_peer(peer: Peer, settings: Settings) -> None:
    if peer.origin == FROM_CONFIG:
        raise PeerError(
            f"peer {peer.settings.name} comes from {_config_file(settings)}: change it "
            "there, then 'alpha-trio reload'"
        )


def _config_file(settings: Settings) -> Path:
    return settings.config_file or DEFAULT_CONFIG
