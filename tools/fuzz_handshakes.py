"""Handshakes and reports of somebody who knows what it takes to be heard.

MACs are right, and so are signatures, with keys of the attacker's own or the peer's;
everything else is as the script says: identities and shares of small order, what the
other end said itself, ids, suites, limits, cookies and renewals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from random import Random

from attrs import Factory, define, evolve, field
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from alpha_trio.proto.handshake.exchange import HalfOpen
from alpha_trio.proto.messages import (
    COOKIE_SIZE,
    KEY_SIZE,
    MAC_SIZE,
    NODE_SIZE,
    NONCE_SIZE,
    SIGNATURE_SIZE,
    SUITE_ALPHA,
    SUITE_PLAIN,
    Ack,
    AckAck,
    Cookie,
    Kind,
    Syn,
)
from alpha_trio.proto.messages.handshake import parse_cookie_untrusted
from alpha_trio.proto.primitives import Guard, Identity, SessionKeys, Tagger
from alpha_trio.proto.traces import Counts, Report, Role
from alpha_trio.proto.transport import AlphaTransport
from tools.fuzz_world import (
    Choices,
    End,
    World,
    fed,
    insist,
    one_of,
    role_of,
    spoiled,
)

KINDS = ("SYN", "ACK", "ACKACK", "COOKIE", "REPORT")
MOST_STEPS = 4_000  # of one script
_CHECK_EVERY = 32  # steps
_KEPT = 8  # SYNs and answers that more may follow to
_SUITES = (SUITE_ALPHA, SUITE_ALPHA, SUITE_ALPHA, SUITE_PLAIN, 0, 0xFFFF)
_ADDRESSES = ("", "", "", "203.0.113.9", "203.0.113.10", "2001:db8::9")
_MODES = ("adaptive", "adaptive", "plain", "n")
_LIMIT = slice(12, 16)  # of SYN and ACK: counts as zero everywhere

_PRIME = 2**255 - 19
_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_EDWARDS = (0, 1, _PRIME - 1, _PRIME, _PRIME + 1, _EIGHT, _PRIME - _EIGHT)
_EIGHTS = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_IDENTITIES = tuple(
    (y | sign << 255).to_bytes(KEY_SIZE, "little") for y in _EDWARDS for sign in (0, 1)
)
"""Ed25519 keys for which there are signatures that fit anything."""
SMALL_SHARES = tuple(
    u.to_bytes(KEY_SIZE, "little")
    for u in (0, 1, _PRIME - 1, _PRIME, _PRIME + 1, *_EIGHTS)
)
"""X25519 keys with which everybody comes to the same secret."""


@define(eq=False)
class Seen:
    """What can be read on the way, to be said again in another place."""

    ids: Sequence[int] = ()
    nonces: Sequence[bytes] = ()
    anchors: Sequence[bytes] = ()
    keys: Sequence[bytes] = ()  # identities


@define(eq=False)
class Stranger:
    """Somebody with keys of his own, who says what the script wants."""

    random: Random
    identities: list[Identity]  # whose signatures he can make
    psk: bytes | None
    anchors: Callable[[bytes], tuple[bytes, bytes]]
    """Of chains of his own, for a nonce of his own."""
    shares: list[X25519PrivateKey] = field(init=False)
    asked: deque[tuple[Syn, X25519PrivateKey]] = Factory(lambda: deque(maxlen=_KEPT))
    answered: deque[tuple[Syn, Ack]] = Factory(lambda: deque(maxlen=_KEPT))
    cookies: deque[bytes] = Factory(lambda: deque(maxlen=_KEPT))
    signed: set[bytes] = Factory(set)  # what he has signed in ACKs and ACKACKs

    def __attrs_post_init__(self) -> None:
        randbytes = self.random.randbytes
        self.shares = [
            X25519PrivateKey.from_private_bytes(randbytes(KEY_SIZE)) for _ in range(4)
        ]

    def syn(
        self,
        choices: Choices,
        seen: Seen,
        key: bytes,
        renewal: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """A SYN for who has ``key``."""
        private, identity = one_of(choices, self.shares), self._who(choices)
        nonce, signatures, acknowledgments = self._own(choices, seen)
        syn = Syn(
            self._id(choices, seen) or 1 + choices.number(9),
            nonce,
            self._identity(choices, seen, identity),
            self._share(choices, private),
            signatures,
            acknowledgments,
            suite=one_of(choices, _SUITES),
        )
        if choices.number(2) and self.cookies:
            syn = evolve(syn, cookie=one_of(choices, self.cookies))
        elif choices.number(4) == 3:
            syn = evolve(syn, cookie=self.random.randbytes(COOKIE_SIZE))
        if choices.number(4) == 3:
            proof = renewal(syn.said()) if renewal else b"old"
            syn = evolve(syn, renewal=proof.ljust(MAC_SIZE, b"\0"))
        if self.asked and choices.number(4) == 3:  # once more, the rest may differ
            before, private = one_of(choices, self.asked)
            syn = evolve(before, cookie=syn.cookie, renewal=syn.renewal)
        syn = evolve(syn, mac=self.guard(choices, key).mac(syn.guarded()))
        self.asked.append((syn, private))
        return self._sent(choices, syn.pack())

    def ack(self, choices: Choices, seen: Seen, syn: Syn, key: bytes) -> bytes:
        """An ACK to ``syn``, whose sender has ``key``."""
        private, identity = one_of(choices, self.shares), self._who(choices)
        nonce, signatures, acknowledgments = self._own(choices, seen)
        ack = Ack(
            syn.sender_id if choices.number(16) != 15 else self._id(choices, seen),
            self._id(choices, seen) or 1 + choices.number(9),
            nonce,
            self._identity(choices, seen, identity),
            self._share(choices, private),
            signatures,
            acknowledgments,
            suite=syn.suite if choices.number(8) != 7 else one_of(choices, _SUITES),
        )
        ack = evolve(ack, signature=self._signature(choices, identity, syn, ack))
        guard = Guard(key, self.psk)
        ack = evolve(ack, mac=guard.mac(syn.said() + ack.said()))
        self.answered.append((syn, ack))
        return self._sent(choices, ack.pack())

    def ackack(self, choices: Choices, syn: Syn, ack: Ack) -> bytes:
        """The ACKACK to ``ack``, which answers a SYN of ours or of somebody else's."""
        identity = self._signer(syn, choices)
        signature = identity.sign(b"ACKACK", syn.said(), ack.said())
        self.signed.add(signature)
        if choices.number(4) == 3:
            signature = spoiled(choices, signature)[:SIGNATURE_SIZE]
        ackack = AckAck(ack.sender_id, signature, suite=ack.suite)
        tag = self._tag(syn, ack, ackack)
        return self._sent(choices, evolve(ackack, mac=tag).pack())

    def cookie(self, choices: Choices, syn: Syn, key: bytes) -> bytes:
        """A COOKIE for who sent ``syn`` to the owner of ``key``."""
        nonce = syn.nonce
        if choices.number(8) == 7:
            nonce = self.random.randbytes(NONCE_SIZE)
        sealed = self.random.randbytes(COOKIE_SIZE)
        cookie = Cookie(syn.sender_id, nonce, sealed)
        mac = self.guard(choices, key).mac(cookie.guarded())
        return self._sent(choices, evolve(cookie, mac=mac).pack())

    def report(self, choices: Choices, receiver_id: int, nonce: bytes) -> bytes:
        """A REPORT for who sent the TRACE with this nonce."""
        identity = self._who(choices)
        forth, back = (
            Counts(*(int.from_bytes(choices.take(4)) for _ in range(5)))
            for _ in range(2)
        )
        report = Report(
            receiver_id,
            nonce,
            identity.public,
            one_of(choices, (Role.RELAY, Role.END)),
            forth,
            back,
            choices.take(16).ljust(16, b"\0"),
            choices.number(256),
        )
        data = report.signed(identity)
        return spoiled(choices, data) if choices.number(2) else data

    def learn(self, cookie: Cookie, key: bytes) -> None:
        """What somebody sealed for him, as one of both guards may have done it."""
        for known in (key, bytes(KEY_SIZE)):
            guard = Guard(known, self.psk)
            if guard.fits(cookie.guarded(), cookie.mac):
                self.cookies.append(guard.seal(cookie.sealed, cookie.nonce))

    def guard(self, choices: Choices, key: bytes) -> Guard:
        """Of who knows the key, mostly, or does not."""
        return _guard(key if choices.number(4) != 3 else bytes(KEY_SIZE), self.psk)

    # -- what they are made of

    def _who(self, choices: Choices) -> Identity:
        return one_of(choices, self.identities)

    def _id(self, choices: Choices, seen: Seen) -> int:
        if seen.ids and choices.number(8) == 7:
            return one_of(choices, seen.ids)
        return int.from_bytes(choices.take(4))

    def _own(self, choices: Choices, seen: Seen) -> tuple[bytes, bytes, bytes]:
        """Nonce and anchors: fresh, or the other end's."""
        nonce = self.random.randbytes(NONCE_SIZE)
        if choices.number(4) == 3:  # so that he wins the tie
            nonce = b"\xff" * (NONCE_SIZE - 2) + nonce[:2]
        if seen.nonces and choices.number(8) == 7:
            nonce = one_of(choices, seen.nonces)
        signatures, acknowledgments = self.anchors(nonce)
        if seen.anchors and choices.number(8) == 7:
            signatures = one_of(choices, seen.anchors)
        if seen.anchors and choices.number(8) == 7:
            acknowledgments = one_of(choices, seen.anchors)
        return nonce, signatures, acknowledgments

    def _identity(self, choices: Choices, seen: Seen, own: Identity) -> bytes:
        how = choices.number(8)
        if how == 7:
            return one_of(choices, SMALL_IDENTITIES)
        if how == 6 and seen.keys:
            return one_of(choices, seen.keys)
        return own.public

    def _share(self, choices: Choices, private: X25519PrivateKey) -> bytes:
        how = choices.number(8)
        if how == 7:
            return one_of(choices, SMALL_SHARES)
        if how == 6:
            return self.random.randbytes(KEY_SIZE)
        return _public(private)

    def _signature(
        self, choices: Choices, identity: Identity, syn: Syn, ack: Ack
    ) -> bytes:
        signature = identity.sign(b"ACK", syn.said(), ack.unsigned())
        self.signed.add(ack.unsigned() + signature)
        if choices.number(4) == 3:
            return spoiled(choices, signature)[:SIGNATURE_SIZE]
        return signature

    def _signer(self, syn: Syn, choices: Choices) -> Identity:
        """Who asked, if that is one of his; or any of his."""
        known = [own for own in self.identities if own.public == syn.identity]
        return known[0] if known and choices.number(4) != 3 else self._who(choices)

    def _tag(self, syn: Syn, ack: Ack, ackack: AckAck) -> bytes:
        private = next((own for asked, own in self.asked if asked == syn), None)
        if private is None:
            return self.random.randbytes(MAC_SIZE)
        tagger = tagger_of(private, syn, ack, self.psk)
        return tagger.tag(ackack.guarded())

    def _sent(self, choices: Choices, data: bytes) -> bytes:
        """As it goes out: now and then with a limit, or changed after all."""
        how = choices.number(16)
        if how == 15:
            return spoiled(choices, data)
        if how == 14 and data[0] in (Kind.SYN, Kind.ACK):
            limit = choices.take(4).ljust(4, b"\0")
            return data[: _LIMIT.start] + limit + data[_LIMIT.stop :]
        return data


