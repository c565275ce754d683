"""What the service manager is told, if there is one.

As sd_notify(3) and sd_watchdog_enabled(3) have it: by datagrams to NOTIFY_SOCKET.
Without a manager all of it does nothing.
"""

from __future__ import annotations

import logging
import os
import socket

import trio

_log = logging.getLogger("alpha_trio")

_SHARE = 1 / 3  # of the time after which we would be killed; two may be late


def notify(state: str, *, patiently: bool = True) -> None:
    """Tell a service manager that asked for it, if need be once it reads."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(patiently)
            sock.sendto(state.encode(), path)
    except OSError as error:  # nobody listens, or there is no descriptor for it
        _log.debug("Cannot tell NOTIFY_SOCKET %s (%s).", state, error.strerror)


def watchdog_seconds() -> float | None:
    """After how long without a word of us we are killed; None if never."""
    try:
        if int(os.environ.get("WATCHDOG_PID") or os.getpid()) != os.getpid():
            return None  # it is meant for who started us
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


async def feed_watchdog() -> None:
    """Tell again and again that tasks still have their turn, until cancelled.

    From a task beside those that carry packets: a loop that is stuck, in whichever of
    them, tells nothing any more.
    """
    seconds = watchdog_seconds()
    if seconds is None:
        return
    while True:
        notify("WATCHDOG=1", patiently=False)  # who hangs must not have us hang
        await trio.sleep(seconds * _SHARE)
