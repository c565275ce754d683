"""What the benchmark's runs come to: medians, ratios, verdicts, and their tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen
from rich.console import Console
from rich.table import Table

from tools.measure import Figures

# A difference that is noise: several rounds show by their own how much that is, but
# not below this; of a single one nothing is known but what is usual on a machine that
# others use as well.
_LEAST_NOISE = 0.05
_NOISE_OF_ONE_ROUND = 0.20
_VERDICTS_BESIDE_ONE_ANOTHER = 3  # as many as fit a terminal
_LINKS_BESIDE_ONE_ANOTHER = 3


@frozen
class Row:
    """A line of the table."""

    figure: str  # its key in the JSON
    title: str
    unit: str
    digits: int = 2
    is_gain: bool = False  # whether more is better
    least: float = 0  # a difference up to this one is noise


def _percentiles(figure: str, title: str) -> list[Row]:
    lost = Row(f"{figure}_lost_percent", f"{title}, lost", "%", 1, least=1)
    return [
        *(
            Row(f"{figure}_p{share}_ms", f"{title}, p{share}", "ms", 3)
            for share in (50, 90, 99)
        ),
        lost,
    ]


ROWS = (
    Row("tcp_1_gbits", "TCP, 1 stream", "Gbit/s", is_gain=True),
    Row("tcp_4_gbits", "TCP, 4 streams", "Gbit/s", is_gain=True),
    Row("udp_64_pps", "UDP, 64 bytes", "packets/s", 0, is_gain=True),
    Row("udp_1200_pps", "UDP, 1200 bytes", "packets/s", 0, is_gain=True),
    Row("ping_idle_median_ms", "ping, idle", "ms", 3),
    Row("ping_idle_p90_ms", "ping, idle, p90", "ms", 3),
    Row("ping_idle_p99_ms", "ping, idle, p99", "ms", 3),
    Row("ping_loaded_median_ms", "ping, loaded", "ms", 3),
    Row("ping_loaded_p90_ms", "ping, loaded, p90", "ms", 3),
    Row("ping_loaded_p99_ms", "ping, loaded, p99", "ms", 3),
    *_percentiles("one_way_idle", "one way, idle"),
    *_percentiles("one_way_loaded", "one way, loaded"),
    *_percentiles("ssh_idle", "SSH, idle"),
    *_percentiles("ssh_loaded", "SSH, loaded"),
    Row("cpu_sender_s_per_gb_1", "CPU of sender, 1 TCP", "s/GB"),
    Row("cpu_receiver_s_per_gb_1", "CPU of receiver, 1 TCP", "s/GB"),
    Row("cpu_sender_s_per_gb_4", "CPU of sender, 4 TCP", "s/GB"),
    Row("cpu_receiver_s_per_gb_4", "CPU of receiver, 4 TCP", "s/GB"),
    Row("cpu_relay1_s_per_gb_1", "CPU of relay 1, 1 TCP", "s/GB"),
    Row("cpu_relay2_s_per_gb_1", "CPU of relay 2, 1 TCP", "s/GB"),
    Row("cpu_relay1_s_per_gb_4", "CPU of relay 1, 4 TCP", "s/GB"),
    Row("cpu_relay2_s_per_gb_4", "CPU of relay 2, 4 TCP", "s/GB"),
    Row("ping_relay_ms", "ping, added by a relay", "ms", 3),
    Row("rss_idle_mb", "memory, idle", "MB", 1),
    Row("rss_loaded_mb", "memory, loaded", "MB", 1),
    Row("rss_relay_idle_mb", "memory, relay, idle", "MB", 1),
    Row("rss_relay_loaded_mb", "memory, relay, loaded", "MB", 1),
    Row("start_s", "start", "s"),
    Row("run_to_reply_s", "run to first reply", "s"),
    Row("add_ms", "peers add", "ms", 1),
    Row("first_reply_ms", "first echo reply", "ms", 1),
    Row("add_to_reply_ms", "add to first reply", "ms", 1),
)


@frozen
class Run:
    """What one contender did in one round."""

    contender: str
    figures: Figures
    link: str = ""  # over which


@frozen
class Comparison:
    """Two contenders, of whose figures the quotient is of interest."""

    contender: str
    base: str

    def __str__(self) -> str:
        """Name it as in the table and in the JSON."""
        return f"{self.contender} : {self.base}"


@frozen
class Verdict:
    """Whether one contender is better than another in one figure."""

    word: str  # ahead, level or behind
    # By which the figure is above the other's, or below; None where that is 0.
    percent: float | None

    def __str__(self) -> str:
        """Write it as in the table: by how much, or by which factor from ten on."""
        if self.percent is None or abs(self.percent) < 0.5:
            return self.word
        quotient = 1 + self.percent / 100
        if 0.1 < quotient < 10 or not quotient:
            return f"{self.word} {abs(self.percent):.0f} %"
        return f"{self.word} {max(quotient, 1 / quotient):,.0f}x"


@frozen
class Column:
    """A column of the table."""

    head: str
    figures: Mapping[str, Any]
    is_ratio: bool = False


def values_of(runs: Iterable[Run]) -> dict[str, dict[str, list[float]]]:
    """Return what was found of every figure, by contender."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run.figures.items():
            values.setdefault(run.contender, {}).setdefault(name, []).append(value)
    return values


def medians(runs: Iterable[Run]) -> dict[str, Figures]:
    """Return the median of every figure, by contender."""
    return {
        contender: {name: statistics.median(seen) for name, seen in figures.items()}
        for contender, figures in values_of(runs).items()
    }


