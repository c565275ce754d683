"""Measure the tunnel against the plain link, in the same namespaces, run by run.

``docs/benchmark.md`` says what the figures mean and how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen
from rich.console import Console
from rich.table import Table

from alpha_trio.errors import ConfigError
from alpha_trio.settings import values
from tools import measure
from tools.bench_links import PROFILES, Link, describe
from tools.contenders import AlphaTrio, Contender, PlainLink, Relayed, Session
from tools.lab import Host, Lab, run_tool
from tools.measure import Figures
from tools.others import OTHERS, OtherTunnel

UDP_SIZES = (64, 1200)  # bytes of payload


@frozen
class Row:
    """A line of the table."""

    figure: str  # its key in the JSON
    title: str
    unit: str
    digits: int = 2


ROWS = (
    Row("tcp_1_gbits", "TCP, 1 stream", "Gbit/s"),
    Row("tcp_4_gbits", "TCP, 4 streams", "Gbit/s"),
    Row("udp_64_pps", "UDP, 64 bytes", "packets/s", 0),
    Row("udp_1200_pps", "UDP, 1200 bytes", "packets/s", 0),
    Row("ping_idle_median_ms", "ping, idle", "ms", 3),
    Row("ping_idle_p99_ms", "ping, idle, p99", "ms", 3),
    Row("ping_loaded_median_ms", "ping, loaded", "ms", 3),
    Row("ping_loaded_p99_ms", "ping, loaded, p99", "ms", 3),
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
    Row("add_ms", "peers add", "ms", 1),
    Row("first_reply_ms", "first echo reply", "ms", 1),
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
class Column:
    """A column of the table."""

    head: str
    figures: Figures
    is_ratio: bool = False


def measure_contender(
    contender: Contender, path: Sequence[Host], link: Link, seconds: float
) -> Run:
    """Set a contender up between the ends of a path and take all figures of it."""
    vm1, *routers, vm2 = path
    with (
        contender.session(vm1, vm2, *routers) as session,
        measure.iperf_server(vm2),
        measure.packet_counter(vm2),
    ):
        figures = measure_session(session, vm1, link, seconds)
        return Run(contender.name, figures, str(link))


def measure_session(session: Session, vm1: Host, link: Link, seconds: float) -> Figures:
    """Take all figures of a contender that is at work, and add those it has taken."""
    address, pids = session.address, session.pids
    everybody = pids + session.relays
    figures = {
        **session.figures,
        **measure.ping(vm1, address, min(seconds, 2), "idle"),
        **measure.tcp(vm1, address, seconds, 1, everybody),
        **measure.tcp(vm1, address, seconds, 4, everybody),
        **measure.loaded_ping(vm1, address, seconds),
    }
    # A single echo may be quicker than one of many packets: ours has small ones of an
    # idle path cross it once, and what comes in numbers three times.
    way_ms = max(figures["ping_idle_median_ms"], 2 * link.round_trip_ms)
    for size in UDP_SIZES:
        figures |= measure.udp(vm1, address, size, way_ms / 1e3, link.loss)
    if pids:
        figures["rss_loaded_mb"] = measure.resident_mb(pids)
    if session.relays:
        figures["rss_relay_loaded_mb"] = measure.resident_mb(session.relays)
    return figures


def measure_all(options: argparse.Namespace, tell: Callable[[str], None]) -> list[Run]:
    """Measure everybody on every link."""
    return [run for link in options.links for run in measure_on(link, options, tell)]


def measure_on(
    link: Link, options: argparse.Namespace, tell: Callable[[str], None]
) -> list[Run]:
    """Measure all in turn, ``repeat`` times over, so that noise hits them alike."""
    runs = []
    with Lab() as lab:
        path = link.lay(lab, options.relays)
        for number in range(1, options.repeat + 1):
            for contender in contenders_for(options):
                tell(f"{link}, round {number} of {options.repeat}: {contender.name}")
                runs.append(measure_contender(contender, path, link, options.seconds))
    return runs


def medians(runs: Iterable[Run]) -> dict[str, Figures]:
    """Return the median of every figure, by contender."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run.figures.items():
            values.setdefault(run.contender, {}).setdefault(name, []).append(value)
    return {
        contender: {name: statistics.median(seen) for name, seen in figures.items()}
        for contender, figures in values.items()
    }


