"""Several processes that carry packets, each for its share of the peers.

One process has the work of one core to give.  With ``cores = N`` there are N lanes:
processes with a queue of the TUN, a UDP socket, and sessions of their own.  Each peer
has one lane, so a session never crosses from one to another, and the protocol does not
know of them.  The front is the process that has the control plane, the routes and the
files; it carries nothing.

    crew        the lanes' processes: forked before anything else runs, ended at the end
    channel     calls between the front and a lane, in order
    front       what the front takes for the peer table and its data path
    seen        a session as the front knows it
    lane        what runs in a lane: peer table, data path
    table       which packets of the table are another lane's
    inbox       what other lanes hand over

The kernel hands a packet to the lane of its flow, if one of the flow came in there, and
else to any; a datagram to the lane of its connection id, and handshakes to the first.
Who gets what is another's hands it over.

In: what the registry does to the peers.  Out: events, and how the sessions stand.
"""

from alpha_trio.lanes.crew import Crew
from alpha_trio.lanes.front import Lanes

__all__ = ["Crew", "Lanes"]
