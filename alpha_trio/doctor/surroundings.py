"""Kernel, clock, links, NAT, and what else on this host leads packets somewhere."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

from alpha_trio.doctor.finding import Check
from alpha_trio.errors import RoutingError
from alpha_trio.net.routing import rules_before
from alpha_trio.settings import Backend, Settings

_LINKS = Path("/sys/class/net")

# linux/sockios.h and linux/if.h
_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_IFF_RUNNING = 0x40
_IFREQ = struct.Struct("16sI20x")

_BY_PROTOCOL = (4, 17)  # since then rules can ask for protocol and ports
_WRITTEN = 1_700_000_000  # seconds; an earlier time of day is before this program

_IPV6_INSIDE = 1392  # bytes of a path over IPv6 that takes packets of 1280 inside

_OUTSIDE = "192.0.2.1"  # RFC 5737; nothing is sent there
_CARRIER = ip_network("100.64.0.0/10")  # RFC 6598

_TUNNELS = (
    (r"wg\d+", "WireGuard"),
    (r"tailscale\d+", "Tailscale"),
    (r"zt\w+", "ZeroTier"),
    (r"nebula\d+", "Nebula"),
    (r"(ipsec|xfrm|vti)\d+", "IPsec"),
    (r"tun\d+|tap\d+", "OpenVPN or the like"),
)
_MOST = 5  # of others' rules are shown


def checks(settings: Settings) -> Iterator[Check]:
    """What is found around the daemon."""
    yield _kernel(settings)
    yield _clock()
    yield from _links(settings)
    yield from _nat(settings)
    yield from _tunnels(settings)
    yield from _rules(settings)


def _kernel(settings: Settings) -> Check:
    release = os.uname().release
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers >= _BY_PROTOCOL or settings.routing.backend is not Backend.RULES:
        return Check(True, f"kernel {release} has all that is needed")
    return Check(
        False,
        f"kernel {release} has no rules by protocol and port",
        'use Linux 4.17 or newer, or backend = "marks" under [routing]',
    )


def _clock() -> Check:
    if time.time() >= _WRITTEN:
        return Check(True, "clock: set; keys and sessions do not need it, only the log")
    return Check(
        None,
        "clock: not set, so the log has wrong dates; keys and sessions do not need it",
        "set it, as by systemd-timesyncd",
    )


def _links(settings: Settings) -> Iterator[Check]:
    """The links that carry packets, and what IPv6 inside needs."""
    takes: dict[str, int] = {}
    for name in _interfaces(settings):
        mtu = None if _kind(name) else _mtu_if_up(name)
        if mtu is not None:
            takes[name] = mtu
    narrow = {name: mtu for name, mtu in takes.items() if mtu < _IPV6_INSIDE}
    for name, mtu in narrow.items():
        yield Check(
            None,
            f"MTU: {name} takes {mtu} bytes, so larger packets of IPv6 inside go as "
            "fragments",
            f"if {name} can take more: ip link set {name} mtu 1500",
        )
    if takes and not narrow:
        said = ", ".join(f"{name} {mtu}" for name, mtu in takes.items())
        yield Check(True, f"MTU: {said}; what a path takes is found out by itself")
    if not takes:
        yield Check(None, "MTU: no link is up", "connect this host to a network")


def _nat(settings: Settings) -> Iterator[Check]:
    """What a private address towards the internet lets expect."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((_OUTSIDE, settings.port))
        except OSError:
            yield Check(
                None,
                "NAT: no IPv4 route leads to the internet; peers on this host's own "
                "networks need none",
            )
            return
        source = ip_address(probe.getsockname()[0])
    if source.is_private or source in _CARRIER:
        yield Check(
            None,
            f"NAT: this host is {source} towards the internet, so it is probably "
            "behind one, and peers outside cannot begin",
            f"forward UDP port {settings.port} to it; or let it begin: alpha-trio "
            "peers set NAME --keepalive 25",
        )
    else:
        yield Check(True, f"NAT: none, this host is {source} towards the internet")


def _tunnels(settings: Settings) -> Iterator[Check]:
    found = {name: _kind(name) for name in _interfaces(settings)}
    said = [f"{name} ({kind})" for name, kind in found.items() if kind]
    if said:
        yield Check(
            None,
            f"other tunnels: {', '.join(said)}; what both carry takes the way of the "
            "more specific route",
            "look at 'alpha-trio status': reason says if one of them has a peer's "
            "packets",
        )


def _interfaces(settings: Settings) -> list[str]:
    """All but the host's own and ours."""
    names = sorted(name for _, name in socket.if_nameindex())
    return [name for name in names if name not in ("lo", settings.interface)]


def _mtu_if_up(name: str) -> int | None:
    """The MTU of an interface that carries packets."""
    request = _IFREQ.pack(name.encode(), 0)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, request)
            if not _IFREQ.unpack(answer)[1] & _IFF_RUNNING:
                return None
            mtu: int = _IFREQ.unpack(fcntl.ioctl(asking, _SIOCGIFMTU, request))[1]
        except OSError:  # gone meanwhile
            return None
    return mtu


def _kind(name: str) -> str:
    """Whose tunnel an interface is; nothing if it is none."""
    # What is mounted at /sys may be another namespace's.
    if "DEVTYPE=wireguard" in _read(_LINKS / name / "uevent"):
        return "WireGuard"
    return next((who for form, who in _TUNNELS if re.fullmatch(form, name)), "")


def _rules(settings: Settings) -> Iterator[Check]:
    if settings.routing.backend is Backend.NONE:
        return
    try:
        rules = rules_before(settings)
    except (RoutingError, OSError) as error:
        yield Check(None, f"rules of other software: cannot be seen: {error}")
        return
    for rule in rules[:_MOST]:
        yield Check(
            None,
            f"rule of other software before ours: '{rule}'; what it leads elsewhere "
            "does not take the tunnel",
            f"if that is not meant, move it behind {settings.routing.priority + 27}",
        )
    if len(rules) > _MOST:
        yield Check(None, f"{len(rules) - _MOST} more such rules: see 'ip rule'")
    if not rules:
        yield Check(True, "no rule of other software comes before ours")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # gone meanwhile, or it says nothing
        return ""
