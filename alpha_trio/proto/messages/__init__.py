"""The messages on the wire: what stands where, and taking apart what came.

In come bytes of the network, or the fields of a message; out go fields, or bytes.
Nothing here knows a key, a session or a time.  Functions that read network bytes end in
``_untrusted`` and raise only BadPacket.

    header      what every datagram begins with; kinds, versions, suites
    handshake   SYN, ACK, ACKACK, COOKIE
    data        S1, A1, S2 and A2 of a round; DATA of mode plain
    control     control messages, which an S2 may carry
    runs        many equal pieces in one buffer, taken apart and joined by one call
    limits      times and limits that ends and relays share
"""

from alpha_trio.proto.messages.control import CONTROL_MESSAGE, Control
from alpha_trio.proto.messages.data import (
    A1,
    A1_SIZE,
    A2_OPENING,
    CONTROL,
    DATA,
    DATA_SIZE,
    DEPTH_MASK,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    S2_SIZE,
    S2_TAIL,
    data_word,
)
from alpha_trio.proto.messages.handshake import (
    COOKIE_SIZE,
    MAC_SIZE,
    SAID_SIZE,
    SYN_SIZE,
    Ack,
    AckAck,
    Cookie,
    Syn,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.messages.header import (
    HEADER,
    HEADER_SIZE,
    ID_SIZE,
    KEY_SIZE,
    NONCE_SIZE,
    SIGNATURE_SIZE,
    SUITE_ALPHA,
    SUITE_PLAIN,
    VERSION,
    BadPacket,
    Kind,
    first_word,
)
from alpha_trio.proto.messages.limits import (
    HALF_OPEN_LIFETIME,
    LEAST_ROOTS,
    MAX_ASSOCIATIONS,
    MAX_DEPTH,
    MAX_PACKETS,
    MAX_RELIABLE,
    MAX_ROOTS,
    MIN_RTO,
    PREVIOUS_LIFETIME,
    REFUSE_AFTER,
)
from alpha_trio.proto.messages.runs import (
    Bodies,
    Run,
    join_frames,
    roots_untrusted,
    split,
    take_bodies,
    take_run,
)

__all__ = [
    "A1",
    "A1_SIZE",
    "A2_OPENING",
    "CONTROL",
    "CONTROL_MESSAGE",
    "COOKIE_SIZE",
    "DATA",
    "DATA_SIZE",
    "DEPTH_MASK",
    "HALF_OPEN_LIFETIME",
    "HEADER",
    "HEADER_SIZE",
    "ID_SIZE",
    "KEY_SIZE",
    "LEAST_ROOTS",
    "MAC_SIZE",
    "MAX_ASSOCIATIONS",
    "MAX_DEPTH",
    "MAX_PACKETS",
    "MAX_RELIABLE",
    "MAX_ROOTS",
    "MIN_RTO",
    "NODE_SIZE",
    "NONCE_SIZE",
    "PREVIOUS_LIFETIME",
    "REFUSE_AFTER",
    "RELIABLE",
    "ROUND",
    "ROUND_HEAD_SIZE",
    "S1_COUNTS",
    "S1_FIXED_SIZE",
    "S2_SIZE",
    "S2_TAIL",
    "SAID_SIZE",
    "SIGNATURE_SIZE",
    "SUITE_ALPHA",
    "SUITE_PLAIN",
    "SYN_SIZE",
    "VERSION",
    "Ack",
    "AckAck",
    "BadPacket",
    "Bodies",
    "Control",
    "Cookie",
    "Kind",
    "Run",
    "Syn",
    "data_word",
    "first_word",
    "join_frames",
    "parse_ack_untrusted",
    "parse_ackack_untrusted",
    "parse_cookie_untrusted",
    "parse_syn_untrusted",
    "roots_untrusted",
    "split",
    "take_bodies",
    "take_run",
]
