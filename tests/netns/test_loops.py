"""Tunnels in each other's way: datagrams led back into the tunnel, endpoints inside it.

vm1 192.168.10.60 --- vm2 192.168.10.61 (--- vm3 192.168.10.62)
"""

from __future__ import annotations

import time

import pytest

from tests.netns.traffic import Tap, add, drops, introduce, peer, ping, send_tcp
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

LEAD_BACK = ("pref", "100", "to", "192.168.10.61", "lookup", "5182")


@pytest.mark.parametrize("mode", ["adaptive", "plain"])
def test_own_datagrams_led_into_the_tunnel_are_dropped_counted_and_told(pair, mode):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two, mode=mode)
        ping(vm1, vm2.address)
        vm1.run("ip", "rule", "add", *LEAD_BACK)
        ping(vm1, vm2.address, "-W", "0.3", check=False, count=5)
        wait_until(lambda: drops(one, "vm2").get("loop"), "a drop")
        entry = peer(one, "vm2")
        assert "into the tunnel" in entry["reason"]
        assert one.log.count("Our own datagrams are led back into the tunnel") == 1
        # What repeats them is the timers of the rounds, not the loop itself.
        before = drops(one, "vm2")["loop"]
        time.sleep(2)
        assert drops(one, "vm2")["loop"] - before < 200
        vm1.run("ip", "rule", "del", *LEAD_BACK)

        def answered():
            return ping(vm1, vm2.address, "-W", "0.3", check=False)

        wait_until(answered, "an answer")


@pytest.mark.parametrize("backend", ["rules", "marks"])
@pytest.mark.parametrize("strictness", [0, 1])
def test_an_endpoint_inside_another_peers_prefix_is_reached_outside(
    lab, backend, strictness
):
    """vm2 has all of vm3's network; vm3's own datagrams leave beside that tunnel."""
    vm1, vm2, vm3 = hosts = lab.lan(3)
    for host in hosts:
        for scope in ("all", "default", "eth0"):
            host.sysctl(f"net.ipv4.conf.{scope}.rp_filter", strictness)
    # With marks the first look-up, before the mark, needs some way.
    vm1.run("ip", "route", "add", "10.0.0.0/8", "dev", "eth0")
    vm3.run("ip", "addr", "add", "10.3.0.1/32", "dev", "lo")
    vm2.run("ip", "addr", "add", "10.2.0.1/32", "dev", "lo")
    config = f'[routing]\nbackend = "{backend}"\n'
    with (
        Daemon(vm1, config=config) as one,
        Daemon(vm2, config=config) as two,
        Daemon(vm3, config=config) as three,
    ):
        wide = ["192.168.10.0/24", "10.2.0.0/16"]
        add(one, "vm2", vm2.address, allow=wide)
        add(one, "vm3", vm3.address, allow=["10.3.0.0/16"])
        add(two, "vm1", vm1.address)
        add(three, "vm1", vm1.address)
        ping(vm1, "10.2.0.1")
        with Tap(vm2) as tap:
            ping(vm1, "10.3.0.1", count=3)
            send_tcp(vm1, vm3, "10.3.0.1", size=1 << 18)
            assert vm3.address not in [packet.destination for packet in tap.packets()]
        for name in ("vm2", "vm3"):
            assert peer(one, name)["reason"] is None
            assert "loop" not in drops(one, name)
        assert peer(one, "vm3")["tx_packets"] >= 3


def test_two_tunnels_led_through_each_other_come_to_rest(pair):
    """The datagrams of each take the other: nothing arrives, and nothing multiplies."""
    vm1, vm2 = pair
    second = ("--interface", "beta0", "--port", "4321")
    config = "[routing]\ntable = 6000\npriority = 6000\nmark = 0x6000\nprotocol = 160\n"
    other = Daemon(vm1, *second, config=config)
    folder = vm1.directory / "other"
    other.environment = {
        "ALPHA_TRIO_SOCKET": str(folder / "control.sock"),
        "ALPHA_TRIO_STATE": str(folder / "state"),
    }
    other.log_file, other.config_file = folder.with_suffix(".log"), folder / "toml"
    folder.mkdir()
    other.config_file.write_text(config)
    vm2.run("ip", "addr", "add", "192.168.10.62/24", "dev", "eth0")
    with Daemon(vm1) as one, other:
        add(one, "vm2", "192.168.10.61", allow=["192.168.10.62/32"], mode="plain")
        add(other, "vm3", "192.168.10.62:4321", allow=["192.168.10.61/32"])
        ping(vm1, "192.168.10.62", "-W", "0.2", check=False, count=20)
        ping(vm1, "192.168.10.61", "-W", "0.2", check=False, count=20)
        with Tap(vm1, "alpha0") as tap:
            time.sleep(3)
            assert len(tap.packets()) < 100
        for daemon, name in ((one, "vm2"), (other, "vm3")):
            assert peer(daemon, name)["state"] == "handshaking"
            assert peer(daemon, name)["queued"] <= 128
