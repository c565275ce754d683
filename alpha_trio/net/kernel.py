"""Rules, routes, links and look-ups, to and from the words of rtnetlink."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Sequence

from attrs import frozen

from alpha_trio.config import IPAddress, IPInterface, IPNetwork
from alpha_trio.errors import RoutingError
from alpha_trio.net.netlink import (
    CREATE,
    EXCLUSIVE,
    REPLACE,
    Message,
    Netlink,
    NetlinkError,
    Request,
    attribute,
    attribute_u32,
    nested,
    number,
    parse_attributes,
)
from alpha_trio.net.plan import Action, Route, Rule

# linux/rtnetlink.h
_GETLINK, _SETLINK = 18, 19
_NEWADDR = 20
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_GETNETCONF = 82

# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 7, 8, 15
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
_RTAX_LOCK, _RTAX_MTU = 1, 2
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_UNICAST, _LOCAL = 1, 2  # types of route

# struct fib_rule_hdr: family, dst_len, src_len, tos, table, -, -, action, flags
_RULE = struct.Struct("=BBBBBBBBI")
_FRA_DST, _FRA_IIF, _FRA_GOTO, _FRA_PRIORITY = 1, 3, 4, 6
_FRA_MARK, _FRA_SUPPRESS, _FRA_TABLE, _FRA_MASK = 10, 14, 15, 16
_FRA_TAG, _FRA_PROTOCOL, _FRA_SPORT, _FRA_DPORT = 21, 22, 23, 24
_INVERT = 2
_PORTS = struct.Struct("=HH")
_NO_SUPPRESSION = 0xFFFFFFFF

# struct ifinfomsg: family, -, type, index, flags, mask
_LINK = struct.Struct("=BxHiII")
_IFLA_NAME, _IFLA_MTU, _IFLA_QUEUE, _IFLA_AF_SPEC, _IFLA_GSO_MAX_SIZE = 3, 4, 13, 26, 41
_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1
_IFF_UP = 1

# struct ifaddrmsg: family, prefix length, flags, scope, interface index
_ADDRESS = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 2

# struct netconfmsg: family, padded
_NETCONF = struct.Struct("=B3x")
_NETCONFA_IFINDEX, _NETCONFA_RP_FILTER = 1, 3
_ALL_INTERFACES, _LOOPBACK = -1, 1

_UDP = 17


@frozen
class Installed:
    """A route the kernel has, and whose it is."""

    route: Route
    tag: int  # protocol number of who put it there
    interface: int  # index; 0: none


@frozen
class Path:
    """What the kernel says about the way to an address."""

    interface: int
    mtu: int  # of the path if it is known, else 0
    source: IPAddress | None
    local: bool  # an address of this host


def family_of(address: IPAddress | IPNetwork | IPInterface) -> int:
    """Return socket.AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


# --- rules


def add_rule(rule: Rule, tag: int) -> Request:
    """Ask for a rule; EEXIST if there is one like it."""
    return Request(_NEWRULE, _rule_body(rule, tag), CREATE | EXCLUSIVE)


def delete_rule(rule: Rule, tag: int) -> Request:
    """Ask for the removal of a rule with our tag."""
    return Request(_DELRULE, _rule_body(rule, tag))


def _rule_body(rule: Rule, tag: int) -> bytes:
    length = rule.to.prefixlen if rule.to else 0
    flags = _INVERT if rule.inverted else 0
    body = [
        _RULE.pack(rule.family, length, 0, 0, 0, 0, 0, rule.action, flags),
        attribute_u32(_FRA_PRIORITY, rule.priority),
        attribute(_FRA_TAG, bytes([tag])),
    ]
    if rule.action is not Action.NOP:
        kind = _FRA_GOTO if rule.action is Action.GOTO else _FRA_TABLE
        body.append(attribute_u32(kind, rule.target))
    if rule.to is not None:
        body.append(attribute(_FRA_DST, rule.to.network_address.packed))
    if rule.iif:
        body.append(attribute(_FRA_IIF, rule.iif.encode() + b"\0"))
    if rule.protocol:
        body.append(attribute(_FRA_PROTOCOL, bytes([rule.protocol])))
    for kind, ports in ((_FRA_SPORT, rule.sport), (_FRA_DPORT, rule.dport)):
        if ports is not None:
            body.append(attribute(kind, _PORTS.pack(*ports)))
    if rule.mark:
        body.append(attribute_u32(_FRA_MARK, rule.mark))
        body.append(attribute_u32(_FRA_MASK, rule.mark))
    if rule.suppress is not None:
        body.append(attribute_u32(_FRA_SUPPRESS, rule.suppress))
    return b"".join(body)


