"""The benchmark as a whole, of few and short measurements."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools import bench
from tools.lab import NAMESPACES

pytestmark = [pytest.mark.netns, pytest.mark.cold]

ONE_WAY_MS = 5  # of profile metro


def test_links_and_figures_that_were_asked_for(tmp_path, capsys):
    file = tmp_path / "result.json"
    line = f"--profile metro --only ssh,start --seconds 1 --repeat 1 --json {file}"
    assert bench.main(line.split()) == 0
    (metro,) = json.loads(file.read_text())["links"]
    for contender in ("plain link", "alpha-trio"):
        assert metro["medians"][contender]["ssh_loaded_p50_ms"] > ONE_WAY_MS
        assert "tcp_1_gbits" not in metro["medians"][contender]
    assert metro["medians"]["alpha-trio"]["run_to_reply_s"] > 0
    words = metro["verdicts"]["alpha-trio : plain link"]
    assert words["ssh_idle_p50_ms"]["word"] in ("ahead", "level", "behind")
    assert "SSH, loaded, p50" in capsys.readouterr().out


def test_hosts_have_the_congestion_control_that_was_asked_for(tmp_path):
    file = tmp_path / "result.json"
    line = f"--only ping --seconds 1 --repeat 1 --congestion reno --json {file}"
    seen = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.main, line.split())
        while not running.done():
            seen += controls_in_use()
            time.sleep(0.1)
    assert running.result() == 0
    assert set(seen) == {"reno"}
    assert json.loads(file.read_text())["settings"]["congestion"] == "reno"


def controls_in_use() -> list[str]:
    """Of the TCP streams on vm1 of a lab of this process."""
    labs = NAMESPACES.glob(f"at-{os.getpid()}-*-vm1")
    command = ("ss", "-Htin", "state", "established", "dport", ":5201")
    texts = [
        subprocess.run(
            ("ip", "netns", "exec", lab.name, *command), capture_output=True, text=True
        ).stdout
        for lab in labs
    ]
    return re.findall(r"\b(reno|cubic|bbr)\b", "".join(texts))
