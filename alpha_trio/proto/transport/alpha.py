"""The data path of an established session: rounds both ways, and their associations.

The handshake brings one association for each direction.  More are opened when
packets had to wait because all were busy, and new ones before old ones run out of
elements.  Who sends opens:

    sender                                     receiver
      | OPEN k, signature anchor   (S1 A1 S2 A2)  |
      |------------------------------------------>|
      |     acknowledgment anchor, ACCEPT k       |
      |<------------------------------------------|
      | S1 of association k ...                   |

Both are control messages in reliable rounds of associations that exist, so ALPHA
itself protects them, A2 acknowledges them, and relays can read along.
"""

from __future__ import annotations

from math import inf

from attrs import define, field

from alpha_trio.proto.batch import Drop, Outbox, Remote
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.messages import (
    CONTROL_MESSAGE,
    MAX_ASSOCIATIONS,
    ROUND_HEAD_SIZE,
    BadPacket,
    Control,
    Kind,
    first_word,
)
from alpha_trio.proto.packets import Cut
from alpha_trio.proto.primitives import (
    ACK,
    ACKNOWLEDGMENT_CHAIN,
    ELEMENT_SIZE,
    NACK,
    SIGNATURE_CHAIN,
    ChainVerifier,
    HashChain,
    chain_id,
)
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.traces import (
    Probe,
    Report,
    Role,
    report_rate,
    trace_message,
)
from alpha_trio.proto.transport.line import ROUND_KINDS, Line
from alpha_trio.proto.transport.pace import useful_rounds
from alpha_trio.proto.transport.receiver import ControlMessage, InAssociation, Receiver
from alpha_trio.proto.transport.round import OutAssociation
from alpha_trio.proto.transport.sender import Sender
from alpha_trio.proto.transport.sized import SizeProbe
from alpha_trio.proto.transport.transport import Arrival, OwnsSource, Transport

LATER_SPACING = 64  # 4,096 elements, 2,047 rounds: made in slices
START_ASSOCIATIONS = 4  # as soon as one was too few
LONG_WAY = 0.025  # s of round-trip time on which one is too few from the start,
ONE_EVERY = 0.015  # and of which each further one is good for as much
MOST_ASSOCIATIONS = 40  # of ours; the peer may have more
OPENING_LIFETIME = 5.0  # s until an OPEN without an ACCEPT is given up
RENEW_BELOW = 0.3  # share of a chain's rounds that is left when its successor opens

_LAST_ASSOCIATION = 0xFFFF
_RENEW_EVERY = 16  # rounds: often enough, and no work for each one
_AT_FIRST = 2  # of these, as one may be the first of which the way is known to be long


