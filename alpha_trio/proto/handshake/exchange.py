"""SYN / ACK / ACKACK: how two hosts agree on a session.

The host with something to send begins::

    initiator                              responder
        | SYN    id, nonce, key, share,         |   no state unless I is a peer;
        |        anchors of I                   |   under load: COOKIE, no state
        |-------------------------------------->|
        |        id, nonce, key, share,    ACK  |   one half-open answer per peer
        |        anchors of R, signature        |
        |<--------------------------------------|
        | ACKACK signature                      |
        |-------------------------------------->|   session established here
        | S1 ...                                |

Each side signs everything said so far, both sides' connection ids, nonces, keys,
X25519 shares and chain anchors among it.  So nothing can be exchanged on the way,
no clock is needed for freshness, and relays that see the three messages know whose
anchors they hold.

Rules, and the tests that hold them are named after them:

* Only the initiator retransmits, with growing, jittered delay.  A responder that
  repeated its ACK unasked could be used against whoever's address was forged.
* The same SYN again gets the same ACK, the same ACK the same ACKACK.
* A half-open answer never disturbs a live session: it replaces one only when the
  ACKACK has proven who asks.
* Both ends may begin at once: the SYN with the larger nonce goes on, its sender
  does not answer the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from math import inf

from attrs import define, evolve, field, frozen
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from alpha_trio.proto.batch import Place, Remote
from alpha_trio.proto.messages import (
    KEY_SIZE,
    NONCE_SIZE,
    Ack,
    AckAck,
    BadPacket,
    Cookie,
    Syn,
)
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    ELEMENT_SIZE,
    SIGNATURE_CHAIN,
    HashChain,
    Identity,
    SessionKeys,
    chain_id,
    verify_untrusted,
)

STAGGER = 0.25  # s until the next of a peer's addresses is asked as well (RFC 8305)
RETRY_FIRST = 0.5  # s until the first SYN is repeated
RETRY_GROWTH = 1.5
RETRY_MAX = 5.0  # s
RETRY_JITTER = 0.25  # up to this share is added, so that two ends fall out of step
GIVE_UP_AFTER = 90.0  # s of silence

FIRST_SPACING = 32
"""Of the chains of association 0: 1,024 elements, 511 rounds, made in 0.6 ms."""

RandomBytes = Callable[[int], bytes]


def _first_chain(nonce: bytes, kind: bytes, random: RandomBytes) -> HashChain:
    return HashChain.make(chain_id(nonce, kind, 0), random(ELEMENT_SIZE), FIRST_SPACING)


@define(eq=False)
class Offer:
    """What one side brings into a handshake, with the secrets behind it."""

    nonce: bytes
    signatures: HashChain
    acknowledgments: HashChain
    _share: X25519PrivateKey = field(repr=False)

    @classmethod
    def make(cls, random: RandomBytes) -> Offer:
        """Fresh in everything.  Takes about a millisecond, for the two chains."""
        nonce = random(NONCE_SIZE)
        return cls(
            nonce,
            _first_chain(nonce, SIGNATURE_CHAIN, random),
            _first_chain(nonce, ACKNOWLEDGMENT_CHAIN, random),
            X25519PrivateKey.from_private_bytes(random(KEY_SIZE)),
        )

    @property
    def public(self) -> tuple[bytes, bytes, bytes]:
        """X25519 share and the two anchors, in the order of the messages."""
        share = self._share.public_key().public_bytes_raw()
        return share, self.signatures.anchor, self.acknowledgments.anchor

    def agree_untrusted(self, share: bytes, syn: Syn, ack: Ack) -> SessionKeys:
        """The session's keys.  Raises BadPacket if ``share`` gives no secret."""
        try:
            shared = self._share.exchange(X25519PublicKey.from_public_bytes(share))
        except ValueError:  # a point of small order: the result would be known to all
            raise BadPacket from None
        transcript = sha256(syn.pack() + ack.pack()).digest()
        initiator = self.nonce == syn.nonce
        return SessionKeys.derive(shared, transcript, initiator=initiator)


@frozen
class Agreement:
    """What a completed handshake leaves behind: everything a session needs."""

    local_id: int
    remote_id: int
    remote: Remote
    local: bytes
    keys: SessionKeys
    offer: Offer  # ours
    theirs: Syn | Ack  # nonce and anchors of the peer
    lost: bool = False  # the tie against another one: it is there to receive only


