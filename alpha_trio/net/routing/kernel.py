"""Rules, routes, links and look-ups: our words for what pyroute2 does."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

from attrs import define, field, frozen

from alpha_trio.errors import DeviceLost, RoutingError
from alpha_trio.net.routing.netlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    RTM_GETROUTE,
    IPRoute,
    NetlinkError,
    nlmsg,
    rt_type,
    rtmsg,
)
from alpha_trio.net.routing.plan import Action, OwnAddress, Route, Rule
from alpha_trio.net.routing.questions import FIB_MATCH
from alpha_trio.settings import IPAddress, IPInterface, IPNetwork

_UDP = 17
_DESCRIPTORS = 8  # twice what a conversation takes
_INVERT = 2  # FIB_RULE_INVERT
_NO_SUPPRESSION = 0xFFFFFFFF
_LARGEST = 0xFFFF  # of an IP packet; "lo" says more
_LOOPBACK = 1  # the index of "lo", in every network namespace
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

    To be ended in the same thread, as pyroute2 keeps an event loop for each.  Then
    comes the RoutingError for the first change that was refused; those after it were
    tried nevertheless.  A question that is refused ends it at once, likewise.

    OSError if there are no descriptors for it.
    """
    _check_descriptors()
    try:
        with IPRoute(ext_ack=True, strict_check=True) as ip:
            _bind(ip)
            kernel = Kernel(ip, tag)
            yield kernel
    except NetlinkError as error:
        raise RoutingError(f"kernel routing: {_reason(error)}") from error
    kernel.raise_refusal()


