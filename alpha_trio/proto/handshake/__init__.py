"""How two hosts agree on a session.

In come SYN, ACK, ACKACK and COOKIE, times, and the wish for a session; out go such
messages, and in the end an Agreement: ids, keys, and both sides' hash chains.  What
becomes of it is not known here.

    exchange      a single handshake: its messages, its proofs, what it leaves
    cookies       which SYNs are worth public-key work
    answers       our answers that wait for their ACKACK, and which of them go
    negotiation   all handshakes with one peer: who asks when, and which goes on
"""

from alpha_trio.proto.handshake.answers import Shown
from alpha_trio.proto.handshake.cookies import Doorkeeper, sealed_cookie
from alpha_trio.proto.handshake.exchange import GIVE_UP_AFTER, Agreement
from alpha_trio.proto.handshake.negotiation import Negotiation, send_control

__all__ = [
    "GIVE_UP_AFTER",
    "Agreement",
    "Doorkeeper",
    "Negotiation",
    "Shown",
    "sealed_cookie",
    "send_control",
]
