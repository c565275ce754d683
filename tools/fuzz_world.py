"""The world of a fuzzer: two peer tables, the time, and what is between them.

Whatever a script does to them, ``World.check`` says what must hold; what is delivered
is checked as it arrives.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from random import Random
from struct import Struct
from typing import TypeVar

from attrs import Factory, define, field

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES, Buffer, Outbox
from alpha_trio.proto.handshake.answers import MOST_ANSWERS, Shown
from alpha_trio.proto.messages import MAX_ASSOCIATIONS, Kind
from alpha_trio.proto.packets import Cut, frames
from alpha_trio.proto.peers import PeerTable, Session
from alpha_trio.proto.peers.table import KNOCKING_HOSTS
from alpha_trio.proto.peers.waiting import QUEUE_PACKETS
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.rates import ADDRESSES_KEPT
from alpha_trio.proto.transport import AlphaTransport, Transport
from alpha_trio.proto.transport.alpha import MOST_ASSOCIATIONS
from alpha_trio.proto.transport.sender import HELD_BYTES

PORT = 1234
ROLES = ("initiator", "responder")
MODES = ("adaptive", "plain", "cm", "n")
MAIL_KEPT = 256  # datagrams under way; older ones are lost
OLD_KEPT = 64  # datagrams that may come again, or changed
MOST_SLICES = 2_000  # deadlines in a row that are due at once: chains being made

_IPV4 = Struct("!BBHHHBBH4s4s")
_UDP = Struct("!HHHH")
IPV4_SIZE = _IPV4.size
HEADERS_SIZE = IPV4_SIZE + _UDP.size
NUMBER = Struct("!Q")
FORGED = b"\xfa"  # the number of what a fuzzer made begins so
_MOST_IDS = 4 + len(Shown) * MOST_ANSWERS
_FRAGMENT = 0x3FFF  # IPv4: more follow, or others came before


class Broken(Exception):
    """A rule that must hold whatever bytes come in does not."""


def insist(condition: bool, rule: str) -> None:
    """Raise Broken, naming the rule that does not hold."""
    if not condition:
        raise Broken(rule)


@define(eq=False)
class Choices:
    """Bytes, read as decisions; zeros after their end."""

    data: bytes
    at: int = 0

    @property
    def over(self) -> bool:
        """Whether all bytes are spent."""
        return self.at >= len(self.data)

    def number(self, below: int) -> int:
        """A number from 0 to below - 1, of two bytes."""
        return int.from_bytes(self.take(2)) % below

    def take(self, size: int) -> bytes:
        """As many bytes, or those that are left."""
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    def text(self) -> bytes:
        """Up to 255 bytes, or now and then 1,400 of them."""
        size = self.number(256)
        return self.take(size) if size else bytes(1_400)


fed: Counter[tuple[str, str]] = Counter()
"""Datagrams made with the right keys that were handed in since this process began, by
whom they were for and of which kind."""


T = TypeVar("T")


def one_of(choices: Choices, some: Sequence[T]) -> T:
    """One of them."""
    return some[choices.number(len(some))]


def latest_of(choices: Choices, some: Sequence[T]) -> T:
    """Mostly the last of them, or the one before it: what is older is over."""
    how = choices.number(4)
    if how == 3:
        return one_of(choices, some)
    return some[-1 - (how // 2) % len(some)]


def spoiled(choices: Choices, data: bytes) -> bytes:
    """As it is, in two of three cases; else cut, longer, or with other bytes in it."""
    how = choices.number(12)
    if how < 8 or not data:
        return data
    at = choices.number(len(data))
    if how == 8:
        return data[:at]
    if how == 9:
        return data + choices.take(1 + choices.number(40))
    text = choices.take(1 + choices.number(24)) if how == 10 else choices.take(1)
    return data[:at] + text + data[at + len(text) :]


# -- two peer tables and who is between them -----------------------------------------


@define(eq=False)
class End:
    """One host's core, and what became of its packets."""

    address: str
    table: PeerTable
    mail: deque[bytes] = Factory(lambda: deque(maxlen=MAIL_KEPT))  # on its way here
    owed: Counter[bytes] = Factory(Counter)  # payloads sent to here, not yet arrived
    out: Outbox = Factory(Outbox)

    @property
    def session(self) -> Session:
        """What it has for its only peer."""
        (session,) = self.table.sessions.values()
        return session

    @property
    def transports(self) -> list[Transport]:
        """The session in use and the one before it."""
        session = self.session
        return [t for t in (session.current, session.previous) if t is not None]