@define(eq=False)
class Initiation:
    """Our SYN, on its way until an ACK comes or we give up."""

    syn: Syn
    offer: Offer
    started: float  # seconds, like every time here
    resend_at: float
    attempts: int = 0
    turn: int = 0  # whose of the peer's addresses it is to be asked
    everywhere: bool = False  # all of them at once, the next time
    seen_at: Place | None = None  # where the peer asked from itself since
    answers_seen: bool = False  # whether it went there the last time
    sent_at: float = -inf
    delay: float = RETRY_FIRST  # until the next one, without jitter
    answered_cookie: bool = False

    @classmethod
    def begin(
        cls,
        identity: Identity,
        suite: int,
        local_id: int,
        random: RandomBytes,
        now: float,
        renewal: Callable[[bytes], bytes] | None = None,
    ) -> Initiation:
        """A SYN that is due at once.

        ``renewal``: what shows for a nonce that we have a session with the peer.
        """
        offer = Offer.make(random)
        syn = Syn(local_id, offer.nonce, identity.public, *offer.public, suite=suite)
        if renewal is not None:
            syn = evolve(syn, cookie=renewal(offer.nonce))
        return cls(syn, offer, now, now)

    def expired(self, now: float) -> bool:
        """No answer for so long that nobody is there."""
        return self.attempts > 0 and now >= self.started + GIVE_UP_AFTER

    def sent(self, now: float) -> None:
        """The SYN went out."""
        if self.attempts == 0:
            self.started = now
        self.attempts += 1
        self.sent_at = now

    def next_places(self, places: Sequence[Place]) -> list[Place]:
        """Where it is to go now: to the next of ``places``, or to all of them.

        And where the peer asks from.  If that is the same, and only the address of ours
        is another one, the two take turns: anybody can make up such a question.
        """
        chosen = list(
            places[self.turn :] if self.everywhere else places[self.turn :][:1]
        )
        self.turn += len(chosen)
        seen, self.everywhere = self.seen_at, False
        there = [place for place in chosen if seen and place.remote == seen.remote]
        self.answers_seen = seen is not None and not (there and self.answers_seen)
        if seen is None or not self.answers_seen:
            return chosen
        self.seen_at = None
        return [*(place for place in chosen if place not in there), seen]

    def schedule(self, places: int, now: float, random: RandomBytes) -> None:
        """It went where it had to; choose when it goes again, or is given up.

        ``places``: how many there are to ask, each once before any a second time.
        """
        if self.turn < places:
            self.resend_at = now + STAGGER
            return
        self.turn = 0
        share = int.from_bytes(random(2)) / 0x10000
        again = now + self.delay * (1 + RETRY_JITTER * share)
        self.resend_at = min(again, self.started + GIVE_UP_AFTER)
        self.delay = min(self.delay * RETRY_GROWTH, RETRY_MAX)

    def restart(self, *, everywhere: bool = False) -> None:
        """There is somewhere else to ask: send at once, as if for the first time."""
        self.attempts = self.turn = 0
        self.everywhere = everywhere
        self.encourage()
        self.resend_at = -inf

    def encourage(self) -> None:
        """The peer is there, as it seems: repeat as soon as at first."""
        self.delay = RETRY_FIRST

    def hurry(self, seen_at: Place, now: float) -> None:
        """The peer asks itself, from there: repeat the SYN that it has to answer.

        It may know us only by the address of ours that it asks.  Nothing proves that it
        is the peer, so no more often than at first.
        """
        self.seen_at = seen_at
        self.encourage()
        self.resend_at = min(self.resend_at, max(now, self.sent_at + RETRY_FIRST))

    def take_cookie_untrusted(self, message: Cookie, now: float) -> bool:
        """The peer is busy: ask again with its cookie.  Raises BadPacket if not ours.

        False if it is no time for that.  The first one is answered at once.  Whoever
        reads our SYN can forge others, so they are answered no more often than a SYN
        is repeated at first; nor do they undo meanwhile what the peer was told.
        """
        if message.nonce != self.syn.nonce or message.cookie == self.syn.cookie:
            raise BadPacket
        if self.answered_cookie and now < self.sent_at + RETRY_FIRST:
            return False
        self.answered_cookie = True
        self.syn = evolve(self.syn, cookie=message.cookie)
        return True

    def finish_untrusted(self, ack: Ack, identity: Identity) -> AckAck:
        """The ACKACK for ``ack``.  Raises BadPacket if it does not answer our SYN.

        Whether its identity is the one we want is for the caller to say, before.
        """
        if ack.receiver_id != self.syn.sender_id or ack.suite != self.syn.suite:
            raise BadPacket
        packed = self.syn.pack()
        verify_untrusted(ack.identity, ack.signature, b"ACK", packed, ack.unsigned())
        signature = identity.sign(b"ACKACK", packed, ack.pack())
        return AckAck(ack.sender_id, signature, ack.suite)

    def agree_untrusted(self, ack: Ack, remote: Remote, local: bytes) -> Agreement:
        """The session, once ``ack`` is verified.  Raises BadPacket for a bad share."""
        keys = self.offer.agree_untrusted(ack.share, self.syn, ack)
        ids = ack.receiver_id, ack.sender_id
        return Agreement(*ids, remote, local, keys, self.offer, ack)


@define(eq=False)
class HalfOpen:
    """Our ACK to somebody's SYN, until the ACKACK proves who that is."""

    syn: Syn
    ack: Ack
    offer: Offer
    remote: Remote
    local: bytes
    created: float
    repeats: int = 0  # times the ACK was sent again
    lost: bool = False  # the tie, against a SYN of ours that has led to a session

    @classmethod
    def answer(
        cls,
        syn: Syn,
        identity: Identity,
        local_id: int,
        random: RandomBytes,
        remote: Remote,
        local: bytes,
        now: float,
    ) -> HalfOpen:
        """Accept ``syn`` which came from ``remote`` to our address ``local``."""
        offer = Offer.make(random)
        ack = Ack(
            syn.sender_id,
            local_id,
            offer.nonce,
            identity.public,
            *offer.public,
            suite=syn.suite,
        )
        signature = identity.sign(b"ACK", syn.pack(), ack.unsigned())
        ack = evolve(ack, signature=signature)
        return cls(syn, ack, offer, remote, local, now)

    def verify_untrusted(self, ackack: AckAck) -> None:
        """Raises BadPacket if ``ackack`` does not end this handshake."""
        if ackack.suite != self.syn.suite:
            raise BadPacket
        said = self.syn.pack(), self.ack.pack()
        verify_untrusted(self.syn.identity, ackack.signature, b"ACKACK", *said)

    def agree_untrusted(self, remote: Remote, local: bytes) -> Agreement:
        """The session, once the ACKACK is verified.  Raises BadPacket likewise.

        ``remote`` and ``local`` are the ACKACK's: the SYN's were not proven.
        """
        keys = self.offer.agree_untrusted(self.syn.share, self.syn, self.ack)
        ids = self.ack.sender_id, self.syn.sender_id
        return Agreement(*ids, remote, local, keys, self.offer, self.syn, self.lost)