def rules(netlink: Netlink, family: int) -> list[tuple[Rule, int]]:
    """Return the rules of a family, each with its tag.  NetlinkError."""
    found = netlink.dump(_GETRULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    return [_parse_rule(message) for message in found]


def _parse_rule(message: Message) -> tuple[Rule, int]:
    family, length, *_, action, flags = _RULE.unpack_from(message.body)
    found = message.attributes(_RULE.size)
    suppress = number(found.get(_FRA_SUPPRESS), _NO_SUPPRESSION)
    known = action in (Action.LOOKUP, Action.GOTO)
    rule = Rule(
        family,
        number(found.get(_FRA_PRIORITY)),
        Action(action) if known else Action.NOP,
        number(found.get(_FRA_GOTO if action == Action.GOTO else _FRA_TABLE)),
        to=_network(found[_FRA_DST], length) if _FRA_DST in found else None,
        iif=found.get(_FRA_IIF, b"").rstrip(b"\0").decode(errors="replace"),
        inverted=bool(flags & _INVERT),
        protocol=number(found.get(_FRA_PROTOCOL)),
        sport=_ports(found.get(_FRA_SPORT)),
        dport=_ports(found.get(_FRA_DPORT)),
        mark=number(found.get(_FRA_MARK)),
        suppress=None if suppress == _NO_SUPPRESSION else suppress,
    )
    return rule, number(found.get(_FRA_TAG))


def _ports(value: bytes | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, last = _PORTS.unpack_from(value)
    return first, last


def _network(packed: bytes, length: int) -> IPNetwork:
    return ipaddress.ip_network((packed, length), strict=False)


# --- routes


def put_route(route: Route, interface: int, tag: int) -> Request:
    """Ask for a route, in place of one for the same prefix if there is one."""
    metrics = [attribute_u32(_RTAX_MTU, route.mtu)]
    if route.prefix.version == 6:
        # Else a change of the interface's MTU silently changes the route's; for IPv4
        # there is no such change, and a lock would stop path MTU discovery.
        metrics.append(attribute_u32(_RTAX_LOCK, 1 << _RTAX_MTU))
    body = _route_body(route.table, route.prefix, tag)
    body += nested(_RTA_METRICS, *metrics)
    body += attribute_u32(_RTA_OIF, interface)
    if route.source is not None:
        body += attribute(_RTA_PREFSRC, route.source.packed)
    return Request(_NEWROUTE, body, CREATE | REPLACE)


def delete_route(table: int, prefix: IPNetwork, tag: int) -> Request:
    """Ask for the removal of a route with our tag."""
    return Request(_DELROUTE, _route_body(table, prefix, tag))


def _route_body(table: int, prefix: IPNetwork, tag: int) -> bytes:
    scope = _SCOPE_LINK if prefix.version == 4 else _SCOPE_UNIVERSE
    header = _ROUTE.pack(
        family_of(prefix), prefix.prefixlen, 0, 0, 0, tag, scope, _UNICAST, 0
    )
    address = attribute(_RTA_DST, prefix.network_address.packed)
    return header + attribute_u32(_RTA_TABLE, table) + address


def routes(netlink: Netlink, family: int, table: int) -> list[Installed]:
    """Return the routes of a table.  NetlinkError."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        found = netlink.dump(_GETROUTE, body + attribute_u32(_RTA_TABLE, table))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:  # no such table yet
            return []
        raise
    return [_parse_route(message) for message in found]


def _parse_route(message: Message) -> Installed:
    family, length, _, _, table, tag, *_ = _ROUTE.unpack_from(message.body)
    found = message.attributes(_ROUTE.size)
    table = number(found.get(_RTA_TABLE), table)
    anything = bytes(4 if family == socket.AF_INET else 16)
    prefix = _network(found.get(_RTA_DST, anything), length)
    source = _address(found.get(_RTA_PREFSRC))
    route = Route(table, prefix, _metric_mtu(found), source)
    return Installed(route, tag, number(found.get(_RTA_OIF)))


def _metric_mtu(found: dict[int, bytes]) -> int:
    return number(parse_attributes(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU))


def _address(packed: bytes | None) -> IPAddress | None:
    return None if packed is None else ipaddress.ip_address(packed)


def look_up(address: IPAddress, port: int) -> Request:
    """Ask for the way of a UDP datagram from our ``port`` to ``address``."""
    length = 32 if address.version == 4 else 128
    body = _ROUTE.pack(family_of(address), length, 0, 0, 0, 0, 0, 0, 0)
    ports = port.to_bytes(2, "big")
    body += attribute(_RTA_DST, address.packed)
    body += attribute(_RTA_IP_PROTO, bytes([_UDP]))
    body += attribute(_RTA_SPORT, ports) + attribute(_RTA_DPORT, ports)
    return Request(_GETROUTE, body)


def parse_path(message: Message) -> Path:
    """Decode the answer to ``look_up``."""
    kind = _ROUTE.unpack_from(message.body)[7]
    found = message.attributes(_ROUTE.size)
    return Path(
        number(found.get(_RTA_OIF)),
        _metric_mtu(found),
        _address(found.get(_RTA_PREFSRC)),
        kind == _LOCAL,
    )


# --- links and addresses


@frozen
class Link:
    """A network interface."""

    index: int
    name: str
    mtu: int


def links(netlink: Netlink) -> dict[int, Link]:
    """Return all network interfaces, by index."""
    found = {}
    for message in netlink.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, _, index, _, _ = _LINK.unpack_from(message.body)
        named = message.attributes(_LINK.size)
        name = named[_IFLA_NAME].rstrip(b"\0").decode(errors="replace")
        found[index] = Link(index, name, number(named.get(_IFLA_MTU)))
    return found


def set_mtu(interface: int, mtu: int) -> Request:
    """Ask for another MTU of an interface, in bytes."""
    header = _LINK.pack(0, 0, interface, 0, 0)
    return Request(_SETLINK, header + attribute_u32(_IFLA_MTU, mtu))


def set_queue(interface: int, packets: int, gso_bytes: int) -> Request:
    """Ask for another transmit queue length and largest super-packet."""
    header = _LINK.pack(0, 0, interface, 0, 0)
    queue = attribute_u32(_IFLA_QUEUE, packets)
    size = attribute_u32(_IFLA_GSO_MAX_SIZE, gso_bytes)
    return Request(_SETLINK, header + queue + size)


def set_up(interface: int) -> Request:
    """Ask for an interface to come up."""
    return Request(_SETLINK, _LINK.pack(0, 0, interface, _IFF_UP, _IFF_UP))


def set_no_own_addresses(interface: int) -> Request:
    """Ask that the kernel gives an interface no IPv6 address by itself.

    Without one it sends no router solicitations either.
    """
    mode = attribute(_INET6_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    spec = nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Request(_SETLINK, _LINK.pack(0, 0, interface, 0, 0) + spec)


def add_address(interface: int, address: IPInterface) -> Request:
    """Ask for an address on an interface; it need not be there yet."""
    header = _ADDRESS.pack(
        family_of(address), address.network.prefixlen, _IFA_F_NODAD, 0, interface
    )
    packed = address.ip.packed
    body = header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    return Request(_NEWADDR, body, CREATE | REPLACE)


def strict_interfaces(netlink: Netlink) -> set[int]:
    """Return the interfaces on which strict rp_filter is in effect.

    That is the maximum of the setting for all and the interface's own.
    """
    settings = {}
    for message in netlink.dump(_GETNETCONF, _NETCONF.pack(socket.AF_INET)):
        found = message.attributes(_NETCONF.size)
        index = int.from_bytes(found[_NETCONFA_IFINDEX], sys.byteorder, signed=True)
        settings[index] = number(found.get(_NETCONFA_RP_FILTER))
    everywhere = settings.get(_ALL_INTERFACES, 0)
    return {
        index
        for index, own in settings.items()
        if index > _LOOPBACK and max(everywhere, own) == 1
    }


def commit(netlink: Netlink, changes: Sequence[Request], *ignored: int) -> None:
    """Carry changes out; the first refusal not among ``ignored`` is raised.

    RoutingError, after all of them were tried.
    """
    for request, refusal in zip(changes, netlink.change(changes), strict=True):
        if refusal is not None and refusal.errno not in ignored:
            raise RoutingError(f"{_describe(request)}: {_reason(refusal)}") from refusal


def _reason(refusal: NetlinkError) -> str:
    if refusal.errno == errno.EPERM:
        return "not permitted; run as root or with CAP_NET_ADMIN"
    number_, text = refusal.errno, refusal.strerror
    known = os.strerror(number_) if number_ else ""
    return text if text == known else f"{text} ({known})"


def _describe(request: Request) -> str:
    """Say what was asked for, as far as a user needs it."""
    if request.kind in (_NEWRULE, _DELRULE):
        rule, _ = _parse_rule(Message(request.kind, 0, request.body))
        return f"routing rule of priority {rule.priority}"
    if request.kind in (_NEWROUTE, _DELROUTE):
        route = _parse_route(Message(request.kind, 0, request.body)).route
        return f"route to {route.prefix} in table {route.table}"
    if request.kind == _NEWADDR:
        length = _ADDRESS.unpack_from(request.body)[1]
        packed = parse_attributes(request.body, _ADDRESS.size)[_IFA_LOCAL]
        return f"address {ipaddress.ip_address(packed)}/{length}"
    return "network interface"
