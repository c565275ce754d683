"""One direction of one session, as a relay sees it: which S1, A1, S2 and A2 may pass.

A witness holds no secret.  It knows the anchors of the two ends' hash chains, demands
the order S1, A1, S2 (and A2), and lets an S2 pass only if it is what an S1 promised
that the receiver agreed to.  Both ends add a tag to S1, A1 and A2 that only they can
check; so of these messages a relay can be sure of some bytes, and of others not:

* Of an S1 it knows that the element is the sender's, and that the round is the one the
  element belongs to.  Shape, counts and roots could have been changed on the way: the
  key that binds the roots to the packets is not known yet.  So of the S1s of a round
  the first is kept, and some others of which chance forgets one for each that comes
  (VARIANTS, VERSIONS_COST), until an A1 has passed: it bears the digest of the S1 that
  the receiver, who checked the tag, has frozen, and an element of the receiver's chain.
* Of an A1 it knows everything but the tag, if nobody who saw the element on its way
  here was faster.  So an A1 may be made up for an S1 that is, and neither decides yet:
  all S1s that some A1 agrees to stay, and an S2 passes if it fits one of them.  There
  the key is in each root: a root that was made up before the key was public fits
  nothing, and after the first A1 no S1 is taken any more.  In a reliable round the A2
  that opens the root of one A1 decides likewise.
* Of an S2 it knows every byte: the head is compared, branch and packet are hashed.
* Of an A2 it knows everything but the tag.

The condition is that nobody learns the key before the genuine S1 and A1 have been here:
the sender discloses it when it has the A1, so that this holds wherever an A1 has no way
past the relay.  Then, when the key is public, what it signs has long been frozen here:
there is nothing left to forge, and each packet passes once.

All this is taken only from where the question went (consent.py): an A1 or A2 from where
its S1 did, and an S2 only to where an A1 came from since its round began.

Who repeats what passed before is told from who lost it by time only: the same S1 or A1
may pass every REPEAT_AFTER seconds as long as the round's key is not out, and so may an
S2 of a reliable round and an A2, which may have been lost behind us.  Copies that
differ in the tag are told from those of the first to come (watched.Repeats), and in all
no more of them than ``spare`` has.

Lenient (``strict`` false) is for routes on which the directions part, so that only S1
and S2, or only A1 and A2, pass here.  Then an S2 has to fit the first S1 of its round,
and whoever sees a key before the S1 passed here can forge both.  The ends do not fall
for it, but the relay is no wall any more.  Of an A1 and A2 whose S1 went another way
only the element is checked.
"""

from __future__ import annotations

from math import inf
from operator import or_

from attrs import define, field

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.engine import Kernel, Run, chosen, is_whole, verdicts_on
from alpha_trio.proto.messages import (
    A1,
    A1_SIZE,
    A2_OPENING,
    CONTROL,
    DEPTH_MASK,
    EARLY_ROUND,
    HEADER_SIZE,
    MAX_ASSOCIATIONS,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    S2_SIZE,
    S2_TAIL,
    TAG_SIZE,
    BadPacket,
    early_of,
    roots_untrusted,
    take_run,
)
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    SIGNATURE_CHAIN,
    ChainVerifier,
    Promise,
    RandomBytes,
    any_of,
    chain_id,
    digest_of,
    early_packet,
    opening_size,
    verdicts_untrusted,
)
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay.consent import Place, Sides, WrongSide
from alpha_trio.proto.relay.verdict import (
    Consent,
    Refused,
    RelayDrop,
    RelayEarly,
)
from alpha_trio.proto.relay.watched import (
    REPEAT_FOR,
    VARIANTS,
    EarlyBuckets,
    Meter,
    Opened,
    Repeats,
    Said,
    WatchedAssociation,
    WatchedRound,
)

PLACES = 8  # from which A1s came lately
SPARE_RATE, SPARE_BURST = 200.0, 64.0  # altered copies a second, at once; see Witness
VERSIONS_COST = 16_384  # bytes, estimated, of the S1s of a round but the first

CHEAP_SKIP = 8
"""Elements that may be hashed for anybody; for more there are SKIP_RATE and BURST, or a
forged S1 would cost a relay as much as a hundred packets."""
SKIP_RATE, SKIP_BURST = 100.0, 100.0  # messages a second, at once

