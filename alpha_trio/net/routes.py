"""Rules and routes that lead a peer's packets into the tunnel, and only those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from alpha_trio.config import IPAddress, IPNetwork, Selection, Settings


@frozen
class PeerRoute:
    """What routing has to know of one peer."""

    name: str
    endpoint: IPAddress | None  # None: not resolved yet, then only prefixes matter
    prefixes: tuple[IPNetwork, ...]  # destinations that go through the tunnel
    only: tuple[Selection, ...]
    overhead: int  # bytes the tunnel adds to an inner packet, outer headers included
    mtu_limit: int | None = None  # inner MTU found smaller by EMSGSIZE, if any


@frozen
class Underlay:
    """How a peer's endpoint is reached outside the tunnel."""

    mtu: int  # inner MTU for this peer: the path's MTU minus the overhead
    source: IPAddress | None = None  # our address on that path
    device: str | None = None
    error: str | None = None  # why it cannot be reached, for status


class Router:
    """Owner of everything we put into the kernel's routing, and of its removal."""

    def __init__(self, settings: Settings) -> None:
        raise NotImplementedError

    async def open(self) -> None:
        """Configure the (existing) interface, remove leftovers, check collisions."""
        raise NotImplementedError

    async def apply(self, peers: Sequence[PeerRoute]) -> Mapping[str, Underlay]:
        """Make the kernel's state match ``peers``; change only what differs."""
        raise NotImplementedError

    async def wait_changed(self) -> None:
        """Return when links, addresses or routes of the host may have changed."""
        raise NotImplementedError

    async def close(self) -> None:
        """Undo everything; safe to call after a failed or partial open."""
        raise NotImplementedError
