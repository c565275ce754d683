"""Beginnings on links that lose much: how soon packets pass both ways.

Times here are virtual, so they say what the protocol does and nothing of a machine.
"""

from random import Random

import pytest

from alpha_trio.proto.handshake.exchange import RETRY_FIRST
from alpha_trio.proto.handshake.negotiation import ACKACK_AFTER
from alpha_trio.proto.messages import Kind
from tests.proto.ends import head
from tests.proto.simulation import DELAY, Hostile, Link, LosesOne, Simulation

VM2 = ("192.168.10.61", 1234)
STEP = 0.05  # s from one packet to the next


class LosesEvery(Link):
    """Loses every n-th datagram of both directions together, as if after ``phase``."""

    def __init__(self, n: int, phase: int) -> None:
        self.n, self.seen = n, phase

    def carry(self, datagram):
        self.seen += 1
        return super().carry(datagram) if self.seen % self.n else ()


def seconds_to_begin(sim: Simulation) -> float:
    """How long two hosts that both have something to say take to hear each other."""
    one, two = sim.pair()
    while not (one.received and two.received):
        assert sim.now < 60, "they never hear each other"
        sim.send("vm1", "vm2")
        sim.send("vm2", "vm1")
        sim.run(STEP)
    return sim.now


@pytest.mark.parametrize(
    ("loss", "median", "worst"), [(0.0, 0.1, 0.1), (0.1, 0.5, 2), (0.3, 2, 10)]
)
@pytest.mark.parametrize("reliable", [False, True])
def test_packets_pass_soon_on_a_link_that_loses_at_random(
    loss, median, worst, reliable
):
    """Each of a dozen messages can be lost; none is waited for very long."""
    times = sorted(
        seconds_to_begin(
            Simulation(seed, Hostile(Random(seed), loss), "adaptive", reliable)
        )
        for seed in range(20)
    )
    assert times[len(times) // 2] <= median
    assert times[-1] <= worst


@pytest.mark.parametrize(
    ("n", "phase"), [(n, phase) for n in (3, 4, 5) for phase in range(n)]
)
def test_packets_pass_soon_on_a_link_that_loses_in_step(n, phase):
    """Repetitions in step with the link would lose the same message every time."""
    sim = Simulation(phase, LosesEvery(n, phase), "adaptive", reliable=True)
    assert seconds_to_begin(sim) <= 6


def test_forged_syns_make_us_repeat_ours_no_more_than_twice_a_second():
    """They all lose the tie, and so say that the peer waits for our SYN."""
    sim = Simulation()
    vm2 = sim.pair()[1]
    sim.block("vm1", "vm2")
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    for number in range(1000):
        sim.inject("vm1", VM2, vm2.syn(number.to_bytes(16)).pack())
        sim.run(0.01)
    assert 10 < len(sim.messages(Kind.SYN, "vm1")) <= 1 + 10 / RETRY_FIRST


def test_what_the_peer_could_not_understand_goes_again_with_the_ackack():
    """The S1 after a lost ACKACK finds no session; its own repetition would be late."""
    sim = Simulation(link=LosesOne(2), mode="adaptive")
    vm2 = sim.pair()[1]
    payloads = sim.send("vm1", "vm2")
    sim.run(2 * DELAY + ACKACK_AFTER + 4 * DELAY)  # ACKACK and S1, A1, S2, and one over
    assert vm2.payloads() == payloads


class Slow(Link):
    def carry(self, datagram):
        yield 0.1, datagram


def test_both_ends_know_the_round_trip_time_from_the_handshake():
    """Or the first S1 of the answering one would be repeated at a guess."""
    sim = Simulation(link=Slow(), mode="adaptive")
    sim.pair()
    sim.send("vm1", "vm2")
    sim.run(0.301)  # SYN, ACK, ACKACK
    sender = sim.session("vm2", "vm1").current.sender
    assert sender.rtt.smoothed == pytest.approx(0.2)
    sim.send("vm2", "vm1")
    sim.run(1)
    (first, *others) = (head(sent.data) for sent in sim.messages(Kind.S1, "vm2"))
    assert first not in others
