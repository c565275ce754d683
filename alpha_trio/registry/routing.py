"""The peers' packets led into the tunnel, and what comes of it for each peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import trio

from alpha_trio.datapath import DataPath
from alpha_trio.errors import RoutingError
from alpha_trio.journal import Journal
from alpha_trio.net.routing import Router, Underlay
from alpha_trio.registry.peer import Peer, peer_route
from alpha_trio.supervision import delays, insist


class Routing:
    """Keeps the kernel's routing, and each peer's MTU, those of ``peers``."""

    def __init__(
        self, router: Router, peers: Mapping[str, Peer], journal: Journal
    ) -> None:
        """``peers``: all of them by name, as they are at each call."""
        self.error: str | None = None  # that of all peers, while it lasts
        self._router = router
        self._peers = peers
        self._journal = journal
        self._refused = trio.Event()

    async def watch_network(self) -> None:
        """Adapt to links, addresses and routes of the host as they change."""
        meanwhile = "changes of the host's network are not noticed"
        while True:
            await insist(
                self._router.wait_changed, self._journal, "watching routes", meanwhile
            )
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

    async def watch_paths(self, datapath: DataPath) -> None:
        """Measure paths anew when one turned out to take less than thought."""
        while True:
            await datapath.wait_path_changed()
            self._router.mark_stale()
            await self.apply_or_log()

    async def apply(self, changed: Iterable[str] = ()) -> None:
        """Lead the peers' packets into the tunnel; learn each one's MTU.

        Raises RoutingError for what is refused of all peers, and for a route that is
        now refused of one of those ``changed``.  Another's is not in their way: it is
        logged, and told by its status.
        """
        routes = [peer_route(peer) for peer in self._peers.values()]
        underlays = await self._router.apply(routes)
        self.error = None
        for name in changed:
            for reason in underlays[name].refused:
                if reason not in self._peers[name].refused:
                    raise RoutingError(reason)
        for name, underlay in underlays.items():
            peer = self._peers.get(name)
            if peer is not None:
                self._log_refusals(peer, underlay)
                peer.underlay = underlay
                peer.session.resize(underlay.mtu)

    def _log_refusals(self, peer: Peer, underlay: Underlay) -> None:
        name = peer.settings.name
        for reason in underlay.refused:
            line = f"Not all packets for {name} take the tunnel ({reason}). Trying on."
            self._journal.failure(f"routing of {name}", reason, line)
        if peer.refused and not underlay.refused:
            self._journal.recovered(f"routing of {name}")

    async def apply_or_log(self) -> None:
        """The same where nobody waits to be told; what fails is in ``error``."""
        try:
            await self.apply()
        except RoutingError as error:
            self.error = str(error)
            self._refused.set()
            self._journal.failure("routing", "failed", str(error))
        else:
            self._journal.recovered("routing")
