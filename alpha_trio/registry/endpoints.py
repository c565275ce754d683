"""Which addresses a peer may be given as its endpoint.

Whoever answers for a peer's name must not lead the packets of other peers, or of this
host, to himself or to nowhere; so answers are checked as typed addresses are.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address

from alpha_trio.errors import AlphaTrioError, ConfigError, PeerError
from alpha_trio.registry.peer import Peer, host_of, remote_of
from alpha_trio.settings import IPAddress, PeerSettings, values

MOST_ADDRESSES = 16
"""Of a name that are tried: a handshake asks all of them within four seconds."""
_MOST_CHECKED = 128


def usable_addresses(
    peer: Peer,
    found: Sequence[IPAddress],
    peers: Mapping[str, Peer],
    families: Collection[int],
) -> list[IPAddress]:
    """Those addresses of a name that its peer could be given as an endpoint.

    At most MOST_ADDRESSES, the first of them.  ``families``: the IP versions there is a
    socket for.  Raises ConfigError or PeerError, the first of the reasons, if none is
    left.
    """
    usable: list[IPAddress] = []
    refusals: list[AlphaTrioError] = []
    for answer in found[:_MOST_CHECKED]:
        if len(usable) == MOST_ADDRESSES:
            break
        try:
            address = ip_address(values.host(str(answer)))
            _refuse_address(peer, address, peers, families)
        except (ConfigError, PeerError) as refusal:
            refusals.append(refusal)
        else:
            if address not in usable:
                usable.append(address)
    if not usable and refusals:
        raise refusals[0]
    return usable


def _refuse_address(
    peer: Peer,
    address: IPAddress,
    peers: Mapping[str, Peer],
    families: Collection[int],
) -> None:
    if address.version not in families:
        raise PeerError(f"{address}: this host has no IPv{address.version}")
    if address.is_link_local and not peer.settings.allow:
        raise PeerError(f"{address} is valid on one link only")
    if address.is_loopback or _is_own(address):
        raise PeerError(f"{address} is an address of this host")
    if _is_broadcast(address):
        raise PeerError(f"{address} is a broadcast address")
    remote = remote_of(address, peer.settings.port)
    wanted = peer.settings.allow or (values.prefix_of(address),)
    for other in peers.values():
        if other is peer:
            continue
        if remote in other.remotes or set(wanted) & set(other.prefixes):
            raise PeerError(f"{address} belongs to peer {other.settings.name}")


def refuse_unusable(settings: PeerSettings) -> None:
    """Refuse a typed address that is not that of one other host.

    A host is no peer of itself: its packets never reach a device.  Who is asked at a
    broadcast address is everybody on that link.  Raises PeerError.
    """
    try:
        address = ip_address(host_of(settings))
    except ValueError:
        return
    if _is_own(address):
        raise PeerError(
            f"{address} is an address of this host: give the address of {settings.name}"
        )
    if _is_broadcast(address):
        raise PeerError(
            f"{address} is the broadcast address of a link of this host: give the "
            f"address of {settings.name}"
        )


def _is_own(address: IPAddress) -> bool:
    # Only towards an address of its own does a host choose that very address.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        own = ip_address(probe.getsockname()[0].partition("%")[0])
        return own.packed == address.packed


def _is_broadcast(address: IPAddress) -> bool:
    # The kernel lets only those towards one who asked for it.
    if address.version == 6:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except PermissionError:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        except OSError:
            return False
        else:
            return False
        # Or else it is forbidden for another reason, as by a route that prohibits it.
        return probe.connect_ex((str(address), 9)) == 0
