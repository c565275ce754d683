"""SYN / ACK / ACKACK: how two hosts agree on a session.

The host with something to send begins::

    initiator                              responder
        | SYN    id, nonce, key, share,         |   no state unless I is a peer;
        |        anchors of I, MAC              |   under load: COOKIE, no state
        |-------------------------------------->|
        |        id, nonce, key, share,    ACK  |   a few half-open answers a peer
        |        anchors of R, signature, MAC   |
        |<--------------------------------------|
        | ACKACK signature, MAC                 |
        |-------------------------------------->|   session established here
        | S1 ...                                |

Each side signs everything said so far, both sides' connection ids, nonces, keys,
X25519 shares and chain anchors among it.  So nothing can be exchanged on the way,
no clock is needed for freshness, and relays that see the three messages know whose
anchors they hold.  Cookie, proof of renewal and MAC of a SYN are not signed: they are
for the responder alone, and an ACK is good for every variant of them.

The MACs are there to turn away at the cost of a hash who does not know what a peer
knows; what is proven rests on the signatures.

Rules, and the tests that hold them are named after them:

* Only the initiator retransmits, with growing, jittered delay.  A responder that
  repeated its ACK unasked could be used against whoever's address was forged.
* The same SYN again gets the same ACK, the same ACK the same ACKACK.
* A SYN is repeated in turn with and without cookie: none that is wrong, forged or of a
  responder that was restarted since, stops a handshake.
* A half-open answer never disturbs a live session: it replaces one only when the
  ACKACK has proven who asks, and something came in the new one.
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
    COOKIE_SIZE,
    EARLY,
    KEY_SIZE,
    NO_EARLY,
    NONCE_SIZE,
    Ack,
    AckAck,
    BadPacket,
    Cookie,
    Syn,
    is_reflected,
)
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    ELEMENT_SIZE,
    SIGNATURE_CHAIN,
    Guard,
    HashChain,
    Identity,
    RandomBytes,
    SessionKeys,
    Tagger,
    chain_id,
    verify_untrusted,
)
from alpha_trio.proto.rates import TokenBucket

STAGGER = 0.25  # s until the next of a peer's addresses is asked as well (RFC 8305)
RETRY_FIRST = 0.5  # s until the first SYN is repeated
RETRY_GROWTH = 1.5
RETRY_MAX = 5.0  # s
COOKIE_RATE, COOKIE_BURST = 2.0, 3.0  # cookies a second that are answered at once
CHECK_RATE, CHECK_BURST = 4.0, 8.0  # signatures a second that are checked for one SYN
ANSWER_CHECKS, ANSWER_CHECK_BURST = 1.0, 4.0  # the same for one of our answers
HINTED_ATTEMPTS = 3  # SYNs sent because of something that proves nothing
RETRY_JITTER = 0.25  # up to this share is added, so that two ends fall out of step
GIVE_UP_AFTER = 90.0  # s of silence

FIRST_SPACING = 32
"""Of the chains of association 0: 1,024 elements, 511 rounds, made in 0.6 ms."""

_BLIND_EVERY = 3  # SYNs


def _first_chain(nonce: bytes, kind: bytes, random: RandomBytes) -> HashChain:
    return HashChain.make(chain_id(nonce, kind, 0), random(ELEMENT_SIZE), FIRST_SPACING)


@define(eq=False)
class Offer:
    """What one side brings into a handshake, with the secrets behind it."""

    nonce: bytes
    signatures: HashChain
    acknowledgments: HashChain
    _share: X25519PrivateKey | None = field(repr=False)  # None: it has done its work

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
        assert self._share is not None
        share = self._share.public_key().public_bytes_raw()
        return share, self.signatures.anchor, self.acknowledgments.anchor

    def agree_untrusted(
        self, share: bytes, syn: Syn, ack: Ack, psk: bytes | None = None
    ) -> SessionKeys:
        """The session's keys.  Raises BadPacket if ``share`` gives no secret."""
        assert self._share is not None
        try:
            shared = self._share.exchange(X25519PublicKey.from_public_bytes(share))
        except ValueError:  # a point of small order: the result would be known to all
            raise BadPacket from None
        transcript = sha256(syn.said() + ack.said()).digest()
        initiator = self.nonce == syn.nonce
        return SessionKeys.derive(shared, transcript, psk or b"", initiator=initiator)

    def forget_share(self) -> None:
        """The keys are made, and nobody is to make them again."""
        self._share = None


