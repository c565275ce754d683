"""The peer's rounds: S1 frozen and answered, S2 checked in batches, A2.

Of a reliable round each authentic packet gets its verdict, whenever it comes: it is
acknowledged if it was delivered, refused if it will never be.  What was said once stays
so; an A2 that was lost is made again from the round's tree, so none has to be kept.

What may not happen, and where it is prevented:

* A second, different S1 for the same element: pre-signatures freeze with the first
  one accepted; a byte-identical repeat gets the same A1, anything else is dropped.
* An S1 for an element whose key may be public: only elements after the last accepted
  one count, and keys are public only up to there.
* A packet delivered twice, or once acknowledged and once refused: two bitmaps for
  every round.
* Memory that an attacker fills: an association keeps the current round and the one
  before it, for packets that were overtaken by the next S1; nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from attrs import define, field

from alpha_trio.proto.batch import Drop, Outbox, Place, Remote
from alpha_trio.proto.engine import Joined, Run, check_run, round_place
from alpha_trio.proto.messages import (
    A1,
    CONTROL,
    DEPTH_MASK,
    EARLY_ROUND,
    HEADER_SIZE,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    S2_TAIL,
    TAG_SIZE,
    BadPacket,
    Kind,
    Pieces,
    early_of,
    roots_untrusted,
    take_early_untrusted,
)
from alpha_trio.proto.packets import FRAME_WORD_SIZE
from alpha_trio.proto.primitives import (
    ACK,
    EARLY_USE,
    NACK,
    AckTree,
    ChainVerifier,
    HashChain,
    Promise,
    digest_of,
    early_packet,
    opening_size,
)
from alpha_trio.proto.traces import Counts
from alpha_trio.proto.transport.delivery import (
    LIMITS,
    deliver_bodies_untrusted,
    deliver_untrusted,
)
from alpha_trio.proto.transport.line import Line
from alpha_trio.proto.transport.transport import Arrival, OwnsSource

# In front of a body, of a segment.
_HEAD, _HEADS = S2_TAIL.size, S2_TAIL.size + FRAME_WORD_SIZE


@define(eq=False)
class InRound:
    """A round of the peer's: what its S1 promised, and what of it has come."""

    number: int
    shape: int
    packets: int
    roots: bytes
    digest: bytes  # of the S1, which froze all of the above
    a1: bytes
    acks: AckTree | None  # reliable rounds only
    early: bytes = b""  # what was pre-signed in the place of its early data
    elsewhere: Place | None = None  # where alone it was answered, if not at the peer's
    prefix: bytes = b""  # what its S2s begin with, once the key is known
    promise: Promise | None = None
    seen: int = 0  # bit i: packet i was delivered, or refused
    refused: int = 0  # bit i: and not delivered

    def opening(self, index: int) -> bytes:
        """The verdict on a packet that was seen, as A2 carries it."""
        assert self.acks is not None
        return self.acks.packed(index, NACK if self.refused >> index & 1 else ACK)


@define(eq=False)
class InAssociation:
    """A signature chain of the peer's and the acknowledgment chain of ours."""

    number: int
    signatures: ChainVerifier
    chain: HashChain
    current: InRound | None = None
    previous: InRound | None = None

    def round(self, number: int) -> InRound | None:
        """The round with that number, if its S1 was accepted not long ago."""
        for candidate in (self.current, self.previous):
            if candidate is not None and candidate.number == number:
                return candidate
        return None


@define(eq=False)
class Stretch:
    """Packets of a run that lie as they came in their round's keystream."""

    offset: int  # where the first one begins there, bytes
    first: int  # its number in the run
    count: int

    def continues(self, number: int, offset: int, stride: int) -> bool:
        """Whether packet ``number`` of the run is the next one here and there."""
        return (
            number == self.first + self.count
            and offset == self.offset + self.count * stride
        )


@define(frozen=True)
class ControlMessage:
    """A control message of the peer's that waits for our verdict."""

    association: int
    round: InRound
    packet: int
    body: bytes


