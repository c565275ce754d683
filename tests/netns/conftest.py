"""Fixtures that build hosts as network namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.daemons import Daemon
from tools.lab import Host, Lab
from tools.warm import Warm


@pytest.fixture(autouse=True, scope="session")
def warm(own_ground: None) -> Iterator[None]:
    """Daemons need not import for each test what they imported for the one before."""
    Daemon.warm = Warm.start()
    yield
    Daemon.warm.close()


@pytest.fixture(autouse=True)
def cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where the test is about the start itself, or about memory."""
    if request.node.get_closest_marker("cold") is not None:
        monkeypatch.setattr(Daemon, "warm", None)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    # Strict filters are harder on routing, and cost each daemon 32 rules.
    with Lab(strict=request.node.get_closest_marker("strict") is not None) as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """vm1 192.168.10.60 and vm2 192.168.10.61, one link between them."""
    vm1, vm2 = lab.lan(2)
    return vm1, vm2
