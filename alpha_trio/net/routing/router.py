"""Rules and routes that lead a peer's packets into the tunnel, and only those."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio
from attrs import evolve

from alpha_trio.errors import RoutingError, refusal
from alpha_trio.net.routing import marks
from alpha_trio.net.routing.kernel import Kernel, Path, connect
from alpha_trio.net.routing.notices import drain, subscribe
from alpha_trio.net.routing.plan import (
    PATH_MTU,
    Facts,
    PeerRoute,
    Plan,
    RouteKey,
    Underlay,
    adding_order,
    inner_mtu,
    peer_table,
    plan,
)
from alpha_trio.net.routing.remnants import remnants, tagged, undo
from alpha_trio.net.routing.sysctl import (
    check_sources_by_mark,
    ipv6_enabled,
    strict_elsewhere,
)
from alpha_trio.settings import Backend, IPAddress, Settings
from alpha_trio.threads import in_thread

T = TypeVar("T")

_QUEUE = 1000  # packets that wait in the interface for the daemon
_GSO_BYTES = 61_200  # a super-packet and our headers then fit into one UDP send
_SETTLE = 0.1  # seconds; one change of a link brings a dozen messages


class Router:
    """Owner of everything we put into the kernel's routing, and of its removal."""

    def __init__(self, settings: Settings) -> None:
        """Do nothing yet; the interface named in ``settings`` may still be missing."""
        self._settings = settings
        self._events: socket.socket | None = None
        self._port = 0  # what notices of our own changes name as their cause
        self._lock = trio.Lock()
        self._interface = 0
        self._owner = False  # what bears our tag is ours, not another daemon's
        # What was found and put in place last; ``_stale``: may no longer be true.
        self._stale = True
        self._facts = Facts()
        self._paths: dict[IPAddress, Path | str] = {}
        self._plan = Plan((), {}, 0)
        self._marks: marks.Marks | None = None

    async def open(self) -> None:
        """Configure the (existing) interface, remove leftovers, check collisions.

        RoutingError if our table or priorities belong to another, or an address
        cannot be set.  Then, and if cancelled, ``close`` has to be called.
        """
        self._events = subscribe()
        await _in_thread(self._prepare)

    async def apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        """Make the kernel's state match ``peers``; change only what differs.

        Return how each peer is reached, by name, and which of its routes the kernel
        refused.  RoutingError if something else cannot be set; the rest is set
        nevertheless.  Not cancelled half-way.
        """
        async with self._lock:
            try:
                return await _in_thread(self._apply, peers)
            except BaseException:
                self._stale = True
                raise

    async def wait_changed(self) -> None:
        """Return when links, addresses or routes of the host may have changed.

        Then ``apply`` has to be called again, and looks at everything anew.
        """
        assert self._events is not None
        while not drain(self._events, self._port):
            await trio.lowlevel.wait_readable(self._events)
        await trio.sleep(_SETTLE)
        drain(self._events, self._port)
        self._stale = True

    def mark_stale(self) -> None:
        """Have the next ``apply`` look at everything anew, paths' MTU included.

        For a caller who knows better than the kernel's notices, as after EMSGSIZE.
        """
        self._stale = True

    async def close(self) -> None:
        """Undo everything; safe to call after a failed or partial open."""
        async with self._lock:
            try:
                if self._owner:
                    await _in_thread(self._remove)
            finally:
                if self._events is not None:
                    self._events.close()
                self._events = None
                self._owner = False

    @property
    def _routes_anything(self) -> bool:
        settings = self._settings
        return settings.routing.backend is not Backend.NONE or settings.relay.enabled

    # --- in a thread from here on, for milliseconds

    @contextmanager
    def _connected(self) -> Iterator[Kernel]:
        with connect(self._settings.routing.protocol) as kernel:
            self._port = kernel.port
            yield kernel

    def _prepare(self) -> None:
        settings = self._settings
        self._interface = _index(settings.interface)
        with self._connected() as kernel:
            if self._routes_anything:
                left = remnants(kernel, settings, self._interface)
                self._owner = True
                undo(kernel, left)
                marks.remove(settings.interface)
            self._configure(kernel)

    def _configure(self, kernel: Kernel) -> None:
        index = self._interface
        kernel.set_no_own_addresses(index)
        kernel.set_queue(index, _QUEUE, _GSO_BYTES)
        kernel.set_mtu(index, plan(self._settings, (), {}, Facts()).mtu)
        for address in self._settings.addresses:
            kernel.add_address(index, address)
        kernel.set_up(index)

    def _apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        stale, self._stale = self._stale, False
        if stale:
            self._look_around()
        with self._connected() as kernel:
            if stale:
                self._restore_addresses(kernel)
            self._look_up(kernel, peers)
            underlays = {peer.name: self._underlay(peer) for peer in peers}
            wanted = plan(self._settings, peers, underlays, self._facts)
            present = self._present(kernel) if stale else self._plan
            refused = _change(kernel, present, wanted, self._interface)
        self._stale = self._stale or bool(refused)  # then what is there is uncertain
        if self._settings.routing.backend is Backend.MARKS:
            self._apply_marks(peers)
        self._plan = wanted
        return {
            peer.name: self._with_refusals(peer, underlays[peer.name], refused)
            for peer in peers
        }

    def _restore_addresses(self, kernel: Kernel) -> None:
        """Put back what was removed, or lost with its link, as IPv6 ones are."""
        # To set one that is there would be told as a change, and not as ours.
        present = kernel.addresses(self._interface)
        for address in self._settings.addresses:
            possible = address.version == 4 or self._facts.ipv6
            if possible and address not in present:
                kernel.add_address(self._interface, address)

    def _apply_marks(self, peers: Sequence[PeerRoute]) -> None:
        wanted = marks.of(self._settings, peers)
        if wanted != self._marks:
            self._marks = None
            marks.load(wanted)
            self._marks = wanted

    def _look_around(self) -> None:
        own = self._settings.interface
        self._paths.clear()
        self._facts = Facts(ipv6_enabled(own), strict_elsewhere(own))
        if self._settings.routing.backend is Backend.MARKS:
            check_sources_by_mark(own)

    def _look_up(self, kernel: Kernel, peers: Sequence[PeerRoute]) -> None:
        """Learn the way to every endpoint that is not known yet."""
        endpoints = {peer.endpoint for peer in peers if peer.endpoint is not None}
        for gone in self._paths.keys() - endpoints:
            del self._paths[gone]
        for address in endpoints - self._paths.keys():
            try:
                self._paths[address] = kernel.look_up(address, self._settings.port)
            except RoutingError as error:
                self._paths[address] = str(error)

    def _underlay(self, peer: PeerRoute) -> Underlay:
        path = None if peer.endpoint is None else self._paths[peer.endpoint]
        if path is None:
            return Underlay(inner_mtu(PATH_MTU, peer))
        if isinstance(path, str):
            return Underlay(inner_mtu(PATH_MTU, peer), error=path)
        if path.local:
            error = f"{peer.endpoint} is that host's own address, which is this one"
            return Underlay(inner_mtu(PATH_MTU, peer), error=error)
        if path.broadcast:
            error = f"{peer.endpoint} is the broadcast address of {path.device}"
            return Underlay(inner_mtu(PATH_MTU, peer), error=error)
        if path.interface == self._interface:
            error = f"the route to {peer.endpoint} leads into the tunnel itself"
            return Underlay(inner_mtu(PATH_MTU, peer), error=error)
        return Underlay(inner_mtu(path.mtu, peer), path.source, path.device)

    def _with_refusals(
        self, peer: PeerRoute, underlay: Underlay, refused: Mapping[RouteKey, str]
    ) -> Underlay:
        if not refused:
            return underlay
        table = peer_table(self._settings, peer)
        reasons = [refused.get((table, prefix)) for prefix in peer.prefixes]
        return evolve(underlay, refused=tuple(filter(None, reasons)))

    def _present(self, kernel: Kernel) -> Plan:
        """Return what the kernel has of ours."""
        mtu = kernel.link(self._interface).mtu
        if not self._routes_anything:
            return Plan((), {}, mtu)
        rules, found = tagged(kernel, self._settings)
        routes = {
            (f.route.table, f.route.prefix): f.route
            for f in found
            if f.route.local or f.interface == self._interface
        }
        return Plan(tuple(sorted(rules, key=adding_order)), routes, mtu)

    def _remove(self) -> None:
        settings = self._settings
        with self._connected() as kernel:
            undo(kernel, tagged(kernel, settings))
        if settings.routing.backend is Backend.MARKS:
            marks.remove(settings.interface)


