"""The node: opens everything, wires it together, runs it, and leaves no trace."""

from __future__ import annotations

import faulthandler
import linecache
import logging
import os
import signal
import sys
from collections.abc import (
    AsyncIterator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from alpha_trio.control import (
    ControlServer,
    Counter,
    Reading,
    Rising,
    commands_for,
    key_document,
    peer_figures,
    questions_for,
    quiet_counts,
    readings,
    status_document,
    trace_document,
    walk,
    watch,
)
from alpha_trio.datapath import DataPath
from alpha_trio.errors import AlphaTrioError, StartError, TimedOut, refusal
from alpha_trio.hooks import Hooks
from alpha_trio.journal import Event, Journal, address, open_log, say_end
from alpha_trio.net import tproxy
from alpha_trio.net.host import (
    boottime,
    forbid_core_dumps,
    has_net_admin,
    keep_freed_memory,
    raise_descriptor_limit,
)
from alpha_trio.net.routing import Router
from alpha_trio.net.tun import Tun
from alpha_trio.net.udp import Udp
from alpha_trio.net.udp_lanes import UdpLanes
from alpha_trio.proto.engine import NoEngine, choose
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.peers import PeerTable
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.transport import ECN
from alpha_trio.registry import Carrier, Registry, Table
from alpha_trio.service import feed_watchdog, notify
from alpha_trio.settings import (
    COPY,
    Backend,
    Engine,
    HookSettings,
    LogFormat,
    PeerSettings,
    Settings,
    changed_settings,
    load_settings,
)
from alpha_trio.slices import in_slices
from alpha_trio.state import PeerStore
from alpha_trio.threads import in_thread

if TYPE_CHECKING:
    from alpha_trio.lanes import Crew, Lanes
    from alpha_trio.relaying import RelayPath

_log = logging.getLogger("alpha_trio")

_UNDO_SECONDS = 4.0
"""How long taking back rules and routes may last; the whole stop has five seconds."""

_SWITCH_INTERVAL = 1e-4
"""Seconds a thread may keep the one that carries packets waiting for Python's lock.

Routing and saving are done in threads.  By default each wake-up, and each system call,
beside one of them would wait up to 5 ms.
"""

_WHOLE_CLASS = 0xFF  # DSCP and ECN

_RESTART = "restart"  # what ``health`` says of it

_ENGINE = "ALPHA_TRIO_ENGINE"

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Node:
    """One running daemon.  Its tasks share one peer table and one thread.

    Implements commands.NodeAPI.
    """

    def __init__(self, settings: Settings, crew: Crew | None = None) -> None:
        """``crew``: who carries the packets, if it is not this process."""
        self.settings = settings
        self._crew = crew
        self._file_settings = settings
        self._started = boottime()
        self._journal = Journal()
        self._scope = trio.CancelScope()
        self._store: PeerStore
        self._tun: Tun
        self._udp: Udp | UdpLanes
        self._table: Table
        self._registry: Registry
        self._carrier: Carrier
        self._relay: RelayPath | None = None
        self._rising = Rising()
        self._hooks: Hooks

    # -- running -------------------------------------------------------------

    async def run(self) -> None:
        """Run until stopped; then the system is as it was before.

        Raises AlphaTrioError if it cannot start, or loses its TUN device.
        """
        stack = AsyncExitStack()
        # Open to the end: a second signal must not interrupt what the first began.
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            try:
                with self._scope:
                    await self._open(stack)
                    await self._serve(signals)
            finally:
                notify("STOPPING=1")
                await self._undo(stack, signals)

    async def _undo(self, stack: AsyncExitStack, signals: AsyncIterator[int]) -> None:
        """Rules and routes go even if we are being cancelled, but not for ever."""
        with trio.CancelScope(shield=True) as undoing:
            undoing.deadline = trio.current_time() + _UNDO_SECONDS
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ignore, signals)
                await stack.aclose()
                nursery.cancel_scope.cancel()
        if undoing.cancelled_caught:
            _log.error("Could not undo everything: run 'alpha-trio cleanup'.")

    async def _open(self, stack: AsyncExitStack) -> None:
        """Open what can be refused, the most telling refusal first."""
        settings = self.settings
        if not has_net_admin():
            raise StartError(
                "no permission to create interfaces and routes (CAP_NET_ADMIN is "
                "missing): run as root"
            )
        self._file_settings = load_settings(settings.config_file, {})
        if self._crew is None:
            _choose_engine(settings.engine)
        store = self._store = stack.enter_context(PeerStore(settings.state_dir))
        tuns = self._open_tun(stack)
        _log.info("Binding listening socket to port %d", settings.port)
        self._udp = udp = self._open_udp()
        stack.callback(udp.close)
        router = Router(settings)
        stack.push_async_callback(router.close)
        await router.open()
        identity = store.identity()
        # Congestion is always seen outside, the class only if it is to be.
        visible = _WHOLE_CLASS if settings.dscp is COPY else ECN
        await self._open_relay(stack, identity)
        families = [version for version in (4, 6) if udp.has_family(version)]
        if isinstance(udp, Udp):
            table = PeerTable(settings.port, identity, os.urandom, visible)
            self._table = table
            self._carrier = DataPath(self._tun, udp, table, self._journal)
        else:
            self._carrier = self._table = self._lanes(tuns, udp, identity, visible)
        self._registry = Registry(
            settings,
            self._table,
            router,
            store,
            self._journal,
            self._carrier,
            families,
        )
        self._journal.listeners.append(self._registry.on_event)
        self._hooks = Hooks(settings.interface, self._hooks_of, self._journal)
        self._journal.listeners.append(self._hooks.on_event)

    def _open_tun(self, stack: AsyncExitStack) -> list[Tun]:
        """The device: one queue, or one for each of several processes."""
        name, disabled = self.settings.interface, self.settings.disabled_offloads
        cores = self.settings.cores
        self._tun = Tun.open(name, disabled, queued=cores > 1)
        stack.callback(self._tun.close)
        tuns = [self._tun]
        for _ in range(1, cores):
            tuns.append(self._tun.another(disabled))
            stack.callback(tuns[-1].close)
        _log.info("Successfully opened tun device (%s)", name)
        return tuns

    def _open_udp(self) -> Udp | UdpLanes:
        settings, disabled = self.settings, self.settings.disabled_offloads
        # With the marks backend the mark means "into the tunnel".
        by_rules = settings.routing.backend is Backend.RULES
        mark = settings.routing.mark if by_rules else 0
        dscp = 0 if settings.dscp is COPY else settings.dscp
        where = settings.port, disabled, mark
        if self._crew is not None:
            return UdpLanes.open(settings.cores, *where, dscp, Kind.SYN)
        transparent = settings.relay.enabled
        return Udp.open(*where, dscp=dscp, handshake=Kind.SYN, transparent=transparent)

    def _lanes(
        self, tuns: list[Tun], udp: UdpLanes, identity: Identity, visible: int
    ) -> Lanes:
        from alpha_trio.lanes import Lanes

        assert self._crew is not None
        lanes = Lanes(
            self._crew, tuns, udp, self.settings.port, identity, self._journal, visible
        )
        lanes.moved = lambda: self._registry.moved()
        return lanes

    async def _open_relay(self, stack: AsyncExitStack, identity: Identity) -> None:
        if self.settings.relay.enabled:
            # Most hosts are none, and need not hold what it takes: 1.5 MB.
            from alpha_trio.relaying import RelayPath

            assert isinstance(self._udp, Udp)
            self._relay = RelayPath(self.settings, self._udp, self._journal, identity)
            stack.push_async_callback(self._relay.close)
        else:  # what a killed one may have left
            remove = partial(tproxy.remove, self.settings.interface, closed=True)
            await in_thread(remove)

    async def _serve(self, signals: AsyncIterator[int]) -> None:
        control = ControlServer(
            self.settings, commands_for(self), self._journal, questions_for(self)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals)
            await nursery.start(self._hooks.run)
            # A command that came before the saved peers are known would lose them.
            await nursery.start(self._registry.run)
            if self._relay is not None:  # its rules lead to routes that are there now
                await nursery.start(self._relay.run)
            await nursery.start(control.run)
            nursery.start_soon(self._carrier.run)
            wait_active = self._carrier.wait_active
            nursery.start_soon(watch, self._rising, self._quiet_counts, wait_active)
            if self.settings.metrics.listen is not None:
                # As with the relay: most serve none, and need not hold what it takes.
                from alpha_trio.exporter import Exporter

                listen = self.settings.metrics.listen
                nursery.start_soon(Exporter(listen, self, self._journal).run)
            notify("READY=1")
            nursery.start_soon(feed_watchdog)

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self.stop(signal.Signals(number).name)
                return
            _log.info("Received SIGHUP!")
            try:
                await self.reload()
            except Exception as error:
                if (reason := refusal(error)) is None:
                    raise
                _log.error("Nothing was changed: %s", reason)

    # -- what the control plane may ask ----------------------------------------

    async def status(self, name: str | None = None) -> dict[str, Any]:
        """The document of ``status --json``; with a name, of this peer alone.

        Raises UnknownPeer.
        """
        peers = tuple(self._registry.peers.values())
        if name is not None:
            peers = (self._registry.find(name),)
        await self._carrier.refresh(name)
        found = await in_slices(readings(peers, boottime))
        relay = None if self._relay is None else self._relay.document(boottime())
        return self._status(found, relay, self._rising.counters)

    def keys(self) -> dict[str, dict[str, Any]]:
        """By the peers' names the key that counts for each, and who says so."""
        return {n: key_document(peer) for n, peer in self._registry.peers.items()}

    async def refresh(self) -> None:
        """Have what carries packets tell how its sessions stand."""
        await self._carrier.refresh()

    def status_of_daemon(self) -> dict[str, Any]:
        """What metrics read of the status document, but for the peers."""
        return self._status((), None if self._relay is None else self._relay.figures())

    def status_of_peers(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The same of each peer, and how many lines of ``health`` it has."""
        peers = tuple(self._registry.peers.values())
        return peer_figures(peers, boottime, self._rising.counters)

    def _status(
        self,
        peers: Collection[Reading],
        relay: dict[str, Any] | None,
        rising: Iterable[Counter] = (),
    ) -> dict[str, Any]:
        return status_document(
            self.settings,
            boottime() - self._started,
            self._tun,
            self._udp,
            self._table,
            peers,
            relay,
            self._registry.routing_error,
            self._registry.complaints,
            rising,
            [*self._journal.troubles.values(), *filter(None, [self._store.complaint])],
            self._hooks.counts,
        )

    def _hooks_of(self, name: str) -> HookSettings | None:
        peer = self._registry.peers.get(name)
        return None if peer is None else peer.settings.hooks

    def _quiet_counts(self) -> Mapping[Any, int]:
        return quiet_counts(self._table, self._registry.peers.values())

    def peers(self) -> list[tuple[PeerSettings, str]]:
        """All peers with where they come from: "config" or "state"."""
        return [(peer.settings, peer.origin) for peer in self._registry.peers.values()]

    async def add_peer(self, peer: PeerSettings, take_over: bool) -> bool:
        """False if it was there already; see Registry.add."""
        added = await self._registry.add(peer, take_over=take_over)
        await self._carrier.refresh(peer.name)
        if added:
            self._journal.publish("peer-added", peer.name)
        return added

    async def add_peers(
        self, peers: Sequence[PeerSettings], take_over: bool, replace: bool
    ) -> dict[str, list[str]]:
        """See Registry.add_all."""
        summary = await self._registry.add_all(
            peers, take_over=take_over, replace=replace
        )
        await self._carrier.refresh()
        for name in summary["added"]:
            self._journal.publish("peer-added", name)
        for name in summary["changed"]:
            self._journal.publish("peer-changed", name)
        return summary

    def notes(self, name: str) -> list[str]:
        """See Registry.notes."""
        return self._registry.notes(name)

    async def set_peer(self, peer: PeerSettings, take_over: bool) -> None:
        """See Registry.set."""
        if await self._registry.set(peer, take_over=take_over):
            await self._carrier.refresh(peer.name)
            self._journal.publish("peer-changed", peer.name)

    async def remove_peer(self, name: str) -> None:
        """See Registry.remove."""
        await self._registry.remove(name)
        await self._carrier.refresh(name)
        self._journal.publish("peer-removed", name)

    async def forget_pin(self, name: str) -> None:
        """See Registry.forget_pin."""
        if await self._registry.forget_pin(name):
            await self._carrier.refresh(name)
            self._journal.publish("key-forgotten", name)

    async def reload(self) -> dict[str, list[str]]:
        """Apply the difference between the config file and what runs.

        Only peers can change while running; the settings that take effect at the next
        start are named under ``restart``, beside what Registry.reload returns.
        Raises ConfigError, StateError or RoutingError; then nothing has changed.
        """
        notify("RELOADING=1")
        try:
            await in_thread(self._store.restore)
            wanted = load_settings(self.settings.config_file, {})
            summary = await self._registry.reload(wanted.peers)
            await self._carrier.refresh()
        finally:
            notify("READY=1")
        for name in summary["removed"]:
            self._hooks.removed(name)
        for name in summary["changed"]:
            self._hooks.changed(name)
        counts = ", ".join(f"{len(names)} {what}" for what, names in summary.items())
        _log.info("Reloaded: %s.", counts)
        summary["restart"] = self._waiting_for_restart(wanted)
        self._tell_of_restart(summary["restart"])
        self._journal.publish("reloaded", None, **summary)
        return summary

    def _waiting_for_restart(self, wanted: Settings) -> list[str]:
        """What of a file was changed, and is not given by an option, which wins."""
        given = changed_settings(self._file_settings, self.settings)
        changed = changed_settings(self._file_settings, wanted)
        return [name for name in changed if name not in given]

    def _tell_of_restart(self, changed: list[str]) -> None:
        """While it lasts, ``health`` has it, too: what runs is not what is written."""
        if not changed:
            self._journal.troubles.pop(_RESTART, None)
            return
        names = ", ".join(changed)
        _log.warning("Takes effect at the next start: %s; restart the daemon.", names)
        self._journal.troubles[_RESTART] = (
            f"the config file has been changed, and takes effect at the next start: "
            f"{names}; restart the daemon"
        )

    async def wait_established(self, name: str) -> None:
        """Return when there is a session with the peer, for which it is asked.

        It is asked again when it was given up.  Raises UnknownPeer.
        """
        async with self._journal.hub.subscribe() as events:
            await self._carrier.refresh(name)
            while not self._registry.connect(name):
                await events.receive()

    async def walk(self, name: str) -> list[dict[str, Any]]:
        """The steps of ``doctor NAME``.  Raises UnknownPeer."""
        await self._carrier.refresh(name)
        return walk(self._registry.find(name), boottime())

    async def trace(self, name: str, seconds: float) -> dict[str, Any]:
        """The document of ``trace --json``, after ``seconds`` and some for answers.

        Cancelling ends the trace.  Raises UnknownPeer, PeerError if there is no session
        to trace, or TimedOut if nobody answered.
        """
        async with self._journal.hub.subscribe() as events:
            await self._carrier.refresh(name)
            trace = self._registry.trace(name, seconds)
            session = self._registry.find(name).session
            try:
                while not trace.done:
                    await events.receive()
            finally:
                if not trace.done:
                    session.end_trace()
        if len(trace.hops()) < 2:
            raise TimedOut(
                f"nobody on the way to {name} has answered, nor has {name} itself: see "
                f"'alpha-trio status {name}'"
            )
        names = {
            peer.session.key: peer.settings.name
            for peer in self._registry.peers.values()
            if peer.session.key is not None
        }
        endpoint = address(session.remote) if session.remote else name
        return trace_document(trace, name, endpoint, names)

    def stop(self, who: str) -> None:
        """Begin the orderly end; the log says who, or what, has asked for it."""
        if not self._scope.cancel_called:
            _log.info("Received %s, stopping.", who)
        self._scope.cancel()

    def subscribe(
        self,
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        """All events from here on."""
        return self._journal.hub.subscribe()


async def _ignore(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        pass


def main(settings: Settings) -> int:
    """Run the daemon in the foreground; the exit code."""
    as_json = settings.log_format is LogFormat.JSON
    open_log(settings.verbosity, as_json=as_json)
    forbid_core_dumps()
    # The service manager ends by SIGABRT what is stuck: the log has where it was then.
    if sys.stderr is not None:
        faulthandler.enable()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    raise_descriptor_limit()
    keep_freed_memory()
    # attrs keeps the source of what methods it makes there, for tracebacks: 0.4 MB.
    linecache.clearcache()
    crew = None
    try:
        with _only_our_errors():
            crew = _fork(settings)
            trio.run(Node(settings, crew).run)
    except AlphaTrioError as error:
        say_end(f"alpha-trio: {error}", as_json=as_json)
        return error.exit_code
    finally:
        if crew is not None:
            crew.end()
    return 0


def _fork(settings: Settings) -> Crew | None:
    """The processes that carry packets, if they are to be others than this one."""
    if settings.cores == 1:
        return None
    # Most daemons need none, and not what it takes.
    from alpha_trio.lanes import Crew

    _choose_engine(settings.engine)  # once for all of them
    return Crew.fork(settings)


def _choose_engine(wanted: Engine) -> None:
    try:
        # Where no engine is asked for, the environment may: whole test suites do.
        asked = wanted if wanted is not Engine.AUTO else os.environ.get(_ENGINE)
        choice = choose(asked or Engine.AUTO)
    except NoEngine as error:
        raise StartError(f'{error}; use engine = "auto"') from None
    _log.info("Working on packets by the %s engine (%s)", choice.name, choice.why)


@contextmanager
def _only_our_errors() -> Iterator[None]:
    """Unwrap an AlphaTrioError from the groups nurseries put around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, other = group.split(AlphaTrioError)
        if other is not None or ours is None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
