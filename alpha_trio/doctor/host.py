"""Privileges, devices, sockets, limits, and the daemon's own files."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from alpha_trio.doctor import firewall, surroundings
from alpha_trio.doctor.finding import Check
from alpha_trio.errors import ConfigError, RoutingError, StartError
from alpha_trio.net import netfilter, tproxy
from alpha_trio.net.host import has_net_admin, has_net_raw
from alpha_trio.net.udp import set_transparent
from alpha_trio.proto.engine import NoEngine, find
from alpha_trio.proto.primitives import fingerprint
from alpha_trio.settings import Backend, Offload, Settings, files, load_settings
from alpha_trio.state import read_identity

_TUN = Path("/dev/net/tun")
_SYSCTL = Path("/proc/sys/net")

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")
# Each group needs those before it; the kernel takes USO for both families or none.
_TUN_OFFLOADS = {"checksums": 0x01, "tso": 0x02 | 0x04, "uso": 0x20 | 0x40}

# linux/udp.h and asm-generic/socket.h
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SO_RCVBUFFORCE = 33

_ENOUGH_BUFFER = 4 * 1024 * 1024  # bytes; bursts of several super-packets fit
_ENOUGH_FILES = 128  # as many as the daemon has open with all control clients
_RP_FILTER = {0: "off", 1: "strict", 2: "loose"}


def checks(settings: Settings) -> list[Check]:
    """Everything `alpha-trio run` with these settings depends on.

    Creates a TUN device for a moment where it may; otherwise only reads.
    """
    return [
        _config_file(settings),
        _privilege(),
        _engine(settings),
        _tun_device(),
        _tun_offloads(),
        _udp_offload(Offload.SEGMENT, _UDP_SEGMENT, 1400),
        _udp_offload(Offload.GRO, _UDP_GRO, 1),
        _socket_buffer(),
        _open_files(),
        _ipv6(),
        _forwarding(settings),
        *_reverse_path_filters(settings),
        _packet_filter(settings),
        *_source_checks(settings),
        *firewall.checks(settings.port),
        *surroundings.checks(settings),
        *_relay(settings),
        _state_directory(settings.state_dir),
        _key(settings.state_dir),
        _control_socket(settings.socket),
    ]


# The daemon's own files


def _config_file(settings: Settings) -> Check:
    if settings.config_file is None:
        return Check(True, "no config file, the defaults apply")
    try:
        load_settings(settings.config_file, {})
    except ConfigError as error:
        return Check(False, str(error), "correct the config file")
    return Check(True, f"config file {settings.config_file} is valid")


def _engine(settings: Settings) -> Check:
    try:
        choice = find(settings.engine)
    except NoEngine as error:
        return Check(False, str(error), 'use engine = "auto"')
    fact = f"packets are worked on by the {choice.name} engine ({choice.why})"
    if not choice.instead:
        return Check(True, fact)
    return Check(
        None,
        f"{fact}, which takes twice the CPU time",
        "install again where there is a C compiler and libcrypto's headers",
    )


def _state_directory(path: Path) -> Check:
    existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if existing.is_dir() and os.access(
        existing,
        os.W_OK | os.X_OK,
        effective_ids=os.access in os.supports_effective_ids,
    ):
        command = files.remedy(path, existing.stat(), files.WRITE)
        if existing == path and command is not None:
            return Check(
                False,
                f"state directory {path} can be written by others",
                f"forbid it: {command}",
            )
        absent = "" if existing == path else ", will be created"
        return Check(True, f"state directory {path} can be written{absent}")
    if _read_only(existing):
        what, remedy = "is on a file system that is read-only", "mount it writable"
    else:
        what, remedy = "is not a directory you can write to", "run as root"
    return Check(
        False,
        f"state directory {path}: {existing} {what}",
        f"{remedy}, or choose another place by --state-dir",
    )


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _key(path: Path) -> Check:
    try:
        found = read_identity(path)
    except StartError as error:
        bad = False if os.geteuid() == 0 else None  # others are not to read it
        return Check(bad, f"key: {error}")
    if found is None:
        return Check(True, "key: none yet; the first start makes one")
    return Check(True, f"key: fingerprint {fingerprint(found.public)}")


def _control_socket(path: Path) -> Check:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return Check(None, f"no daemon answers at {path}", "start: alpha-trio run")
    except BlockingIOError:  # the queue of connections is full
        return Check(
            False,
            f"the daemon at {path} is there but takes no connections",
            "look at its log; restart it if it hangs",
        )
    except PermissionError:
        return Check(
            None,
            f"control socket {path} is not for you",
            "run as root, or join the group named by socket_group; status and the like "
            "work for that of status_group",
        )
    except OSError as error:
        return Check(
            False,
            f"control socket {path} cannot be used: {error.strerror or error}",
            "choose another path by --socket",
        )
    return Check(True, f"a daemon answers at {path}")


# Privilege and the TUN device


def _privilege() -> Check:
    if has_net_admin():
        return Check(True, "CAP_NET_ADMIN is held")
    return Check(
        False,
        "CAP_NET_ADMIN is missing: no interface, rule or route can be set",
        "run as root, or give the service the capability "
        "(systemd: AmbientCapabilities=CAP_NET_ADMIN)",
    )


def _tun_device() -> Check:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Check(False, f"{_TUN}: {error.strerror}", _tun_remedy(error))
    return Check(True, f"{_TUN} can be opened")


def _tun_remedy(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"run as root, or allow the service the device (DeviceAllow={_TUN} rw)"
    return f"load the module: modprobe tun (in a container: --device {_TUN})"


def _tun_offloads() -> Check:
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return Check(None, "TUN offloads: unknown without the device")
    try:
        accepted = _accepted_offloads(fd)
    except OSError as error:
        return Check(None, f"TUN offloads: unknown, no device: {error.strerror}")
    finally:
        os.close(fd)
    missing = [name for name in _TUN_OFFLOADS if name not in accepted]
    if missing:
        return Check(
            None,
            f"TUN offloads: the kernel lacks {', '.join(missing)}",
            "a newer kernel is faster (tso and checksums 2.6.27, uso 6.2)",
        )
    return Check(True, f"TUN offloads: {', '.join(accepted)}")


def _accepted_offloads(fd: int) -> list[str]:
    """Offload groups the kernel takes, tried on a device that vanishes with ``fd``."""
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(b"alphadoctor%d", flags))
    accepted: list[str] = []
    mask = 0
    for name, bits in _TUN_OFFLOADS.items():
        mask |= bits
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, mask)
        except OSError:
            break
        accepted.append(name)
    return accepted


# UDP sockets


def _udp_offload(offload: Offload, option: int, value: int) -> Check:
    with closing(_udp_socket()) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return Check(
                None,
                f"UDP {offload}: the kernel lacks it",
                "a newer kernel is faster (segment 4.18, gro 5.0)",
            )
    return Check(True, f"UDP {offload} is available")


def _udp_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:  # a kernel without IPv4 is rare, but legal
        return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


def _socket_buffer() -> Check:
    granted = _granted_buffer()
    if granted >= _ENOUGH_BUFFER:
        return Check(True, f"socket buffers of {granted >> 20} MiB are granted")
    return Check(
        None,
        f"socket buffers: only {granted >> 10} KiB are granted; bursts may be lost",
        f"run with CAP_NET_ADMIN, or sysctl -w net.core.rmem_max={_ENOUGH_BUFFER} "
        f"net.core.wmem_max={_ENOUGH_BUFFER}",
    )


def _granted_buffer() -> int:
    """Bytes of receive buffer this process gets when it asks for enough."""
    with closing(_udp_socket()) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ENOUGH_BUFFER)
        except PermissionError:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ENOUGH_BUFFER)
        # The kernel doubles what it grants, for its own overhead.
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def _open_files() -> Check:
    """The daemon raises its soft limit by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _ENOUGH_FILES:
        return Check(True, "open files: the limit is high enough")
    return Check(
        None,
        f"open files: the limit is {hard}; fewer control clients are served",
        f"raise it to {_ENOUGH_FILES} (ulimit -Hn, systemd: LimitNOFILE)",
    )


