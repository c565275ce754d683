"""What should be in the kernel's routing, as a pure function of what is known.

The traffic to protect goes to the very address the tunnel itself talks to.  So the
rules first let the daemon's own UDP pass by, then look into our table:

    P+0   iif lo ipproto udp sport PORT goto END; fwmark MARK goto END
    P+1   [if asked] what is a packet and no question       goto SELECT
    P+2   [if asked] goto END
    P+3   [if asked] nop                                   (SELECT)
          [if others have moved it behind ours] lookup local
    P+4   to PREFIX ipproto X dport A-B lookup TABLE+1     (--only; also with sport)
    P+5.. lookup main suppress_prefixlength L; lookup TABLE suppress_prefixlength L-1
          for each length L of the peers' prefixes, longest first
    P+27  nop                                              (END)

A relay hands others' tunnel traffic, which the packet filter has marked for it, to a
socket of this host, wherever it goes to:

    P-3   iif lo fwmark RELAY goto P-1
    P-2   fwmark RELAY lookup TABLE+2
    P-1   nop

docs/routing.md has the reasons, one by one.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from ipaddress import ip_network
from typing import Any

from attrs import frozen

from alpha_trio.errors import RoutingError
from alpha_trio.settings import Backend, IPAddress, IPNetwork, Selection, Settings

PRIORITIES = 28  # how many, from settings.routing.priority on, are ours
_OWN, _PROTOCOLS, _PASS, _SELECT, _ONLY, _LENGTHS, _END = 0, 1, 2, 3, 4, 5, 27
RELAY_PRIORITIES = 3  # as many before it, if we relay
MAX_LENGTHS = (_END - _LENGTHS) // 2  # distinct prefix lengths of one family

MAIN_TABLE, LOCAL_TABLE = 254, 255
PATH_MTU = 1500  # taken for a path nothing is known about
MIN_MTU = 68  # what every IPv4 link carries (RFC 791)
MIN_MTU6 = 1280  # what every IPv6 link carries
_TCP, _UDP, _ICMP = 6, 17, 1
_WHOLE_MARK = 0xFFFF_FFFF
_ANY_PORT = 1, 65534  # all that a rule takes
_NO_SOURCE = ip_network("0.0.0.0/32")

# Other protocols that are sent from an address chosen before: those that Linux has, of
# routing daemons and of clusters, for experiments (RFC 3692), and raw.
_BOUND: tuple[int, ...] = (
    *(2, 4, 33, 41, 46, 47, 50, 51, 88, 89, 94, 97, 103, 108, 112, 115, 124, 132),
    *(136, 137, 139, 253, 254, 255),
)


class Action(IntEnum):
    """What a rule does; the kernel's numbers."""

    LOOKUP = 1
    GOTO = 2
    NOP = 3
    # Those that only others' rules have.
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


@frozen
class Rule:
    """A routing rule, in the terms of ``ip rule``."""

    family: int  # socket.AF_INET or AF_INET6
    priority: int
    action: Action = Action.NOP
    target: int = 0  # table of LOOKUP, priority of GOTO
    to: IPNetwork | None = None
    source: IPNetwork | None = None  # "from"
    iif: str = ""
    oif: str = ""
    inverted: bool = False  # "not"
    protocol: int = 0  # IP protocol number; 0: any
    sport: tuple[int, int] | None = None  # first and last, both included
    dport: tuple[int, int] | None = None
    mark: int = 0  # 0: any
    mask: int = 0  # which bits of the mark count; 0: those it has
    suppress: int | None = None  # prefixes of this length or shorter do not count
    tos: int = 0
    uids: tuple[int, int] | None = None  # first and last user, both included


@frozen
class Route:
    """A route through our interface, or to a socket of this host."""

    table: int
    prefix: IPNetwork
    mtu: int = 0
    source: IPAddress | None = None
    local: bool = False  # taken as our own address


@frozen
class OwnAddress:
    """An address on our interface by which a peer knows us, for who sends by it.

    Masquerading takes a source from the interface a packet leaves by, and without one
    there, one of any other card.
    """

    address: IPAddress
    peer: IPAddress | None = None  # for packets to it this one; None: for all others


RouteKey = tuple[int, IPNetwork]  # table and prefix


@frozen
class PeerRoute:
    """What routing has to know of one peer."""

    name: str
    endpoint: IPAddress | None  # None: not resolved yet, then only prefixes matter
    prefixes: tuple[IPNetwork, ...]  # destinations that go through the tunnel
    only: tuple[Selection, ...]
    overhead: int  # bytes the tunnel adds to an inner packet, outer headers included
    mtu_limit: int | None = None  # inner MTU that was found; the link may take less
    addresses: tuple[IPAddress, ...] = ()  # all that are the peer's own
    local: IPAddress | None = None  # our address by which the peer knows us
    interface: int = 0  # by which it was reached when asked last; 0: not known


