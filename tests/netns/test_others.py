"""Other tunnels carry packets as the benchmark sets them up, where installed."""

from __future__ import annotations

import pytest

from tools.lab import LabError
from tools.others import OTHERS, OtherTunnel

from .test_delay import pids_on

pytestmark = pytest.mark.netns


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
    assert (vm1.snapshot(), vm2.snapshot()) == before
    assert [pids_on(host) for host in pair] == [[], []]


def test_a_tunnel_that_does_not_start_is_quoted(pair):
    command = ("sh", "-c", "echo no licence; exit 1")
    tunnel = OtherTunnel("other", "other", (), lambda _: [command, command])
    with (
        pytest.raises(LabError, match=r"vm2: other ended: no licence"),
        tunnel.session(*pair),
    ):
        pass
