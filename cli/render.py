"""The daemon's answers as tables for people; importing this brings in rich."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .words import (
    ago,
    amount,
    counted,
    duration,
    early,
    fingerprint,
    knocking,
    milliseconds,
    mismatch,
    mix,
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

# Wide enough that nothing is folded when a program reads the table.
PIPE_WIDTH = 1000

SESSIONS_SHOWN = 20  # of those relayed; --json has more

STATE_STYLES = {
    "established": "green",
    "resolving": "yellow",
    "handshaking": "yellow",
    "silent": "red",
    "unreachable": "red",
    "key-mismatch": "bold red",
}


def show(*renderables: RenderableType) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for renderable in renderables:
        # A sentence may hold a command to be copied: only the terminal may wrap it.
        console.print(renderable, soft_wrap=isinstance(renderable, Text))


def watch(documents: Iterable[Document], seconds: float) -> None:
    """Show the latest document in place, until Ctrl-C."""
    with Live(
        screen=True, auto_refresh=False, console=Console(highlight=False)
    ) as live:
        for document in documents:
            live.update(Group(*status_page(document)), refresh=True)
            time.sleep(seconds)


def status_page(status: Document) -> list[RenderableType]:
    return [
        *map(Text, _header(status)),
        *_peer_section(status["peers"]),
        *(warning for peer in status["peers"] for warning in _warnings(peer)),
        *map(Text, not_early(status["peers"])),
        *_relay_section(status["relay"]),
        *(Text(knocking(host)) for host in status["knocking"]),
        *(Text(f"Dropped: {drops}") for drops in _drops(status)),
        *(Text(f"Health: {line}", style="red") for line in status["health"]),
    ]


def _header(status: Document) -> Iterator[str]:
    interface = status["interface"]
    yield (
        f"alpha-trio {status['version']} on {interface['name']}, "
        f"UDP port {status['port']}, up {duration(status['uptime_seconds'])}"
    )
    yield f"Key: {status['key']} ({fingerprint(status['key'])})"
    for where, offloads in interface["offloads"].items():
        yield f"Offloads of {where}: {', '.join(offloads) or 'none'}"


def _peer_section(peers: Iterable[Document]) -> Iterator[RenderableType]:
    if not peers:
        yield Text("No peers: add one with 'alpha-trio peers add NAME ADDRESS'.")
        return
    table = _table("PEER", "STATE", "SENT", "RECEIVED", "RTT")
    table.add_column("MODE")
    table.add_column("HOW")
    for peer in peers:
        state = Text(peer["state"], style=STATE_STYLES.get(peer["state"], ""))
        table.add_row(
            Text(peer["name"]),
            state,
            Text(amount(peer["tx_bytes"])),
            Text(amount(peer["rx_bytes"])),
            Text(milliseconds(peer["rtt_ms"])),
            Text(mix(peer) or peer["configured_mode"]),
            Text(reached(peer)),
        )
    yield table


def _warnings(peer: Document) -> Iterator[RenderableType]:
    if peer["state"] == "key-mismatch":
        yield Text(mismatch(peer), style=STATE_STYLES["key-mismatch"])


def _relay_section(relay: Document | None) -> Iterator[RenderableType]:
    """The sessions of others that cross this host, the latest first."""
    if relay is None:
        return
    yield Text(relayed(relay))
    yield from (Text(f"Not relayed: {drops}") for drops in _drops(relay))
    if not relay["latest"]:
        return
    table = _table("INITIATOR", "RESPONDER", "STATE", "THERE", "BACK", "LAST")
    for session in relay["latest"][:SESSIONS_SHOWN]:
        ends = session["initiator"], session["responder"]
        there, back = (amount(end["forwarded_bytes"]) for end in reversed(ends))
        idle = ago(session["idle_seconds"])
        cells = (*map(relayed_end, ends), session["state"], there, back, idle)
        table.add_row(*map(Text, cells))
    yield table


def peer_page(peer: Document) -> list[RenderableType]:
    """Everything about one peer of the status document."""
    lines = [
        ("peer", peer["name"]),
        ("state", peer["state"]),
        ("reached", reached(peer)),
        ("endpoint", peer["endpoint"]),
        ("configured", peer["configured_endpoint"]),
        ("mode", peer["configured_mode"]),
        ("reliable", _setting(peer["reliable"])),
        ("rounds", mix(peer) or "none"),
        ("reliable rounds", peer["reliable_rounds"]),
        ("early data", early(peer)),
        (
            "early packets",
            f"{peer['early_sent']} sent, {peer['early_received']} received",
        ),
        ("associations", peer["associations"]),
        ("elements left", peer["elements_left"]),
        ("waiting", counted(peer["queued"], "packet")),
        *_key_lines(peer),
        ("handshake", ago(peer["latest_handshake_seconds"])),
        ("last heard", ago(peer["latest_receive_seconds"])),
        ("round trip", milliseconds(peer["rtt_ms"])),
        ("MTU", mtu(peer)),
        ("allowed", ", ".join(peer["allowed"])),
        ("sent", _traffic(peer, "tx")),
        ("received", _traffic(peer, "rx")),
        *(("dropped", drops) for drops in _drops(peer)),
    ]
    return [*_warnings(peer), _pairs(lines)]


def _key_lines(peer: Document) -> Iterator[tuple[str, object]]:
    yield "key", peer["key"]
    yield "key source", peer["key_source"]
    if "psk" in peer:  # of the settings only if there is one
        yield "pre-shared key", "yes" if peer["psk"] else "none"
    if peer["key"] is not None:
        yield "fingerprint", fingerprint(peer["key"])


def settings_page(peer: Document) -> list[RenderableType]:
    """The settings and the key of one peer, as `peers show` has them."""
    settings = [
        (name, _setting(value))
        for name, value in peer.items()
        if name not in ("key", "key_source", "psk")
    ]
    return [_pairs([*settings, *_key_lines(peer)])]


def peers_table(peers: Iterable[Document]) -> list[RenderableType]:
    """The settings of all peers, as `peers list` has them."""
    peers = list(peers)
    # Few set it, and eighty columns are full without.
    rare = [n for n in ("early", "mtu", "psk") if any(n in peer for peer in peers)]
    columns = ("allow", "only", "keepalive", "mode", "reliable", *rare, "key", "origin")
    table = _table("NAME", "ENDPOINT", *(column.upper() for column in columns))
    for peer in peers:
        # The key itself would leave no room for the rest; `peers show` has it.
        shown = {**peer, "key": "yes" if peer.get("key") else None}
        cells = peer["name"], place(peer), *(_setting(shown.get(c)) for c in columns)
        table.add_row(*map(Text, cells))
    return [table]


def trace_page(trace: Document) -> list[RenderableType]:
    """The nodes on the way to a peer, then what happened between them."""
    table = _table(*("HOP", "NODE", "ADDRESS", "KEY"))
    for column in ("THERE", "DROPPED", "BACK", "DROPPED"):
        table.add_column(column, no_wrap=True)
    for number, hop in enumerate(trace["hops"]):
        ways = [text for way in ("forth", "back") for text in _counts(hop[way])]
        names = str(number), node(hop), hop["address"] or "-", hop["key"]
        table.add_row(*map(Text, [*names, *ways]))
    return [table, *map(Text, trace_lines(trace))]


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


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _pairs(lines: Iterable[tuple[str, object]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for key, value in lines:
        grid.add_row(
            Text(key, style="bold"), Text("-" if value is None else str(value))
        )
    return grid