@lru_cache(maxsize=64)
def _guard(key: bytes, psk: bytes | None) -> Guard:
    return Guard(key, psk)


@lru_cache(maxsize=64)
def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


@lru_cache(maxsize=64)
def tagger_of(
    private: X25519PrivateKey, syn: Syn, ack: Ack, psk: bytes | None
) -> Tagger:
    """What makes the MAC of the initiator's ACKACK; of none, if there is no secret."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(ack.share))
    except ValueError:
        shared = bytes(KEY_SIZE)
    transcript = sha256(syn.said() + ack.said()).digest()
    keys = SessionKeys.derive(shared, transcript, psk or b"", initiator=True)
    return Tagger(keys.send_tag)


# -- towards an end --------------------------------------------------------------------


@define(eq=False)
class Scene:
    """Two ends, and a stranger who may have the key of one of them."""

    world: World
    stranger: Stranger
    shares: set[bytes]  # of the stranger

    def feed(self, end: End, kind: str, data: bytes, sender: str = "") -> None:
        """A datagram arrives, and is counted."""
        fed[role_of(self.world, end), kind] += 1
        self.world.arrive(end, data, sender=sender)

    def step(self, end: End, choices: Choices) -> None:
        """Make a message of some kind and let it arrive."""
        kind, world, stranger = one_of(choices, KINDS), self.world, self.stranger
        other, negotiation = world.other(end), end.session.negotiation
        key = end.table.identity.public
        seen = self._seen(end)
        sender = one_of(choices, _ADDRESSES)
        if kind == "SYN":
            line = other.session.current
            renewal = line.line.renewal if isinstance(line, AlphaTransport) else None
            self.feed(end, kind, stranger.syn(choices, seen, key, renewal), sender)
            self._learn(key)
        elif kind == "ACK":
            self.feed(end, kind, self._ack(end, choices, seen, key), sender)
        elif kind == "ACKACK":
            half_open = self._half_open(end, choices)
            syn, ack = half_open or self._made_up(choices, seen)
            self.feed(end, kind, stranger.ackack(choices, syn, ack), sender)
        elif kind == "COOKIE":
            initiation = negotiation.initiation
            syn = initiation.syn if initiation else self._made_up(choices, seen)[0]
            theirs = other.table.identity.public
            self.feed(end, kind, stranger.cookie(choices, syn, theirs), sender)
        else:
            self.feed(end, kind, self._report(end, choices), sender)

    def _seen(self, end: End) -> Seen:
        """What ``end`` has said, and both have shown."""
        keys = [each.table.identity.public for each in self.world.ends]
        ids = [*end.table._by_id]
        initiation = end.session.negotiation.initiation
        offers = [initiation.offer] if initiation else []
        offers += [t.line.agreement.offer for t in end.transports]
        nonces = [offer.nonce for offer in offers]
        anchors = [
            anchor
            for offer in offers
            for anchor in (offer.signatures.anchor, offer.acknowledgments.anchor)
        ]
        return Seen(ids, nonces, anchors, keys)

    def _learn(self, key: bytes) -> None:
        last = self.world.old[-1] if self.world.old else b""
        if last[:1] == bytes([Kind.COOKIE]):
            self.stranger.learn(parse_cookie_untrusted(last), key)

    def _ack(self, end: End, choices: Choices, seen: Seen, key: bytes) -> bytes:
        negotiation = end.session.negotiation
        if negotiation.initiation is None and choices.number(8) == 7:
            end.table.ask(end.session, self.world.now)
            self.world.wait(0.0)
        initiation = negotiation.initiation
        syn = initiation.syn if initiation else self._made_up(choices, seen)[0]
        return self.stranger.ack(choices, seen, syn, key)

    def _half_open(self, end: End, choices: Choices) -> tuple[Syn, Ack] | None:
        """An answer of the end's, mostly to a SYN of the stranger's."""
        answers: list[HalfOpen] = list(end.session.negotiation.answers)
        own = [a for a in answers if a.syn.share in self.shares]
        if choices.number(8) == 7:
            own = answers
        if not own:
            return None
        half_open = one_of(choices, own)
        return half_open.syn, half_open.ack

    def _made_up(self, choices: Choices, seen: Seen) -> tuple[Syn, Ack]:
        ids = one_of(choices, seen.ids or [7]), 1 + choices.number(9)
        rest = bytes(NONCE_SIZE), bytes(KEY_SIZE), bytes(KEY_SIZE)
        anchors = bytes(NODE_SIZE), bytes(NODE_SIZE)
        syn = Syn(ids[0], *rest, *anchors)
        return syn, Ack(ids[1], ids[0], *rest, *anchors)

    def _report(self, end: End, choices: Choices) -> bytes:
        session = end.session
        if session.tracing is None and choices.number(8) == 7:
            end.table.trace(session, choices.number(3), self.world.now)
            self.world.wait(0.0)
            for each in (self.world.other(end), end) * 2:
                self.world.carry(each)
        trace = session.tracing
        if trace is None or not trace.probes:
            ids = [*end.table._by_id] or [7]
            return self.stranger.report(choices, one_of(choices, ids), b"")
        nonce = one_of(choices, trace.probes).nonce
        return self.stranger.report(choices, trace.session, nonce)

    # -- what must hold

    def check(self, *, peer: bool) -> None:
        """Insist on what no handshake may lead to."""
        self.world.check()
        for end in self.world.ends:
            key, session = end.session.negotiation.key, end.session
            insist(key not in SMALL_IDENTITIES, "a key that anybody has is nobody's")
            insist(key != end.table.identity.public, "nobody is his own peer")
            if self.world.known:
                other = self.world.other(end).table.identity.public
                insist(key == other, "a key that was set stays")
            for transport in [*end.transports, session.next]:
                if transport is not None:
                    agreement = transport.line.agreement
                    ours, theirs = agreement.offer, agreement.theirs
                    self._check_session(key, theirs, peer=peer)
                    own = {ours.signatures.anchor, ours.acknowledgments.anchor}
                    said = {theirs.signatures, theirs.acknowledgments}
                    insist(not own & said, "nobody listens to his own chains")
                    insist(ours.nonce != theirs.nonce, "nor to his own word")

    def _check_session(
        self, key: bytes | None, theirs: Syn | Ack, *, peer: bool
    ) -> None:
        insist(theirs.identity == key, "a session is with who has the peer's key")
        if not peer and self.world.known:
            insist(theirs.share not in self.shares, "the stranger has no session")


def signed(data: bytes) -> None:
    """Handshakes of a stranger, or of the peer itself, beside those of two ends."""
    choices = Choices(data)
    random, psk = Random(1), b"\x5a" * 32 if choices.number(4) == 3 else None
    mode, known, peer = one_of(choices, _MODES), choices.number(4) != 3, False
    world = World(mode, random, psk, known)
    stranger = Stranger(
        random,
        [Identity(random.randbytes(32)) for _ in range(2)],
        psk,
        lambda nonce: (random.randbytes(NODE_SIZE), random.randbytes(NODE_SIZE)),
    )
    if choices.number(2):
        peer = True
        end = world.ends[choices.number(2)]
        stranger.identities.append(end.table.identity)
        world.authentic = False
    if mode == "plain":
        world.authentic = False
    scene = Scene(world, stranger, {_public(own) for own in stranger.shares})
    world.meet(one_of(choices, (8, 0, 1, 2, 3)))
    for number in range(MOST_STEPS):
        if choices.over:
            break
        end, what = one_of(choices, world.ends), choices.number(16)
        if what == 0:
            world.carry(end)
        elif what == 1:
            world.speak(end, [bytes(choices.number(64))])
        elif what == 2:
            world.wait(choices.number(2_000) / 1_000)
        elif what == 3 and choices.number(8) == 7:
            world.wait(choices.number(200))
        else:
            scene.step(end, choices)
        if number % _CHECK_EVERY == 0:
            scene.check(peer=peer)
    scene.check(peer=peer)
