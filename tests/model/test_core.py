"""The daemon's own core in small worlds, of which all courses are looked at."""

import pytest

from alpha_trio.proto.handshake import exchange
from tests.model.core import LIFETIME, Core
from tests.model.explore import explore


@pytest.fixture(autouse=True)
def short_chains(monkeypatch):
    """Seven rounds are enough here, and chains are most of what a course costs."""
    monkeypatch.setattr(exchange, "FIRST_SPACING", 4)


@pytest.mark.parametrize(
    "world",
    [
        Core(),
        Core(packets=1, losses=1, waits=1),
        Core(packets=1, alterations=1),
        Core(packets=1, copies=1, detours=2),
        Core(early=True),
        Core(early=True, packets=1, copies=1, alterations=1),
        Core(early=True, packets=1, copies=1, detours=2),
        Core(early=True, losses=1, waits=1, pause=LIFETIME),
    ],
    ids=[
        "two-rounds",
        "lost-and-repeated",
        "altered",
        "around",
        "early",
        "early-altered",
        "early-around",
        "early-given-up",
    ],
)
def test_whatever_becomes_of_datagrams(world):
    result = explore(world)
    assert result.broken == {}
    assert result.states > 50  # it did look
