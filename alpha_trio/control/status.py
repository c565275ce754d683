"""The ``status --json`` document: what runs, how each peer stands, what was lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address
from operator import itemgetter
from pathlib import Path
from typing import Any

from attrs import frozen

from alpha_trio import __version__
from alpha_trio.control.rising import QUIET, Counter
from alpha_trio.journal import address
from alpha_trio.net.tun import Tun
from alpha_trio.net.udp import Udp
from alpha_trio.net.udp_lanes import UdpLanes
from alpha_trio.proto.batch import Counters, Drop
from alpha_trio.proto.engine import chosen
from alpha_trio.proto.packets import IPV6_LEAST
from alpha_trio.proto.peers import State, Statistics
from alpha_trio.proto.primitives import fingerprint, key_text
from alpha_trio.registry import Peer, Table
from alpha_trio.settings import Mode, Offload, Settings

SCHEMA = 1

Complaint = tuple[int, str]  # its rank, 0 is the worst, and the sentence

UNPROTECTED = (
    "peer {}: mode plain: its packets are neither authenticated nor encrypted; anyone "
    "on the path can read, alter and forge them"
)

NARROW = (
    "peer {}: its path takes inner packets of {} bytes, fewer than the 1280 of IPv6: "
    "larger ones go as fragments, {} packets until now, which costs speed and loses "
    "more; a path with 100 bytes more, or IPv4 inside, needs none"
)

LOSSY = 0.005  # of exchanges of S1 and A1, from which TCP suffers

LOSES = (
    "peer {}: {:.1f} % of what goes there and back is lost on the way; TCP that takes "
    "loss for congestion, as CUBIC does, gets more of it with: alpha-trio peers set {} "
    "--reliable on"
)


_LOSSES = {
    Drop.NO_AGREEMENT: (
        "packets for it are lost because it does not agree to them in time; is the way "
        "lossy? See 'alpha-trio trace {name}'"
    ),
    Drop.WRONG_SOURCE: (
        "its packets from {source} are dropped, which is none of its addresses; if it "
        "should be: alpha-trio peers set {name} {allow}"
    ),
    Drop.TOO_BIG: (
        "packets larger than its MTU of {mtu} go on coming; their senders do not heed "
        "ICMP: let it through, or lower the MTU there"
    ),
    Drop.STRANGER: (
        "somebody at its address asks for sessions without being it; see Knocking in "
        "'alpha-trio status'"
    ),
}
"""What to look at, by what packets are lost for."""


@frozen
class Reading:
    """How one peer stood at one moment."""

    peer: Peer
    document: dict[str, Any]  # its part of the status document
    complaints: list[Complaint]  # what ``health`` has of it


def readings(peers: Iterable[Peer], now: Callable[[], float]) -> Iterator[Reading]:
    """Of each peer; nothing is read before it is asked for."""
    for peer in peers:
        statistics = peer.session.statistics(now())
        document = _peer(peer, statistics)
        yield Reading(peer, document, _complaints(peer, statistics))


def status_document(
    settings: Settings,
    uptime: float,
    tun: Tun,
    udp: Udp | UdpLanes,
    table: Table,
    found: Collection[Reading],
    relay: dict[str, Any] | None,
    routing_error: str | None,
    complaints: Iterable[str],
    rising: Iterable[Counter],
    troubles: Collection[str] = (),
    hooks: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Everything in it is text, numbers, lists and maps.  Ages are in seconds."""
    peers = [reading.peer for reading in found]
    of_peers = [complaint for reading in found for complaint in reading.complaints]
    astray = _astray(peers, routing_error, complaints)
    interface = tun.current_name
    return {
        "schema": SCHEMA,
        "version": __version__,
        "uptime_seconds": round(uptime, 3),
        "interface": {
            "name": interface,
            "mtu": _mtu(interface),
            "offloads": {"tun": list(tun.offloads), "udp": list(udp.offloads)},
        },
        "port": settings.port,
        "cores": settings.cores,
        "engine": {"name": chosen().name, "why": chosen().why},
        "key": key_text(table.identity.public),
        "peers": [reading.document for reading in found],
        "knocking": [
            {
                "address": host,
                "key": key_text(knock.key),
                "fingerprint": fingerprint(knock.key),
                "count": knock.count,
            }
            for host, knock in table.knocking.items()
        ],
        "relay": relay,
        "drops": _drops(table.counters) | _unreceived(udp),
        "hooks": dict(hooks or {}),
        "astray": astray,
        "health": [
            *astray,
            *_losses(peers, _by_name(rising)),
            *(line for _, line in sorted(of_peers, key=itemgetter(0))),
            *_slower(settings, tun, udp),
            *_in_python(),
            *troubles,
        ],
    }


