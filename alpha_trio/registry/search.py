"""Peers known by a name: where they are, and where they are when they are lost."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address

import trio
from attrs import define, field

from alpha_trio.errors import AlphaTrioError
from alpha_trio.journal import Journal
from alpha_trio.settings import IPAddress
from alpha_trio.threads import in_thread

RETRY_FIRST = 5.0  # s, doubled after each failure
RETRY_MAX = 60.0  # s


@define(eq=False)
class Search:
    """Asks for the addresses of one name, and again whenever they are of no use.

    ``found`` is given all of them, in the system's order.  It may raise an
    AlphaTrioError that says why they cannot be used; then they are asked for again.
    """

    host: str
    found: Callable[[list[IPAddress]], Awaitable[None]]
    journal: Journal
    error: str | None = None  # why there are no addresses, or none of use
    _lost: trio.Event = field(factory=trio.Event)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self) -> None:
        """Search until stopped.  After an answer nothing is asked until it is lost."""
        delay = RETRY_FIRST
        with self._scope:
            while True:
                try:
                    await self.found(await _resolve(self.host))
                except (OSError, AlphaTrioError) as error:
                    self._failed(error)
                    await trio.sleep(delay)
                    delay = min(2 * delay, RETRY_MAX)
                    continue
                delay = RETRY_FIRST
                self.error = None
                self.journal.recovered(f"name {self.host}")
                await self._lost.wait()
                self._lost = trio.Event()
                await trio.sleep(RETRY_FIRST)

    def lost(self) -> None:
        """Nothing is heard at the addresses that were found."""
        self._lost.set()

    def stop(self) -> None:
        """End it, at its next checkpoint."""
        self._scope.cancel()

    def _failed(self, error: OSError | AlphaTrioError) -> None:
        why = error.strerror if isinstance(error, OSError) else error
        self.error = f"cannot resolve {self.host}: {why}"
        line = f"Cannot resolve {self.host} ({why}). Trying on."
        self.journal.failure(f"name {self.host}", "resolving failed", line)


async def _resolve(host: str) -> list[IPAddress]:
    """All addresses of a name.  Raises OSError."""
    ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_DGRAM)
    found = await in_thread(ask, abandon=True)
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))
