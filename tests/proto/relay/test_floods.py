"""Strangers pay first: what they have a relay check is not taken from others."""

from collections.abc import Iterator
from itertools import count

import pytest
from attrs import evolve

from alpha_trio.proto.handshake.exchange import RETRY_FIRST, RETRY_GROWTH
from alpha_trio.proto.messages import parse_ack_untrusted, parse_syn_untrusted
from alpha_trio.proto.primitives import verify_untrusted
from alpha_trio.proto.relay.budgets import (
    FIRST_BURST,
    FIRST_RATE,
    RENEWAL_BURST,
    RENEWAL_RATE,
    REST_BURST,
    REST_RATE,
)
from alpha_trio.proto.relay.verdict import RelayDrop
from tests.proto.ends import ELSEWHERE, THERE
from tests.proto.routed import Path

RATE = 4_000  # forged ACKs a second
ATTEMPTS = 5  # of a handshake: a SYN, and its repetitions
STEP = 0.005  # s

MADE = "made by an observer", "to SYNs of one's own", "from spoofed sources"


class Flood:
    """Somebody who can send by either link, and has signed nothing right."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.path = kind, path
        # Somebody else's handshake is overheard, or it is all his own.
        other = Path(seed=99, ids=(900, 901), addresses=(ELSEWHERE, THERE))
        self.syn = parse_syn_untrusted(other.syn)
        self.ack = parse_ack_untrusted(other.ack)
        self.numbers = count(1)
        self.send([self.syn.pack()], ELSEWHERE, THERE, 1)

    def send(self, datagrams, source, destination, link):
        through = self.path.watched.through
        for data in datagrams:
            through(data, len(data), source, destination, self.path.now, link)

    def some(self, number: int) -> None:
        """So many forged ACKs."""
        for each in range(number):
            n = next(self.numbers)
            ack = evolve(self.ack, sender_id=n, nonce=n.to_bytes(16))
            asking, asked = ELSEWHERE, THERE
            if self.kind == MADE[1]:
                asking = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1234)
                if not each % 4:
                    self.syn = evolve(self.syn, sender_id=n, nonce=n.to_bytes(16))
                    self.send([self.syn.pack()], asking, asked, 1)
                ack = evolve(ack, receiver_id=self.syn.sender_id)
            elif self.kind == MADE[2]:
                asked = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1234)
            self.send([ack.pack()], asked, asking, 2)

    def until(self, then: float) -> None:
        """All of them up to a time."""
        while self.path.now < then:
            self.some(round(RATE * STEP))
            self.path.now += STEP


def attempts() -> Iterator[float]:
    """Seconds until the next SYN of who begins a handshake."""
    wait = RETRY_FIRST
    for _ in range(ATTEMPTS):
        yield wait
        wait *= RETRY_GROWTH


@pytest.mark.parametrize("kind", MADE)
def test_a_handshake_passes_under_a_flood_of_forged_acks(kind):
    """Of others, at the latest at a repetition; each flood lasts from before it."""
    for seed in range(3):
        path = Path(seed=seed)
        flood = Flood(path, kind)
        flood.until(path.now + 1)
        assert any(tried(path, flood, wait) for wait in attempts())
        assert sum(path.drops.values()) > RATE / 2


def tried(path: Path, flood: Flood, wait: float) -> bool:
    then = path.now + wait
    path.to_two(path.syn)
    flood.some(40)
    if path.to_one(path.ack):
        flood.some(40)
        if path.to_two(path.ackack):
            return True
    flood.until(then)
    return False


def test_a_renewal_passes_under_a_flood_of_answers_to_its_own_syn():
    """By who reads the link of the responder; it has a minute for its repetitions."""
    path = Path()
    path.introduce()
    renewal = path.renewed()
    flood = Flood(renewal, MADE[0])
    flood.syn = parse_syn_untrusted(renewal.syn)
    flood.ack = parse_ack_untrusted(renewal.ack)
    others = Path(seed=7, ids=(71, 72), watched=path.watched, now=renewal.now)
    others.introduce()
    assert renewal.to_two(renewal.syn)
    assert renewal.to_one(renewal.ack)
    flood.some(1_000)
    assert renewal.to_two(renewal.ackack) == [renewal.ackack]
    # And the renewals of others do not wait for this one.
    others.now = renewal.now
    once_more = others.renewed()
    flood.some(1_000)
    once_more.introduce()


def test_renewals_pass_at_once_whatever_strangers_have_checked():
    """Of whom a relay knows that they have a session, to whose end it counts."""
    paths = [Path(seed=1)]
    paths[0].introduce()
    flood = Flood(paths[0], MADE[1])
    for _ in range(10):
        flood.until(flood.path.now + 1)
        renewal = paths[-1].renewed()
        renewal.now = flood.path.now
        for datagram, send in (
            (renewal.syn, renewal.to_two),
            (renewal.ack, renewal.to_one),
            (renewal.ackack, renewal.to_two),
        ):
            flood.some(200)
            assert send(datagram) == [datagram]
        paths.append(renewal)
    assert paths[0].drops[RelayDrop.RATE] > 10_000


def test_a_renewal_is_asked_for_under_a_flood_of_syns():
    """From as many sources as there are SYNs."""
    path = Path(seed=1)
    path.introduce()
    path.checked = False
    renewal, strangers = path.renewed(), Path(seed=2, watched=path.watched)
    syn = parse_syn_untrusted(strangers.syn)
    for n in range(1, 4_000):
        flood = evolve(syn, sender_id=n, nonce=n.to_bytes(16)).pack()
        path.to_two(flood, source=(f"10.0.{n >> 8}.{n & 255}", 1234))
    assert path.drops[RelayDrop.RATE] > 1_000
    renewal.now = path.now
    assert renewal.to_two(renewal.syn) == [renewal.syn]


@pytest.mark.parametrize("kind", MADE)
def test_signatures_are_checked_at_a_bounded_rate_in_all(kind, monkeypatch):
    checked = 0

    def counting(*text):
        nonlocal checked
        checked += 1
        verify_untrusted(*text)

    monkeypatch.setattr(
        "alpha_trio.proto.relay.introduction.verify_untrusted", counting
    )
    path = Path()
    flood = Flood(path, kind)
    flood.until(path.now + 3)
    burst = FIRST_BURST + REST_BURST + RENEWAL_BURST
    assert checked <= 3 * (FIRST_RATE + REST_RATE + RENEWAL_RATE) + burst
    if kind == MADE[2]:
        assert checked == 0  # an address is compared before
        assert set(path.drops) == {RelayDrop.WRONG_SIDE}
