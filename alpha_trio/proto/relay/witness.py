"""One direction of one session, as a relay sees it: which S1, A1, S2 and A2 may pass.

A witness holds no secret.  It knows the anchors of the two ends' hash chains, demands
the order S1, A1, S2 (and A2), and lets an S2 pass only if it is what an S1 promised
that the receiver agreed to.  Both ends add a tag to S1, A1 and A2 that only they can
check; so of these messages a relay can be sure of some bytes, and of others not:

* Of an S1 it knows that the element is the sender's, and that the round is the one the
  element belongs to.  Shape, counts and roots could have been changed on the way: the
  key that binds the roots to the packets is not known yet.  If the first S1 to come
  were the only one to count, one altered S1 would kill its round.  So the first is
  kept, and one other that comes REPEAT_AFTER later, as a repetition does; what an
  attacker sends at once cannot take that place.  The A1 says which of them counts: it
  bears the digest of the S1 that the receiver, who checked the tag, has frozen, and an
  element of the receiver's chain which nobody else can know.  Forged roots so never
  become roots that count: there is no A1 for them.  Who can alter every repetition as
  well can stop the round, as he could by dropping it.
* Of an A1 it knows everything but the tag, and in a reliable round the root of the
  acknowledgment tree.  There, again, the first and one later root are kept, and the A2
  that opens one of them decides.
* Of an S2 it knows every byte: the head is compared, branch and packet are hashed.
* Of an A2 it knows everything but the tag.

After the A1 no other S1 counts, and the sender discloses its key only after the A1.
So when the key is public, what it signs has long been frozen here: there is nothing
left to forge, and each packet passes once.

Who repeats what passed before is told from who lost it by number and time only: a
repetition of S1 or A1 may pass every REPEAT_AFTER seconds and REPEATS times, as long as
the round's key is not out, and an S2 of a reliable round S2_REPEATS times, even if its
A2 has passed: that may have been lost behind us.

Lenient (``strict`` false) is for routes on which the directions part, so that only S1
and S2, or only A1 and A2, pass here.  Then an S2 has to fit the first S1 of its round,
and whoever sees a key before the S1 passed here can forge both.  The ends do not fall
for it, but the relay is no wall any more.  Of an A1 and A2 whose S1 went another way
only the element is checked.
"""

from __future__ import annotations

from hashlib import sha256

from attrs import define, field

from alpha_trio.proto.messages import (
    A1,
    A1_SIZE,
    A2_OPENING,
    CONTROL,
    DEPTH_MASK,
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
    Run,
    roots_untrusted,
    take_run,
)
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    SIGNATURE_CHAIN,
    ChainVerifier,
    Checker,
    chain_id,
    opening_size,
    verdicts_untrusted,
)
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay.verdict import Refused, RelayDrop
from alpha_trio.proto.relay.watched import (
    REPEAT_AFTER,
    Meter,
    Said,
    WatchedAssociation,
    WatchedRound,
)

A2_REPEATS = 64  # for each packet of the round

CHEAP_SKIP = 8
"""Elements that may be hashed for anybody; for more there are SKIP_RATE and BURST, or a
forged S1 would cost a relay as much as a hundred packets."""
SKIP_RATE, SKIP_BURST = 100.0, 100.0  # messages a second, at once

# Estimates of memory, in bytes.
ASSOCIATION_COST = 600
ROUND_COST = 900
FINISHED_COST = 350
ROOT_COST = 64

