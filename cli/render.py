"""The daemon's answers as pages for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .screen import Block, Pairs, Rows, Sentence
from .words import (
    ago,
    amount,
    counted,
    duration,
    early,
    fingerprint,
    knocking,
    known_key,
    milliseconds,
    mismatch,
    mix,
    mode,
    mtu,
    node,
    not_early,
    place,
    reached,
    relayed,
    relayed_end,
    trace_lines,
)

Document = Mapping[str, Any]

SESSIONS_SHOWN = 20  # of those relayed; --json has more

STATE_STYLES = {
    "established": "green",
    "resolving": "yellow",
    "handshaking": "yellow",
    "silent": "red",
    "unreachable": "red",
    "key-mismatch": "bold red",
}


def status_page(status: Document) -> list[Block]:
    return [
        *map(Sentence, _header(status)),
        *_peer_section(status["peers"]),
        *notices(status),
        *relay_lines(status["relay"]),
        *relay_table(status["relay"]),
        *health(status),
    ]


def notices(status: Document) -> Iterator[Block]:
    for peer in status["peers"]:
        yield from _warnings(peer)
    yield from map(Sentence, not_early(status["peers"]))
    yield from (Sentence(knocking(host)) for host in status["knocking"])
    yield from (Sentence(f"Dropped: {drops}") for drops in _drops(status))


def health(status: Document) -> Iterator[Block]:
    yield from (Sentence(f"Health: {line}", "red") for line in status["health"])


def running(status: Document) -> str:
    """One line: which daemon this is."""
    return (
        f"alpha-trio {status['version']} on {status['interface']['name']}, "
        f"UDP port {status['port']}, up {duration(status['uptime_seconds'])}"
    )


def _header(status: Document) -> Iterator[str]:
    interface = status["interface"]
    yield running(status)
    yield f"Key: {status['key']} ({fingerprint(status['key'])})"
    if engine := status.get("engine"):  # an older daemon does not say
        yield f"Engine: {engine['name']}, {engine['why']}"
    if (cores := status.get("cores", 1)) > 1:
        yield f"Cores: {cores}, each with a process that carries packets"
    for where, offloads in interface["offloads"].items():
        yield f"Offloads of {where}: {', '.join(offloads) or 'none'}"


NO_PEERS = "No peers: add one with 'alpha-trio peers add NAME ADDRESS'."


def _peer_section(peers: Iterable[Document]) -> Iterator[Block]:
    if not peers:
        yield Sentence(NO_PEERS)
        return
    columns = "PEER", "STATE", "SENT", "RECEIVED", "RTT", "MODE", "HOW"
    yield Rows(columns, map(_peer_row, peers), STATE_STYLES, sentence=True)


def _peer_row(peer: Document) -> tuple[str, ...]:
    return (
        peer["name"],
        peer["state"],
        amount(peer["tx_bytes"]),
        amount(peer["rx_bytes"]),
        milliseconds(peer["rtt_ms"]),
        mode(peer, mix(peer)),
        reached(peer),
    )


def _warnings(peer: Document) -> Iterator[Block]:
    if peer["state"] == "key-mismatch":
        yield Sentence(mismatch(peer), STATE_STYLES["key-mismatch"])


def relay_lines(relay: Document | None) -> Iterator[Block]:
    if relay is not None:
        yield Sentence(relayed(relay))
        yield from (Sentence(f"Not relayed: {drops}") for drops in _drops(relay))


def relay_table(relay: Document | None) -> Iterator[Block]:
    """The sessions of others that cross this host, the latest first."""
    if relay is None or not relay["latest"]:
        return
    columns = "INITIATOR", "RESPONDER", "STATE", "THERE", "BACK", "LAST"
    rows = map(_session_row, relay["latest"][:SESSIONS_SHOWN])
    yield Rows(columns, rows)


def _session_row(session: Document) -> list[str]:
    ends = session["initiator"], session["responder"]
    there, back = (amount(end["forwarded_bytes"]) for end in reversed(ends))
    idle = ago(session["idle_seconds"])
    cells = (*map(relayed_end, ends), session["state"], there, back, idle)
    return [*cells]


def peer_page(status: Document, peer: Document) -> list[Block]:
    """Everything that a status document has about one of its peers."""
    return [*peer_troubles(status, peer), *peer_sections(peer)]


def peer_troubles(status: Document, peer: Document) -> Iterator[Block]:
    """What is wrong with a peer, or with the host, and not with another peer."""
    yield from _warnings(peer)
    mine = f"peer {peer['name']}:"
    for line in status["health"]:
        if line.startswith(mine) or not line.startswith("peer "):
            yield Sentence(f"Health: {line}", "red")


def peer_sections(peer: Document) -> list[Block]:
    """Names and values, by what they are about."""
    sections = _peer_pairs(peer)
    longest = max(len(name) for pairs in sections.values() for name, _ in pairs)
    blocks: list[Block] = []
    for title, pairs in sections.items():
        if title:
            blocks += [Sentence(""), Sentence(title, "bold")]
        blocks.append(Pairs(pairs, longest))
    return blocks


def _peer_pairs(peer: Document) -> dict[str, list[tuple[str, object]]]:
    early_packets = f"{peer['early_sent']} sent, {peer['early_received']} received"
    return {
        "": [
            ("peer", peer["name"]),
            ("state", peer["state"]),
            ("reached", reached(peer)),
        ],
        "Traffic": [
            ("sent", _traffic(peer, "tx")),
            ("received", _traffic(peer, "rx")),
            ("waiting", counted(peer["queued"], "packet")),
            ("core", peer.get("core", 0)),
            *(("dropped", drops) for drops in _drops(peer)),
        ],
        "Protection": [
            ("mode", mode(peer)),
            ("rounds", mix(peer) or "none"),
            ("reliable", _setting(peer["reliable"])),
            ("reliable rounds", peer["reliable_rounds"]),
            ("early data", early(peer)),
            ("early packets", early_packets),
            ("associations", peer["associations"]),
            ("elements left", peer["elements_left"]),
        ],
        "Way": [
            ("endpoint", peer["endpoint"]),
            ("configured", peer["configured_endpoint"]),
            ("handshake", ago(peer["latest_handshake_seconds"])),
            ("last heard", ago(peer["latest_receive_seconds"])),
            ("round trip", milliseconds(peer["rtt_ms"])),
            ("MTU", mtu(peer)),
            ("allowed", ", ".join(peer["allowed"])),
        ],
        "Trust": [*_key_lines(peer)],
    }


def _key_lines(peer: Document) -> Iterator[tuple[str, object]]:
    yield "key", peer["key"]
    yield "key source", peer["key_source"]
    if "psk" in peer:  # of the settings only if there is one
        yield "pre-shared key", "yes" if peer["psk"] else "none"
    if peer["key"] is not None:
        yield "fingerprint", fingerprint(peer["key"])


def settings_page(peer: Document) -> list[Block]:
    """The settings and the key of one peer, as `peers show` has them."""
    settings = [
        (name, _setting(value))
        for name, value in peer.items()
        if name not in ("key", "key_source", "psk")
    ]
    return [Pairs([*settings, *_key_lines(peer)])]


def peers_table(peers: Iterable[Document]) -> list[Block]:
    """The settings of all peers, as `peers list` has them."""
    peers = list(peers)
    # Few set most of them, and all of them would not fit into eighty columns.
    used = [name for name in LISTED if any(name in peer for peer in peers)]
    columns = "name", "endpoint", *used, "key", "origin"
    rows = [_settings_row(peer, used) for peer in peers]
    return [Rows([*map(str.upper, columns)], rows)]


LISTED = "allow", "only", "keepalive", "mode", "reliable", "early", "mtu", "psk"


def _settings_row(peer: Document, used: Iterable[str]) -> list[str]:
    values = (_setting(peer.get(name)) for name in used)
    cells = peer["name"], place(peer), *values, known_key(peer), peer["origin"]
    return [*cells]


def trace_page(trace: Document) -> list[Block]:
    """The nodes on the way to a peer, then what happened between them."""
    ways = "THERE", "DROPPED", "BACK", "DROPPED"
    rows = [_hop_row(number, hop) for number, hop in enumerate(trace["hops"])]
    columns = "HOP", "NODE", "ADDRESS", "KEY", *ways
    lines = map(Sentence, trace_lines(trace))
    return [Rows(columns, rows), *lines]


def _hop_row(number: int, hop: Document) -> list[str]:
    ways = [text for way in ("forth", "back") for text in _counts(hop[way])]
    names = str(number), node(hop), hop["address"] or "-", hop["key"]
    return [*names, *ways]


def _counts(counts: Document) -> Iterator[str]:
    yield f"{counts['passed']:,}"
    yield ", ".join(_drops(counts)) or "-"


def _traffic(peer: Document, direction: str) -> str:
    count, size = peer[f"{direction}_packets"], peer[f"{direction}_bytes"]
    return f"{amount(size)} in {counted(count, 'packet')}"


def _drops(document: Document) -> Iterator[str]:
    drops = [f"{why} {count}" for why, count in document["drops"].items() if count]
    if drops:
        yield ", ".join(drops)


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