# Estimates of memory, in bytes.
ASSOCIATION_COST = 600
EARLY_COST = 350  # of its buckets for early data
ROUND_COST = 2_600
FINISHED_COST = 900
SAID_COST = 350  # of an S1 or A1 beside the first
ROOT_COST = 64

_ZERO_AT = 3  # in an opening
_LEAST_BODY = 8  # a frame word; control messages have none


@define(eq=False)
class Witness:
    """All rounds one end of a session sends to the other."""

    sender_nonce: bytes  # of the handshake; it names the chains
    receiver_nonce: bytes
    word: bytes  # what its S2s begin with
    strict: bool
    most_roots: int  # that an S1 may have; 0: no limit
    fresh: TokenBucket  # S1s
    meter: Meter
    controls: list[bytes]  # verified control messages, for the caller to take at once
    random: RandomBytes
    consent: Consent = Consent.LINK
    early: RelayEarly = RelayEarly.LIMITED  # OFF as well once some was not signed
    spare: TokenBucket = field(factory=lambda: TokenBucket(SPARE_RATE, SPARE_BURST))
    """Other versions of what has passed: somebody altered the one or the other."""
    kernel: Kernel = field(factory=lambda: chosen().kernel)
    skips: TokenBucket | None = None
    places: dict[Place, float] = field(factory=dict)  # of A1s, and when they came
    associations: dict[int, WatchedAssociation] = field(factory=dict)

    # -- S1 ------------------------------------------------------------------------

    def on_s1_untrusted(self, datagram: bytes, crossing: Crossing, now: float) -> bool:
        """Let an S1 pass; False if it opens no new round.  Raises BadPacket if not."""
        message = datagram[:-TAG_SIZE]
        if len(message) < S1_FIXED_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, _, index, element = ROUND.unpack_from(message, HEADER_SIZE)
        association = self._association_untrusted(number)
        known = association.round(index)
        if known is not None:
            if known.key or known.element != element:
                raise Refused(RelayDrop.REPLAYED)
            self._repeat_s1_untrusted(association, known, datagram, shape, now)
            known.sides.add(crossing, self.random)
            return False
        if 2 * index + 2 > association.length:
            raise BadPacket  # nothing left to answer with
        self._check_untrusted(association.signatures, 2 * index + 1, element, now)
        said = self._promise_untrusted(message, shape)
        if not self.fresh.take(now):
            raise Refused(RelayDrop.S1_RATE)
        if said.early:
            self._let_early_untrusted(association, said, now, first=True)
        repeats = Repeats({_whole(said.digest, datagram): now})
        sides = Sides.of(crossing)
        round_ = WatchedRound(index, element, now, sides, (said,), repeats)
        self._begin(association, round_)
        return True

    def _promise_untrusted(self, message: bytes, shape: int) -> Said:
        packets, roots = roots_untrusted(message, shape)
        if 0 < self.most_roots < len(roots) // NODE_SIZE:
            raise Refused(RelayDrop.ROOTS)
        said = Said(digest_of(message), shape, packets, roots)
        if shape & EARLY_ROUND:
            early = early_of(message)
            said.early, said.early_size = early_packet(early), len(early)
        return said

    def _let_early_untrusted(
        self, association: WatchedAssociation, said: Said, now: float, *, first: bool
    ) -> None:
        """Raises Refused if the early data of an S1 may not pass, or not now."""
        if self.early is RelayEarly.OFF:
            raise Refused(RelayDrop.EARLY)
        if association.early is None:
            association.early = EarlyBuckets()
            self.meter.held += EARLY_COST
        buckets = association.early
        bucket = buckets.first if first else buckets.others
        if not bucket.take(now, said.early_size):
            raise Refused(RelayDrop.EARLY_RATE)

    def _association_untrusted(self, number: int) -> WatchedAssociation:
        association = self.associations.get(number)
        if association is None:
            raise BadPacket
        return association

    def _check_untrusted(
        self, chain: ChainVerifier | None, position: int, element: bytes, now: float
    ) -> None:
        """Raises BadPacket unless the element is fresh, and not too dear to check."""
        if chain is None:
            raise BadPacket
        if position <= chain.position:
            raise Refused(RelayDrop.REPLAYED)
        if position - chain.position > CHEAP_SKIP:
            if self.skips is None:
                self.skips = TokenBucket(SKIP_RATE, SKIP_BURST)
            if not self.skips.take(now):
                raise Refused(RelayDrop.S1_RATE)
        chain.check_untrusted(position, element)

    def _begin(self, association: WatchedAssociation, round_: WatchedRound) -> None:
        signatures, element = association.signatures, round_.element
        position = 2 * round_.number + 1
        assert signatures is not None
        self._forget(association.previous)
        before, association.previous = association.current, None
        if before is not None and self._agreed(before) and not before.finished:
            # Its key follows from the new element: what was overtaken may still come.
            if not before.key:
                key = signatures.derive(position, element, 2 * before.number + 2)
                self._open(association, before, key, _candidates(before))
            association.previous = before
        else:
            self._forget(before)
        signatures.accept(position, element)
        association.current = round_
        roots = len(round_.s1s[0].roots) // NODE_SIZE
        self._hold(round_, ROUND_COST + ROOT_COST * roots)

    def _agreed(self, round_: WatchedRound) -> bool:
        """Whether its S2s may pass."""
        return bool(round_.key or round_.a1s) or not self.strict

    def _repeat_s1_untrusted(
        self,
        association: WatchedAssociation,
        known: WatchedRound,
        datagram: bytes,
        shape: int,
        now: float,
    ) -> None:
        if now - known.begun > REPEAT_FOR:
            raise Refused(RelayDrop.REPLAYED)
        message = datagram[:-TAG_SIZE]
        digest = digest_of(message)
        said = _found(known.s1s, digest)
        other = said is None
        if said is None:
            if self._agreed(known):
                raise BadPacket  # frozen
            said = self._promise_untrusted(message, shape)
        whole = _whole(digest, datagram)
        known.s1_repeats.again_untrusted(whole, self.spare, now, self.random)
        if said.early:
            self._let_early_untrusted(association, said, now, first=False)
        if other:
            self._keep_s1(known, said)

    def _keep_s1(self, known: WatchedRound, other: Said) -> None:
        """Beside the first S1, in the place of some others if there are too many."""
        first, *rest = known.s1s
        room, cost = VERSIONS_COST - _cost(other), sum(map(_cost, rest))
        while rest and (len(rest) >= VARIANTS - 1 or cost > room):
            gone = rest.pop(any_of(len(rest), self.random))
            cost -= _cost(gone)
            self._hold(known, -_cost(gone))
        known.s1s = first, *rest, other
        self._hold(known, _cost(other))

    # -- A1 ------------------------------------------------------------------------

    def on_a1_untrusted(self, datagram: bytes, crossing: Crossing, now: float) -> bool:
        """Let an A1 pass; False if it tells nothing new.  Raises BadPacket if not."""
        if len(datagram) != A1_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, zero, index, element = ROUND.unpack_from(datagram, HEADER_SIZE)
        digest, root = A1.unpack_from(datagram, ROUND_HEAD_SIZE)
        association = self._association_untrusted(number)
        if association.signatures is None:
            return self._lone_answer_untrusted(association, 2 * index + 1, element, now)
        round_ = association.current
        if round_ is not None and (index < round_.number or round_.key):
            raise Refused(RelayDrop.REPLAYED)
        if round_ is None or round_.number != index or zero:
            raise BadPacket
        s1 = _found(round_.s1s, digest)
        if s1 is None or s1.shape != shape or (any(root) and not shape & RELIABLE):
            raise BadPacket
        first = not round_.a1s
        self._check_answer_untrusted(association, 2 * index + 1, element, first, now)
        round_.sides.check_untrusted(crossing, self.consent)
        self._agree_untrusted(round_, s1, datagram, root, now)
        if association.acks is not None and first:
            self._accept_answer(association, association.acks, 2 * index + 1, element)
        self._note_place(crossing, now)
        return first

    def _check_answer_untrusted(
        self,
        association: WatchedAssociation,
        position: int,
        element: bytes,
        first: bool,
        now: float,
    ) -> None:
        acks = association.acks
        if acks is None:
            if self.strict:
                raise BadPacket
            return  # its ACCEPT was not seen
        if first:
            self._check_untrusted(acks, position, element, now)
        elif element != acks.element:
            raise BadPacket

    def _accept_answer(
        self,
        association: WatchedAssociation,
        acks: ChainVerifier,
        position: int,
        element: bytes,
    ) -> None:
        """The element of an A1, which is right.

        It gives away that of the A2 of the round before, which may still come.
        """
        before = association.previous
        reliable = before is not None and before.a1s and before.a1s[0].shape & RELIABLE
        if before is not None and reliable and not before.ack_key:
            at = 2 * before.number + 2
            if at > acks.position:
                before.ack_key = acks.derive(position, element, at)
        acks.accept(position, element)

    def _agree_untrusted(
        self, round_: WatchedRound, s1: Said, datagram: bytes, root: bytes, now: float
    ) -> None:
        """Keep an A1 beside others; the first stays, chance decides about the rest."""
        message = datagram[:-TAG_SIZE]  # so short that a digest would save nothing
        said = Said(message, s1.shape, s1.packets, root, s1)
        if not round_.a1s:
            round_.a1_repeats = Repeats({datagram: now})
            s1.agreed = round_.answered = True
            round_.a1s = (said,)
            return
        if now - round_.begun > REPEAT_FOR:
            raise Refused(RelayDrop.REPLAYED)
        round_.a1_repeats.again_untrusted(datagram, self.spare, now, self.random)
        s1.agreed = True
        if _found(round_.a1s, message) is None:
            self._keep_a1(round_, said)

    def _keep_a1(self, round_: WatchedRound, other: Said) -> None:
        """Beside the first A1, in the place of another one if there are too many."""
        a1s = [*round_.a1s]
        if len(a1s) >= VARIANTS:
            del a1s[1 + any_of(VARIANTS - 1, self.random)]
        else:
            self._hold(round_, SAID_COST)
        round_.a1s = *a1s, other

    def _note_place(self, crossing: Crossing, now: float) -> None:
        """Who is there agrees to be sent packets."""
        places, place = self.places, crossing.origin
        if place not in places and len(places) >= PLACES:
            del places[min(places, key=lambda known: places[known])]
        places[place] = now

    def _lone_answer_untrusted(
        self, association: WatchedAssociation, position: int, element: bytes, now: float
    ) -> bool:
        """Lenient: an A1 or A2 whose S1 went another way; its element must fit."""
        acks = association.acks
        if acks is None:
            raise BadPacket
        new = (position, element) != (acks.position, acks.element)
        if new:
            self._check_untrusted(acks, position, element, now)
        if not self.fresh.take(now):
            raise Refused(RelayDrop.S1_RATE)
        if new:
            acks.accept(position, element)
        return new

    # -- S2 ------------------------------------------------------------------------

    def on_s2_untrusted(
        self, view: memoryview, stride: int, goal: Place, now: float
    ) -> tuple[int, list[tuple[int, int]], int, int]:
        """Check the S2s at the head of ``view`` that belong to one round.

        Returns how many bytes were looked at, at least one datagram; what of it may
        pass, as ranges of bytes; and how many were forged and how many replayed.
        Raises BadPacket if the first one belongs to no round, or not with this key, or
        goes to where nobody agreed to it.
        """
        round_, opened = self._round_untrusted(view, stride, goal)
        if opened.shape & EARLY_ROUND:
            return self._take_proof_untrusted(view[:stride], round_, opened)
        # hot path
        prefix, promise, least = opened.prefix, opened.promise, opened.least
        if promise is None:
            late = take_run(view, stride, prefix, 0, least)
            if not late.packets:
                raise Refused(RelayDrop.FORGED)
            return late.size, [], 0, len(late.packets)
        verdicts = verdicts_on(self.kernel, promise, view, stride, prefix, least)
        count = len(verdicts)
        if not count:  # fits its round but not the key, or is cut short
            raise Refused(RelayDrop.FORGED)
        size = min(count * stride, len(view))
        start = ROUND_HEAD_SIZE + NODE_SIZE * promise.depth
        index, _, _ = S2_TAIL.unpack_from(view, start)
        new = ((1 << count) - 1) << index
        if is_whole(verdicts) and not opened.seen & new:
            self._on_new(round_, opened, new, view[start:size])
            return size, [(0, size)], 0, 0
        run = Run(view[:size], stride, start, verdicts)  # cold path
        return size, *self._sift(round_, opened, run, stride, now)

    def _round_untrusted(
        self, view: memoryview, stride: int, goal: Place
    ) -> tuple[WatchedRound, Opened]:
        """What the first datagram belongs to."""
        if min(stride, len(view)) < S2_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, _, index, key = ROUND.unpack_from(view, HEADER_SIZE)
        association = self.associations.get(number)
        round_ = None if association is None else association.round(index)
        if association is None or round_ is None or not self._agreed(round_):
            raise Refused(RelayDrop.UNSOLICITED)
        # Where the receiver was before the round began may be somebody else's by now.
        if round_.answered and not self._is_asked_for(round_, goal):
            raise WrongSide
        if not round_.key:
            self._take_key_untrusted(association, round_, shape, key)
        opened = round_.of_shape(shape)
        if opened is None:
            raise Refused(RelayDrop.FORGED)
        return round_, opened

    def _is_asked_for(self, round_: WatchedRound, place: Place) -> bool:
        """Whether an A1 came from there since the round began."""
        asked = self.places.get(place, -inf) >= round_.begun
        return asked or self.consent is Consent.ANY

    def _take_key_untrusted(
        self,
        association: WatchedAssociation,
        round_: WatchedRound,
        shape: int,
        key: bytes,
    ) -> None:
        signatures, position = association.signatures, 2 * round_.number + 2
        assert signatures is not None
        candidates = _candidates(round_)
        if shape not in [s1.shape for s1 in candidates]:
            raise BadPacket
        signatures.check_untrusted(position, key)
        signatures.accept(position, key)
        self._open(association, round_, key, candidates)

    def _open(
        self,
        association: WatchedAssociation,
        round_: WatchedRound,
        key: bytes,
        candidates: list[Said],
    ) -> None:
        """The key is known, and what passes from now on is decided by it alone.

        Of several S1s that were agreed to, each root counts: one that was made up
        without the key fits nothing, and a packet may fit one of which only others are.
        """
        round_.key = key
        round_.opened = tuple(
            [self._opened(association, round_, s1s) for s1s in _by_shape(candidates)]
        )
        if candidates[0].shape & EARLY_ROUND:
            self._judge_early(round_)
        if len(round_.s1s) > 1 or len(round_.a1s) > 1:
            roots = sum([len(s1.roots) for s1 in candidates]) // NODE_SIZE
            more = max(0, len(round_.a1s) - 1) + len(candidates) - 1
            cost = ROUND_COST + ROOT_COST * roots + SAID_COST * more
            self._hold(round_, cost - round_.weight)
        round_.s1s = ()

    def _opened(
        self,
        association: WatchedAssociation,
        round_: WatchedRound,
        alike: list[Said],
    ) -> Opened:
        """What may pass of some S1s of one shape."""
        assert association.signatures is not None
        name, number, key = association.signatures.chain_id, round_.number, round_.key
        shape = alike[0].shape
        prefix = self.word + ROUND.pack(association.number, shape, 0, number, key)
        first, *others = [_promise(s1, name, number, key) for s1 in alike]
        packets = max([s1.packets for s1 in alike])
        least = S2_TAIL.size + (0 if shape & CONTROL else _LEAST_BODY)
        opened = Opened(shape, prefix, first, tuple(others), packets, least)
        if shape & EARLY_ROUND:
            promises = zip(alike, (first, *others), strict=True)
            opened.early = self._prove_early(association, round_, [*promises])
        return opened

    def _prove_early(
        self,
        association: WatchedAssociation,
        round_: WatchedRound,
        s1s: list[tuple[Said, Promise]],
    ) -> bytes:
        """The key shows what of early data that passed was signed.

        That is what of the S1s that were agreed to fits.  If none does, the sender has
        sent, and the receiver taken, what nobody can check: no more of it.
        """
        for s1, promise in s1s:
            if promise.fits(s1.early):
                if association.early is not None:
                    first = s1 is round_.s1s[0]
                    buckets = association.early
                    bucket = buckets.first if first else buckets.others
                    bucket.give_back(s1.early_size)
                return s1.early
        return b""

    def _judge_early(self, round_: WatchedRound) -> None:
        """No more early data if none fits the key although it was agreed to.

        But only if there is nothing else that was: of another shape it is not known
        yet whether it fits, and whoever reads along can add what does not.
        """
        agreed = [s1 for s1 in round_.s1s if s1.agreed]
        false = agreed and all(s1.shape & EARLY_ROUND for s1 in agreed)
        if false and not any(opened.early for opened in round_.opened):
            self.early = RelayEarly.OFF

    def _take_proof_untrusted(
        self, datagram: memoryview, round_: WatchedRound, opened: Opened
    ) -> tuple[int, list[tuple[int, int]], int, int]:
        """The S2 of early data: it brings the key, and no packet."""
        if not opened.early:
            raise Refused(RelayDrop.EARLY_FALSE)
        if datagram != opened.prefix + opened.early[: S2_TAIL.size]:
            raise Refused(RelayDrop.FORGED)
        size = len(datagram)
        if opened.seen:
            return size, [], 0, 1
        self._on_new(round_, opened, 1, datagram)
        return size, [(0, size)], 0, 0

    def _on_new(
        self, round_: WatchedRound, opened: Opened, new: int, packet: memoryview
    ) -> None:
        """Packets pass for the first time; ``packet`` begins with one of them."""
        opened.seen |= new
        if opened.shape & CONTROL:  # a round of one packet
            self.controls.append(bytes(packet[S2_TAIL.size :]))
        if opened.seen + 1 == 1 << opened.packets and not opened.shape & RELIABLE:
            opened.finish()
            if round_.finished:
                round_.finish()
                self._hold(round_, FINISHED_COST - round_.weight)

    def _sift(
        self,
        round_: WatchedRound,
        opened: Opened,
        run: Run,
        stride: int,
        now: float,
    ) -> tuple[list[tuple[int, int]], int, int]:
        """What may pass of a run that has something else in it, and what may not."""
        passed: list[tuple[int, int]] = []
        forged = replayed = 0
        authentic = run.verdicts
        for other in opened.others:
            where = run.view, stride, opened.prefix, opened.least
            also = verdicts_on(self.kernel, other, *where)
            authentic = bytes(map(or_, authentic, also))
        late = now - round_.begun > REPEAT_FOR
        for place, good in enumerate(authentic):
            index, _ = run.head(place)
            if not good:
                forged += 1
                continue
            if not opened.seen >> index & 1:
                self._on_new(round_, opened, 1 << index, run.packet(place))
            elif late or not opened.repeat(index, now):
                replayed += 1
                continue
            start, until = place * stride, min((place + 1) * stride, run.size)
            if passed and passed[-1][1] == start:
                start = passed.pop()[0]
            passed.append((start, until))
        return passed, forged, replayed

    # -- A2 ------------------------------------------------------------------------

    def on_a2_untrusted(self, datagram: bytes, crossing: Crossing, now: float) -> bool:
        """Let an A2 pass; False if it tells nothing new.  Raises BadPacket if not."""
        openings = datagram[ROUND_HEAD_SIZE:-TAG_SIZE]
        if len(openings) < A2_OPENING.size:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, zero, index, key = ROUND.unpack_from(datagram, HEADER_SIZE)
        association = self._association_untrusted(number)
        acks, round_ = association.acks, association.round(index)
        if association.signatures is None:
            return self._lone_answer_untrusted(association, 2 * index + 2, key, now)
        if acks is None or round_ is None or not round_.a1s or not shape & RELIABLE:
            raise BadPacket
        opened = round_.of_shape(shape)
        if zero or all(a1.shape != shape for a1 in round_.a1s):
            raise BadPacket
        if not round_.ack_key:
            self._check_untrusted(acks, 2 * index + 2, key, now)
        elif round_.ack_key != key:
            raise BadPacket
        self._check_side_untrusted(round_, crossing)
        alike = [a1 for a1 in round_.a1s if a1.shape == shape]
        place = acks.chain_id, index, key
        a1, verdicts = _opened_untrusted(*place, alike, openings)
        seen = 0 if opened is None else opened.seen
        if self.strict and verdicts & ~seen:
            raise BadPacket  # about a packet that never passed
        new = bool(verdicts & ~round_.acked)
        self._repeat_a2_untrusted(round_, datagram, new, now)
        if not round_.ack_key:
            acks.accept(2 * index + 2, key)
        self._hold(round_, -SAID_COST * (len(round_.a1s) - 1))
        round_.ack_key, round_.a1s = key, (a1,)
        round_.acked |= verdicts
        return new

    def _check_side_untrusted(self, round_: WatchedRound, crossing: Crossing) -> None:
        """An A2 comes from where its S2s went, by another link than they came by."""
        try:
            round_.sides.check_untrusted(crossing, self.consent)
        except WrongSide as error:  # unless it has moved since
            if error.same_link or not self._is_asked_for(round_, crossing.origin):
                raise

    def _repeat_a2_untrusted(
        self, round_: WatchedRound, datagram: bytes, new: bool, now: float
    ) -> None:
        if round_.a2_repeats is None:
            round_.a2_repeats = Repeats()
        digest = digest_of(datagram)
        if new:
            round_.a2_repeats.take_untrusted(digest, now, self.random)
        elif now - round_.begun > REPEAT_FOR:
            raise Refused(RelayDrop.REPLAYED)
        else:
            round_.a2_repeats.again_untrusted(digest, self.spare, now, self.random)

    # -- associations ----------------------------------------------------------------

    def add(
        self, number: int, signatures: bytes | None, acknowledgments: bytes | None
    ) -> None:
        """An association, or the other half of one, from the anchors of its chains.

        Ignored if there is no place for it, or nothing new in it.
        """
        association = self.associations.get(number)
        if association is None:
            if len(self.associations) >= MAX_ASSOCIATIONS:
                return
            if self.strict and signatures is None:
                return  # accepted, but never asked for
            association = WatchedAssociation(number, None, None)
            self.associations[number] = association
            self.meter.held += ASSOCIATION_COST
        if signatures is not None and association.signatures is None:
            name = chain_id(self.sender_nonce, SIGNATURE_CHAIN, number)
            association.signatures = ChainVerifier(name, signatures)
        if acknowledgments is not None and association.acks is None:
            name = chain_id(self.receiver_nonce, ACKNOWLEDGMENT_CHAIN, number)
            association.acks = ChainVerifier(name, acknowledgments)

    def close(self, number: int) -> None:
        """No round of the association will follow."""
        association = self.associations.pop(number, None)
        if association is not None:
            self._forget(association.current)
            self._forget(association.previous)
            self.meter.held -= ASSOCIATION_COST
            if association.early is not None:
                self.meter.held -= EARLY_COST

    def _hold(self, round_: WatchedRound, size: int) -> None:
        round_.weight += size
        self.meter.held += size

    def _forget(self, round_: WatchedRound | None) -> None:
        if round_ is not None:
            self.meter.held -= round_.weight


