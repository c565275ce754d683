"""tools/costs --relay: each kind is refused for what it is meant to show."""

import pytest

from alpha_trio.proto.relay.verdict import RelayDrop
from tools.relay_costs import Scene, kinds_of

REASONS = {
    "noise": RelayDrop.MALFORMED,
    "SYN of a stranger": RelayDrop.RATE,
    "COOKIE nobody waits for": RelayDrop.UNSEEN,
    "ACK by the link of its SYN": RelayDrop.WRONG_SIDE,
    "ACK with a wrong signature": RelayDrop.RATE,
    "ACKACK with a wrong signature": RelayDrop.BAD_SIGNATURE,
    "S1 with a made-up element": RelayDrop.BAD_ROUND,
    "S1 far ahead": RelayDrop.S1_RATE,
    "S1 with other roots": RelayDrop.REPLAYED,
    "S1 with another tag": RelayDrop.REPLAYED,
    "A1 with a made-up element": RelayDrop.BAD_ROUND,
    "A1 by the link of its S1": RelayDrop.WRONG_SIDE,
    "S2 nobody agreed to": RelayDrop.UNSOLICITED,
    "S2 of a round that is over": RelayDrop.UNSOLICITED,
    "REPORT nobody asked for": RelayDrop.BAD_REPORT,
}
SENT = 1_000


def test_every_kind_has_its_reason():
    assert set(kinds_of(Scene.make())) == set(REASONS)


@pytest.mark.parametrize("name", REASONS)
def test_most_of_it_is_refused_for_that(name):
    scene = Scene.make()
    number, row = kinds_of(scene)[name]
    assert scene.relay.counters.drops == {}
    passed = sum(scene.send(next(row), number) for _ in range(SENT))
    drops = scene.relay.counters.drops
    assert passed + sum(drops.values()) == SENT
    assert max(drops, key=drops.get) is REASONS[name]
