"""What a daemon has to know again after a restart.

In and out go the key of this host, the peers added by command, and the keys that peers
showed at the first contact; what is saved survives a crash and a full disk.

    store       the peers and keys of one daemon
    directory   small files, replaced as a whole or not at all
    keys        the file with the key of this host
    pins        the pinned keys, in memory and on disk
"""

from alpha_trio.state.keys import read_identity
from alpha_trio.state.pins import Pins
from alpha_trio.state.store import PeerStore

__all__ = ["PeerStore", "Pins", "read_identity"]