def _candidates(round_: WatchedRound) -> list[Said]:
    """The S1s that the receiver may have agreed to; in lenient mode the first."""
    return [s1 for s1 in round_.s1s if s1.agreed] or [round_.s1s[0]]


def _by_shape(s1s: list[Said]) -> list[list[Said]]:
    """The same, in groups of one shape each."""
    if len(s1s) == 1:  # as nearly always
        return [s1s]
    shapes = dict.fromkeys([s1.shape for s1 in s1s])
    return [[s1 for s1 in s1s if s1.shape == shape] for shape in shapes]


def _found(said: tuple[Said, ...], digest: bytes) -> Said | None:
    """The one with this digest."""
    for each in said:
        if each.digest == digest:
            return each
    return None


def _whole(digest: bytes, datagram: bytes) -> bytes:
    """What tells a message from others with the same digest: the tag as well."""
    return digest + datagram[-TAG_SIZE:]


def _cost(said: Said) -> int:
    """Bytes, estimated, of an S1 beside the first."""
    return SAID_COST + ROOT_COST * (len(said.roots) // NODE_SIZE)


def _promise(s1: Said, name: bytes, number: int, key: bytes) -> Promise:
    promised = s1.shape & DEPTH_MASK, s1.roots, s1.packets
    return Promise.with_key(name, number, key, *promised)


def _opened_untrusted(
    name: bytes, number: int, key: bytes, a1s: list[Said], openings: bytes
) -> tuple[Said, int]:
    """The A1 whose root the openings of an A2 belong to, and a bit for each packet.

    Raises BadPacket if there is none.
    """
    for a1 in a1s:
        packets = a1.packets
        if any(openings[_ZERO_AT :: opening_size(packets)]):
            continue  # no root covers it
        place = name, number, key, a1.roots, packets
        try:
            verdicts = verdicts_untrusted(*place, openings)
        except BadPacket:
            continue
        return a1, sum({1 << packet for packet, _ in verdicts})
    raise BadPacket