@frozen
class Underlay:
    """How a peer's endpoint is reached outside the tunnel."""

    mtu: int  # inner MTU for this peer: the path's MTU minus the overhead
    source: IPAddress | None = None  # our address by which the peer knows, or will
    device: str | None = None
    interface: int = 0  # the index of that device
    endpoint: IPAddress | None = None  # what it is the way to
    lost: bool = False  # the address by which the peer knew us is ours no more, or not
    # on the way that leads to it now
    error: str | None = None  # why it cannot be reached, for status
    path_mtu: int = PATH_MTU  # of the link or the route there, bytes of outer packets
    refused: tuple[str, ...] = ()  # which of its routes the kernel refuses, and why
    astray: tuple[str, ...] = ()  # which prefixes do not lead into the tunnel, and why

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why not all packets of the peer take the tunnel, a sentence for each."""
        return self.refused + self.astray


@frozen
class Facts:
    """What the plan depends on besides settings and peers."""

    ipv6: bool = True  # the host has IPv6
    strict: bool = False  # the way back to who asks by ARP has to be the underlay
    checked: frozenset[int] = frozenset()  # IP versions of which the packet filter
    # checks sources, by a look-up without ports
    own: frozenset[IPAddress] = frozenset()  # addresses of the other interfaces
    local_behind: frozenset[int] = frozenset()  # IP versions whose table "local" is
    # looked up behind our rules, as others have arranged it


@frozen
class Plan:
    """Rules in the order in which they can be added safely, and routes."""

    rules: tuple[Rule, ...]
    routes: Mapping[RouteKey, Route]
    mtu: int  # of the interface
    addresses: tuple[OwnAddress, ...] = ()  # besides those of the settings


def inner_mtu(path_mtu: int, peer: PeerRoute) -> int:
    """Return the largest inner packet for a peer, in bytes."""
    mtu = path_mtu - peer.overhead
    return max(MIN_MTU, mtu if peer.mtu_limit is None else min(mtu, peer.mtu_limit))


def plan(
    settings: Settings,
    peers: Sequence[PeerRoute],
    underlays: Mapping[str, Underlay],
    facts: Facts,
) -> Plan:
    """Return the rules, routes and MTU that lead ``peers`` into the tunnel.

    RoutingError if their prefixes have too many different lengths.
    """
    mtu = _interface_mtu(underlays.values(), facts)
    families = (socket.AF_INET, socket.AF_INET6) if facts.ipv6 else (socket.AF_INET,)
    rules: list[Rule] = []
    routes: dict[RouteKey, Route] = {}
    addresses: list[OwnAddress] = []
    if settings.routing.backend is not Backend.NONE:
        for peer in peers:
            for route in _routes(settings, peer, underlays[peer.name], facts):
                routes[route.table, route.prefix] = route
        for family in families:
            rules += _rules(settings, family, peers, routes, facts)
            addresses += _addresses(settings, family, peers, underlays, facts)
    if settings.relay.enabled:
        for family in families:
            rules += _relay_rules(settings, family)
            route = _relay_route(settings, family)
            routes[route.table, route.prefix] = route
    in_order = tuple(sorted(rules, key=adding_order))
    return Plan(in_order, routes, mtu, tuple(addresses))


def _addresses(
    settings: Settings,
    family: int,
    peers: Sequence[PeerRoute],
    underlays: Mapping[str, Underlay],
    facts: Facts,
) -> Iterator[OwnAddress]:
    """The address most peers know us by, and for the others that of each."""
    version = 4 if family == socket.AF_INET else 6
    if any(address.version == version for address in settings.addresses):
        return
    known_by = [
        (source, peer.endpoint)
        for peer in peers
        if (source := underlays[peer.name].source) is not None
        and source.version == version
        and source in facts.own  # and so goes when that interface loses it
        and not source.is_link_local
    ]
    if not known_by:
        return
    ((usual, _),) = Counter(source for source, _ in known_by).most_common(1)
    yield OwnAddress(usual)
    others = dict.fromkeys(pair for pair in known_by if pair[0] != usual)
    if version == 6:  # where the kernel chooses by the longest common prefix
        yield from map(OwnAddress, dict.fromkeys(source for source, _ in others))
    else:
        yield from (OwnAddress(source, peer) for source, peer in others)


def _relay_rules(settings: Settings, family: int) -> Iterator[Rule]:
    routing = settings.routing
    first, mark = routing.relay_priority, routing.relay_mark
    # A reverse-path check that looks at marks (src_valid_mark) asks as "lo" does, and
    # would take the sender's address for our own.
    goto, past = Action.GOTO, first + 2
    yield Rule(family, first, goto, past, iif="lo", mark=mark, mask=_WHOLE_MARK)
    table = routing.relay_table
    yield Rule(family, first + 1, Action.LOOKUP, table, mark=mark, mask=_WHOLE_MARK)
    yield Rule(family, past)


def _relay_route(settings: Settings, family: int) -> Route:
    everywhere = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
    return Route(settings.routing.relay_table, ip_network(everywhere), local=True)


def adding_order(rule: Rule) -> tuple[bool, int]:
    """Sort key of rules: safe to add in this order, to remove in the reverse one.

    Targets of goto come first, as one without its target is skipped.  Then in the
    order of look-up, so that what passes by is known before anything is led away.
    """
    return rule.action is not Action.NOP, rule.priority


def _interface_mtu(underlays: Iterable[Underlay], facts: Facts) -> int:
    default = PATH_MTU - 28 - 24  # an IPv4 and a UDP header, and our own
    largest = max((underlay.mtu for underlay in underlays), default=default)
    return max(largest, MIN_MTU6) if facts.ipv6 else largest


def _routes(
    settings: Settings, peer: PeerRoute, underlay: Underlay, facts: Facts
) -> Iterator[Route]:
    table = peer_table(settings, peer)
    for prefix in peer.prefixes:
        if prefix.version == 4:
            mtu = underlay.mtu
        elif facts.ipv6:
            mtu = max(underlay.mtu, MIN_MTU6)
        else:
            continue
        yield Route(table, prefix, mtu, _source(settings, peer, prefix, underlay))


def peer_table(settings: Settings, peer: PeerRoute) -> int:
    """Return the table that a peer's routes are in."""
    return settings.routing.table + (1 if _by_rule(settings, peer) else 0)


