"""The relay between two hosts: all that is genuine passes, and what else may not."""

from random import Random

import pytest

from alpha_trio.proto.messages import Kind
from alpha_trio.proto.relay import RelayPolicy, Unseen
from alpha_trio.proto.relay.verdict import RelayDrop
from tests.proto.routed import Parted, Routed, assert_sound
from tests.proto.simulation import Hostile

MODES = ("n", "c", "m", "cm", "adaptive")


def routed(mode: str = "adaptive", **settings) -> Routed:
    sim = Routed(mode=mode, **settings)
    sim.pair()
    return sim


def carry(sim: Routed, bursts: int = 20, size: int = 30) -> list[bytes]:
    """Bursts of packets from vm1 to vm2, and the time they need."""
    sent = []
    for _ in range(bursts):
        sent += sim.send("vm1", "vm2", size)
        sim.run(0.2)
    sim.run(5)
    return sent


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lenient", [False, True])
def test_all_that_is_genuine_passes(mode, lenient):
    sim = routed(mode, policy=RelayPolicy(Unseen.DROP, require_a1=not lenient))
    sent = carry(sim)
    assert sim.hosts["vm2"].payloads() == sent
    assert sim.ping("vm2", "vm1")
    assert sim.drops() == {}
    for watched in sim.relays:
        assert watched.relay.counters.unverified_packets == 0
        assert watched.relay.counters.forwarded_packets == len(sim.sent)
        assert watched.relay.counters.forwarded_bytes == sum(
            len(sent.data) for sent in sim.sent
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_relays_lose_nothing_that_a_bad_link_does_not(mode, seed):
    """Loss, repetition and reordering between the two relays: both hosts go on."""
    link = Hostile(Random(seed), loss=0.1, duplicate=0.1, late=0.1, delay=0.05)
    sim = routed(mode, seed=seed, link=link)
    sent = carry(sim, 60, 5)
    received = sim.hosts["vm2"].payloads()
    assert len(received) == len(set(received))
    assert set(received) <= set(sent)
    assert len(received) > 0.75 * len(sent)  # a tenth of the S2s is lost, and rounds
    # What a host sends for the first time is never lost at the relay next to it.
    assert set(sim.refused) <= {sent.data for sent in sim.sent}
    reasons = {RelayDrop.REPLAYED, RelayDrop.BAD_ROUND, RelayDrop.UNSOLICITED}
    assert set(sim.drops()) <= reasons | {RelayDrop.UNSEEN}


def test_a_session_is_known_by_both_ends_keys_and_addresses():
    sim = routed()
    sim.ping("vm1", "vm2")
    (session,) = sim.relays[0].relay.sessions(sim.now)
    one, two = sim.hosts["vm1"], sim.hosts["vm2"]
    assert session.verified
    assert (session.initiator.key, session.responder.key) == (
        one.identity.public,
        two.identity.public,
    )
    assert session.initiator.address == (one.address, 1234)
    assert session.responder.address == (two.address, 1234)
    assert session.initiator.forwarded > 0 < session.responder.forwarded


def test_two_hours_of_traffic_pass_with_every_renewal():
    """Sessions follow one another, and associations within them."""
    sim = routed()
    for _ in range(60):
        assert sim.ping("vm1", "vm2")
        sim.run(120)
        sim.send("vm1", "vm2", 40)
        sim.run(1)
    assert set(sim.drops()) <= {RelayDrop.UNSEEN}  # of sessions the ends gave up
    assert len(sim.relays[0].relay.sessions(sim.now)) <= 2


def test_associations_are_followed():
    sim = routed("n")
    sent = carry(sim, 100, 30)
    assert sim.hosts["vm2"].payloads() == sent
    opened = len(sim.session("vm1", "vm2").current.sender.associations)
    assert opened > 1
    for watched in sim.relays:
        (session,) = watched.relay.sessions(sim.now)
        assert session.responder.associations >= opened
        assert_sound(watched.relay)
    assert set(sim.drops()) <= {RelayDrop.REPLAYED}  # late repetitions


@pytest.mark.parametrize("seed", range(3))
def test_reliable_rounds_lose_nothing_between_relays(seed):
    """Their S2s are repeated, and so are the A2s: what was lost behind a relay, too."""
    link = Hostile(Random(seed), loss=0.3, duplicate=0.1, late=0.1, delay=0.05)
    sim = routed(seed=seed, link=link, reliable=True)
    sent = carry(sim, 20, 5)
    sim.run(60)
    assert sorted(sim.hosts["vm2"].payloads()) == sorted(sent)


@pytest.mark.parametrize("mode", MODES)
def test_lenient_relays_pass_what_goes_one_way_only(mode):
    sim = Parted(mode=mode, policy=RelayPolicy(Unseen.DROP, require_a1=False))
    sim.pair()
    sent = carry(sim, 5)
    sim.session("vm1", "vm2").current._want_more()  # as when all of them are busy
    sent += carry(sim, 60)
    assert sim.hosts["vm2"].payloads() == sent
    assert len(sim.session("vm1", "vm2").current.sender.associations) > 1
    sim.run(130)
    assert sim.ping("vm2", "vm1")
    assert set(sim.drops()) <= {RelayDrop.REPLAYED}
    for watched in sim.relays:
        assert not any(s.verified for s in watched.relay.sessions(sim.now))


@pytest.mark.parametrize("roots", [1, 4, 9])
def test_hosts_keep_to_the_limit_that_relays_announce(roots):
    sim = routed(policy=RelayPolicy(Unseen.DROP, roots=roots))
    sent = carry(sim, 10, 100)
    assert sim.hosts["vm2"].payloads() == sent
    assert set(sim.drops()) <= {RelayDrop.REPLAYED}
    s1s = [s.data for s in sim.messages(Kind.S1)]
    assert max(int.from_bytes(s1[34:36]) for s1 in s1s) == max(roots, 4)
