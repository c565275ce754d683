"""What a Sender keeps of a round under way, and the associations rounds run on."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.batch import Place
from alpha_trio.proto.messages import CONTROL, RELIABLE, BadPacket, Kind
from alpha_trio.proto.primitives import (
    ACK,
    ChainVerifier,
    HashChain,
    verdicts_untrusted,
)
from alpha_trio.proto.traces import Probe
from alpha_trio.proto.transport.layout import HEADS_SIZE, Datagrams, Opening
from alpha_trio.proto.transport.line import Line
from alpha_trio.proto.transport.sized import SizeProbe


@define(eq=False)
class Round:
    """One round of ours, from its S1 to the disclosure of its key.

    A reliable one lives on until there is a verdict on each of its packets.
    """

    association: OutAssociation
    number: int
    shape: int
    datagrams: Datagrams
    s1: bytes
    digest: bytes
    started: float  # and of reliable data begun anew with its S2s
    resend_at: float
    attempts: int = 1  # since something new was heard
    agreed: bool = False
    overtaken: int = 0  # A1s of later rounds that came before its own
    ack_root: bytes = b""
    ack_key: bytes = b""  # once an A2 has disclosed it
    unanswered: int = 0  # bit i: packet i was sent, and there is no verdict on it
    probe: Probe | None = None  # of a TRACE: what wants to know when it left
    sized: SizeProbe | None = None  # what asks whether a datagram so long arrives
    flows: frozenset[bytes] = frozenset()  # of its packets
    early: int = 0  # packets inside its S1
    traffic_class: int = 0  # of these
    asked_at: Place | None = None  # where alone its S1 went, if not where the peer is

    @property
    def is_reliable_data(self) -> bool:
        """Whether its packets are repeated until they are acknowledged."""
        return self.shape & (RELIABLE | CONTROL) == RELIABLE

    @property
    def is_message(self) -> bool:
        """Whether it has control messages for the peer, and asks the path nothing."""
        asks = self.sized is not None or self.probe is not None
        return self.shape & CONTROL != 0 and not asks

    @property
    def largest(self) -> int:
        """Bytes of the largest datagram it takes."""
        return max(len(self.s1), self.datagrams.largest)

    @property
    def packets(self) -> int:
        """Packets, whatever they are."""
        return self.datagrams.packets

    @property
    def inner_packets(self) -> int:
        """Inner packets; a keepalive is none, nor is a control message."""
        return self.inner_among((1 << self.packets) - 1)

    @property
    def inner_bytes(self) -> int:
        """Bytes of the inner packets."""
        around = self.datagrams.fixed + HEADS_SIZE
        return self.datagrams.size - self.packets * around if self.inner_packets else 0

    def inner_among(self, bits: int) -> int:
        """Inner packets among those whose bit is set."""
        return 0 if self.shape & CONTROL else self.datagrams.inner_among(bits)

    def on_openings_untrusted(self, key: bytes, openings: bytes) -> tuple[bool, int]:
        """Take the verdicts of an A2 whose tag is good.

        Returns whether any was new, and how many inner packets are refused.  Raises
        BadPacket unless ``key`` is the acknowledgment key of this round, whose packets
        have been sent, and all verdicts are the receiver's.
        """
        if not self.unanswered:
            raise BadPacket
        acks, position = self.association.acks, 2 * self.number + 2
        if not self.ack_key:
            acks.check_untrusted(position, key)
        elif key != self.ack_key:
            raise BadPacket
        place = acks.chain_id, self.number, key, self.ack_root, self.packets
        verdicts = verdicts_untrusted(*place, openings)
        if not self.ack_key:
            acks.accept(position, key)
            self.ack_key = key
        answered = refused = 0
        for index, verdict in verdicts:
            if self.unanswered >> index & 1:
                self.unanswered ^= 1 << index
                answered |= 1 << index
                refused |= (verdict != ACK) << index
        return answered != 0, self.inner_among(refused)


@define(eq=False)
class OutAssociation:
    """A signature chain of ours and the acknowledgment chain that answers it."""

    number: int
    chain: HashChain
    acks: ChainVerifier
    next_round: int = 0
    round: Round | None = None
    settling: Round | None = None
    """A control round whose key is out and whose verdict is not there; its packet is
    public, so the next round may begin, but not yet the one after: then the receiver
    would know it no more."""
    repeated: tuple[int, int] = 0, 0  # a round, and how many answers to it may follow
    heard: bool = False  # an A1 ever came
    rounds: int = field(init=False)  # the chain has elements for

    def __attrs_post_init__(self) -> None:
        self.rounds = (self.chain.length - 2) // 2

    @property
    def rounds_left(self) -> int:
        """Rounds the chain still has elements for."""
        return self.rounds - self.next_round

    @property
    def idle(self) -> bool:
        """Whether a round can start."""
        if self.settling is not None and self.next_round > self.settling.number + 1:
            return False
        return self.round is None and self.next_round < self.rounds

    @property
    def open_rounds(self) -> list[Round]:
        """All that still wait for something."""
        return [each for each in (self.settling, self.round) if each is not None]

    def settle(self) -> None:
        """The key of its round is out: others need not wait for the verdict."""
        if self.settling is None:
            self.settling, self.round = self.round, None

    def take_answer_untrusted(self, position: int, element: bytes) -> None:
        """The element of an A1.  Raises BadPacket if it is not of the peer's chain.

        It gives away that of the verdict on the round before, which may still come.
        """
        acks, before = self.acks, self.settling
        acks.check_untrusted(position, element)
        if before is not None and not before.ack_key:
            at = 2 * before.number + 2
            before.ack_key = acks.derive(position, element, at)
        acks.accept(position, element)
        self.heard = True

    def open(self, shape: int, line: Line) -> Opening:
        """Take the elements of the next round."""
        number, chain = self.next_round, self.chain
        self.next_round += 1
        key = chain.element(2 * number + 2)
        head = line.head(Kind.S2, self.number, shape, number, key)
        return Opening(self.number, number, shape, chain.chain_id, key, head)

    def exhaust(self) -> None:
        """Start no further round: it makes way for a successor."""
        self.next_round = self.rounds

    def end(self, round_: Round) -> None:
        """It waits for nothing any more."""
        if round_ is self.settling:
            self.settling = None
        else:
            self.round = None

    def expects_again(self, number: int) -> bool:
        """Whether one more A1 of a round that was answered shows that we were hasty.

        Of each S1 that was repeated one may come; more are copies of somebody's.
        """
        last, left = self.repeated
        if number != last or not left:
            return False
        self.repeated = last, left - 1
        return True
