"""SYN, ACK, ACKACK and COOKIE: layouts, packing, and parsing of untrusted bytes."""

from __future__ import annotations

from struct import Struct

from attrs import field, frozen

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages.header import (
    SIGNATURE_SIZE,
    SUITE_ALPHA,
    SUITES,
    VERSION,
    BadPacket,
    Kind,
)

ANCHOR_SIZE = 16
COOKIE_SIZE = 16

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
    fields = sender_id, *rest, suite, limit
    return Syn(*fields)


def parse_ack_untrusted(datagram: Buffer) -> Ack:
    """Raises BadPacket if ``datagram`` is not exactly an ACK of a suite we speak."""
    if len(datagram) != ACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, sender_id, limit, *rest = _ACK.unpack(datagram)
    if suite not in SUITES or not sender_id:
        raise BadPacket
    fields = receiver_id, sender_id, *rest, suite, limit
    return Ack(*fields)


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
