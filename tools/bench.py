"""Measure the tunnel against the plain link, in the same namespaces, run by run.

``docs/benchmark.md`` says what the figures mean and how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import asdict, evolve
from rich.console import Console

from alpha_trio.errors import ConfigError
from alpha_trio.settings import values
from tools import measure
from tools.bench_links import PROFILES, Link, describe
from tools.bench_report import Comparison, Run, medians, ratios, show, verdicts
from tools.contenders import AlphaTrio, Contender, PlainLink, Relayed, Session
from tools.lab import Host, Lab, run_tool
from tools.measure import Figures
from tools.others import OTHERS, OtherTunnel

_SYSCTLS = Path("/proc/sys/net/ipv4")
GROUPS = ("ping", "one-way", "ssh", "tcp", "udp", "start")
UDP_SIZES = (64, 1200)  # bytes of payload
_LATENCY_SECONDS = 5  # at most, of each measurement of how long packets take

Against = OtherTunnel | AlphaTrio
"""Who may be named on the command line."""


def measure_contender(
    contender: Contender, path: Sequence[Host], link: Link, options: argparse.Namespace
) -> Run:
    """Set a contender up between the ends of a path and take all figures of it."""
    vm1, *routers, vm2 = path
    with (
        contender.session(vm1, vm2, *routers) as session,
        measure.iperf_server(vm2),
        measure.packet_counter(vm2),
        measure.far_end(vm2),
    ):
        figures = measure_session(session, vm1, link, options)
        return Run(contender.name, figures, str(link))


def measure_session(
    session: Session, vm1: Host, link: Link, options: argparse.Namespace
) -> Figures:
    """Take all figures of a contender that is at work, and add those it has taken."""
    address, seconds = session.address, options.seconds
    groups = groups_for(link, options)
    figures = {**session.figures, **measure.ping(vm1, address, min(seconds, 2), "idle")}
    for take in _latencies(groups - {"ping"}, vm1, address, seconds, "idle"):
        figures |= take()
    if "tcp" in groups:
        everybody = session.pids + session.relays
        for streams in (1, 4):
            figures |= measure.tcp(vm1, address, seconds, streams, everybody)
    if loaded := _latencies(groups, vm1, address, seconds, "loaded"):
        figures |= _under_load(loaded, vm1, address, seconds, link)
    if "udp" in groups:
        # A single echo can be quicker than packets in numbers: ours has a small one of
        # an idle path cross it once, others three times.
        slowest = max(figures["ping_idle_median_ms"], 2 * link.round_trip_ms) / 1e3
        for size in UDP_SIZES:
            figures |= measure.udp(vm1, address, size, slowest, link.loss)
    return figures | _memory(session)


def groups_for(link: Link, options: argparse.Namespace) -> set[str]:
    """Return which figures are wanted of a link."""
    if options.only:
        return {*options.only}
    # How many packets the processors can carry is no question of loss.
    return {*GROUPS} - ({"udp"} if link.loss else set())


def _latencies(
    groups: set[str], vm1: Host, address: str, seconds: float, load: str
) -> list[Callable[[], Figures]]:
    measurements = {
        "ping": measure.ping,
        "one-way": measure.one_direction,
        "ssh": measure.ssh,
    }
    duration = min(seconds, _LATENCY_SECONDS)
    return [
        partial(take, vm1, address, duration, load)
        for group, take in measurements.items()
        if group in groups
    ]


def _under_load(
    measurements: Sequence[Callable[[], Figures]],
    vm1: Host,
    address: str,
    seconds: float,
    link: Link,
) -> Figures:
    duration, round_trip = min(seconds, _LATENCY_SECONDS), link.round_trip_ms / 1e3
    return measure.beside_stream(vm1, address, duration, measurements, round_trip)


def _memory(session: Session) -> Figures:
    figures = {}
    if session.pids:
        figures["rss_loaded_mb"] = measure.resident_mb(session.pids)
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
        for host in path:
            host.sysctl("net.ipv4.tcp_congestion_control", options.congestion)
        for number in range(1, options.repeat + 1):
            for contender in contenders_for(options):
                tell(f"{link}, round {number} of {options.repeat}: {contender.name}")
                runs.append(measure_contender(contender, path, link, options))
    return runs


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


def _relayed_name(options: argparse.Namespace, of: AlphaTrio | None = None) -> str:
    name = "1 relay" if options.relays == 1 else f"{options.relays} relays"
    return name if of is None else f"{name}, {of.name}"


def machine(others: Iterable[Against]) -> dict[str, Any]:
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
    settings["only"] = [*options.only]
    settings["links"] = [str(link) for link in options.links]
    links = [findings(options, link, runs) for link in options.links]
    return {
        "schema": 1,
        "machine": machine(options.against),
        "settings": settings,
        "runs": [asdict(run) for run in runs],
        "medians": links[0]["medians"],
        "ratios": links[0]["ratios"],
        "verdicts": links[0]["verdicts"],
        "links": links,
    }


def findings(
    options: argparse.Namespace, link: Link, runs: Iterable[Run]
) -> dict[str, Any]:
    """Return what the runs over one link come to."""
    here = [run for run in runs if run.link == str(link)]
    figures = with_relay_ping(medians(here), options)
    pairs = comparisons_for(options)
    judged = verdicts(here, pairs)
    return {
        "link": str(link),
        **asdict(link),
        "medians": figures,
        "ratios": ratios(figures, pairs),
        "verdicts": {
            pair: {figure: asdict(word) for figure, word in words.items()}
            for pair, words in judged.items()
        },
    }


def contenders_for(options: argparse.Namespace) -> list[Contender]:
    """Return who takes part: the yardstick, ours, others'."""
    alpha_trio = AlphaTrio(
        disabled_offloads=tuple(options.no_offload),
        mode=options.mode,
        is_start_timed=not options.only or "start" in options.only,
    )
    contenders: list[Contender] = [PlainLink(), alpha_trio]
    if options.peers:
        name = f"{options.peers} peers"
        contenders.append(evolve(alpha_trio, name=name, peers=options.peers))
    if options.relays:
        contenders.append(Relayed(_relayed_name(options), alpha_trio))
    for other in options.against:
        if isinstance(other, AlphaTrio):
            other = evolve(alpha_trio, name=other.name, program=other.program)
        contenders.append(other)
    relays = [  # the ends are ours, so that only the relays differ
        Relayed(_relayed_name(options, other), alpha_trio, other.program)
        for other in _other_relays(options)
    ]
    return contenders + relays


