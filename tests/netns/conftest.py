"""Fixtures that build hosts as network namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.lab import Host, Lab


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
