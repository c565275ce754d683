"""The words of a relay: what it is told to do, why it drops, what it tells.

The unit of all counters is the datagram.
"""

from __future__ import annotations

from enum import StrEnum

from attrs import Factory, define, frozen

from alpha_trio.proto.batch import Remote
from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.traces import Counts


class Unseen(StrEnum):
    """What happens to sessions whose handshake did not pass here."""

    PASS = "pass"  # they go on, unverified
    DROP = "drop"
    UNTIL_HANDSHAKE = "until-handshake"
    """They pass until each of them must have made a new handshake: for the life of a
    session after the start of the relay, and between two addresses only until a
    handshake of theirs was verified."""


class Consent(StrEnum):
    """From where an answer has to come, to be one."""

    LINK = "link"
    """From the address its question went to, and by another link than that came by."""
    ADDRESS = "address"  # from the address, by whatever link
    ANY = "any"  # from anywhere


class RelayEarly(StrEnum):
    """What happens to packets that travel inside an S1, before they can be checked."""

    LIMITED = "limited"
    """They pass, as far as what was not proven yet stays within a rate."""
    OFF = "off"  # both ends are told not to, and what comes all the same is dropped


@frozen
class RelayPolicy:
    """How strict a relay is, and how much it may spend."""

    unseen: Unseen = Unseen.UNTIL_HANDSHAKE
    require_a1: bool = True
    """False: lenient, for routes on which the two directions part; see witness.py."""
    keys: frozenset[bytes] = frozenset()
    """Identities (32-byte Ed25519 keys) that may pass, both ends of a session; empty:
    anybody who signs."""
    s1_rate: float = 20_000.0  # fresh S1 a second, each session and direction
    sessions: int = 4096  # at most; the one idle longest goes
    memory: int = 64 << 20  # bytes of all state, by own estimate
    """Likewise, of those that hold more than the average."""
    roots: int = 0  # most roots of an S1, announced in passing handshakes; 0: no limit
    trace: bool = False  # whether to answer the traces of ends whose session passes
    consent: Consent = Consent.LINK
    early: RelayEarly = RelayEarly.LIMITED


class RelayDrop(StrEnum):
    """Why a datagram did not go on.  Each counts under exactly one."""

    MALFORMED = "malformed"  # no message of the protocol, or cut short
    VERSION = "version"  # another version of the protocol
    UNSEEN = "unseen"  # belongs to no handshake that passed here
    PLAIN = "plain"  # DATA: nothing in it can be verified
    NOT_ALLOWED = "not-allowed"  # a handshake of a key that is not listed
    BAD_SIGNATURE = "bad-signature"  # a handshake message that its key did not sign
    WRONG_SIDE = "wrong-side"  # an answer, or a packet, of who was not asked
    RATE = "rate"  # more handshakes than are looked at
    COLLISION = "collision"  # too many sessions with one connection id
    BAD_ROUND = "bad-round"  # S1, A1 or A2 that fits no round
    ROOTS = "too-many-roots"  # S1 above the limit that was announced
    S1_RATE = "s1-rate"  # more S1 than one session may send
    EARLY = "early"  # S1 with packets inside, which may not pass here
    EARLY_RATE = "early-rate"  # likewise, more than may pass before they are proven
    EARLY_FALSE = "early-false"  # the key shows that packets in an S1 were not signed
    UNSOLICITED = "unsolicited"  # S2 the receiver did not agree to
    FORGED = "forged"  # S2 that does not match its pre-signature
    REPLAYED = "replayed"  # passed before, and once more is of no use
    BAD_REPORT = "bad-report"  # an answer to no trace that passed here lately


class Refused(BadPacket):
    """A datagram that must not go on, and why."""

    def __init__(self, reason: RelayDrop) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(error: BadPacket) -> RelayDrop:
    """Why it was refused; a primitive's BadPacket means: fits no round."""
    return error.reason if isinstance(error, Refused) else RelayDrop.BAD_ROUND


@define(eq=False)
class RelayCounters:
    """What went through a relay, in datagrams and their UDP payload bytes."""

    forwarded_packets: int = 0
    forwarded_bytes: int = 0
    unverified_packets: int = 0  # of the forwarded, those that only the policy let pass
    drops: dict[RelayDrop, int] = Factory(dict)
    same_link: int = 0  # answers from the right address, but by their question's link
    evicted: int = 0  # sessions forgotten to make room
    untold: int = 0  # events lost because nobody took them


@frozen
class Traced:
    """A TRACE that passed and is to be answered; Report says what the fields are."""

    receiver_id: int
    tracer: Remote  # where its session is
    nonce: bytes
    forth: Counts
    back: Counts


@frozen
class RelayEnd:
    """One end of a relayed session, and what went towards it."""

    key: bytes | None  # None: its half of the handshake did not pass here
    address: Remote | None
    forwarded: int
    forwarded_bytes: int
    drops: dict[RelayDrop, int]
    associations: int  # whose packets go towards it


@frozen
class RelaySession:
    """A snapshot of a relayed session.  Times are in seconds."""

    initiator: RelayEnd
    responder: RelayEnd
    verified: bool  # False: signatures could not be checked, see RelayPolicy.require_a1
    age: float
    idle: float
    memory: int  # bytes, estimated


class RelayEventKind(StrEnum):
    """What a relay tells about."""

    VERIFIED = "relay-verified"  # a handshake; its session may pass
    DROPPED = "relay-dropped"
    EVICTED = "relay-evicted"  # a session, to make room


@frozen
class RelayEvent:
    """Something an operator may want to know."""

    kind: RelayEventKind
    initiator: Remote | None  # of the session; without one, where it came from
    responder: Remote | None  # likewise, where it wanted to go
    keys: tuple[bytes | None, bytes | None] = (None, None)  # of the two, if known
    reason: RelayDrop | None = None
    count: int = 1  # datagrams, since the event before of this session and reason
