"""A host that was suspended asks those it had sessions with, at once."""

import pytest

from alpha_trio.proto.batch import EventKind
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.peers import State
from tests.proto.simulation import DELAY, Simulation

ROUND_TRIP = 2 * DELAY


def wake(sim, name, seconds):
    """The host sleeps for so long, and learns of it before all else."""
    sim.now += seconds
    host = sim.hosts[name]
    host.table.woke(sim.now)
    return sim.now


@pytest.mark.parametrize("mode", ["adaptive", "plain"])
@pytest.mark.parametrize("seconds", [30.0, 170.0, 3600.0])
def test_a_peer_that_had_a_session_is_asked_at_once(mode, seconds):
    sim = Simulation(mode=mode)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.run(1)
    before = sim.session("vm1", "vm2").current
    woken = wake(sim, "vm1", seconds)
    sim.run(3 * ROUND_TRIP)
    asked = [syn for syn in sim.messages(Kind.SYN, "vm1") if syn.time >= woken]
    assert asked[0].time == woken
    assert sim.session("vm1", "vm2").current is not before
    assert sim.established("vm1", "vm2")
    assert sim.ping("vm1", "vm2")


def test_who_had_no_session_is_left_alone():
    sim = Simulation()
    sim.pair()
    wake(sim, "vm1", 3600.0)
    sim.run(10)
    assert not sim.sent


def test_a_handshake_that_was_under_way_begins_anew():
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run(10)
    sim.unblock()
    wake(sim, "vm1", 3600.0)
    sim.run(2 * ROUND_TRIP)
    assert not vm1.told(EventKind.GAVE_UP)
    assert sim.established("vm1", "vm2")
    assert len(sim.hosts["vm2"].received) == 1


def test_nobody_is_called_silent_for_what_was_not_said_in_sleep():
    sim = Simulation(mode="adaptive")
    vm1, _ = sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run(1)
    sim.unblock()
    wake(sim, "vm1", 3600.0)
    sim.run(1)
    assert not vm1.told(EventKind.SILENT)
    assert sim.session("vm1", "vm2").state(sim.now) is State.ESTABLISHED


def test_a_peer_that_does_not_answer_after_it_is_given_up_as_any_other():
    sim = Simulation()
    vm1, _ = sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.block("vm1", "vm2")
    wake(sim, "vm1", 3600.0)
    sim.run(91)
    assert vm1.told(EventKind.GAVE_UP) == 1
    sim.unblock()
    assert sim.ping("vm1", "vm2")
