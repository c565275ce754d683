"""Handshakes as a relay sees them pass: who may speak, and with which chains.

A SYN is remembered, the ACK is checked against the SYN it answers, and the ACKACK
against both: each is an Ed25519 signature over all that was said before.  With the
third message a relay knows both ends' connection ids, identities and anchors, and that
the owners of the keys agreed to them::

    SYN       remembered, as sent, for HALF_OPEN_LIFETIME
    COOKIE    passes if its SYN did
    SYN       once more with the cookie: the same one, as far as is signed
    ACK       signature of the responder over it
    ACKACK    signature of the initiator over both: an Introduction

What strangers can ask for is bounded: SYNs by source and in all, and signatures to
check, which cost 0.1 ms each, likewise.  A repetition of what passed costs nothing and
passes, REPEATS times.

The bytes 12 to 15 of SYN and ACK belong to the relays on the way (the limit of roots,
see relay.py).  The ends take them for zero when they sign and check, and so do we; and
so they leave out what of a SYN is for the responder alone: cookie, renewal and MAC.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from alpha_trio.proto.batch import Remote
from alpha_trio.proto.messages import (
    HALF_OPEN_LIFETIME,
    Ack,
    BadPacket,
    Syn,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.primitives import verify_untrusted
from alpha_trio.proto.rates import TokenBucket, bucket_of
from alpha_trio.proto.relay.verdict import Refused, RelayDrop

VARIANTS = 3  # ACKs to a SYN
SAME_ID = 4  # handshakes at once with the same connection id
REPEATS = 32  # of an ACK, ACKACK or COOKIE
COST = 1_500  # bytes of a handshake, estimated

SYN_RATE, SYN_BURST = 2_000.0, 2_000.0  # a second, at once; the same below
SOURCE_SYN_RATE, SOURCE_SYN_BURST = 500.0, 500.0  # there may be many behind an address
CHECK_RATE, CHECK_BURST = 1_000.0, 1_000.0  # signatures
SOURCE_CHECK_RATE, SOURCE_CHECK_BURST = 300.0, 300.0


@frozen
class Introduction:
    """Two ends whose handshake passed.  In lenient mode one message may be missing."""

    initiator_id: int
    responder_id: int
    initiator: Remote
    responder: Remote
    syn: Syn | None
    ack: Ack | None
    answer: Answer | None = None  # what the ACKACK ended; none did on its way back

    @property
    def verified(self) -> bool:
        """Whether both have signed."""
        return self.syn is not None and self.ack is not None


@define(eq=False)
class Answer:
    """An ACK with the right signature, and the SYN it is for."""

    asked: Asked
    responder_id: int
    ack: Ack | None  # None: it went another way
    ackack: bytes = b""  # the right one, once it has passed
    repeats: int = 0

    def again(self) -> None:
        """Raises Refused unless one of its messages may pass once more."""
        if self.repeats >= REPEATS:
            raise Refused(RelayDrop.REPLAYED)
        self.repeats += 1


@define(eq=False)
class Asked:
    """A SYN that passed, whatever its cookie."""

    said: bytes  # what is signed of it
    syn: Syn
    sender_id: int
    source: Remote
    destination: Remote
    until: float  # when to forget it
    answers: list[Answer] = field(factory=list)
    cookies: int = 0  # that passed


@define(eq=False)
class Rates:
    """How much of something is done, for everybody and for one source address."""

    total: TokenBucket
    rate: float
    burst: float
    sources: dict[str, TokenBucket] = field(factory=dict)

    def take_untrusted(self, source: Remote, now: float) -> None:
        """Raises Refused beyond the rate.  One source cannot use up what all have."""
        bucket = bucket_of(self.sources, source, self.rate, self.burst)
        if not bucket.take(now) or not self.total.take(now):
            raise Refused(RelayDrop.RATE)


def _syn_rates() -> Rates:
    return Rates(TokenBucket(SYN_RATE, SYN_BURST), SOURCE_SYN_RATE, SOURCE_SYN_BURST)


def _check_rates() -> Rates:
    total = TokenBucket(CHECK_RATE, CHECK_BURST)
    return Rates(total, SOURCE_CHECK_RATE, SOURCE_CHECK_BURST)


@define(eq=False)
class Introductions:
    """All handshakes under way past this relay.

    What its functions refuse with RelayDrop.UNSEEN belongs to a handshake that began
    elsewhere, or before the relay did.
    """

    keys: frozenset[bytes]  # that may; empty: all
    lenient: bool
    kept: int  # SYNs that may wait for their ACKACK, the oldest goes
    asked: dict[bytes, Asked] = field(factory=dict)  # by what is signed, in order
    _by_id: dict[int, list[Asked]] = field(factory=dict)
    _answers: dict[int, list[Answer]] = field(factory=dict)  # by the responder's id
    _syns: Rates = field(factory=_syn_rates)
    _checks: Rates = field(factory=_check_rates)

    @property
    def memory(self) -> int:
        """Bytes, estimated."""
        return COST * len(self.asked)

    def on_syn_untrusted(
        self, datagram: bytes, source: Remote, destination: Remote, now: float
    ) -> None:
        """Remember a SYN.  Raises BadPacket if it must not pass."""
        syn = parse_syn_untrusted(datagram)
        self._allow_untrusted(syn.identity)
        self._syns.take_untrusted(source, now)
        said = syn.said()
        asked = self.asked.get(said)
        if asked is None:
            asked = Asked(said, syn, syn.sender_id, source, destination, now)
            self._remember_untrusted(asked)
        asked.source, asked.destination = source, destination
        asked.until = now + HALF_OPEN_LIFETIME

    def _allow_untrusted(self, identity: bytes) -> None:
        if self.keys and identity not in self.keys:
            raise Refused(RelayDrop.NOT_ALLOWED)

    def _remember_untrusted(self, asked: Asked) -> None:
        if len(self._by_id.get(asked.sender_id, ())) >= SAME_ID:
            raise Refused(RelayDrop.COLLISION)
        if len(self.asked) >= self.kept:
            self._forget(next(iter(self.asked.values())))
        self._by_id.setdefault(asked.sender_id, []).append(asked)
        self.asked[asked.said] = asked

    def on_cookie_untrusted(self, datagram: bytes, destination: Remote) -> None:
        """Raises BadPacket unless it is for somebody who asked."""
        cookie = parse_cookie_untrusted(datagram)
        for asked in self._by_id.get(cookie.receiver_id, ()):
            if asked.syn.nonce == cookie.nonce and asked.source[:2] == destination[:2]:
                if asked.cookies >= REPEATS:
                    raise Refused(RelayDrop.REPLAYED)
                asked.cookies += 1
                return
        raise Refused(RelayDrop.UNSEEN)

    def on_ack_untrusted(
        self, datagram: bytes, source: Remote, destination: Remote, now: float
    ) -> Introduction | None:
        """Check an ACK; in lenient mode one without its SYN introduces its sender.

        Raises BadPacket if it must not pass.
        """
        ack = parse_ack_untrusted(datagram)
        self._allow_untrusted(ack.identity)
        # Wherever it goes: who asks several addresses may do so from several.
        known = self._by_id.get(ack.receiver_id, ())
        for answer in (answer for asked in known for answer in asked.answers):
            if answer.ack == ack:
                answer.again()
                return None
        if not known:
            return self._lone_ack_untrusted(ack, source, destination, now)
        for asked in known:
            self._checks.take_untrusted(source, now)
            signed = asked.said, ack.unsigned()
            if _signed(ack.identity, ack.signature, b"ACK", *signed):
                self._keep_untrusted(Answer(asked, ack.sender_id, ack), now)
                return None
        raise Refused(RelayDrop.BAD_SIGNATURE)

    def _lone_ack_untrusted(
        self, ack: Ack, source: Remote, destination: Remote, now: float
    ) -> Introduction:
        if not self.lenient:
            raise Refused(RelayDrop.UNSEEN)
        self._checks.take_untrusted(source, now)
        ids = ack.receiver_id, ack.sender_id
        return Introduction(*ids, destination, source, None, ack)

    def _keep_untrusted(self, answer: Answer, now: float) -> None:
        asked = answer.asked
        same = self._answers.get(answer.responder_id, [])
        if len(same) >= SAME_ID:
            raise Refused(RelayDrop.COLLISION)
        if len(asked.answers) >= VARIANTS:
            # The responder forgot it, as it answers anew; or somebody else made it.
            oldest = asked.answers.pop(0)
            _remove(self._answers, oldest.responder_id, oldest)
            same = self._answers.get(answer.responder_id, [])
        asked.until = now + HALF_OPEN_LIFETIME
        self._answers[answer.responder_id] = [*same, answer]
        asked.answers.append(answer)

    def on_ackack_untrusted(
        self, datagram: bytes, source: Remote, destination: Remote, now: float
    ) -> Introduction | None:
        """Check an ACKACK.  None: a repetition.  Raises BadPacket if it must not pass.

        An introduction that is taken is to be confirmed.  In lenient mode an ACKACK
        without its ACK introduces the sender of the SYN.
        """
        ackack = parse_ackack_untrusted(datagram)
        known = self._answers.get(ackack.receiver_id, ())
        for answer in known:
            if answer.ackack == datagram:
                answer.again()
                return None
        if not known:
            number = ackack.receiver_id
            return self._lone_ackack_untrusted(number, source, destination, now)
        for answer in known:
            if answer.ackack or answer.ack is None:
                continue
            self._checks.take_untrusted(source, now)
            syn, ack = answer.asked.syn, answer.ack
            said = answer.asked.said, ack.said()
            if ackack.suite != syn.suite:
                continue  # no signature covers it: a copy of the genuine one
            if _signed(syn.identity, ackack.signature, b"ACKACK", *said):
                ids = ack.receiver_id, ack.sender_id
                return Introduction(*ids, source, destination, syn, ack, answer)
        raise Refused(RelayDrop.BAD_SIGNATURE)

    def _lone_ackack_untrusted(
        self, responder_id: int, source: Remote, destination: Remote, now: float
    ) -> Introduction:
        if not self.lenient:
            raise Refused(RelayDrop.UNSEEN)
        self._checks.take_untrusted(source, now)  # it costs as much
        for asked in reversed(self.asked.values()):
            ends = asked.source[:2], asked.destination[:2]
            if ends == (source[:2], destination[:2]) and not asked.answers:
                answer, syn = Answer(asked, responder_id, None), asked.syn
                ids = syn.sender_id, responder_id
                return Introduction(*ids, source, destination, syn, None, answer)
        raise Refused(RelayDrop.UNSEEN)

    def confirm(self, introduction: Introduction, ackack: bytes, now: float) -> None:
        """Its session is known: from now on repetitions of the ACKACK may pass.

        Not before, or a handshake that was refused would pass at the second try.
        """
        answer = introduction.answer
        if answer is None:
            return
        answer.ackack = ackack
        answer.asked.until = now + HALF_OPEN_LIFETIME
        if answer.ack is None:
            self._answers.setdefault(answer.responder_id, []).append(answer)
            answer.asked.answers.append(answer)

    def forget_old(self, now: float) -> None:
        """Forget handshakes that came to nothing, and those that are long over."""
        for asked in [asked for asked in self.asked.values() if asked.until <= now]:
            self._forget(asked)

    def _forget(self, asked: Asked) -> None:
        del self.asked[asked.said]
        _remove(self._by_id, asked.sender_id, asked)
        for answer in asked.answers:
            _remove(self._answers, answer.responder_id, answer)


def _remove(lists: dict[int, list[Any]], key: int, value: object) -> None:
    lists[key].remove(value)
    if not lists[key]:
        del lists[key]


def _signed(identity: bytes, signature: bytes, label: bytes, *said: bytes) -> bool:
    try:
        verify_untrusted(identity, signature, label, *said)
    except BadPacket:
        return False
    return True