_ZERO_AT = 3  # in an opening


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
    skips: TokenBucket | None = None
    associations: dict[int, WatchedAssociation] = field(factory=dict)

    # -- S1 ------------------------------------------------------------------------

    def on_s1_untrusted(self, datagram: bytes, now: float) -> bool:
        """Let an S1 pass; False if it opens no new round.  Raises BadPacket if not."""
        message = datagram[:-TAG_SIZE]
        if len(message) < S1_FIXED_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, _, index, element = ROUND.unpack_from(message, HEADER_SIZE)
        association = self._association_untrusted(number)
        known = association.round(index)
        if known is not None:
            if known.prefix or known.element != element:
                raise Refused(RelayDrop.REPLAYED)
            self._repeat_s1_untrusted(known, message, shape, now)
            return False
        self._check_untrusted(association.signatures, 2 * index + 1, element, now)
        said = self._promise_untrusted(message, shape, now)
        if not self.fresh.take(now):
            raise Refused(RelayDrop.S1_RATE)
        self._begin(association, index, element, said)
        return True

    def _promise_untrusted(self, message: bytes, shape: int, now: float) -> Said:
        packets, roots = roots_untrusted(message, shape)
        if 0 < self.most_roots < len(roots):
            raise Refused(RelayDrop.ROOTS)
        return Said(_digest(message), now, shape, packets, roots)

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

    def _begin(
        self, association: WatchedAssociation, index: int, element: bytes, said: Said
    ) -> None:
        signatures, position = association.signatures, 2 * index + 1
        assert signatures is not None
        self._forget(association.previous)
        before, association.previous = association.current, None
        if before is not None and self._agreed(before) and not before.finished:
            # Its key follows from the new element: what was overtaken may still come.
            if not before.prefix:
                key = signatures.derive(position, element, 2 * before.number + 2)
                self._open(association, before, key)
            association.previous = before
        else:
            self._forget(before)
        signatures.accept(position, element)
        association.current = WatchedRound(index, element, (said,))
        self._hold(association.current, ROUND_COST + ROOT_COST * len(said.roots))

    def _agreed(self, round_: WatchedRound) -> bool:
        """Whether its S2s may pass."""
        return bool(round_.prefix or round_.a1s) or not self.strict

    def _repeat_s1_untrusted(
        self, known: WatchedRound, message: bytes, shape: int, now: float
    ) -> None:
        if _said_before(known.s1s, _digest(message), now):
            return
        if self._agreed(known):
            raise BadPacket  # frozen
        other = self._promise_untrusted(message, shape, now)
        known.s1s += (other,)
        self._hold(known, ROOT_COST * len(other.roots))

    # -- A1 ------------------------------------------------------------------------

    def on_a1_untrusted(self, datagram: bytes, now: float) -> bool:
        """Let an A1 pass; False if it tells nothing new.  Raises BadPacket if not."""
        if len(datagram) != A1_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, zero, index, element = ROUND.unpack_from(datagram, HEADER_SIZE)
        digest, root = A1.unpack_from(datagram, ROUND_HEAD_SIZE)
        association = self._association_untrusted(number)
        if association.signatures is None:
            return self._lone_answer_untrusted(association, 2 * index + 1, element, now)
        round_ = association.current
        if round_ is not None and (index < round_.number or round_.prefix):
            raise Refused(RelayDrop.REPLAYED)
        if round_ is None or round_.number != index or zero:
            raise BadPacket
        s1 = next((s1 for s1 in round_.s1s if s1.digest == digest), None)
        if s1 is None or s1.shape != shape or (any(root) and not shape & RELIABLE):
            raise BadPacket
        said = Said(_digest(datagram[:-TAG_SIZE]), now, shape, s1.packets, [root])
        if round_.a1s:
            self._repeat_a1_untrusted(association, round_, element, said)
            return False
        if association.acks is not None:  # else lenient, and its ACCEPT not seen
            self._check_untrusted(association.acks, 2 * index + 1, element, now)
            association.acks.accept(2 * index + 1, element)
        elif self.strict:
            raise BadPacket
        self._agree(round_, s1, said)
        return True

    def _repeat_a1_untrusted(
        self,
        association: WatchedAssociation,
        round_: WatchedRound,
        element: bytes,
        said: Said,
    ) -> None:
        if association.acks is not None and element != association.acks.element:
            raise BadPacket
        if not _said_before(round_.a1s, said.digest, said.first):
            round_.a1s += (said,)

    def _agree(self, round_: WatchedRound, s1: Said, a1: Said) -> None:
        others = [other for other in round_.s1s if other is not s1]
        self._hold(round_, -sum(ROOT_COST * len(other.roots) for other in others))
        round_.s1s, round_.a1s = (s1,), (a1,)

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
        self, view: memoryview, stride: int
    ) -> tuple[int, list[tuple[int, int]], int, int]:
        """Check the S2s at the head of ``view`` that belong to one round.

        Returns how many bytes were looked at, at least one datagram; what of it may
        pass, as ranges of bytes; and how many were forged and how many replayed.
        Raises BadPacket if the first one belongs to no round, or not with this key.
        """
        round_ = self._round_untrusted(view[:stride])
        # hot path
        checker = round_.checker
        branch = checker.depth * NODE_SIZE if checker is not None else 0
        run = take_run(view, stride, round_.prefix, branch, S2_TAIL.size)
        if not run.packets:  # fits its round but not the key, or is cut short
            raise Refused(RelayDrop.FORGED)
        count = len(run.packets)
        if checker is None:
            return run.size, [], 0, count
        first, last = _number(run.packets[0]), _number(run.packets[-1])
        new = ((1 << count) - 1) << first
        if (
            last - first + 1 == count
            and not round_.seen & new
            and checker.fits(first, run.packets, run.branches)
        ):
            self._on_new(round_, new, run.packets[0])
            return run.size, [(0, run.size)], 0, 0
        passed, forged, replayed = self._sift(round_, run, stride)  # cold path
        return run.size, passed, forged, replayed

    def _round_untrusted(self, datagram: memoryview) -> WatchedRound:
        if len(datagram) < S2_SIZE:
            raise Refused(RelayDrop.MALFORMED)
        number, shape, _, index, key = ROUND.unpack_from(datagram, HEADER_SIZE)
        association = self.associations.get(number)
        round_ = None if association is None else association.round(index)
        if association is None or round_ is None or not self._agreed(round_):
            raise Refused(RelayDrop.UNSOLICITED)
        if not round_.prefix:
            signatures = association.signatures
            assert signatures is not None
            if round_.counted.shape != shape:
                raise BadPacket
            signatures.check_untrusted(2 * index + 2, key)
            signatures.accept(2 * index + 2, key)
            self._open(association, round_, key)
        return round_

    def _open(
        self, association: WatchedAssociation, round_: WatchedRound, key: bytes
    ) -> None:
        """The key is known, and what passes from now on is decided by it alone."""
        assert association.signatures is not None
        counted, shape = round_.counted, round_.counted.shape
        name, number = association.signatures.chain_id, round_.number
        round_.prefix = self.word + ROUND.pack(
            association.number, shape, 0, number, key
        )
        promised = shape & DEPTH_MASK, counted.roots, counted.packets
        round_.checker = Checker.with_key(name, number, key, *promised)

    def _on_new(self, round_: WatchedRound, new: int, packet: memoryview) -> None:
        """Packets pass for the first time; ``packet`` is one of them."""
        round_.seen |= new
        counted = round_.counted
        if counted.shape & CONTROL:  # a round of one packet
            self.controls.append(bytes(packet[S2_TAIL.size :]))
        if round_.seen + 1 == 1 << counted.packets and not counted.shape & RELIABLE:
            round_.finish()
            self._hold(round_, FINISHED_COST - round_.weight)

    def _sift(
        self, round_: WatchedRound, run: Run, stride: int
    ) -> tuple[list[tuple[int, int]], int, int]:
        """What may pass of a run that has something else in it, and what may not."""
        assert round_.checker is not None
        passed: list[tuple[int, int]] = []
        forged = replayed = 0
        heads = [S2_TAIL.unpack_from(packet) for packet in run.packets]
        authentic = round_.checker.check(heads, run.packets, run.branches)
        for place, (head, good) in enumerate(zip(heads, authentic, strict=True)):
            if not good:
                forged += 1
                continue
            if not round_.seen >> head[0] & 1:
                self._on_new(round_, 1 << head[0], run.packets[place])
            elif not round_.repeat(head[0]):
                replayed += 1
                continue
            start, until = place * stride, min((place + 1) * stride, run.size)
            if passed and passed[-1][1] == start:
                start = passed.pop()[0]
            passed.append((start, until))
        return passed, forged, replayed

    # -- A2 ------------------------------------------------------------------------

    def on_a2_untrusted(self, datagram: bytes, now: float) -> bool:
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
        if round_.counted.shape != shape or zero:
            raise BadPacket
        if not round_.ack_key:
            self._check_untrusted(acks, 2 * index + 2, key, now)
        elif round_.ack_key != key:
            raise BadPacket
        a1, verdicts = _opened_untrusted(acks.chain_id, round_, key, openings)
        if self.strict and verdicts & ~round_.seen:
            raise BadPacket  # about a packet that never passed
        if not round_.ack_key:
            acks.accept(2 * index + 2, key)
        round_.ack_key, round_.a1s = key, (a1,)
        return self._count_verdicts(round_, verdicts)

    def _count_verdicts(self, round_: WatchedRound, verdicts: int) -> bool:
        new = bool(verdicts & ~round_.acked)
        if not new:
            if round_.a2_repeats >= A2_REPEATS * round_.counted.packets:
                raise Refused(RelayDrop.REPLAYED)
            round_.a2_repeats += 1
        round_.acked |= verdicts
        return new

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

    def _hold(self, round_: WatchedRound, size: int) -> None:
        round_.weight += size
        self.meter.held += size

    def _forget(self, round_: WatchedRound | None) -> None:
        if round_ is not None:
            self.meter.held -= round_.weight


def _digest(message: bytes) -> bytes:
    return sha256(message).digest()[:16]


def _said_before(said: tuple[Said, ...], digest: bytes, now: float) -> bool:
    """Whether the message with this digest is a repetition.

    Raises BadPacket if it is one that may not pass, or can be no second version.
    """
    for known in said:
        if known.digest == digest:
            known.again(now)
            return True
    if len(said) > 1 or now - said[0].first < REPEAT_AFTER:
        raise BadPacket
    return False


def _number(packet: memoryview) -> int:
    number: int = S2_TAIL.unpack_from(packet)[0]
    return number


def _opened_untrusted(
    name: bytes, round_: WatchedRound, key: bytes, openings: bytes
) -> tuple[Said, int]:
    """The A1 whose root the openings of an A2 belong to, and a bit for each packet.

    Raises BadPacket if there is none.
    """
    packets = round_.counted.packets
    if any(openings[_ZERO_AT :: opening_size(packets)]):
        raise BadPacket  # no root covers it
    for a1 in round_.a1s:
        place = name, round_.number, key, a1.roots[0], packets
        try:
            verdicts = verdicts_untrusted(*place, openings)
        except BadPacket:
            continue
        return a1, sum({1 << packet for packet, _ in verdicts})
    raise BadPacket
