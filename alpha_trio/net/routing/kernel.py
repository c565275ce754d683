"""Rules, routes, links and look-ups: our words for what pyroute2 does."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

from attrs import define, field, frozen

from alpha_trio.errors import DeviceLost, RoutingError
from alpha_trio.net.routing.conversation import (
    ADD,
    REPLACE,
    Conversation,
    linkmsg,
    put,
)
from alpha_trio.net.routing.netlink import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    NetlinkError,
    fibmsg,
    ifaddrmsg,
    nlmsg,
    rt_scope,
    rt_type,
    rtmsg,
)
from alpha_trio.net.routing.plan import Action, OwnAddress, Route, Rule
from alpha_trio.net.routing.questions import FIB_MATCH
from alpha_trio.settings import IPAddress, IPInterface, IPNetwork

_UDP = 17
_INVERT = 2  # FIB_RULE_INVERT
_NO_SUPPRESSION = 0xFFFFFFFF
_LARGEST = 0xFFFF  # of an IP packet; "lo" says more
_LOOPBACK = 1  # the index of "lo", in every network namespace
_UP = 1  # IFF_UP
_LOCK_MTU = 1 << 2  # 1 << RTAX_MTU
_NO_OWN_ADDRESSES = 1  # IN6_ADDR_GEN_MODE_NONE
_NODAD = 2  # IFA_F_NODAD
_NO_PREFIX_ROUTE = 0x200  # IFA_F_NOPREFIXROUTE

# What there already is need not be added, what is gone need not be removed.
_PRESENT = (errno.EEXIST,)
_GONE = (errno.ENOENT, errno.ESRCH)
# There is no such table yet, or no IPv6.
_NOTHING = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)


@frozen
class Installed:
    """A route the kernel has, and whose it is."""

    route: Route
    tag: int  # protocol number of who put it there
    interface: int  # index; 0: none


@frozen
class Link:
    """A network interface."""

    name: str
    mtu: int


@frozen
class Path:
    """What the kernel says about the way to an address."""

    interface: int
    device: str
    mtu: int  # of the route if it has one, else of the device; nothing that ICMP says
    source: IPAddress | None
    local: bool  # an address of this host
    broadcast: bool  # that of a link, to all hosts there


class _LookUp(nlmsg):  # type: ignore[misc]  # pyroute2 has no type information
    """A route look-up with protocol and ports, of which pyroute2 does not know.

    Not a subclass of rtmsg, or once that was used its attributes would be ours.
    """

    prefix = "RTA_"
    fields = rtmsg.fields
    nla_map = (
        (1, "RTA_DST", "target"),
        (4, "RTA_OIF", "uint32"),
        (27, "RTA_IP_PROTO", "uint8"),
        (28, "RTA_SPORT", "be16"),
        (29, "RTA_DPORT", "be16"),
    )


@contextmanager
def connect(tag: int) -> Iterator[Kernel]:
    """Open a conversation about the routing of this thread's network namespace.

    At its end comes the RoutingError for the first change that was refused; those after
    it were tried nevertheless.  A question that is refused ends it at once, likewise.

    OSError if there are no descriptors for it.
    """
    try:
        with Conversation.open() as netlink:
            kernel = Kernel(netlink, tag)
            yield kernel
    except NetlinkError as error:
        raise RoutingError(f"kernel routing: {_reason(error)}") from error
    kernel.raise_refusal()


@define(eq=False)
class Kernel:
    """The kernel's routing; what we put there bears ``tag`` as its protocol number.

    Each call blocks for up to a millisecond.
    """

    _netlink: Conversation
    tag: int
    _links: dict[int, Link] = field(factory=dict)
    _rules: dict[int, list[tuple[Rule, int]]] = field(factory=dict)  # by family
    refusals: list[RoutingError] = field(factory=list)

    @property
    def port(self) -> int:
        """The netlink port that notices of our changes name as their cause."""
        return self._netlink.port

    def raise_refusal(self) -> None:
        """Raise RoutingError if a change was refused."""
        if self.refusals:
            raise self.refusals[0]

    # --- questions

    def rules(self, family: int) -> list[tuple[Rule, int]]:
        """Return the rules of a family in the order of look-up, each with its tag."""
        if family not in self._rules:
            found = self._dump(RTM_GETRULE, put(fibmsg(), {}, family=family))
            self._rules[family] = [_parse_rule(message) for message in found]
        return self._rules[family]

    def routes(self, family: int, table: int) -> list[Installed]:
        """Return the routes of a table."""
        of_table = put(rtmsg(), {"RTA_TABLE": table}, family=family)
        found = self._dump(RTM_GETROUTE, of_table)
        return [_parse_route(message) for message in found]

    def link(self, interface: int) -> Link:
        """Return an interface as it was when first asked for."""
        if interface not in self._links:
            which = put(linkmsg(), {}, index=interface)
            (found,) = self._netlink.ask(RTM_GETLINK, which)
            name, mtu = found.get_attr("IFLA_IFNAME"), found.get_attr("IFLA_MTU")
            self._links[interface] = Link(name, mtu)
        return self._links[interface]

    def name_of(self, interface: int, before: str) -> str:
        """Return what our interface is called now; DeviceLost without it.

        ``before``: what it was called.
        """
        try:
            return self.link(interface).name
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
            raise DeviceLost(
                f"the interface {before} is gone: something deleted it, or moved it to "
                "another network namespace; start alpha-trio again"
            ) from error

    def addresses(self, interface: int) -> set[IPInterface]:
        """Return the addresses an interface has."""
        return {_parse_address(message) for message in self._addresses(interface)}

    def homes(self, but: int) -> dict[IPAddress, set[int]]:
        """Return the addresses of all interfaces ``but`` one, and which have each."""
        homes: dict[IPAddress, set[int]] = {}
        for message in self._addresses():
            if message["index"] != but:
                at = homes.setdefault(_parse_address(message).ip, set())
                at.add(message["index"])
        return homes

    def own_addresses(self, interface: int) -> set[OwnAddress]:
        """Return the same of one, as ``put_own_address`` sets them."""
        return {_parse_own_address(message) for message in self._addresses(interface)}

    def _addresses(self, interface: int = 0) -> list[Any]:
        return self._dump(RTM_GETADDR, put(ifaddrmsg(), {}, index=interface))

    def look_up(self, address: IPAddress, port: int) -> Path:
        """Return the way of a UDP datagram from our ``port`` to ``address``.

        RoutingError if there is none.
        """
        try:
            answer = self._ask(address, port)
            mtu = _metric_mtu(answer)
            if mtu and _expires(answer):  # what ICMP made of it, true or forged
                mtu = _metric_mtu(self._ask(address, port, FIB_MATCH))
            return self._parse_path(answer, mtu)
        except NetlinkError as error:
            raise RoutingError(f"no route to {address}: {_reason(error)}") from error

    def _ask(self, address: IPAddress, port: int, flags: int = 0) -> Any:
        question = put(
            _LookUp(),
            {
                "RTA_DST": str(address).partition("%")[0],
                "RTA_IP_PROTO": _UDP,
                "RTA_SPORT": port,
                "RTA_DPORT": port,
                "RTA_OIF": _zone_of(address),
            },
            family=family_of(address),
            dst_len=address.max_prefixlen,
            flags=flags,
        )
        (answer,) = self._netlink.ask(RTM_GETROUTE, question)
        return answer

    def _parse_path(self, answer: Any, mtu: int) -> Path:
        interface = answer.get_attr("RTA_OIF")
        link = self.link(interface)
        source = answer.get_attr("RTA_PREFSRC")
        return Path(
            interface,
            link.name,
            min(mtu or link.mtu, link.mtu, _LARGEST),
            ip_address(source) if source else None,
            answer["type"] == rt_type["local"],
            answer["type"] == rt_type["broadcast"],
        )

    def _dump(self, kind: int, which: Any) -> list[Any]:
        try:
            return self._netlink.dump(kind, which)
        except NetlinkError as error:
            if error.code in _NOTHING:
                return []
            raise

    # --- changes

    def add_rule(self, rule: Rule) -> None:
        """Add a rule unless there is one like it."""
        self._change_rule(RTM_NEWRULE, rule, _PRESENT, ADD)

    def delete_rule(self, rule: Rule) -> None:
        """Remove a rule with our tag."""
        self._change_rule(RTM_DELRULE, rule, _GONE)

    def _change_rule(
        self, kind: int, rule: Rule, harmless: tuple[int, ...], flags: int = 0
    ) -> None:
        self._rules.clear()
        what = f"routing rule of priority {rule.priority}"
        self._change(what, harmless, kind, self._rule_message(rule), flags)

    def put_route(self, route: Route, interface: int) -> str | None:
        """Set a route, in place of one for the same prefix if there is one.

        Through ``interface``, or, if it is a local one, to this host itself.  Return
        why it is refused, if it is: whether that matters to all is for the caller.
        """
        return self._try(
            f"route to {route.prefix} in table {route.table}",
            (),
            RTM_NEWROUTE,
            self._route_message(
                route,
                RTA_OIF=_LOOPBACK if route.local else interface,
                RTA_PREFSRC=str(route.source) if route.source else None,
                RTA_METRICS=_metrics(route),
            ),
            REPLACE,
        )

    def delete_route(self, route: Route) -> None:
        """Remove a route with our tag."""
        self._change(
            f"route to {route.prefix} in table {route.table}",
            _GONE,
            RTM_DELROUTE,
            self._route_message(route),
        )

    def set_no_own_addresses(self, interface: int) -> None:
        """Have the kernel give an interface no IPv6 address by itself.

        Without one it sends no router solicitations either.
        """
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_OWN_ADDRESSES)]}
        families = {"attrs": [("AF_INET6", mode)]}
        self._set_link(interface, {"IFLA_AF_SPEC": families}, (errno.EAFNOSUPPORT,))

    def set_queue(self, interface: int, packets: int, gso_bytes: int) -> None:
        """Set the transmit queue length and the largest super-packet."""
        limits = {"IFLA_TXQLEN": packets, "IFLA_GSO_MAX_SIZE": gso_bytes}
        self._set_link(interface, limits)

    def set_mtu(self, interface: int, mtu: int) -> None:
        """Set the MTU of an interface, in bytes."""
        self._set_link(interface, {"IFLA_MTU": mtu})

    def set_up(self, interface: int) -> None:
        """Bring an interface up."""
        self._set_link(interface, {}, flags=_UP, change=_UP)

    def add_address(self, interface: int, address: IPInterface) -> None:
        """Put an address on an interface; it may be there already."""
        self._change(
            f"address {address}",
            (),
            RTM_NEWADDR,
            _address_message(interface, address, address.ip, _NODAD),
            REPLACE,
        )

    def put_own_address(self, interface: int, own: OwnAddress) -> None:
        """Put an address on an interface for who sends by it; no route comes of it."""
        self._change(
            f"address {own.address}",
            (),
            RTM_NEWADDR,
            _own_address_message(interface, own),
            REPLACE,
        )

    def delete_own_address(self, interface: int, own: OwnAddress) -> None:
        """Take it back; it may be gone."""
        self._change(
            f"address {own.address}",
            (*_GONE, errno.EADDRNOTAVAIL),
            RTM_DELADDR,
            _own_address_message(interface, own),
        )

    def _set_link(
        self,
        interface: int,
        attributes: Mapping[str, Any],
        harmless: tuple[int, ...] = (),
        **fields: int,
    ) -> None:
        link = put(linkmsg(), attributes, index=interface, **fields)
        self._change("network interface", harmless, RTM_NEWLINK, link)

    def _change(
        self,
        what: str,
        harmless: tuple[int, ...],
        kind: int,
        message: Any,
        flags: int = 0,
    ) -> None:
        if refusal := self._try(what, harmless, kind, message, flags):
            self.refusals.append(RoutingError(refusal))

    def _try(
        self,
        what: str,
        harmless: tuple[int, ...],
        kind: int,
        message: Any,
        flags: int,
    ) -> str | None:
        try:
            self._netlink.ask(kind, message, flags)
        except NetlinkError as refusal:
            if refusal.code not in harmless:
                return f"{what}: {_reason(refusal)}"
        return None

    def _rule_message(self, rule: Rule) -> Any:
        looks_up, goes = rule.action is Action.LOOKUP, rule.action is Action.GOTO
        return put(
            fibmsg(),
            {
                "FRA_PRIORITY": rule.priority,
                "FRA_PROTOCOL": self.tag,
                "FRA_TABLE": rule.target if looks_up else None,
                "FRA_GOTO": rule.target if goes else None,
                "FRA_DST": str(rule.to.network_address) if rule.to else None,
                "FRA_SRC": str(rule.source.network_address) if rule.source else None,
                "FRA_IIFNAME": rule.iif or None,
                "FRA_IP_PROTO": rule.protocol or None,
                "FRA_SPORT_RANGE": _port_range(rule.sport),
                "FRA_DPORT_RANGE": _port_range(rule.dport),
                "FRA_FWMARK": rule.mark or None,
                "FRA_FWMASK": rule.mask or rule.mark or None,
                "FRA_SUPPRESS_PREFIXLEN": rule.suppress,
            },
            family=rule.family,
            action=int(rule.action),
            dst_len=rule.to.prefixlen if rule.to else 0,
            src_len=rule.source.prefixlen if rule.source else 0,
            flags=_INVERT if rule.inverted else 0,
        )

    def _route_message(self, route: Route, **attributes: Any) -> Any:
        # Not of scope link, or a gateway that is a peer would be found in the tunnel,
        # and others' routes by it lead there.
        prefix = route.prefix
        is_host = route.local and prefix.version == 4
        return put(
            rtmsg(),
            {
                "RTA_DST": str(prefix.network_address),
                "RTA_TABLE": route.table,
                **attributes,
            },
            family=family_of(prefix),
            dst_len=prefix.prefixlen,
            proto=self.tag,
            type=rt_type["local" if route.local else "unicast"],
            scope=rt_scope["host" if is_host else "universe"],
        )


def _metrics(route: Route) -> dict[str, Any] | None:
    """Say which MTU a route has, if it has one of its own."""
    metrics = [("RTAX_MTU", route.mtu)] if route.mtu else []
    if route.prefix.version == 6 and not route.local:
        # Else a change of the interface's MTU silently changes the route's; for
        # IPv4 there is no such change, and a lock would stop path MTU discovery.
        metrics.append(("RTAX_LOCK", _LOCK_MTU))
    return {"attrs": metrics} if metrics else None


def _own_address_message(interface: int, own: OwnAddress) -> Any:
    alone = ip_interface(own.address)
    flags = _NODAD | _NO_PREFIX_ROUTE
    return _address_message(interface, alone, own.peer or own.address, flags)


def _address_message(
    interface: int, local: IPInterface, peer: IPAddress, flags: int
) -> Any:
    return put(
        ifaddrmsg(),
        {"IFA_LOCAL": str(local.ip), "IFA_ADDRESS": str(peer), "IFA_FLAGS": flags},
        family=family_of(local),
        prefixlen=local.network.prefixlen,
        index=interface,
    )


def family_of(address: IPAddress | IPNetwork) -> int:
    """Return socket.AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _zone_of(address: IPAddress) -> int | None:
    """Return the index of a link-local address's link; None if it is no such.

    RoutingError if there is no such link.
    """
    zone = address.scope_id if isinstance(address, IPv6Address) else None
    if zone is None:
        return None
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise RoutingError(f"{address}: there is no interface {zone}") from None


