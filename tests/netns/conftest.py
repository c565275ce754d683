"""Fixtures that build hosts as network namespaces; skipped without root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.lab import Host, Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0 and Path("/dev/net/tun").exists():
        return
    skip = pytest.mark.skip(reason="needs root and /dev/net/tun")
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(skip)


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
