"""Hosts as network namespaces: the ground tests, demo and benchmark stand on.

    with Lab() as lab:
        vm1, vm2 = lab.lan(2)              # 192.168.10.60 and 192.168.10.61
        vm1.run("ping", "-c", "1", vm2.address)

``daemons.py`` has what runs on them.

Every namespace is called ``at-OWNER-RANDOM-HOST``.  OWNER is the pid of the
process that made it, so that the next lab can tell what a killed run left behind,
or ``keep`` for hosts that are meant to outlive their maker (``tools/lab down``
removes those).  Needs root.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NoReturn, Protocol, Self, TypeVar

from attrs import define, field

from alpha_trio.errors import AlphaTrioError
from tools import delay

T = TypeVar("T")
Wire = Callable[[Sequence["Host"], Sequence[str]], None]
"""Makes the two ends of a link, with these names, on these two hosts."""

NAMESPACES = Path("/run/netns")  # where ip-netns keeps its names
DIRECTORIES = Path("/run/alpha-trio-lab")  # sockets, state and logs, one folder a lab

_LAB_NAME = re.compile(r"(at-(\d+|keep)-[0-9a-f]{6})(-\w+)?")
_CLONE_NEWNET = 0x40000000
# Bytes: least, at first, at most.  The kernel's own limits of some MiB, not the path,
# would decide how fast TCP is over a link with a delay.
_LONG_PATH_WINDOWS = "4096 131072 67108864"
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(AlphaTrioError):
    """A host, a command on it or a daemon did not do what the lab asked for."""


def wait_until(condition: Callable[[], T], what: str, timeout: float = 10) -> T:
    """What ``condition()`` is once it is true; LabError(what) after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)
    return found


def _execute(
    command: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 30,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            input=stdin,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)}: not done in {timeout:g} s") from error
    if check and done.returncode != 0:
        text = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(command)}: exit {done.returncode}: {text}")
    return done


def _ip(*arguments: str) -> str:
    return _execute(("ip", *arguments)).stdout


class _Process(Protocol):
    """What runs on a host and is killed with it; its context waits for its end."""

    def kill(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: Any) -> object: ...


@define(eq=False)
class Host:
    """A host of the lab: a network namespace with addresses of its own."""

    name: str
    namespace: str
    directory: Path  # for files of programs that run on this host
    address: str = ""  # IPv4 address of the first link
    address6: str = ""  # IPv6 address of the first link
    ports: list[str] = field(factory=list)  # names of its links: eth0, eth1 ...
    _processes: list[_Process] = field(factory=list)

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = 30,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, at most ``timeout`` s, and return its output.

        LabError when it takes longer or, unless ``check`` is false, when it fails.
        """
        return _execute(
            self.inside(*command), check=check, timeout=timeout, stdin=stdin, env=env
        )

    def popen(
        self,
        *command: str,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        detached: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[str]:
        """Start a command here; its pid is the command's own.

        It is killed with the host at the latest.  ``detached``: a signal to the
        caller's terminal does not reach it.  ``pass_fds``: open files it inherits.
        """
        process = subprocess.Popen(
            self.inside(*command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            text=True,
            start_new_session=detached,
            pass_fds=pass_fds,
        )
        self._processes.append(process)
        return process

    def end_with(self, process: _Process) -> None:
        """Kill it with the host, as what ``popen`` started."""
        self._processes.append(process)

    def inside(self, *command: str) -> tuple[str, ...]:
        """Return the command line that runs ``command`` here."""
        return ("ip", "netns", "exec", self.namespace, *command)

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread that lives in this host's namespace.

        What it opens there (sockets, a TUN device) stays there.
        """

        def enter_and_call() -> T:
            with (NAMESPACES / self.namespace).open() as namespace:
                if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), self.namespace)
            return function()

        # The thread ends with the call: no other code ever runs in this namespace.
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(enter_and_call).result()

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_DGRAM,
        proto: int = 0,
    ) -> socket.socket:
        """Open a socket of this host in the calling process."""
        return self.call(lambda: socket.socket(family, kind, proto))

    def sysctl(self, name: str, value: object = None) -> str:
        """Read ``net.ipv4.conf.all.rp_filter`` and the like; set it first if given.

        A link whose name has a dot in it is written with a slash there.
        """
        path = Path("/proc/sys", name.translate(str.maketrans("./", "/.")))

        def access() -> str:
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

        return self.call(access)

    def snapshot(self) -> str:
        """Return all that a tunnel could change here, as text to compare."""
        commands = (
            "ip addr",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
        )
        parts = [f"# {text}\n{self.run(*text.split()).stdout}" for text in commands]
        return "\n".join([*parts, "# sysctl", *self.call(_interface_sysctls)])

    def lose(self, share: float, match: str = "") -> None:
        """Drop this share (0 to 1) of arriving packets, or of those nft calls so.

        0 ends it.  ``match`` is an nft expression such as ``udp dport 1234``.
        """
        rules = "add table inet lab_loss; delete table inet lab_loss\n"
        if share:
            rules += (
                "add table inet lab_loss\n"
                "add chain inet lab_loss arriving"
                " { type filter hook prerouting priority -400; }\n"
                f"add rule inet lab_loss arriving {match}"
                f" numgen random mod 10000 <= {round(share * 10000) - 1} drop\n"
            )
        self.run("nft", "-f", "-", stdin=rules)

    def limit_rate(self, megabits: float, port: str = "eth0") -> None:
        """Let this host send at most so many Mbit/s on a link; 0 ends it."""
        qdisc = ("tc", "qdisc", "replace", "dev", port, "root")
        if megabits:
            shape = f"tbf rate {megabits}mbit burst 64kb latency 50ms"
            self.run(*qdisc, *shape.split())
        else:
            self.run("tc", "qdisc", "del", "dev", port, "root")

    def end_processes(self) -> None:
        """Kill whatever still runs here."""
        _kill_all(self.namespace)
        for process in self._processes:
            with process:  # closes its pipes and waits for it
                process.kill()
        self._processes.clear()


