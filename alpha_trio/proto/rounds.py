"""What a Sender keeps: packets that wait, rounds under way, associations, timing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from math import inf

from attrs import define, field

from alpha_trio.proto.acks import ACK, verdicts_untrusted
from alpha_trio.proto.chain import ChainVerifier, HashChain
from alpha_trio.proto.layout import HEADS_SIZE, Datagrams, Waiting
from alpha_trio.proto.tracing import Probe
from alpha_trio.proto.wire import CONTROL, RELIABLE, BadPacket

FIRST_RTO, MIN_RTO, MAX_RTO = 0.5, 0.02, 3.0  # s
RTO_MARGIN = 0.25  # of the round-trip time, at least: a steady one may still change
# A link that loses every n-th datagram can lose the same message again and again, if
# the ends repeat in step with it; who repeats soon, and unevenly, gets through.
RTO_GROWTH = 1.5  # from one repetition to the next
RTO_JITTER = 0.25  # share of the time that chance decides, half of it either way
BACKED_OFF_RTO = 1.0  # s it grows to; longer only where the way itself is
MOST_DOUBTS = 8  # times a timeout is doubled before the first try: MIN to MAX_RTO


@define(eq=False)
class FlowQueue:
    """What waits, the packets of flows that have nothing else waiting first.

    So an echo or a keystroke does not stand behind the megabytes of a download.
    Inside a flow the order stays: a packet only goes to the front when none of its
    flow waits behind.
    """

    _front: deque[Waiting] = field(factory=deque)
    _back: deque[Waiting] = field(factory=deque)
    _flows: dict[bytes, int] = field(factory=dict)  # frames that wait

    def append(self, waiting: Waiting) -> None:
        """Add a frame in its turn."""
        others = self._flows.get(waiting.flow, 0)
        (self._back if others else self._front).append(waiting)
        self._flows[waiting.flow] = others + 1

    def append_in_order(self, waiting: Waiting) -> None:
        """Add a frame behind all that were added so far, whatever its flow."""
        self._front.append(waiting)
        self._flows[waiting.flow] = self._flows.get(waiting.flow, 0) + 1

    def appendleft(self, waiting: Waiting) -> None:
        """Put back what was taken last."""
        self._front.appendleft(waiting)
        self._flows[waiting.flow] = self._flows.get(waiting.flow, 0) + 1

    def popleft(self) -> Waiting:
        """Take the frame whose turn it is.  Raises IndexError if none waits."""
        return self._taken((self._front or self._back).popleft())

    def pop_oldest(self) -> Waiting:
        """Take the frame that has waited longest."""
        return self._taken(self._longest().popleft())

    @property
    def oldest(self) -> Waiting:
        """The frame that has waited longest.  Raises IndexError if none waits."""
        return self._longest()[0]

    def _longest(self) -> deque[Waiting]:
        if not self._front or not self._back:
            return self._front or self._back
        # Of what came in one batch a flow that has more goes before one that is new.
        behind = self._back[0].since <= self._front[0].since
        return self._back if behind else self._front

    def _taken(self, waiting: Waiting) -> Waiting:
        left = self._flows[waiting.flow] - 1
        if left:
            self._flows[waiting.flow] = left
        else:
            del self._flows[waiting.flow]
        return waiting

    def clear(self) -> None:
        """Forget all."""
        self._front.clear()
        self._back.clear()
        self._flows.clear()

    def __len__(self) -> int:
        return len(self._front) + len(self._back)

    def __iter__(self) -> Iterator[Waiting]:
        """In the order of turns."""
        return chain(self._front, self._back)


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
    ack_root: bytes = b""
    ack_key: bytes = b""  # once an A2 has disclosed it
    unanswered: int = 0  # bit i: packet i was sent, and there is no verdict on it
    probe: Probe | None = None  # of a TRACE: what wants to know when it left

    @property
    def is_reliable_data(self) -> bool:
        """Whether its packets are repeated until they are acknowledged."""
        return self.shape & (RELIABLE | CONTROL) == RELIABLE

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
        return self.round is None and self.next_round < self.rounds


@define(eq=False)
class RoundTrip:
    """Smoothed round-trip time and what follows from it (RFC 6298)."""

    smoothed: float | None = None  # s
    variation: float = 0.0  # s
    least: float = inf  # s
    doubts: int = 0  # how often to double the timeout, until there is a measurement
    unsure: bool = False  # a repeated S1 was answered since there was one
    _doubted: float = -inf  # when ``doubts`` grew

    def doubt(self, now: float) -> None:
        """An S1 was answered twice, so it was repeated before its answer could come.

        Which one an answer belongs to nobody knows, so it cannot be measured; without
        patience a way that has become longer would never be measured again.
        """
        if self.unsure and now - self._doubted >= (self.smoothed or FIRST_RTO):
            self.doubts = min(self.doubts + 1, MOST_DOUBTS)
            self._doubted = now

    def sample(self, rtt: float) -> None:
        """Take one measurement, of an exchange that was not repeated.

        An answer may have waited while the host was suspended.
        """
        rtt = min(rtt, MAX_RTO)
        self.doubts, self.unsure = 0, False
        self.least = min(self.least, rtt)
        if self.smoothed is None:
            self.smoothed, self.variation = rtt, rtt / 2
            return
        self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
        self.smoothed += (rtt - self.smoothed) / 8

    def begin(self, rtt: float) -> None:
        """Expect what was seen elsewhere, until there is a measurement of our own."""
        self.smoothed, self.variation = rtt, rtt / 2

    def timeout(self, attempts: int) -> float:
        """How long, in seconds, to wait for an answer after the ``attempts``-th try.

        RFC 6298, but that it grows less, and less far: a round repeats a few small
        messages, of which a lossy way may well take several.
        """
        base = FIRST_RTO
        if self.smoothed is not None:
            margin = max(4 * self.variation, RTO_MARGIN * self.smoothed)
            base = max(MIN_RTO, self.smoothed + margin)
        base *= 2.0**self.doubts
        backed_off = min(base * RTO_GROWTH ** (attempts - 1), BACKED_OFF_RTO)
        return min(max(base, backed_off), MAX_RTO)
