"""Two ends of one established ALPHA session, and every datagram in the test's hands.

The simulation has whole hosts and a link; here a test says which datagram arrives
when, and may make any message with the session's real keys.
"""

from collections.abc import Callable, Iterable
from random import Random

from attrs import define, field, frozen

from alpha_trio.proto.batch import Counters, Drop, Outbox
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.handshake.exchange import Offer
from alpha_trio.proto.messages import EARLY, HEADER_SIZE, ROUND, Ack, Kind, Syn
from alpha_trio.proto.packets import Cut, frames
from alpha_trio.proto.packets.frames import cut
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.transport import MODES, AlphaTransport, Arrival, Line
from tests.proto.inner import Packet

HERE, THERE = ("192.168.10.60", 1234), ("192.168.10.61", 1234)
ELSEWHERE = ("192.0.2.7", 4321)
SIZE = 1400  # of the largest UDP payload, bytes


@define(eq=False)
class End:
    """One of the two, with what it wants done and what it delivered."""

    transport: AlphaTransport
    peer: tuple  # address of the other
    out: Outbox = field(factory=Outbox)
    received: list[bytes] = field(factory=list)  # by the TUN, in order
    arrival: Arrival = Arrival.NOTHING  # what the last datagram told
    owns: Callable[[bytes], bool] = lambda packet: True  # which inner sources it takes

    @property
    def drops(self) -> dict[Drop, int]:
        return self.transport.line.counters.drops

    @property
    def sender(self):
        return self.transport.sender

    @property
    def receiver(self):
        return self.transport.receiver

    def sent(self) -> list[bytes]:
        """The datagrams it sent since the last call."""
        sends, self.out.sends = self.out.sends, []
        return [bytes(d) for send in sends for d in send.datagrams()]

    def send(self, *payloads: bytes, now: float = 0.0) -> list[bytes]:
        """Hand in packets, one after the other; what it sends then."""
        for payload in payloads:
            cut = Cut(0, b"", payload, len(payload), len(payload))
            self.transport.outgoing(cut, now, self.out)
            self.transport.push(now, self.out)
        return self.sent()

    def emit(self, packet: Packet, now: float = 0.0) -> list[bytes]:
        """Hand in a packet or super-packet as the TUN does; what it sends then."""
        self.transport.outgoing(cut(packet.frame(), 60_000), now, self.out)
        self.transport.push(now, self.out)
        return self.sent()

    def take(
        self,
        *datagrams: bytes,
        now: float = 0.0,
        source: tuple | None = None,
        stride: int = 0,
    ) -> list[bytes]:
        """Let datagrams arrive, each alone or joined with a stride; what it sends."""
        for data in datagrams:
            view = memoryview(bytearray(data))
            while view:
                view = view[self._take(view, stride or len(view), source, now) :]
        for deliver in self.out.delivers:
            self.received += map(bytes, frames.finished(deliver.parts))
        self.out.delivers.clear()
        return self.sent()

    def _take(self, view: memoryview, stride: int, source: tuple | None, now: float):
        stride = min(stride, len(view))
        consumed, self.arrival = self.transport.incoming(
            view, stride, source or self.peer, b"", self.owns, now, self.out
        )
        assert 0 < consumed <= len(view)
        assert self.arrival in Arrival
        return consumed

    def serve(self, now: float) -> list[bytes]:
        """Let everything that is due by ``now`` be done; what it sends."""
        while self.transport.deadline <= now:
            self.transport.on_deadline(now, self.out)
        return self.sent()

    def tagged(self, message: bytes) -> bytes:
        """``message`` as this end, and nobody else, can make it."""
        return self.transport.line.tagged(message)