def _port_range(ports: tuple[int, int] | None) -> str | None:
    return None if ports is None else f"{ports[0]}:{ports[1]}"


def _parse_rule(message: Any) -> tuple[Rule, int]:
    known = message["action"] in Action.__members__.values()
    action = Action(message["action"]) if known else Action.NOP
    target = "FRA_GOTO" if action is Action.GOTO else "FRA_TABLE"
    destination = message.get_attr("FRA_DST")
    suppress = message.get_attr("FRA_SUPPRESS_PREFIXLEN", _NO_SUPPRESSION)
    source = message.get_attr("FRA_SRC")
    mark = message.get_attr("FRA_FWMARK", 0)
    mask = message.get_attr("FRA_FWMASK", 0)
    rule = Rule(
        message["family"],
        message.get_attr("FRA_PRIORITY", 0),
        action,
        message.get_attr(target, 0),
        to=_network(destination, message["dst_len"]) if destination else None,
        source=_network(source, message["src_len"]) if source else None,
        iif=message.get_attr("FRA_IIFNAME", ""),
        oif=message.get_attr("FRA_OIFNAME", ""),
        inverted=bool(message["flags"] & _INVERT),
        protocol=message.get_attr("FRA_IP_PROTO", 0),
        sport=_ports(message.get_attr("FRA_SPORT_RANGE")),
        dport=_ports(message.get_attr("FRA_DPORT_RANGE")),
        mark=mark,
        mask=0 if mask == mark else mask,
        suppress=None if suppress == _NO_SUPPRESSION else suppress,
        tos=message["tos"],
        uids=_ports(message.get_attr("FRA_UID_RANGE")),
    )
    return rule, message.get_attr("FRA_PROTOCOL", 0)