def ratio(figures: Figures, base: Figures) -> Figures:
    """Divide the figures by those of the base, where both have them."""
    return {key: value / base[key] for key, value in figures.items() if base.get(key)}


def ratios(
    figures: Mapping[str, Figures], comparisons: Iterable[Comparison]
) -> dict[str, Figures]:
    """Return the quotients of what is to be compared."""
    return {
        str(pair): ratio(figures[pair.contender], figures[pair.base])
        for pair in comparisons
    }


def verdict(row: Row, ours: Sequence[float], theirs: Sequence[float]) -> Verdict:
    """Judge by what every round found.

    Level is what differs by no more than 5 % (20 % after a single round), and what
    the rounds themselves do not tell apart: the best of those behind is at least as
    good as the worst of those ahead.
    """
    here, there = statistics.median(ours), statistics.median(theirs)
    percent = 100 * (here / there - 1) if there else None
    rounds = min(len(ours), len(theirs))
    noise = _LEAST_NOISE if rounds > 1 else _NOISE_OF_ONE_ROUND
    is_apart = max(ours) < min(theirs) or max(theirs) < min(ours)
    if not is_apart or abs(here - there) <= max(noise * there, row.least):
        return Verdict("level", percent)
    return Verdict("ahead" if (here > there) is row.is_gain else "behind", percent)


def verdicts(
    runs: Iterable[Run], comparisons: Iterable[Comparison]
) -> dict[str, dict[str, Verdict]]:
    """Judge each figure that both have, of what is to be compared."""
    values = values_of(runs)
    return {
        str(pair): {
            row.figure: verdict(row, ours[row.figure], theirs[row.figure])
            for ours, theirs in [(values[pair.contender], values[pair.base])]
            for row in ROWS
            if row.figure in ours and row.figure in theirs
        }
        for pair in comparisons
    }


def table(columns: Sequence[Column]) -> Table:
    """Lay out those rows of which any column has a figure."""
    has_unit = not all(column.is_ratio for column in columns)
    result = Table(box=None, pad_edge=False)
    result.add_column("", no_wrap=True)
    if has_unit:
        result.add_column("unit", no_wrap=True)
    for column in columns:
        # A ratio's head in two lines, or four of them would not fit.
        head = column.head.replace(" : ", " :\n").replace(", ", ",\n")
        result.add_column(head, justify="right", no_wrap=True)
    for row in ROWS:
        cells = [_cell(row, column) for column in columns]
        if any(cells):
            result.add_row(row.title, *[row.unit] * has_unit, *cells)
    return result


def _cell(row: Row, column: Column) -> str:
    value = column.figures.get(row.figure)
    if value is None:
        return ""
    if isinstance(value, Verdict):
        return str(value)
    digits = 2 if column.is_ratio else row.digits
    if 0 < value < 0.1:  # two digits that say something, whatever the unit
        digits = max(digits, 1 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def tables(
    figures: Mapping[str, Figures], compared: Mapping[str, Figures], others: int
) -> list[Table]:
    """Lay out ours and its ratios, then the ``others`` at the end and theirs.

    As many tables as it takes to keep each within 80 columns.
    """
    columns = [Column(name, values) for name, values in figures.items()]
    quotients = [Column(name, values, True) for name, values in compared.items()]
    ours, our_quotients = len(columns) - others, len(quotients) - others
    parts = [columns[:ours], quotients[:our_quotients]]
    if our_quotients == 1:
        parts = [parts[0] + parts[1]]
    parts += [columns[ours:], quotients[our_quotients:]]
    return [table(part) for part in parts if part]


def _lots(columns: Sequence[Column], size: int) -> list[Sequence[Column]]:
    """Part columns into lots that fit a terminal."""
    return [columns[first : first + size] for first in range(0, len(columns), size)]


def verdict_tables(judged: Mapping[str, Mapping[str, Verdict]]) -> list[Table]:
    """Lay out who is ahead in what."""
    columns = [Column(pair, words, True) for pair, words in judged.items()]
    return [table(part) for part in _lots(columns, _VERDICTS_BESIDE_ONE_ANOTHER)]


def link_tables(
    links: Mapping[str, Mapping[str, Figures]], contender: str
) -> list[Table]:
    """Lay out what one contender did on each link."""
    columns = [Column(link, medians[contender]) for link, medians in links.items()]
    return [table(part) for part in _lots(columns, _LINKS_BESIDE_ONE_ANOTHER)]


def show(result: Mapping[str, Any]) -> None:
    """Print a document."""
    console = Console(highlight=False)
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    console.print(facts, soft_wrap=True)
    settings = result["settings"]
    rounds = f"{settings['repeat']} round{'s' if settings['repeat'] > 1 else ''}"
    console.print(f"medians of {rounds}, {settings['seconds']} s each")
    for found in result["links"]:
        console.print(f"\nround trip and loss of the link: {found['link']}")
        _show_link(console, found, len(settings["against"]))
    if len(result["links"]) > 1:
        _show_links(console, result["links"])


def _show_link(console: Console, found: Mapping[str, Any], others: int) -> None:
    judged = {
        pair: {figure: Verdict(**word) for figure, word in words.items()}
        for pair, words in found["verdicts"].items()
    }
    for part in tables(found["medians"], found["ratios"], others):
        console.print()
        console.print(part)
    for part in verdict_tables(judged):
        console.print()
        console.print(part)


def _show_links(console: Console, links: Sequence[Mapping[str, Any]]) -> None:
    by_link = {found["link"]: found["medians"] for found in links}
    for contender in links[0]["medians"]:
        console.print(f"\n{contender}, by round trip and loss of the link:")
        for part in link_tables(by_link, contender):
            console.print()
            console.print(part)
