"""SYN, ACK, ACKACK and COOKIE: layouts, packing, and parsing of untrusted bytes."""

from __future__ import annotations

from struct import Struct
from typing import Any

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
MAC_SIZE = 16

# header | sender's id, limit, marks, options | nonce | identity | share | anchors
_SAID = Struct("!BBHI IHBB 16s 32s 32s 16s 16s")
_SYN_TAIL = Struct("!16s 16s 16s 32x")  # cookie | renewal | mac | pad
_ACK_TAIL = Struct("!64s 16s")  # signature | mac
# header | signature | mac
_ACKACK = Struct("!BBHI 64s 16s")
# header | nonce of the SYN | sealed cookie | mac
_COOKIE = Struct("!BBHI 16s 16s 16s")

SAID_SIZE = _SAID.size
"""Of a SYN or ACK: what is signed.  The rest of a SYN is for the responder alone."""

# Padding makes the SYN as long as its answer: whoever forges a sender address
# gets no more bytes thrown at it than were spent on asking.
SYN_SIZE, ACK_SIZE = SAID_SIZE + _SYN_TAIL.size, SAID_SIZE + _ACK_TAIL.size
ACKACK_SIZE = _ACKACK.size

NO_EARLY = 0x01
"""A mark of relays, which nobody signs: no early data on this way."""
EARLY = 0x01
"""An option of ends, which is signed: we take early data.  In an ACK also: and the SYN
had no mark against it."""


@frozen
class Syn:
    """Asks for a session.  Two are equal if what is signed of them is."""

    sender_id: int  # connection id the answer must carry
    nonce: bytes  # NONCE_SIZE random bytes
    identity: bytes  # Ed25519 public key
    share: bytes  # X25519 public key, used for this session only
    signatures: bytes  # anchor of the signature chain of association 0
    acknowledgments: bytes  # anchor of its acknowledgment chain
    cookie: bytes = field(default=bytes(COOKIE_SIZE), eq=False)  # or as asked for
    renewal: bytes = field(default=bytes(MAC_SIZE), eq=False)  # shows a session; or 0
    mac: bytes = field(default=bytes(MAC_SIZE), eq=False)  # by who knows the responder
    suite: int = SUITE_ALPHA
    limit: int = field(default=0, eq=False)  # most roots of an S1, by relays; 0: none
    marks: int = field(default=0, eq=False)  # by relays
    options: int = 0

    def said(self) -> bytes:
        """SAID_SIZE bytes: what both ends sign, and so without limit and marks."""
        return _SAID.pack(
            Kind.SYN,
            VERSION,
            self.suite,
            0,
            self.sender_id,
            0,
            0,
            self.options,
            self.nonce,
            self.identity,
            self.share,
            self.signatures,
            self.acknowledgments,
        )

    def guarded(self) -> bytes:
        """What its MAC covers."""
        return self.said() + self.cookie + self.renewal

    def pack(self) -> bytes:
        """SYN_SIZE bytes, as an end sends them."""
        return self.said() + _SYN_TAIL.pack(self.cookie, self.renewal, self.mac)


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
    mac: bytes = field(default=bytes(MAC_SIZE), eq=False)  # by who knows the initiator
    suite: int = SUITE_ALPHA
    limit: int = field(default=0, eq=False)  # as in a SYN
    marks: int = field(default=0, eq=False)
    options: int = 0

    def unsigned(self) -> bytes:
        """SAID_SIZE bytes: what the responder signs of it."""
        return _SAID.pack(
            Kind.ACK,
            VERSION,
            self.suite,
            self.receiver_id,
            self.sender_id,
            0,
            0,
            self.options,
            self.nonce,
            self.identity,
            self.share,
            self.signatures,
            self.acknowledgments,
        )

    def said(self) -> bytes:
        """The same with the signature: what the initiator signs of it."""
        return self.unsigned() + self.signature

    def pack(self) -> bytes:
        """ACK_SIZE bytes, as an end sends them."""
        return self.said() + self.mac


