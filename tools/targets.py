"""What is fuzzed: everything that reads what others wrote, and the rules that hold.

A target takes bytes and may raise only what it says; everything else is a finding.
``peers`` reads its bytes as a script: two peer tables, what passes between them,
and somebody who changes, replays and invents datagrams, or is the peer himself.
"""

from __future__ import annotations

import atexit
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from struct import Struct
from tempfile import TemporaryDirectory

from attrs import Factory, define, field, frozen

from alpha_trio import rpc
from alpha_trio.errors import ConfigError, StateError
from alpha_trio.proto.batch import (
    MAX_DATAGRAMS,
    MAX_SEND_BYTES,
    Buffer,
    Counters,
    Outbox,
)
from alpha_trio.proto.messages import (
    COOKIE_SIZE,
    HEADER,
    MAC_SIZE,
    MAX_ASSOCIATIONS,
    NONCE_SIZE,
    VERSION,
    Ack,
    AckAck,
    BadPacket,
    Bodies,
    Control,
    Cookie,
    Kind,
    Syn,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
    split,
)
from alpha_trio.proto.packets import Cut, frames
from alpha_trio.proto.peers import PeerTable, Session
from alpha_trio.proto.peers.table import KNOCKING_HOSTS
from alpha_trio.proto.peers.waiting import QUEUE_PACKETS
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.rates import ADDRESSES_KEPT
from alpha_trio.proto.traces import Counts, Report, Role, parse_report_untrusted
from alpha_trio.proto.transport import AlphaTransport, Transport
from alpha_trio.proto.transport.alpha import MOST_ASSOCIATIONS
from alpha_trio.proto.transport.delivery import deliver_untrusted
from alpha_trio.proto.transport.sender import HELD_BYTES
from alpha_trio.settings import load_settings
from alpha_trio.state import PeerStore

PORT = 1234
MODES = ("adaptive", "plain", "cm", "n")
MAIL_KEPT = 256  # datagrams under way; older ones are lost
OLD_KEPT = 64  # datagrams that may come again, or changed
MOST_SLICES = 2_000  # deadlines in a row that are due at once: chains being made
MOST_STEPS = 200  # of one script
LONGEST_WAIT = 4_096  # tenths of a second

