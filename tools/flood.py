"""What floods of hostile datagrams leave of a tunnel, beside harmless ones.

    mallory ---- vm2 ==== vm1        mallory forges the sender addresses

While a TCP stream goes through the tunnel of vm1 and vm2, as many datagrams as are
asked for go to vm2, one kind after the other.  What the same number of datagrams to a
closed port leaves of the stream is the measure: they cost the kernel what they cost,
and no daemon sees them.  At the end of each kind vm1 forgets its session and makes a
new one under the flood.
"""

from __future__ import annotations

import argparse
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from random import Random
from statistics import median
from typing import Any

from attrs import frozen

from alpha_trio.proto.messages import (
    VERSION,
    Ack,
    AckAck,
    Cookie,
    Kind,
)
from tools import measure
from tools.daemons import Daemon
from tools.forgeries import forged_syn
from tools.lab import Host, Lab

_PORT, _CLOSED = 1234, 9
_VARIANTS = 2_000  # different datagrams of a kind, sent in turn
_MALLORY, _BESIDE = "10.66.0.2", "10.66.0.1"
_SETTLE = 0.5  # s from the beginning of a flood until it is measured
_SPOOFED = [f"10.77.{third}.{last}" for third in range(16) for last in range(1, 255)]

Make = Callable[[Random], bytes]


def _kinds(ours: bytes, peers: bytes) -> dict[str, Make]:
    """By who knows all public keys: ``ours`` of vm2, ``peers`` of vm1."""

    def syn(identity: bytes | None, key: bytes) -> Make:
        return lambda dice: forged_syn(identity or dice.randbytes(32), dice, key)

    def ack(dice: Random) -> bytes:
        here, there = dice.randrange(1, 1 << 32), dice.randrange(1, 1 << 32)
        a, b, c, d, e, f = map(dice.randbytes, (16, 32, 32, 16, 16, 64))
        return Ack(here, there, a, b, c, d, e, f).pack()

    def round_message(kind: Kind) -> Make:
        head = bytes([kind, VERSION, 0, 0])
        return lambda dice: head + dice.randbytes(96)

    return {
        "S1 of no session": round_message(Kind.S1),
        "S2 of no session": round_message(Kind.S2),
        "SYN of a stranger": syn(None, ours),
        "SYN with a wrong MAC": syn(peers, bytes(31) + b"\x01"),
        "SYN in the peer's name": syn(peers, ours),
        "SYN of first contact": syn(peers, bytes(32)),
        "ACK": ack,
        "ACKACK": lambda dice: AckAck(
            dice.randrange(1, 1 << 32), dice.randbytes(64), dice.randbytes(16)
        ).pack(),
        "COOKIE": lambda dice: Cookie(
            dice.randrange(1, 1 << 32), dice.randbytes(16), dice.randbytes(16)
        ).pack(),
    }


def _send(
    host: Host,
    datagrams: Sequence[bytes],
    port: int,
    rate: float,
    sent: Synchronized[int],
    stop: Any,
) -> None:
    """Send them in turn, from addresses made up, until told to stop."""
    sockets = [host.socket(socket.AF_INET) for _ in _SPOOFED[::64]]
    for sock, source in zip(sockets, _SPOOFED[::64], strict=True):
        sock.bind((source, _PORT))
    begun, number = time.monotonic(), 0
    while not stop.is_set():
        due = (time.monotonic() - begun) * rate
        while number < due:
            sock = sockets[number % len(sockets)]
            with suppress(OSError):  # ICMP, or no room: it is a flood
                sock.sendto(datagrams[number % len(datagrams)], (_BESIDE, port))
            number += 1
            if not number % 256:
                sent.value = number
                if stop.is_set():
                    return
        time.sleep(0.0005)


@contextmanager
def _flooding(
    host: Host, datagrams: Sequence[bytes], port: int, rate: float
) -> Iterator[Synchronized[int]]:
    context = get_context("fork")
    sent, stop = context.Value("q", 0), context.Event()
    arguments = host, datagrams, port, rate, sent, stop
    process = context.Process(target=_send, args=arguments, daemon=True)
    process.start()
    try:
        time.sleep(_SETTLE)
        yield sent
    finally:
        stop.set()
        process.join(5)
        process.kill()


