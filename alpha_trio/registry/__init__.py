"""The configured peers: where they come from, where they are, and keeping it so.

In come peers of the config file, of the state directory and of commands, and events;
out go entries of the peer table, routes, and what is saved.

    registry    every change: check, save, enter, route, or all of it taken back
    peer        one configured peer
    endpoints   which addresses a peer may be given
    nested      endpoints inside of another peer's prefixes
    carriage    what it needs of who carries packets
    routing     the peers' packets led into the tunnel, and each one's MTU
    search      the search for peers that are known by a name
"""

from alpha_trio.registry.carriage import Carrier, Table
from alpha_trio.registry.peer import Peer
from alpha_trio.registry.registry import Registry

__all__ = ["Carrier", "Peer", "Registry", "Table"]