_IPV4 = Struct("!BBHHHBBH4s4s")
_UDP = Struct("!HHHH")
_HEADERS = _IPV4.size + _UDP.size
_NUMBER = Struct("!Q")
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
    ends: tuple[End, End] = field(init=False)
    now: float = 1000.0
    old: deque[bytes] = Factory(lambda: deque(maxlen=OLD_KEPT))
    sent: int = 0  # packets, which numbers them
    authentic: bool = True  # what arrives must have been sent, once

    def __attrs_post_init__(self) -> None:
        self.ends = self._end("192.168.10.60"), self._end("192.168.10.61")
        for end, other in (self.ends, self.ends[::-1]):
            remotes, prefixes = [(other.address, PORT)], [ip_network(other.address)]
            end.table.add("peer", remotes, prefixes, mode=self.mode)
        self.authentic = self.mode != "plain"

    def _end(self, address: str) -> End:
        identity = Identity(self.random.randbytes(32))
        return End(address, PeerTable(PORT, identity, self.random.randbytes))

    # -- what may happen

    def speak(self, end: End, payloads: Sequence[bytes]) -> None:
        """The TUN of ``end`` hands in a packet, or a super-packet of equal ones."""
        other = self._other(end)
        segments = [_NUMBER.pack(self.sent + i) + p for i, p in enumerate(payloads)]
        self.sent += len(segments)
        other.owed.update(segments)
        frame = packet(end.address, other.address, segments)
        end.table.outgoing(memoryview(frame), self.now, end.out)
        end.table.push(self.now, end.out)
        self._flush(end)

    def emit(self, end: End, data: bytes) -> None:
        """The TUN hands in some bytes that say they are a packet for the peer."""
        other = self._other(end)
        frame = bytearray(packet(end.address, other.address, [data]))
        frame[frames.VIRTIO_SIZE + 20 :] = data
        frame[frames.VIRTIO_SIZE + 8 : frames.VIRTIO_SIZE + 10] = data[:2].ljust(2)
        other.owed[data[_UDP.size :]] += 1
        end.table.outgoing(memoryview(bytes(frame)), self.now, end.out)
        end.table.push(self.now, end.out)
        self._flush(end)

    def arrive(self, end: End, data: bytes, stride: int = 0, sender: str = "") -> None:
        """Datagrams come in at ``end``, from its peer if not from ``sender``."""
        remote = (sender or self._other(end).address, PORT)
        view = memoryview(bytearray(data))
        size = stride or len(data)
        if size:
            end.table.incoming(view, size, remote, b"here", self.now, end.out)
            self._flush(end)

    def carry(self, end: End) -> None:
        """What is on its way to ``end`` arrives there."""
        for _ in range(len(end.mail)):
            self.arrive(end, end.mail.popleft())

    def betray(self, end: End, data: bytes) -> None:
        """``end`` itself sends its peer something no daemon would, well protected."""
        self.authentic = False
        current = end.session.current
        if isinstance(current, AlphaTransport) and data[:1] < b"\x80":
            current.sender.send_control(data[1:], self.now, end.out)
        elif current is not None and len(data) > frames.FRAME_WORD_SIZE + 1:
            word = int.from_bytes(data[1 : 1 + frames.FRAME_WORD_SIZE])
            body = data[1 + frames.FRAME_WORD_SIZE :]
            size = 1 + data[0] % len(body)
            genuine = packet(end.address, self._other(end).address, [b""])
            # Often from its own address: what is not goes no further.
            headers = genuine[frames.VIRTIO_SIZE :] if data[0] & 1 else b""
            segments = split(body, 0, size)
            # At the end of its numbers a frame word would not be 64 bits any more.
            word &= 2**64 - 1 - 0xFFFF
            current.outgoing(Cut(word, headers, segments, size, 0), self.now, end.out)
            current.push(self.now, end.out)
        end.table._plan(end.session)
        self._flush(end)

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
                    self._flush(end)
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
            for what, size, most in bounds(end):
                insist(size <= most, f"{what}: at most {most}, not {size}")

    def _other(self, end: End) -> End:
        one, other = self.ends
        return other if end is one else one

    def _flush(self, end: End) -> None:
        out, end.out = end.out, Outbox()
        for send in out.sends:
            insist(sum(map(len, send.parts)) == send.size, "a send has its size")
            insist(send.count <= MAX_DATAGRAMS, "a send fits one system call")
            insist(send.count == 1 or send.size <= MAX_SEND_BYTES, "likewise its bytes")
            for datagram in map(bytes, send.datagrams()):
                self.old.append(datagram)
                self._other(end).mail.append(datagram)
        for deliver in out.delivers:
            packets = frames.finished(deliver.parts)
            insist(len(packets) == deliver.packets, "a delivery has its packets")
            if self.authentic and deliver.counters is end.session.counters:
                self._receive(end, packets)

    def _receive(self, end: End, packets: Sequence[Buffer]) -> None:
        for arrived in packets:
            if int.from_bytes(arrived[6:8]) & _FRAGMENT:
                continue  # of a packet larger than the path takes
            payload = bytes(arrived[_HEADERS:])
            insist(end.owed[payload] > 0, "what is delivered was sent, and only once")
            end.owed[payload] -= 1


def packet(source: str, destination: str, payloads: Sequence[bytes]) -> bytes:
    """A TUN frame with UDP datagrams over IPv4; all but the last are equally long."""
    size, total = len(payloads[0]), sum(map(len, payloads))
    addresses = ip_address(source).packed, ip_address(destination).packed
    length = _HEADERS + total
    head = _IPV4.pack(0x45, 0, length, 0, 0, 64, 17, 0, *addresses)
    head = _IPV4.pack(
        *_IPV4.unpack(head)[:7], frames.checksum(head), *addresses
    ) + _UDP.pack(4000, 5000, _UDP.size + total, 0)
    segmented = (frames.NEEDS_CSUM, frames.GSO_UDP_L4, _HEADERS, size, _IPV4.size, 6)
    shape = segmented if len(payloads) > 1 else (0, 0, 0, 0, 0, 0)
    return frames.VIRTIO.pack(*shape) + head + b"".join(payloads)


def bounds(end: End) -> Iterator[tuple[str, int, int]]:
    """What could grow, how large it is, and how large it may be."""
    table, session = end.table, end.session
    yield "connection ids", len(table._by_id), 4
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


STEPS: tuple[Callable[[World, End, Choices], None], ...] = (
    lambda world, end, choices: world.carry(end),
    lambda world, end, choices: world.speak(end, speech(choices)),
    lambda world, end, choices: world.arrive(end, *mangled(world, choices)),
    lambda world, end, choices: world.arrive(end, invented(end, choices)),
    lambda world, end, choices: world.betray(end, choices.text()),
    lambda world, end, choices: world.wait(choices.number(LONGEST_WAIT) / 10),
    lambda world, end, choices: world.emit(end, choices.text()),
    lambda world, end, choices: world.wait(choices.number(LONGEST_WAIT) / 1e5),
)


