"""Rules and routes that lead a peer's packets into the tunnel, and only those."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import ParamSpec, TypeVar

import trio

from alpha_trio.config import Backend, IPAddress, Settings
from alpha_trio.errors import RoutingError
from alpha_trio.net import kernel, marks
from alpha_trio.net.kernel import Installed, Link, Path
from alpha_trio.net.netlink import Netlink, NetlinkError, Request, parse_messages
from alpha_trio.net.plan import (
    MAIN_TABLE,
    PATH_MTU,
    PRIORITIES,
    Action,
    Facts,
    PeerRoute,
    Plan,
    Rule,
    Underlay,
    adding_order,
    inner_mtu,
    plan,
)

__all__ = ["PeerRoute", "Router", "Underlay", "cleanup"]

T = TypeVar("T")
P = ParamSpec("P")

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_QUEUE = 1000  # packets that wait in the interface for the daemon
_GSO_BYTES = 61_440  # a super-packet and our headers then fit into one UDP send
_SETTLE = 0.1  # seconds; one change of a link brings a dozen messages

# Bits of sockaddr_nl.nl_groups: links, IPv4 and IPv6 addresses, routes and rules,
# and settings such as rp_filter.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23
_READ = 1 << 18  # bytes

# What there already is need not be added, what is gone need not be removed.
_HARMLESS = (errno.EEXIST, errno.ESRCH, errno.ENOENT)


class Router:
    """Owner of everything we put into the kernel's routing, and of its removal."""

    def __init__(self, settings: Settings) -> None:
        """Do nothing yet; the interface named in ``settings`` may still be missing."""
        self._settings = settings
        self._netlink: Netlink | None = None
        self._events: socket.socket | None = None
        self._lock = trio.Lock()
        self._interface = 0
        self._owner = False  # what bears our tag is ours, not another daemon's
        # What was found and put in place last; ``_stale``: may no longer be true.
        self._stale = True
        self._facts = Facts()
        self._links: dict[int, Link] = {}
        self._paths: dict[IPAddress, Path | str] = {}
        self._plan = Plan((), {}, 0)
        self._marks: marks.Marks | None = None

    async def open(self) -> None:
        """Configure the (existing) interface, remove leftovers, check collisions.

        RoutingError if our table or priorities belong to another, or an address
        cannot be set.  Then, and if cancelled, ``close`` has to be called.
        """
        # Both belong to the network namespace of the calling thread from now on.
        self._netlink = Netlink()
        self._events = _subscribe()
        await self._transaction(self._prepare)

    async def apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        """Make the kernel's state match ``peers``; change only what differs.

        Return how each peer is reached, by name.  RoutingError if something cannot
        be set; the rest is set nevertheless.  Not cancelled half-way.
        """
        async with self._lock:
            if self._stale:
                ipv6 = _ipv6_enabled(self._settings.interface)
                self._facts = Facts(ipv6, self._facts.strict)
                if self._settings.routing.backend is Backend.MARKS:
                    _check_sources_by_mark(self._settings.interface)
            try:
                return await self._transaction(lambda: self._apply(peers))
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
                    await self._transaction(self._remove)
            finally:
                for resource in (self._netlink, self._events):
                    if resource is not None:
                        resource.close()
                self._netlink = self._events = None
                self._owner = False

    @property
    def _port(self) -> int:
        return self._netlink.port if self._netlink is not None else 0

    async def _transaction(self, function: Callable[[], T]) -> T:
        """Call a function that blocks for milliseconds, in a thread."""
        try:
            return await trio.to_thread.run_sync(function)
        except NetlinkError as error:
            raise RoutingError(f"kernel routing: {error.strerror}") from error

    def _opened(self) -> Netlink:
        if self._netlink is None:
            raise RuntimeError("the router is not open")
        return self._netlink

    # --- in the thread from here on

    def _prepare(self) -> None:
        netlink, settings = self._opened(), self._settings
        self._interface = _index(kernel.links(netlink), settings.interface)
        if settings.routing.backend is not Backend.NONE:
            remnants = _remnants(netlink, settings, self._interface)
            self._owner = True
            _undo(netlink, settings, remnants)
            marks.remove(settings.interface)
        self._configure()

    def _configure(self) -> None:
        netlink, index = self._opened(), self._interface
        kernel.commit(
            netlink,
            [kernel.set_no_own_addresses(index)],
            errno.EAFNOSUPPORT,  # no IPv6 at all
        )
        mtu = plan(self._settings, (), {}, Facts()).mtu
        changes = [
            kernel.set_queue(index, _QUEUE, _GSO_BYTES),
            kernel.set_mtu(index, mtu),
            *(kernel.add_address(index, a) for a in self._settings.addresses),
            kernel.set_up(index),
        ]
        kernel.commit(netlink, changes)

    def _apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        stale, self._stale = self._stale, False
        if stale:
            self._look_around()
        self._look_up(peers)
        underlays = {peer.name: self._underlay(peer) for peer in peers}
        wanted = plan(self._settings, peers, underlays, self._facts)
        present = self._present() if stale else self._plan
        tag, index = self._settings.routing.protocol, self._interface
        changes = list(_changes(present, wanted, index, tag))
        kernel.commit(self._opened(), changes, *_HARMLESS)
        if self._settings.routing.backend is Backend.MARKS:
            self._apply_marks(peers)
        self._plan = wanted
        return underlays

    def _apply_marks(self, peers: Sequence[PeerRoute]) -> None:
        wanted = marks.of(self._settings, peers)
        if wanted != self._marks:
            self._marks = None
            marks.load(wanted)
            self._marks = wanted

    def _look_around(self) -> None:
        netlink = self._opened()
        self._paths.clear()
        self._links = kernel.links(netlink)
        strict = kernel.strict_interfaces(netlink) - {self._interface}
        self._facts = Facts(self._facts.ipv6, bool(strict))

    def _look_up(self, peers: Sequence[PeerRoute]) -> None:
        """Learn the way to every endpoint that is not known yet."""
        endpoints = {peer.endpoint for peer in peers if peer.endpoint is not None}
        for gone in self._paths.keys() - endpoints:
            del self._paths[gone]
        unknown = list(endpoints - self._paths.keys())
        questions = [kernel.look_up(a, self._settings.port) for a in unknown]
        answers = self._opened().ask(questions)
        for address, answer in zip(unknown, answers, strict=True):
            if isinstance(answer, NetlinkError):
                self._paths[address] = f"no route to {address}: {answer.strerror}"
            else:
                self._paths[address] = kernel.parse_path(answer)

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
        link = self._links.get(path.interface)
        mtu = path.mtu or (link.mtu if link else PATH_MTU)
        return Underlay(inner_mtu(mtu, peer), path.source, link.name if link else None)

    def _present(self) -> Plan:
        """Return what the kernel has of ours."""
        netlink, routing = self._opened(), self._settings.routing
        mtu = self._links[self._interface].mtu if self._interface in self._links else 0
        if routing.backend is Backend.NONE:
            return Plan((), {}, mtu)
        rules = [
            rule
            for rule, tag in _rules_in_range(netlink, routing.priority)
            if tag == routing.protocol
        ]
        routes = {
            (found.route.table, found.route.prefix): found.route
            for found in _routes(netlink, _tables(self._settings))
            if found.tag == routing.protocol and found.interface == self._interface
        }
        return Plan(tuple(sorted(rules, key=adding_order)), routes, mtu)

    def _remove(self) -> None:
        netlink, settings = self._opened(), self._settings
        _undo(netlink, settings, _tagged(netlink, settings))
        if settings.routing.backend is Backend.MARKS:
            marks.remove(settings.interface)


