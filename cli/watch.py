"""``status --watch``: what the daemon says, again and again, and how fast it all goes.

Rates are differences of two documents, over the time that passed for the daemon.  Where
there is no difference, as over its restart, there is no rate, and a gap in the curve.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import ceil, inf
from typing import Any, NamedTuple

from alpha_trio.errors import AlphaTrioError

from .app import connect, status_of
from .render import (
    NO_PEERS,
    STATE_STYLES,
    health,
    notices,
    peer_sections,
    peer_troubles,
    relay_lines,
    relay_table,
    running,
)
from .screen import (
    GAP,
    Block,
    Line,
    Live,
    Picture,
    Sentence,
    Span,
    columns,
    folded,
    has_blocks,
    table_row,
    terminal_size,
)
from .words import amount, counted, milliseconds, reached

Document = Mapping[str, Any]

SECONDS = 1.0  # between two documents
HISTORY = 60  # samples that are kept of each peer
SPARK, LEAST_SPARK = 30, 8  # columns of a curve in a table
LEAST_BESIDE = 40  # columns of a sentence beside it
TALL = 45  # lines from which on curves may take more of them

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#"

AWAY = "Asking again every second, and showing what came last, since"
_FINE = frozenset({"established", "idle"})


def watch(name: str | None) -> None:
    """Show all peers, or one, until Ctrl-C.

    Raises AlphaTrioError if the daemon says nothing the first time.
    """
    meter = Meter()
    told = documents(name)
    first = next(told)
    glyphs = BLOCKS if has_blocks() else ASCII
    latest: Document = {}
    with Live() as live:
        for document in chain([first], told):
            above: list[Block] = []
            if isinstance(document, AlphaTrioError):
                meter.miss()
                above = [Sentence(f"{AWAY} {document}", "bold red")]
            else:
                latest = document
                meter.take(latest)
            width, height = terminal_size()
            page = _Page(latest, meter, glyphs, width, height)
            live.update(page.one(above) if name else page.all(above), height)
            time.sleep(SECONDS)


def documents(
    name: str | None,
) -> Generator[Document | AlphaTrioError, None, None]:
    """What the daemon says of all peers or one, or why it does not say anything.

    Raises AlphaTrioError if it says nothing the first time.
    """
    answered = False
    while True:
        try:
            with connect() as client:
                while True:
                    yield status_of(client, name)
                    answered = True
        except AlphaTrioError as error:
            if not answered:
                raise
            yield error


# Rates


class Rates(NamedTuple):
    """What happened in a second."""

    sent: float  # bytes
    received: float  # bytes
    rounds: float
    drops: float


def _counts(peer: Document) -> Rates:
    rounds, drops = sum(peer["rounds"].values()), sum(peer["drops"].values())
    return Rates(peer["tx_bytes"], peer["rx_bytes"], rounds, drops)


def _rates(before: Rates | None, now: Rates, seconds: float) -> Rates | None:
    """None if the two cannot be compared: it is another daemon, or peer."""
    if before is None:
        return None
    rises = [b - a for a, b in zip(before, now, strict=True)]
    return Rates(*(rise / seconds for rise in rises)) if min(rises) >= 0 else None


Past = Sequence[Rates | None]


class Meter:
    """How fast the counters of each peer rise, from one document to the next."""

    def __init__(self) -> None:
        self._before: dict[str, Rates] = {}
        self._uptime = inf
        self._past: dict[str, deque[Rates | None]] = {}

    def take(self, status: Document) -> None:
        uptime = status["uptime_seconds"]
        seconds = uptime - self._uptime
        before = self._before if seconds > 0 else {}
        self._uptime = uptime
        self._before = {peer["name"]: _counts(peer) for peer in status["peers"]}
        known, self._past = self._past, {}
        for name, counts in self._before.items():
            past = self._past[name] = known.get(name) or deque(maxlen=HISTORY)
            past.append(_rates(before.get(name), counts, seconds))

    def miss(self) -> None:
        """A second of which nothing is known."""
        for past in self._past.values():
            past.append(None)

    def past(self, name: str) -> Past:
        """Of each second, the latest last."""
        return self._past.get(name, ())

    def now(self, name: str) -> Rates | None:
        past = self._past.get(name)
        return past[-1] if past else None

    def total(self) -> Rates | None:
        """Of all peers that something is known of."""
        known = [past[-1] for past in self._past.values() if past[-1] is not None]
        return Rates(*map(sum, zip(*known, strict=True))) if known else None


# Curves


def curve(
    values: Iterable[float | None], width: int, height: int, glyphs: str
) -> list[str]:
    """The latest values in so many columns and lines, by the highest of them.

    Nothing is the lowest mark, whatever is more is higher; None is a gap.
    """
    shown = [*values][-width:]
    top = max((value for value in shown if value is not None), default=0) or 1
    most = len(glyphs) * height - 1
    levels = [0 if v is None else 1 + ceil(v / top * most) for v in shown]
    levels = [0] * (width - len(shown)) + levels
    marks = f" {glyphs}"
    return [
        "".join(marks[min(max(level - below, 0), len(glyphs))] for level in levels)
        for below in range(len(glyphs) * (height - 1), -1, -len(glyphs))
    ]


# Pages


class _Page:
    """One screen of a document and the rates that belong to it."""

    def __init__(
        self, status: Document, meter: Meter, glyphs: str, width: int, height: int
    ) -> None:
        self._status = status
        self._meter = meter
        self._glyphs = glyphs
        self._width = width
        self._height = height

    def all(self, above: Sequence[Block]) -> list[Line]:
        """As many peers as there is room for.

        What is wrong stands above them, so that it is never beyond the edge; and of the
        peers those come first that are not as they should be.
        """
        status = self._status
        top = self._lines(
            Sentence(running(status)),
            Sentence(_all(self._meter.total(), status["peers"])),
            *above,
            *health(status),
            *relay_lines(status["relay"]),
            *notices(status),
        )
        peers = self._peers(max(self._height - len(top), 3))
        return [*top, *peers, *self._lines(*relay_table(status["relay"]))]

    def one(self, above: Sequence[Block]) -> list[Line]:
        """One peer: what is wrong, its curves, then all about it."""
        status, (peer,) = self._status, self._status["peers"]
        past = self._meter.past(peer["name"])
        rates = self._meter.now(peer["name"])
        head, *sections = peer_sections(peer)
        blocks = [
            *above,
            *peer_troubles(status, peer),
            head,
            *self._curve("sent", [r and r.sent for r in past]),
            *self._curve("received", [r and r.received for r in past]),
            Sentence(_small(peer, rates)),
            *sections,
        ]
        lines = self._lines(*blocks)
        if len(lines) > self._height:  # room is scarce, and these say nothing
            lines = [line for line in lines if any(text for text, _ in line)]
        if (more := len(lines) - self._height + 1) > 1:
            lines[self._height - 1 :] = [[(f"and {counted(more, 'line')} more", "")]]
        return lines

    def _lines(self, *blocks: Block) -> list[Line]:
        return [line for block in blocks for line in block.lines(self._width)]

    def _curve(self, what: str, values: Sequence[float | None]) -> Iterator[Block]:
        known = [value for value in values if value is not None]
        width = min(self._width, HISTORY)
        most = f"at most {_bytes(max(known))}/s in the last {width} s" if known else "-"
        now = f"{_bytes(values[-1])}/s, " if values[-1] is not None else ""
        yield Sentence(f"{what} {now}{most}")
        height = 4 if self._height > TALL else 2
        for line in curve(values, width, height, self._glyphs):
            yield Picture([(line, "green")])

    def _peers(self, room: int) -> list[Line]:
        """In at most so many lines."""
        peers = self._status["peers"]
        if not peers:
            return self._lines(Sentence(NO_PEERS))
        if len(peers) < room:
            heading, groups = self._table(peers)
            lines = [*heading, *chain.from_iterable(groups)]
            if len(lines) <= room:
                return lines
        peers = sorted(peers, key=lambda peer: not _is_troubled(peer))
        heading, groups = self._table(peers[:room])
        lines, shown = heading, 0
        for group in groups:
            if shown and len(lines) + len(group) > room - 1:
                break
            lines += group
            shown += 1
        if more := len(peers) - shown:
            hint = f"and {more} more: see 'alpha-trio status'"
            lines += self._lines(Sentence(hint))
        return lines

    def _table(self, peers: Sequence[Document]) -> tuple[list[Line], list[list[Line]]]:
        """A heading, and the lines of each peer, in the form that fits."""
        cells = [_cells(peer, self._meter.now(peer["name"])) for peer in peers]
        for names in (NAMES, [name for name in NAMES if name != "ROUNDS/s"]):
            rows = [[row[name] for name in names] for row in cells]
            every = zip(names, *rows, strict=True)
            widths = [max(map(columns, column)) for column in every]
            room = self._width - sum(widths) - len(GAP) * len(widths)
            if room >= LEAST_SPARK:
                form = _Form(widths, min(room, SPARK), room - SPARK - len(GAP))
                title = f"LAST {form.spark} s"[: form.spark]
                heading = form.row([*names, title, "HOW" if form.beside else ""])
                bold = [(text, "bold") for text, _ in heading]
                both = zip(peers, rows, strict=True)
                return [bold], [self._lined_up(form, *each) for each in both]
        return [], [self._stacked(peer) for peer in peers]

    def _lined_up(
        self, form: _Form, peer: Document, cells: Sequence[str]
    ) -> list[Line]:
        """A line with a curve at the end, and what is wrong beside it or below."""
        spark = self._spark(peer, form.spark)
        if not form.beside:
            return [form.row([*cells, spark, ""]), *self._trouble(peer)]
        first, *more = folded(reached(peer), form.how)
        nothing = ["" for _ in cells]
        return [
            form.row([*cells, spark, first]),
            *(form.row([*nothing, "", part]) for part in more),
        ]

    def _stacked(self, peer: Document) -> list[Line]:
        name, state = peer["name"], peer["state"]
        style = STATE_STYLES.get(state, "")
        title: list[Span] = [(name, "bold"), (GAP, ""), (state, style)]
        room = self._width - len(name) - len(state) - 2 * len(GAP)
        if room >= LEAST_SPARK:
            title += [(GAP, ""), (self._spark(peer, min(room, SPARK)), "")]
        lines = [title, *self._trouble(peer)]
        if (rates := self._meter.now(name)) and any(rates):
            speed = f"{_speed(rates)}, RTT {milliseconds(peer['rtt_ms'])}"
            lines += Sentence(speed, indent=2).lines(self._width)
        return lines

    def _trouble(self, peer: Document) -> Iterator[Line]:
        if _is_troubled(peer):
            yield from Sentence(reached(peer), indent=2).lines(self._width)

    def _spark(self, peer: Document, width: int) -> str:
        both = [r and r.sent + r.received for r in self._meter.past(peer["name"])]
        return curve(both, width, 1, self._glyphs)[0]


FIGURES = {"SENT/s": 8, "RECEIVED/s": 8, "ROUNDS/s": 5, "RTT": 9, "DROPS/s": 5}
"""With the columns that they take most often, lest the table shake."""

NAMES = ["PEER", "STATE", *FIGURES]


class _Form(NamedTuple):
    """How wide the parts of a table are."""

    widths: Sequence[int]
    spark: int
    how: int

    @property
    def beside(self) -> bool:
        """Whether there is room for the sentence beside the curve."""
        return self.how >= LEAST_BESIDE

    def row(self, cells: Sequence[str]) -> Line:
        """Figures stand at the right of their columns."""
        first, last = cells[:2], cells[-2:]
        widths = [*self.widths, self.spark]
        figures = map(str.rjust, cells[2:-2], self.widths[2:])
        return table_row([*first, *figures, *last], widths, STATE_STYLES)


def _cells(peer: Document, rates: Rates | None) -> dict[str, str]:
    """What stands in the columns of a peer."""
    if rates is None:
        figures = ["-", "-", "-", milliseconds(peer["rtt_ms"]), "-"]
    else:
        sent, received = _bytes(rates.sent), _bytes(rates.received)
        rounds, drops = _count(rates.rounds), _count(rates.drops)
        figures = [sent, received, rounds, milliseconds(peer["rtt_ms"]), drops]
    least = map(str.rjust, figures, FIGURES.values())
    return dict(zip(NAMES, [peer["name"], peer["state"], *least], strict=True))


def _is_troubled(peer: Document) -> bool:
    return peer["state"] not in _FINE or peer["reason"] is not None


def _all(rates: Rates | None, peers: Sequence[Document]) -> str:
    """One line: how fast it goes with all peers together."""
    up = sum(peer["state"] == "established" for peer in peers)
    who = f"{up} of {len(peers)} established"
    return f"{who}: {_speed(rates)}" if rates else who


def _speed(rates: Rates) -> str:
    return (
        f"sent {_bytes(rates.sent)}/s, received {_bytes(rates.received)}/s, "
        f"{_few(rates)}"
    )


def _few(rates: Rates) -> str:
    return f"{_count(rates.rounds)} rounds/s, {_count(rates.drops)} drops/s"


def _small(peer: Document, rates: Rates | None) -> str:
    """One line: what of a peer has no curve."""
    rtt = f"round trip {milliseconds(peer['rtt_ms'])}"
    return f"{_few(rates)}, {rtt}" if rates else rtt


def _bytes(rate: float) -> str:
    return amount(round(rate))


def _count(rate: float) -> str:
    """Few are told exactly, lest one in ten seconds be none."""
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:,.0f}"
