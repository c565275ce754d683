"""The peers' packets led into the tunnel, and what comes of it for each peer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

import trio

from alpha_trio.errors import RoutingError
from alpha_trio.journal import Journal
from alpha_trio.net.host import boottime
from alpha_trio.net.routing import PeerRoute, Router, Underlay
from alpha_trio.registry.carriage import Carrier, Table
from alpha_trio.registry.nested import nested
from alpha_trio.registry.peer import Peer, peer_route
from alpha_trio.supervision import delays, insist

_log = logging.getLogger("alpha_trio")

_FAILED = "routing-failed"  # name of the log line

_QUIET = 60.0  # s between two lines about what others have removed
_GATHER = 0.05  # s; when many paths are measured at once, their routes change together


class Routing:
    """Keeps the kernel's routing, and each peer's MTU, those of ``peers``."""

    def __init__(
        self,
        router: Router,
        table: Table,
        peers: Mapping[str, Peer],
        journal: Journal,
        rerouted: Callable[[Peer, Underlay | None], None],
        by_hand: bool,
    ) -> None:
        """``peers``: all of them by name, as they are at each call.

        ``rerouted`` is told of a peer after each look at its way, with what was before.
        ``by_hand``: the routes are the operator's matter.
        """
        self.error: str | None = None  # that of all peers, while it lasts
        self._router = router
        self._table = table
        self._peers = peers
        self._journal = journal
        self._rerouted = rerouted
        self._by_hand = by_hand
        self._changed = trio.Event()
        self._refused = trio.Event()
        self._places: Sequence[tuple[object, ...]] = ()
        self._put_back: list[str] = []
        self._put_back_told = -inf

    async def follow_network(self) -> None:
        """Adapt to the next change of links, addresses and routes of the host."""
        meanwhile = "changes of the host's network are not noticed"
        await insist(
            self._router.wait_changed, self._journal, "watching routes", meanwhile
        )
        await self.apply_or_log()
        now = boottime()
        for peer in self._peers.values():
            self._table.route_changed(peer.session, now)

    def peer_changed(self) -> None:
        """A peer is elsewhere than thought, or its path takes another size."""
        self._changed.set()

    async def watch_peers(self) -> None:
        """Adapt to peers that move, know us by another address, or are measured."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            # At once: until then packets leave from an address the peer does not know.
            await self.apply_or_log()
            await trio.sleep(_GATHER)

    async def watch_filters(self) -> None:
        """Adapt to the packet filter's own checks as they come and go."""
        meanwhile = "changes of the packet filter are not noticed"
        wait = self._router.wait_filters_changed
        while True:
            await insist(wait, self._journal, "watching filters", meanwhile)
            await self.apply_or_log()

    async def keep_trying(self) -> None:
        """Try again, at growing intervals, what was refused of all peers."""
        while True:
            await self._refused.wait()
            for delay in delays():
                await trio.sleep(delay)
                await self.apply_or_log()
                if self.error is None:
                    break
            self._refused = trio.Event()

    async def watch_paths(self, carrier: Carrier) -> None:
        """Measure paths anew when one turned out to take less than thought."""
        while True:
            await carrier.wait_path_changed()
            self._router.mark_stale()
            await self.apply_or_log()

    async def apply(self, changed: Iterable[str] = ()) -> None:
        """Lead the peers' packets into the tunnel; learn each one's MTU.

        Raises RoutingError for what is refused of all peers, and for a route that is
        now refused of one of those ``changed``.  Another's is not in their way: it is
        logged, and told by its status.
        """
        routes = [peer_route(peer) for peer in self._peers.values()]
        before = self.complaints
        underlays = await self._router.apply(routes)
        self.error = None
        self._log_put_back()
        self._log_complaints(before)
        for name in changed:
            for reason in underlays[name].refused:
                if reason not in self._peers[name].refused:
                    raise RoutingError(reason)
        self._nest(routes)
        for name, underlay in underlays.items():
            peer = self._peers.get(name)
            if peer is not None:
                self._log_troubles(peer, underlay)
                was, peer.underlay = peer.underlay, underlay
                self._allow(peer, underlay)
                self._rerouted(peer, was)

    def _nest(self, routes: Iterable[PeerRoute]) -> None:
        """Note whose endpoint lies in a prefix of another; few changes move any."""
        places = [(route.name, route.endpoint, route.prefixes) for route in routes]
        if places != self._places:
            self._places = places
            found = nested(routes, self._by_hand)
            for name, peer in self._peers.items():
                peer.nested = found.get(name)

    def _allow(self, peer: Peer, underlay: Underlay) -> None:
        """Tell a session what its link takes; its route follows what becomes of that.

        Only a change is followed, so that a route and a session that do not agree, as
        while a peer moves between IPv4 and IPv6, never keep each other busy.
        """
        session, was = peer.session, peer.session.mtu_limit
        self._table.allow(session, underlay.path_mtu, peer.settings.mtu, boottime())
        if session.mtu_limit != was and session.mtu != underlay.mtu:
            self.peer_changed()

    def _log_troubles(self, peer: Peer, underlay: Underlay) -> None:
        name = peer.settings.name
        for reason in underlay.refused:
            line = f"Not all packets for {name} take the tunnel ({reason}). Trying on."
            self._journal.failure(f"routing of {name}", reason, line, _FAILED)
        for reason in underlay.astray:
            line = f"Not all packets for {name} take the tunnel: {reason}."
            self._journal.failure(f"routing of {name}", reason, line, _FAILED)
        if peer.troubles and not underlay.troubles:
            self._journal.recovered(f"routing of {name}")

    def _log_put_back(self) -> None:
        """Tell what others take away: the first time at once, then what it sums up to.

        Who does it again and again, as two programs that fight for the host do, is
        not to fill the log.
        """
        self._put_back += self._router.take_put_back()
        now = boottime()
        if self._put_back and now >= self._put_back_told + _QUIET:
            times = Counter(self._put_back)
            what = ", ".join(
                f"{text} ({n} times)" if n > 1 else text for text, n in times.items()
            )
            _log.warning("Others removed what is ours: put back %s.", what)
            self._put_back.clear()
            self._put_back_told = now

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong for all peers, or for the host, while it lasts."""
        return self._router.complaints

    def _log_complaints(self, before: tuple[str, ...]) -> None:
        for complaint in self.complaints:
            self._journal.failure("routing of this host", complaint, complaint, _FAILED)
        if before and not self.complaints:
            self._journal.recovered("routing of this host")

    async def apply_or_log(self) -> None:
        """The same where nobody waits to be told; what fails is in ``error``."""
        try:
            await self.apply()
        except RoutingError as error:
            self.error = str(error)
            self._refused.set()
            self._journal.failure("routing", "failed", str(error), _FAILED)
        else:
            self._journal.recovered("routing")
