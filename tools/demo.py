"""Show a tunnel between two hosts: what a user types and what can be seen of it."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alpha_trio.proto.messages import CONTROL, Kind
from tools import far_demo, measure, path_demo, relay_demo
from tools.daemons import Daemon, serving
from tools.lab import Host, Lab, LabError, run_tool, shell_command, wait_until
from tools.stage import alpha_trio, heading, show, show_command, start, stop

TEXT, NEXT_TEXT = "this is a test", "this is the next test"
UDP_PORT = 2323
DATAGRAMS = 5  # SYN; ACK; ACKACK and S1, in one batch; A1; S2

ALL_FRAMES = 3  # ETH_P_ALL
IPV4, UDP = b"\x08\x00", 17
# Offsets in an Ethernet frame that holds IPv4 without options, and UDP.
ETHER_TYPE, PROTOCOL, CHECKSUM, PAYLOAD = 12, 23, 40, 42
SHAPE = PAYLOAD + 10  # of an S2's round


def join(one: Daemon, two: Daemon) -> None:
    """Tell each daemon about the other."""
    heading("Each is told about the other; that is all the configuration there is")
    # A packet that comes alone would travel in its S1, and there were no S2 to catch.
    alpha_trio(one, "peers", "add", two.host.name, two.host.address, "--early", "off")
    alpha_trio(two, "peers", "add", one.host.name, one.host.address, "--early", "off")


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


@contextmanager
def listening(host: Host) -> Iterator[Path]:
    """Receive UDP by nc within the block; the file gets what arrives."""
    arrived = host.directory / "arrived"
    command = f"nc -k -u -l {UDP_PORT}"
    show_command(host, f"{command} &")
    with (
        arrived.open("w") as output,
        serving(host, "udp", UDP_PORT, *command.split(), stdout=output),
    ):
        yield arrived


def protect_packets(one: Daemon, two: Daemon) -> None:
    """Send a text, show what becomes of it, and that a forged one is refused."""
    heading(f'vm1 sends "{TEXT}" by UDP to port {UDP_PORT} of vm2')
    with listening(two.host) as arrived, open_cable(one.host) as cable:
        show_one_packet(one, two, arrived)
        heading("vm1 sends once more, and somebody on the link catches the S2")
        drain(cable)
        send_text(one, two, NEXT_TEXT, arrived)
        forge(two, arrived, cable, captured_s2(drain(cable)))


def open_cable(host: Host) -> socket.socket:
    """Where its link begins: frames are seen and added here, past host and daemon."""
    cable = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
    cable.bind(("eth0", 0))
    return cable


def send_text(one: Daemon, two: Daemon, text: str, arrived: Path) -> None:
    """Send a line by UDP and wait until it has arrived, and is in the log, too."""
    mark = len(two.log)
    command = f"nc -u -w 1 {two.host.address} {UDP_PORT}"
    show_command(one.host, f'echo "{text}" | {command}')
    one.host.run(*command.split(), stdin=f"{text}\n")
    wait_until(lambda: text in arrived.read_text(), f"{text!r} on vm2")
    two.wait_log("<--tun-- udp", since=mark)


def show_one_packet(one: Daemon, two: Daemon, arrived: Path) -> None:
    """Send one UDP packet and show every place where it can be seen."""
    marks = len(one.log), len(two.log)
    with tcpdump(two.host) as seen, open_cable(one.host) as cable:
        send_text(one, two, TEXT, arrived)
        if any(TEXT.encode() in frame for frame in drain(cable)):
            raise LabError("the text could be read on the link")
    heading("What arrived at nc on vm2")
    show(arrived.read_text())
    explain_round()
    ends = "Sending encapsulated packet", "<--tun-- udp"
    for daemon, mark, end in zip((one, two), marks, ends, strict=True):
        heading(f"What the daemon on {daemon.host.name} says to it")
        show_until(end, daemon.log[mark:].splitlines())
    heading("What tcpdump saw on the link: UDP port 1234, nothing else, and no text")
    if not seen or any(".1234 > " not in line for line in seen):
        raise LabError("something else than the tunnel's UDP was on the link")
    show("\n".join(seen[:DATAGRAMS]))
    if seen[DATAGRAMS:]:
        show(f"and {len(seen) - DATAGRAMS} more like these, about further hash chains")


def show_until(end: str, lines: Sequence[str]) -> None:
    """Print the lines up to the first with ``end``.

    More may follow: chains for later packets are opened when the way seems long.
    """
    last = next(number for number, line in enumerate(lines) if end in line)
    show("\n".join(lines[: last + 1]))


def explain_round() -> None:
    """Print what the messages in the log are for."""
    heading("How the packet crosses")
    show(
        "SYN, ACK, ACKACK  a session: both prove by signatures who they are\n"
        "S1  announces the packet: a code of it, made with a key still secret\n"
        "A1  agrees: the receiver has this code\n"
        "S2  carries the packet, encrypted, and the key by which anybody can check it\n"
        "(--early off: else a packet that comes alone would travel inside its S1)"
    )


def drain(cable: socket.socket) -> list[bytes]:
    """All frames on the link since it was opened, or since the last call."""
    cable.setblocking(False)
    frames = []
    while True:
        try:
            frames.append(cable.recv(1 << 16))
        except BlockingIOError:
            return frames


def captured_s2(frames: Sequence[bytes]) -> bytes:
    """The frame with the packet's S2, its UDP checksum left out, so that all fits."""
    found = next(
        frame
        for frame in frames
        if frame[ETHER_TYPE : ETHER_TYPE + 2] == IPV4
        and frame[PROTOCOL] == UDP
        and frame[PAYLOAD] == Kind.S2
        and not frame[SHAPE] & CONTROL
    )
    return found[:CHECKSUM] + bytes(2) + found[PAYLOAD:]


