"""Other tunnels in user space, as the benchmark runs them.

They are those of Debian's packages, or of a binary whose path is given.

Each has the settings its package comes with, apart from addresses, keys and what a
comment below explains; the keys are made anew every time.  What is written lies in the
hosts' folders and goes with them; devices, addresses and routes go with the processes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from tools import measure
from tools.contenders import Session
from tools.daemons import ending
from tools.lab import Host, LabError, wait_until

_START_TIMEOUT = 30  # seconds until the first echo reply through the tunnel
_ECHO_INTERVAL = 0.02  # seconds between echo requests until there is a reply
# Each session is a network of its own.  What the kernel still repeats of connections
# through the one before, the end of one that was not acknowledged, would be the first
# packet through this one, from the wrong side: two handshakes of WireGuard's that cross
# undo one another, and are begun anew after five seconds.
_NETWORKS = itertools.count()
_WIREGUARD_SOCKETS = Path("/run/wireguard")

Command = tuple[str, ...]


@frozen
class End:
    """One end of a tunnel."""

    host: Host
    device: str  # name of its TUN device, no other on this machine
    inner: str  # its address inside the tunnel
    folder: Path  # for its configuration, keys and log

    @property
    def log(self) -> Path:
        """What its daemon writes."""
        return self.folder / "log"


Ends = tuple[End, End]  # vm1's, vm2's
Process = subprocess.Popen[str]


def _nothing_more(_end: End) -> None:
    """It has set itself up."""


@frozen
class OtherTunnel:
    """A contender that is somebody else's program."""

    name: str
    packages: str  # of Debian
    programs: Sequence[str]  # it needs these; the first is the daemon
    # Makes files for a daemon of this name or path; returns what to run.
    prepare: Callable[[Ends, str], Sequence[Command]]
    set_up: Callable[[End], None] = _nothing_more  # when the device is there
    has_path: bool = False  # whether the daemon is one whose path was given

    def at(self, path: str) -> OtherTunnel:
        """Return the same with the daemon at this path."""
        programs = [os.path.abspath(path), *self.programs[1:]]
        return evolve(self, programs=programs, has_path=True)

    @property
    def missing(self) -> list[str]:
        """Programs it needs that are not installed."""
        return [program for program in self.programs if not shutil.which(program)]

    @property
    def version(self) -> str:
        """Version of its package; empty where it was installed in another way.

        Of a binary its path and what it says of itself.
        """
        if self.has_path:
            return f"{self.programs[0]} ({_told_version(self.programs[0])})"
        if not shutil.which("dpkg-query"):
            return ""
        package = self.packages.split()[0]
        query = ("dpkg-query", "--show", "--showformat=${Version}", package)
        return subprocess.run(query, capture_output=True, text=True).stdout

    @contextmanager
    def session(self, vm1: Host, vm2: Host, *_routers: Host) -> Iterator[Session]:
        """Make keys, start it on both hosts, wait for an echo reply."""
        network = f"172.30.{next(_NETWORKS) % 256}"
        ends = self._end(vm1, network, 1), self._end(vm2, network, 2)
        commands = self.prepare(ends, self.programs[0])
        start = time.monotonic()
        # The one that calls comes last: refused, it would try again in seconds only.
        with (
            self._at_work(ends[1], commands[1]) as two,
            self._at_work(ends[0], commands[0]) as one,
        ):
            _wait_for_reply(ends, one)
            taken = time.monotonic() - start
            pids = one.pid, two.pid
            figures = {
                "run_to_reply_s": taken,
                "rss_idle_mb": measure.resident_mb(pids),
            }
            yield Session(ends[1].inner, pids, figures)

    @contextmanager
    def _at_work(self, end: End, command: Command) -> Iterator[Process]:
        with end.log.open("w") as log:
            process = end.host.popen(*command, stdout=log, stderr=log, detached=True)
        with ending(process):
            _wait_for_device(end, process)
            self.set_up(end)
            yield process

    def _end(self, host: Host, network: str, number: int) -> End:
        folder = host.directory / self.name
        shutil.rmtree(folder, ignore_errors=True)  # of the round before
        folder.mkdir()
        return End(host, f"at{os.getpid()}-{number}", f"{network}.{number}", folder)


def _told_version(program: str) -> str:
    """Return the first line of what a program says when asked, in either way."""
    for option in ("--version", "-version"):
        done = subprocess.run([program, option], capture_output=True, text=True)
        if told := (done.stdout or done.stderr).strip():
            return told.splitlines()[0]
    return ""


def _wait_for_device(end: End, process: Process) -> None:
    show = ("ip", "link", "show", "dev", end.device)

    def is_there() -> bool:
        _insist(end, process)
        return end.host.run(*show, check=False).returncode == 0

    wait_until(is_there, f"{end.host.name}: {' '.join(show)}", _START_TIMEOUT)


def _wait_for_reply(ends: Ends, process: Process) -> None:
    end, other = ends
    measure.time_to_first_reply(
        end.host,
        other.inner,
        _START_TIMEOUT,
        every=_ECHO_INTERVAL,
        meanwhile=partial(_insist, end, process),
    )


def _insist(end: End, process: Process) -> None:
    """Raise LabError, with what it said, if a process has ended."""
    if process.poll() is not None:
        raise LabError(f"{end.host.name}: {_last_words(end)}")


def _last_words(end: End) -> str:
    lines = end.log.read_text(errors="replace").split("\n")
    return f"{end.folder.name} ended: " + " / ".join(filter(None, lines[-6:]))


def _give_address(end: End) -> None:
    end.host.run("ip", "address", "add", f"{end.inner}/24", "dev", end.device)
    end.host.run("ip", "link", "set", end.device, "up")


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


# wireguard-go


