"""What the benchmark compares: the plain link and our tunnel; others in others.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from attrs import evolve, field, frozen

from tools import measure
from tools.daemons import PROGRAM, Daemon, peers_config
from tools.lab import Host, LabError

# Where configured peers beyond the first have their endpoints; nobody is there.
_ELSEWHERE = "10.0.0.0/8"
_ECHO_INTERVAL = 0.02  # seconds between echo requests while the first reply is awaited


@frozen
class Session:
    """A contender at work between two hosts."""

    address: str  # what vm1 sends to, to have it carried to vm2
    pids: tuple[int, ...] = ()  # forwarding processes: vm1's, vm2's; the kernel: none
    figures: measure.Figures = field(factory=dict)  # measured while it was set up
    relays: tuple[int, ...] = ()  # processes on the hosts between, from vm1 on


class Contender(Protocol):
    """A way to carry packets from vm1 to vm2."""

    @property
    def name(self) -> str:
        """Head of its column in the table."""

    def session(
        self, vm1: Host, vm2: Host, *routers: Host
    ) -> AbstractContextManager[Session]:
        """Set up between two hosts, ready to carry; undo at the end.

        ``routers`` are on the way, from vm1 on, and forward; none: one link.
        """


@frozen
class PlainLink:
    """No tunnel: what the machine does without."""

    name: str = "plain link"

    @contextmanager
    def session(self, vm1: Host, vm2: Host, *_routers: Host) -> Iterator[Session]:
        """Have them know one another's link-layer address, as with a tunnel."""
        measure.time_to_first_reply(vm1, vm2.address)
        yield Session(vm2.address)


@frozen
class AlphaTrio:
    """Our daemon on both hosts."""

    name: str = "alpha-trio"
    peers: int = 1  # configured on vm1, the one that is there included
    disabled_offloads: Sequence[str] = ()
    mode: str | None = None  # for both peers; None: the daemon's default
    program: Path = PROGRAM
    is_start_timed: bool = True  # costs a start of both daemons more

    packages = ""  # of Debian: none has it

    @property
    def missing(self) -> list[str]:
        """The program, if it cannot be run."""
        return [] if os.access(self.program, os.X_OK) else [str(self.program)]

    @property
    def version(self) -> str:
        """Say where it is and what it says of itself."""
        environment = {**os.environ, "PYTHONPATH": ""}
        command = (str(self.program), "--version")
        told = subprocess.run(command, capture_output=True, text=True, env=environment)
        return f"{self.program} ({told.stdout.strip()})"

    @contextmanager
    def session(self, vm1: Host, vm2: Host, *_routers: Host) -> Iterator[Session]:
        """Start both daemons, add the peers, wait for the first echo reply."""
        vm1.run("ip", "route", "add", _ELSEWHERE, "via", next_hop(vm1, vm2.address))
        try:
            timed = self._time_start(vm1, vm2) if self.is_start_timed else {}
            sender = self._daemon(vm1, _absent(self.peers - 1))
            receiver = self._daemon(vm2)
            start = time.monotonic()
            with sender:
                started = time.monotonic() - start
                with receiver:
                    timed |= {"start_s": started, **self._join(sender, receiver)}
                    pids = (sender.pid, receiver.pid)
                    timed["rss_idle_mb"] = measure.resident_mb(pids)
                    yield Session(vm2.address, pids, timed)
        finally:
            vm1.run("ip", "route", "del", _ELSEWHERE)

    def _daemon(self, host: Host, config: str = "") -> Daemon:
        """Prepare a daemon that knows nobody but those in its config file."""
        # Peers added in the round before would be there at once, and their keys.
        shutil.rmtree(host.directory / "state", ignore_errors=True)
        options = [f"--no-offload={name}" for name in self.disabled_offloads]
        return Daemon(host, *options, config=config, program=self.program)

    def _time_start(self, vm1: Host, vm2: Host) -> measure.Figures:
        """Start both at once, each with the other in its config file, and have it echo.

        The time includes their keys, as after an installation.
        """
        daemons = [
            self._daemon(vm1, _absent(self.peers - 1) + self._configured(vm2)),
            self._daemon(vm2, self._configured(vm1)),
        ]
        start = time.monotonic()
        with ThreadPoolExecutor() as pool, ExitStack() as stack:
            for daemon in daemons:
                stack.push(daemon)  # one may have started when the other fails
            list(pool.map(Daemon.start, daemons))
            measure.time_to_first_reply(vm1, vm2.address, every=_ECHO_INTERVAL)
            taken = time.monotonic() - start
            _insist_on_tunnel(daemons[0], vm2)
        return {"run_to_reply_s": taken}

    def _configured(self, peer: Host) -> str:
        mode = f'mode = "{self.mode}"\n' if self.mode is not None else ""
        return peers_config({peer.name: peer.address}) + mode

    def _join(self, sender: Daemon, receiver: Daemon) -> measure.Figures:
        """Tell each of the other; return how long that and the first echo took."""
        self._add(receiver, sender.host)
        before = time.monotonic()
        self._add(sender, receiver.host)
        added = time.monotonic()
        reply = measure.time_to_first_reply(sender.host, receiver.host.address)
        _insist_on_tunnel(sender, receiver.host)
        add = added - before
        return {
            "add_ms": add * 1e3,
            "first_reply_ms": reply * 1e3,
            "add_to_reply_ms": (add + reply) * 1e3,
        }

    def _add(self, daemon: Daemon, peer: Host) -> None:
        # Not by the command line: starting a program is not what is to be measured.
        settings = {"endpoint": peer.address}
        if self.mode is not None:
            settings["mode"] = self.mode
        daemon.request("peers.add", name=peer.name, settings=settings)


def _insist_on_tunnel(sender: Daemon, peer: Host) -> None:
    peers = {peer["name"]: peer for peer in sender.status()["peers"]}
    if not peers[peer.name]["tx_packets"]:
        raise LabError("the echo request went past the tunnel: nothing to measure")


@frozen
class Relayed:
    """Our daemon on both hosts, and one that checks on each router between them."""

    name: str
    ends: AlphaTrio
    program: Path = PROGRAM  # of the relays

    @contextmanager
    def session(self, vm1: Host, vm2: Host, *routers: Host) -> Iterator[Session]:
        """Start the relays, then what ``AlphaTrio`` starts."""
        options = [f"--no-offload={name}" for name in self.ends.disabled_offloads]
        with ExitStack() as stack:
            relays = [
                stack.enter_context(
                    Daemon(host, "--relay", *options, program=self.program)
                )
                for host in routers
            ]
            session = stack.enter_context(self.ends.session(vm1, vm2))
            if any(not _is_checking(relay) for relay in relays):
                raise LabError("the echo went past a relay: nothing to measure")
            pids = tuple(relay.pid for relay in relays)
            idle = {"rss_relay_idle_mb": measure.resident_mb(pids)}
            yield evolve(session, relays=pids, figures={**session.figures, **idle})


def _is_checking(relay: Daemon) -> bool:
    document = relay.status()["relay"]
    return bool(document["forwarded_packets"] > document["unverified_packets"])


def next_hop(host: Host, address: str) -> str:
    """Who a host sends to first on its way to an address."""
    (route,) = json.loads(host.run("ip", "-j", "route", "get", address).stdout)
    gateway: str = route.get("gateway", address)
    return gateway


def _absent(count: int) -> str:
    """Return a config file with so many peers that are never heard of."""
    return peers_config(
        {f"absent{n}": f"10.0.{n // 250}.{n % 250 + 1}" for n in range(count)}
    )