def peer_figures(
    peers: Iterable[Peer], now: Callable[[], float], rising: Iterable[Counter]
) -> Iterator[tuple[dict[str, Any], int]]:
    """What of the status document is no text, and how many lines of ``health``.

    Of each peer; nothing is read before it is asked for.
    """
    rises = _by_name(rising)
    for peer in peers:
        statistics = peer.session.statistics(now())
        health = [
            *_strays(peer),
            *_losses([peer], rises),
            *_complaints(peer, statistics),
        ]
        state = str(_state(peer, statistics.state))
        document = {"name": peer.settings.name, "state": state}
        yield document | _figures(peer, statistics), len(health)


def _peer(peer: Peer, statistics: Statistics) -> dict[str, Any]:
    settings = peer.settings
    return {
        "name": settings.name,
        "endpoint": address(statistics.remote) if statistics.remote else None,
        "configured_endpoint": None if settings.waits else settings.host,
        "state": str(_state(peer, statistics.state)),
        "reason": peer.error or _unreachable(peer) or _silence(peer, statistics.reason),
        "core": peer.session.lane,
        "mode": "plain" if settings.mode is Mode.PLAIN else "alpha",
        "configured_mode": str(settings.mode),
        "reliable": settings.reliable,
        "early": settings.early,
        "early_text": peer.early_text,
        "psk": settings.psk is not None,
        **key_document(peer),
        "offered_key": _key(statistics.offered_key),
        "mtu_source": str(statistics.mtu_source),
        "allowed": [str(prefix) for prefix in peer.prefixes],
        "nested": None if peer.nested is None else str(peer.nested),
        **_figures(peer, statistics),
    }


def _figures(peer: Peer, statistics: Statistics) -> dict[str, Any]:
    """What can be counted or measured, and what metrics have of the rest."""
    counters = statistics.counters
    return {
        "early_state": str(peer.session.early_state),
        "latest_handshake_seconds": _seconds(statistics.handshake_age),
        "latest_receive_seconds": _seconds(statistics.receive_age),
        "rtt_ms": None if statistics.rtt is None else round(statistics.rtt * 1000, 3),
        "mtu": statistics.mtu,
        "routed": not peer.troubles,
        "tx_packets": counters.tx_packets,
        "tx_bytes": counters.tx_bytes,
        "rx_packets": counters.rx_packets,
        "rx_bytes": counters.rx_bytes,
        "queued": statistics.queued,
        "rounds": statistics.rounds,
        "reliable_rounds": counters.reliable_rounds,
        "early_sent": counters.early_sent,
        "early_received": counters.early_received,
        "split_packets": counters.split_packets,
        "associations": statistics.associations,
        "elements_left": statistics.elements_left,
        "drops": _drops(counters),
    }


def key_document(peer: Peer) -> dict[str, Any]:
    """The key that counts for a peer, and who says so."""
    key = peer.session.key
    source = "pinned" if key else "none"
    if peer.settings.key:
        source = "configured"
    return {"key": _key(key), "key_source": source}


def _state(peer: Peer, state: State) -> State:
    """Who calls needs no address; all others are not asked before there is one."""
    unknown = peer.search is not None and not peer.addresses
    called = state in (State.ESTABLISHED, State.SILENT)
    return State.RESOLVING if unknown and not called else state


def _unreachable(peer: Peer) -> str | None:
    if peer.troubles:
        return peer.troubles[0]
    return peer.underlay.error if peer.underlay else None


def _silence(peer: Peer, reason: str | None) -> str | None:
    """Who has another psk does not answer, like who is not there."""
    if peer.settings.psk is None or not peer.unanswered:
        return reason
    hint = "has it the same psk for this host?"
    return f"{reason}; {hint}" if reason else hint


def _key(public: bytes | None) -> str | None:
    return None if public is None else key_text(public)


def _seconds(age: float | None) -> float | None:
    return None if age is None else round(age, 3)


def _drops(counters: Counters) -> dict[str, int]:
    return {str(reason): count for reason, count in counters.drops.items() if count}


def _unreceived(udp: Udp | UdpLanes) -> dict[str, int]:
    """What was dropped before it reached us, in the way of ``_drops``."""
    count = udp.dropped
    return {str(Drop.NO_ROOM): count} if count else {}


def _unprotected(peer: Peer, statistics: Statistics) -> str | None:
    settings = peer.settings
    return UNPROTECTED.format(settings.name) if settings.mode is Mode.PLAIN else None


