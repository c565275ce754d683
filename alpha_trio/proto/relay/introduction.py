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

A responder's answer need not be the first that comes: who sees a SYN can answer it,
too, signed by a key of its own.  So several answers to a SYN are known, of which chance
forgets one for each that comes, and the ACKACK decides.  One whose key is that of the
other end in a session this relay has verified, as when a session is renewed, has a
place that others cannot take.

All answers are taken only from where the SYN went (consent.py).  What strangers can ask
for is bounded (budgets.py), and the cheap questions come first: address, link, ids, and
whether what passed before is repeated, which may be once each REPEAT_AFTER.

The bytes 12 to 14 of SYN and ACK belong to the relays on the way (the limit of roots,
see relay.py).  The ends take them for zero when they sign and check, and so do we; and
so they leave out what of a message is for the other end alone: cookie, renewal, MACs.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.proto.messages import (
    HALF_OPEN_LIFETIME,
    Ack,
    BadPacket,
    Syn,
    is_reflected,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.primitives import RandomBytes, any_of, digest_of, verify_untrusted
from alpha_trio.proto.relay.budgets import About, Budgets
from alpha_trio.proto.relay.consent import Place, Sides, WrongSide
from alpha_trio.proto.relay.verdict import Consent, Refused, RelayDrop
from alpha_trio.proto.relay.watched import Repeats

ANSWERS = 8  # to one SYN, of strangers
OWN_ANSWERS = 3  # of the other end, which forgets what it answered after a while
SAME_ID = 8  # handshakes at once with the same connection id
SOURCES = 4  # from which one SYN came
COST = 2_000  # bytes of a handshake, estimated
ANSWER_COST = 2_000  # of an ACK


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
    own: bool = False  # of the other end in a session that the initiator has
    said: tuple[int, bytes] | None = None  # suite and signature of the ACKACK
    acks: Repeats = field(factory=Repeats)
    ackacks: Repeats = field(factory=Repeats)
    about: About = field(factory=About)


@define(eq=False)
class Asked:
    """A SYN that passed, whatever is in it for the responder alone."""

    said: bytes  # what is signed of it
    syn: Syn
    until: float  # when to forget it
    sides: Sides = field(factory=Sides)
    sources: list[Place] = field(factory=list)
    answers: list[Answer] = field(factory=list)
    cookies: Repeats = field(factory=Repeats)
    about: About = field(factory=About)

    @property
    def memory(self) -> int:
        """Bytes, estimated."""
        return COST + ANSWER_COST * len(self.answers)

    def note_source(self, place: Place, random: RandomBytes) -> None:
        """Answers may go there."""
        if place in self.sources:
            self.sources.remove(place)
        elif len(self.sources) >= SOURCES:
            del self.sources[any_of(SOURCES, random)]
        self.sources.append(place)


@define(eq=False)
class Introductions:
    """All handshakes under way past this relay.

    What its functions refuse with RelayDrop.UNSEEN belongs to a handshake that began
    elsewhere, or before the relay did.
    """

    keys: frozenset[bytes]  # that may; empty: all
    lenient: bool
    kept: int  # SYNs with an ACK that may wait for their ACKACK, the oldest goes
    consent: Consent
    random: RandomBytes
    budgets: Budgets = field(factory=Budgets)
    asked: dict[bytes, Asked] = field(factory=dict)  # by what is signed, in order
    memory: int = 0  # bytes, estimated
    _by_id: dict[int, list[Asked]] = field(factory=dict)
    _answers: dict[int, list[Answer]] = field(factory=dict)  # by the responder's id

    # -- SYN and COOKIE ----------------------------------------------------------

    def on_syn_untrusted(self, datagram: bytes, crossing: Crossing, now: float) -> None:
        """Remember a SYN.  Raises BadPacket if it must not pass."""
        syn = parse_syn_untrusted(datagram)
        self._allow_untrusted(syn.identity)
        self.budgets.ask_untrusted(syn.identity, crossing.source, now)
        said = syn.said()
        asked = self.asked.get(said)
        if asked is None:
            asked = Asked(said, syn, now)
            self._remember(asked)
        asked.sides.add(crossing, self.random)
        asked.note_source(crossing.origin, self.random)
        asked.until = now + HALF_OPEN_LIFETIME

    def _allow_untrusted(self, identity: bytes) -> None:
        if self.keys and identity not in self.keys:
            raise Refused(RelayDrop.NOT_ALLOWED)

    def _remember(self, asked: Asked) -> None:
        same = self._by_id.get(asked.syn.sender_id, [])
        if len(same) >= SAME_ID:
            # Whoever sees an id can choose it, too.
            self._forget(same[1 + any_of(len(same) - 1, self.random)])
        if len(self.asked) >= self.kept:
            self._forget(next(iter(self.asked.values())))
        self._by_id.setdefault(asked.syn.sender_id, []).append(asked)
        self.asked[asked.said] = asked
        self.memory += asked.memory
        self._make_room(asked)

    def on_cookie_untrusted(
        self, datagram: bytes, crossing: Crossing, now: float
    ) -> None:
        """Raises BadPacket unless it is for somebody who asked, of who was asked."""
        cookie = parse_cookie_untrusted(datagram)
        destination = crossing.goal
        for asked in self._by_id.get(cookie.receiver_id, ()):
            if asked.syn.nonce == cookie.nonce and destination in asked.sources:
                asked.sides.check_untrusted(crossing, self.consent)
                self._repeat_untrusted(asked.cookies, datagram, now)
                return
        raise Refused(RelayDrop.UNSEEN)

    def _repeat_untrusted(self, repeats: Repeats, datagram: bytes, now: float) -> None:
        spare, digest = self.budgets.spare, digest_of(datagram)
        repeats.again_untrusted(digest, spare, now, self.random)

    # -- ACK ---------------------------------------------------------------------

    def on_ack_untrusted(
        self, datagram: bytes, crossing: Crossing, now: float
    ) -> Introduction | None:
        """Check an ACK; in lenient mode one without its SYN introduces its sender.

        Raises BadPacket if it must not pass.
        """
        ack = parse_ack_untrusted(datagram)
        self._allow_untrusted(ack.identity)
        # Wherever it goes: who asks several addresses may do so from several.
        known = self._by_id.get(ack.receiver_id, ())
        if not known:
            return self._lone_ack_untrusted(ack, crossing, now)
        asked_of = self._asked_of_untrusted(known, ack, crossing)
        for answer in (answer for asked in asked_of for answer in asked.answers):
            if answer.ack == ack:
                self._repeat_untrusted(answer.acks, datagram, now)
                return None
        asked = self._signed_ack_untrusted(asked_of, ack, crossing, now)
        own = self.budgets.are_partners(asked.syn.identity, ack.identity)
        answer = Answer(asked, ack.sender_id, ack, own)
        self._keep_untrusted(answer, now)
        answer.acks.take_untrusted(digest_of(datagram), now, self.random)
        return None

    def _asked_of_untrusted(
        self, known: list[Asked] | tuple[Asked, ...], ack: Ack, crossing: Crossing
    ) -> list[Asked]:
        """The SYNs that an ACK may answer, by all that is cheap to know."""
        found: list[Asked] = []
        refusal: WrongSide | None = None
        for asked in known:
            try:
                asked.sides.check_untrusted(crossing, self.consent)
            except WrongSide as error:
                if refusal is None or error.same_link:
                    refusal = error
                continue
            if _is_of_another(asked.syn, ack):
                found.append(asked)
        if not found:
            raise refusal or WrongSide()
        return found

    def _signed_ack_untrusted(
        self, asked_of: list[Asked], ack: Ack, crossing: Crossing, now: float
    ) -> Asked:
        """The SYN that it is signed for."""
        why, may_check = RelayDrop.BAD_SIGNATURE, self.budgets.may_check
        for asked in asked_of:
            keys = asked.syn.identity, ack.identity
            if not may_check(asked.about, *keys, crossing, now):
                why = RelayDrop.RATE
                continue
            said = asked.said, ack.unsigned()
            if _signed(ack.identity, ack.signature, b"ACK", *said):
                return asked
        raise Refused(why)

    def _lone_ack_untrusted(
        self, ack: Ack, crossing: Crossing, now: float
    ) -> Introduction:
        if not self.lenient:
            raise Refused(RelayDrop.UNSEEN)
        self._look_untrusted(crossing, now)
        ids = ack.receiver_id, ack.sender_id
        ends = crossing.destination, crossing.source
        return Introduction(*ids, *ends, None, ack)

    def _look_untrusted(self, crossing: Crossing, now: float) -> None:
        if not self.budgets.may_look(crossing.source, now):
            raise Refused(RelayDrop.RATE)

    def _keep_untrusted(self, answer: Answer, now: float) -> None:
        asked = answer.asked
        if len(self._answers.get(answer.responder_id, ())) >= SAME_ID:
            strangers = [a for a in self._answers[answer.responder_id][1:] if not a.own]
            if not strangers:
                raise Refused(RelayDrop.COLLISION)
            self._drop(strangers[any_of(len(strangers), self.random)])
        alike = [other for other in asked.answers if other.own is answer.own]
        if answer.own and len(alike) >= OWN_ANSWERS:
            self._drop(alike[0])
        elif not answer.own and len(alike) >= ANSWERS:
            self._drop(alike[1 + any_of(ANSWERS - 1, self.random)])
        asked.until = now + HALF_OPEN_LIFETIME
        self._add(answer)

    def _add(self, answer: Answer) -> None:
        self._answers.setdefault(answer.responder_id, []).append(answer)
        answer.asked.answers.append(answer)
        self.memory += ANSWER_COST
        self._make_room(answer.asked)

    def _make_room(self, latest: Asked) -> None:
        """A SYN that has several ACKs takes the room of others."""
        while self.memory > self.kept * (COST + ANSWER_COST):
            oldest = next((a for a in self.asked.values() if a is not latest), None)
            if oldest is None:
                return
            self._forget(oldest)

    def _drop(self, answer: Answer) -> None:
        answer.asked.answers.remove(answer)
        _remove(self._answers, answer.responder_id, answer)
        self.memory -= ANSWER_COST

    # -- ACKACK ------------------------------------------------------------------

    def on_ackack_untrusted(
        self, datagram: bytes, crossing: Crossing, now: float
    ) -> Introduction | None:
        """Check an ACKACK.  None: a repetition.  Raises BadPacket if it must not pass.

        An introduction that is taken is to be confirmed.  In lenient mode an ACKACK
        without its ACK introduces the sender of the SYN.
        """
        ackack = parse_ackack_untrusted(datagram)
        known = self._answers.get(ackack.receiver_id, ())
        said = ackack.suite, ackack.signature
        for answer in known:
            if answer.said == said:
                self._repeat_untrusted(answer.ackacks, datagram, now)
                return None
        if not known:
            number = ackack.receiver_id
            return self._lone_ackack_untrusted(number, crossing, now)
        why, ends = RelayDrop.BAD_SIGNATURE, (crossing.source, crossing.destination)
        for answer in known:
            syn, ack = answer.asked.syn, answer.ack
            # No signature covers the suite there: a copy of the genuine one.
            if answer.said or ack is None or ackack.suite != syn.suite:
                continue
            keys = syn.identity, ack.identity
            if not self.budgets.may_check(answer.about, *keys, crossing, now):
                why = RelayDrop.RATE
                continue
            texts = answer.asked.said, ack.said()
            if _signed(syn.identity, ackack.signature, b"ACKACK", *texts):
                ids = ack.receiver_id, ack.sender_id
                return Introduction(*ids, *ends, syn, ack, answer)
        raise Refused(why)

    def _lone_ackack_untrusted(
        self, responder_id: int, crossing: Crossing, now: float
    ) -> Introduction:
        if not self.lenient:
            raise Refused(RelayDrop.UNSEEN)
        self._look_untrusted(crossing, now)
        source, destination = crossing.source, crossing.destination
        for asked in reversed(self.asked.values()):
            if asked.answers or crossing.origin not in asked.sources:
                continue
            if asked.sides.went_to(crossing.goal):
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
        said = parse_ackack_untrusted(ackack)
        answer.said = said.suite, said.signature
        answer.ackacks.take_untrusted(digest_of(ackack), now, self.random)
        answer.asked.until = now + HALF_OPEN_LIFETIME
        if answer.ack is None:
            self._add(answer)

    # -- time --------------------------------------------------------------------

    def forget_old(self, now: float) -> None:
        """Forget handshakes that came to nothing, and those that are long over."""
        for asked in [asked for asked in self.asked.values() if asked.until <= now]:
            self._forget(asked)

    def _forget(self, asked: Asked) -> None:
        self.memory -= asked.memory
        del self.asked[asked.said]
        _remove(self._by_id, asked.syn.sender_id, asked)
        for answer in asked.answers:
            _remove(self._answers, answer.responder_id, answer)


def _remove(lists: dict[int, list[Any]], key: int, value: object) -> None:
    lists[key].remove(value)
    if not lists[key]:
        del lists[key]


def _is_of_another(syn: Syn, ack: Ack) -> bool:
    """Whether an end would take the answer: not with its own key, nonce or chains."""
    other = syn.suite == ack.suite and syn.identity != ack.identity
    return other and not is_reflected(syn, ack)


def _signed(identity: bytes, signature: bytes, label: bytes, *said: bytes) -> bool:
    try:
        verify_untrusted(identity, signature, label, *said)
    except BadPacket:
        return False
    return True
