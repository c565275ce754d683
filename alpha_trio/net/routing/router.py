"""Rules and routes that lead a peer's packets into the tunnel, and only those."""

from __future__ import annotations

import socket
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from math import inf
from typing import TypeVar

import trio
from attrs import evolve

from alpha_trio.errors import RoutingError, refusal
from alpha_trio.net import netfilter
from alpha_trio.net.routing import clamp, inner, marks
from alpha_trio.net.routing.astray import (
    Others,
    Way,
    leads_in,
    local_behind,
    not_home,
    ways,
)
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
from alpha_trio.net.routing.questions import Question, ask
from alpha_trio.net.routing.remnants import remnants, tagged, undo
from alpha_trio.net.routing.sysctl import (
    check_sources_by_mark,
    ipv6_enabled,
    strict_elsewhere,
)
from alpha_trio.net.source import stable_source
from alpha_trio.settings import Backend, IPAddress, Settings
from alpha_trio.threads import in_thread

T = TypeVar("T")

_QUEUE = 1000  # packets that wait in the interface for the daemon
_GSO_BYTES = 61_200  # a super-packet and our headers then fit into one UDP send
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_FILTERS_SETTLE = 5.0  # seconds; where containers come and go rules always change
_SETTLE = 0.1  # seconds; one change of a link brings a dozen messages
_NOTHING = Plan((), {}, 0)