def forge(two: Daemon, arrived: Path, cable: socket.socket, s2: bytes) -> None:
    """Send the S2 changed, then as it was, and show that neither is delivered."""
    before = arrived.read_text()
    show_counters(two)
    mark = len(two.log)
    print("Its key is known now.  The last byte of the packet is changed, and the S2")
    print("sent to vm2 as if by vm1; then once more as it was.  vm2's daemon says:")
    cable.send(s2[:-1] + bytes([s2[-1] ^ 1]))
    cable.send(s2)
    wait_until(lambda: sum(drops(two).values()) == 2, "both refused")
    show(two.log[mark:])
    print("Both came in, but neither goes on to the interface (no <--tun--):")
    show_counters(two)
    heading("What arrived at nc on vm2 altogether")
    show(arrived.read_text())
    if arrived.read_text() != before:
        raise LabError("a forged packet was delivered")


def drops(daemon: Daemon) -> dict[str, int]:
    """What was dropped of its one peer, by reason."""
    (peer,) = daemon.status()["peers"]
    counts: dict[str, int] = peer["drops"]
    return counts


def show_counters(daemon: Daemon) -> None:
    """Show how many packets came from vm1, and what was refused."""
    show_command(daemon.host, "alpha-trio status vm1 | grep -E 'received|dropped'")
    page = daemon.cli("status", "vm1").stdout.splitlines()
    show("\n".join(line for line in page if line.startswith(("received", "dropped"))))


def restart(daemons: Sequence[Daemon]) -> None:
    """Start again without the per-packet log, which would slow the measurement."""
    heading("Both start again, without a log line per packet; the peers are remembered")
    for daemon in daemons:
        alpha_trio(daemon, "stop")
        daemon.wait()
    start(daemons)
    for daemon, peer in zip(daemons, ("vm2", "vm1"), strict=True):
        alpha_trio(daemon, "peers", "set", peer, "--early", "on")


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


def explain_stay(daemons: Sequence[Daemon]) -> None:
    """Print how to go on by hand."""
    heading("Both hosts stay.  To work on one, with alpha-trio at hand")
    for daemon in daemons:
        command = shell_command(daemon.host, **daemon.environment)
        print(f"  {daemon.host.name}:  {command}")
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
        protect_packets(one, two)
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
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--stay", action="store_true", help="leave the hosts running at the end"
    )
    choice.add_argument(
        "--relay",
        action="store_true",
        help="show an attack on the way, with relays and without",
    )
    choice.add_argument(
        "--far",
        action="store_true",
        help="show a shell over a path of 100 ms, with early data and without",
    )
    choice.add_argument(
        "--path",
        action="store_true",
        help="show a transfer over a path that shrinks, rebinds and changes",
    )
    options = parser.parse_args(arguments)
    if options.relay:
        relay_demo.run()
    elif options.far:
        far_demo.run()
    elif options.path:
        path_demo.run()
    else:
        run(options.stay)
    return 0


if __name__ == "__main__":
    run_tool("tools/demo", main)