def cleanup(settings: Settings) -> list[str]:
    """Remove what a killed daemon left behind; return a line for each thing removed.

    RoutingError if the daemon, or another one with the same table, still runs.
    """
    try:
        with Netlink() as netlink:
            remnants = _remnants(netlink, settings, interface=0)
            _undo(netlink, settings, remnants)
    except NetlinkError as error:
        raise RoutingError(f"kernel routing: {error.strerror}") from error
    rules, routes = remnants
    counts = {"routing rules": len(rules), "routes": len(routes)}
    lines = [f"removed {count} {what}" for what, count in counts.items() if count]
    return lines + marks.remove(settings.interface)


# --- what is ours in the kernel

_Remnants = tuple[list[Rule], list[Installed]]


def _tables(settings: Settings) -> tuple[int, int]:
    return settings.routing.table, settings.routing.table + 1


def _rules_in_range(netlink: Netlink, first: int) -> list[tuple[Rule, int]]:
    return [
        (rule, tag)
        for family in _FAMILIES
        for rule, tag in _unless_no_ipv6(kernel.rules, netlink, family)
        if first <= rule.priority < first + PRIORITIES
    ]


def _routes(netlink: Netlink, tables: Sequence[int]) -> list[Installed]:
    return [
        route
        for family in _FAMILIES
        for table in tables
        for route in _unless_no_ipv6(kernel.routes, netlink, family, table)
    ]