# --- what is ours in the kernel


def _change(
    kernel: Kernel, present: Plan, wanted: Plan, interface: int
) -> dict[RouteKey, str]:
    """Turn one plan into the other; return which routes are refused, and why.

    Add before remove, so that no packet of a peer that stays meets a gap.
    """
    if wanted.mtu > present.mtu:
        kernel.set_mtu(interface, wanted.mtu)
    refused = _put_routes(kernel, present, wanted, interface)
    known, kept = set(present.rules), set(wanted.rules)
    for rule in wanted.rules:
        if rule not in known:
            kernel.add_rule(rule)
    for rule in reversed(present.rules):
        if rule not in kept:
            kernel.delete_rule(rule)
    for key in present.routes.keys() - wanted.routes.keys():
        kernel.delete_route(present.routes[key])
    if wanted.mtu < present.mtu:
        kernel.set_mtu(interface, wanted.mtu)
    return refused


def _put_routes(
    kernel: Kernel, present: Plan, wanted: Plan, interface: int
) -> dict[RouteKey, str]:
    refused: dict[RouteKey, str] = {}
    for key, route in wanted.routes.items():
        if present.routes.get(key) != route:
            reason = kernel.put_route(route, interface)
            if reason is not None:
                refused[key] = reason
                if route.local:  # the relay's; others are the concern of one peer
                    kernel.refusals.append(RoutingError(reason))
    return refused


# --- the host


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """In a thread; what the host refuses there, a descriptor or so, is RoutingError."""
    try:
        return await in_thread(work, *args)
    except (OSError, MemoryError) as error:
        if (reason := refusal(error)) is None:
            raise
        raise RoutingError(f"kernel routing: {reason}") from error


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise RoutingError(
            f"interface {interface} does not exist; was it deleted?"
        ) from None