@define(eq=False)
class AlphaTransport(Transport):
    """One established session's way to carry packets, both directions."""

    line: Line
    heard: float
    established: float
    sender: Sender = field(init=False)
    receiver: Receiver = field(init=False)
    _answers: int = 0
    _wanted: int = 1  # associations, besides those that are running out
    _next_association: int = 1
    _making: list[tuple[Control, int, HashChain, bytes]] = field(factory=list)
    """Chains being made: what to say when done, association, chain, peer's anchor."""
    _made: list[bytes] = field(factory=list)  # what to say when all of them are done
    _opening: dict[int, tuple[HashChain, float]] = field(factory=dict)
    """OPEN sent and when, no ACCEPT yet, by association."""
    _reports: TokenBucket | None = None  # since there is somebody who asks

    def __attrs_post_init__(self) -> None:
        self.sender, self.receiver = Sender(self.line), Receiver(self.line)

    def add_first(self, agreement: Agreement) -> None:
        """Association 0 of both directions, from the anchors of the handshake."""
        offer, theirs = agreement.offer, agreement.theirs
        self._add_out(0, offer.signatures, theirs.acknowledgments)
        self._add_in(0, offer.acknowledgments, theirs.signatures)

    def _add_out(self, number: int, chain: HashChain, peer_anchor: bytes) -> None:
        name = chain_id(self.line.agreement.theirs.nonce, ACKNOWLEDGMENT_CHAIN, number)
        self.sender.associations[number] = OutAssociation(
            number, chain, ChainVerifier(name, peer_anchor)
        )

    def _add_in(self, number: int, chain: HashChain, peer_anchor: bytes) -> None:
        name = chain_id(self.line.agreement.theirs.nonce, SIGNATURE_CHAIN, number)
        self.receiver.associations[number] = InAssociation(
            number, ChainVerifier(name, peer_anchor), chain
        )

    @property
    def words(self) -> list[int]:
        """What the datagrams that belong to it begin with."""
        return [first_word(kind, self.local_id) for kind in ROUND_KINDS]

    # -- packets -----------------------------------------------------------------

    def outgoing(self, cut: Cut, now: float, out: Outbox) -> None:
        """Queue the segments of ``cut``."""
        self.sender.outgoing(cut, now)

    def hasten(self, now: float) -> None:
        """Repeat the S1s that have no answer yet."""
        self.sender.hasten(now)

    def push(self, now: float, out: Outbox) -> None:
        """Start rounds for what waits."""
        self.sender.start(now, out)
        if self.sender.starved:
            self._want_more()

    def incoming(
        self,
        view: memoryview,
        stride: int,
        remote: Remote,
        local: bytes,
        owns_source: OwnsSource,
        now: float,
        out: Outbox,
    ) -> tuple[int, Arrival]:
        """Take the datagrams at the head of ``view`` that are of one kind and round."""
        if view[0] == Kind.S2:
            consumed, arrival = self.receiver.on_s2(view, stride, owns_source, out)
            while self.receiver.controls:
                self._on_control(self.receiver.controls.pop(), now, out)
            return consumed, arrival
        datagram = bytes(view[:stride])
        try:
            if datagram[0] == Kind.S1:
                place, more = (remote, local), (owns_source, out)
                arrival = self.receiver.on_s1_untrusted(datagram, *place, *more)
                return len(datagram), arrival
            new = self._on_answer_untrusted(datagram, remote, local, now, out)
        except BadPacket:
            self.line.counters.drop(Drop.BAD_ROUND)
            new = False
        # Only what is new is a sign of life: the rest anybody could have repeated.
        return len(datagram), Arrival.KEEPALIVE if new else Arrival.NOTHING

    def _on_answer_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> bool:
        if len(datagram) < ROUND_HEAD_SIZE:
            raise BadPacket
        if datagram[0] != Kind.A1:
            return self.sender.on_a2_untrusted(datagram, now, out)
        new = self.sender.on_a1_untrusted(datagram, remote, local, now, out)
        if self._answers % _RENEW_EVERY < _AT_FIRST:
            self._renew(now, out)
        self._answers += 1
        return new

    def keepalive(self, now: float, out: Outbox) -> None:
        """A round that carries one empty packet: the A1 tells that the peer lives."""
        empty = Cut(0, b"", b"", 0, 0)
        self.sender.outgoing(empty, now)
        self.sender.start(now, out)

    def abandon(self) -> None:
        """The session ends: count what is lost with it."""
        self.sender.abandon()

    # -- associations --------------------------------------------------------------

    def _want_more(self) -> None:
        """Packets have to wait because every association is busy."""
        if self._wanted == MOST_ASSOCIATIONS:
            self.sender.trees = True
        elif not self._coming():
            wanted = max(START_ASSOCIATIONS, 2 * self._wanted)
            if (trip := self.sender.rtt.least) < inf:
                # All at once: each exchange takes long there.
                wanted = max(wanted, START_ASSOCIATIONS + useful_rounds(trip))
            self._wanted = min(wanted, MOST_ASSOCIATIONS)
            self._open_wanted()

    def _open_wanted(self) -> None:
        """Open what lacks, not counting those that will soon have run out."""
        fresh = sum(
            association.rounds_left >= RENEW_BELOW * association.chain.length / 2
            for association in self.sender.associations.values()
        )
        coming = self._coming()
        room = MAX_ASSOCIATIONS - len(self.sender.associations) - coming
        for _ in range(min(self._wanted - fresh - coming, room)):
            self._open_one()

    def _coming(self) -> int:
        making = sum(what is Control.OPEN for what, *_ in self._making)
        return making + len(self._opening)

    def _open_one(self) -> None:
        number = self._next_association
        if number > _LAST_ASSOCIATION:
            return  # the session is used up; when its chains are, a new one is made
        self._next_association += 1
        name = chain_id(self.line.agreement.offer.nonce, SIGNATURE_CHAIN, number)
        chain = HashChain(name, self.line.random(ELEMENT_SIZE), LATER_SPACING)
        self._making.append((Control.OPEN, number, chain, b""))

    def _renew(self, now: float, out: Outbox) -> None:
        """Open successors of associations that run out, forget those that did."""
        least = self.sender.rtt.least
        if LONG_WAY < least < inf and self.sender.rtt.measured > 1:
            useful = max(START_ASSOCIATIONS, int(least / ONE_EVERY))
            self._wanted = max(self._wanted, min(useful, MOST_ASSOCIATIONS))
        for number, (_, since) in list(self._opening.items()):
            if now - since >= OPENING_LIFETIME:  # refused, or the ACCEPT was lost
                del self._opening[number]
                self._close(number, now, out)
        for association in list(self.sender.associations.values()):
            if association.rounds_left > 0 or association.open_rounds:
                continue
            if len(self.sender.associations) > 1:
                del self.sender.associations[association.number]
                self._close(association.number, now, out)
        self._open_wanted()

    def _close(self, number: int, now: float, out: Outbox) -> None:
        close = CONTROL_MESSAGE.pack(Control.CLOSE, number, b"")
        self.sender.controls.send([close], now, out)

    def _make_some(self, now: float, out: Outbox) -> None:
        what, number, chain, anchor = self._making[0]
        if not chain.make_some():
            return
        del self._making[0]
        if what is Control.OPEN:
            self._opening[number] = chain, now
        else:
            self._add_in(number, chain, anchor)
        self._made.append(CONTROL_MESSAGE.pack(what, number, chain.anchor))
        if not self._making:  # all in one round
            self.sender.controls.send(self._made, now, out)
            self._made.clear()

    def _on_control(self, message: ControlMessage, now: float, out: Outbox) -> None:
        try:
            for at in range(0, len(message.body), CONTROL_MESSAGE.size):
                if message.body[at] == Control.PADDING:
                    break  # whatever follows, and however long it is
                part = message.body[at : at + CONTROL_MESSAGE.size]
                self._carry_out_untrusted(part, now, out)
        except BadPacket:
            self.receiver.acknowledge(message, NACK, out)
        else:
            self.receiver.acknowledge(message, ACK, out)

    def _carry_out_untrusted(self, part: bytes, now: float, out: Outbox) -> None:
        if len(part) != CONTROL_MESSAGE.size:
            raise BadPacket
        kind, number, anchor = CONTROL_MESSAGE.unpack(part)
        if kind == Control.OPEN:
            self._on_open_untrusted(number, anchor)
        elif kind == Control.ACCEPT:
            opening = self._opening.pop(number, None)
            if opening is not None:
                self._add_out(number, opening[0], anchor)
                self.sender.starved = False
        elif kind == Control.CLOSE:
            self.receiver.associations.pop(number, None)
        elif kind == Control.TRACE:
            self._report(anchor, now, out)
        else:
            raise BadPacket

    def _on_open_untrusted(self, number: int, anchor: bytes) -> None:
        making = [n for what, n, *_ in self._making if what is Control.ACCEPT]
        known = [*self.receiver.associations, *making]
        # What waits to be said counts, too: who opens and closes without end, and never
        # answers, would have us keep an ACCEPT for each.
        room = MAX_ASSOCIATIONS - len(self.sender.controls.waiting)
        if number in known or len(known) >= room:
            raise BadPacket
        name = chain_id(self.line.agreement.offer.nonce, ACKNOWLEDGMENT_CHAIN, number)
        chain = HashChain(name, self.line.random(ELEMENT_SIZE), LATER_SPACING)
        self._making.append((Control.ACCEPT, number, chain, anchor))

    # -- size probes ---------------------------------------------------------------

    def ask_size(self, probe: SizeProbe, now: float, out: Outbox) -> None:
        """Find out whether datagrams of a size reach the peer."""
        self.sender.controls.ask_size(probe, now, out)

    def take_large(self) -> bool:
        """Whether datagrams above ``doubt`` were sent since the last call."""
        large, self.sender.large = self.sender.large, False
        return large

    def fit(self, size: int, doubted: int) -> None:
        """Send datagrams of ``size`` bytes at most, and note those above ``doubted``.

        Rounds whose messages are larger are given up at once.
        """
        self.line.datagram_size, self.sender.doubted_size = size, doubted
        self.sender.hasten_larger(size)

    # -- traces --------------------------------------------------------------------

    def trace(self, probe: Probe, now: float, out: Outbox) -> None:
        """Ask every node on the way to the peer, and the peer, what it has counted."""
        probe.back = self.receiver.counts
        message = trace_message(probe.nonce)
        self.sender.controls.send_trace(message, probe, now, out)

    def _report(self, nonce: bytes, now: float, out: Outbox) -> None:
        """Answer the peer's TRACE, unless there are too many."""
        if self._reports is None:
            self._reports = report_rate()
        if not self._reports.take(now):
            return
        identity, counts = (
            self.line.identity,
            (self.receiver.counts, self.sender.counts),
        )
        report = Report(
            self.line.agreement.remote_id, nonce, identity.public, Role.END, *counts
        )
        self.line.send(report.signed(identity), out)

    # -- time ----------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """No association can start another round: only a new session helps."""
        return all(a.rounds_left <= 0 for a in self.sender.associations.values())

    @property
    def deadline(self) -> float:
        """When on_deadline wants to be called, seconds."""
        if self._making:
            return -inf
        return min(self.sender.deadline, self.sender.pace.resume)

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Make a slice of a chain; repeat what was not answered."""
        if self._making:
            self._make_some(now, out)
        self.sender.on_deadline(now, out)