def _by_rule(settings: Settings, peer: PeerRoute) -> bool:
    """Tell whether rules select this peer's traffic; else marks do, or nothing does."""
    return bool(peer.only) and settings.routing.backend is Backend.RULES


def _source(
    settings: Settings, peer: PeerRoute, prefix: IPNetwork, underlay: Underlay
) -> IPAddress | None:
    """Return the source address for packets to ``prefix`` that have none yet."""
    # The peer's own address is to be reached as if there were no tunnel, so from the
    # address it knows us by; an overlay is reached from our address in it.
    own_addresses = (peer.endpoint, *peer.addresses)
    if prefix.num_addresses > 1 or prefix.network_address not in own_addresses:
        own = [a for a in settings.addresses if a.version == prefix.version]
        own.sort(key=lambda address: prefix.network_address not in address.network)
        if own:
            return own[0].ip
    source = underlay.source
    return source if source is not None and source.version == prefix.version else None


def _rules(
    settings: Settings,
    family: int,
    peers: Sequence[PeerRoute],
    routes: Mapping[RouteKey, Route],
    facts: Facts,
) -> Iterator[Rule]:
    routing = settings.routing
    version = 4 if family == socket.AF_INET else 6
    selections = [
        (prefix, selection)
        for peer in peers
        if _by_rule(settings, peer)
        for prefix in peer.prefixes
        if prefix.version == version
        for selection in peer.only
    ]
    lengths = {
        prefix.prefixlen
        for table, prefix in routes
        if prefix.version == version and table == routing.table
    }
    # Those against questions are made at the start: the first peer that is added
    # should not have to wait for them.
    by_rules = routing.backend is Backend.RULES
    if not lengths and not selections and not (by_rules and _asked(family, facts)):
        return
    if len(lengths) > MAX_LENGTHS:
        raise RoutingError(
            f"IPv{version} prefixes of {len(lengths)} different lengths are to be "
            f"routed, more than {MAX_LENGTHS}: join some of the peers' allowed prefixes"
        )
    yield from _head(settings, family, facts)
    if version in facts.local_behind:  # or a wide prefix leads our own addresses away
        yield Rule(family, routing.priority + _SELECT, Action.LOOKUP, LOCAL_TABLE)
    for prefix, selection in selections:
        yield from _selection(settings, family, prefix, selection)
    yield from _look_ups(settings, family, lengths)
    yield Rule(family, routing.priority + _END)