def with_relay_ping(
    figures: Mapping[str, Figures], options: argparse.Namespace
) -> dict[str, Figures]:
    """Add what each relay adds to the round trip of an echo on an idle path."""
    result = {contender: {**values} for contender, values in figures.items()}
    name, ping = _relayed_name(options), "ping_idle_median_ms"
    if options.relays and name in result:
        added = result[name][ping] - result["alpha-trio"][ping]
        result[name]["ping_relay_ms"] = added / options.relays
    return result


def _relayed_name(options: argparse.Namespace) -> str:
    return "1 relay" if options.relays == 1 else f"{options.relays} relays"


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


def table(columns: Sequence[Column]) -> Table:
    """Lay out those rows of which any column has a figure."""
    has_unit = not all(column.is_ratio for column in columns)
    result = Table(box=None, pad_edge=False)
    result.add_column("", no_wrap=True)
    if has_unit:
        result.add_column("unit", no_wrap=True)
    for column in columns:
        # A ratio's head in two lines, or four of them would not fit.
        head = column.head.replace(" : ", " :\n")
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
    return f"{value:,.{2 if column.is_ratio else row.digits}f}"


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


def machine(others: Iterable[OtherTunnel]) -> dict[str, Any]:
    """Return what a reader must know to compare figures with those of elsewhere."""
    iperf = subprocess.run(
        ["iperf3", "--version"], capture_output=True, text=True, check=True
    )
    return {
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": f"{platform.python_version()} of {sys.base_prefix}",
        "alpha-trio": version("alpha-trio"),
        "iperf3": iperf.stdout.split()[1],
        **{other.name: other.version for other in others},
    }


def _cpu() -> str:
    """Return the processor's name, and, as virtual ones hide theirs, its numbers."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    told = dict(re.findall(r"^(.*?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    if "model name" not in told:
        return platform.machine()
    return f"{told['model name']} ({told.get('cpu family')}/{told.get('model')})"


def document(options: argparse.Namespace, runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything there is to know, for ``--json``."""
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    settings["against"] = [other.name for other in options.against]
    settings["links"] = [str(link) for link in options.links]
    links = [findings(options, link, runs) for link in options.links]
    return {
        "schema": 1,
        "machine": machine(options.against),
        "settings": settings,
        "runs": [asdict(run) for run in runs],
        "medians": links[0]["medians"],
        "ratios": links[0]["ratios"],
        "links": links,
    }


def findings(
    options: argparse.Namespace, link: Link, runs: Iterable[Run]
) -> dict[str, Any]:
    """Return what the runs over one link come to."""
    here = [run for run in runs if run.link == str(link)]
    figures = with_relay_ping(medians(here), options)
    return {
        "link": str(link),
        **asdict(link),
        "medians": figures,
        "ratios": ratios(figures, comparisons_for(options)),
    }


def contenders_for(options: argparse.Namespace) -> list[Contender]:
    """Return who takes part: the yardstick, ours, others'."""
    alpha_trio = AlphaTrio(
        disabled_offloads=tuple(options.no_offload), mode=options.mode
    )
    contenders: list[Contender] = [PlainLink(), alpha_trio]
    if options.peers:
        name = f"{options.peers} peers"
        contenders.append(evolve(alpha_trio, name=name, peers=options.peers))
    if options.relays:
        contenders.append(Relayed(_relayed_name(options), alpha_trio))
    return [*contenders, *options.against]


def comparisons_for(options: argparse.Namespace) -> list[Comparison]:
    """Return what is compared, in the order of the contenders."""
    pairs = [Comparison("alpha-trio", "plain link")]
    if options.peers:
        pairs.append(Comparison(f"{options.peers} peers", "alpha-trio"))
    if options.relays:
        pairs.append(Comparison(_relayed_name(options), "alpha-trio"))
    return pairs + [Comparison("alpha-trio", other.name) for other in options.against]


