"""Show what relays are good for: one attack, twice, and where each packet ended.

    vm1 ---- r1 ---- the enemy ---- r2 ---- vm2

The enemy carries the frames between the two routers, knows all that was ever said
there, and adds what he can make of it.  Then he plays both ends of a session of his own
towards vm2, which asked for nothing.  At first the routers only forward, then both run
``alpha-trio run --relay``.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

from attrs import define
from rich.console import Console
from rich.table import Table

from alpha_trio.proto.messages import Kind
from tools import measure
from tools.attacker import MOST_MARK, Flood, InLine, Watch, Way
from tools.daemons import Daemon
from tools.forgeries import TELLABLE
from tools.lab import Host, Lab, LabError, wait_until
from tools.numbered import Numbered
from tools.selfmade import both_ends
from tools.stage import alpha_trio, heading, show, show_command, stop

RATE = 5_000  # datagrams of the enemy a second
INJECTED = 20_000  # in each of the two runs
PACKETS = 200  # genuine UDP packets a second, each way
TCP_MEGABITS = 20  # beside them: what the enemy's own hands can carry with ease
_SECONDS = INJECTED // RATE
_ROUNDS = 30  # of the session whose both ends the enemy is
# From its first packet on, or the first seconds would show what a relay tolerates.
_RELAY = '[relay]\nenabled = true\nunseen = "drop"\n'


@define(eq=False)
class Outcome:
    """Where the packets of one run ended."""

    sent: Counter[str]  # by the enemy, by kind
    reached: Counter[str]  # vm2's link
    at_relay: Mapping[str, int]  # dropped by r2's relay, by reason
    at_end: Mapping[str, int]  # dropped by vm2's daemon, by reason
    flows: Sequence[Numbered]
    tcp_megabits: float
    pings: Sequence[float]  # ms
    played: int  # packets in which the enemy is both ends
    played_reached: int  # of them, vm2's link

    @property
    def forged_delivered(self) -> int:
        """Packets that a program got and nobody sent, or got twice."""
        return sum(len(flow.wrong) + len(flow.twice) for flow in self.flows)


def run() -> None:
    """Go through the whole demo; raises LabError where something does not work."""
    with Lab() as lab, InLine() as enemy:
        heading("Two hosts, two routers, and between these somebody hostile")
        hosts = lab.chain(2, wires={1: enemy.wire})
        vm1, *_, vm2 = hosts
        print(f"vm1 {vm1.address} --- r1 --- the enemy --- r2 --- {vm2.address} vm2")
        before = [host.snapshot() for host in hosts]
        without = attack(hosts, enemy, relays=False, before=before)
        behind = attack(hosts, enemy, relays=True, before=before)
        report(without, behind)


def attack(
    hosts: Sequence[Host], enemy: InLine, *, relays: bool, before: Sequence[str]
) -> Outcome:
    """Start all that takes part, let the enemy have his way, and stop it again."""
    what = "With a relay on both routers" if relays else "The routers only forward"
    heading(what)
    ends = Daemon(hosts[0]), Daemon(hosts[-1])
    routers = [Daemon(host, config=_RELAY) for host in hosts[1:-1]] if relays else []
    daemons = [*routers, *ends]
    for daemon in daemons:
        relay = " --relay" if daemon in routers else ""
        show_command(daemon.host, f"alpha-trio run{relay} &")
        daemon.start()
    for one, other in (ends, ends[::-1]):
        if not one.status()["peers"]:  # the second time they are remembered
            alpha_trio(one, "peers", "add", other.host.name, other.host.address)
    outcome = _attacked(ends, routers, enemy)
    for daemon in routers[-1:]:
        alpha_trio(daemon, "status")
    snapshots = dict(zip([host.name for host in hosts], before, strict=True))
    stop(daemons, [snapshots[daemon.host.name] for daemon in daemons])
    return outcome


def _attacked(
    ends: Sequence[Daemon], routers: Sequence[Daemon], enemy: InLine
) -> Outcome:
    """Genuine traffic both ways, and the enemy's beside it."""
    vm1, vm2 = (daemon.host for daemon in ends)
    flows = Numbered(vm1, vm2, PACKETS), Numbered(vm2, vm1, PACKETS)
    flood = Flood(enemy, TELLABLE, rate=RATE, most=INJECTED)
    watch = Watch(vm2, "eth0", Way.ARRIVING)
    show_command(vm1, f"ping {vm2.address} &")
    show_command(vm1, f"iperf3 --client {vm2.address} --bitrate {TCP_MEGABITS}M &")
    print(f"and the enemy adds {INJECTED:,} datagrams")
    with ExitStack() as stack:
        stack.enter_context(watch)
        stack.enter_context(measure.iperf_server(vm2))
        pool = stack.enter_context(ThreadPoolExecutor())
        for flow in flows:
            flow.start()
        wait_until(lambda: all(flow.received for flow in flows), "genuine packets")
        tcp = pool.submit(_tcp_megabits, vm1, vm2)
        pings = pool.submit(_ping, vm1, vm2)
        with flood:
            wait_until(lambda: flood.is_over, "the attack", 10 * _SECONDS)
        for flow in flows:
            flow.pause()
        measured = tcp.result(), pings.result()
        time.sleep(0.5)  # what is under way arrives
        for flow in flows:
            flow.close()
        reached = Counter(flood.marks[d.mark] for d in watch.datagrams() if d.mark)
    played = _play_both_ends(vm2, enemy)
    dropped = [daemon.status()["relay"]["drops"] for daemon in routers[-1:]]
    (peer,) = ends[1].status()["peers"]
    at_end = Counter(peer["drops"]) + Counter(ends[1].status()["drops"])
    sent = flood.sent, reached, dict(*dropped), at_end
    return Outcome(*sent, flows, *measured, *played)


