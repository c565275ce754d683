"""Draw what an attack leaves of genuine traffic, with relays and without, as SVG.

    vm1 ---- r1 ---- switch ---- r2 ==== vm2      ==== is limited in its rate
                        |
                      enemy

The enemy sees all that is said on the switch, and sends forged S2s to vm2 in vm1's
name.  Where nobody checks before the slow link they crowd out what is genuine.
``docs/benchmark.md`` says how to read it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from random import Random
from socket import SOCK_STREAM, socket
from threading import Event, Thread
from typing import Any
from xml.sax.saxutils import escape

from attrs import frozen
from rich.console import Console

from alpha_trio.proto.messages import ROUND_HEAD_SIZE, Kind
from tools.attacker import Beside, Flood, Sight
from tools.bench import machine, number, writable
from tools.daemons import Daemon, peers_config
from tools.lab import Host, Lab, LabError, run_tool
from tools.numbered import MEAN_SIZE, Numbered

LINK_MEGABITS = 50
ATTACKS = (0, 10, 20, 30, 40, 50, 60, 80, 100)  # Mbit/s of UDP payload
FORGED_SIZE = 1_200  # bytes
UDP_MEGABITS = 10  # of genuine packets, offered
_UDP_RATE = UDP_MEGABITS * 1e6 / 8 / MEAN_SIZE
_RAMP = 1.0  # s of the attack before anything is counted
_RELAY = '[relay]\nenabled = true\nunseen = "drop"\n'


@frozen
class Point:
    """What arrived of a kind of genuine traffic under an attack, in Mbit/s."""

    traffic: str  # "TCP" or "UDP"
    relays: bool
    attack: float
    arrived: float


# -- measuring ------------------------------------------------------------------------


def measure_all(
    seconds: float, repeat: int, tell: Callable[[str], None]
) -> list[Point]:
    """Measure at every rate, ``repeat`` times with relays and as often without."""
    points = []
    with Lab() as lab, Beside(lab) as enemy:
        path = lab.chain(2, wires={1: enemy.wire})
        r2 = path[2]
        r2.limit_rate(LINK_MEGABITS, r2.ports[1])
        for turn in range(1, repeat + 1):
            for relays in (False, True):
                with _tunnel(path, relays=relays):
                    for attack in ATTACKS:
                        tell(f"round {turn} of {repeat}: {attack} Mbit/s, {relays=}")
                        run = attack, relays, seconds
                        points += _measure(path, enemy, *run, tell)
    return points


@contextmanager
def _tunnel(path: Sequence[Host], *, relays: bool) -> Iterator[None]:
    """Daemons on the ends, which have a session, and if asked for on the routers."""
    vm1, *routers, vm2 = path
    with ExitStack() as stack:
        for router in routers if relays else ():
            stack.enter_context(Daemon(router, config=_RELAY))
        for here, there in ((vm1, vm2), (vm2, vm1)):
            config = peers_config({there.name: there.address})
            stack.enter_context(Daemon(here, config=config))
        vm1.run("ping", "-n", "-c", "5", "-i", "0.2", vm2.address)
        yield


def _measure(
    path: Sequence[Host],
    enemy: Beside,
    attack: float,
    relays: bool,
    seconds: float,
    tell: Callable[[str], None],
) -> list[Point]:
    rate = attack * 1e6 / 8 / FORGED_SIZE
    most = int(2 * rate * (_RAMP + seconds))
    points = []
    for traffic, arriving in (("TCP", _tcp), ("UDP", _udp)):
        with arriving(path[0], path[-1]) as arrived, ExitStack() as stack:
            if attack:
                flood = Flood(enemy, {"S2": _forged}, rate=rate, most=most)
                stack.enter_context(flood)
            time.sleep(_RAMP)
            before, start = arrived(), time.monotonic()
            time.sleep(seconds)
            size, took = arrived() - before, time.monotonic() - start
            if attack and flood.sent.total() < 0.9 * rate * (_RAMP + took):
                tell(f"the enemy is too slow: not {attack} Mbit/s")
        points.append(Point(traffic, relays, attack, size * 8 / took / 1e6))
    return points


def _forged(sight: Sight, dice: Random, _number: int) -> bytes:
    """A packet of fixed size in a round whose key is out."""
    head = sight.latest(Kind.S2)[:ROUND_HEAD_SIZE]
    return head + dice.randbytes(FORGED_SIZE - ROUND_HEAD_SIZE)


Arrived = Callable[[], float]  # bytes of genuine payload so far


@contextmanager
def _udp(source: Host, target: Host) -> Iterator[Arrived]:
    """Packets at a steady rate within the block."""
    flow = Numbered(source, target, _UDP_RATE)
    flow.start()
    try:
        yield lambda: len(flow.received) * MEAN_SIZE
    finally:
        flow.pause()
        flow.close()
    if flow.wrong or flow.twice:
        raise LabError("a forged packet was delivered")


@contextmanager
def _tcp(source: Host, target: Host) -> Iterator[Arrived]:
    """A connection that is kept full within the block."""
    with (
        target.socket(kind=SOCK_STREAM) as listener,
        source.socket(kind=SOCK_STREAM) as client,
    ):
        listener.bind((target.address, 0))
        listener.listen()
        client.settimeout(10)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield from _kept_full(client, server)


def _kept_full(client: socket, server: socket) -> Iterator[Arrived]:
    done, received = Event(), [0]
    tasks = (
        Thread(target=_fill, args=(client, done)),
        Thread(target=_count, args=(server, done, received)),
    )
    for end in (client, server):
        end.settimeout(0.1)
    for task in tasks:
        task.start()
    try:
        yield lambda: received[0]
    finally:
        done.set()
        for task in tasks:
            task.join()


def _fill(client: socket, done: Event) -> None:
    piece = bytes(1 << 14)
    while not done.is_set():
        try:
            client.send(piece)
        except TimeoutError:
            continue  # no room for it yet


def _count(server: socket, done: Event, received: list[int]) -> None:
    while not done.is_set():
        try:
            received[0] += len(server.recv(1 << 16))
        except TimeoutError:
            continue


# -- drawing --------------------------------------------------------------------------

_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 64, 96
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 }
  .small { font-size: 11px; fill: #57606a }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .link { stroke: #57606a; stroke-width: 1; stroke-dasharray: 2 4 }
  .with { stroke: #0969da; fill: #0969da }
  .without { stroke: #bc4c00; fill: #bc4c00 }
  path.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
  .udp { stroke-dasharray: 7 5 }
  text.with, text.without { stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .link { stroke: #9198a1 }
    .with { stroke: #4493f8; fill: #4493f8 }
    .without { stroke: #f0883e; fill: #f0883e }
    text.with { fill: #4493f8 }
    text.without { fill: #f0883e }
  }
"""