def _parse_address(message: Any) -> IPInterface:
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ip_interface(f"{address}/{message['prefixlen']}")


def _parse_own_address(message: Any) -> OwnAddress:
    peer = ip_address(message.get_attr("IFA_ADDRESS"))
    address = ip_address(message.get_attr("IFA_LOCAL", str(peer)))
    return OwnAddress(address, None if address == peer else peer)


def _parse_route(message: Any) -> Installed:
    anything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    source = message.get_attr("RTA_PREFSRC")
    route = Route(
        message.get_attr("RTA_TABLE"),
        _network(message.get_attr("RTA_DST", anything), message["dst_len"]),
        _metric_mtu(message),
        ip_address(source) if source else None,
        local=message["type"] == rt_type["local"],
    )
    return Installed(route, message["proto"], message.get_attr("RTA_OIF", 0))


def _metric_mtu(message: Any) -> int:
    metrics = message.get_attr("RTA_METRICS")
    return metrics.get_attr("RTAX_MTU", 0) if metrics else 0


def _expires(message: Any) -> bool:
    """Whether the kernel will forget it by itself, as no route that somebody set."""
    cache = message.get_attr("RTA_CACHEINFO")
    return bool(cache and cache["rta_expires"])


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, last = text.split(":")
    return int(first), int(last)


def _network(address: str, length: int) -> IPNetwork:
    return ip_network(f"{address}/{length}", strict=False)


def _reason(refusal: NetlinkError) -> str:
    if refusal.code == errno.EPERM:
        return "not permitted; run as root or with CAP_NET_ADMIN"
    _, text = refusal.args
    if refusal.code == errno.EACCES and "IPv6 is disabled" in text:
        return (
            "IPv6 is disabled; enable it by 'sysctl -w net.ipv6.conf.all.disable_ipv6=0"
            " net.ipv6.conf.default.disable_ipv6=0', or do without IPv6 here"
        )
    known = os.strerror(refusal.code)
    text = text.rstrip(".")
    return text if text == known else f"{text} ({known})"