def _other_relays(options: argparse.Namespace) -> list[AlphaTrio]:
    """Return the versions of ours whose relays are measured as well."""
    ours = [other for other in options.against if isinstance(other, AlphaTrio)]
    return ours if options.relays else []


def comparisons_for(options: argparse.Namespace) -> list[Comparison]:
    """Return what is compared, in the order of the contenders."""
    pairs = [Comparison("alpha-trio", "plain link")]
    if options.peers:
        pairs.append(Comparison(f"{options.peers} peers", "alpha-trio"))
    if options.relays:
        relayed = _relayed_name(options)
        pairs.append(Comparison(relayed, "alpha-trio"))
        pairs += [
            Comparison(relayed, _relayed_name(options, other))
            for other in _other_relays(options)
        ]
    return pairs + [Comparison("alpha-trio", other.name) for other in options.against]


def installed(tunnels: Iterable[Against], tell: Callable[[str], None]) -> list[Against]:
    """Return those that can be measured here; tell of the rest."""
    found = []
    for tunnel in tunnels:
        if tunnel.missing:
            remedy = tunnel.packages and f": apt-get install {tunnel.packages}"
            missing = " and ".join(tunnel.missing)
            tell(f"{tunnel.name} is left out, {missing} not found{remedy}")
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
        metavar="NAME[=PATH][,...]",
        help=f"also measure other tunnels: {', '.join(OTHERS)}, those installed or the "
        "binary at a path; or alpha-trio=PATH, of another environment",
    )
    add(
        "--only",
        type=partial(_listed, GROUPS),
        default=[],
        metavar="WHAT[,WHAT]...",
        help=f"only some of the figures: {', '.join(GROUPS)} (default: all, but udp "
        "not on links with loss)",
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
        type=partial(_listed, PROFILES),
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
    add(
        "--congestion",
        choices=(_SYSCTLS / "tcp_available_congestion_control").read_text().split(),
        default=(_SYSCTLS / "tcp_congestion_control").read_text().strip(),
        help="TCP's congestion control on all hosts (default: this machine's)",
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


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 50:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 50")
    return value


def _others(text: str) -> list[Against]:
    tunnels: list[Against] = []
    for word in dict.fromkeys(text.split(",")):  # each once
        name, _, path = word.partition("=")
        tunnel = _other(name, path)
        names = [f"{name} {number}" for number in range(2, len(tunnels) + 3)]
        taken = {"alpha-trio", *(other.name for other in tunnels)}
        free = next(free for free in [name, *names] if free not in taken)
        tunnels.append(evolve(tunnel, name=free))
    return tunnels


def _other(name: str, path: str) -> Against:
    if name in OTHERS:
        return OTHERS[name].at(path) if path else OTHERS[name]
    if name == "alpha-trio" and path:
        return AlphaTrio(program=Path(path).absolute())
    raise argparse.ArgumentTypeError(
        f"{name!r} is not known: choose from {', '.join(OTHERS)}, each with or without "
        "the path of a binary, or alpha-trio=PATH"
    )


def _listed(known: Iterable[str], text: str) -> list[str]:
    """Take apart names separated by commas, each once."""
    names = [*dict.fromkeys(text.split(","))]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not known: choose from {', '.join(known)}"
            )
    return names


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


if __name__ == "__main__":
    run_tool("tools/bench", main)