def _head(settings: Settings, family: int, facts: Facts) -> Iterator[Rule]:
    """Let pass by what must not go into the tunnel."""
    first = settings.routing.priority
    end, own = first + _END, first + _OWN
    if settings.routing.backend is Backend.MARKS:
        mark = settings.routing.mark
        yield Rule(family, own, Action.GOTO, end, inverted=True, mark=mark)
        return
    port = (settings.port, settings.port)
    yield Rule(family, own, Action.GOTO, end, iif="lo", protocol=_UDP, sport=port)
    # What an ICMP error says of our datagrams is noted for the path found by the
    # socket's mark, without ports.
    yield Rule(family, own, Action.GOTO, end, mark=settings.routing.mark)
    if _asked(family, facts):
        yield from _only_packets(settings, family, facts)


def _asked(family: int, facts: Facts) -> bool:
    """Whether the kernel asks about peers' addresses without any packet's ports."""
    version = 4 if family == socket.AF_INET else 6
    return version in facts.checked or (version == 4 and facts.strict)


def _only_packets(settings: Settings, family: int, facts: Facts) -> Iterator[Rule]:
    """Let the kernel's own questions about a peer's address pass by.

    Before it answers an ARP request it asks how it would reach the asker, and under
    strict rp_filter, or arp_filter, wants the underlay for an answer; so does a packet
    filter that checks sources when our datagrams arrive.  Those questions have no
    protocol, or no ports; they come from "lo" and from an address of ours.
    """
    first = settings.routing.priority
    select, end = first + _SELECT, first + _END
    version = 4 if family == socket.AF_INET else 6
    checked = version in facts.checked

    def rule(**selectors: Any) -> Rule:
        return Rule(family, first + _PROTOCOLS, Action.GOTO, select, **selectors)

    if checked:  # the same question about what came out of the tunnel
        yield rule(mark=settings.routing.inner_mark, mask=_WHOLE_MARK)
        yield rule(protocol=_UDP, dport=_ANY_PORT)
        yield rule(protocol=_UDP, sport=_ANY_PORT)
    if version == 6:  # where questions have a protocol, and it is that of our datagrams
        past = Rule(family, first + _PASS, Action.GOTO, end, iif="lo", protocol=_UDP)
    else:
        yield from (rule(protocol=number) for number in (_TCP, _ICMP))
        if not checked:
            yield rule(protocol=_UDP)
        yield rule(iif="lo", inverted=True)  # what is forwarded is no question
        yield rule(source=_NO_SOURCE)  # nor is what has yet to get a source
        yield from (rule(protocol=number) for number in _BOUND)
        past = Rule(family, first + _PASS, Action.GOTO, end)
    yield past
    yield Rule(family, select)


def _selection(
    settings: Settings, family: int, prefix: IPNetwork, selection: Selection
) -> Iterator[Rule]:
    def rule(
        sport: tuple[int, int] | None = None, dport: tuple[int, int] | None = None
    ) -> Rule:
        return Rule(
            family,
            settings.routing.priority + _ONLY,
            Action.LOOKUP,
            settings.routing.table + 1,
            to=prefix if prefix.prefixlen else None,  # as the kernel gives it back
            protocol=selection.protocol,
            sport=sport,
            dport=dport,
        )

    ports = _rule_ports(selection)
    if ports is None:
        yield rule()
    else:  # either end may be the server
        yield rule(dport=ports)
        yield rule(sport=ports)


def _rule_ports(selection: Selection) -> tuple[int, int] | None:
    """Return the ports as a rule can have them: 1 to 65534."""
    if selection.ports is None:
        return None
    first, last = max(selection.ports[0], 1), selection.ports[1]
    if last < 65535:
        return first, last
    if first == 1:
        return None  # all of them
    raise RoutingError(
        f"ports {first}-{last} cannot be selected, a routing rule takes 1 to 65534: "
        f'end the range there, or set backend = "marks" under [routing]'
    )


def _look_ups(
    settings: Settings, family: int, lengths: Iterable[int]
) -> Iterator[Rule]:
    """Take the longest match of our table and the main one; ours if they are equal."""
    longest = 32 if family == socket.AF_INET else 128
    priority = settings.routing.priority + _LENGTHS
    for length in sorted(lengths, reverse=True):
        if length < longest:
            yield Rule(family, priority, Action.LOOKUP, MAIN_TABLE, suppress=length)
        ours = length - 1 if length else None
        table = settings.routing.table
        yield Rule(family, priority + 1, Action.LOOKUP, table, suppress=ours)
        priority += 2