@define(eq=False)
class World:
    """Both ends, the time, and the datagrams that were ever between them."""

    mode: str
    random: Random
    psk: bytes | None = None  # that both have
    known: bool = False  # whether each knows the other's key from the start
    reliable: bool = False  # whether lost packets are repeated
    early: bool = True  # whether packets may travel inside S1s
    through: Callable[[End, bytes], Iterable[bytes]] | None = None
    """What of a datagram for an end goes on; without it, all."""
    ends: tuple[End, End] = field(init=False)
    now: float = 1000.0
    old: deque[bytes] = Factory(lambda: deque(maxlen=OLD_KEPT))
    sent: int = 0  # packets, which numbers them
    authentic: bool = True  # what arrives must have been sent, once
    forged: Counter[int] | None = None  # how often each number of the peer's arrived

    def __attrs_post_init__(self) -> None:
        self.ends = self._end("192.168.10.60"), self._end("192.168.10.61")
        for end, other in (self.ends, self.ends[::-1]):
            remotes, prefixes = [(other.address, PORT)], [ip_network(other.address)]
            end.table.add(
                "peer",
                remotes,
                prefixes,
                key=other.table.identity.public if self.known else None,
                mode=self.mode,
                reliable=self.reliable,
                psk=self.psk,
                early=self.early,
            )
        self.authentic = self.mode != "plain"

    def _end(self, address: str) -> End:
        identity = Identity(self.random.randbytes(32))
        return End(address, PeerTable(PORT, identity, self.random.randbytes))

    # -- what may happen

    def speak(self, end: End, payloads: Sequence[bytes]) -> list[bytes]:
        """The TUN of ``end`` hands in a packet, or a super-packet of equal ones.

        Returns the payloads as they are to arrive.
        """
        other = self.other(end)
        segments = [NUMBER.pack(self.sent + i) + p for i, p in enumerate(payloads)]
        self.sent += len(segments)
        other.owed.update(segments)
        frame = packet(end.address, other.address, segments)
        end.table.outgoing(memoryview(frame), self.now, end.out)
        end.table.push(self.now, end.out)
        self.flush(end)
        return segments

    def emit(self, end: End, data: bytes) -> None:
        """The TUN hands in some bytes that say they are a packet for the peer."""
        other = self.other(end)
        frame = bytearray(packet(end.address, other.address, [data]))
        frame[frames.VIRTIO_SIZE + 20 :] = data
        frame[frames.VIRTIO_SIZE + 8 : frames.VIRTIO_SIZE + 10] = data[:2].ljust(2)
        other.owed[data[_UDP.size :]] += 1
        end.table.outgoing(memoryview(bytes(frame)), self.now, end.out)
        end.table.push(self.now, end.out)
        self.flush(end)

    def arrive(self, end: End, data: bytes, stride: int = 0, sender: str = "") -> None:
        """Datagrams come in at ``end``, from its peer if not from ``sender``."""
        remote = (sender or self.other(end).address, PORT)
        view = memoryview(bytearray(data))
        size = stride or len(data)
        if size:
            end.table.incoming(view, size, remote, b"here", self.now, end.out)
            self.flush(end)

    def carry(self, end: End) -> None:
        """What is on its way to ``end`` arrives there."""
        for _ in range(len(end.mail)):
            self.arrive(end, end.mail.popleft())

    def betray(self, end: End, data: bytes) -> None:
        """``end`` itself sends its peer something no daemon would, well protected."""
        self.authentic = False
        current = end.session.current
        if isinstance(current, AlphaTransport) and data[:1] < b"\x80":
            current.sender.controls.send([data[1:]], self.now, end.out)
        elif current is not None and len(data) > frames.FRAME_WORD_SIZE + 1:
            word = int.from_bytes(data[1 : 1 + frames.FRAME_WORD_SIZE])
            body = data[1 + frames.FRAME_WORD_SIZE :]
            size = 1 + data[0] % len(body)
            genuine = packet(end.address, self.other(end).address, [b""])
            # Often from its own address: what is not goes no further.
            headers = genuine[frames.VIRTIO_SIZE :] if data[0] & 1 else b""
            # At the end of its numbers a frame word would not be 64 bits any more.
            word &= 2**64 - 1 - 0xFFFF
            current.outgoing(Cut(word, headers, body, size, 0), self.now, end.out)
            current.push(self.now, end.out)
        end.table._plan(end.session)
        self.flush(end)

    def wait(self, seconds: float) -> None:
        """Time goes on, and each end does what is due."""
        until, slices = self.now + seconds, 0
        while (due := min(e.table.deadline for e in self.ends)) <= until:
            slices = 0 if due > self.now else slices + 1
            insist(slices < MOST_SLICES, "a deadline that was served is over")
            self.now = max(self.now, due)
            for end in self.ends:
                if end.table.deadline <= self.now:
                    end.table.on_deadline(self.now, end.out)
                    self.flush(end)
        self.now = until

    def meet(self, steps: int) -> None:
        """Begin a handshake and go so many datagrams far with it."""
        self.speak(self.ends[0], [b"hello"])
        self.wait(0.0)
        for number in range(steps):
            self.carry(self.ends[1 - number % 2])

    # -- what must hold

    def check(self) -> None:
        """Insist on all that must hold at any time."""
        for end in self.ends:
            end.session.statistics(self.now)  # it can always tell how it is
            insist(end.table.deadline == end.table.deadline, "a deadline is a number")
            taken = self.early or not end.session.counters.early_received
            insist(taken, "nothing comes early to who takes none")
            for what, size, most in bounds(end):
                insist(size <= most, f"{what}: at most {most}, not {size}")

    def other(self, end: End) -> End:
        one, other = self.ends
        return other if end is one else one

    def flush(self, end: End) -> None:
        """What ``end`` wants sent is on its way, and what it delivers has come."""
        out, end.out = end.out, Outbox()
        for send in out.sends:
            insist(sum(map(len, send.parts)) == send.size, "a send has its size")
            insist(send.count <= MAX_DATAGRAMS, "a send fits one system call")
            insist(send.count == 1 or send.size <= MAX_SEND_BYTES, "likewise its bytes")
            for datagram in map(bytes, send.datagrams()):
                self.old.append(datagram)
                to = self.other(end)
                to.mail.extend(
                    self.through(to, datagram) if self.through else (datagram,)
                )
        for deliver in out.delivers:
            packets = frames.finished(deliver.parts)
            insist(len(packets) == deliver.packets, "a delivery has its packets")
            if deliver.counters is not end.session.counters:
                continue
            if self.authentic:
                self._receive(end, packets)
            elif self.forged is not None:
                self._count(packets, self.forged)

    def _count(self, packets: Sequence[Buffer], forged: Counter[int]) -> None:
        """The peer sends what it likes; but of what bears a number, each comes once."""
        for arrived in packets:
            number = bytes(arrived[HEADERS_SIZE : HEADERS_SIZE + NUMBER.size])
            if number[:1] == FORGED and len(number) == NUMBER.size:
                (place,) = NUMBER.unpack(number)
                forged[place] += 1
                insist(forged[place] == 1, "what the peer made comes only once")

    def _receive(self, end: End, packets: Sequence[Buffer]) -> None:
        for arrived in packets:
            if int.from_bytes(arrived[6:8]) & _FRAGMENT:
                continue  # of a packet larger than the path takes
            payload = bytes(arrived[HEADERS_SIZE:])
            insist(end.owed[payload] > 0, "what is delivered was sent, and only once")
            end.owed[payload] -= 1


