"""Show a shell over a path of 100 ms: with early data off, on, and off at a relay.

    vm1 ---- r1 ---- vm2        25 ms on each link, each way

r1 is a relay.  vm2 serves a shell by TCP; on vm1 somebody types a command into it, one
key after the other, each as soon as the shell has echoed the one before.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from tools.daemons import Daemon, serving
from tools.lab import Host, Lab, LabError, wait_until
from tools.stage import alpha_trio, heading, show, show_command, start, stop

LINK_MS = 25.0
COMMAND = "uname -s"
PORT = 2323
PATIENCE = 10.0  # seconds for anything the shell says
_EARLY_OFF = '[relay]\nenabled = true\nearly = "off"\n'
AF21 = 18 << 2  # of those who wait for each packet; SSH gives its shells this class

# What listens on vm2: whoever connects gets a terminal with a shell.
_SHELL = f"""
import os, pty, socket
with socket.create_server(("", {PORT})) as server:
    while True:
        peer, _ = server.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, {AF21})
        child, terminal = pty.fork()
        if not child:
            os.environ["PS1"] = "$ "
            os.execlp("sh", "sh", "-i")
        if not os.fork():
            try:
                while data := os.read(terminal, 4096):
                    peer.sendall(data)
            except OSError:
                os._exit(0)
        while data := peer.recv(4096):
            os.write(terminal, data)
        peer.close()
        os.close(terminal)
"""


class Shell:
    """A connection to the shell on vm2, as a terminal has one."""

    def __init__(self, host: Host, address: str) -> None:
        self._socket = host.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        self._socket.connect((address, PORT))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, AF21)
        self._read_until("$ ")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def type(self, command: str) -> tuple[list[float], str]:
        """Seconds from each key to its echo, and what the command said."""
        times = []
        for key in command:
            begun = time.monotonic()
            self._socket.sendall(key.encode())
            self._read_until(key)
            times.append(time.monotonic() - begun)
        self._socket.sendall(b"\n")
        return times, self._read_until("$ ").removesuffix("$ ").strip()

    def _read_until(self, text: str) -> str:
        seen = b""
        while not seen.endswith(text.encode()):
            piece = self._socket.recv(4096)
            if not piece:
                raise LabError("the shell on vm2 has hung up")
            seen += piece
        return seen.decode()


def type_command(vm1: Host, vm2: Host) -> float:
    """Type the command, and show what that is like; the median time of a key, in s."""
    show_command(vm1, f"telnet {vm2.address} {PORT}")
    with closing(Shell(vm1, vm2.address)) as shell:
        shell.type("true")  # ARP, a handshake, TCP's slow start: not what is shown
        times, said = shell.type(COMMAND)
    show(f"$ {COMMAND}\n{said}")
    each = "  ".join(f"{time * 1000:.0f}" for time in times)
    median = statistics.median(times)
    show(f"ms from key to echo: {each}; median {median * 1000:.0f}")
    return median


def set_early(one: Daemon, two: Daemon, value: str) -> None:
    """Switch it on both hosts, and wait until each has been told so by the other."""
    for daemon, peer in ((one, "vm2"), (two, "vm1")):
        alpha_trio(daemon, "peers", "set", peer, "--early", value)
    wanted = {"on": "on", "off": "off-here"}[value]
    wait_early((one, two), wanted)


def wait_early(daemons: Sequence[Daemon], wanted: str) -> None:
    """Wait until all say so of early data to their one peer."""
    wait_until(
        lambda: all(early_state(daemon) == wanted for daemon in daemons),
        f"early data is {wanted}",
    )


def early_state(daemon: Daemon) -> str:
    """Whether small packets to its one peer go early, or why not."""
    (peer,) = daemon.status()["peers"]
    state: str = peer["early_state"]
    return state


def show_early(daemon: Daemon, peer: str) -> None:
    """Show what the status says of it."""
    show_command(daemon.host, f"alpha-trio status {peer} | grep early")
    page = daemon.cli("status", peer).stdout.splitlines()
    show("\n".join(line for line in page if line.startswith("early")))


def show_relay(relay: Daemon) -> None:
    """Show what the relay on the way says of what passed."""
    show_command(relay.host, "alpha-trio status --json | jq .relay")
    told = relay.status()["relay"]
    keys = "sessions", "forwarded_packets", "unverified_packets", "drops"
    shown = {key: told[key] for key in keys}
    show(json.dumps({**shown, "early": told["policy"]["early"]}))


def run() -> None:
    """Go through the demo; raises LabError where something does not work."""
    with Lab() as lab:
        heading("Two hosts, 100 ms apart, and a relay between them")
        hosts = lab.chain(1, delay_ms=LINK_MS)
        vm1, r1, vm2 = hosts
        before = [host.snapshot() for host in hosts]
        show_command(vm2, f"a shell for whoever connects to port {PORT} &")
        with serving(vm2, "tcp", PORT, sys.executable, "-c", _SHELL):
            heading("Without a tunnel")
            plain = type_command(vm1, vm2)
            one, relay, two = daemons = Daemon(vm1), Daemon(r1), Daemon(vm2)
            start([one, two])
            start([relay], "--relay")
            for daemon, other in ((one, vm2), (two, vm1)):
                alpha_trio(daemon, "peers", "add", other.name, other.address)
            heading("Early data off: each packet waits for the peer's agreement")
            set_early(one, two, "off")
            late = type_command(vm1, vm2)
            show_early(one, "vm2")
            heading("Early data on, as it is by default: a key travels inside its S1")
            set_early(one, two, "on")
            early = type_command(vm1, vm2)
            show_early(one, "vm2")
            show_relay(relay)
            heading("A relay that wants to check everything first says so")
            restart_strict(one, two, relay)
            refused = type_command(vm1, vm2)
            show_early(one, "vm2")
            show_relay(relay)
            compare(plain, late, early, refused)
        stop(daemons, before)


def restart_strict(one: Daemon, two: Daemon, relay: Daemon) -> None:
    """Start the relay with early data off; the ends hear of it by a new handshake."""
    alpha_trio(relay, "stop")
    relay.wait()
    relay.config_file.write_text(_EARLY_OFF)
    show_command(relay.host, "cat alpha-trio.toml")
    show(_EARLY_OFF)
    start([relay])
    for value in ("off", "on"):  # or up to two minutes, to the next one
        alpha_trio(one, "peers", "set", "vm2", "--early", value)
    wait_early((one, two), "off-relay")


def compare(plain: float, late: float, early: float, refused: float) -> None:
    """Show the medians beside each other; raises LabError if they are not as said."""
    heading("From key to echo")
    rows = (
        ("without a tunnel", plain),
        ("early data off", late),
        ("early data on", early),
        ("on, but off at the relay", refused),
    )
    show("\n".join(f"{what:26} {seconds * 1000:4.0f} ms" for what, seconds in rows))
    if early > 1.2 * plain or late < 2 * plain or refused < 2 * plain:
        raise LabError("early data is not what it is said to be")
