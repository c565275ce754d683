"""``tools/demo --far``: what early data gains, between real hosts with a relay."""

import os
import re

import pytest

from tools import far_demo
from tools.lab import NAMESPACES

pytestmark = pytest.mark.netns


def test_the_demo_of_a_far_shell_runs_and_leaves_nothing(capsys, monkeypatch):
    """It fails by itself if early data does not do what is said of it."""
    monkeypatch.setattr(far_demo, "COMMAND", "id")
    far_demo.run()
    shown = capsys.readouterr().out
    assert shown.count("uid=0") == 4
    assert "early data       on: " in shown
    assert "early data       off-relay: " in shown
    assert re.search(r'"drops": \{\}, "early": "off"', shown)
    ours = f"at-{os.getpid()}-"
    assert [name for name in os.listdir(NAMESPACES) if ours in name] == []
