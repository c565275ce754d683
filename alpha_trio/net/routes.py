"""Rules and routes that lead a peer's packets into the tunnel, and only those."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath

import trio
from attrs import evolve

from alpha_trio.config import Backend, IPAddress, Settings
from alpha_trio.errors import RoutingError
from alpha_trio.net import marks
from alpha_trio.net.kernel import Installed, Kernel, Path, connect
from alpha_trio.net.plan import (
    MAIN_TABLE,
    PATH_MTU,
    PRIORITIES,
    RELAY_PRIORITIES,
    Action,
    Facts,
    PeerRoute,
    Plan,
    RouteKey,
    Rule,
    Underlay,
    adding_order,
    inner_mtu,
    peer_table,
    plan,
)

__all__ = ["PeerRoute", "Router", "Underlay", "cleanup"]

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_QUEUE = 1000  # packets that wait in the interface for the daemon
_GSO_BYTES = 61_200  # a super-packet and our headers then fit into one UDP send
_SETTLE = 0.1  # seconds; one change of a link brings a dozen messages

# Bits of sockaddr_nl.nl_groups: links, IPv4 and IPv6 addresses, routes and rules,
# and settings such as rp_filter.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23
_SO_RCVBUFFORCE = 33
_ROOM = 4 << 20  # bytes of notices, as of our own first thousand routes
_NOTICE = struct.Struct("=12xI")  # nlmsghdr, up to the netlink port of who caused it


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
        self._events = _subscribe()
        await trio.to_thread.run_sync(self._prepare)

    async def apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        """Make the kernel's state match ``peers``; change only what differs.

        Return how each peer is reached, by name, and which of its routes the kernel
        refused.  RoutingError if something else cannot be set; the rest is set
        nevertheless.  Not cancelled half-way.
        """
        async with self._lock:
            try:
                return await trio.to_thread.run_sync(self._apply, peers)
            except BaseException:
                self._stale = True
                raise

    async def wait_changed(self) -> None:
        """Return when links, addresses or routes of the host may have changed.

        Then ``apply`` has to be called again, and looks at everything anew.
        """
        assert self._events is not None
        while not _drain(self._events, self._port):
            await trio.lowlevel.wait_readable(self._events)
        await trio.sleep(_SETTLE)
        _drain(self._events, self._port)
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
                    await trio.to_thread.run_sync(self._remove)
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
                remnants = _remnants(kernel, settings, self._interface)
                self._owner = True
                _undo(kernel, remnants)
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
        self._facts = Facts(_ipv6_enabled(own), _strict_elsewhere(own))
        if self._settings.routing.backend is Backend.MARKS:
            _check_sources_by_mark(own)

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
        rules, found = _tagged(kernel, self._settings)
        routes = {
            (f.route.table, f.route.prefix): f.route
            for f in found
            if f.route.local or f.interface == self._interface
        }
        return Plan(tuple(sorted(rules, key=adding_order)), routes, mtu)

    def _remove(self) -> None:
        settings = self._settings
        with self._connected() as kernel:
            _undo(kernel, _tagged(kernel, settings))
        if settings.routing.backend is Backend.MARKS:
            marks.remove(settings.interface)


def cleanup(settings: Settings) -> list[str]:
    """Remove what a killed daemon left behind; return a line for each thing removed.

    RoutingError if the daemon, or another one with the same table, still runs.
    """
    with connect(settings.routing.protocol) as kernel:
        remnants = _remnants(kernel, settings, interface=0)
        _undo(kernel, remnants)
    rules, routes = remnants
    counts = {"routing rules": len(rules), "routes": len(routes)}
    lines = [f"removed {count} {what}" for what, count in counts.items() if count]
    return lines + marks.remove(settings.interface)


# --- what is ours in the kernel

_Remnants = tuple[list[Rule], list[Installed]]


def _tables(settings: Settings, relay: bool) -> Sequence[int]:
    first = settings.routing.table
    return range(first, first + (3 if relay else 2))


def _rules_in_range(
    kernel: Kernel, settings: Settings, relay: bool
) -> list[tuple[Rule, int]]:
    after = settings.routing.priority + PRIORITIES
    first = settings.routing.priority - (RELAY_PRIORITIES if relay else 0)
    return [
        (rule, tag)
        for family in _FAMILIES
        for rule, tag in kernel.rules(family)
        if first <= rule.priority < after
    ]


def _routes(kernel: Kernel, tables: Sequence[int]) -> list[Installed]:
    return [
        route
        for family in _FAMILIES
        for table in tables
        for route in kernel.routes(family, table)
    ]


def _tagged(kernel: Kernel, settings: Settings) -> _Remnants:
    """Return the rules and routes with our tag in our places."""
    # Those of a relay in any case: the run that left them may have been one.
    found = _rules_in_range(kernel, settings, relay=True)
    rules = [rule for rule, tag in found if tag == kernel.tag]
    tables = _tables(settings, relay=True)
    routes = [r for r in _routes(kernel, tables) if r.tag == kernel.tag]
    return rules, routes


def _remnants(kernel: Kernel, settings: Settings, interface: int) -> _Remnants:
    """Return what a killed run left; RoutingError if the places are not ours.

    ``interface``: the index of our own, 0 if there is none.
    """
    first, relay = settings.routing.priority, settings.relay.enabled
    for rule, tag in _rules_in_range(kernel, settings, relay):
        if tag != kernel.tag:
            raise RoutingError(
                f"the routing rule of priority {rule.priority} belongs to other "
                f"software: set another priority than {first} under [routing]"
            )
    rules, routes = _tagged(kernel, settings)
    ours = set(_tables(settings, relay))
    led = {rule.target for rule in rules if rule.action is Action.LOOKUP}
    others = {
        index: name for index, name in socket.if_nameindex() if index != interface
    }
    for found in _routes(kernel, sorted(ours | led - {MAIN_TABLE})):
        table = found.route.table
        through_another = found.interface in others and not found.route.local
        if found.tag == kernel.tag and through_another:
            raise RoutingError(
                f"another daemon, on interface {others[found.interface]}, routes with "
                f"table {table}: stop it, or set another table and priority under "
                f"[routing]"
            )
        if found.tag != kernel.tag and table in ours:
            raise RoutingError(
                f"the route to {found.route.prefix} in table {table} belongs to other "
                f"software: set another table under [routing]"
            )
    return rules, routes


def _undo(kernel: Kernel, remnants: _Remnants) -> None:
    rules, routes = remnants
    for rule in sorted(rules, key=adding_order, reverse=True):
        kernel.delete_rule(rule)
    for found in routes:
        kernel.delete_route(found.route)


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


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise RoutingError(
            f"interface {interface} does not exist; was it deleted?"
        ) from None


def _ipv6_enabled(interface: str) -> bool:
    try:
        value = _sysctl(f"ipv6/conf/{interface}/disable_ipv6").read_text()
    except OSError:
        return False
    return value.strip() == "0"


def _check_sources_by_mark(interface: str) -> None:
    """Have the reverse-path check of inner packets look at their mark, as routing does.

    Only our own interface's setting is written, which vanishes with it, and only if
    it has to be: /proc/sys may be read-only.
    """
    try:
        checked = _effective("rp_filter", interface)
        if checked and not _effective("src_valid_mark", interface):
            _sysctl(f"ipv4/conf/{interface}/src_valid_mark").write_text("1")
    except OSError as error:
        raise RoutingError(
            f"cannot set net.ipv4.conf.{interface}.src_valid_mark to 1: "
            f"{error.strerror}; set it for all, or rp_filter to 0, from outside"
        ) from error


def _strict_elsewhere(interface: str) -> bool:
    """Tell whether strict rp_filter is in effect on an interface that is not ours."""
    no_others = ("all", "default", "lo", interface)
    for place in _sysctl("ipv4/conf").iterdir():
        if place.name not in no_others:
            with suppress(FileNotFoundError):  # gone by now
                if _effective("rp_filter", place.name) == 1:
                    return True
    return False


def _effective(name: str, interface: str) -> int:
    """Return an IPv4 setting of which the largest value counts."""
    scopes = ("all", interface)
    return max(int(_sysctl(f"ipv4/conf/{s}/{name}").read_text()) for s in scopes)


def _sysctl(name: str) -> FilePath:
    return FilePath("/proc/sys/net", name)


def _subscribe() -> socket.socket:
    """Return a socket that hears of every change of the host's network."""
    # pyroute2 would decode each notice in the thread that carries packets, and there
    # may be thousands; all there is to know is whose doing it was.
    events = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        0,
    )
    with suppress(OSError):  # in a container the host's limit may apply
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    events.bind((0, _GROUPS))
    return events


def _drain(events: socket.socket, own_port: int) -> bool:
    """Read all that is there; tell whether something was not our own doing."""
    changed = False
    while True:
        try:
            (port,) = _NOTICE.unpack(events.recv(_NOTICE.size))
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # there was too much of it to keep
        else:
            changed = changed or port != own_port
