"""Other tunnels carry packets as the benchmark sets them up, where installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attrs import evolve

from tools.contenders import AlphaTrio
from tools.daemons import PROGRAM
from tools.lab import LabError
from tools.others import OTHERS, OtherTunnel

from .test_delay import pids_on

pytestmark = [pytest.mark.netns, pytest.mark.cold]


@pytest.mark.parametrize("tunnel", OTHERS.values(), ids=list(OTHERS))
def test_tunnel_carries_packets_by_udp_and_leaves_nothing(tunnel, pair):
    if tunnel.missing:
        pytest.skip(f"not installed: {', '.join(tunnel.missing)}")
    vm1, vm2 = pair
    before = vm1.snapshot(), vm2.snapshot()
    with tunnel.session(vm1, vm2) as session:
        large = ("ping", "-c", "1", "-s", "1200", session.address)
        vm1.run(*large, "-W", "2")
        vm2.lose(1, "iif eth0 meta l4proto udp")
        assert vm1.run(*large, "-W", "0.2", check=False).returncode == 1
        vm2.lose(0)
        assert session.figures["rss_idle_mb"] > 0
        assert session.figures["run_to_reply_s"] > 0
    assert (vm1.snapshot(), vm2.snapshot()) == before
    assert [pids_on(host) for host in pair] == [[], []]


def test_a_tunnel_that_does_not_start_is_quoted(pair):
    command = ("sh", "-c", "echo no licence; exit 1")
    tunnel = OtherTunnel("other", "other", ("sh",), lambda *_: [command, command])
    with (
        pytest.raises(LabError, match=r"vm2: other ended: no licence"),
        tunnel.session(*pair),
    ):
        pass


@pytest.mark.parametrize("tunnel", OTHERS.values(), ids=list(OTHERS))
def test_a_tunnel_of_a_binary_at_a_path(tunnel, pair, tmp_path):
    if tunnel.missing:
        pytest.skip(f"not installed: {', '.join(tunnel.missing)}")
    binary = tmp_path / "binary"
    binary.symlink_to(shutil.which(tunnel.programs[0]))
    vm1, vm2 = pair
    with tunnel.at(str(binary)).session(vm1, vm2) as session:
        for pid in session.pids:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            assert command[0] == bytes(binary)
        vm1.run("ping", "-c", "1", "-W", "2", session.address)


@pytest.mark.parametrize("mode", [None, "plain"])
def test_ours_times_its_start_and_starts_anew_each_time(pair, mode):
    vm1, vm2 = pair
    names = {"run_to_reply_s", "start_s", "add_ms", "first_reply_ms", "add_to_reply_ms"}
    contender = AlphaTrio(mode=mode)
    keys = set()
    for _ in range(2):
        with contender.session(vm1, vm2) as session:
            assert {name for name in names if session.figures[name] > 0} == names
            assert session.figures["add_to_reply_ms"] == pytest.approx(
                session.figures["add_ms"] + session.figures["first_reply_ms"]
            )
            keys.add((vm1.directory / "state" / "host.key").read_bytes())
    assert len(keys) == 2
    untimed = evolve(contender, is_start_timed=False)
    with untimed.session(vm1, vm2) as session:
        assert "run_to_reply_s" not in session.figures


def test_ours_of_another_environment_uses_its_own_code(pair, tmp_path, monkeypatch):
    vm1, vm2 = pair
    seen = tmp_path / "seen"
    other = tmp_path / "alpha-trio"
    other.write_text(f'#!/bin/sh\necho "$PYTHONPATH" >>{seen}\nexec {PROGRAM} "$@"\n')
    other.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    contender = AlphaTrio(program=other, is_start_timed=False)
    with contender.session(vm1, vm2) as session:
        vm1.run("ping", "-c", "1", "-W", "2", session.address)
    assert seen.read_text() == "\n\n"
