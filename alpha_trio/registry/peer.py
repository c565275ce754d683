"""One configured peer, and how it is named, found and routed."""

from __future__ import annotations

from attrs import define

from alpha_trio.net.routing import PeerRoute, Underlay
from alpha_trio.proto.batch import Remote
from alpha_trio.proto.peers import Session
from alpha_trio.proto.transport import overhead as session_overhead
from alpha_trio.registry.search import Search
from alpha_trio.settings import (
    IPAddress,
    IPNetwork,
    PeerSettings,
)

FROM_CONFIG, FROM_STATE = "config", "state"

_OUTER = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and UDP header by IP version."""


def overhead(version: int, mode: str) -> int:
    """Bytes the tunnel adds at most to an inner packet, outer headers included."""
    return _OUTER[version] + session_overhead(mode)


@define(eq=False)
class Peer:
    """One configured peer and what became of it."""

    settings: PeerSettings
    origin: str
    session: Session
    addresses: tuple[IPAddress, ...] = ()
    remotes: tuple[Remote, ...] = ()  # the same, as the UDP sockets name them
    prefixes: tuple[IPNetwork, ...] = ()  # inner addresses that are this peer's
    underlay: Underlay | None = None
    search: Search | None = None  # if it is known by a name

    @property
    def error(self) -> str | None:
        """Why its name cannot be resolved, or what it stands for not be used."""
        return self.search.error if self.search else None

    @property
    def refused(self) -> tuple[str, ...]:
        """Which of its routes the kernel refuses, and why."""
        return self.underlay.refused if self.underlay else ()

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why not all its packets take the tunnel, a sentence for each prefix."""
        return self.underlay.troubles if self.underlay else ()

    @property
    def endpoint(self) -> IPAddress | None:
        """The address in use, else the first to try; None before it is resolved."""
        remote = self.session.remote
        for address, candidate in zip(self.addresses, self.remotes, strict=True):
            if remote is not None and candidate[0] == remote[0]:
                return address
        return self.addresses[0] if self.addresses else None


def peer_route(peer: Peer) -> PeerRoute:
    endpoint = peer.endpoint
    return PeerRoute(
        name=peer.settings.name,
        endpoint=endpoint,
        prefixes=peer.prefixes,
        only=peer.settings.only,
        overhead=overhead(endpoint.version if endpoint else 4, peer.settings.mode),
    )


def host_of(settings: PeerSettings) -> str:
    return settings.endpoint or settings.name


def place_of(settings: PeerSettings) -> tuple[str, int]:
    return host_of(settings), settings.port


def remote_of(address: IPAddress, port: int) -> Remote:
    if address.version == 4:
        return str(address), port
    return str(address), port, 0, 0
