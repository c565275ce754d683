"""What relays cost genuine traffic: minutes on the same bad link, with and without."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from attrs import define, field

from alpha_trio.proto.peers.session import REKEY_AFTER
from alpha_trio.proto.relay import RelayEarly, RelayPolicy, Unseen
from tests.proto.routed import Routed
from tests.proto.simulation import Hostile, Simulation

HOSTS = "vm1", "vm2"
SECONDS = REKEY_AFTER + 40
OFF = RelayPolicy(Unseen.DROP, early=RelayEarly.OFF)


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


def delivered(
    simulation, seed: int, restarts: bool, how: dict, **link
) -> tuple[float, float]:
    """The share of packets that arrived, and the longest time (s) none did.

    None arrives twice.
    """
    sim = simulation(seed, Fated(Random(seed), seed=seed, **link), **how)
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
    arrived = [payload for host in HOSTS for payload in sim.hosts[host].payloads()]
    received = set(arrived)
    assert len(arrived) == len(received)
    times = [0.0, *(when for payload, when in sent.items() if payload in received)]
    gaps = [after - before for before, after in pairwise(times)]
    return len(received & set(sent)) / len(sent), max(gaps)


LOSSY = {"loss": 0.3}
MIXING = {"loss": 0.1, "duplicate": 0.1, "late": 0.1, "delay": 0.05}
HOSTILE = {"loss": 0.02, "late": 0.2, "delay": 0.3, "replay": 0.1, "flip": 0.02}
ROUNDS, EARLY = {"mode": "c"}, {"mode": "adaptive"}
NOT_EARLY = {"mode": "adaptive", "early": False}


# A renewal on a bad link, and a start anew on one: once each on the links that only
# lose or mix, both where all of it happens.
@pytest.mark.parametrize(
    ("link", "restarts"),
    [(LOSSY, True), (MIXING, False), (HOSTILE, False), (HOSTILE, True)],
)
@pytest.mark.parametrize("how", [ROUNDS, EARLY, NOT_EARLY])
def test_as_much_arrives_through_relays_as_without(link, restarts, how):
    plain, gap = delivered(Simulation, 1, restarts, how, **link)
    relayed, longest = delivered(Routed, 1, restarts, how, **link)
    assert plain > 0.5
    assert relayed > plain - 0.05
    assert longest < gap + 5


@pytest.mark.parametrize("link", [LOSSY, MIXING, HOSTILE])
def test_relays_that_want_no_early_data_cost_nothing_but_its_haste(link):
    plain, gap = delivered(Simulation, 2, False, NOT_EARLY, **link)
    how = {"mode": "adaptive", "policy": OFF}
    relayed, longest = delivered(Routed, 2, False, how, **link)
    assert relayed > plain - 0.05
    assert longest < gap + 5