def is_reflected(syn: Syn, ack: Ack) -> bool:
    """Whether an answer has the nonce, or a chain, of who asks.

    Then the asker's own word could pass for the answerer's; nobody takes it.
    """
    anchors = {syn.signatures, syn.acknowledgments}
    theirs = ack.signatures, ack.acknowledgments
    return ack.nonce == syn.nonce or not anchors.isdisjoint(theirs)


@frozen
class AckAck:
    """Ends the handshake."""

    receiver_id: int
    signature: bytes  # by the initiator
    mac: bytes = bytes(MAC_SIZE)  # under the keys of the session it begins
    suite: int = SUITE_ALPHA

    def guarded(self) -> bytes:
        """What its MAC covers: all before it."""
        head = (Kind.ACKACK, VERSION, self.suite, self.receiver_id)
        return _ACKACK.pack(*head, self.signature, b"")[:-MAC_SIZE]

    def pack(self) -> bytes:
        """ACKACK_SIZE bytes."""
        return self.guarded() + self.mac


@frozen
class Cookie:
    """Answers a SYN under load: send it again, with this."""

    receiver_id: int
    nonce: bytes  # of the SYN
    sealed: bytes  # the cookie, readable to who knows the responder and saw the SYN
    mac: bytes = bytes(MAC_SIZE)  # likewise

    def guarded(self) -> bytes:
        """What its MAC covers: all before it."""
        head = (Kind.COOKIE, VERSION, 0, self.receiver_id)
        return _COOKIE.pack(*head, self.nonce, self.sealed, b"")[:-MAC_SIZE]

    def pack(self) -> bytes:
        """Less bytes than a SYN has."""
        return self.guarded() + self.mac


def parse_syn_untrusted(datagram: Buffer) -> Syn:
    """Raises BadPacket if ``datagram`` is not exactly a SYN of a suite we speak."""
    if len(datagram) != SYN_SIZE:
        raise BadPacket
    suite, receiver_id, sender_id, about, said = _parse_said(datagram)
    if suite not in SUITES or receiver_id or not sender_id:
        raise BadPacket
    tail = _SYN_TAIL.unpack_from(datagram, SAID_SIZE)
    fields = sender_id, *said, *tail, suite, *about
    return Syn(*fields)


def parse_ack_untrusted(datagram: Buffer) -> Ack:
    """Raises BadPacket if ``datagram`` is not exactly an ACK of a suite we speak."""
    if len(datagram) != ACK_SIZE:
        raise BadPacket
    suite, receiver_id, sender_id, about, said = _parse_said(datagram)
    if suite not in SUITES or not sender_id:
        raise BadPacket
    tail = _ACK_TAIL.unpack_from(datagram, SAID_SIZE)
    fields = receiver_id, sender_id, *said, *tail, suite, *about
    return Ack(*fields)


def _parse_said(
    datagram: Buffer,
) -> tuple[int, int, int, tuple[int, int, int], list[Any]]:
    """Suite, the two ids, limit with marks and options, and what is random bytes."""
    _, _, suite, receiver_id, sender_id, limit, marks, options, *said = (
        _SAID.unpack_from(datagram)
    )
    return suite, receiver_id, sender_id, (limit, marks, options), said


def parse_ackack_untrusted(datagram: Buffer) -> AckAck:
    """Raises BadPacket if ``datagram`` is not exactly an ACKACK we understand."""
    if len(datagram) != ACKACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, signature, mac = _ACKACK.unpack(datagram)
    if suite not in SUITES:
        raise BadPacket
    return AckAck(receiver_id, signature, mac, suite)


def parse_cookie_untrusted(datagram: Buffer) -> Cookie:
    """Raises BadPacket if ``datagram`` is not exactly a COOKIE."""
    if len(datagram) != _COOKIE.size:
        raise BadPacket
    _, _, _, receiver_id, *rest = _COOKIE.unpack(datagram)
    return Cookie(receiver_id, *rest)
