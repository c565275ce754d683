"""``tools/demo --path``: a transfer that survives, or a sentence that says why not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools import path_demo
from tools.lab import NAMESPACES, LabError

pytestmark = pytest.mark.netns


# A smaller file: there is a third of it left when all has happened.
DEMO = """
import runpy
from tools import path_demo
path_demo.SIZE = 20 << 20
runpy.run_module("tools.demo", run_name="__main__")
"""


def test_the_demo_of_paths_runs_and_leaves_nothing():
    program = (sys.executable, "-c", DEMO, "--path")
    with subprocess.Popen(program, text=True, stdout=subprocess.PIPE) as demo:
        shown, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, shown
    # What the status said: the narrow path, the new port, the other network.
    assert "(probed)" in shown
    assert "vm1 established at 192.168.11.1:40" in shown
    assert "vm1 established at 192.168.20.60:1234" in shown
    assert [name for name in os.listdir(NAMESPACES) if f"at-{demo.pid}-" in name] == []


def test_a_transfer_that_stands_still_is_told(monkeypatch):
    monkeypatch.setattr(path_demo, "PATIENCE", 2)
    monkeypatch.setattr(path_demo, "SIZE", 8 << 20)
    monkeypatch.setattr(
        path_demo,
        "_shrink",
        lambda router, _: path_demo._ip(router, "link set eth1 down"),
    )
    with pytest.raises(LabError, match=r"^The path shrinks .* nothing has arrived"):
        path_demo.run()