def _play_both_ends(vm2: Host, enemy: InLine) -> tuple[int, int]:
    """All of a session with two keys of the enemy's own goes towards vm2."""
    sent = 0
    with Watch(vm2, "eth0", Way.ARRIVING) as watch:
        for _, datagram in both_ends(Random(7), _ROUNDS):
            sent += datagram[0] == Kind.S2
            enemy.send(0, datagram, MOST_MARK)
            time.sleep(0.001)  # or S2s would overtake what they wait for
        time.sleep(0.5)  # what is under way arrives
        seen = [each for each in watch.datagrams() if each.mark == MOST_MARK]
    return sent, sum(each.datagram[0] == Kind.S2 for each in seen)


def _tcp_megabits(vm1: Host, vm2: Host) -> float:
    rate = ("--bitrate", f"{TCP_MEGABITS}M")
    end = measure.iperf(vm1, vm2.address, _SECONDS, *rate)
    return float(end["sum_received"]["bits_per_second"]) / 1e6


def _ping(vm1: Host, vm2: Host) -> list[float]:
    command = f"ping -n -i 0.1 -c {10 * _SECONDS} -W 1 {vm2.address}"
    return measure.parse_ping(vm1.run(*command.split(), check=False).stdout)


# -- what came of it ------------------------------------------------------------------


def report(without: Outcome, behind: Outcome) -> None:
    """Print where everything ended; LabError if a forgery came further than it may."""
    heading("What the enemy added between r1 and r2, and what of it reached vm2")
    _print_table(without, behind)
    heading("Who refused it, and why")
    _show_drops("r2's relay", behind.at_relay)
    _show_drops("vm2's daemon, without relays", without.at_end)
    _show_drops("vm2's daemon, behind relays", behind.at_end)
    heading("Packets of a session whose both ends the enemy is, all sent towards vm2")
    for name, outcome in (("without relays", without), ("behind relays", behind)):
        show(f"{name}: {outcome.played:,} sent, {outcome.played_reached:,} reached vm2")
    heading("Delivered to programs on vm2 and vm1")
    for name, outcome in (("without relays", without), ("behind relays", behind)):
        show(f"{name}: {_delivered(outcome)}")
    if behind.played_reached or not without.played_reached:
        raise LabError("who is both ends of a session came further than he may")
    if behind.reached or without.forged_delivered or behind.forged_delivered:
        raise LabError("a forgery came further than it may")


def _print_table(without: Outcome, behind: Outcome) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in ("without relays: added", "reached vm2", "behind relays: added"):
        table.add_column(head, justify="right")
    table.add_column("reached vm2", justify="right")
    counts = without.sent, without.reached, behind.sent, behind.reached
    for kind in TELLABLE:
        if without.sent[kind] or behind.sent[kind]:
            table.add_row(kind, *(f"{count[kind]:,}" for count in counts))
    table.add_row("all", *(f"{count.total():,}" for count in counts))
    Console(highlight=False).print(table)


def _show_drops(where: str, drops: Mapping[str, int]) -> None:
    ordered = sorted(drops.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in ordered if count)
    show(f"{where}: {reasons or 'nothing'}")


def _delivered(outcome: Outcome) -> str:
    sent = sum(flow.sent for flow in outcome.flows)
    received = sum(len(flow.received) for flow in outcome.flows)
    ping = statistics.median(outcome.pings) if outcome.pings else float("inf")
    return (
        f"{received:,} of {sent:,} genuine UDP packets, "
        f"{outcome.forged_delivered} others; TCP {outcome.tcp_megabits:.1f} of "
        f"{TCP_MEGABITS} Mbit/s; ping {ping:.1f} ms"
    )
