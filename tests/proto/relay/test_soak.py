"""What relays cost genuine traffic: minutes on the same bad link, with and without."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from attrs import define, field

from alpha_trio.proto.peers.session import REKEY_AFTER
from tests.proto.routed import Routed
from tests.proto.simulation import Hostile, Simulation

HOSTS = "vm1", "vm2"
SECONDS = REKEY_AFTER + 40


@define
class Fated(Hostile):
    """Does to a datagram what its bytes, and how often it came, decide.

    So what a relay drops changes nothing for the others, and two runs can be compared.
    """

    seed: int = 0
    times: Counter[bytes] = field(factory=Counter)

    def carry(self, datagram):
        self.times[datagram] += 1
        self.random = Random(f"{self.seed} {self.times[datagram]} {datagram.hex()}")
        return super().carry(datagram)


def delivered(simulation, seed: int, restarts: bool, **link) -> tuple[float, float]:
    """The share of packets that arrived, and the longest time (s) none did."""
    sim = simulation(seed, Fated(Random(seed), seed=seed, **link), "c")
    sim.pair()
    random, sent = Random(seed), {}
    while sim.now < SECONDS:
        for one, other in (HOSTS, HOSTS[::-1]):
            if random.random() < 0.7:
                payloads = sim.send(one, other, random.choice((1, 1, 3)))
                sent |= dict.fromkeys(payloads, sim.now)
        if restarts and random.random() < 0.02:
            sim.restart(random.choice(HOSTS))
        sim.run(random.choice((0.02, 0.2, 0.5, 1)))
    sim.run(5)
    received = {payload for host in HOSTS for payload in sim.hosts[host].payloads()}
    times = [0.0, *(when for payload, when in sent.items() if payload in received)]
    gaps = [after - before for before, after in pairwise(times)]
    return len(received & set(sent)) / len(sent), max(gaps)


LOSSY = {"loss": 0.3}
MIXING = {"loss": 0.1, "duplicate": 0.1, "late": 0.1, "delay": 0.05}
HOSTILE = {"loss": 0.02, "late": 0.2, "delay": 0.3, "replay": 0.1, "flip": 0.02}


# A renewal on a bad link, and a start anew on one: once each on the links that only
# lose or mix, both where all of it happens.
@pytest.mark.parametrize(
    ("link", "restarts"),
    [(LOSSY, True), (MIXING, False), (HOSTILE, False), (HOSTILE, True)],
)
def test_as_much_arrives_through_relays_as_without(link, restarts):
    plain, gap = delivered(Simulation, 1, restarts, **link)
    relayed, longest = delivered(Routed, 1, restarts, **link)
    assert plain > 0.5
    assert relayed > plain - 0.05
    assert longest < gap + 5