class Router:
    """Owner of everything we put into the kernel's routing, and of its removal."""

    def __init__(self, settings: Settings) -> None:
        """Do nothing yet; the interface named in ``settings`` may still be missing."""
        self._settings = settings
        self._events: socket.socket | None = None
        self._port = 0  # what notices of our own changes name as their cause
        self._lock = trio.Lock()
        self._interface = 0
        self._name = settings.interface  # until it is renamed
        self._owner = False  # what bears our tag is ours, not another daemon's
        # What was found and put in place last; ``_stale``: may no longer be true.
        self._stale = True
        self._facts = Facts()
        self._paths: dict[IPAddress, Path | str] = {}
        self._homes: dict[IPAddress, set[int]] = {}  # our addresses, on which devices
        self._plan = Plan((), {}, 0)
        self._marks: marks.Marks | None = None
        self._others = Others((), settings.routing.priority)
        self._astray: dict[str, tuple[tuple[Way, ...], tuple[str, ...]]] = {}
        self._doubtful = False  # something leads elsewhere, and nobody's rule says so
        self.complaints: tuple[str, ...] = ()  # what is wrong for all peers, not one
        self._filters: netfilter.Watch | None = None
        self._filters_stale = True
        self._filters_heard = -inf  # when rules of the packet filter changed
        self._refused: Collection[RouteKey] = ()  # of what is in the plan
        self._put_back: list[str] = []
        self._checks: list[netfilter.SourceCheck] = []  # of the packet filter's own
        self._unmarked: str | None = None  # why they cannot be satisfied

    async def open(self) -> None:
        """Configure the (existing) interface, remove leftovers, check collisions.

        RoutingError if our table or priorities belong to another, or an address
        cannot be set.  Then, and if cancelled, ``close`` has to be called.
        """
        self._events = subscribe()
        with suppress(OSError):  # a kernel without nftables has no notices of it
            self._filters = netfilter.Watch()
        await _in_thread(self._prepare)

    async def apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        """Make the kernel's state match ``peers``; change only what differs.

        Return how each peer is reached, by name, which of its routes the kernel
        refused, and which of its prefixes are led elsewhere.  RoutingError if
        something else cannot be set; the rest is set nevertheless.  DeviceLost if
        our interface is gone.  Not cancelled half-way.
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

    async def wait_filters_changed(self) -> None:
        """Return when rules of the packet filter may have changed, but not too often.

        Then ``apply`` has to be called again.  What comes after a quiet time is told
        at once: it may have taken away what leads packets into the tunnel.
        """
        await trio.sleep_until(self._filters_heard + _FILTERS_SETTLE)
        if self._filters is None:
            await trio.sleep_forever()
        else:
            await self._filters.wait_changed()
        self._filters_heard = trio.current_time()
        self._stale = self._filters_stale = True

    def mark_stale(self) -> None:
        """Have the next ``apply`` look at everything anew, paths' MTU included.

        For a caller who knows better than the kernel's notices, as after EMSGSIZE.
        """
        self._stale = True

    def take_put_back(self) -> list[str]:
        """Return what others removed and ``apply`` put back since the last call."""
        put_back, self._put_back = self._put_back, []
        return put_back

    async def close(self) -> None:
        """Undo everything; safe to call after a failed or partial open."""
        async with self._lock:
            try:
                if self._owner:
                    await _in_thread(self._remove)
            finally:
                for opened in (self._events, self._filters):
                    if opened is not None:
                        opened.close()
                self._events = self._filters = None
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
                inner.remove(settings)
            clamp.remove(settings.interface)
            self._configure(kernel)
        if settings.routing.mss:
            self._owner = True
            clamp.load(settings.interface)

    def _configure(self, kernel: Kernel) -> None:
        index = self._interface
        kernel.set_no_own_addresses(index)
        kernel.set_queue(index, _QUEUE, _GSO_BYTES)
        kernel.set_mtu(index, plan(self._settings, (), {}, Facts()).mtu)
        for address in self._settings.addresses:
            kernel.add_address(index, address)
        kernel.set_up(index)

    def _apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        underlays = self._put_in_place(peers)
        if self._doubtful:  # something has changed while we looked
            self._stale = True
            underlays = self._put_in_place(peers)
        return underlays

    def _put_in_place(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        stale, self._stale = self._stale, False
        with self._connected() as kernel:
            if stale:
                self._look_around(kernel)
                self._restore_addresses(kernel)
            self._look_up(kernel, peers)
            underlays = {peer.name: self._underlay(peer) for peer in peers}
            wanted = plan(self._settings, peers, underlays, self._facts)
            present = self._present(kernel) if stale else self._plan
            missing = self._missing(present, wanted)
            _give_addresses(kernel, self._plan, wanted, self._interface, anew=stale)
            refused = _change(kernel, present, wanted, self._interface)
            if _take_addresses(kernel, self._plan, wanted, self._interface):
                refused |= _put_routes(kernel, _NOTHING, wanted, self._interface)
        self._refused = frozenset(refused)
        self._put_back += missing
        self._stale = self._stale or bool(refused)  # then what is there is uncertain
        if self._settings.routing.backend is Backend.MARKS:
            self._apply_marks(peers)
        self._plan = wanted
        underlays = {
            peer.name: self._with_refusals(peer, underlays[peer.name], refused)
            for peer in peers
        }
        return self._check(peers, underlays, anew=stale)

    def _missing(self, present: Plan, wanted: Plan) -> list[str]:
        """Say what is wanted as before, and is no more where it was put."""
        before = self._plan
        rules = (set(before.rules) & set(wanted.rules)) - set(present.rules)
        routes = {
            key
            for key, route in before.routes.items()
            if wanted.routes.get(key) == route and key not in self._refused
        } - present.routes.keys()
        counts = {"rule": len(rules), "route": len(routes)}
        return [f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n]

    def _restore_addresses(self, kernel: Kernel) -> None:
        """Put back what was removed, or lost with its link, as IPv6 ones are."""
        # To set one that is there would be told as a change, and not as ours.
        present = kernel.addresses(self._interface)
        for address in self._settings.addresses:
            if self._possible(address.version) and address not in present:
                kernel.add_address(self._interface, address)
        # One that has left its own card must not live on here, or the kernel goes on
        # choosing it.
        gone = [a for a in self._plan.addresses if a.address not in self._facts.own]
        for own in gone:
            kernel.delete_own_address(self._interface, own)
        kept = [a for a in self._plan.addresses if a not in gone]
        self._plan = evolve(self._plan, addresses=tuple(kept))

    def _apply_marks(self, peers: Sequence[PeerRoute]) -> None:
        wanted = marks.of(self._settings, peers, self._name)
        if wanted != self._marks:
            self._marks = None
            marks.load(wanted)
            self._marks = wanted

    def _look_around(self, kernel: Kernel) -> None:
        self._follow_name(kernel.name_of(self._interface, self._name))
        own = self._name
        self._paths.clear()
        if self._filters_stale:
            self._filters_stale = False
            self._look_at_own_filters()
            if self._settings.routing.backend is not Backend.NONE:
                self._look_at_filters()
        checked = frozenset() if self._unmarked else inner.told_apart(self._checks)
        self._homes = kernel.homes(but=self._interface)
        elsewhere = frozenset(self._homes)
        strict = strict_elsewhere(own)
        rules = [found for family in _FAMILIES for found in kernel.rules(family)]
        first = self._settings.routing.priority
        self._others = Others([r for r in rules if r[1] != kernel.tag], first)
        behind = local_behind(rules, first)
        ipv6 = ipv6_enabled(own)
        self._facts = Facts(ipv6, strict, checked, elsewhere, behind)
        if self._settings.routing.backend is Backend.MARKS:
            check_sources_by_mark(own)

    def _follow_name(self, name: str) -> None:
        """Our interface may be renamed; the packet filter knows it by name only."""
        if name != self._name:
            self._name = name
            self._filters_stale = True
            inner.remove(self._settings)

    def _look_at_own_filters(self) -> None:
        """Put back our rules: who loads his own anew often removes all others."""
        interface = self._settings.interface
        if self._marks is not None and not marks.is_loaded(interface):
            self._marks = None  # so that they are loaded with the rest
            self._put_back.append("the packet filter's marks")
        if self._settings.routing.mss and not clamp.is_loaded(interface):
            clamp.load(interface)
            self._put_back.append("the packet filter's rules for mss")

    def _look_at_filters(self) -> None:
        """See who checks sources, and mark what comes out of the tunnel for them."""
        name = self._name
        self._checks = netfilter.source_checks(name)
        self._unmarked = None
        try:
            inner.apply(self._settings, name, self._checks)
        except RoutingError as error:
            self._unmarked = (
                f"the packet filter drops what the tunnel brings, by the rule "
                f"'{self._checks[0].rule}', and nft, which could tell it apart, says "
                f"no: {error}: install nftables, or accept what comes by {name}"
            )

    def _look_up(self, kernel: Kernel, peers: Sequence[PeerRoute]) -> None:
        """Learn the way to every endpoint that is not known yet."""
        endpoints = {peer.endpoint for peer in peers if peer.endpoint is not None}
        for gone in self._paths.keys() - endpoints:
            del self._paths[gone]
        routing = self._settings.routing
        mark = routing.mark if routing.backend is Backend.RULES else 0
        for address in endpoints - self._paths.keys():
            try:
                path = kernel.look_up(address, self._settings.port)
                if address.version == 6 and not path.local:
                    source = stable_source(address, self._settings.port, mark)
                    path = evolve(path, source=source or path.source)
                self._paths[address] = path
            except RoutingError as error:
                self._paths[address] = str(error)

    def _underlay(self, peer: PeerRoute) -> Underlay:
        path = None if peer.endpoint is None else self._paths[peer.endpoint]
        unknown = Underlay(inner_mtu(PATH_MTU, peer), endpoint=peer.endpoint)
        if path is None:
            return unknown
        lost = self._is_lost(peer, path)
        if isinstance(path, str):
            return evolve(unknown, error=path, lost=lost)
        if path.local:
            error = f"{peer.endpoint} is that host's own address, which is this one"
            return evolve(unknown, error=error)
        if path.broadcast:
            error = f"{peer.endpoint} is the broadcast address of {path.device}"
            return evolve(unknown, error=error)
        if path.interface == self._interface:
            error = f"the route to {peer.endpoint} leads into the tunnel itself"
            return evolve(unknown, error=error)
        return Underlay(
            inner_mtu(path.mtu, peer),
            path.source if lost or peer.local is None else peer.local,
            path.device,
            path.interface,
            peer.endpoint,
            lost,
            path_mtu=path.mtu,
        )

    def _is_lost(self, peer: PeerRoute, path: Path | str) -> bool:
        """Tell whether the peer has to learn another address of ours.

        An address of an interface that the way there has left is of no use: its
        network lets nothing come back, or nothing leave.  One that never was on the
        way, as that of a host that forwards, stays.
        """
        if peer.local is None:
            return False
        homes = self._homes.get(peer.local, set())
        if isinstance(path, str) or path.interface == peer.interface:
            return not homes
        return not homes or (peer.interface in homes and path.interface not in homes)

    def _with_refusals(
        self, peer: PeerRoute, underlay: Underlay, refused: Mapping[RouteKey, str]
    ) -> Underlay:
        if not refused:
            return underlay
        table = peer_table(self._settings, peer)
        reasons = [refused.get((table, prefix)) for prefix in peer.prefixes]
        return evolve(underlay, refused=tuple(filter(None, reasons)))

    def _is_broadcast(self, peer: PeerRoute) -> bool:
        path = None if peer.endpoint is None else self._paths[peer.endpoint]
        return isinstance(path, Path) and path.broadcast

    def _check(
        self,
        peers: Sequence[PeerRoute],
        underlays: Mapping[str, Underlay],
        *,
        anew: bool,
    ) -> Mapping[str, Underlay]:
        """Ask the kernel where packets go: to the peers, and to ourselves."""
        self._doubtful = False
        if self._settings.routing.backend is Backend.NONE:
            return underlays
        home, complaints = self._find_home(underlays.values())
        filtered = self._unmarked or inner.complaint(self._checks, peers)
        self.complaints = (*complaints, *([filtered] if filtered else ()))
        asked = {
            peer.name: tuple(ways(self._settings, peer, self._plan, home))
            for peer in peers
            # Either is told already; what a link sends to all takes no route at all.
            if not underlays[peer.name].refused and not self._is_broadcast(peer)
        }
        known = {} if anew else self._astray
        news = {
            name: found
            for name, found in asked.items()
            if name not in known or known[name][0] != found or known[name][1]
        }
        sentences = self._ask(news)
        self._astray = {
            name: (found, tuple(sentences[name]) if name in news else known[name][1])
            for name, found in asked.items()
        }
        return {
            name: evolve(underlay, astray=self._astray[name][1])
            if name in asked and self._astray[name][1]
            else underlay
            for name, underlay in underlays.items()
        }

    def _find_home(
        self, underlays: Iterable[Underlay]
    ) -> tuple[set[IPAddress], list[str]]:
        """Return our addresses that lead to this host, and a sentence for others."""
        own = {underlay.source for underlay in underlays} - {None}
        own |= {a.ip for a in self._settings.addresses if self._possible(a.version)}
        addresses = sorted((a for a in own if a is not None), key=str)
        answers = ask([Question(address) for address in addresses])
        found = {
            address: not_home(address, answer, self._others)
            for address, answer in zip(addresses, answers, strict=True)
        }
        home = {address for address, complaint in found.items() if complaint is None}
        self._doubtful = len(home) < len(found)
        return home, list(filter(None, found.values()))

    def _ask(self, asked: Mapping[str, Sequence[Way]]) -> Mapping[str, list[str]]:
        """Return a sentence for each way of each peer that leads elsewhere."""
        pairs = [(name, way) for name, found in asked.items() for way in found]
        answers = ask([way.question for _, way in pairs])
        sentences: dict[str, list[str]] = {name: [] for name in asked}
        for (name, way), answer in zip(pairs, answers, strict=True):
            culprit = self._others.culprit(way.question, answer)
            if not leads_in(way, answer, self._interface, culprit is not None):
                self._doubtful = self._doubtful or culprit is None
                where = f"leave by {_name(answer.interface)}, outside the tunnel"
                sentences[name].append(
                    self._others.sentence(str(way.prefix), way.question, answer, where)
                )
        return sentences

    def _possible(self, version: int) -> bool:
        return version == 4 or self._facts.ipv6

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
        inner.remove(settings)
        if settings.routing.backend is Backend.MARKS:
            marks.remove(settings.interface)
        if settings.routing.mss:
            clamp.remove(settings.interface)


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


def _give_addresses(
    kernel: Kernel, before: Plan, wanted: Plan, interface: int, *, anew: bool
) -> None:
    """Have our interface bear the addresses by which peers know us.

    ``before`` tells which ones are ours; ``anew``: they may have been taken away.
    """
    # To set one that is there would be told as a change, and not as ours.
    present = kernel.own_addresses(interface) if anew else set(before.addresses)
    for own in wanted.addresses:
        if own not in present:
            kernel.put_own_address(interface, own)


def _take_addresses(kernel: Kernel, before: Plan, wanted: Plan, interface: int) -> bool:
    """Have it bear none that is not wanted; True if that has cost it its routes.

    To be done last: with the last IPv4 address of a link the kernel removes all its
    IPv4 routes, and what is sent then leaves outside the tunnel.
    """
    unwanted = [own for own in before.addresses if own not in wanted.addresses]
    for own in unwanted:
        kernel.delete_own_address(interface, own)
    left = {own.address.version for own in wanted.addresses}
    return 4 in {own.address.version for own in unwanted} - left


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


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:
        return "no interface"


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