def _stream(vm1: Host, vm2: Host, seconds: float) -> float:
    """Mbit/s of one TCP stream into vm2."""
    report = measure.iperf(vm1, vm2.address, seconds)
    return float(report["sum_received"]["bits_per_second"]) / 1e6


@frozen
class Stage:
    """Two hosts with a tunnel, and somebody hostile beside one of them."""

    one: Daemon
    two: Daemon
    mallory: Host
    settings: dict[str, str]  # of vm2, at vm1

    @classmethod
    def of(cls, one: Daemon, two: Daemon, mallory: Host) -> Stage:
        """With keys, and a pre-shared one, configured on both sides."""
        settings = []
        psk = b64encode(bytes(range(1, 33))).decode()
        for daemon, other, name in ((one, two, "vm2"), (two, one, "vm1")):
            key = other.status()["key"]
            known = {"endpoint": other.host.address, "key": key, "psk": psk}
            daemon.request("peers.add", name=name, settings=known)
            settings.append(known)
        return cls(one, two, mallory, settings[0])

    def stream(self, seconds: float) -> float:
        """Mbit/s of one TCP stream from vm1 into vm2."""
        report = measure.iperf(self.one.host, self.two.host.address, seconds)
        return float(report["sum_received"]["bits_per_second"]) / 1e6

    def meet_again(self) -> str:
        """How long it takes until a new session carries something."""
        self.one.request("peers.remove", name="vm2")
        self.one.request("peers.add", name="vm2", settings=self.settings)
        ping = "ping", "-c", "1", "-W", "1", self.two.host.address
        begun = time.monotonic()
        while self.one.host.run(*ping, check=False).returncode != 0:
            if time.monotonic() > begun + 20:
                return "none in 20 s"
        return f"{time.monotonic() - begun:.1f} s"

    def under(
        self, datagrams: Sequence[bytes], port: int, options: argparse.Namespace
    ) -> tuple[float, float, str]:
        """Mbit/s under a flood, its rate, and how long a new session takes."""
        with _flooding(self.mallory, datagrams, port, options.rate) as sent:
            before, begun = sent.value, time.monotonic()
            mbit = self.stream(options.seconds)
            rate = (sent.value - before) / (time.monotonic() - begun)
            return mbit, rate, self.meet_again() if port == _PORT else ""


def _prepare(lab: Lab) -> tuple[Host, Host, Host]:
    vm1, vm2 = lab.chain(0)
    mallory = lab.host("mallory")
    here, there = lab.connect(mallory, vm2)
    mallory.run("ip", "addr", "add", f"{_MALLORY}/24", "dev", here)
    vm2.run("ip", "addr", "add", f"{_BESIDE}/24", "dev", there)
    for scope in ("all", there):
        vm2.sysctl(f"net.ipv4.conf.{scope}.rp_filter", 0)
    vm2.run("ip", "route", "add", "10.77.0.0/16", "via", _MALLORY)
    mallory.run("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
    return vm1, vm2, mallory


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="tools/flood", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rate", type=float, default=1e5, help="datagrams a second")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with Lab() as lab:
        vm1, vm2, mallory = _prepare(lab)
        with Daemon(vm1) as one, Daemon(vm2) as two, measure.iperf_server(vm2):
            _measure(Stage.of(one, two, mallory), options)


def _measure(stage: Stage, options: argparse.Namespace) -> None:
    keys = [b64decode(daemon.status()["key"]) for daemon in (stage.two, stage.one)]
    dice = Random(1)
    print(f"Mbit/s of a stream without a flood: {stage.stream(options.seconds):.0f}")
    print(f"{'flood':24} {'rate':>8} {'Mbit/s':>8} {'of harmless':>12}  new session")
    for name, make in _kinds(*keys).items():
        datagrams = [make(dice) for _ in range(_VARIANTS)]
        harmless, hostile = [], []
        for _ in range(options.repeat):
            harmless.append(stage.under(datagrams, _CLOSED, options))
            hostile.append(stage.under(datagrams, _PORT, options))
        mbit, rate = (
            median(figures) for figures in list(zip(*hostile, strict=True))[:2]
        )
        share = mbit / median(figure for figure, *_ in harmless)
        row = f"{name:24} {rate / 1e3:5.0f}/ms {mbit:8.0f} {share:12.2f}"
        print(f"{row}  {hostile[-1][2]}", flush=True)


if __name__ == "__main__":
    main()
