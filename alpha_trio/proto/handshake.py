"""SYN / ACK / ACKACK: how two hosts agree on a pair of connection ids.

The host with something to send begins::

    initiator                              responder
        | SYN    id of I, nonce of I            |   no state unless I is a peer
        |-------------------------------------->|
        |    id of R, nonce of R, proof    ACK  |   one half-open answer per peer
        |<--------------------------------------|
        | ACKACK proof                          |
        |-------------------------------------->|   session established here, or
        | DATA ...                              |   with the first packet

Rules, and the tests that hold them are named after them:

* Only the initiator retransmits, with growing, jittered delay.  A responder that
  repeated its ACK unasked could be used against whoever's address was forged.
* The same SYN again gets the same ACK, the same ACK the same ACKACK.
* A half-open answer never disturbs a live session.
* Both ends may begin at once: the SYN with the larger nonce goes on, its sender
  does not answer the other one.
* Should both be answered all the same, both sessions can carry packets, so that
  it does not matter which end holds which for the current one.

THE PROOFS OF THIS STAGE PROVE NOTHING: they are plain hashes of the messages
which anyone can compute.  They hold the place of the signatures, and tell a
handshake that got mixed up from one that fits together.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from math import inf

from attrs import define

from alpha_trio.proto.batch import Remote
from alpha_trio.proto.wire import NONCE_SIZE, PROOF_SIZE, Ack, AckAck, BadPacket, Syn

RETRY_FIRST = 0.5  # s until the first SYN is repeated
RETRY_GROWTH = 2.0
RETRY_MAX = 10.0  # s
RETRY_JITTER = 0.25  # up to this share is added, so that two ends fall out of step
GIVE_UP_AFTER = 90.0  # s of silence
HALF_OPEN_LIFETIME = 20.0  # s a responder waits for the ACKACK

RandomBytes = Callable[[int], bytes]


def unauthenticated_proof(label: bytes, *messages: bytes) -> bytes:
    """PROOF_SIZE bytes anyone can compute; stands where a signature will stand."""
    return sha256(b"alpha-trio unauthenticated " + label + b"".join(messages)).digest()


@define(eq=False)
class Initiation:
    """Our SYN, on its way until an ACK comes or we give up."""

    syn: Syn
    started: float  # seconds, like every time here
    resend_at: float
    attempts: int = 0

    @classmethod
    def begin(cls, local_id: int, random: RandomBytes, now: float) -> Initiation:
        """A SYN that is due at once."""
        return cls(Syn(local_id, random(NONCE_SIZE)), now, now)

    def expired(self, now: float) -> bool:
        """No answer for so long that nobody is there."""
        return self.attempts > 0 and now >= self.started + GIVE_UP_AFTER

    def sent(self, now: float, random: RandomBytes) -> None:
        """The SYN went out; choose when it goes again, or is given up."""
        if self.attempts == 0:
            self.started = now
        delay = min(RETRY_FIRST * RETRY_GROWTH**self.attempts, RETRY_MAX)
        share = int.from_bytes(random(2)) / 0x10000
        self.attempts += 1
        again = now + delay * (1 + RETRY_JITTER * share)
        self.resend_at = min(again, self.started + GIVE_UP_AFTER)

    def restart(self) -> None:
        """There is somewhere else to ask: send at once, as if for the first time."""
        self.attempts = 0
        self.resend_at = -inf

    def hurry(self, now: float) -> None:
        """The peer is there and asks itself: repeat the SYN that it has to answer."""
        if self.resend_at - now > RETRY_FIRST:
            self.resend_at = now + RETRY_FIRST

    def wins_against(self, other: Syn) -> bool:
        """The tie-break when both ends began; the other end computes the opposite.

        Our own SYN, sent back to us by somebody, loses too.
        """
        return self.syn.nonce >= other.nonce

    def finish_untrusted(self, ack: Ack) -> AckAck:
        """The ACKACK for ``ack``.  Raises BadPacket if it does not answer our SYN."""
        if ack.receiver_id != self.syn.sender_id or ack.proof != _ack_proof(
            self.syn, ack.receiver_id, ack.sender_id, ack.nonce
        ):
            raise BadPacket
        return AckAck(ack.sender_id, _ackack_proof(self.syn, ack))


@define(eq=False)
class HalfOpen:
    """Our ACK to somebody's SYN, until the ACKACK or a packet proves it arrived."""

    syn: Syn
    ack: Ack
    remote: Remote
    local: bytes
    created: float

    @classmethod
    def answer(
        cls,
        syn: Syn,
        local_id: int,
        random: RandomBytes,
        remote: Remote,
        local: bytes,
        now: float,
    ) -> HalfOpen:
        """Accept ``syn`` which came from ``remote`` to our address ``local``."""
        nonce = random(NONCE_SIZE)
        proof = _ack_proof(syn, syn.sender_id, local_id, nonce)
        ack = Ack(syn.sender_id, local_id, nonce, proof)
        return cls(syn, ack, remote, local, now)

    def verify_untrusted(self, ackack: AckAck) -> None:
        """Raises BadPacket if ``ackack`` does not end this handshake."""
        if ackack.proof != _ackack_proof(self.syn, self.ack):
            raise BadPacket


def _ack_proof(syn: Syn, receiver_id: int, sender_id: int, nonce: bytes) -> bytes:
    unproven = Ack(receiver_id, sender_id, nonce, bytes(PROOF_SIZE))
    return unauthenticated_proof(b"ACK", syn.pack(), unproven.pack())


def _ackack_proof(syn: Syn, ack: Ack) -> bytes:
    return unauthenticated_proof(b"ACKACK", syn.pack(), ack.pack())