# The host's network


def _sysctl(name: str) -> int | None:
    """A number below ``/proc/sys/net``; None if it cannot be seen."""
    try:
        return int((_SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None


def _ipv6() -> Check:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return Check(None, "IPv6 is not in this kernel: peers by IPv4 only")
    if _sysctl("ipv6/conf/all/disable_ipv6"):
        return Check(
            None,
            "IPv6 is disabled: peers by IPv4 only",
            "if that is not meant: sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        )
    return Check(True, "IPv6 is enabled")


def _forwarding(settings: Settings) -> Check:
    states = {
        "IPv4": _sysctl("ipv4/ip_forward"),
        "IPv6": _sysctl("ipv6/conf/all/forwarding"),
    }
    words = {None: "unknown", 0: "off"}
    what = ", ".join(f"{name} {words.get(on, 'on')}" for name, on in states.items())
    if states["IPv4"] or states["IPv6"]:
        return Check(True, f"forwarding: {what}")
    return Check(
        None,
        f"forwarding: {what}; only this host's own packets take the tunnel",
        "to carry other hosts' packets: sysctl -w net.ipv4.ip_forward=1",
    )


def _reverse_path_filters(settings: Settings) -> Iterator[Check]:
    """What is in effect is the larger of the setting for all and the interface's."""
    everywhere = _sysctl("ipv4/conf/all/rp_filter")
    if everywhere is None:
        yield Check(None, "rp_filter: cannot be seen")
        return
    effective: dict[int, list[str]] = {}
    for _, name in socket.if_nameindex():
        # A VLAN's dot is a dot in /proc too; only sysctl(8) writes it as a slash.
        own = _sysctl(f"ipv4/conf/{name}/rp_filter")
        if own is not None and name != "lo":
            effective.setdefault(max(everywhere, own), []).append(name)
    for value, names in sorted(effective.items()):
        what = f"rp_filter: {_RP_FILTER.get(value, value)} on {', '.join(names)}"
        yield _reverse_path_filter(what, value, settings.routing.backend)


def _reverse_path_filter(what: str, value: int, backend: Backend) -> Check:
    # The other backends have their rules made for it, or loosen the tunnel's own.
    if value != 1 or backend is not Backend.NONE:
        return Check(True, what)
    return Check(
        None,
        f"{what}; drops what arrives by another way than its answer would take",
        "route both ways alike, or loosen it: sysctl -w net.ipv4.conf.NAME.rp_filter=2",
    )


def _relay(settings: Settings) -> Iterator[Check]:
    """What a relay needs besides, if this host is to be one."""
    if not settings.relay.enabled:
        return
    yield _transparency()
    yield _capture(settings)
    if has_net_raw():
        yield Check(True, "relay: CAP_NET_RAW is held")
    else:
        yield Check(
            None,
            "relay: CAP_NET_RAW is missing: senders are not told of smaller links",
            "run as root, or give the service the capability",
        )


def _transparency() -> Check:
    with closing(_udp_socket()) as probe:
        try:
            set_transparent(probe)
        except OSError as error:
            return Check(
                False,
                f"relay: no transparent sockets: {error.strerror}",
                "run as root or with CAP_NET_ADMIN",
            )
    return Check(True, "relay: transparent sockets are available")


def _capture(settings: Settings) -> Check:
    """Ask the packet filter whether it could do it, without doing it."""
    if not _installed("nft"):
        return Check(
            None,
            "relay: no nft; with iptables nothing crosses after a crash",
            "install nftables",
        )
    capture = tproxy.of(settings, {4: 1, 6: 1})
    try:
        netfilter.run("nft", "--check", "-f", "-", text=tproxy.nft_capture(capture))
    except RoutingError as error:
        return Check(
            False,
            f"relay: others' traffic cannot be led to us: {error}",
            "run as root, with a kernel that has nft_tproxy and nft_fib",
        )
    return Check(True, "relay: the packet filter can lead others' traffic to us")


def _packet_filter(settings: Settings) -> Check:
    tools = [tool for tool in ("nft", "iptables") if _installed(tool)]
    if tools:
        return Check(True, f"packet filter tools: {', '.join(tools)}")
    if settings.routing.backend is not Backend.MARKS:
        return Check(
            None, 'neither nft nor iptables; only backend = "marks" needs them'
        )
    return Check(
        False,
        'backend = "marks" needs nft or iptables, neither is installed',
        'install nftables, or use backend = "rules"',
    )


def _source_checks(settings: Settings) -> Iterator[Check]:
    """Rules that drop what did not come by the way its answer would take."""
    for check in netfilter.source_checks(settings.interface):
        what = f"packet filter checks sources: {check.rule}"
        if settings.routing.backend is Backend.NONE:
            yield Check(None, what)
        elif not check.by_mark:
            yield Check(
                None,
                f"{what}; it drops what comes out of the tunnel from a peer's own "
                "address",
                "let it look at marks (--validmark, fib saddr . mark . iif), or accept "
                f"what comes by {settings.interface} before it",
            )
        elif netfilter.has_nft():
            yield Check(True, f"{what}; the tunnel's packets are marked for it")
        else:
            yield Check(
                False, what, "install nftables, by which we mark packets for it"
            )


def _installed(tool: str) -> bool:
    # The places of administrators' tools are not in the PATH of every user.
    return (
        shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        is not None
    )
