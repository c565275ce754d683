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
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table

from tools import measure
from tools.contenders import AlphaTrio, Contender, PlainLink
from tools.lab import Host, Lab, run_tool
from tools.measure import Figures

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
    Row("cpu_sender_s_per_gb_1", "CPU of sender, 1 stream", "s/GB"),
    Row("cpu_receiver_s_per_gb_1", "CPU of receiver, 1 stream", "s/GB"),
    Row("cpu_sender_s_per_gb_4", "CPU of sender, 4 streams", "s/GB"),
    Row("cpu_receiver_s_per_gb_4", "CPU of receiver, 4 streams", "s/GB"),
    Row("rss_idle_mb", "memory, idle", "MB", 1),
    Row("rss_loaded_mb", "memory, loaded", "MB", 1),
    Row("start_s", "start", "s"),
    Row("add_ms", "peers add", "ms", 1),
    Row("first_reply_ms", "first echo reply", "ms", 1),
)


@frozen
class Run:
    """What one contender did in one round."""

    contender: str
    figures: Figures


def measure_contender(
    contender: Contender, vm1: Host, vm2: Host, seconds: float
) -> Run:
    """Set a contender up and take all figures of it."""
    with contender.session(vm1, vm2) as session, measure.iperf_server(vm2):
        address = session.address
        figures = {
            **session.figures,
            **measure.ping(vm1, address, min(seconds, 2), "idle"),
            **measure.tcp(vm1, address, seconds, 1, session.pids),
            **measure.tcp(vm1, address, seconds, 4, session.pids),
            **measure.loaded_ping(vm1, address, seconds),
        }
        for size in UDP_SIZES:
            figures |= measure.udp(vm1, address, size)
        if session.pids:
            figures["rss_loaded_mb"] = measure.resident_mb(session.pids)
    return Run(contender.name, figures)


def measure_all(
    contenders: Sequence[Contender],
    repeat: int,
    seconds: float,
    tell: Callable[[str], None],
) -> list[Run]:
    """Measure them in turn, ``repeat`` times over, so that noise hits all alike."""
    runs = []
    with Lab() as lab:
        vm1, vm2 = lab.lan(2)
        for number in range(1, repeat + 1):
            for contender in contenders:
                tell(f"round {number} of {repeat}: {contender.name}")
                runs.append(measure_contender(contender, vm1, vm2, seconds))
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


def ratios(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return every contender's figures divided by those of the first."""
    first, *others = figures
    base = figures[first]
    return {
        name: {
            key: value / base[key]
            for key, value in figures[name].items()
            if base.get(key)
        }
        for name in others
    }


def table(figures: Mapping[str, Figures]) -> Table:
    """Lay out the medians, with a ratio beside every contender but the first."""
    compared = ratios(figures)
    result = Table(box=None, pad_edge=False)
    result.add_column("")
    result.add_column("unit")
    for name in figures:
        result.add_column(name, justify="right")
        if name in compared:
            result.add_column("ratio", justify="right")
    for row in ROWS:
        if any(row.figure in values for values in figures.values()):
            result.add_row(row.title, row.unit, *_cells(row, figures, compared))
    return result


def _cells(
    row: Row, figures: Mapping[str, Figures], compared: Mapping[str, Figures]
) -> list[str]:
    cells = []
    for name, values in figures.items():
        value = values.get(row.figure)
        cells.append("-" if value is None else f"{value:,.{row.digits}f}")
        if name in compared:
            ratio = compared[name].get(row.figure)
            cells.append("" if ratio is None else f"{ratio:.2f}")
    return cells


def machine() -> dict[str, Any]:
    """Return what a reader must know to compare figures with others."""
    model = re.search(r"^model name\s*: (.*)$", _cpuinfo(), re.MULTILINE)
    iperf = subprocess.run(
        ["iperf3", "--version"], capture_output=True, text=True, check=True
    )
    return {
        "kernel": platform.release(),
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "alpha-trio": version("alpha-trio"),
        "iperf3": iperf.stdout.split()[1],
    }


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text()


def document(settings: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything there is to know, for ``--json``."""
    figures = medians(runs)
    return {
        "schema": 1,
        "machine": machine(),
        "settings": dict(settings),
        "runs": [asdict(run) for run in runs],
        "medians": figures,
        "ratios": ratios(figures),
    }


def contenders_for(options: argparse.Namespace) -> list[Contender]:
    """Return who takes part, the yardstick first."""
    offloads = tuple(options.no_offload)
    contenders: list[Contender] = [PlainLink(), AlphaTrio(disabled_offloads=offloads)]
    if options.peers:
        name = f"{options.peers} peers"
        contenders.append(AlphaTrio(name, options.peers, offloads))
    return contenders


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the program where it is wrong."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=number, default=3, help="of each TCP run (default: 3)")
    add("--repeat", type=number, default=3, help="rounds (default: 3)")
    add("--peers", type=number, help="also measure with so many configured peers")
    add(
        "--no-offload",
        action="append",
        default=[],
        metavar="NAME",
        help="switch a kernel offload off in both daemons; may be repeated",
    )
    add("--json", type=_writable, metavar="FILE", help="write all figures to this file")
    return parser.parse_args(arguments)


def number(text: str) -> int:
    value = int(text)
    if not 0 < value <= 60_000:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and 60000")
    return value


def _writable(text: str) -> Path:
    """Find out before the measurements whether their result can be kept."""
    path = Path(text)
    try:
        path.touch()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return path


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write the JSON."""
    options = parse_arguments(arguments)
    console = Console()
    tell = Console(stderr=True).print
    runs = measure_all(
        contenders_for(options),
        options.repeat,
        options.seconds,
        lambda text: tell(text),
    )
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    result = document(settings, runs)
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    console.print(facts, soft_wrap=True, highlight=False)
    rounds = f"{options.repeat} rounds" if options.repeat > 1 else "1 round"
    console.print(f"medians of {rounds}, {options.seconds} s each\n", highlight=False)
    console.print(table(result["medians"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_tool("tools/bench", main)
