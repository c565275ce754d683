"""Our own datagrams, handed in by the TUN: they must not go on for ever."""

from ipaddress import ip_network

import pytest

from alpha_trio.proto.batch import Drop, EventKind, Place
from tests.proto.inner import Packet
from tests.proto.simulation import PORT, Simulation

ELSEWHERE = "203.0.113.5"


def everything_to(sim, name="vm2"):
    """vm1 sends all there is to this peer, a default route."""
    session = sim.session("vm1", name)
    table = sim.hosts["vm1"].table
    prefixes = [ip_network("0.0.0.0/0")]
    table.configure(session, session.negotiation.remotes, prefixes, mode=sim.mode)
    return session


@pytest.mark.parametrize("mode", ["adaptive", "plain"])
def test_a_datagram_to_where_a_peer_was_found_is_one_of_ours_too(mode):
    sim = Simulation(mode=mode)
    vm1, _ = sim.pair()
    session = everything_to(sim)
    assert sim.ping("vm1", "vm2")
    session.current.line.move(
        Place((ELSEWHERE, 40000)), sim.now
    )  # as if it had roamed there
    sim.run(2)
    outer = Packet(vm1.address, ELSEWHERE, payload=b"x" * 60, ports=(PORT, 40000))
    for _ in range(3):
        sim.emit("vm1", outer.frame())
    assert session.counters.drops == {Drop.LOOP: 3}
    assert vm1.told(EventKind.LOOP) == 1
    assert "back into the tunnel" in session.statistics(sim.now).reason
    sim.run(60)
    assert "back into the tunnel" not in (session.statistics(sim.now).reason or "")


def test_a_tunnel_of_somebody_behind_us_is_no_loop():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    session = everything_to(sim)
    assert sim.ping("vm1", "vm2")
    for source, target, ports in (
        ("10.1.0.7", "198.51.100.7", (PORT, PORT)),  # another host's, to another host
        (vm1.address, vm2.address, (4000, PORT)),  # another port of ours
    ):
        sim.emit("vm1", Packet(source, target, payload=b"x", ports=ports).frame())
    assert Drop.LOOP not in session.counters.drops
