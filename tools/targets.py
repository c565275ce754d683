"""What is fuzzed: everything that reads what others wrote, and the rules that hold.

A target takes bytes and may raise only what it says; everything else is a finding.
``peers`` reads its bytes as a script: two peer tables, what passes between them,
and somebody who changes, replays and invents datagrams, or is the peer himself.
``authentic`` (tools/fuzz_rounds.py), ``signed`` (tools/fuzz_handshakes.py) and
``relay`` (tools/fuzz_relay.py) do so with datagrams of somebody who has the keys.
``kernels`` (tools/fuzz_kernels.py) compares the two homes of what is done per packet.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from attrs import frozen

from alpha_trio import wire
from alpha_trio.errors import AlphaTrioError, ConfigError, StateError
from alpha_trio.proto.batch import Buffer, Counters, Outbox
from alpha_trio.proto.messages import (
    COOKIE_SIZE,
    HEADER,
    MAC_SIZE,
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
    join_early,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
    take_early_untrusted,
)
from alpha_trio.proto.packets import frames
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.traces import Counts, Report, Role, parse_report_untrusted
from alpha_trio.proto.transport.delivery import deliver_bodies_untrusted
from alpha_trio.settings import load_settings
from alpha_trio.state import PeerStore
from tools import fuzz_handshakes, fuzz_kernels, fuzz_relay, fuzz_rounds
from tools.fuzz_world import (
    HEADERS_SIZE,
    IPV4_SIZE,
    MODES,
    ROLES,
    Choices,
    End,
    World,
    insist,
    packet,
)

MOST_STEPS = 200  # of one script
LONGEST_WAIT = 4_096  # tenths of a second

STEPS: tuple[Callable[[World, End, Choices], object], ...] = (
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
    deliver_bodies_untrusted(words, bodies, has_header, out, counters)
    for deliver in out.delivers:
        packets = frames.finished(deliver.parts)
        insist(len(packets) == deliver.packets, "a delivery has its packets")


def early(data: bytes) -> None:
    """Early data of an authentic but hostile peer, decrypted."""
    with suppress(BadPacket):
        words, pieces = take_early_untrusted(memoryview(data))
        bodies = [word.to_bytes(8) + bytes(pieces[i]) for i, word in enumerate(words)]
        insist(join_early(bodies) == data, "what was taken joins to what came")
        out, counters = Outbox(), Counters()
        refused = deliver_bodies_untrusted(words, pieces, has_header, out, counters)
        delivered = sum(deliver.packets for deliver in out.delivers)
        insist(delivered + len(refused) == len(words), "each arrives or is refused")
        for deliver in out.delivers:
            packets = frames.finished(deliver.parts)
            insist(len(packets) == deliver.packets, "a delivery has its packets")


def control(data: bytes) -> None:
    """Frames of the control socket: BadFrame, and of replies also what they say."""
    with suppress(wire.BadFrame):
        wire.body_length_untrusted(data[:4], wire.MAX_REQUEST)
    with suppress(wire.BadFrame):
        wire.decode_request_untrusted(data)
    with suppress(AlphaTrioError):
        wire.decode_reply_untrusted(data)


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
    longest: int = 400  # bytes that are made up at once
    counted: tuple[tuple[str, str], ...] = ()  # for whom, and which kinds; see ``fed``


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
    headers = udp[frames.VIRTIO_SIZE :][:HEADERS_SIZE]
    tcp = headers[:IPV4_SIZE] + bytes(12) + b"\x50" + bytes(7)
    v6 = b"\x60" + bytes(3) + b"\0\x28\x11\x40" + bytes(32)
    return [
        _bodies(1, 0x05_1C_14_86_0014_0000, headers),
        _bodies(0, 0x00_00_14_86_0000_0000, headers),
        _bodies(1, 0x01_28_14_90_0014_0000, tcp),
        _bodies(1, 0x04_3C_28_90_0014_0000, v6 + tcp[IPV4_SIZE:]),
        _bodies(0, 0x00_00_28_86_0000_0000, v6 + headers[IPV4_SIZE:]),
    ]


def _early() -> list[bytes]:
    """Two packets, then a super-packet of three segments, and no packet at all."""
    udp = packet("192.168.10.60", "192.168.10.61", [bytes(20)])
    body = udp[frames.VIRTIO_SIZE :]
    words = (0, 0, *range(0x05_1C_14_86_0014_0000, 0x05_1C_14_86_0014_0003))
    return [join_early(word.to_bytes(8) + body for word in words), b""]


_BOTH = tuple(product((0, 1), repeat=2))
_LONG_SCRIPT = 40_000  # bytes: about a thousand datagrams, as a world is dear

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
    "authentic": Target(
        fuzz_rounds.authentic,
        [
            _script(mode, reliable, early, peer)
            for mode in range(3)
            for reliable, peer in _BOTH
            for early in range(2)
        ],
        _LONG_SCRIPT,
        tuple(product(ROLES, fuzz_rounds.KINDS)),
    ),
    "signed": Target(
        fuzz_handshakes.signed,
        [_script(psk, 0, key, peer) for psk in (0, 3) for key, peer in _BOTH],
        _LONG_SCRIPT,
        tuple(product(ROLES, fuzz_handshakes.KINDS)),
    ),
    "relay": Target(
        fuzz_relay.relay,
        [_script(policy) for policy in range(len(fuzz_relay.POLICIES))],
        _LONG_SCRIPT,
        tuple(product((fuzz_relay.ROLE,), fuzz_relay.KINDS)),
    ),
    "kernels": Target(fuzz_kernels.kernels, fuzz_kernels.SEEDS, 2_000),
    "messages": Target(messages, _handshake()),
    "joining": Target(joining, _joining()),
    "early": Target(early, _early()),
    "control": Target(
        control,
        [
            wire.encode_request("peers.add", {"name": "vm2", "settings": {}})[4:],
            wire.encode_error("no such peer", 4)[4:],
        ],
    ),
    "settings": Target(settings, [_TOML.encode()]),
    "state": Target(state, [_PEERS, _PINS]),
}
