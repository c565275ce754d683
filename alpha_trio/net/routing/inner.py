"""A mark for what came out of the tunnel, while the packet filter checks sources.

For its own reverse-path check a packet filter (firewalld, NixOS, shorewall) asks how a
packet's source would be reached.  When a datagram of a peer arrives the answer has to
be the link, and when a packet of that peer comes out of the tunnel, the tunnel; but the
two questions are the same, address by address, if the peer has one address only.  The
mark is all that can tell them apart.  It is set before any check and taken off after,
so that nobody who routes, masquerades or connects by marks ever sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpha_trio.net import netfilter
from alpha_trio.net.netfilter import SourceCheck
from alpha_trio.net.routing.plan import PeerRoute
from alpha_trio.settings import Backend, Settings

# Before iptables' "raw" (-300), and after "mangle" (-150), just before "dstnat" (-100).
_BEFORE, _AFTER = -301, -101


def told_apart(checks: Iterable[SourceCheck]) -> frozenset[int]:
    """Return the IP versions that are checked, by nothing but marks."""
    by_mark: set[int] = set()
    blind: set[int] = set()
    for check in checks:
        (by_mark if check.by_mark else blind).update(check.versions)
    return frozenset(by_mark - blind)


def apply(settings: Settings, name: str, checks: Iterable[SourceCheck]) -> None:
    """Mark what comes out of the interface called ``name``, if that is of use.

    RoutingError if it is and cannot be done.
    """
    table = _table(settings)
    if settings.routing.backend is not Backend.RULES or not told_apart(checks):
        remove(settings)
    elif not netfilter.nft_has(table):
        netfilter.run("nft", "-f", "-", text=_ruleset(settings, name))


def remove(settings: Settings) -> list[str]:
    """Remove what ``apply`` put there; return a line for each thing removed."""
    table = _table(settings)
    if netfilter.has_nft() and netfilter.nft_remove(table):
        return [f"removed nft table {table}"]
    return []


def complaint(checks: Iterable[SourceCheck], peers: Sequence[PeerRoute]) -> str | None:
    """Say which check no mark can satisfy, if some peer is in its way."""
    versions = {
        peer.endpoint.version
        for peer in peers
        if peer.endpoint is not None
        and any(peer.endpoint in prefix for prefix in peer.prefixes)
    }
    for check in checks:
        if not check.by_mark and versions & check.versions:
            return (
                f"the packet filter drops what the tunnel brings, by the rule "
                f"'{check.rule}', which cannot tell it from the datagrams that carry "
                "it: let it look at marks ('--validmark', 'fib saddr . mark . iif'), "
                "or accept what comes from the tunnel's interface before it"
            )
    return None


def _table(settings: Settings) -> str:
    return netfilter.nft_table("alpha_trio_inner", settings.interface)


def _ruleset(settings: Settings, name: str) -> str:
    mark = settings.routing.inner_mark
    return netfilter.nft_replacing(
        _table(settings),
        [
            "  chain arriving {",
            f"    type filter hook prerouting priority {_BEFORE}; policy accept;",
            f'    iifname "{name}" meta mark 0 meta mark set {mark:#x}',
            "  }",
            "  chain checked {",
            f"    type filter hook prerouting priority {_AFTER}; policy accept;",
            f'    iifname "{name}" meta mark {mark:#x} meta mark set 0',
            "  }",
        ],
    )
