"""Times and limits on which the two ends and the relays between them have to agree.

A relay that forgot a handshake before the ends do, or took a repetition for a replay
that an end may send, would stop genuine traffic; so these stand here once, and each of
them is part of docs/protocol.md.
"""

from __future__ import annotations

# Of handshakes and sessions, in seconds.
HALF_OPEN_LIFETIME = 20.0  # a responder waits for the ACKACK
REFUSE_AFTER = 180.0  # age at which a session carries nothing any more
PREVIOUS_LIFETIME = 15.0  # a replaced session may still receive

MIN_RTO = 0.02  # s between a message of a round and its first repetition, at least

# Elements beyond the anchor of the chains of association 0, and of all others.
FIRST_CHAIN, LATER_CHAIN = 1024, 4096

MAX_ASSOCIATIONS = 64
"""Of one session and direction; more are refused."""

MAX_ROOTS = 512  # of one S1: what fits into 8 KiB
LEAST_ROOTS = 4
"""What a sender may use whatever the limit of a handshake is, which nobody signs."""
MAX_DEPTH = 6  # of a round's trees
MAX_PACKETS = 4096
"""Of one round: what has to be remembered of it stays below half a megabyte."""
MAX_EARLY = 1400  # bytes of early data in an S1
MAX_RELIABLE = 64
"""Packets of a reliable round: its A1 costs the receiver two leaves for each."""
