"""One configured peer, and how it is named, found and routed."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from math import inf

from attrs import define

from alpha_trio.net.routing import PeerRoute, Underlay
from alpha_trio.net.source import local_address
from alpha_trio.proto.batch import Remote
from alpha_trio.proto.transport import OUTER_HEADERS, EarlyState
from alpha_trio.proto.transport import overhead as session_overhead
from alpha_trio.registry.carriage import AnySession
from alpha_trio.registry.nested import Nested
from alpha_trio.registry.search import Search
from alpha_trio.settings import (
    IPAddress,
    IPNetwork,
    PeerSettings,
)

FROM_CONFIG, FROM_STATE = "config", "state"

_UNANSWERED_SYNS = 3  # of which it is worth asking why


def overhead(version: int, mode: str) -> int:
    """Bytes the tunnel adds at most to an inner packet, outer headers included."""
    return OUTER_HEADERS[version] + session_overhead(mode)


@define(eq=False)
class Peer:
    """One configured peer and what became of it."""

    settings: PeerSettings
    origin: str
    session: AnySession
    addresses: tuple[IPAddress, ...] = ()
    remotes: tuple[Remote, ...] = ()  # the same, as the UDP sockets name them
    prefixes: tuple[IPNetwork, ...] = ()  # inner addresses that are this peer's
    underlay: Underlay | None = None
    search: Search | None = None  # if it is known by a name
    nested: Nested | None = None  # if its endpoint lies in a prefix of another

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
    def unanswered(self) -> bool:
        """Whether it is asked for a session, or was, and does not answer."""
        session = self.session
        if session.attempts is not None:
            return session.attempts >= _UNANSWERED_SYNS
        return session.gave_up and session.heard == -inf

    @property
    def goes_early(self) -> bool:
        """Whether small packets to it travel inside S1."""
        return self.session.early_state is EarlyState.ON

    @property
    def early_text(self) -> str:
        """The same, or why not and what to do about it, in one sentence."""
        return self.session.early_state.text.replace("NAME", self.settings.name)

    @property
    def endpoint(self) -> IPAddress | None:
        """The address in use, else the first to try; None before it is resolved."""
        remote = self.session.remote
        if remote in self.remotes:
            return self.addresses[self.remotes.index(remote)]
        return None if remote is None else address_of(remote)

    @property
    def local(self) -> IPAddress | None:
        """Our address by which the peer knows us, if there is a session."""
        return local_address(self.session.local)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is, or knows us, elsewhere than it was routed for."""
        underlay = self.underlay
        if underlay is None or underlay.error is not None:
            return underlay is not None and underlay.endpoint != self.endpoint
        known = self.local in (None, underlay.source)
        return underlay.endpoint != self.endpoint or not known


def peer_route(peer: Peer) -> PeerRoute:
    endpoint, was = peer.endpoint, peer.underlay
    return PeerRoute(
        name=peer.settings.name,
        endpoint=endpoint,
        prefixes=peer.prefixes,
        only=peer.settings.only,
        overhead=overhead(endpoint.version if endpoint else 4, peer.settings.mode),
        mtu_limit=peer.session.mtu_limit,
        addresses=peer.addresses,
        local=peer.local,
        interface=was.interface if was and was.endpoint == endpoint else 0,
    )


def host_of(settings: PeerSettings) -> str:
    """What is looked up to find a peer; nothing if it is waited for."""
    return "" if settings.waits else settings.host


def place_of(settings: PeerSettings) -> tuple[str, int]:
    return host_of(settings), settings.port


def remote_of(address: IPAddress, port: int) -> Remote:
    """As a socket names it; a link that does not exist has index 0."""
    host, _, zone = str(address).partition("%")
    if address.version == 4:
        return host, port
    try:
        return host, port, 0, socket.if_nametoindex(zone) if zone else 0
    except OSError:
        return host, port, 0, 0


def address_of(remote: Remote) -> IPAddress:
    """The address of a host that a socket names so, with its zone if it has one."""
    host, scope = remote[0], remote[3] if len(remote) > 3 else 0
    try:
        return ip_address(f"{host}%{socket.if_indextoname(scope)}" if scope else host)
    except OSError:  # the link is gone
        return ip_address(host)
