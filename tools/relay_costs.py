"""What one hostile datagram costs the core of a relay, in microseconds.

Each kind is made as somebody would who knows the protocol and reads the link, and comes
as often as he likes.  Times are of this machine, the best of a few runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from random import Random

from attrs import define, evolve, field

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.messages import (
    HEADER_SIZE,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    Kind,
    parse_ack_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.relay import Relay, RelayPolicy, Unseen
from tools.lab import LabError
from tools.selfmade import both_ends

_ONE, _TWO, _OTHER = ("192.0.2.1", 1234), ("192.0.2.2", 1234), ("192.0.2.3", 1234)
_LINKS = 1, 2  # that lead to them
_DATAGRAMS = 2_000  # of each kind
_REPEAT = 5
_START = 1_000.0

Datagrams = Iterator[bytes]


@define(eq=False)
class Scene:
    """A relay with a session, whose latest round has no A1 yet, and its datagrams."""

    relay: Relay
    seen: dict[int, bytes]  # the latest of each kind
    now: float = _START
    numbers: Iterator[int] = field(factory=lambda: count(1))

    @classmethod
    def make(cls) -> Scene:
        """Let a session pass, and the S1 of one more round."""
        policy = RelayPolicy(Unseen.DROP)
        scene = cls(Relay(policy, _START, Random(1).randbytes), {})
        opened = 0
        for number, datagram in both_ends(Random(2), 4):
            opened += datagram[0] == Kind.S1
            if opened > 2 and datagram[0] == Kind.A1:
                scene.seen[Kind.A1] = datagram
                break
            if not scene.send(datagram, number):
                raise LabError(f"the relay refuses it: {scene.relay.counters.drops}")
            scene.seen[datagram[0]] = datagram
        return scene

    def send(self, datagram: bytes, number: int) -> bool:
        """Whether it goes on, from one end to the other."""
        ends = (_ONE, _TWO) if number == 0 else (_TWO, _ONE)
        view = memoryview(bytearray(datagram))
        link = _LINKS[number]
        crossing = Crossing(*ends, link)
        return bool(self.relay.transit(view, len(view), crossing, self.now))

    # -- kinds, each an endless row ------------------------------------------------

    def syns(self) -> Datagrams:
        """Of strangers."""
        syn = parse_syn_untrusted(self.seen[Kind.SYN])
        for n in self.numbers:
            yield evolve(syn, sender_id=n, nonce=n.to_bytes(16)).pack()

    def acks(self) -> Datagrams:
        """To a SYN that was overheard, with a signature that is none."""
        ack = parse_ack_untrusted(self.seen[Kind.ACK])
        for n in self.numbers:
            yield evolve(ack, sender_id=n, nonce=n.to_bytes(16)).pack()

    def changed(self, kind: int, at: int) -> Datagrams:
        """The latest of a kind with other bytes at a place."""
        found = self.seen[kind]
        for n in self.numbers:
            yield found[:at] + n.to_bytes(8) + found[at + 8 :]


def kinds_of(scene: Scene) -> dict[str, tuple[int, Datagrams]]:
    """Who sends them, 0 or 1, and the datagrams."""
    syn = next(scene.syns())
    s1, s2 = scene.seen[Kind.S1], scene.seen[Kind.S2]
    element = ROUND_HEAD_SIZE - 16
    return {
        "noise": (0, _rows(bytes([99, 1, 0, 0]) + bytes(96))),
        "SYN of a stranger": (0, scene.syns()),
        "COOKIE nobody waits for": (
            1,
            _rows(bytes([Kind.COOKIE, 1, 0, 0]) + bytes(52)),
        ),
        "ACK by the link of its SYN": (0, scene.acks()),
        "ACK with a wrong signature": (1, scene.acks()),
        "ACKACK with a wrong signature": (0, scene.changed(Kind.ACKACK, HEADER_SIZE)),
        "S1 with a made-up element": (0, _rows(_later(s1, 1))),
        "S1 far ahead": (0, _rows(_later(s1, 50))),
        "S1 with other roots": (0, scene.changed(Kind.S1, S1_FIXED_SIZE)),
        "S1 with another tag": (0, scene.changed(Kind.S1, len(s1) - 8)),
        "A1 with a made-up element": (1, scene.changed(Kind.A1, element)),
        "A1 by the link of its S1": (0, scene.changed(Kind.A1, ROUND_HEAD_SIZE + 40)),
        "S2 nobody agreed to": (0, _rows(_later(s2, 1))),
        "S2 of a round that is over": (0, scene.changed(Kind.S2, len(s2) - 8)),
        "REPORT nobody asked for": (1, _rows(_report(syn, s2))),
    }


def _rows(datagram: bytes) -> Datagrams:
    while True:
        yield datagram


def _later(datagram: bytes, ahead: int) -> bytes:
    number = int.from_bytes(datagram[12:16]) + ahead
    return datagram[:12] + number.to_bytes(4) + bytes(16) + datagram[ROUND_HEAD_SIZE:]


def _report(syn: bytes, s2: bytes) -> bytes:
    return bytes([Kind.REPORT]) + s2[1:HEADER_SIZE] + syn[:180]


def measure_relay() -> dict[str, float]:
    """Microseconds for each datagram, by kind."""
    return {name: _cost(name) * 1e6 for name in kinds_of(Scene.make())}


def _cost(name: str) -> float:
    return min(_seconds(name) for _ in range(_REPEAT)) / _DATAGRAMS


def _seconds(name: str) -> float:
    scene = Scene.make()
    number, row = kinds_of(scene)[name]
    ends = (_ONE, _TWO) if number == 0 else (_TWO, _ONE)
    views = [memoryview(bytearray(next(row))) for _ in range(_DATAGRAMS)]
    transit, now = scene.relay.transit, scene.now
    crossing = Crossing(*ends, _LINKS[number])
    begun = time.perf_counter()
    for view in views:
        transit(view, len(view), crossing, now)
    return time.perf_counter() - begun
