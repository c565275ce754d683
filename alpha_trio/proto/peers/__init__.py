"""The peer table: all peers, and the two ways through them.

The top of the core: on its packets' way the daemon calls PeerTable and nothing else.
In come frames of the TUN, datagrams, and the time; what is to be done is written into
an Outbox.

    table       finds the peer: by prefix, by connection id, by address, by deadline
    prefixes    which peer owns an inner address
    session     one peer: its transport, what waits for it, its timers
    pathmtu     how large packets to the peer may be, found out by probes
    waiting     frames that wait for a session
    whereabouts where a peer has been, and whether it is two
    statistics  how a peer stands, for ``status``
"""

from alpha_trio.proto.peers.pathmtu import PathMtu, Source
from alpha_trio.proto.peers.prefixes import IPNetwork
from alpha_trio.proto.peers.session import Session
from alpha_trio.proto.peers.statistics import State, Statistics
from alpha_trio.proto.peers.table import Knock, PeerTable

__all__ = [
    "IPNetwork",
    "Knock",
    "PathMtu",
    "PeerTable",
    "Session",
    "Source",
    "State",
    "Statistics",
]
