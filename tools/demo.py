"""Show a tunnel between two hosts: what a user types and what can be seen of it."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tools import measure
from tools.lab import Daemon, Host, Lab, LabError, run_tool, shell_command, wait_until

TEXT = "this is a test"
UDP_PORT = 2323


def heading(text: str) -> None:
    """Begin a part of the demo."""
    line = f"== {text}"
    print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)


def show_command(host: Host, command: str) -> None:
    """Print a command as typed on a host."""
    print(f"{host.name}# {command}", flush=True)


def show(output: str) -> None:
    """Print what a command said, set apart from the command."""
    for line in output.strip().splitlines():
        print(f"    {line}".rstrip(), flush=True)


def alpha_trio(daemon: Daemon, *arguments: str) -> None:
    """Run a command of ours and show both it and its output."""
    show_command(daemon.host, f"alpha-trio {' '.join(arguments)}")
    show(daemon.cli(*arguments).stdout)


def start(daemons: Sequence[Daemon], *options: str) -> None:
    """Start ``alpha-trio run`` on each host."""
    for daemon in daemons:
        daemon.arguments = options
        show_command(daemon.host, " ".join(("alpha-trio run", *options, "&")))
        daemon.start()


def join(one: Daemon, two: Daemon) -> None:
    """Tell each daemon about the other."""
    heading("Each is told about the other; that is all the configuration there is")
    alpha_trio(one, "peers", "add", two.host.name, two.host.address)
    alpha_trio(two, "peers", "add", one.host.name, one.host.address)


@contextmanager
def tcpdump(host: Host) -> Iterator[list[str]]:
    """Watch IPv4 on the link within the block; the list is filled at its end."""
    command = "tcpdump -n -t -l --immediate-mode -i eth0 ip"
    seen: list[str] = []
    errors = host.directory / "tcpdump"
    with errors.open("w") as stderr:
        process = host.popen(*command.split(), stdout=subprocess.PIPE, stderr=stderr)
    wait_until(lambda: "listening on" in errors.read_text(), "tcpdump listening")
    try:
        yield seen
    finally:
        process.send_signal(signal.SIGINT)
        # Told to stop, it ends its output with an empty line.
        seen += process.communicate(timeout=10)[0].strip().splitlines()


def send_text(one: Daemon, two: Daemon) -> None:
    """Send one UDP packet and show every place where it can be seen."""
    heading(f'vm1 sends "{TEXT}" by UDP to port {UDP_PORT} of vm2')
    vm1, vm2 = one.host, two.host
    marks = len(one.log), len(two.log)
    arrived = vm2.directory / "arrived"
    show_command(vm2, f"nc -u -l {UDP_PORT} &")
    with arrived.open("w") as output:
        receiver = vm2.popen("nc", "-u", "-l", str(UDP_PORT), stdout=output)
    bound = ("ss", "-Hlun", "sport", "=", f":{UDP_PORT}")
    wait_until(lambda: vm2.run(*bound).stdout, "nc listening")
    with tcpdump(vm2) as seen:
        command = f"nc -u -w 1 {vm2.address} {UDP_PORT}"
        show_command(vm1, f'echo "{TEXT}" | {command}')
        vm1.run(*command.split(), stdin=f"{TEXT}\n")
        wait_until(lambda: TEXT in arrived.read_text(), f"{TEXT!r} on vm2")
        # The log of the last step may be written a moment after the packet arrived.
        two.wait_log("<--tun-- udp", since=marks[1])
    receiver.terminate()
    receiver.wait()

    heading("What arrived at nc on vm2")
    show(arrived.read_text())
    for daemon, mark in zip((one, two), marks, strict=True):
        heading(f"What the daemon on {daemon.host.name} says to it")
        show(daemon.log[mark:])
    heading("What tcpdump saw on the link between them: UDP port 1234, nothing else")
    show("\n".join(seen))
    if not seen or any(".1234 > " not in line for line in seen):
        raise LabError("something else than the tunnel's UDP was on the link")


def restart(daemons: Sequence[Daemon]) -> None:
    """Start again without the per-packet log, which would slow the measurement."""
    heading("Both start again, without a log line per packet; the peers are remembered")
    for daemon in daemons:
        alpha_trio(daemon, "stop")
        daemon.wait()
    start(daemons)


def ping(one: Daemon, two: Daemon) -> None:
    """Show a ping through the tunnel."""
    heading("ping")
    command = f"ping -n -c 5 -i 0.2 {two.host.address}"
    show_command(one.host, command)
    show(one.host.run(*command.split()).stdout)


def throughput(one: Daemon, two: Daemon) -> None:
    """Show what one TCP stream gets through."""
    heading("Throughput of one TCP stream")
    show_command(one.host, f"iperf3 -c {two.host.address} -t 3")
    with measure.iperf_server(two.host):
        figures = measure.tcp(one.host, two.host.address, 3, 1)
    show(f"{figures['tcp_1_gbits']:.2f} Gbit/s")


def status(daemons: Sequence[Daemon]) -> None:
    """Show the daemons' own view."""
    heading("What the daemons know")
    for daemon in daemons:
        alpha_trio(daemon, "status")


def stop(daemons: Sequence[Daemon], before: Sequence[str]) -> None:
    """Stop both and see that the hosts are as they were before."""
    heading("Both stop; addresses, rules, routes and settings are as before")
    for daemon, snapshot in zip(daemons, before, strict=True):
        alpha_trio(daemon, "stop")
        code = daemon.wait()
        if code != 0 or daemon.host.snapshot() != snapshot:
            raise LabError(
                f"{daemon.host.name}: exit code {code}, or something is left"
            )


def explain_stay(daemons: Sequence[Daemon]) -> None:
    """Print how to go on by hand."""
    heading("Both hosts stay.  To work on one, with alpha-trio at hand")
    for daemon in daemons:
        print(f"  {daemon.host.name}:  {shell_command(daemon.host, daemon)}")
    print("\nTo end the daemons and remove the hosts:\n  tools/lab down")


def run(stay: bool) -> None:
    """Go through the whole demo; raises LabError where something does not work."""
    with Lab(keep=stay) as lab:
        heading("Two hosts with one link, reverse-path filter strict")
        vm1, vm2 = lab.lan(2)
        for host in (vm1, vm2):
            print(f"{host.name} is {host.address}")
        before = [host.snapshot() for host in (vm1, vm2)]
        one, two = daemons = Daemon(vm1), Daemon(vm2)
        heading("The daemon on both, with a log line per packet")
        start(daemons, "-vv")
        join(one, two)
        send_text(one, two)
        restart(daemons)
        ping(one, two)
        throughput(one, two)
        status(daemons)
        if stay:
            explain_stay(daemons)
        else:
            stop(daemons, before)


def main(arguments: Sequence[str]) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument(
        "--stay", action="store_true", help="leave the hosts running at the end"
    )
    run(parser.parse_args(arguments).stay)
    return 0


if __name__ == "__main__":
    run_tool("tools/demo", main)
