"""Peers that move, hosts that move, and hosts that are two."""

import pytest

from alpha_trio.proto.batch import EventKind, Place
from alpha_trio.proto.handshake.exchange import STAGGER
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.peers.session import SILENCE_AFTER
from alpha_trio.proto.peers.whereabouts import HOLD_FIRST, HOLD_MAX, Whereabouts
from tests.proto.simulation import DELAY, Simulation, remote_of

SECOND, THIRD = "192.168.10.71", "192.168.10.72"


def connected(mode: str = "adaptive") -> Simulation:
    sim = Simulation(1, mode=mode)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    return sim


# -- who begins


@pytest.mark.parametrize("seed", range(20))
def test_both_begin_and_one_is_known_by_its_second_address(seed):
    """The kernel lets vm2's SYN leave from its first one, where vm1 knows nobody."""
    sim = Simulation(seed, mode="adaptive")
    sim.pair()
    sim.alias("vm2", SECOND)
    sim.locate("vm1", "vm2", SECOND)
    sim.send("vm2", "vm1")
    sim.run(1.2)
    sim.send("vm1", "vm2")
    sim.run(1.0)
    assert sim.established("vm1", "vm2")
    assert sim.session("vm1", "vm2").remote == remote_of(SECOND)
    assert sim.session("vm2", "vm1").local == SECOND.encode()


def test_a_session_is_renewed_from_the_address_the_peer_knows():
    sim = Simulation(1, mode="adaptive")
    sim.pair()
    sim.alias("vm2", SECOND)
    sim.locate("vm1", "vm2", SECOND)
    assert sim.ping("vm1", "vm2")
    first = sim.session("vm1", "vm2").current
    for _ in range(15):
        sim.run(10)
        sim.send("vm2", "vm1")
    sim.run(1)
    assert sim.session("vm1", "vm2").current is not first
    assert sim.session("vm1", "vm2").remote == remote_of(SECOND)


def test_all_addresses_are_asked_one_soon_after_the_other():
    sim = Simulation(1, mode="adaptive")
    sim.pair()
    nobody = [f"192.0.2.{number}" for number in range(1, 10)]
    sim.locate("vm1", "vm2", *nobody, sim.hosts["vm2"].address)
    sim.send("vm1", "vm2")
    sim.run(len(nobody) * STAGGER + 4 * DELAY)
    assert sim.established("vm1", "vm2")
    assert len(sim.messages(Kind.SYN)) == len(nobody) + 1


# -- the peer moves


def test_a_peer_that_moves_is_followed_when_it_has_proven_where_it_is():
    sim = connected()
    sim.renumber("vm1", THIRD)
    sim.send("vm1", "vm2")
    sim.run(4 * DELAY)
    assert sim.session("vm2", "vm1").remote == remote_of(THIRD)
    assert sim.hosts["vm2"].told(EventKind.MOVED) == 1
    assert sim.session("vm2", "vm1").local == b"local"


def test_what_waits_is_sent_to_where_the_peer_is_at_once():
    sim = connected()
    sim.renumber("vm1", THIRD)
    lost = sim.send("vm2", "vm1")
    sim.run(1.7)  # by now it is repeated once a second
    sim.send("vm1", "vm2")
    sim.run(8 * DELAY)
    assert sim.hosts["vm1"].payloads()[-1:] == lost


def test_a_nat_that_rebinds_every_two_seconds_loses_no_ping():
    sim = connected()
    for number in range(20):
        sim.renumber("vm1", f"192.0.2.{number + 1}")
        assert sim.ping("vm1", "vm2")
        sim.run(2)
    assert sim.hosts["vm1"].told(EventKind.SYN_SENT) == 1
    assert not sim.hosts["vm1"].drops()
    assert not sim.hosts["vm2"].drops()


def test_a_peer_that_moved_is_not_forgotten_with_its_session():
    sim = connected()
    sim.renumber("vm1", THIRD)
    assert sim.ping("vm1", "vm2")
    sim.session("vm2", "vm1")._abandon()
    sim.hosts["vm1"].restart()
    sim.peer("vm1", "vm2")
    sim.send("vm2", "vm1")
    sim.run(STAGGER + 1)
    assert sim.established("vm1", "vm2")
    assert sim.session("vm2", "vm1").remote == remote_of(THIRD)


def test_where_it_is_configured_to_be_comes_before_where_it_was():
    sim = connected()
    session = sim.session("vm2", "vm1")
    session.negotiation.proven = Place(remote_of(THIRD), b"local")
    assert session.negotiation.places() == [
        Place(remote_of("192.168.10.60")),
        Place(remote_of(THIRD), b"local"),
    ]


def test_an_old_place_is_forgotten_with_the_peers_settings():
    sim = connected()
    session = sim.session("vm2", "vm1")
    session.reset()
    assert session.negotiation.places() == [Place(remote_of("192.168.10.60"))]


def test_two_ways_in_turn_are_not_followed_with_each_packet():
    places = Place(remote_of(SECOND)), Place(remote_of(THIRD))
    whereabouts, at, moves, now = Whereabouts(), 0, 0, 0.0
    for _ in range(60_000):
        now += 0.001
        if whereabouts.follow(places[at], places[1 - at], now):
            at, moves = 1 - at, moves + 1
    assert 60 / HOLD_MAX <= moves <= 60 / HOLD_MAX + 6


