"""What several processes that carry packets give: a ring of hosts, each with two peers.

    vm1 ==== vm2
     ||       ||      each sends one TCP stream to the next one
    vm4 ==== vm3

The same is measured by turns with each number of ``cores``.  All hosts share this
machine's cores, so where these are busy with one process for each host, more of them
can only cost.  What they would give with a core for each follows from the shares: a
host can carry as much more as its busiest process is away from a whole core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from attrs import frozen

from tools import measure
from tools.daemons import Daemon
from tools.lab import Host, Lab, wait_until


@frozen
class Result:
    """One run.  CPU seconds are those of one host's processes, a GB is 10**9 bytes."""

    gbits: float  # of all streams
    cpu: float  # s per GB that a host sends and receives, all its processes
    busiest: float  # s per GB of the one that has most to do

    @property
    def possible(self) -> float:
        """Gbit/s of a host, there and back, whose busiest process has a core."""
        return 8 / self.busiest


def processes(pid: int) -> list[int]:
    """The daemon, and those of its processes that carry packets, if there are any."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def meet(daemons: Sequence[Daemon]) -> None:
    """Make each a peer of the next one, and both have a session."""
    for one, two in _ring(daemons):
        for daemon, other in ((one, two), (two, one)):
            settings = {"endpoint": other.host.address, "key": other.status()["key"]}
            daemon.request("peers.add", name=other.host.name, settings=settings)
        ping = "ping", "-c", "1", "-W", "1", two.host.address
        run = one.host.run
        wait_until(lambda: run(*ping, check=False).returncode == 0, "a session")  # noqa: B023


def _ring(daemons: Sequence[Daemon]) -> list[tuple[Daemon, Daemon]]:
    return list(zip(daemons, [*daemons[1:], daemons[0]], strict=True))


def run(hosts: Sequence[Host], cores: int, seconds: float) -> Result:
    """Measure one ring of daemons with so many cores each."""
    with ExitStack() as stack:
        enter = stack.enter_context
        more = f"cores = {cores}\n"
        daemons = [enter(Daemon(host, config=more)) for host in hosts]
        meet(daemons)
        for host in hosts:
            enter(measure.iperf_server(host))
        pids = [processes(daemon.pid) for daemon in daemons]
        before = [[measure.cpu_seconds(pid) for pid in some] for some in pids]
        with ThreadPoolExecutor(len(hosts)) as threads:
            streams = [
                threads.submit(measure.iperf, one.host, two.host.address, seconds)
                for one, two in _ring(daemons)
            ]
            ends = [stream.result()["sum_received"] for stream in streams]
        used = [
            [measure.cpu_seconds(pid) - start for pid, start in zip(*both, strict=True)]
            for both in zip(pids, before, strict=True)
        ]
        # What a host sends and receives: its stream, and that of the one before it.
        each = [end["bytes"] / 1e9 for end in ends]
        carried = [
            one + other for one, other in zip(each, each[-1:] + each, strict=False)
        ]
        return Result(
            sum(end["bits_per_second"] for end in ends) / 1e9,
            median(sum(u) / gb for u, gb in zip(used, carried, strict=True)),
            median(max(u) / gb for u, gb in zip(used, carried, strict=True)),
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="tools/cores", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", default="1,2", help="numbers of cores, by turns")
    options = parser.parse_args()
    wanted = [int(number) for number in options.cores.split(",")]
    found: dict[int, list[Result]] = {cores: [] for cores in wanted}
    with Lab() as lab:
        hosts = lab.lan(options.hosts)
        for _ in range(options.repeat):
            for cores in wanted:
                found[cores].append(run(hosts, cores, options.seconds))
    print("cores  Gbit/s  CPU s/GB  busiest process  a host with a core for each")
    for cores, results in found.items():
        gbits, cpu, busiest, possible = (
            median(getattr(result, name) for result in results)
            for name in ("gbits", "cpu", "busiest", "possible")
        )
        row = f"{cores:5}  {gbits:6.2f}  {cpu:8.2f}  {busiest:15.2f}"
        print(f"{row}  {possible:.2f} Gbit/s", flush=True)


if __name__ == "__main__":
    main()