@define(eq=False)
class Ends:
    """Both ends; ``one`` usually sends, ``two`` usually receives."""

    one: End
    two: End

    @classmethod
    def of_mode(cls, mode: str, seed: int = 0) -> "Ends":
        """Ends whose rounds of ``batch(mode)`` are of just this mode."""
        room_for_two_trees = 312
        return cls.make(seed, mode, room_for_two_trees if mode == "cm" else SIZE)

    @classmethod
    def reliable(cls, mode: str = "adaptive", size: int = SIZE) -> "Ends":
        """Ends of which one sends in reliable rounds."""
        ends = cls.make(0, mode, size)
        ends.one.sender.reliable = True
        return ends

    @classmethod
    def make(
        cls,
        seed: int = 0,
        mode: str = "adaptive",
        size: int = SIZE,
        limit: int = 0,
        *,
        early: bool = False,
    ) -> "Ends":
        """``limit`` is what relays made of it in SYN and ACK.

        ``early``: both take early data, and no relay is against it.
        """
        random = Random(seed).randbytes
        one, two = Offer.make(random), Offer.make(random)
        identity = bytes(32)
        said = {"limit": limit, "options": EARLY * early}
        syn = Syn(1, one.nonce, identity, *one.public, **said)
        ack = Ack(1, 2, two.nonce, identity, *two.public, **said)
        keys = one.agree_untrusted(two.public[0], syn, ack)
        mirrored = two.agree_untrusted(one.public[0], syn, ack)
        return cls(
            _end(1, 2, THERE, keys, one, ack, random, mode, size),
            _end(2, 1, HERE, mirrored, two, syn, random, mode, size),
        )

    def settle(self, *to_two: bytes, now: float = 0.0) -> list[bytes]:
        """Carry everything to and fro until both are silent; all that was carried."""
        carried: list[bytes] = []
        to_one: list[bytes] = []
        while True:
            to_two = (*to_two, *self.one.serve(now))
            to_one = [*to_one, *self.two.serve(now)]
            if not to_one and not to_two:
                return carried
            carried += [*to_two, *to_one]
            to_one, to_two = (
                self.two.take(*to_two, now=now),
                self.one.take(*to_one, now=now),
            )


def _end(local_id, remote_id, peer, keys, offer, theirs, random, mode, size) -> End:
    """What each takes of early data is what the other does."""
    early = bool(theirs.options & EARLY)
    what = keys, offer, theirs, False, early, early
    agreement = Agreement(local_id, remote_id, peer, b"", *what)
    line = Line(agreement, Counters(), random, size, Identity(random(32)))
    transport = AlphaTransport(line, 0.0, 0.0)
    transport.add_first(agreement)
    transport.sender.restrict(mode, dict.fromkeys(MODES, 0))
    return End(transport, peer)


def batch(mode: str = "c", seed: int = 0) -> Packet:
    """What makes one round of this mode: one packet, or a super-packet of seven."""
    if mode == "n":
        return Packet(payload=Random(seed).randbytes(100))
    return Packet(payload=Random(seed).randbytes(680), segment_size=100)


def packets_of(packet: Packet) -> list[bytes]:
    """What has to come out at the other end."""
    if not packet.segment_size:
        return [packet.build()]
    return [segment.build() for segment in packet.segments()]


# -- messages, read without the code under test


@frozen
class Head:
    """The round head of a message."""

    kind: int
    association: int
    shape: int
    round: int
    element: bytes


def head(datagram: bytes) -> Head:
    """What S1, A1, S2 and A2 begin with."""
    association, shape, _, number, element = ROUND.unpack_from(datagram, HEADER_SIZE)
    return Head(datagram[0], association, shape, number, element)


def of_kind(kind: Kind, datagrams: Iterable[bytes]) -> list[bytes]:
    """Those datagrams that are such messages."""
    return [datagram for datagram in datagrams if datagram[0] == kind]


def changed(datagram: bytes, at: int, by: int = 1) -> bytes:
    """``datagram`` with one byte other than it was."""
    mangled = bytearray(datagram)
    mangled[at] ^= by
    return bytes(mangled)
