"""Lowering the segment size in forwarded TCP SYNs to what the tunnel takes (``mss``).

The packet filter's own means: it takes the smaller of the two routes' MTU, there and
back, so the SYNs of both directions are seen to, whichever side opens the connection.
Only for those whose senders do not hear ICMP; docs/routing.md says why it is off.
"""

from __future__ import annotations

from alpha_trio.errors import RoutingError
from alpha_trio.net import netfilter

_WAYS = {"iifname": "-i", "oifname": "-o"}


def load(interface: str) -> None:
    """Have both families' SYNs clamped; RoutingError if nothing here can do that."""
    if netfilter.has_nft():
        netfilter.run("nft", "-f", "-", text=nft_ruleset(interface))
        return
    commands = [c for c in netfilter.IPTABLES.values() if netfilter.installed(c)]
    if not commands:
        raise RoutingError(
            "mss needs nft or iptables, and neither is installed: install nftables, or "
            "set mss = false under [routing]"
        )
    for command in commands:
        text = iptables_rules(interface)
        netfilter.load_chains(command, text, "mangle", _jumps(interface))


def is_loaded(interface: str) -> bool:
    """Whether what ``load`` put there still is."""
    table, jumps = _nft_table(interface), _jumps(interface)
    return netfilter.is_loaded(table, "mangle", jumps)


def remove(interface: str) -> list[str]:
    """Remove what ``load`` put there; return a line for each thing removed."""
    if netfilter.has_nft():
        table = _nft_table(interface)
        return [f"removed nft table {table}"] if netfilter.nft_remove(table) else []
    return [
        f"removed {command} chain {_chain(interface)}"
        for command in netfilter.IPTABLES.values()
        if netfilter.installed(command)
        and netfilter.remove_chains(command, "mangle", _jumps(interface))
    ]


def _nft_table(interface: str) -> str:
    return netfilter.nft_table("alpha_trio_mss", interface)


def nft_ruleset(interface: str) -> str:
    """Return the text for ``nft -f -`` that replaces our table at one stroke."""
    return netfilter.nft_replacing(
        _nft_table(interface),
        [
            "  chain forwarded {",
            "    type filter hook forward priority mangle; policy accept;",
            *(
                f'    {way} "{interface}" tcp flags & (syn | rst) == syn '
                "tcp option maxseg size set rt mtu"
                for way in _WAYS
            ),
            "  }",
        ],
    )


def _chain(interface: str) -> str:
    return f"AT-{interface}-fwd"


def _jumps(interface: str) -> dict[str, str]:
    return {"FORWARD": _chain(interface)}


def iptables_rules(interface: str) -> str:
    """Return the text for ``iptables-restore --noflush`` that fills our chain."""
    chain = _chain(interface)
    lines = [
        f"-A {chain} {way} {interface} -p tcp --tcp-flags SYN,RST SYN "
        "-j TCPMSS --clamp-mss-to-pmtu"
        for way in _WAYS.values()
    ]
    return "\n".join(["*mangle", f":{chain} - [0:0]", *lines, "COMMIT", ""])
