"""The daemon's answers as tables for people; importing this brings in rich."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

from rich.cells import cell_len
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from alpha_trio.errors import AlphaTrioError

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

# Wide enough that nothing is folded when a program reads the table.
PIPE_WIDTH = 1000

LEAST_SENTENCE = 24  # columns that a sentence in a table needs to be readable

SESSIONS_SHOWN = 20  # of those relayed; --json has more

STATE_STYLES = {
    "established": "green",
    "resolving": "yellow",
    "handshaking": "yellow",
    "silent": "red",
    "unreachable": "red",
    "key-mismatch": "bold red",
}


class _Console(Console):
    """One that leaves it to the program what becomes of a pipe that nobody reads."""

    def on_broken_pipe(self) -> None:
        raise  # what rich has just caught


def show(*renderables: RenderableType) -> None:
    console = _Console(highlight=False)
    # Not rich's own idea of it, by which dumb terminals have eighty columns.
    columns, lines = get_terminal_size()
    console.size = (columns if console.is_terminal else PIPE_WIDTH, lines)
    for renderable in renderables:
        # A sentence may hold a command to be copied: only the terminal may wrap it.
        console.print(renderable, soft_wrap=isinstance(renderable, Text))


AWAY = "Asking again every second, and showing what came last, since"


def watch(
    documents: Iterable[Document | AlphaTrioError], seconds: float, one: bool
) -> None:
    """Show the latest document in place, until Ctrl-C; ``one``: that of one peer.

    Where there is an error instead, it stands above the latest document.
    """
    console = _Console(highlight=False)
    latest: Document = {}
    with Live(screen=True, auto_refresh=False, console=console) as live:
        for document in documents:
            away: list[RenderableType] = []
            if isinstance(document, AlphaTrioError):
                away = [Text(f"{AWAY} {document}", style="bold red")]
            else:
                latest = document
            page = peer_page(latest) if one else _fitting(latest, console, away)
            live.update(Group(*away, *page), refresh=True)
            time.sleep(seconds)


def _fitting(
    status: Document, console: Console, above: Sequence[RenderableType]
) -> list[RenderableType]:
    """The status page of as many peers as there is room for.

    What is wrong stands above them, so that it is never beyond the edge; and of the
    peers those come first that are not as they should be.
    """
    top = [
        *map(Text, _header(status)),
        *_health(status),
        *_relay_lines(status["relay"]),
        *_notices(status),
    ]
    peers = status["peers"]
    room = max(console.height - _height(console, [*above, *top]), 2)
    if _height(console, _peer_section(peers[:room])) > room or len(peers) > room:
        peers = sorted(peers, key=lambda peer: peer["state"] in _FINE)
        room -= 1  # for what says that there are more
    shown = min(len(peers), room)
    while shown > 1 and _height(console, _peer_section(peers[:shown])) > room:
        shown -= 1
    more = len(peers) - shown
    told = [Text(f"and {more} more: see 'alpha-trio status'")] if more > 0 else []
    section = _peer_section(peers[:shown])
    return [*top, *section, *told, *_relay_table(status["relay"])]


_FINE = frozenset({"established", "idle"})


def _height(console: Console, page: Iterable[RenderableType]) -> int:
    """How many lines of the terminal a page takes."""
    return len(console.render_lines(Group(*page), pad=False))


class _Rows:
    """A table, or, where the terminal is too narrow for it, some lines for each row.

    Nothing is ever cut off: on a narrow terminal that would be the reason why a peer is
    not reached, which stands last.  ``sentence``: the last column may be folded.

    Rich has tables, too, but takes a second for one of a thousand rows.
    """

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], sentence: bool
    ) -> None:
        self._columns = columns
        self._rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
        self._sentence = sentence

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        every = zip(self._columns, *self._rows, strict=True)
        *widths, last = (max(map(cell_len, column)) for column in every)
        room = options.max_width - sum(width + len(_GAP) for width in widths)
        if room < (min(last, LEAST_SENTENCE) if self._sentence else last):
            for row in self._rows:
                yield from self._lines(row)
            return
        bold = console.get_style("bold")
        styles = {state: console.get_style(s) for state, s in STATE_STYLES.items()}
        yield from _line(self._columns, widths, dict.fromkeys(self._columns, bold))
        for row in self._rows:
            folded = row[-1]
            if cell_len(folded) <= room:
                yield from _line(row, widths, styles)
                continue
            first, *more = (line.plain for line in Text(folded).wrap(console, room))
            yield from _line([*row[:-1], first], widths, styles)
            for part in more:
                yield from _line(["" for _ in widths] + [part], widths, styles)

    def _lines(self, row: Sequence[str]) -> Iterator[RenderableType]:
        style = STATE_STYLES.get(row[1], "")
        yield Text.assemble((row[0], "bold"), _GAP, (row[1], style))
        rest = [*zip(self._columns, row, strict=True)][2:]
        if self._sentence:
            yield _indented(rest.pop()[1])
        known = [f"{n.lower()} {cell}" for n, cell in rest if cell not in ("", "-")]
        yield _indented(", ".join(known))


_GAP = "  "


def _line(
    row: Sequence[str], widths: Sequence[int], styles: Mapping[str, Style]
) -> Iterator[Segment]:
    """One line of a table; ``widths`` are those of all columns but the last."""
    for cell, width in zip(row, widths, strict=False):
        yield Segment(cell, styles.get(cell))
        yield Segment(" " * (width - cell_len(cell)) + _GAP)
    yield Segment(row[-1], styles.get(row[-1]))
    yield Segment.line()


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def status_page(status: Document) -> list[RenderableType]:
    return [
        *map(Text, _header(status)),
        *_peer_section(status["peers"]),
        *_notices(status),
        *_relay_lines(status["relay"]),
        *_relay_table(status["relay"]),
        *_health(status),
    ]


def _notices(status: Document) -> Iterator[RenderableType]:
    for peer in status["peers"]:
        yield from _warnings(peer)
    yield from map(Text, not_early(status["peers"]))
    yield from (Text(knocking(host)) for host in status["knocking"])
    yield from (Text(f"Dropped: {drops}") for drops in _drops(status))


def _health(status: Document) -> Iterator[RenderableType]:
    yield from (Text(f"Health: {line}", style="red") for line in status["health"])


def _header(status: Document) -> Iterator[str]:
    interface = status["interface"]
    yield (
        f"alpha-trio {status['version']} on {interface['name']}, "
        f"UDP port {status['port']}, up {duration(status['uptime_seconds'])}"
    )
    yield f"Key: {status['key']} ({fingerprint(status['key'])})"
    if engine := status.get("engine"):  # an older daemon does not say
        yield f"Engine: {engine['name']}, {engine['why']}"
    for where, offloads in interface["offloads"].items():
        yield f"Offloads of {where}: {', '.join(offloads) or 'none'}"


def _peer_section(peers: Iterable[Document]) -> Iterator[RenderableType]:
    if not peers:
        yield Text("No peers: add one with 'alpha-trio peers add NAME ADDRESS'.")
        return
    columns = "PEER", "STATE", "SENT", "RECEIVED", "RTT", "MODE", "HOW"
    yield _Rows(columns, map(_peer_row, peers), sentence=True)


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


def _warnings(peer: Document) -> Iterator[RenderableType]:
    if peer["state"] == "key-mismatch":
        yield Text(mismatch(peer), style=STATE_STYLES["key-mismatch"])


def _relay_lines(relay: Document | None) -> Iterator[RenderableType]:
    if relay is not None:
        yield Text(relayed(relay))
        yield from (Text(f"Not relayed: {drops}") for drops in _drops(relay))


def _relay_table(relay: Document | None) -> Iterator[RenderableType]:
    """The sessions of others that cross this host, the latest first."""
    if relay is None or not relay["latest"]:
        return
    columns = "INITIATOR", "RESPONDER", "STATE", "THERE", "BACK", "LAST"
    rows = map(_session_row, relay["latest"][:SESSIONS_SHOWN])
    yield _Rows(columns, rows, sentence=False)


def _session_row(session: Document) -> list[str]:
    ends = session["initiator"], session["responder"]
    there, back = (amount(end["forwarded_bytes"]) for end in reversed(ends))
    idle = ago(session["idle_seconds"])
    cells = (*map(relayed_end, ends), session["state"], there, back, idle)
    return [*cells]


def peer_page(peer: Document) -> list[RenderableType]:
    """Everything about one peer of the status document."""
    lines = [
        ("peer", peer["name"]),
        ("state", peer["state"]),
        ("reached", reached(peer)),
        ("endpoint", peer["endpoint"]),
        ("configured", peer["configured_endpoint"]),
        ("mode", mode(peer)),
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
    # Few set most of them, and all of them would not fit into eighty columns.
    used = [name for name in LISTED if any(name in peer for peer in peers)]
    columns = "name", "endpoint", *used, "key", "origin"
    rows = [_settings_row(peer, used) for peer in peers]
    return [_Rows([*map(str.upper, columns)], rows, sentence=False)]


LISTED = "allow", "only", "keepalive", "mode", "reliable", "early", "mtu", "psk"


def _settings_row(peer: Document, used: Iterable[str]) -> list[str]:
    values = (_setting(peer.get(name)) for name in used)
    cells = peer["name"], place(peer), *values, known_key(peer), peer["origin"]
    return [*cells]


def trace_page(trace: Document) -> list[RenderableType]:
    """The nodes on the way to a peer, then what happened between them."""
    ways = "THERE", "DROPPED", "BACK", "DROPPED"
    rows = [_hop_row(number, hop) for number, hop in enumerate(trace["hops"])]
    columns = "HOP", "NODE", "ADDRESS", "KEY", *ways
    lines = map(Text, trace_lines(trace))
    return [_Rows(columns, rows, sentence=False), *lines]


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


def _pairs(lines: Iterable[tuple[str, object]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for key, value in lines:
        grid.add_row(
            Text(key, style="bold"), Text("-" if value is None else str(value))
        )
    return grid
