"""Attacks found in review, each as somebody on the path would try it."""

from ipaddress import ip_network
from random import Random

import pytest
from attrs import evolve

from alpha_trio.proto.batch import Drop, Outbox
from alpha_trio.proto.handshake import Doorkeeper
from alpha_trio.proto.handshake.cookies import SECRET_LIFETIME
from alpha_trio.proto.handshake.exchange import HalfOpen, Initiation
from alpha_trio.proto.messages import (
    Kind,
    parse_ack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.peers import PeerTable, Session, State
from alpha_trio.proto.primitives import Identity
from tests.proto.inner import Packet
from tests.proto.simulation import Simulation, guarded

PEER = ("192.168.10.61", 1234)


class Victim:
    """One host with one peer, driven datagram by datagram."""

    def __init__(self, **settings):
        self.random = Random(1).randbytes
        self.identity = Identity(self.random(32))
        self.table = PeerTable(1234, self.identity, self.random)
        self.peer = self.add("vm2", PEER, **settings)
        self.out = Outbox()

    def add(self, name, remote, **settings) -> Session:
        return self.table.add(name, [remote], [ip_network(remote[0])], **settings)

    def ask(self, session: Session, now: float) -> bytes:
        """Start a handshake; returns the SYN."""
        frame = Packet(
            destination=session.negotiation.remotes[0][0], payload=b"hello"
        ).frame()
        self.table.outgoing(frame, now, self.out)
        self.table.push(now, self.out)
        self.table.on_deadline(now + 2, self.out)  # it may wait for an ACKACK
        return next(d for d in self.sent() if d[0] == Kind.SYN)

    def take(self, datagram: bytes, now: float, remote=PEER) -> list[bytes]:
        """What it answers to a datagram."""
        view = memoryview(datagram)
        self.table.incoming(view, len(datagram), remote, b"", now, self.out)
        return self.sent()

    def sent(self) -> list[bytes]:
        sends, self.out.sends = self.out.sends, []
        return [bytes(d) for send in sends for d in send.datagrams()]


def stranger() -> Identity:
    return Identity(Random(2).randbytes(32))


def begin(identity: Identity, local_id: int = 77) -> Initiation:
    return Initiation.begin(identity, 1, local_id, Random(local_id).randbytes, 0.0)


def test_a_half_open_answer_is_void_once_another_key_is_pinned():
    victim, evil, good = Victim(), stranger(), Identity(Random(3).randbytes(32))
    attack = begin(evil)
    (ack,) = victim.take(attack.variant(), 0.0)
    syn = parse_syn_untrusted(victim.ask(victim.peer, 5.0))
    answer = HalfOpen.answer(syn, good, 99, Random(4).randbytes, PEER, b"", 5.0)
    victim.take(answer.ack.pack(), 5.0)
    assert victim.peer.negotiation.key == good.public
    ackack = attack.finish_untrusted(parse_ack_untrusted(ack), evil)
    victim.take(ackack.pack(), 6.0)
    assert victim.peer.current.line.agreement.remote_id == 99
    assert victim.peer.counters.drops[Drop.WRONG_KEY] == 1


def test_our_own_syn_sent_back_pins_nothing():
    victim = Victim()
    third = victim.add("vm3", ("192.168.10.62", 1234))
    syn = victim.ask(third, 0.0)
    assert not victim.take(syn, 0.1, PEER)
    assert victim.peer.negotiation.key is None
    assert not victim.peer.negotiation.answers


def test_a_forged_syn_displaces_no_answer():
    good = stranger()
    victim = Victim(key=good.public)
    genuine = begin(good)
    (ack,) = victim.take(genuine.variant(), 0.0)
    forged = evolve(genuine.syn, nonce=bytes(16), sender_id=3)
    (answer,) = victim.take(guarded(forged).pack(), 0.01)
    cookie = parse_cookie_untrusted(answer)
    assert cookie.receiver_id == 3  # asked for proof of the address, nothing changed
    ackack = genuine.finish_untrusted(parse_ack_untrusted(ack), good)
    victim.take(ackack.pack(), 0.02)
    assert victim.peer.state(0.02) is State.ESTABLISHED


def test_a_restarted_peer_replaces_its_own_answer_with_a_cookie():
    good = stranger()
    victim = Victim(key=good.public)
    victim.take(begin(good, 5).variant(), 0.0)
    again = begin(good, 6)
    (answer,) = victim.take(again.variant(), 1.0)
    again.take_cookie_untrusted(parse_cookie_untrusted(answer), 1.0)
    (ack,) = victim.take(again.with_cookie(), 1.1)
    assert parse_ack_untrusted(ack).receiver_id == 6


def test_a_cookie_ends_when_it_should():
    door = Doorkeeper(Random(5).randbytes)
    cookie = door.cookie(PEER, 0.0)
    assert door.admit(PEER, cookie, 1.9 * SECRET_LIFETIME)
    assert door.admit(PEER, cookie, 1000 * SECRET_LIFETIME) is None


@pytest.mark.parametrize("kind", [Kind.S1, Kind.A1])
def test_a_repeated_message_is_no_sign_of_life(kind):
    sim = Simulation(mode="adaptive")
    sim.pair()
    sim.ping("vm1", "vm2")
    sim.run(1)
    receiver = "vm2" if kind == Kind.S1 else "vm1"
    old = next(sent.data for sent in sim.sent if sent.kind == kind)
    session = sim.session(receiver, "vm1" if receiver == "vm2" else "vm2")
    sim.run(20)
    heard = session.current.heard
    sim.inject(receiver, ("10.9.9.9", 99), old)
    sim.run(1)
    assert session.current.heard == heard


def test_forced_trees_fit_the_depth_the_mtu_allows_for():
    sim = Simulation(mode="cm")
    sim.pair()
    sim.ping("vm1", "vm2")
    sim.run(1)
    for _ in range(900):
        sim.send("vm1", "vm2")
    sim.run(5)
    assert len(sim.hosts["vm2"].received) >= 900
    assert not sim.session("vm2", "vm1").counters.drops


def test_short_datagrams_in_a_run_are_forged_packets_and_no_more():
    sim = Simulation(mode="m")
    sim.pair()
    sim.ping("vm1", "vm2")
    sim.run(1)
    sim.sent.clear()
    for _ in range(9):
        sim.send("vm1", "vm2")
    sim.run(1)
    trees = [s.data for s in sim.messages(Kind.S2, "vm1") if s.data[10] & 0x07]
    copied = trees[-1][:40]  # head and key, as everybody on the path can see them
    sim.inject("vm2", ("10.9.9.9", 99), copied * 4, stride=40)
    assert sim.session("vm2", "vm1").counters.drops[Drop.FORGED] >= 1


def test_an_open_that_is_refused_or_lost_is_given_up():
    sim = Simulation(mode="adaptive")
    sim.pair()
    sim.ping("vm1", "vm2")
    sim.run(1)
    transport = sim.session("vm1", "vm2").current
    transport._opening[9] = (transport.sender.associations[0].chain, sim.now)
    for number in range(50):
        sim.send("vm1", "vm2", number)
        sim.run(1)
    assert 9 not in transport._opening


def test_a_flood_in_a_peers_name_is_no_flood_of_cookies_at_it():
    victim = Victim()
    answers = 0
    genuine = begin(stranger()).syn
    for number in range(2000):
        forged = evolve(genuine, nonce=number.to_bytes(16), sender_id=number + 1)
        answers += len(victim.take(guarded(forged).pack(), number / 20_000))
    assert answers < 200
    assert victim.peer.counters.drops[Drop.RATE] > 1500


def test_a_repeated_ackack_is_nothing_to_count():
    good = stranger()
    victim = Victim(key=good.public)
    asking = begin(good)
    (ack,) = victim.take(asking.variant(), 0.0)
    ackack = asking.finish_untrusted(parse_ack_untrusted(ack), good).pack()
    victim.take(ackack, 0.1)
    victim.take(ackack, 0.2)
    assert not victim.peer.counters.drops