def _interface_sysctls() -> list[str]:
    """Return ``path = value`` of every per-interface setting, sorted."""
    lines = []
    for folder in ("/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"):
        for path in sorted(Path(folder).glob("*/*")):
            try:
                lines.append(f"{path} = {path.read_text().strip()}")
            except OSError:
                continue  # stable_secret cannot be read before it is set
    return lines


class Lab:
    """Owner of hosts and links; as a context manager removes all of them again."""

    def __init__(self, *, keep: bool = False, strict: bool = True) -> None:
        """Make an empty lab; ``keep``: let it outlive this process, see ``remove``.

        ``strict``: whether the reverse-path filters of its hosts are, or loose.  What
        killed runs left behind is removed first.
        """
        if os.geteuid() != 0:
            raise LabError("hosts as network namespaces need root; run it with sudo")
        self._keep = keep
        self._rp_filter = 1 if strict else 2
        self._hosts: list[Host] = []
        remove(_is_abandoned)
        owner = "keep" if keep else os.getpid()
        self.name = f"at-{owner}-{secrets.token_hex(3)}"
        self.directory = DIRECTORIES / self.name
        self.directory.mkdir(mode=0o700, parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if not self._keep or error is not None:
            self.close()

    def close(self) -> None:
        """Remove all hosts and their files, and end what runs on them."""
        for host in self._hosts:
            host.end_processes()
        self._hosts.clear()
        remove(lambda name, _: name == self.name)

    def host(self, name: str) -> Host:
        """Add a host without links."""
        directory = self.directory / name
        directory.mkdir()
        host = Host(name, f"{self.name}-{name}", directory)
        _ip("netns", "add", host.namespace)
        self._hosts.append(host)
        for scope in ("all", "default"):
            host.sysctl(f"net.ipv4.conf.{scope}.rp_filter", self._rp_filter)
            # Usable at once, not after a second of asking who else has the address.
            host.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        return host

    def connect(
        self,
        left: Host,
        right: Host,
        *,
        mtu: int = 1500,
        delay_ms: float = 0,
        loss: float = 0,
        wire: Wire | None = None,
    ) -> tuple[str, str]:
        """Join two hosts by a link without addresses; return the names of its ends.

        ``delay_ms``: how long a packet takes in either direction.  ``loss``: share of
        the packets that get lost in either direction, 0 to 1.  ``wire``: makes the
        link in place of either; ``tools/attacker.py`` has some.
        """
        ends = left, right
        ports = f"eth{len(left.ports)}", f"eth{len(right.ports)}"
        if wire is None:
            wire = join
            if delay_ms or loss:
                wire = partial(_join_slowly, delay_ms=delay_ms, loss=loss)
        wire(ends, ports)
        for host, port in zip(ends, ports, strict=True):
            host.ports.append(port)
            _ip("-n", host.namespace, "link", "set", port, "mtu", str(mtu), "up")
        return ports

    def lan(
        self, count: int = 2, *, mtu: int = 1500, delay_ms: float = 0, loss: float = 0
    ) -> list[Host]:
        """Add vm1, vm2 ... on one Ethernet: 192.168.10.60 and fd00:10::60 onwards.

        Two hosts have one link between them, more have a switch.  ``delay_ms``: how
        long a packet takes from any host to any other.  ``loss``: share of the packets
        that get lost on a link, to a switch as well, in either direction, 0 to 1.
        """
        hosts = [self.host(f"vm{number}") for number in range(1, count + 1)]
        if count == 2:
            self.connect(*hosts, mtu=mtu, delay_ms=delay_ms, loss=loss)
        else:
            self._plug_into_switch(hosts, mtu, delay_ms / 2, loss)
        for number, host in enumerate(hosts):
            _assign(host, "eth0", 10, 60 + number)
        return hosts

    def chain(
        self,
        routers: int = 1,
        *,
        mtu: int = 1500,
        delay_ms: float = 0,
        loss: float = 0,
        wires: Mapping[int, Wire] = MappingProxyType({}),
    ) -> list[Host]:
        """Add vm1 - r1 - r2 ... - vm2, each link a network, routers forwarding.

        vm1 is 192.168.10.60 and vm2 has 61 in the last network, 192.168.(10+n).0;
        on the links between, the left end has 1 and the right end 2.  ``delay_ms``:
        how long a packet takes over each link.  ``loss``: share of the packets that
        get lost on each link, 0 to 1.  ``wires``: who makes which of the links,
        counted from 0 at vm1, see ``connect``.
        """
        names = ["vm1", *(f"r{number}" for number in range(1, routers + 1)), "vm2"]
        hosts = [self.host(name) for name in names]
        last = len(hosts) - 1
        for number in range(last):
            left, right = hosts[number : number + 2]
            wire = wires.get(number)
            ports = self.connect(
                left, right, mtu=mtu, delay_ms=delay_ms, loss=loss, wire=wire
            )
            _assign(left, ports[0], 10 + number, 60 if number == 0 else 1)
            _assign(right, ports[1], 10 + number, 61 if number + 1 == last else 2)
        _route_chain(hosts)
        return hosts

    def _plug_into_switch(
        self, hosts: Sequence[Host], mtu: int, delay_ms: float, loss: float
    ) -> None:
        switch = self.host("switch")
        _ip("-n", switch.namespace, "link", "add", "br0", "up", "type", "bridge")
        for host in hosts:
            _, port = self.connect(host, switch, mtu=mtu, delay_ms=delay_ms, loss=loss)
            _ip("-n", switch.namespace, "link", "set", port, "master", "br0")


def join(ends: Sequence[Host], ports: Sequence[str]) -> None:
    """A wire: a pair of veth devices."""
    sides = [
        ("name", port, "netns", host.namespace)
        for host, port in zip(ends, ports, strict=True)
    ]
    _ip("link", "add", *sides[0], "type", "veth", "peer", *sides[1])


def _join_slowly(
    ends: Sequence[Host], ports: Sequence[str], delay_ms: float, loss: float
) -> None:
    """Make a TAP device on each host, and start what carries frames between them."""
    taps: list[int] = []
    try:
        for host, port in zip(ends, ports, strict=True):
            taps.append(host.call(partial(delay.open_tap, port)))
            for setting in ("tcp_rmem", "tcp_wmem"):
                host.sysctl(f"net.ipv4.{setting}", _LONG_PATH_WINDOWS)
        program = (sys.executable, delay.__file__, *map(str, (*taps, delay_ms, loss)))
        ends[0].popen(*program, detached=True, pass_fds=taps)
    finally:
        for tap in taps:
            os.close(tap)


def _assign(host: Host, port: str, network: int, number: int) -> None:
    """Give a link its addresses and wait until it can be used."""
    address, address6 = f"192.168.{network}.{number}", f"fd00:{network}::{number}"
    _ip("-n", host.namespace, "addr", "add", f"{address}/24", "dev", port)
    _ip("-n", host.namespace, "addr", "add", f"{address6}/64", "dev", port)
    host.address, host.address6 = host.address or address, host.address6 or address6
    # The kernel adds the link-local address when both ends are up, a moment later; a
    # snapshot taken before would differ from one taken after.
    usable = f"-n {host.namespace} -6 addr show dev {port} scope link -tentative"
    wait_until(lambda: _ip(*usable.split()), f"{host.name}: link-local address")


def _route_chain(hosts: Sequence[Host]) -> None:
    """Lead every network of a chain over the neighbour that is nearer to it."""
    last = len(hosts) - 1
    for position, host in enumerate(hosts):
        if 0 < position < last:
            host.sysctl("net.ipv4.ip_forward", 1)
            host.sysctl("net.ipv6.conf.all.forwarding", 1)
        for link in range(last):
            if link < position - 1:
                near, number = position - 1, 1
            elif link > position:
                near, number = position, 2
            else:
                continue  # one of its own links
            for net, via in (
                (f"192.168.{10 + link}.0/24", f"192.168.{10 + near}.{number}"),
                (f"fd00:{10 + link}::/64", f"fd00:{10 + near}::{number}"),
            ):
                _ip("-n", host.namespace, "route", "add", net, "via", via)


def remove(wanted: Callable[[str, str], bool]) -> list[str]:
    """Remove the labs for which ``wanted(name, owner)`` holds; return their names."""
    removed = set()
    for place in (NAMESPACES, DIRECTORIES):
        for path in place.iterdir() if place.is_dir() else ():
            match = _LAB_NAME.fullmatch(path.name)
            if match is None or not wanted(match[1], match[2]):
                continue
            removed.add(match[1])
            if place == NAMESPACES:
                _kill_all(path.name)
                # May be gone already: two labs can start at the same time.
                _execute(("ip", "netns", "del", path.name), check=False)
            else:
                shutil.rmtree(path, ignore_errors=True)
    return sorted(removed)


def _is_abandoned(_name: str, owner: str) -> bool:
    return owner != "keep" and not Path("/proc", owner).exists()


def _kill_all(namespace: str) -> None:
    pids = _execute(("ip", "netns", "pids", namespace), check=False).stdout
    for pid in pids.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue  # it was faster


def shell_command(host: Host, **settings: str) -> str:
    """Return what a person types to work on this host, with these variables set."""
    settings["PATH"] = f"{Path(sys.executable).parent}:$PATH"
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    return f"ip netns exec {host.namespace} env {words} sh"


def main(arguments: Sequence[str]) -> int:
    """Build two hosts that stay, or remove those that stayed."""
    parser = argparse.ArgumentParser(prog="tools/lab", description=main.__doc__)
    parser.add_argument(
        "down", nargs="?", choices=["down"], help="remove the hosts that stayed"
    )
    if parser.parse_args(arguments).down is None:
        return _up()
    names = remove(lambda _, owner: owner == "keep")
    print(f"Removed: {', '.join(names) or 'nothing, there were no hosts'}")
    return 0


def _up() -> int:
    with Lab(keep=True) as lab:
        for host in lab.lan(2):
            print(f"{host.name} is {host.address} and {host.address6}.  To work on it:")
            print(f"  {shell_command(host)}")
    print("To remove both:\n  tools/lab down")
    return 0


def run_tool(name: str, main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a tool's ``main`` with the arguments of this process, and end with it."""
    try:
        sys.exit(main(sys.argv[1:]))
    except AlphaTrioError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run_tool("tools/lab", main)
