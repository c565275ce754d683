"""The marking backend: a packet filter marks what takes the tunnel, a rule routes it.

For those who decide by more than address and port: their own nftables or iptables
rules may set the same mark, or run before ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from alpha_trio.errors import RoutingError
from alpha_trio.net import netfilter
from alpha_trio.net.routing.plan import PeerRoute
from alpha_trio.settings import IPNetwork, Selection, Settings

_PORTS_PROTOCOLS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
# Never for a peer, even if everything else is: these do not leave the link.
_LINK_SCOPE = {
    4: ("224.0.0.0/4", "255.255.255.255/32"),
    6: ("fe80::/10", "ff00::/8"),
}
# Neighbour discovery does not leave the link either, but has ordinary addresses.
_DISCOVERY = range(133, 138)  # ICMPv6 types


@frozen
class Marks:
    """Which packets are marked, and how."""

    interface: str  # as configured; our tables and chains are named after it
    name: str  # as it is called now
    mark: int
    port: int  # of our own UDP, which passes by
    prefixes: tuple[IPNetwork, ...]  # everything that goes there
    selected: tuple[tuple[IPNetwork, Selection], ...]  # of what goes there, only this

    def of_version(self, version: int) -> tuple[list[IPNetwork], list[IPNetwork]]:
        """Return the prefixes of an IP version: those with and without selection."""
        selected = dict.fromkeys(
            prefix for prefix, _ in self.selected if prefix.version == version
        )
        whole = [prefix for prefix in self.prefixes if prefix.version == version]
        return list(selected), whole


def of(settings: Settings, peers: Sequence[PeerRoute], name: str) -> Marks:
    """Return the marks that lead ``peers`` into the tunnel, called ``name`` now."""
    return Marks(
        settings.interface,
        name,
        settings.routing.mark,
        settings.port,
        tuple(prefix for p in peers if not p.only for prefix in p.prefixes),
        tuple(
            (prefix, selection)
            for peer in peers
            for prefix in peer.prefixes
            for selection in peer.only
        ),
    )


def load(marks: Marks) -> None:
    """Put ``marks`` in place of what was there before.

    RoutingError if there is no packet filter to talk to, or it refuses.
    """
    if netfilter.has_nft():
        netfilter.run("nft", "-f", "-", text=nft_ruleset(marks))
        return
    jumps = _jumps(marks.interface)
    for version, command in netfilter.IPTABLES.items():
        if netfilter.installed(command):
            text = iptables_rules(marks, version)
            netfilter.load_chains(command, text, "mangle", jumps)
        elif version == 4:
            raise RoutingError(
                "neither nft nor iptables is installed: install nftables, or set "
                'backend = "rules" under [routing]'
            )


def is_loaded(interface: str) -> bool:
    """Whether what ``load`` put there still is."""
    table, jumps = _nft_table(interface), _jumps(interface)
    return netfilter.is_loaded(table, "mangle", jumps)


def remove(interface: str) -> list[str]:
    """Remove what ``load`` put there; return a line for each thing removed."""
    if netfilter.has_nft():
        table = _nft_table(interface)
        return [f"removed nft table {table}"] if netfilter.nft_remove(table) else []
    jumps, others = _jumps(interface), [f"{_chain(interface)}-sel"]
    return [
        f"removed {command} chains {_chain(interface)}-*"
        for command in netfilter.IPTABLES.values()
        if netfilter.installed(command)
        and netfilter.remove_chains(command, "mangle", jumps, others)
    ]


# --- nftables


def _nft_table(interface: str) -> str:
    return netfilter.nft_table("alpha_trio", interface)


def nft_ruleset(marks: Marks) -> str:
    """Return the text for ``nft -f -`` that replaces our table at one stroke."""
    return netfilter.nft_replacing(
        _nft_table(marks.interface),
        [
            *_nft_sets(marks),
            "  chain tunnel {",
            f"    meta mark set meta mark or {marks.mark:#x}",
            "  }",
            "  chain select {",
            *(f"    {line}" for line in _nft_selection(marks)),
            "  }",
            "  chain local_output {",
            "    type route hook output priority mangle; policy accept;",
            f"    udp sport {marks.port} return",
            "    jump select",
            "  }",
            "  chain forwarded {",
            "    type filter hook prerouting priority mangle; policy accept;",
            # So that the reverse-path check, too, finds the way into the tunnel.
            f'    iifname "{marks.name}" goto tunnel',
            "    jump select",
            "  }",
            "  chain leaving {",
            "    type filter hook postrouting priority mangle; policy accept;",
            # The first look-up of a connection, before the mark, saw another MTU.
            f'    oifname "{marks.name}" tcp flags & (syn | rst) == syn '
            "tcp option maxseg size set rt mtu",
            "  }",
        ],
    )


def _nft_sets(marks: Marks) -> Iterator[str]:
    for version in (4, 6):
        for name, prefixes in zip(
            ("selected", "whole"), marks.of_version(version), strict=True
        ):
            yield f"  set {name}{version} {{"
            yield f"    type ipv{version}_addr; flags interval; auto-merge;"
            if prefixes:
                yield f"    elements = {{ {', '.join(map(str, prefixes))} }}"
            yield "  }"


def _nft_selection(marks: Marks) -> Iterator[str]:
    words = {4: "ip", 6: "ip6"}
    for version, ip in words.items():
        yield f"{ip} daddr {{ {', '.join(_LINK_SCOPE[version])} }} return"
    yield f"icmpv6 type {{ {', '.join(map(str, _DISCOVERY))} }} return"
    for prefix, selection in marks.selected:
        destination = f"{words[prefix.version]} daddr {prefix}"
        protocol = f"meta l4proto {selection.protocol}"
        if selection.ports is None:
            yield f"{destination} {protocol} goto tunnel"
        else:
            first, last = selection.ports
            for end in ("sport", "dport"):
                yield f"{destination} {protocol} th {end} {first}-{last} goto tunnel"
    for version, ip in words.items():
        yield f"{ip} daddr @selected{version} return"
        yield f"{ip} daddr @whole{version} goto tunnel"


# --- iptables


def _chain(interface: str) -> str:
    # At most 28 characters, of which an interface has up to 15.
    return f"AT-{interface}"


def _jumps(interface: str) -> dict[str, str]:
    """Return our chain for each of the built-in ones."""
    chain = _chain(interface)
    return {
        "OUTPUT": f"{chain}-out",
        "PREROUTING": f"{chain}-in",
        "POSTROUTING": f"{chain}-mss",
    }


def iptables_rules(marks: Marks, version: int) -> str:
    """Return the text for ``iptables-restore --noflush`` that fills our chains."""
    output, arriving, leaving = _jumps(marks.interface).values()
    select = f"{_chain(marks.interface)}-sel"
    mark = _iptables_mark(marks)
    lines = [
        f"-A {output} -p udp --sport {marks.port} -j RETURN",
        f"-A {output} -j {select}",
        # So that the reverse-path check, too, finds the way into the tunnel.
        f"-A {arriving} -i {marks.name} {mark}",
        f"-A {arriving} ! -i {marks.name} -j {select}",
        *(f"-A {select} {rule}" for rule in _iptables_selection(marks, version)),
        f"-A {leaving} -o {marks.name} -p tcp --tcp-flags SYN,RST SYN "
        "-j TCPMSS --clamp-mss-to-pmtu",
    ]
    # To name a chain is to empty it; all of this comes into force at one stroke.
    names = (output, arriving, leaving, select)
    chains = [f":{chain} - [0:0]" for chain in names]
    return "\n".join(["*mangle", *chains, *lines, "COMMIT", ""])


def _iptables_mark(marks: Marks) -> str:
    return f"-j MARK --or-mark {marks.mark:#x}"


def _iptables_selection(marks: Marks, version: int) -> Iterator[str]:
    mark = _iptables_mark(marks)
    selected, whole = marks.of_version(version)
    for scope in _LINK_SCOPE[version]:
        yield f"-d {scope} -j RETURN"
    if version == 6:
        for kind in _DISCOVERY:
            yield f"-p icmpv6 --icmpv6-type {kind} -j RETURN"
    for prefix, selection in marks.selected:
        if prefix.version == version:
            for match in _iptables_matches(selection):
                yield f"-d {prefix} {match} {mark}"
    for prefix in selected:
        yield f"-d {prefix} -j RETURN"
    for prefix in whole:
        yield f"-d {prefix} {mark}"


def _iptables_matches(selection: Selection) -> Iterable[str]:
    protocol = _PORTS_PROTOCOLS.get(selection.protocol, str(selection.protocol))
    if selection.ports is None:
        return [f"-p {protocol}"]
    first, last = selection.ports
    return [f"-p {protocol} --{end} {first}:{last}" for end in ("sport", "dport")]
