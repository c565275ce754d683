"""The host this process runs on: its clock, and what it may do there."""

from __future__ import annotations

import time
from pathlib import Path

_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13


def boottime() -> float:
    """Seconds since boot, time in suspend included: a session ages while we sleep.

    Never mix it with ``trio.current_time()``, which stops in suspend and has an
    offset of its own.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def has_net_admin() -> bool:
    """Whether this process may create interfaces, rules and routes."""
    return _has(_CAP_NET_ADMIN)


def has_net_raw() -> bool:
    """Whether this process may use raw sockets and foreign addresses."""
    return _has(_CAP_NET_RAW)


def _has(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