@frozen
class Agreement:
    """What a completed handshake leaves behind: everything a session needs."""

    local_id: int
    remote_id: int
    remote: Remote
    local: bytes
    keys: SessionKeys = field(repr=False)
    offer: Offer  # ours
    theirs: Syn | Ack  # nonce and anchors of the peer
    lost: bool = False  # the tie against another one: it is there to receive only
    takes_early: bool = False  # as we have told the peer
    early: bool = False  # as our settings had it then, whatever relays said


@define(eq=False)
class Initiation:
    """Our SYN, on its way until an ACK comes or we give up."""

    syn: Syn  # without cookie
    offer: Offer
    guard: Guard  # for who is to answer
    blind: Guard  # the same, whatever its key is
    ours: Guard  # for us, who are to be answered
    psk: bytes | None = field(repr=False)
    started: float  # seconds, like every time here
    resend_at: float
    hinted: bool = False  # nobody here wants it: something has come that proves nothing
    attempts: int = 0
    turn: int = 0  # whose of the peer's addresses it is to be asked
    everywhere: bool = False  # all of them at once, the next time
    seen_at: Place | None = None  # where the peer asked from itself since
    answers_seen: bool = False  # whether it went there the last time
    sent_at: float = -inf
    delay: float = RETRY_FIRST  # until the next one, without jitter
    _cookie: bytes = bytes(COOKIE_SIZE)  # the latest
    _cookie_guard: Guard | None = None  # by which it was made
    _cookies: TokenBucket = field(
        factory=lambda: TokenBucket(COOKIE_RATE, COOKIE_BURST)
    )
    _checks: TokenBucket = field(factory=lambda: TokenBucket(CHECK_RATE, CHECK_BURST))
    _keys: SessionKeys | None = field(default=None, repr=False)

    @classmethod
    def begin(
        cls,
        identity: Identity,
        suite: int,
        local_id: int,
        random: RandomBytes,
        now: float,
        renewal: Callable[[bytes], bytes] | None = None,
        *,
        key: bytes | None = None,
        psk: bytes | None = None,
        early: bool = False,
    ) -> Initiation:
        """A SYN that is due at once.

        ``renewal``: what shows, for what the SYN says, that we have a session with the
        peer.  ``key``: the peer's, if it is known.  ``early``: we take early data.
        """
        offer = Offer.make(random)
        said = local_id, offer.nonce, identity.public, *offer.public
        syn = Syn(*said, suite=suite, options=EARLY * early)
        if renewal is not None:
            syn = evolve(syn, renewal=renewal(syn.said()))
        blind, ours = Guard(bytes(KEY_SIZE), psk), Guard(identity.public, psk)
        guard = blind if key is None else Guard(key, psk)
        return cls(syn, offer, guard, blind, ours, psk, now, now)

    def variant(self) -> bytes:
        """The SYN as it is to be sent now: in turn with and without the cookie.

        And now and then as if the peer's key were not known, so that one that has
        another is not merely silent.
        """
        cookie = self._cookie if self.attempts % 2 else bytes(COOKIE_SIZE)
        blind = self.attempts % _BLIND_EVERY == _BLIND_EVERY - 1
        return self._packed(cookie, self.blind if blind else self.guard)

    def with_cookie(self) -> bytes:
        """The SYN with the latest cookie."""
        return self._packed(self._cookie, self._cookie_guard or self.guard)

    def _packed(self, cookie: bytes, guard: Guard) -> bytes:
        syn = evolve(self.syn, cookie=cookie)
        return evolve(syn, mac=guard.mac(syn.guarded())).pack()

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

        False if it is no time for that: whoever reads our SYN, and knows whom it is
        for, can make cookies, and they must not become as many SYNs.
        """
        if message.nonce != self.syn.nonce:
            raise BadPacket
        for guard in (self.guard, self.blind):
            if guard.fits(message.guarded(), message.mac):
                break
        else:
            raise BadPacket
        self._cookie = guard.seal(message.sealed, message.nonce)
        self._cookie_guard = guard
        return self._cookies.take(now)

    def finish_untrusted(
        self, ack: Ack, identity: Identity, now: float = 0.0
    ) -> AckAck:
        """The ACKACK for ``ack``.  Raises BadPacket if it does not answer our SYN.

        Whether its identity is the one we want is for the caller to say, before.
        """
        if ack.receiver_id != self.syn.sender_id or ack.suite != self.syn.suite:
            raise BadPacket
        if is_reflected(self.syn, ack):
            raise BadPacket
        said = self.syn.said()
        if not self.ours.fits(said + ack.said(), ack.mac):
            raise BadPacket
        if not self._checks.take(now):
            raise BadPacket
        verify_untrusted(ack.identity, ack.signature, b"ACK", said, ack.unsigned())
        keys = self.offer.agree_untrusted(ack.share, self.syn, ack, self.psk)
        signature = identity.sign(b"ACKACK", said, ack.said())
        ackack = AckAck(ack.sender_id, signature, suite=ack.suite)
        self._keys = keys
        return evolve(ackack, mac=Tagger(keys.send_tag).tag(ackack.guarded()))

    def agree(self, ack: Ack, remote: Remote, local: bytes) -> Agreement:
        """The session, once ``ack`` has finished it."""
        assert self._keys is not None
        self.offer.forget_share()
        ids, early = (ack.receiver_id, ack.sender_id), bool(self.syn.options & EARLY)
        place = remote, local
        keys, offer = self._keys, self.offer
        told = False, early, early
        return Agreement(*ids, *place, keys, offer, ack, *told)


@define(eq=False)
class HalfOpen:
    """Our ACK to somebody's SYN, until the ACKACK proves who that is."""

    syn: Syn
    ack: Ack
    offer: Offer
    remote: Remote
    local: bytes
    created: float
    psk: bytes | None = field(default=None, repr=False)
    early: bool = False  # as our settings have it
    repeats: int = 0  # times the ACK was sent again
    lost: bool = False  # the tie, against a SYN of ours that has led to a session
    _keys: SessionKeys | None = field(default=None, repr=False)
    _tagger: Tagger | None = None
    _checks: TokenBucket = field(
        factory=lambda: TokenBucket(ANSWER_CHECKS, ANSWER_CHECK_BURST)
    )

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
        psk: bytes | None = None,
        *,
        early: bool = False,
    ) -> HalfOpen:
        """Accept ``syn`` which came from ``remote`` to our address ``local``.

        ``early``: we take early data, unless a relay asked not to send any.
        """
        offer = Offer.make(random)
        takes_early = early and not syn.marks & NO_EARLY
        ack = Ack(
            syn.sender_id,
            local_id,
            offer.nonce,
            identity.public,
            *offer.public,
            suite=syn.suite,
            options=EARLY * takes_early,
        )
        signature = identity.sign(b"ACK", syn.said(), ack.unsigned())
        ack = evolve(ack, signature=signature)
        mac = Guard(syn.identity, psk).mac(syn.said() + ack.said())
        ack = evolve(ack, mac=mac)
        return cls(syn, ack, offer, remote, local, now, psk, early)

    def verify_untrusted(self, ackack: AckAck, now: float = 0.0) -> None:
        """Raises BadPacket if ``ackack`` does not end this handshake.

        Its MAC takes keys that only who made the SYN can have; so who merely saw it
        can neither have signatures checked, nor use up how many are.
        """
        if ackack.suite != self.syn.suite:
            raise BadPacket
        if self._tagger is None:
            said = self.syn.share, self.syn, self.ack, self.psk
            self._keys = self.offer.agree_untrusted(*said)
            self._tagger = Tagger(self._keys.receive_tag)
        if not self._tagger.fits(ackack.guarded(), ackack.mac):
            raise BadPacket
        if not self._checks.take(now):
            raise BadPacket
        said_all = self.syn.said(), self.ack.said()
        verify_untrusted(self.syn.identity, ackack.signature, b"ACKACK", *said_all)

    def agree(self, remote: Remote, local: bytes) -> Agreement:
        """The session, once the ACKACK is verified.

        ``remote`` and ``local`` are the ACKACK's: the SYN's were not proven.
        """
        assert self._keys is not None
        self.offer.forget_share()
        return Agreement(
            self.ack.sender_id,
            self.syn.sender_id,
            remote,
            local,
            self._keys,
            self.offer,
            self.syn,
            self.lost,
            takes_early=bool(self.ack.options & EARLY),
            early=self.early,
        )
