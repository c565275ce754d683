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

from attrs import frozen

from alpha_trio.proto.batch import Buffer

VERSION = 1

SUITE_UNAUTHENTICATED = 0
"""No authentication at all: proofs are plain hashes that anyone can compute."""


class BadPacket(Exception):
    """A datagram that is no message of ours.  The only error bytes can cause."""


class Kind(IntEnum):
    """First byte of every datagram."""

    SYN = 1
    ACK = 2
    ACKACK = 3
    DATA = 4


HEADER = Struct("!BBHI")  # kind, version, suite, receiver's connection id
HEADER_SIZE = HEADER.size

ID_SIZE = 4
NONCE_SIZE = 16
PROOF_SIZE = 32

# header | sender's connection id, zero | nonce | padding
_SYN = Struct("!BBHI I4x 16s 32x")
# header | sender's connection id, zero | nonce | proof
_ACK = Struct("!BBHI I4x 16s 32s")
# header | proof
_ACKACK = Struct("!BBHI 32s")

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
    suite: int = SUITE_UNAUTHENTICATED

    def pack(self) -> bytes:
        """SYN_SIZE bytes."""
        return _SYN.pack(Kind.SYN, VERSION, self.suite, 0, self.sender_id, self.nonce)


@frozen
class Ack:
    """Answers a SYN."""

    receiver_id: int
    sender_id: int
    nonce: bytes
    proof: bytes  # over SYN and ACK
    suite: int = SUITE_UNAUTHENTICATED

    def pack(self) -> bytes:
        """ACK_SIZE bytes."""
        head = (Kind.ACK, VERSION, self.suite, self.receiver_id)
        return _ACK.pack(*head, self.sender_id, self.nonce, self.proof)


@frozen
class AckAck:
    """Ends the handshake."""

    receiver_id: int
    proof: bytes  # over SYN, ACK and ACKACK
    suite: int = SUITE_UNAUTHENTICATED

    def pack(self) -> bytes:
        """ACKACK_SIZE bytes."""
        head = (Kind.ACKACK, VERSION, self.suite, self.receiver_id)
        return _ACKACK.pack(*head, self.proof)


def parse_syn_untrusted(datagram: Buffer) -> Syn:
    """Raises BadPacket if ``datagram`` is not exactly a SYN of a suite we speak."""
    if len(datagram) != SYN_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, sender_id, nonce = _SYN.unpack(datagram)
    if suite != SUITE_UNAUTHENTICATED or receiver_id or not sender_id:
        raise BadPacket
    return Syn(sender_id, nonce, suite)


def parse_ack_untrusted(datagram: Buffer) -> Ack:
    """Raises BadPacket if ``datagram`` is not exactly an ACK of a suite we speak."""
    if len(datagram) != ACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, sender_id, nonce, proof = _ACK.unpack(datagram)
    if suite != SUITE_UNAUTHENTICATED or not sender_id:
        raise BadPacket
    return Ack(receiver_id, sender_id, nonce, proof, suite)


def parse_ackack_untrusted(datagram: Buffer) -> AckAck:
    """Raises BadPacket if ``datagram`` is not exactly an ACKACK we understand."""
    if len(datagram) != ACKACK_SIZE:
        raise BadPacket
    _, _, suite, receiver_id, proof = _ACKACK.unpack(datagram)
    if suite != SUITE_UNAUTHENTICATED:
        raise BadPacket
    return AckAck(receiver_id, proof, suite)


def data_word(receiver_id: int) -> int:
    """The first eight bytes of every DATA datagram to ``receiver_id``, as a word."""
    return int.from_bytes(HEADER.pack(Kind.DATA, VERSION, 0, receiver_id))
