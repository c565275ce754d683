"""Control messages: what ends of a session tell each other in rounds of their own.

Each has 20 bytes, and one packet may carry several.  They are not encrypted, so that
relays can follow them, and always reliable.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

CONTROL_MESSAGE = Struct("!BxH 16s")  # what, association, anchor or nonce


class Control(IntEnum):
    """First byte of a control message."""

    OPEN = 1
    ACCEPT = 2
    CLOSE = 3
    TRACE = 4
    PADDING = 5  # nothing: it makes the datagram as long as the answers to it