def speech(choices: Choices) -> list[bytes]:
    """Payloads of one super-packet."""
    size = choices.number(1_200)
    return [bytes(size)] * (1 + choices.number(8))


def mangled(world: World, choices: Choices) -> tuple[bytes, int, str]:
    """Something that was on the link, changed; its stride and where it comes from."""
    how = choices.number(64)
    data = bytearray()
    for _ in range(1 + how % 3):
        if world.old:
            data += world.old[choices.number(len(world.old))]
    stride = choices.number(len(data) + 1) if how & 8 else len(data)
    if how & 4 and data:
        del data[choices.number(len(data)) :]
    if how & 16 and data:
        text, at = choices.text(), choices.number(len(data))
        data[at : at + len(text)] = text
    elif data:
        data[choices.number(len(data))] ^= 1 << choices.number(8)
    return bytes(data), stride, "203.0.113.9" if how & 32 else ""


def invented(end: End, choices: Choices) -> bytes:
    """Bytes of the fuzzer's, mostly with a head that leads to a session."""
    kind, text = 1 + choices.number(len(Kind)), choices.text()
    ids = [*end.table._by_id, 0]
    receiver = ids[choices.number(len(ids))]
    return HEADER.pack(kind, VERSION, 0, receiver) + text


def peers(data: bytes) -> None:
    """Two peer tables, through whatever the script says.  Nothing is ever raised."""
    choices = Choices(data)
    world = World(MODES[choices.number(len(MODES))], Random(1))
    world.meet(choices.number(6))
    for _ in range(MOST_STEPS):
        if choices.over:
            break
        what = choices.number(2 * len(STEPS))
        STEPS[what // 2](world, world.ends[what % 2], choices)
        world.check()


# -- parsers ---------------------------------------------------------------------------


def messages(data: bytes) -> None:
    """Messages read field by field: BadPacket, or what packs to the same bytes."""
    parsers: tuple[Callable[[bytes], Syn | Ack | AckAck], ...] = (
        parse_syn_untrusted,
        parse_ack_untrusted,
        parse_ackack_untrusted,
    )
    for parse in parsers:
        with suppress(BadPacket):
            packed = parse(data).pack()
            # Of kind and version the caller has made sure; fillers may be anything.
            insist(packed[4:12] == data[4:12], "what was parsed packs as it came")
    with suppress(BadPacket):
        cookie = parse_cookie_untrusted(data).pack()
        insist(cookie[4:] == data[4:], "what was parsed packs as it came")
    with suppress(BadPacket):
        report = parse_report_untrusted(data)
        insist(report.pack()[:72] == data[:72], "what was parsed packs as it came")
        report.verify_untrusted()


def has_header(body: Buffer) -> bool:
    """What a session makes sure of when it asks whose address the source is."""
    version = body[0] >> 4 if len(body) else 0
    return (version == 4 and len(body) >= 20) or (version == 6 and len(body) >= 40)


def joining(data: bytes) -> None:
    """Frame words and bodies of an authentic but hostile peer."""
    choices = Choices(data)
    count, step = 1 + choices.number(8), choices.number(2)
    first = int.from_bytes(choices.take(8).ljust(8, b"\0"))
    words = tuple((first + i * step) % 2**64 for i in range(count))
    text = choices.text()
    size = max(1, -(-len(text) // count))
    bodies = Bodies(memoryview(text), 0, size, size)
    words = words[: -(-len(text) // size)]
    out = Outbox()
    counters = Counters()
    deliver_untrusted(words, bodies, has_header, out, counters)
    for deliver in out.delivers:
        packets = frames.finished(deliver.parts)
        insist(len(packets) == deliver.packets, "a delivery has its packets")


def control(data: bytes) -> None:
    """Frames of the control socket: BadFrame, and of replies also what they say."""
    with suppress(rpc.BadFrame):
        rpc.body_length_untrusted(data[:4], rpc.MAX_REQUEST)
    with suppress(rpc.BadFrame):
        rpc.decode_request_untrusted(data)
    with suppress(rpc.BadFrame, rpc.RemoteError):
        rpc.decode_reply_untrusted(data)


def _scratch(name: str) -> Path:
    """A file of this process, gone at its end."""
    directory = TemporaryDirectory(prefix="alpha-trio-fuzz-")
    atexit.register(directory.cleanup)
    return Path(directory.name, name)


_CONFIG = _scratch("alpha-trio.toml")


def settings(data: bytes) -> None:
    """A config file: ConfigError of one line, or settings."""
    _CONFIG.write_bytes(data)
    try:
        load_settings(_CONFIG, {})
    except ConfigError as error:
        insist("\n" not in str(error), "an error is one line")


_STATE = _scratch("state")


def state(data: bytes) -> None:
    """Files in the state directory: StateError of one line, or peers and pins."""
    with PeerStore(_STATE) as store:
        for name, load in (("peers", store.load), ("pins", store.pins)):
            (_STATE / f"{name}.json").write_bytes(data)
            try:
                load()
            except StateError as error:
                insist("\n" not in str(error), "an error is one line")


# -- all of them -----------------------------------------------------------------------


@frozen
class Target:
    """Something to be fuzzed, and inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


def _handshake() -> list[bytes]:
    """SYN, ACK and ACKACK of a genuine handshake, a COOKIE and a REPORT."""
    world = World("adaptive", Random(1))
    world.meet(3)
    cookie = Cookie(7, bytes(NONCE_SIZE), bytes(COOKIE_SIZE), bytes(MAC_SIZE))
    identity, nonce = Identity(bytes(32)), bytes(NONCE_SIZE)
    report = Report(7, nonce, identity.public, Role.RELAY, Counts(1), Counts(2))
    return [*list(world.old)[:3], cookie.pack(), report.signed(identity)]


def _script(*numbers: int) -> bytes:
    """What Choices reads as these numbers: mode, datagrams of the handshake, steps."""
    return b"".join(number.to_bytes(2) for number in numbers)


_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
_TOML = f"""\
interface = "alpha0"
port = 1234
addresses = ["10.9.0.1/24"]
[relay]
enabled = false
memory = "64 MiB"
[routing]
backend = "rules"
table = 1234
[offloads]
gro = false
[peers.vm2]
endpoint = "192.168.10.61"
key = "{_KEY}"
allow = ["10.9.0.2/32"]
only = ["tcp/80-90"]
keepalive = 25
mode = "cm"
"""
_PEERS = b'{"schema": 1, "peers": [{"name": "vm2", "endpoint": "192.168.10.61"}]}'
_PINS = f'{{"schema": 1, "pins": {{"vm2": "{_KEY}"}}}}'.encode()
_SPEECH = (2, 200, 3)  # one end speaks: size, segments
_TALK = (0, 1, 0, 1, *_SPEECH, 1, 0, 1, 0)
_BETRAYAL, _PAUSE = 8, (10, 10)


def _betrayal(kind: int) -> bytes:
    """A script in which one end sends a control message of this kind."""
    message = b"\0" + bytes([kind, 0, 0, 5]) + bytes(16)
    end = _script(1, 0, 1, 0, *_PAUSE, 1, 0, 1, 0)
    return _script(0, 4, *_TALK, _BETRAYAL, len(message)) + message + end


def _bodies(step: int, word: int, headers: bytes) -> bytes:
    """Input for ``joining``: four segments of a super-packet, or equal packets (0)."""
    body = headers + bytes(20)
    return _script(3, step) + word.to_bytes(8) + 4 * (_script(len(body)) + body)


def _joining() -> list[bytes]:
    """Segments of UDP and of TCP, and UDP packets of one flow."""
    udp = packet("192.168.10.60", "192.168.10.61", [bytes(20)])
    headers = udp[frames.VIRTIO_SIZE :][:_HEADERS]
    tcp = headers[: _IPV4.size] + bytes(12) + b"\x50" + bytes(7)
    v6 = b"\x60" + bytes(3) + b"\0\x28\x11\x40" + bytes(32)
    return [
        _bodies(1, 0x05_1C_14_86_0014_0000, headers),
        _bodies(0, 0x00_00_14_86_0000_0000, headers),
        _bodies(1, 0x01_28_14_90_0014_0000, tcp),
        _bodies(1, 0x04_3C_28_90_0014_0000, v6 + tcp[_IPV4.size :]),
        _bodies(0, 0x00_00_28_86_0000_0000, v6 + headers[_IPV4.size :]),
    ]


TARGETS = {
    "peers": Target(
        peers,
        [
            _script(mode, handshake, *_TALK, *_TALK)
            for mode in range(len(MODES))
            for handshake in range(5)
        ]
        + [_betrayal(kind) for kind in Control],
    ),
    "messages": Target(messages, _handshake()),
    "joining": Target(joining, _joining()),
    "control": Target(
        control,
        [
            rpc.encode_request("peers.add", {"name": "vm2", "settings": {}})[4:],
            rpc.encode_error("no such peer", 4)[4:],
        ],
    ),
    "settings": Target(settings, [_TOML.encode()]),
    "state": Target(state, [_PEERS, _PINS]),
}
