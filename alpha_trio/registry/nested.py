"""Endpoints inside of another peer's prefixes, and what becomes of their packets.

The tunnel's own datagrams leave outside of every tunnel, or two peers could lead each
other's in circles; so who is reached through another peer only cannot be reached as a
peer.  That an endpoint lies so is legal, and mostly meant, but what follows from it
nobody would guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from alpha_trio.net.routing import PeerRoute
from alpha_trio.settings import IPAddress, IPNetwork

_MOST_NAMES = 5  # in one sentence


@frozen
class Nested:
    """Where a peer's endpoint lies: in a prefix of another peer."""

    name: str
    endpoint: IPAddress
    prefix: IPNetwork  # the longest that others have
    owner: str
    own: bool  # whether the peer has a longer one itself
    by_hand: bool  # then nobody knows what becomes of them

    def __str__(self) -> str:
        """What becomes of the packets, in one sentence."""
        place = f"its endpoint {self.endpoint} is in {self.prefix} of {self.owner}"
        if self.by_hand:
            return (
                f"{place}: the routes are set by hand, so see that the datagrams of "
                f"this tunnel do not take that to {self.owner}"
            )
        return (
            f"{place}: packets to it take the tunnel to "
            f"{self.name if self.own else self.owner}, the datagrams of the tunnel to "
            f"{self.name} another way past {self.owner}"
        )


def nested(routes: Iterable[PeerRoute], by_hand: bool) -> dict[str, Nested]:
    """By the names of the peers of which that is so.

    ``by_hand``: who set the routes is not us.
    """
    routes = list(routes)
    owners = {
        _key(prefix.version, prefix.prefixlen, int(prefix.network_address)): (
            route.name,
            prefix,
        )
        for route in routes
        for prefix in route.prefixes
    }
    lengths = {(version, length) for version, length, _ in owners}
    longest_first = sorted(lengths, reverse=True)
    found = (_nested(route, owners, longest_first, by_hand) for route in routes)
    return {place.name: place for place in found if place is not None}


_Key = tuple[int, int, int]  # version and length of a prefix, and its bits


def _key(version: int, length: int, address: int) -> _Key:
    return version, length, address >> ((32 if version == 4 else 128) - length)


def _nested(
    route: PeerRoute,
    owners: Mapping[_Key, tuple[str, IPNetwork]],
    longest_first: Iterable[tuple[int, int]],
    by_hand: bool,
) -> Nested | None:
    endpoint, own = route.endpoint, False
    if endpoint is None:
        return None
    number = int(endpoint)
    for version, length in longest_first:
        if version != endpoint.version:
            continue
        owner, prefix = owners.get(_key(version, length, number), (None, None))
        if owner == route.name:
            own = True
        elif owner is not None and prefix is not None:
            return Nested(route.name, endpoint, prefix, owner, own, by_hand)
    return None


def notes(name: str, places: Iterable[Nested]) -> list[str]:
    """What who has just given a peer its settings should know: a sentence for each."""
    told, inside = [], []
    for place in places:
        if place.name == name:
            told.append(f"{name}: {place}")
        elif place.owner == name:
            inside.append(place.name)
    if inside:
        more = len(inside) - _MOST_NAMES
        names = ", ".join(inside[:_MOST_NAMES]) + (
            f" and {more} more" if more > 0 else ""
        )
        told.append(
            f"in the prefixes of {name} are the endpoints of {names}: the datagrams of "
            f"their tunnels take another way past {name}"
        )
    return told