def _narrow(peer: Peer, statistics: Statistics) -> str | None:
    mtu, splits = statistics.mtu, statistics.counters.split_packets
    sixes = any(prefix.version == 6 for prefix in peer.prefixes)
    if mtu >= IPV6_LEAST or not sixes:
        return None
    return NARROW.format(peer.settings.name, mtu, splits)


def _lossy(peer: Peer, statistics: Statistics) -> str | None:
    loss, name = statistics.loss, peer.settings.name
    if loss is None or loss < LOSSY or peer.settings.reliable:
        return None
    return LOSES.format(name, loss * 100, name)


def _twins(peer: Peer, statistics: Statistics) -> str | None:
    twins, name = statistics.twins, peer.settings.name
    if twins is None:
        return None
    places = " and ".join(map(address, twins))
    return (
        f"peer {name}: two hosts use its key, at {places}, and take the session from "
        "each other: on a copied one stop the daemon, remove host.key from its state "
        "directory, start it again, and add it here as a peer of its own"
    )


def _astray(
    peers: Iterable[Peer], routing_error: str | None, complaints: Iterable[str]
) -> list[str]:
    """Sentences about packets that do not go where they should."""
    lines = list(complaints)
    if routing_error is not None:
        lines.append(f"not all packets take the tunnel that should: {routing_error}")
    return lines + [line for peer in peers for line in _strays(peer)]


def _strays(peer: Peer) -> list[str]:
    return [
        f"peer {peer.settings.name}: not all its packets take the tunnel: {reason}"
        for reason in peer.troubles
    ]


def quiet_counts(table: Table, peers: Iterable[Peer]) -> dict[Counter, int]:
    """What should not rise, as counted up to now."""
    counts: dict[Counter, int] = {}
    for peer in peers:
        name = peer.settings.name
        drops = peer.session.counters.drops
        counts |= {(name, why): drops[why] for why in QUIET if why in drops}
        for remote in peer.remotes:  # who is no peer, but at a peer's address
            if (knock := table.knocking.get(remote[0])) is not None:
                counts[name, Drop.STRANGER] = knock.count
    return counts


def _by_name(rising: Iterable[Counter]) -> dict[str, list[Drop]]:
    rises: dict[str, list[Drop]] = {}
    for name, why in rising:
        rises.setdefault(name, []).append(why)
    return rises


def _losses(peers: Iterable[Peer], rises: Mapping[str, list[Drop]]) -> list[str]:
    """What to look at where packets are lost again and again."""
    return [
        f"peer {peer.settings.name}: {_LOSSES[why].format(**_words(peer))} ({why} goes "
        "on rising)"
        for peer in peers
        for why in rises.get(peer.settings.name, ())
    ]


def _words(peer: Peer) -> dict[str, object]:
    source = peer.session.foreign_source
    address = str(ip_address(source)) if source else "unknown"
    allow = " ".join(f"--allow {prefix}" for prefix in peer.prefixes)
    return {
        "name": peer.settings.name,
        "mtu": peer.session.mtu,
        "source": address,
        "allow": f"{allow} --allow {address}",
    }


_COMPLAINTS = (_unprotected, _narrow, _lossy, _twins)
"""What else an operator should know of a peer, the worst first."""


def _complaints(peer: Peer, statistics: Statistics) -> list[Complaint]:
    return [
        (rank, line)
        for rank, complaint in enumerate(_COMPLAINTS)
        if (line := complaint(peer, statistics)) is not None
    ]


def _in_python() -> Iterator[str]:
    choice = chosen()
    if choice.instead:
        yield (
            "packets are worked on in Python, which takes twice the CPU time: "
            f"{choice.why}; install again where there is a C compiler and libcrypto's "
            'headers, or say engine = "python" if it is to be so'
        )


def _slower(settings: Settings, tun: Tun, udp: Udp | UdpLanes) -> list[str]:
    """Sentences about what this host could be faster with."""
    lines = []
    have = {*udp.offloads, *(name.rstrip("46") for name in tun.offloads)}
    for offload in Offload:
        if offload in have:
            continue
        why = "switched off" if offload in settings.disabled_offloads else "not offered"
        lines.append(f"offload {offload} is {why}: slower")
    lines += [
        f"datagrams to {address(remote)} go one by one: the way there takes no "
        "batches; slower"
        for sock in udp
        for remote in sorted(sock.unsegmented)
    ]
    return lines


def _mtu(interface: str) -> int | None:
    try:
        return int(Path("/sys/class/net", interface, "mtu").read_text())
    except OSError:  # just deleted
        return None
