"""How others' tunnel traffic gets to the relay, and what becomes of it without one.

``tproxy`` hands a packet to a socket of ours although it is not for us, whole runs of
them at a time; the rules of net/plan.py then lead it there.  Packets that have come to
their last hop are left out, so that the kernel answers them as every router does.

nft's tproxy does nothing if there is no such socket: the packet is forwarded as if we
did not exist.  So a relay that stops, even by SIGKILL, leaves the way open, unless a
second table drops in the forward hook, where nothing comes that tproxy has taken.
That of iptables drops instead, until its rules are removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from alpha_trio.errors import RoutingError
from alpha_trio.net import netfilter
from alpha_trio.settings import Fail, Settings

_LOOPBACKS = {4: "127.0.0.1", 6: "::1"}
_ENDS = ("dport", "sport")  # answers to a host behind NAT have only the second


@frozen
class Capture:
    """Which packets are taken, and to where."""

    interface: str  # after which our rules are named
    ports: tuple[int, ...]  # UDP ports at either end
    mark: int
    listeners: Mapping[int, int]  # by IP version: port of our socket on the loopback
    closed: bool  # whether they are dropped when nobody listens


def of(settings: Settings, listeners: Mapping[int, int]) -> Capture:
    """Return what ``settings`` want, for sockets at these ports by IP version."""
    relay = settings.relay
    return Capture(
        settings.interface,
        relay.ports or (settings.port,),
        settings.routing.relay_mark,
        listeners,
        relay.fail is Fail.CLOSED,
    )


def load(capture: Capture) -> None:
    """Put our rules in place, those for a time without relay first.

    RoutingError if there is no packet filter to talk to, or it refuses.
    """
    if netfilter.has_nft():
        _close_nft(capture)
        _load_nft(capture)
        return
    if not netfilter.installed("iptables"):
        raise RoutingError(
            "a relay needs nft or iptables, and neither is installed: install nftables"
        )
    for version, command in netfilter.IPTABLES.items():
        if netfilter.installed(command):
            _load_iptables(capture, version, command)


def is_loaded(capture: Capture) -> bool:
    """Whether our rules are still there; nobody asks where there is no nft."""
    return not netfilter.has_nft() or (
        netfilter.nft_has(_nft_capture_table(capture.interface))
        and netfilter.nft_has(_nft_closed_table(capture.interface)) == capture.closed
    )


def remove(interface: str, *, closed: bool) -> list[str]:
    """Remove what ``load`` put there; return a line for each thing removed.

    ``closed``: also what drops the traffic when there is no relay.
    """
    if netfilter.has_nft():
        tables = [_nft_capture_table(interface)]
        tables += [_nft_closed_table(interface)] if closed else []
        return [f"removed nft table {t}" for t in tables if netfilter.nft_remove(t)]
    places = {"mangle": _capture_jump(interface)}
    places |= {"filter": _closed_jump(interface)} if closed else {}
    return [
        f"removed {command} chain {chain}"
        for command in netfilter.IPTABLES.values()
        if netfilter.installed(command)
        for table, jumps in places.items()
        for chain in jumps.values()
        if netfilter.remove_chains(command, table, jumps)
    ]


# --- nftables


def _nft_capture_table(interface: str) -> str:
    return netfilter.nft_table("alpha_relay", interface)


def _nft_closed_table(interface: str) -> str:
    return netfilter.nft_table("alpha_closed", interface)


def nft_capture(capture: Capture) -> str:
    """Return the text for ``nft -f -`` that hands the traffic to our sockets."""
    return netfilter.nft_replacing(
        _nft_capture_table(capture.interface),
        [
            "  chain arriving {",
            # After whatever else sets marks: ours has to be the last.
            "    type filter hook prerouting priority mangle + 1; policy accept;",
            *(
                f"    fib daddr type unicast udp {end} {_nft_ports(capture)} jump take"
                for end in _ENDS
            ),
            "  }",
            "  chain take {",
            *(f"    {line}" for line in _nft_take(capture)),
            "  }",
        ],
    )


def _nft_take(capture: Capture) -> Iterator[str]:
    mark = f"meta mark set {capture.mark:#x} accept"
    if port := capture.listeners.get(4):
        to = f"tproxy ip to {_LOOPBACKS[4]}:{port}"
        yield f"meta nfproto ipv4 meta l4proto udp ip ttl > 1 {to} {mark}"
    if port := capture.listeners.get(6):
        to = f"tproxy ip6 to [{_LOOPBACKS[6]}]:{port}"
        yield f"meta nfproto ipv6 meta l4proto udp ip6 hoplimit > 1 {to} {mark}"


def nft_closed(capture: Capture) -> str:
    """Return the text for ``nft -f -`` that drops what no relay has taken."""
    return netfilter.nft_replacing(
        _nft_closed_table(capture.interface),
        [
            "  chain forwarded {",
            "    type filter hook forward priority filter; policy accept;",
            *(f"    udp {end} {_nft_ports(capture)} counter drop" for end in _ENDS),
            "  }",
        ],
    )


def _load_nft(capture: Capture) -> None:
    try:
        netfilter.run("nft", "-f", "-", text=nft_capture(capture))
    except RoutingError as error:
        raise RoutingError(
            f"the packet filter cannot lead others' traffic to the relay ({error}): "
            "the kernel needs nft_tproxy and nft_fib, see 'alpha-trio doctor'"
        ) from None


def _nft_ports(capture: Capture) -> str:
    return f"{{ {', '.join(map(str, capture.ports))} }}"


def _close_nft(capture: Capture) -> None:
    if capture.closed:
        netfilter.run("nft", "-f", "-", text=nft_closed(capture))
    else:
        netfilter.nft_remove(_nft_closed_table(capture.interface))


# --- iptables


def _capture_jump(interface: str) -> dict[str, str]:
    # A chain has at most 28 characters, of which an interface has up to 15.
    return {"PREROUTING": f"AT-{interface}-relay"}


def _closed_jump(interface: str) -> dict[str, str]:
    return {"FORWARD": f"AT-{interface}-closed"}


def iptables_capture(capture: Capture, version: int) -> str:
    """Return the text for ``iptables-restore`` that hands traffic to our socket."""
    (chain,) = _capture_jump(capture.interface).values()
    last_hop = "-m ttl --ttl-gt 1" if version == 4 else "-m hl --hl-gt 1"
    port = capture.listeners.get(version)
    lines = [
        f"-A {chain} {match} -m addrtype --dst-type UNICAST {last_hop} -j TPROXY "
        f"--on-ip {_LOOPBACKS[version]} --on-port {port} "
        f"--tproxy-mark {capture.mark:#x}/0xffffffff"
        for match in _iptables_matches(capture)
        if port
    ]
    return _restoring("mangle", chain, lines)


def iptables_closed(capture: Capture) -> str:
    """Return the text for ``iptables-restore`` that drops what no relay has taken."""
    (chain,) = _closed_jump(capture.interface).values()
    lines = [f"-A {chain} {match} -j DROP" for match in _iptables_matches(capture)]
    return _restoring("filter", chain, lines)


def _iptables_matches(capture: Capture) -> Iterator[str]:
    for port in capture.ports:
        for end in _ENDS:
            yield f"-p udp --{end} {port}"


def _restoring(table: str, chain: str, lines: list[str]) -> str:
    # To name a chain is to empty it; all of this comes into force at one stroke.
    return "\n".join([f"*{table}", f":{chain} - [0:0]", *lines, "COMMIT", ""])


def _load_iptables(capture: Capture, version: int, command: str) -> None:
    closed = _closed_jump(capture.interface)
    if capture.closed:
        text = iptables_closed(capture)
        netfilter.load_chains(command, text, "filter", closed)
    else:
        netfilter.remove_chains(command, "filter", closed)
    text = iptables_capture(capture, version)
    netfilter.load_chains(command, text, "mangle", _capture_jump(capture.interface))
