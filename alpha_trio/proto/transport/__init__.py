"""How an established session carries packets, in both directions.

In come pieces of inner packets, and the peer's datagrams; out go datagrams, and inner
packets that have passed every check.  AlphaTransport and PlainTransport have one face,
Transport; the way of a packet through the first is, in this order:

    alpha       both directions of one session, and its associations
    sender      our rounds: S1, the wait for A1, S2, verdicts, repetition
    controls    those that bring no packet: control messages, traces, size probes
    pace        when rounds start
    early       small packets inside S1
    conversation  which of TCP's do
    queue       packets that wait for a round
    standing    whether these wait for long, and which of them is lost for that
    layout      a round's S2s, one after the other in one buffer
    round       a round under way, and the association it runs on
    sized       a question whether a datagram so large arrives
    timing      how long to wait for an answer
    line        message heads and tags, addresses: what both halves share
    receiver    the peer's rounds: S1 frozen, A1, S2 checked, A2
    delivery    packets that passed, joined for the TUN
    plain       the same without authentication; replay tells repeats
    modes       the modes, and what each costs a packet
"""

from alpha_trio.proto.transport.alpha import AlphaTransport
from alpha_trio.proto.transport.early import EarlyState
from alpha_trio.proto.transport.line import Line
from alpha_trio.proto.transport.modes import MODES, OUTER_HEADERS, overhead
from alpha_trio.proto.transport.plain import PlainTransport
from alpha_trio.proto.transport.sized import Outcome, SizeProbe
from alpha_trio.proto.transport.transport import ECN, Arrival, Transport

__all__ = [
    "ECN",
    "MODES",
    "OUTER_HEADERS",
    "AlphaTransport",
    "Arrival",
    "EarlyState",
    "Line",
    "Outcome",
    "PlainTransport",
    "SizeProbe",
    "Transport",
    "overhead",
]