def _prepare_wireguard(ends: Ends, program: str) -> list[Command]:
    private = [end.host.run("wg", "genkey").stdout for end in ends]
    public = [
        end.host.run("wg", "pubkey", stdin=key).stdout
        for end, key in zip(ends, private, strict=True)
    ]
    for number, end in enumerate(ends):
        other = ends[1 - number]
        _write_secret(
            end.folder / "wg.conf",
            f"[Interface]\nPrivateKey = {private[number]}ListenPort = 51820\n"
            f"[Peer]\nPublicKey = {public[1 - number]}AllowedIPs = {other.inner}/32\n"
            f"Endpoint = {other.host.address}:51820\n",
        )
    return [(program, "--foreground", end.device) for end in ends]


def _set_up_wireguard(end: End) -> None:
    # It makes the device first, then the socket by which wg reaches it.
    control = _WIREGUARD_SOCKETS / f"{end.device}.sock"
    wait_until(control.exists, f"{end.host.name}: {control}")
    end.host.run("wg", "setconf", end.device, str(end.folder / "wg.conf"))
    _give_address(end)


# openvpn


def _prepare_openvpn(ends: Ends, program: str) -> list[Command]:
    for end in ends:
        end.host.run(*_make_certificate(end))
    one, two = ends
    return [
        (*_openvpn(program, one, two), "--tls-client"),
        (*_openvpn(program, two, one), "--tls-server", "--dh", "none"),
    ]


def _make_certificate(end: End) -> Command:
    key, certificate = str(end.folder / "key"), str(end.folder / "certificate")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", key, "-out", certificate)
    return ("openssl", "req", "-x509", *kind, *files, "-subj", f"/CN={end.host.name}")


def _openvpn(program: str, end: End, other: End) -> Command:
    options = {
        "dev": end.device,
        "dev-type": "tun",
        "proto": "udp4",
        "remote": other.host.address,
        "ifconfig": f"{end.inner} {other.inner}",
        "cert": str(end.folder / "certificate"),
        "key": str(end.folder / "key"),
        "peer-fingerprint": _fingerprint(other.folder / "certificate"),
        "data-ciphers": "AES-256-GCM",
    }
    words = [f"--{name} {value}" for name, value in options.items()]
    return (program, *" ".join(words).split(), "--disable-dco")


def _fingerprint(certificate: Path) -> str:
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return hashlib.sha256(der).digest().hex(":")


# tinc


def _prepare_tinc(ends: Ends, program: str) -> list[Command]:
    for end in ends:
        _write_tinc_files(program, end)
    one, two = ends
    for end, other in (one, two), (two, one):
        shutil.copy(other.folder / "hosts" / other.host.name, end.folder / "hosts")
    with (one.folder / "tinc.conf").open("a") as config:
        config.write(f"ConnectTo = {two.host.name}\n")
    return [(*_tincd(program, end), "--no-detach") for end in ends]


def _write_tinc_files(program: str, end: End) -> None:
    (end.folder / "hosts").mkdir()
    (end.folder / "tinc.conf").write_text(
        f"Name = {end.host.name}\nInterface = {end.device}\nMode = router\n"
        "AddressFamily = ipv4\n"
    )
    # Left to find out the path MTU it takes 6 s, under load longer, and sends larger
    # packets by TCP until then; this is what it finds on a 1500-byte link.
    (end.folder / "hosts" / end.host.name).write_text(
        f"Address = {end.host.address}\nSubnet = {end.inner}/32\n"
        "PMTUDiscovery = no\nPMTU = 1451\n"
    )
    end.host.run(*_tincd(program, end), "--generate-keys=2048")


def _tincd(program: str, end: End) -> Command:
    return (program, f"--config={end.folder}", f"--pidfile={end.folder / 'pid'}")


# nebula


def _prepare_nebula(ends: Ends, program: str) -> list[Command]:
    authority = ends[0].folder
    ends[0].host.run(*_in(authority, "nebula-cert ca -name benchmark"))
    for end in ends:
        files = f"-out-crt {end.folder}/host.crt -out-key {end.folder}/host.key"
        sign = f"nebula-cert sign -name {end.host.name} -ip {end.inner}/24 {files}"
        end.host.run(*_in(authority, sign))
    one, two = ends
    return [
        _nebula(program, one, two, authority),
        _nebula(program, two, one, authority),
    ]


def _in(folder: Path, command: str) -> Command:
    return ("env", f"--chdir={folder}", *command.split())


def _nebula(program: str, end: End, other: End, authority: Path) -> Command:
    everything = [{"port": "any", "proto": "any", "host": "any"}]
    config = {
        "pki": {
            "ca": f"{authority}/ca.crt",
            "cert": f"{end.folder}/host.crt",
            "key": f"{end.folder}/host.key",
        },
        "static_host_map": {other.inner: [f"{other.host.address}:4242"]},
        "lighthouse": {"am_lighthouse": False},
        "listen": {"host": "0.0.0.0", "port": 4242},
        "tun": {"dev": end.device},
        "firewall": {"outbound": everything, "inbound": everything},
    }
    file = end.folder / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return (program, "-config", str(file))


OTHERS = {
    tunnel.name: tunnel
    for tunnel in (
        OtherTunnel(
            "wireguard-go",
            "wireguard-go wireguard-tools",
            ("wireguard-go", "wg"),
            _prepare_wireguard,
            _set_up_wireguard,
        ),
        OtherTunnel(
            "openvpn", "openvpn openssl", ("openvpn", "openssl"), _prepare_openvpn
        ),
        OtherTunnel("tinc", "tinc", ("tincd",), _prepare_tinc, _give_address),
        OtherTunnel("nebula", "nebula", ("nebula", "nebula-cert"), _prepare_nebula),
    )
}