def role_of(world: World, end: End) -> str:
    """Which part ``end`` had in the handshake the world began with."""
    return ROLES[world.ends.index(end)]


def packet(source: str, destination: str, payloads: Sequence[bytes]) -> bytes:
    """A TUN frame with UDP datagrams over IPv4; all but the last are equally long."""
    size, total = len(payloads[0]), sum(map(len, payloads))
    addresses = ip_address(source).packed, ip_address(destination).packed
    length = HEADERS_SIZE + total
    head = _IPV4.pack(0x45, 0, length, 0, 0, 64, 17, 0, *addresses)
    head = _IPV4.pack(
        *_IPV4.unpack(head)[:7], frames.checksum(head), *addresses
    ) + _UDP.pack(4000, 5000, _UDP.size + total, 0)
    segmented = (
        frames.NEEDS_CSUM,
        frames.GSO_UDP_L4,
        HEADERS_SIZE,
        size,
        _IPV4.size,
        6,
    )
    shape = segmented if len(payloads) > 1 else (0, 0, 0, 0, 0, 0)
    return frames.VIRTIO.pack(*shape) + head + b"".join(payloads)


def bounds(end: End) -> Iterator[tuple[str, int, int]]:
    """What could grow, how large it is, and how large it may be."""
    table, session = end.table, end.session
    yield "connection ids", len(table._by_id), _MOST_IDS
    answers = session.negotiation.answers
    yield "half-open answers", len(answers), len(Shown) * MOST_ANSWERS
    yield "first words", len(table._by_word), 2 * len(Kind)
    yield "strangers", len(table.knocking), KNOCKING_HOSTS
    yield "proven addresses", len(table._door._addresses), ADDRESSES_KEPT
    yield "planned deadlines", len(table._heap), 1_000
    yield "packets waiting", session.waiting.packets, QUEUE_PACKETS
    for transport in end.transports:
        if isinstance(transport, AlphaTransport):
            yield from _bounds_of_rounds(transport)


def _bounds_of_rounds(transport: AlphaTransport) -> Iterator[tuple[str, int, int]]:
    rounds, receiver = transport.sender, transport.receiver
    held = rounds.queued_bytes + rounds.under_way_bytes
    yield "bytes held", held, HELD_BYTES
    yield "associations out", len(rounds.associations), 2 * MOST_ASSOCIATIONS
    yield "associations in", len(receiver.associations), MAX_ASSOCIATIONS
    yield "chains being made", len(transport._making), MAX_ASSOCIATIONS
    yield "control messages", len(receiver.controls), 0