def installed(
    tunnels: Iterable[OtherTunnel], tell: Callable[[str], None]
) -> list[OtherTunnel]:
    """Return those that can be measured here; tell of the rest."""
    found = []
    for tunnel in tunnels:
        if tunnel.missing:
            tell(
                f"{tunnel.name} is left out, {' and '.join(tunnel.missing)} not found: "
                f"apt-get install {tunnel.packages}"
            )
        else:
            found.append(tunnel)
    return found


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the program where it is wrong."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    add = parser.add_argument
    add(
        "--seconds",
        type=number,
        help="of each TCP run (default: 100 round trips, 3 at least)",
    )
    add("--repeat", type=number, default=3, help="rounds (default: 3)")
    add(
        "--against",
        type=_others,
        default=[],
        metavar="NAME[,NAME]...",
        help=f"also measure other tunnels, where installed: {', '.join(OTHERS)}",
    )
    # Not both: their columns together would not fit a terminal.
    more = parser.add_mutually_exclusive_group()
    more.add_argument(
        "--peers", type=number, help="also measure with so many configured peers"
    )
    more.add_argument(
        "--relays",
        type=int,
        choices=range(1, measure.MOST_RELAYS + 1),
        default=0,
        help="put so many routers on the way, and measure with relays on them, too",
    )
    add("--mode", type=_mode, help="of both peers (default: the daemon's)")
    add(
        "--no-offload",
        action="append",
        default=[],
        metavar="NAME",
        help="switch a kernel offload off in both daemons; may be repeated",
    )
    far = parser.add_mutually_exclusive_group()
    far.add_argument(
        "--profile",
        type=_profiles,
        default=[],
        metavar="NAME[,NAME]...",
        help="round trips and loss in either direction, each a table of its own: "
        f"{', '.join(map(describe, PROFILES))}".replace("%", "%%"),
    )
    far.add_argument(
        "--delay",
        type=number,
        default=0,
        metavar="MS",
        help="let each link take so long in either direction (default: none)",
    )
    add(
        "--loss",
        type=_percent,
        default=0,
        metavar="PERCENT",
        help="with --delay: of the packets in either direction (default: none)",
    )
    add("--json", type=writable, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args(arguments)
    if options.profile and options.loss:
        parser.error("--loss goes with --delay; a profile has its own")
    options.links = _links(options)
    options.seconds = options.seconds or max(link.seconds for link in options.links)
    return options


def _links(options: argparse.Namespace) -> list[Link]:
    if options.profile:
        return [link for name in options.profile for link in PROFILES[name]]
    hops = options.relays + 1
    return [Link(2 * options.delay * hops, options.loss)]


def _profiles(text: str) -> list[str]:
    names = [*dict.fromkeys(text.split(","))]  # each once
    for name in names:
        if name not in PROFILES:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not known: choose from {', '.join(PROFILES)}"
            )
    return names


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 50:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 50")
    return value


def _others(text: str) -> list[OtherTunnel]:
    names = dict.fromkeys(text.split(","))  # each once
    for name in names:
        if name not in OTHERS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not known: choose from {', '.join(OTHERS)}"
            )
    return [OTHERS[name] for name in names]


def _mode(text: str) -> str:
    try:
        return str(values.mode(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(text: str) -> int:
    value = int(text)
    if not 0 < value <= 60_000:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and 60000")
    return value


def writable(text: str) -> Path:
    """Find out before the measurements whether their result can be kept."""
    path = Path(text)
    try:
        path.touch()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return path


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, write the JSON."""
    options = parse_arguments(arguments)
    tell = partial(Console(stderr=True).print, highlight=False)
    options.against = installed(options.against, tell)
    runs = measure_all(options, tell)
    result = document(options, runs)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def show(result: Mapping[str, Any]) -> None:
    """Print a document."""
    console = Console(highlight=False)
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    console.print(facts, soft_wrap=True)
    settings = result["settings"]
    rounds = f"{settings['repeat']} round{'s' if settings['repeat'] > 1 else ''}"
    console.print(f"medians of {rounds}, {settings['seconds']} s each")
    others = len(settings["against"])
    for found in result["links"]:
        console.print(f"\nround trip and loss of the link: {found['link']}")
        for part in tables(found["medians"], found["ratios"], others):
            console.print()
            console.print(part)


if __name__ == "__main__":
    run_tool("tools/bench", main)