@frozen
class Axes:
    """Where in the drawing a value is."""

    most_x: float
    most_y: float

    def x(self, value: float) -> float:
        """Distance from the left."""
        return _LEFT + value / self.most_x * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Distance from the top."""
        return _HEIGHT - _BOTTOM - value / self.most_y * (_HEIGHT - _TOP - _BOTTOM)


def medians(points: Sequence[Point]) -> dict[tuple[str, bool], dict[float, float]]:
    """What arrived by rate of attack, for each traffic with and without relays."""
    seen: dict[tuple[str, bool], dict[float, list[float]]] = {}
    for point in points:
        series = seen.setdefault((point.traffic, point.relays), {})
        series.setdefault(point.attack, []).append(point.arrived)
    return {
        name: {attack: statistics.median(values) for attack, values in series.items()}
        for name, series in seen.items()
    }


def draw(points: Sequence[Point], facts: Sequence[str]) -> str:
    """Return the SVG; ``facts`` are the lines of its caption."""
    series = medians(points)
    axes = Axes(max(point.attack for point in points), LINK_MEGABITS)
    parts = [*_frame(axes, facts)]
    labels: list[float] = []
    for (traffic, relays), values in sorted(series.items(), key=_importance):
        parts += _line(axes, traffic, relays, values, labels)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' role="img">\n<title>{escape(_TITLE)}</title>\n<desc>{_table(series)}</desc>'
        f"\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


_TITLE = "What a flood of forged packets leaves of genuine traffic"


def _importance(item: tuple[tuple[str, bool], object]) -> tuple[bool, str]:
    (traffic, relays), _ = item
    return not relays, traffic


def _frame(axes: Axes, facts: Sequence[str]) -> Iterator[str]:
    left, right = axes.x(0), axes.x(axes.most_x)
    yield _text(left, 28, _TITLE, "title")
    yield _text(left, 48, "Mbit/s of genuine payload that arrives at vm2", "small")
    for value in range(0, LINK_MEGABITS + 1, 10):
        y = axes.y(value)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield _text(left - 8, y + 4, str(value), "small", "end")
    for value in sorted({*range(0, int(axes.most_x) + 1, 20)}):
        yield _text(axes.x(value), axes.y(0) + 18, str(value), "small", "middle")
    title = "Mbit/s of forged packets that the enemy sends towards vm2"
    yield _text((left + right) / 2, axes.y(0) + 38, title, anchor="middle")
    if axes.most_x > LINK_MEGABITS:
        x = axes.x(LINK_MEGABITS)
        yield f'<path class="link" d="M{x:.1f} {axes.y(0):.1f}V{_TOP}"/>'
        yield _text(x + 6, _TOP + 20, "rate of the link to vm2", "small")
    for place, fact in enumerate(facts):
        yield _text(left, axes.y(0) + 60 + 16 * place, fact, "small")


def _line(
    axes: Axes,
    traffic: str,
    relays: bool,
    values: Mapping[float, float],
    labels: list[float],
) -> Iterator[str]:
    """One series with a label at its end; ``labels`` are the heights of the others."""
    who = "with" if relays else "without"
    places = [(axes.x(x), axes.y(y)) for x, y in sorted(values.items())]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path class="line {who} {traffic.lower()}" d="M{path}"/>'
    yield from (_marker(relays, x, y) for x, y in places)
    x, y = places[-1]
    while any(abs(y - other) < 16 for other in labels):
        y -= 4
    labels.append(y)
    name = f"{traffic}, {'relays' if relays else 'no relays'}"
    yield _text(x + 10, y + 4, name, who)


def _marker(relays: bool, x: float, y: float) -> str:
    # Told apart by shape as well as by colour.
    if relays:
        return f'<circle class="with" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    corner = f'x="{x - 2.5:.1f}" y="{y - 2.5:.1f}"'
    return f'<rect class="without" {corner} width="5" height="5"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"{kind} text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _table(series: Mapping[tuple[str, bool], Mapping[float, float]]) -> str:
    """The figures, for those who cannot see the drawing."""
    return "\n".join(
        f"{traffic} {'with' if relays else 'without'} relays: "
        + ", ".join(f"{y:.1f} at {x:g}" for x, y in sorted(values.items()))
        for (traffic, relays), values in sorted(series.items())
    )


def caption(seconds: float, repeat: int) -> list[str]:
    """What a reader must know of the runs."""
    known: dict[str, Any] = machine(())
    kernel = ".".join(known["kernel"].split(".")[:2])
    return [
        f"The link to vm2 carries {LINK_MEGABITS} Mbit/s; of UDP {UDP_MEGABITS} Mbit/s "
        f"were offered.  Medians of {repeat} rounds of {seconds:g} s each.",
        f"{date.today():%d %B %Y}, {known['cpu']}, {known['cores']} cores, Linux "
        f"{kernel}, Python {known['python']}; all hosts on one machine.",
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure and draw."""
    parser = argparse.ArgumentParser(prog="tools/plot", description=__doc__)
    add = parser.add_argument
    add("file", type=writable, help="the SVG to write")
    add("--seconds", type=number, default=3, help="of each run (default: 3)")
    add("--repeat", type=number, default=3, help="rounds (default: 3)")
    add("--json", type=writable, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args(arguments)
    tell = partial(Console(stderr=True).print, highlight=False)
    points = measure_all(options.seconds, options.repeat, tell)
    facts = caption(options.seconds, options.repeat)
    options.file.write_text(draw(points, facts))
    if options.json:
        runs = [[p.traffic, p.relays, p.attack, p.arrived] for p in points]
        options.json.write_text(json.dumps({"caption": facts, "points": runs}) + "\n")
    return 0


if __name__ == "__main__":
    run_tool("tools/plot", main)
