"""Settings of the host below /proc/sys/net that decide about our packets."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path as FilePath

from alpha_trio.errors import RoutingError


def ipv6_enabled(interface: str) -> bool:
    try:
        value = _sysctl(f"ipv6/conf/{interface}/disable_ipv6").read_text()
    except OSError:
        return False
    return value.strip() == "0"


def check_sources_by_mark(interface: str) -> None:
    """Have the reverse-path check of inner packets look at their mark, as routing does.

    Only our own interface's setting is written, which vanishes with it, and only if
    it has to be: /proc/sys may be read-only.
    """
    try:
        checked = _effective("rp_filter", interface)
        if checked and not _effective("src_valid_mark", interface):
            _sysctl(f"ipv4/conf/{interface}/src_valid_mark").write_text("1")
    except OSError as error:
        raise RoutingError(
            f"cannot set net.ipv4.conf.{interface}.src_valid_mark to 1: "
            f"{error.strerror}; set it for all, or rp_filter to 0, from outside"
        ) from error


def strict_elsewhere(interface: str) -> bool:
    """Tell whether an interface that is not ours cares about the way back.

    Strict rp_filter and arp_filter do: by them the kernel ignores who asks by ARP.
    """
    no_others = ("all", "default", "lo", interface)
    for place in _sysctl("ipv4/conf").iterdir():
        if place.name not in no_others:
            with suppress(FileNotFoundError):  # gone by now
                strict = _effective("rp_filter", place.name) == 1
                if strict or _effective("arp_filter", place.name):
                    return True
    return False


def _effective(name: str, interface: str) -> int:
    """Return an IPv4 setting of which the largest value counts."""
    scopes = ("all", interface)
    return max(int(_sysctl(f"ipv4/conf/{s}/{name}").read_text()) for s in scopes)


def _sysctl(name: str) -> FilePath:
    return FilePath("/proc/sys/net", name)
