"""The messages on the wire: layouts, packing, and parsing of untrusted bytes.

All integers are big-endian.  Every datagram begins with the same eight bytes::

     0               1               2               3
     0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
    +---------------+---------------+-------------------------------+
    |     kind      |    version    |             suite             |
    +---------------+---------------+-------------------------------+
    |                     receiver's connection id                  |
    +---------------------------------------------------------------+

The connection id is chosen by the receiver, so that it finds its session without
looking at addresses; it is zero in a SYN, which has no session yet.  Functions
that read network bytes end in ``_untrusted`` and raise only :class:`BadPacket`.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from attrs import field, frozen

from alpha_trio.proto.batch import Buffer

VERSION = 1

SUITE_ALPHA = 1
"""ALPHA: SHA-256 cut to 16 bytes, Ed25519, X25519, HKDF-SHA-256, AES-256-CTR."""

SUITE_PLAIN = 2
"""The same handshake, but packets that are neither authenticated nor encrypted."""

SUITES = frozenset({SUITE_ALPHA, SUITE_PLAIN})


class BadPacket(Exception):
    """A datagram that is no message of ours.  The only error bytes can cause."""


class Kind(IntEnum):
    """First byte of every datagram."""

    SYN = 1
    ACK = 2
    ACKACK = 3
    DATA = 4
    S1 = 5
    A1 = 6
    S2 = 7
    A2 = 8
    COOKIE = 9
    REPORT = 10


HEADER = Struct("!BBHI")  # kind, version, suite, receiver's connection id
HEADER_SIZE = HEADER.size

ID_SIZE = 4
NONCE_SIZE = 16
KEY_SIZE = 32  # Ed25519 and X25519 public keys
ANCHOR_SIZE = 16
COOKIE_SIZE = 16
SIGNATURE_SIZE = 64

# header | sender's id, limit, zero | nonce | identity | share | anchors | cookie | pad
_SYN = Struct("!BBHI IH2x 16s 32s 32s 16s 16s 16s 48x")
# header | sender's id, limit, zero | nonce | identity | share | anchors | signature
_ACK = Struct("!BBHI IH2x 16s 32s 32s 16s 16s 64s")
# header | signature
_ACKACK = Struct("!BBHI 64s")
# header | nonce of the SYN | cookie
_COOKIE = Struct("!BBHI 16s 16s")

# Padding makes the SYN as long as its answer: whoever forges a sender address
# gets no more bytes thrown at it than were spent on asking.
SYN_SIZE, ACK_SIZE, ACKACK_SIZE = _SYN.size, _ACK.size, _ACKACK.size

# DATA: header as one word, then the packet counter of the sender, then one frame
# (see frames.py).  Words instead of fields: a receiver compares whole words.
DATA = Struct("!QQ")
DATA_SIZE = DATA.size


@frozen
class Syn:
    """Asks for a session."""

    sender_id: int  # connection id the answer must carry
    nonce: bytes  # NONCE_SIZE random bytes
    identity: bytes  # Ed25519 public key
    share: bytes  # X25519 public key, used for this session only
    signatures: bytes  # anchor of the signature chain of association 0
    acknowledgments: bytes  # anchor of its acknowledgment chain
    cookie: bytes = bytes(COOKIE_SIZE)  # zero, or as the responder asked for it
    suite: int = SUITE_ALPHA
    limit: int = field(default=0, eq=False)  # most roots of an S1, by relays; 0: none

    def pack(self) -> bytes:
        """SYN_SIZE bytes, as an end sends and signs them: without limit."""
        return _SYN.pack(
            Kind.SYN,
            VERSION,
            self.suite,
            0,
            self.sender_id,
            0,
            self.nonce,
            self.identity,
            self.share,
            self.signatures,
            self.acknowledgments,
            self.cookie,
        )


@frozen
class Ack:
    """Answers a SYN."""

    receiver_id: int
    sender_id: int
    nonce: bytes
    identity: bytes
    share: bytes
    signatures: bytes
    acknowledgments: bytes
    signature: bytes = bytes(SIGNATURE_SIZE)  # by the responder
    suite: int = SUITE_ALPHA
    limit: int = field(default=0, eq=False)  # as in a SYN

    def pack(self) -> bytes:
        """ACK_SIZE bytes, as an end sends and signs them: without limit."""
        return _ACK.pack(
            Kind.ACK,
            VERSION,
            self.suite,
            self.receiver_id,
            self.sender_id,
            0,
            self.nonce,
            self.identity,
            self.share,
            self.signatures,
            self.acknowledgments,
            self.signature,
        )

    def unsigned(self) -> bytes:
        """What is signed of it: all but the signature."""
        return self.pack()[:-SIGNATURE_SIZE]


@frozen
class AckAck:
    """Ends the handshake."""

    receiver_id: int
    signature: bytes  # by the initiator
    suite: int = SUITE_ALPHA

    def pack(self) -> bytes:
        """ACKACK_SIZE bytes."""
        head = (Kind.ACKACK, VERSION, self.suite, self.receiver_id)
        return _ACKACK.pack(*head, self.signature)


@frozen
class Cookie:
    """Answers a SYN under load: send it again, with this."""

    receiver_id: int
    nonce: bytes  # of the SYN
    cookie: bytes

    def pack(self) -> bytes:
        """Less bytes than a SYN has."""
        head = (Kind.COOKIE, VERSION, 0, self.receiver_id)
        return _COOKIE.pack(*head, self.nonce, self.cookie)


def parse_syn_untrusted(datagram: Buffer) -> Syn:
    """Raises BadPacket if ``datagram`` is not exactly a SYN of a suite we speak."""
    if len(datagram) != SYN_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, sender_id, limit, *rest = _SYN.unpack(datagram)
    if suite not in SUITES or receiver_id or not sender_id:
        raise BadPacket
    nonce, identity, share, signatures, acknowledgments, cookie = rest
    return Syn(
        sender_id,
        nonce,
        identity,
        share,
        signatures,
        acknowledgments,
        cookie,
        suite,
        limit,
    )


def parse_ack_untrusted(datagram: Buffer) -> Ack:
    """Raises BadPacket if ``datagram`` is not exactly an ACK of a suite we speak."""
    if len(datagram) != ACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, sender_id, limit, *rest = _ACK.unpack(datagram)
    if suite not in SUITES or not sender_id:
        raise BadPacket
    nonce, identity, share, signatures, acknowledgments, signature = rest
    return Ack(
        receiver_id,
        sender_id,
        nonce,
        identity,
        share,
        signatures,
        acknowledgments,
        signature,
        suite,
        limit,
    )


def parse_ackack_untrusted(datagram: Buffer) -> AckAck:
    """Raises BadPacket if ``datagram`` is not exactly an ACKACK we understand."""
    if len(datagram) != ACKACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, signature = _ACKACK.unpack(datagram)
    if suite not in SUITES:
        raise BadPacket
    return AckAck(receiver_id, signature, suite)


def parse_cookie_untrusted(datagram: Buffer) -> Cookie:
    """Raises BadPacket if ``datagram`` is not exactly a COOKIE."""
    if len(datagram) != _COOKIE.size:
        raise BadPacket
    _, _, _, receiver_id, nonce, cookie = _COOKIE.unpack(datagram)
    return Cookie(receiver_id, nonce, cookie)


def first_word(kind: Kind, receiver_id: int) -> int:
    """The first eight bytes of every ``kind`` datagram to ``receiver_id``, a word."""
    return int.from_bytes(HEADER.pack(kind, VERSION, 0, receiver_id))


def data_word(receiver_id: int) -> int:
    """The first eight bytes of every DATA datagram to ``receiver_id``, as a word."""
    return first_word(Kind.DATA, receiver_id)


# -- rounds -------------------------------------------------------------------
#
# S1, A1, S2 and A2 continue the header with one more word that names the round:
#
#     0               1               2               3
#     0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
#    +-------------------------------+---------------+---------------+
#    |          association          | R C zero depth|     zero      |
#    +-------------------------------+---------------+---------------+
#    |                             round                             |
#    +---------------------------------------------------------------+
#    |                  chain element (16 bytes) ...                 |
#
# R: reliable, the receiver answers with A2.  C: the packet is one of control messages,
# which is not encrypted, so that relays can read it, and always reliable.  Round r
# uses the elements 2r+1 (S1, A1) and 2r+2 (S2, A2) of the association's chains.

ROUND = Struct("!HBBI 16s")  # association, shape, zero, round, element
ROUND_HEAD_SIZE = HEADER_SIZE + ROUND.size  # 32

RELIABLE, CONTROL, DEPTH_MASK = 0x80, 0x40, 0x07

# S1: head | packets, roots, zero | roots (16 each) | tag (8)
S1_COUNTS = Struct("!HHI")
S1_FIXED_SIZE = ROUND_HEAD_SIZE + S1_COUNTS.size
MAX_ROOTS = 512  # of one S1: what fits into 8 KiB
LEAST_ROOTS = 4
"""What a sender may use whatever the limit of a handshake is, which nobody signs."""
MAX_PACKETS = 4096
"""Of one round: what has to be remembered of it stays below half a megabyte."""
MAX_RELIABLE = 64
"""Packets of a reliable round: its A1 costs the receiver two leaves for each."""
# A1: head | digest of the S1 (16) | root of the acknowledgment tree (16) | tag (8)
A1 = Struct("!16s 16s")
A1_SIZE = ROUND_HEAD_SIZE + A1.size + 8
# S2: head | branch (16 * depth) | index, zero, offset | body
S2_TAIL = Struct("!HHI")
S2_SIZE = ROUND_HEAD_SIZE + S2_TAIL.size  # without branch and body
# A2: head | openings, all of one round and so of one size | tag (8)
# opening: index, verdict, zero | secret (16) | branch (16 each)
A2_OPENING = Struct("!HBB 16s")
