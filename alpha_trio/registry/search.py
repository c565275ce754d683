"""Peers known by a name: where they are, and where they are when they are lost."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address
from itertools import chain, zip_longest
from math import inf

import trio
from attrs import define, field

from alpha_trio.errors import AlphaTrioError
from alpha_trio.journal import Journal
from alpha_trio.settings import IPAddress
from alpha_trio.threads import in_thread

# In seconds.
RETRY_FIRST = 5.0  # until a name without an answer is asked for again, doubled then
RETRY_MAX = 20.0
REFRESH_AFTER = 135.0  # nothing was heard of its peer
LOST_AFTER = 5.0  # at least between two questions for a peer that does not answer
CHANGE_AFTER = 30.0  # likewise for one that is silent when the network changes

AT_ONCE = 8  # names asked for; a resolver that does not answer takes a thread for each


@define(eq=False)
class Search:
    """One name, and what is known of it.

    ``found`` is given all its addresses, in the order in which to try them.  It may
    raise an AlphaTrioError that says why they cannot be used; then they are asked for
    again.  ``silence`` says for how many seconds nothing was heard of the peer.
    """

    host: str
    found: Callable[[list[IPAddress]], Awaitable[None]]
    silence: Callable[[], float]
    due: float = -inf  # when to ask, in trio's time
    error: str | None = None  # why there are no addresses, or none of use
    _resolver: Resolver | None = None
    _delay: float = RETRY_FIRST
    _asked: float = -inf

    def lost(self) -> None:
        """Nothing is heard at the addresses that were found: look for others."""
        self._ask_by(self._asked + LOST_AFTER)

    def network_changed(self) -> None:
        """Other resolvers may be asked now, or answer otherwise."""
        if self.error is not None:
            self._ask_by(self._asked + 1)
        elif self.silence() > LOST_AFTER:
            self._ask_by(self._asked + CHANGE_AFTER)

    def stop(self) -> None:
        """Never ask again."""
        if self._resolver is not None:
            self._resolver.searches.discard(self)
            self._resolver = None

    async def ask(self, journal: Journal) -> bool:
        """Ask once, and say when to do so again; True if there had been no answer."""
        self.due, self._asked = inf, trio.current_time()
        failed = self.error is not None
        try:
            await self.found(await _resolve(self.host))
        except (OSError, AlphaTrioError) as error:
            self._failed(error, journal)
            return False
        self.due = trio.current_time() + REFRESH_AFTER
        self.error, self._delay = None, RETRY_FIRST
        journal.recovered(f"name {self.host}")
        return failed

    def postponed(self, now: float) -> bool:
        """Whether the peer was heard, so that there is no need to ask yet."""
        silence = self.silence()
        if self.error is not None or self._asked == -inf or silence >= REFRESH_AFTER:
            return False
        if self.due < self._asked + REFRESH_AFTER:
            return False  # somebody wants to know
        self.due = now + REFRESH_AFTER - silence
        return True

    def _ask_by(self, when: float) -> None:
        if when < self.due < inf and self._resolver is not None:
            self.due = when
            self._resolver.look()

    def _failed(self, error: OSError | AlphaTrioError, journal: Journal) -> None:
        self.due = trio.current_time() + self._delay
        self._delay = min(2 * self._delay, RETRY_MAX)
        why = error.strerror if isinstance(error, OSError) else error
        self.error = f"cannot resolve {self.host}: {why}"
        line = f"Cannot resolve {self.host} ({why}). Trying on."
        journal.failure(f"name {self.host}", "resolving failed", line)


@define(eq=False)
class Resolver:
    """Asks for the addresses of all peers' names, in the background, a few at a time.

    One for all of them, so that five hundred names make no storm, and none has to wait
    long for another that nobody knows.
    """

    journal: Journal
    searches: set[Search] = field(factory=set)
    _changed: trio.Event = field(factory=trio.Event)
    _asking: int = 0

    def watch(self, search: Search) -> Search:
        """Ask for this name, now and as long as it is not stopped."""
        search._resolver = self
        self.searches.add(search)
        self.look()
        return search

    def look(self) -> None:
        """Something may be due earlier than it was."""
        self._changed.set()

    def network_changed(self) -> None:
        """See Search.network_changed."""
        for search in self.searches:
            search.network_changed()

    async def run(self) -> None:
        """Ask what is due when it is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                next_due = self._start_due(nursery)
                with trio.move_on_at(next_due):
                    await self._changed.wait()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Ask what is due, the longest due first; when to look again."""
        now = trio.current_time()
        for search in sorted(self.searches, key=lambda search: search.due):
            if self._asking >= AT_ONCE:
                return inf  # until one of them has its answer
            if search.due > now:
                return search.due
            if not search.postponed(now):
                self._asking += 1
                search.due = inf
                nursery.start_soon(self._ask, search)
        return min((search.due for search in self.searches), default=inf)

    async def _ask(self, search: Search) -> None:
        try:
            answers_again = await search.ask(self.journal)
        finally:
            self._asking -= 1
        if answers_again:  # perhaps all do: it was the resolver that was missing
            for other in self.searches:
                if other.error is not None:
                    other._ask_by(trio.current_time())
        self.look()


async def _resolve(host: str) -> list[IPAddress]:
    """All addresses of a name, the families in turn (RFC 8305).  Raises OSError."""
    ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_DGRAM)
    found = await in_thread(ask, abandon=True)
    addresses = dict.fromkeys(ip_address(entry[4][0]) for entry in found)
    first: list[IPAddress] = []
    other: list[
        IPAddress
    ] = []  # the system's order says which family is to be preferred
    for address in addresses:
        preferred = not first or address.version == first[0].version
        (first if preferred else other).append(address)
    return [a for a in chain(*zip_longest(first, other)) if a is not None]
