"""The relay: which of other hosts' datagrams may pass.

In come runs of datagrams of other hosts; out go the bytes of them that may go on,
counters and events.  It holds no secret, and knows nothing of peers: only what passed
here, and what must be true of what follows.

    relay         all sessions that pass, and the way through them
    introduction  handshakes as they pass: who may speak, and with which chains
    consent       from where an answer has to come
    budgets       what is spent on whom
    session       a session: its two ends, and what went towards each
    witness       one direction of a session: which S1, A1, S2 and A2 may pass
    watched       what is remembered of a round under way
    crowd         sessions by who began them, and which of them makes room
    traces        TRACEs that passed, and the REPORTs that may follow
    verdict       its words: policy, reasons, counters, events
"""

from alpha_trio.proto.relay.relay import Relay
from alpha_trio.proto.relay.verdict import (
    Consent,
    RelayEarly,
    RelayEnd,
    RelayEvent,
    RelayEventKind,
    RelayPolicy,
    RelaySession,
    Traced,
    Unseen,
)

__all__ = [
    "Consent",
    "Relay",
    "RelayEarly",
    "RelayEnd",
    "RelayEvent",
    "RelayEventKind",
    "RelayPolicy",
    "RelaySession",
    "Traced",
    "Unseen",
]