@define(eq=False)
class Receiver:
    """All rounds of the peer's in one session."""

    line: Line
    associations: dict[int, InAssociation] = field(factory=dict)
    controls: list[ControlMessage] = field(factory=list)  # for the caller to take
    passed: int = 0  # authentic S2s, and of reliable rounds their repetitions

    @property
    def counts(self) -> Counts:
        """What has come of the peer's S2s."""
        return Counts.of(self.passed, self.line.drops)

    # -- S1 and A1 ---------------------------------------------------------------

    def on_s1_untrusted(
        self,
        datagram: bytes,
        remote: Remote,
        local: bytes,
        owns_source: OwnsSource,
        out: Outbox,
    ) -> Arrival:
        """Accept an S1 and answer it, and deliver its early data; NOTHING if repeated.

        Raises BadPacket if it is not acceptable.
        """
        message = self.line.untagged_untrusted(datagram)
        if len(message) < S1_FIXED_SIZE:
            raise BadPacket
        number, shape, _, index, element = ROUND.unpack_from(message, HEADER_SIZE)
        association = self.associations.get(number)
        if association is None:
            raise BadPacket
        digest = digest_of(message)
        elsewhere = self.line.elsewhere(remote, local)
        known = association.round(index)
        if known is not None:
            if known.digest != digest:
                raise BadPacket  # the pre-signatures are frozen
            self._answer_again(known, elsewhere, out)
            return Arrival.NOTHING
        if 2 * index + 2 > association.chain.length:
            raise BadPacket  # no element left to answer with
        packets, roots = roots_untrusted(message, shape)
        early = self._early_untrusted(message, number, shape, index)
        position = 2 * index + 1
        association.signatures.check_untrusted(position, element)
        self._close_current(association, position, element)
        association.signatures.accept(position, element)
        accepted = self._answer(association, index, shape, packets, roots, digest)
        association.previous, association.current = association.current, accepted
        accepted.elsewhere = elsewhere
        self.line.send(accepted.a1, out, elsewhere)
        if early is None:
            return Arrival.KEEPALIVE
        accepted.early = early_packet(early_of(message))
        return self._deliver_early(*early, owns_source, out)

    def _early_untrusted(
        self, message: bytes, number: int, shape: int, index: int
    ) -> tuple[tuple[int, ...], Pieces] | None:
        """The early data of an S1 whose tag is good, or None if that is not its kind.

        It is complete here, so there is nothing to wait for: nobody but the peer can
        have made the tag, and the element, which is fresh, that it comes only once.
        """
        if not shape & EARLY_ROUND:
            return None
        if not self.line.agreement.takes_early:
            raise BadPacket
        place = number, index, 0
        return take_early_untrusted(
            self.line.decrypt.apply(*place, early_of(message), EARLY_USE)
        )

    def _deliver_early(
        self,
        words: tuple[int, ...],
        packets: Pieces,
        owns_source: OwnsSource,
        out: Outbox,
    ) -> Arrival:
        counters = self.line.counters
        refused = deliver_bodies_untrusted(words, packets, owns_source, out, counters)
        counters.early_received += len(words) - len(refused)
        return Arrival.DATA if words else Arrival.KEEPALIVE

    def _answer_again(
        self, known: InRound, elsewhere: Place | None, out: Outbox
    ) -> None:
        """A repeated S1, or a copy of it: answer it where it came from.

        And where the peer is known to be: who copies each S1 from an address of its
        own, faster than it arrives, must not get all answers.  After that an S2 does
        not show where the answer was received.
        """
        self.line.send(known.a1, out, elsewhere)
        if elsewhere is not None:
            self.line.send(known.a1, out)
        known.elsewhere = None

    def _close_current(
        self, association: InAssociation, position: int, element: bytes
    ) -> None:
        """A round begins, so the key of the one before follows from its element."""
        current = association.current
        if current is not None and current.promise is None:
            at = 2 * current.number + 2
            key = association.signatures.derive(position, element, at)
            self._open_key(association, current, key)

    def _answer(
        self,
        association: InAssociation,
        number: int,
        shape: int,
        packets: int,
        roots: bytes,
        digest: bytes,
    ) -> InRound:
        chain = association.chain
        acks, root = None, bytes(NODE_SIZE)
        if shape & RELIABLE:
            key = chain.element(2 * number + 2)
            seed = self.line.random(16)
            acks = AckTree(chain.chain_id, number, key, seed, packets)
            root = acks.root
        element = chain.element(2 * number + 1)
        head = self.line.head(Kind.A1, association.number, shape, number, element)
        a1 = self.line.tagged(head + A1.pack(digest, root))
        return InRound(number, shape, packets, roots, digest, a1, acks)

    # -- S2 ------------------------------------------------------------------------

    def on_s2(
        self,
        view: memoryview,
        stride: int,
        owns_source: OwnsSource,
        out: Outbox,
    ) -> tuple[int, Arrival]:
        """Take the S2s at the head of ``view`` that belong to one round.

        Returns how many bytes were consumed, at least one datagram, and what was
        authentic and new among it.
        """
        size = min(stride, len(view))
        try:
            association, found = self._round_untrusted(view[:size])
        except BadPacket:
            self.line.drop(Drop.UNSOLICITED)
            return size, Arrival.NOTHING
        if found.shape & EARLY_ROUND:
            return size, self._take_proof(view[:size], found)
        assert found.promise is not None
        least = _HEAD if found.shape & CONTROL else _HEADS
        judged = self.line.kernel, found.promise
        run = check_run(*judged, view, stride, found.prefix, least)
        if not run.verdicts:  # fits its round but not the key, or is cut short
            self.line.drop(Drop.FORGED)
            return size, Arrival.NOTHING
        if run.whole and not found.shape & (CONTROL | RELIABLE):  # hot path
            arrival = self._take_whole(association, found, run, owns_source, out)
            if arrival > Arrival.NOTHING:
                return run.size, arrival
        arrived, authentic = self._sift(run, found)
        if arrived and found.shape & CONTROL:  # answered when it is carried out
            self._take_control(association, found, run.packet(arrived[0].first))
            return run.size, Arrival.KEEPALIVE
        for stretch in arrived:
            self._deliver(association, found, run, stretch, owns_source, out)
        if authentic and found.shape & RELIABLE:
            self._send_a2(association, found, authentic, out)
        if not arrived:
            return run.size, Arrival.NOTHING
        # Keepalives must not be answered by keepalives, or they never end.
        first = run.packet(arrived[0].first)
        empty = len(arrived) == arrived[0].count == 1 and len(first) == _HEADS
        return run.size, Arrival.KEEPALIVE if empty else Arrival.DATA

    def _take_proof(self, datagram: memoryview, found: InRound) -> Arrival:
        """The S2 of early data, which was delivered: it has the key, and no packet."""
        assert found.promise is not None
        proof = found.prefix + found.early[: S2_TAIL.size]
        if datagram != proof or not found.promise.fits(found.early):
            self.line.drop(Drop.FORGED)
            return Arrival.NOTHING
        if found.seen:
            self.line.drop(Drop.REPLAYED)
            return Arrival.NOTHING
        found.seen = 1
        self.passed += 1
        return Arrival.KEEPALIVE

    def _round_untrusted(self, datagram: memoryview) -> tuple[InAssociation, InRound]:
        if len(datagram) < ROUND_HEAD_SIZE + S2_TAIL.size:
            raise BadPacket
        number, shape, _, index, key = ROUND.unpack_from(datagram, HEADER_SIZE)
        association = self.associations.get(number)
        found = None if association is None else association.round(index)
        if association is None or found is None or found.shape != shape:
            raise BadPacket
        if found.promise is None:
            association.signatures.check_untrusted(2 * index + 2, key)
            association.signatures.accept(2 * index + 2, key)
            self._open_key(association, found, key)
            if found.elsewhere is not None:
                # The peer discloses the key to the A1 alone, which went there alone.
                self.line.proven = found.elsewhere
        return association, found

    def _open_key(self, association: InAssociation, found: InRound, key: bytes) -> None:
        found.promise = Promise.with_key(
            association.signatures.chain_id,
            found.number,
            key,
            found.shape & DEPTH_MASK,
            found.roots,
            found.packets,
        )
        word = self.line.incoming_words[Kind.S2]
        found.prefix = word + ROUND.pack(
            association.number, found.shape, 0, found.number, key
        )

    def _take_whole(
        self,
        association: InAssociation,
        found: InRound,
        run: Run,
        owns_source: OwnsSource,
        out: Outbox,
    ) -> Arrival:
        """Deliver a run that is as it was sent; NOTHING if not all of it is new.

        Not of a reliable round: which packets are refused is not noted.
        """
        view, start, count = run.view, run.start, len(run.verdicts)
        first, _, offset = S2_TAIL.unpack_from(view, start)
        new = ((1 << count) - 1) << first
        if found.seen & new:
            return Arrival.NOTHING
        found.seen |= new
        self.passed += count
        frames = self._opened(association, found, offset, view[start:], run)
        deliver_untrusted(frames, owns_source, out, self.line.counters)
        return Arrival.DATA if frames else Arrival.KEEPALIVE

    def _sift(self, run: Run, found: InRound) -> tuple[list[Stretch], Sequence[int]]:
        """Sort the packets of a run.

        Returns what is authentic and new, and, for their verdicts, the numbers of all
        that is authentic.
        """
        forged = repeated = 0
        arrived: list[Stretch] = []
        heads = [run.head(number) for number in range(run.count)]
        authentic = run.verdicts
        for at, (index, offset) in enumerate(heads):
            if not authentic[at]:
                forged += 1
            elif found.seen >> index & 1:
                repeated += 1
            else:
                found.seen |= 1 << index
                if arrived and arrived[-1].continues(at, offset, run.stride):
                    arrived[-1].count += 1
                else:
                    arrived.append(Stretch(offset, at, 1))
        if forged:
            self.line.drop(Drop.FORGED, forged)
        self.passed += run.count - forged
        if found.shape & RELIABLE:  # repeated: the A2 may have been lost
            numbers = [head[0] for head in compress(heads, authentic)]
            return arrived, list(dict.fromkeys(numbers))
        if repeated:
            self.line.drop(Drop.REPLAYED, repeated)
            self.passed -= repeated
        return arrived, ()

    def _deliver(
        self,
        association: InAssociation,
        found: InRound,
        run: Run,
        stretch: Stretch,
        owns_source: OwnsSource,
        out: Outbox,
    ) -> None:
        """Decrypt a stretch, hand it on, note what is refused."""
        first = stretch.first
        packets = run.stretch(first, first + stretch.count)
        frames = self._opened(association, found, stretch.offset, packets, run)
        for i in deliver_untrusted(frames, owns_source, out, self.line.counters):
            found.refused |= 1 << run.head(first + i)[0]

    def _opened(
        self,
        association: InAssociation,
        found: InRound,
        offset: int,
        packets: memoryview,
        run: Run,
    ) -> list[Joined]:
        """Packets of a run, decrypted in one call; the first one's ``offset``."""
        return self.line.kernel.open(
            self.line.opening,
            round_place(association.number, found.number),
            offset,
            packets,
            run.stride,
            min(run.stride - run.start, len(packets)),
            *LIMITS,
        )

    # -- control messages and A2 -----------------------------------------------------

    def _take_control(
        self, association: InAssociation, found: InRound, packet: memoryview
    ) -> None:
        # Control rounds have one packet, so that its number is 0.
        body = bytes(packet[_HEAD:])
        self.controls.append(ControlMessage(association.number, found, 0, body))

    def acknowledge(self, message: ControlMessage, verdict: int, out: Outbox) -> None:
        """Answer a control message with A2: ACK if it was carried out."""
        found = message.round
        association = self.associations.get(message.association)
        if verdict == NACK:
            found.refused |= 1 << message.packet
        if association is not None:
            self._send_a2(association, found, [message.packet], out)

    def _send_a2(
        self,
        association: InAssociation,
        found: InRound,
        packets: Sequence[int],
        out: Outbox,
    ) -> None:
        """Open the verdicts on these packets, in as few A2s as the path allows."""
        key = association.chain.element(2 * found.number + 2)
        head = self.line.head(
            Kind.A2, association.number, found.shape, found.number, key
        )
        room = self.line.datagram_size - ROUND_HEAD_SIZE - TAG_SIZE
        step = max(1, room // opening_size(found.packets))
        for at in range(0, len(packets), step):
            openings = map(found.opening, packets[at : at + step])
            self.line.send(self.line.tagged(head + b"".join(openings)), out)