def test_who_comes_back_is_followed_soon():
    one, other = Place(remote_of(SECOND)), Place(remote_of(THIRD))
    whereabouts = Whereabouts()
    assert whereabouts.follow(one, other, 1.0)
    assert not whereabouts.follow(other, one, 1.0 + HOLD_FIRST / 2)
    assert whereabouts.follow(other, one, 1.01 + HOLD_FIRST)


# -- we move


def test_live_sessions_hear_at_once_that_our_address_is_another():
    sim = connected()
    sim.run(5)
    session = sim.session("vm1", "vm2")
    sim.renumber("vm1", THIRD)
    sim.hosts["vm1"].table.readdress(session, sim.now, lost=True)
    assert session.local == b""
    sim.run(4 * DELAY)
    assert sim.session("vm2", "vm1").remote == remote_of(THIRD)
    assert sim.ping("vm2", "vm1")


def test_in_plain_mode_a_handshake_tells_it():
    sim = connected("plain")
    sim.renumber("vm1", THIRD)
    sim.hosts["vm1"].table.readdress(sim.session("vm1", "vm2"), sim.now, lost=True)
    sim.run(5 * DELAY)
    assert sim.session("vm2", "vm1").remote == remote_of(THIRD)
    assert sim.ping("vm2", "vm1")


def test_a_peer_with_another_address_is_asked_there_at_once():
    """As when an address family disappears: all are asked, not one after the other."""
    sim = connected()
    sim.locate("vm1", "vm2", "192.168.10.61", SECOND, THIRD)
    sim.renumber("vm2", THIRD)
    sim.hosts["vm1"].table.ask(sim.session("vm1", "vm2"), sim.now)
    sim.run(4 * DELAY)
    assert sim.session("vm1", "vm2").remote == remote_of(THIRD)


def test_who_is_silent_is_asked_where_it_is_configured_as_well():
    sim = connected()
    session = sim.session("vm1", "vm2")
    session.current.line.move(Place(remote_of(SECOND), b"local"), sim.now)
    session.negotiation.proven = session.current.line.place
    sim.run(20)
    sim.send("vm1", "vm2")
    sim.run(SILENCE_AFTER + 1)
    assert session.remote == remote_of("192.168.10.61")


# -- a peer that calls


def waiting(sim: Simulation):
    """vm2 knows vm1 by its key alone."""
    one, two = sim.host("vm1"), sim.host("vm2")
    sim.peer("vm1", "vm2")
    session = sim.peer("vm2", "vm1")
    prefixes = two.table._prefixes_of["vm1"]
    key = one.identity.public
    two.table.configure(session, (), prefixes, 0.0, key, sim.mode, waits=True)
    return session


def test_who_is_to_call_is_not_called_and_has_a_session_when_it_has():
    sim = Simulation(1, mode="adaptive")
    session = waiting(sim)
    assert not sim.ping("vm2", "vm1")
    assert not sim.sent
    assert [p.protocol for p in sim.hosts["vm2"].received] == [1]  # no such host now
    assert (str(session.state(sim.now)), "call" in session._reason(sim.now)) == (
        "idle",
        True,
    )
    assert sim.ping("vm1", "vm2")
    assert sim.ping("vm2", "vm1")
    assert session._reason(sim.now) is None


def test_who_has_called_is_asked_where_it_was():
    sim = Simulation(1, mode="adaptive")
    session = waiting(sim)
    assert sim.ping("vm1", "vm2")
    session._abandon()
    assert sim.ping("vm2", "vm1")


# -- two hosts with one key


def cloned() -> Simulation:
    sim = connected()
    twin = sim.host("twin", THIRD)
    twin.identity = sim.hosts["vm1"].identity
    twin.restart()
    sim.peer("twin", "vm2")
    return sim


def test_two_hosts_with_one_key_are_told_apart_from_one_that_moves():
    sim = cloned()
    for _ in range(15):
        sim.send("vm1", "vm2")
        sim.send("twin", "vm2")
        sim.run(1)
    assert sim.hosts["vm2"].told(EventKind.TWINS) == 1
    twins = sim.session("vm2", "vm1").statistics(sim.now).twins
    assert {remote[0] for remote in twins} == {"192.168.10.60", THIRD}


def test_they_are_told_by_their_handshakes_as_well():
    sim = cloned()
    for _ in range(2):
        for name in ("vm1", "twin"):
            sim.session(name, "vm2").reset()
            sim.send(name, "vm2")
            sim.run(30)
    assert sim.hosts["vm2"].told(EventKind.TWINS) == 1


def test_one_that_moves_is_not_two():
    sim = connected()
    for number in range(60):
        if number % 7 == 0:
            sim.renumber("vm1", f"192.0.2.{number + 1}")
        if number % 20 == 0:
            sim.session("vm1", "vm2").reset()
        sim.send("vm1", "vm2")
        sim.send("vm2", "vm1")
        sim.run(1)
    assert sim.hosts["vm2"].told(EventKind.TWINS) == 0


def test_in_time_nobody_speaks_of_two_any_more():
    sim = cloned()
    for _ in range(10):
        sim.send("vm1", "vm2")
        sim.send("twin", "vm2")
        sim.run(1)
    session = sim.session("vm2", "vm1")
    assert session.statistics(sim.now).twins is not None
    assert session.statistics(sim.now + 1000).twins is None