@define(eq=False)
class Kernel:
    """The kernel's routing; what we put there bears ``tag`` as its protocol number.

    Each call blocks for up to a millisecond.
    """

    _ip: Any  # pyroute2's IPRoute
    tag: int
    _links: dict[int, Link] = field(factory=dict)
    _rules: dict[int, list[tuple[Rule, int]]] = field(factory=dict)  # by family
    refusals: list[RoutingError] = field(factory=list)

    @property
    def port(self) -> int:
        """The netlink port that notices of our changes name as their cause."""
        return int(self._ip.epid)

    def raise_refusal(self) -> None:
        """Raise RoutingError if a change was refused."""
        if self.refusals:
            raise self.refusals[0]

    # --- questions

    def rules(self, family: int) -> list[tuple[Rule, int]]:
        """Return the rules of a family in the order of look-up, each with its tag."""
        if family not in self._rules:
            found = self._dump(self._ip.rule, family)
            self._rules[family] = [_parse_rule(message) for message in found]
        return self._rules[family]

    def routes(self, family: int, table: int) -> list[Installed]:
        """Return the routes of a table."""
        found = self._dump(self._ip.route, family, table=table)
        return [_parse_route(message) for message in found]

    def link(self, interface: int) -> Link:
        """Return an interface as it was when first asked for."""
        if interface not in self._links:
            (found,) = self._ip.link("get", index=interface)
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
        found = self._dump(self._ip.addr, socket.AF_UNSPEC, index=interface)
        return {_parse_address(message) for message in found}

    def homes(self, but: int) -> dict[IPAddress, set[int]]:
        """Return the addresses of all interfaces ``but`` one, and which have each."""
        homes: dict[IPAddress, set[int]] = {}
        for message in self._dump(self._ip.addr, socket.AF_UNSPEC):
            if message["index"] != but:
                at = homes.setdefault(_parse_address(message).ip, set())
                at.add(message["index"])
        return homes

    def own_addresses(self, interface: int) -> set[OwnAddress]:
        """Return the same of one, as ``put_own_address`` sets them."""
        found = self._dump(self._ip.addr, socket.AF_UNSPEC, index=interface)
        return {_parse_own_address(message) for message in found}

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
        request, zone = _LookUp(), _zone_of(address)
        request.setvalue(
            {
                "header": {"type": RTM_GETROUTE, "flags": NLM_F_REQUEST | NLM_F_ACK},
                "family": family_of(address),
                "dst_len": address.max_prefixlen,
                "flags": flags,
                "attrs": [
                    ("RTA_DST", str(address).partition("%")[0]),
                    ("RTA_IP_PROTO", _UDP),
                    ("RTA_SPORT", port),
                    ("RTA_DPORT", port),
                    *zone,
                ],
            }
        )
        (answer,) = self._ip.nlm_request_batch([request])
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

    def _dump(self, request: Callable[..., Any], family: int, **fields: int) -> Any:
        try:
            # No dump_filter: the kernel narrows the answer down, not pyroute2 after
            # it has decoded all of the host's routes.
            return list(request("dump", family=family, dump_filter=None, **fields))
        except NetlinkError as error:
            if error.code in _NOTHING:
                return []
            raise

    # --- changes

    def add_rule(self, rule: Rule) -> None:
        """Add a rule unless there is one like it."""
        self._rules.clear()
        self._change(
            f"routing rule of priority {rule.priority}",
            _PRESENT,
            self._ip.rule,
            "add",
            **self._rule_fields(rule),
        )

    def delete_rule(self, rule: Rule) -> None:
        """Remove a rule with our tag."""
        self._rules.clear()
        self._change(
            f"routing rule of priority {rule.priority}",
            _GONE,
            self._ip.rule,
            "delete",
            **self._rule_fields(rule),
        )

    def put_route(self, route: Route, interface: int) -> str | None:
        """Set a route, in place of one for the same prefix if there is one.

        Through ``interface``, or, if it is a local one, to this host itself.  Return
        why it is refused, if it is: whether that matters to all is for the caller.
        """
        metrics = {"mtu": route.mtu or None}
        if route.prefix.version == 6 and not route.local:
            # Else a change of the interface's MTU silently changes the route's; for
            # IPv4 there is no such change, and a lock would stop path MTU discovery.
            metrics["lock"] = _LOCK_MTU
        return self._try(
            f"route to {route.prefix} in table {route.table}",
            (),
            self._ip.route,
            "replace",
            oif=_LOOPBACK if route.local else interface,
            prefsrc=str(route.source) if route.source else None,
            metrics=metrics,
            **self._route_fields(route),
        )

    def delete_route(self, route: Route) -> None:
        """Remove a route with our tag."""
        self._change(
            f"route to {route.prefix} in table {route.table}",
            _GONE,
            self._ip.route,
            "delete",
            **self._route_fields(route),
        )

    def set_no_own_addresses(self, interface: int) -> None:
        """Have the kernel give an interface no IPv6 address by itself.

        Without one it sends no router solicitations either.
        """
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_OWN_ADDRESSES)]}
        families = {"attrs": [("AF_INET6", mode)]}
        no_ipv6 = (errno.EAFNOSUPPORT,)
        self._set_link(interface, no_ipv6, af_spec=families)

    def set_queue(self, interface: int, packets: int, gso_bytes: int) -> None:
        """Set the transmit queue length and the largest super-packet."""
        self._set_link(interface, txqlen=packets, gso_max_size=gso_bytes)

    def set_mtu(self, interface: int, mtu: int) -> None:
        """Set the MTU of an interface, in bytes."""
        self._set_link(interface, mtu=mtu)

    def set_up(self, interface: int) -> None:
        """Bring an interface up."""
        self._set_link(interface, state="up")

    def add_address(self, interface: int, address: IPInterface) -> None:
        """Put an address on an interface; it may be there already."""
        self._change(
            f"address {address}",
            (),
            self._ip.addr,
            "replace",
            index=interface,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            flags=_NODAD,
        )

    def put_own_address(self, interface: int, own: OwnAddress) -> None:
        """Put an address on an interface for who sends by it; no route comes of it."""
        self._change(
            f"address {own.address}",
            (),
            self._ip.addr,
            "replace",
            **_own_address_fields(interface, own),
        )

    def delete_own_address(self, interface: int, own: OwnAddress) -> None:
        """Take it back; it may be gone."""
        self._change(
            f"address {own.address}",
            (*_GONE, errno.EADDRNOTAVAIL),
            self._ip.addr,
            "delete",
            **_own_address_fields(interface, own),
        )

    def _set_link(
        self, interface: int, harmless: tuple[int, ...] = (), **fields: Any
    ) -> None:
        request = self._ip.link
        self._change(
            "network interface", harmless, request, "set", index=interface, **fields
        )

    def _change(
        self,
        what: str,
        harmless: tuple[int, ...],
        request: Callable[..., Any],
        command: str,
        **fields: Any,
    ) -> None:
        if refusal := self._try(what, harmless, request, command, **fields):
            self.refusals.append(RoutingError(refusal))

    def _try(
        self,
        what: str,
        harmless: tuple[int, ...],
        request: Callable[..., Any],
        command: str,
        **fields: Any,
    ) -> str | None:
        try:
            request(command, **fields)
        except NetlinkError as refusal:
            if refusal.code not in harmless:
                return f"{what}: {_reason(refusal)}"
        return None

    def _rule_fields(self, rule: Rule) -> dict[str, Any]:
        """Say it in pyroute2's words; None: not to be looked at."""
        return {
            "family": rule.family,
            "priority": rule.priority,
            "protocol": self.tag,
            "action": int(rule.action),
            "table": rule.target if rule.action is Action.LOOKUP else None,
            "goto": rule.target if rule.action is Action.GOTO else None,
            "dst": str(rule.to.network_address) if rule.to else None,
            "dst_len": rule.to.prefixlen if rule.to else None,
            "src": str(rule.source.network_address) if rule.source else None,
            "src_len": rule.source.prefixlen if rule.source else None,
            "iifname": rule.iif or None,
            "flags": _INVERT if rule.inverted else None,
            "ip_proto": rule.protocol or None,
            "sport_range": _port_range(rule.sport),
            "dport_range": _port_range(rule.dport),
            "fwmark": rule.mark or None,
            "fwmask": rule.mask or rule.mark or None,
            "suppress_prefixlen": rule.suppress,
        }

    def _route_fields(self, route: Route) -> dict[str, Any]:
        # Not of scope link, or a gateway that is a peer would be found in the tunnel,
        # and others' routes by it lead there.
        prefix, scope = route.prefix, "host" if route.local else "universe"
        return {
            "family": family_of(prefix),
            "dst": str(prefix),
            "table": route.table,
            "proto": self.tag,
            "type": "local" if route.local else "unicast",
            "scope": scope if prefix.version == 4 else "universe",
        }


def _own_address_fields(interface: int, own: OwnAddress) -> dict[str, Any]:
    peer = own.peer or own.address
    return {
        "index": interface,
        "family": family_of(own.address),
        "local": str(own.address),
        "address": str(peer),
        "prefixlen": own.address.max_prefixlen,
        "flags": _NODAD | _NO_PREFIX_ROUTE,
    }


def _bind(ip: Any) -> None:
    """Have the kernel know us, so that our port is known before the first change."""
    try:
        ip.bind(groups=0)
    except KeyError:  # pyroute2's word for whatever the kernel said
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)) from None


def _check_descriptors() -> None:
    """Raise OSError if there are too few: pyroute2 would come to harm half-way."""
    with ExitStack() as opened:
        for _ in range(_DESCRIPTORS):
            file = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, file)


def family_of(address: IPAddress | IPNetwork) -> int:
    """Return socket.AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _zone_of(address: IPAddress) -> list[tuple[str, int]]:
    """Return the attribute that names the link of a link-local address, if it is one.

    RoutingError if there is no such link.
    """
    zone = address.scope_id if isinstance(address, IPv6Address) else None
    if zone is None:
        return []
    try:
        return [("RTA_OIF", socket.if_nametoindex(zone))]
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
