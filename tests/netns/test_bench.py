"""The benchmark as a whole, of few and short measurements."""

from __future__ import annotations

import json

import pytest

from tools import bench

pytestmark = pytest.mark.netns


def test_links_and_figures_that_were_asked_for(tmp_path, capsys):
    file = tmp_path / "result.json"
    line = f"--profile lan,metro --only ssh,start --seconds 1 --repeat 1 --json {file}"
    assert bench.main(line.split()) == 0
    lan, metro = json.loads(file.read_text())["links"]
    for link, least in ((lan, 0), (metro, 5)):
        for contender in ("plain link", "alpha-trio"):
            assert link["medians"][contender]["ssh_loaded_p50_ms"] > least
            assert "tcp_1_gbits" not in link["medians"][contender]
        assert link["medians"]["alpha-trio"]["run_to_reply_s"] > 0
        words = link["verdicts"]["alpha-trio : plain link"]
        assert words["ssh_idle_p50_ms"]["word"] in ("ahead", "level", "behind")
    assert "SSH, loaded, p50" in capsys.readouterr().out
