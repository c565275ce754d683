"""A node in memory, and the commands turned to it."""

import pytest

from tests.cli.test_cli import Served


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", str(tmp_path / "control.sock"))
    with Served(tmp_path / "control.sock") as served:
        yield served


@pytest.fixture
def node(served):
    return served.node
