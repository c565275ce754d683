"""What those can do who know both public keys, have addresses of their own, and time.

They send SYNs in a peer's name, get cookies for their own addresses, and where they can
read our SYNs forge the peer's COOKIEs.  They must neither keep a peer that is where we
know it from its session, nor cost more than a bounded amount of work and noise.
"""

from collections import Counter

import pytest
from attrs import evolve

from alpha_trio.proto.batch import Drop, EventKind
from alpha_trio.proto.handshake import GIVE_UP_AFTER
from alpha_trio.proto.handshake.exchange import RETRY_FIRST
from alpha_trio.proto.handshake.negotiation import (
    ANSWER_BURST,
    ANSWER_RATE,
    WRONG_KEY_BURST,
    WRONG_KEY_RATE,
)
from alpha_trio.proto.messages import (
    HALF_OPEN_LIFETIME,
    SUITE_ALPHA,
    Cookie,
    Kind,
    Syn,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.peers.session import REKEY_AFTER
from alpha_trio.proto.primitives import Guard
from tests.proto.simulation import Host, Link, Sent, Simulation, guarded

STRANGER_IDS = 1000  # ours are random, and larger


class Far(Link):
    def carry(self, datagram):
        yield 0.03, datagram


class Strangers:
    """Somebody with several addresses, who knows a host's and its peer's key."""

    def __init__(self, sim: Simulation, target: Host, pretended: Host) -> None:
        self.sim, self.target, self.pretended = sim, target, pretended
        self.cookies: dict[int, bytes] = {}
        self.sent = 0

    def ask(self, number: int, address: str) -> None:
        """Send a SYN that wins every tie, with the cookie for this address."""
        self.sent += 1
        nonce = b"\xff" * 8 + self.sent.to_bytes(8)
        chains, share = (bytes(16), bytes(16)), bytes(31) + b"\x01"
        cookie = self.cookies.get(number, bytes(16))
        sender, who = STRANGER_IDS + number, self.pretended.identity.public
        syn = Syn(sender, nonce, who, share, *chains, cookie, suite=SUITE_ALPHA)
        before = len(self.sim.sent)
        remote = (address, 4000) + ((0, 0) if ":" in address else ())
        key = self.target.identity.public
        self.sim.inject(self.target.name, remote, guarded(syn, key).pack())
        for sent in self.sim.sent[before:]:
            self.read(sent)

    def ask_from_networks(self, count: int) -> None:
        """Send a SYN from each of so many IPv6 networks."""
        for number in range(count):
            self.ask(number, f"2001:db8:0:{number:x}::1")

    def read(self, sent: Sent) -> None:
        if sent.kind == Kind.COOKIE:
            cookie = parse_cookie_untrusted(sent.data)
            guard = Guard(self.target.identity.public, None)
            opened = guard.seal(cookie.sealed, cookie.nonce)
            self.cookies[cookie.receiver_id - STRANGER_IDS] = opened


def strict_pair(sim: Simulation) -> tuple[Host, Host]:
    """Two hosts that have each other's key."""
    hosts = vm1, vm2 = sim.pair()
    for at, of in ((vm1, vm2), (vm2, vm1)):
        require_key(sim, at, of)
    return hosts


def require_key(sim: Simulation, at: Host, of: Host) -> None:
    session = sim.session(at.name, of.name)
    remotes, prefixes = session.negotiation.remotes, at.table._prefixes_of[of.name]
    key, mode = of.identity.public, sim.mode
    at.table.configure(session, remotes, prefixes, key=key, mode=mode)


@pytest.mark.parametrize("renewing", [False, True])
def test_they_displace_no_answer_to_a_peer_where_it_is_known_to_be(renewing):
    sim = Simulation(3, Far(), "adaptive")
    vm1, vm2 = strict_pair(sim)
    if renewing:
        sim.send("vm1", "vm2")
        sim.run(REKEY_AFTER - 5)
    strangers = Strangers(sim, vm2, vm1), Strangers(sim, vm1, vm2)
    to_vm1, to_vm2 = [], []
    for step in range(500):
        for stranger in strangers:
            stranger.ask(step % 8, f"203.0.113.{step % 8}")
        if step >= 100 and step % 10 == 0:  # by now they have all their cookies
            to_vm2 += sim.send("vm1", "vm2")
            to_vm1 += sim.send("vm2", "vm1")
        sim.run(0.02)
    sim.run(1)
    assert set(to_vm1) <= set(vm1.payloads())
    assert set(to_vm2) <= set(vm2.payloads())
    acks = Counter(sent.source for sent in sim.messages(Kind.ACK))
    assert min(acks.values()) > 50  # they did get answers


def test_a_peer_that_comes_from_somewhere_new_has_a_chance_against_them():
    sim = Simulation(1, Far(), "adaptive")
    vm1, vm2 = sim.host("vm1"), sim.host("vm2")
    sim.peer("vm1", "vm2")
    sim.peer("vm2", "vm1")
    sim.locate("vm2", "vm1", "192.0.2.1")  # where it was once
    for at, of in ((vm1, vm2), (vm2, vm1)):
        require_key(sim, at, of)
    strangers = Strangers(sim, vm2, vm1)
    for step in range(1000):
        strangers.ask(step % 8, f"203.0.113.{step % 8}")
        if step % 10 == 0:
            sim.send("vm1", "vm2")
        sim.run(0.03)
    assert vm2.payloads()


def test_addresses_without_number_get_no_more_work_done_than_the_rate():
    """Whoever has an IPv6 /48 can show cookies from 65,536 networks."""
    sim = Simulation(3, mode="adaptive")
    vm1, vm2 = strict_pair(sim)
    strangers = Strangers(sim, vm2, vm1)
    for _ in range(2):
        strangers.ask_from_networks(100)
    assert len(strangers.cookies) > 90
    sim.run(2)
    sim.sent.clear()
    for _ in range(20):
        strangers.ask_from_networks(100)
        sim.run(0.05)
    assert ANSWER_RATE / 2 < len(sim.messages(Kind.ACK)) <= ANSWER_BURST + ANSWER_RATE
    assert vm2.drops()[Drop.RATE] > 1000


def test_they_are_forgotten_in_time():
    sim = Simulation(3, mode="adaptive")
    vm1, vm2 = strict_pair(sim)
    strangers = Strangers(sim, vm2, vm1)
    for number in range(50):
        for _ in range(2):
            strangers.ask(number, f"203.0.113.{number}")
        sim.run(0.2)
    answers = sim.session("vm2", "vm1").negotiation.answers
    assert 0 < len(answers) <= 8
    sim.run(HALF_OPEN_LIFETIME)
    assert not answers
    assert len(vm2.table._by_id) == 0


def test_forged_cookies_make_us_repeat_our_syn_no_more_than_twice_a_second():
    """And however many come, that is no error; in the end we give up as always."""
    sim = Simulation(0, Far(), "adaptive")
    vm1, vm2 = strict_pair(sim)
    sim.block("vm1", "vm2")
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    sim.run(0.001)
    syn = parse_syn_untrusted(sim.messages(Kind.SYN, "vm1")[0].data)
    guard = Guard(vm2.identity.public, None)
    for number in range(1, 4500):
        forged = Cookie(syn.sender_id, syn.nonce, number.to_bytes(16))
        forged = evolve(forged, mac=guard.mac(forged.guarded()))
        sim.inject("vm1", ("192.168.10.61", 1234), forged.pack())
        sim.run(0.02)
    syns = len(sim.messages(Kind.SYN, "vm1"))
    assert 50 < syns <= 2 + 2 * GIVE_UP_AFTER / RETRY_FIRST
    sim.run(5)
    assert vm1.told(EventKind.GAVE_UP)


def test_what_they_pretend_to_be_is_told_at_a_bounded_rate():
    sim = Simulation(mode="adaptive")
    vm1, vm2 = strict_pair(sim)
    rest, own = (bytes(32), bytes(16), bytes(16)), vm1.identity.public
    for number in range(500):
        syn = Syn(7, number.to_bytes(16), number.to_bytes(32), *rest)
        sim.inject("vm1", ("192.168.10.61", 1234), guarded(syn, own).pack())
        sim.run(0.025)
    told = vm1.told(EventKind.WRONG_KEY)
    assert WRONG_KEY_BURST <= told <= WRONG_KEY_BURST + WRONG_KEY_RATE * 500 * 0.025 + 1
    assert vm1.drops()[Drop.WRONG_KEY] > 400
    assert sim.session("vm1", "vm2").negotiation.offered_key == (499).to_bytes(32)
    assert vm2.told(EventKind.WRONG_KEY) == 0