def _unless_no_ipv6(
    question: Callable[P, list[T]], *args: P.args, **kwargs: P.kwargs
) -> list[T]:
    try:
        return question(*args, **kwargs)
    except NetlinkError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return []
        raise


def _tagged(netlink: Netlink, settings: Settings) -> _Remnants:
    """Return the rules and routes with our tag in our places."""
    tag = settings.routing.protocol
    found = _rules_in_range(netlink, settings.routing.priority)
    rules = [rule for rule, owner in found if owner == tag]
    routes = [r for r in _routes(netlink, _tables(settings)) if r.tag == tag]
    return rules, routes


def _remnants(netlink: Netlink, settings: Settings, interface: int) -> _Remnants:
    """Return what a killed run left; RoutingError if the places are not ours.

    ``interface``: the index of our own, 0 if there is none.
    """
    tag, first = settings.routing.protocol, settings.routing.priority
    links = kernel.links(netlink)
    for rule, owner in _rules_in_range(netlink, first):
        if owner != tag:
            raise RoutingError(
                f"the routing rule of priority {rule.priority} belongs to other "
                f"software: set another priority than {first} under [routing]"
            )
    rules, _ = _tagged(netlink, settings)
    ours = set(_tables(settings))
    led = {rule.target for rule in rules if rule.action is Action.LOOKUP}
    for found in _routes(netlink, sorted(ours | led - {MAIN_TABLE})):
        table = found.route.table
        if found.tag == tag and found.interface in links.keys() - {interface}:
            name = links[found.interface].name
            raise RoutingError(
                f"another daemon, on interface {name}, routes with table {table}: "
                f"stop it, or set another table and priority under [routing]"
            )
        if found.tag != tag and table in ours:
            raise RoutingError(
                f"the route to {found.route.prefix} in table {table} belongs to other "
                f"software: set another table under [routing]"
            )
    return _tagged(netlink, settings)


def _undo(netlink: Netlink, settings: Settings, remnants: _Remnants) -> None:
    tag = settings.routing.protocol
    rules, routes = remnants
    changes = [
        kernel.delete_rule(rule, tag)
        for rule in sorted(rules, key=adding_order, reverse=True)
    ]
    changes += [kernel.delete_route(r.route.table, r.route.prefix, tag) for r in routes]
    kernel.commit(netlink, changes, *_HARMLESS)


def _changes(
    present: Plan, wanted: Plan, interface: int, tag: int
) -> Iterator[Request]:
    """Yield what turns one plan into the other; add before remove.

    So no packet of a peer that stays meets a gap.
    """
    if wanted.mtu > present.mtu:
        yield kernel.set_mtu(interface, wanted.mtu)
    for key, route in wanted.routes.items():
        if present.routes.get(key) != route:
            yield kernel.put_route(route, interface, tag)
    known, kept = set(present.rules), set(wanted.rules)
    for rule in wanted.rules:
        if rule not in known:
            yield kernel.add_rule(rule, tag)
    for rule in reversed(present.rules):
        if rule not in kept:
            yield kernel.delete_rule(rule, tag)
    for key in present.routes.keys() - wanted.routes.keys():
        yield kernel.delete_route(*key, tag)
    if wanted.mtu < present.mtu:
        yield kernel.set_mtu(interface, wanted.mtu)


# --- the host


def _index(links: Mapping[int, Link], name: str) -> int:
    for link in links.values():
        if link.name == name:
            return link.index
    raise RoutingError(f"interface {name} does not exist; was it deleted?")


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


def _effective(name: str, interface: str) -> int:
    """Return an IPv4 setting of which the largest value counts."""
    scopes = ("all", interface)
    return max(int(_sysctl(f"ipv4/conf/{s}/{name}").read_text()) for s in scopes)


def _sysctl(name: str) -> FilePath:
    return FilePath("/proc/sys/net", name)


def _subscribe() -> socket.socket:
    """Return a socket that hears of every change of the host's network."""
    events = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        0,
    )
    events.bind((0, _GROUPS))
    return events


def _drain(events: socket.socket, own_port: int) -> bool:
    """Read all that is there; tell whether something was not our own doing."""
    changed = False
    while True:
        try:
            data = events.recv(_READ)
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # there was too much of it to keep
            continue
        changed = changed or any(m.port != own_port for m in parse_messages(data))
