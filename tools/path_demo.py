"""Show a large transfer that survives what paths do: shrink, rebind, and change.

    vm1 ---- r1 ---- r2 ---- vm2
      \\______________/

r1 is a NAT router, vm1 a host behind it, and the lower link another network into which
vm1 goes at the end.  vm2 knows no address of vm1, only its key.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from tools.daemons import Daemon, ending, serving
from tools.lab import Host, Lab, LabError
from tools.stage import alpha_trio, heading, show, show_command

SIZE = 48 << 20  # bytes of the file
MEGABITS = 24  # of the slowest link, so that the file takes its time
NARROW = 1280  # bytes that a packet may have where the path has shrunk
PATIENCE = 15  # seconds in which data must flow again
INSIDE = "10.9.0.1", "10.9.0.2"  # vm1's and vm2's addresses in the tunnel
PORT = 2323
_LOOK = 0.5  # seconds between two looks at a transfer
_STANDING = 16 << 10  # bytes in that time, or less: it stands still

# linux/netfilter/nfnetlink.h: no attributes, so every entry is meant.
_NETLINK_NETFILTER = 12
_CT_DELETE = 1 << 8 | 2
_REQUEST_AND_ACK = 0x1 | 0x4
_FLUSH = struct.pack("=IHHIIBBH", 20, _CT_DELETE, _REQUEST_AND_ACK, 1, 0, 0, 0, 0)


@define(eq=False)
class Transfer:
    """A file on its way from one host to the other, and what the daemons say of it."""

    one: Daemon
    two: Daemon
    source: Path
    target: Path
    _begun: float = field(factory=time.monotonic)

    @property
    def arrived(self) -> int:
        """Bytes that vm2 has."""
        return self.target.stat().st_size

    def wait_beyond(self, size: int, what: str) -> None:
        """Wait until so many bytes have arrived; LabError when they do not come.

        What the daemons say is shown at the start, while all stands still, and when
        data flows again.
        """
        self.show_status()
        last, since, told = self.arrived, time.monotonic(), False
        while self.arrived < size:
            time.sleep(_LOOK)
            now = self.arrived
            if now - last > _STANDING:
                since = time.monotonic()
            elif not told:
                self.show_status()
                told = True
            last = now
            if time.monotonic() - since > PATIENCE:
                self.show_status()
                raise LabError(
                    f"{what}, and for {PATIENCE} s nothing has arrived: "
                    "this tunnel does not get over it"
                )
        self.show_status()

    def show_status(self) -> None:
        """One line: how far the file is, and how each daemon sees the other."""
        at = f"{time.monotonic() - self._begun:5.1f} s {self.arrived / 1e6:5.1f} MB"
        show(f"{at}  {_seen(self.one, 'vm2')}\n{'':17} {_seen(self.two, 'vm1')}")


def _seen(daemon: Daemon, name: str) -> str:
    """How a daemon sees its peer."""
    (peer,) = daemon.status()["peers"]
    rtt = f"{peer['rtt_ms']:.1f} ms" if peer["rtt_ms"] is not None else "none"
    how = peer.get("mtu_source", "not probed")
    return (
        f"{name} {peer['state']} at {peer['endpoint'] or 'no address'},"
        f" MTU {peer['mtu']} ({how}), rtt {rtt}"
    )


def run() -> None:
    """Go through the whole demo; raises LabError where something does not work."""
    with Lab(strict=False) as lab:
        heading("A host behind a NAT router, another router, and a host in the open")
        vm1, r1, r2, vm2 = _hosts(lab)
        print(f"vm1 {vm1.address} -- r1, which masquerades -- r2 -- vm2 {vm2.address}")
        one = Daemon(vm1, "--address", f"{INSIDE[0]}/24")
        two = Daemon(vm2, "--address", f"{INSIDE[1]}/24")
        _start(one, two)
        heading(f"vm1 sends a file of {SIZE / 1e6:.0f} MB, {MEGABITS} Mbit/s fit")
        with _sending(one, two) as transfer:
            transfer.wait_beyond(_step(), "The transfer has begun")
            narrow = f"The path shrinks to {NARROW} bytes, and no router says so"
            _happen(transfer, narrow, lambda: _shrink(r1, r2))
            rebound = "r1 forgets its mappings: vm1 has another port outside"
            _happen(transfer, rebound, lambda: _rebind(r1))
            _happen(transfer, "vm1 goes into another network", lambda: _move(vm1))
            heading("The file is there")
            _compare(transfer)
        _end((one, two))


def _hosts(lab: Lab) -> list[Host]:
    """The hosts of the picture, with the second link of vm1 not in use."""
    vm1, r1, r2, vm2 = hosts = lab.chain(2)
    lab.connect(vm1, r2)
    _ip(vm1, "addr add 192.168.20.60/24 dev eth1")
    _ip(r2, "addr add 192.168.20.1/24 dev eth2")
    _ip(vm1, "route add default via 192.168.10.2")
    _ip(vm2, "route add default via 192.168.12.1")
    # Nobody but r1 knows the network behind it.
    _ip(r2, "route del 192.168.10.0/24")
    _masquerade(r1, "masquerade")
    r2.limit_rate(MEGABITS, "eth1")
    return hosts


def _ip(host: Host, command: str) -> None:
    host.run("ip", *command.split())


def _masquerade(router: Host, action: str) -> None:
    """Translate what leaves r1 to the outside."""
    rules = (
        "add table ip nat\ndelete table ip nat\nadd table ip nat\n"
        "add chain ip nat post { type nat hook postrouting priority srcnat; }\n"
        f"add rule ip nat post oifname eth1 meta l4proto udp {action}\n"
    )
    router.run("nft", "-f", "-", stdin=rules)


def _start(one: Daemon, two: Daemon) -> None:
    """Start both, and let each know the other by its key."""
    for daemon in (one, two):
        show_command(daemon.host, f"alpha-trio run {' '.join(daemon.arguments)} &")
        daemon.start()
    keys = [daemon.cli("key", "show").stdout.strip() for daemon in (one, two)]
    endpoint = two.host.address
    alpha_trio(
        one, *f"peers add vm2 {endpoint} --key {keys[1]} --allow {INSIDE[1]}/32".split()
    )
    alpha_trio(two, *f"peers add vm1 --key {keys[0]} --allow {INSIDE[0]}/32".split())
    alpha_trio(one, "wait", "vm2", "--timeout", "10")


@contextmanager
def _sending(one: Daemon, two: Daemon) -> Iterator[Transfer]:
    """Send a file by nc within the block."""
    source, target = one.host.directory / "file", two.host.directory / "file"
    source.write_bytes(os.urandom(SIZE))
    show_command(two.host, f"nc -l {PORT} >file &")
    show_command(one.host, f"nc -N {INSIDE[1]} {PORT} <file &")
    with (
        target.open("wb") as output,
        serving(two.host, "tcp", PORT, "nc", "-l", str(PORT), stdout=output),
        source.open("rb") as content,
        ending(_nc(one.host, content.fileno())),
    ):
        yield Transfer(one, two, source, target)


def _nc(host: Host, content: int) -> subprocess.Popen[str]:
    return host.popen("nc", "-N", INSIDE[1], str(PORT), stdin=content)


def _happen(transfer: Transfer, text: str, act: Callable[[], None]) -> None:
    """Let something happen to the path, and see data flow again."""
    heading(text)
    act()
    transfer.wait_beyond(transfer.arrived + _step(), text)


def _step() -> int:
    """Bytes that show that data flows, and are between two events."""
    return SIZE // 8


def _shrink(*routers: Host) -> None:
    """Make the link between the routers narrow, and let neither speak of it."""
    silence = (
        "table inet silent { chain out { type filter hook output priority 0;"
        " icmp type destination-unreachable drop;"
        " icmpv6 type packet-too-big drop; }; }"
    )
    for router, port in zip(routers, ("eth1", "eth0"), strict=True):
        router.run("nft", "-f", "-", stdin=silence)
        show_command(router, f"ip link set {port} mtu {NARROW}")
        _ip(router, f"link set {port} mtu {NARROW}")


def _rebind(router: Host) -> None:
    """Give vm1 another port outside, as after a restart of the router."""
    show_command(router, "conntrack --flush")
    _masquerade(router, "masquerade to :40000-40999")
    with router.socket(
        socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER
    ) as kernel:
        kernel.send(_FLUSH)
        (code,) = struct.unpack_from("=i", kernel.recv(1 << 12), 16)
    if code:
        raise LabError(f"{router.name}: mappings not flushed: {os.strerror(-code)}")


def _move(host: Host) -> None:
    """Take the first link away, and use the other."""
    for command in (
        "addr flush dev eth0",
        "link set eth0 down",
        "route replace default via 192.168.20.1",
    ):
        show_command(host, f"ip {command}")
        _ip(host, command)


def _compare(transfer: Transfer) -> None:
    """Wait for the end of the file, and compare it with what was sent."""
    transfer.wait_beyond(SIZE, "Most of the file has arrived")
    wanted, got = (
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (transfer.source, transfer.target)
    )
    show_command(transfer.one.host, "sha256sum file")
    show(wanted)
    show_command(transfer.two.host, "sha256sum file")
    show(got)
    if wanted != got:
        raise LabError("the file that arrived is another")


def _end(daemons: Sequence[Daemon]) -> None:
    """Stop both, and see that nothing of theirs is left."""
    heading("Both stop, and leave nothing behind")
    for daemon in daemons:
        alpha_trio(daemon, "stop")
        code = daemon.wait()
        left = [
            line
            for line in daemon.host.snapshot().splitlines()
            if "alpha0" in line or "proto 161" in line
        ]
        if code or left:
            raise LabError(f"{daemon.host.name}: exit code {code}, left: {left}")
