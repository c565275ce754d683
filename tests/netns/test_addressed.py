"""An interface that others can address: masquerade, DNAT, ICMP errors of a gateway.

mgmt --- eth0 vm1 eth1 --- eth0 vm2     and a container behind vm1
"""

from __future__ import annotations

import pytest

from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns


def ip(host, arguments):
    return host.run("ip", *arguments.split()).stdout


def nft(host, rules):
    host.run("nft", "-f", "-", stdin=rules)


def answered(host, destination, *options):
    command = ("ping", "-c", "2", "-i", "0.2", "-W", "2", *options, destination)
    return host.run(*command, check=False).returncode == 0


def drops(daemon):
    (peer,) = daemon.status()["peers"]
    return peer["drops"]


@pytest.fixture
def site(lab):
    """vm1 with a card that is not the peer's, vm2, and a container behind vm1."""
    vm1, mgmt, vm2 = lab.host("vm1"), lab.host("mgmt"), lab.host("vm2")
    container = lab.host("container")
    for other, port, net in ((mgmt, "eth0", 99), (vm2, "eth1", 10)):
        lab.connect(vm1, other)
        for host, number in ((vm1, 60), (other, 61)):
            dev = port if host is vm1 else "eth0"
            ip(host, f"addr add 192.168.{net}.{number}/24 dev {dev}")
            ip(host, f"addr add fd00:{net}::{number}/64 dev {dev} nodad")
    lab.connect(vm1, container)
    ip(vm1, "addr add 172.17.0.1/16 dev eth2")
    ip(vm1, "addr add fd17::1/64 dev eth2 nodad")
    ip(container, "addr add 172.17.0.2/16 dev eth0")
    ip(container, "addr add fd17::2/64 dev eth0 nodad")
    ip(container, "route add default via 172.17.0.1")
    ip(container, "-6 route add default via fd17::1")
    vm1.sysctl("net.ipv4.ip_forward", 1)
    vm1.sysctl("net.ipv6.conf.all.forwarding", 1)
    return vm1, vm2, container


MASQUERADE = """table inet nat {
  chain post {
    type nat hook postrouting priority srcnat;
    iifname "eth2" oifname != "eth2" masquerade
  }
  chain pre {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.1 tcp dport 80 dnat ip to 192.168.10.61:8080
    ip daddr 10.96.0.1 meta l4proto icmp dnat ip to 192.168.10.61
  }
}"""


@pytest.mark.parametrize("version", [4, 6])
def test_container_behind_masquerade_reaches_the_peer(site, version):
    vm1, vm2, container = site
    nft(vm1, MASQUERADE)
    here, there = {
        4: ("192.168.10.60", "192.168.10.61"),
        6: ("fd00:10::60", "fd00:10::61"),
    }[version]
    before = vm1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", there)
        two.cli("peers", "add", "vm1", here)
        assert answered(container, there)
        assert drops(two) == {}
        if version == 4:  # a service, as Docker and Kubernetes have it
            assert answered(container, "10.96.0.1")
        assert here in ip(vm1, "addr show dev alpha0")
        one.cli("peers", "remove", "vm2")
        assert here not in ip(vm1, "addr show dev alpha0")
    assert vm1.snapshot() == before


def test_each_peer_is_addressed_by_the_address_it_knows(lab):
    vm1, vm2, vm3 = lab.host("vm1"), lab.host("vm2"), lab.host("vm3")
    container = lab.host("container")
    for number, other in enumerate((vm2, vm3)):
        lab.connect(vm1, other)
        ip(vm1, f"addr add 10.{number}.0.1/24 dev eth{number}")
        ip(other, f"addr add 10.{number}.0.2/24 dev eth0")
    lab.connect(vm1, container)
    ip(vm1, "addr add 172.17.0.1/16 dev eth2")
    ip(container, "addr add 172.17.0.2/16 dev eth0")
    ip(container, "route add default via 172.17.0.1")
    vm1.sysctl("net.ipv4.ip_forward", 1)
    nft(vm1, MASQUERADE)
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(vm3) as three:
        for number, (name, daemon) in enumerate((("vm2", two), ("vm3", three))):
            one.cli("peers", "add", name, f"10.{number}.0.2")
            daemon.cli("peers", "add", "vm1", f"10.{number}.0.1")
        for number, daemon in enumerate((two, three)):
            assert answered(container, f"10.{number}.0.2")
            assert drops(daemon) == {}


def test_address_that_its_card_loses_goes_from_our_interface_too(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        one.cli("peers", "add", "vm2", vm2.address)
        assert "192.168.10.60" in ip(vm1, "addr show dev alpha0")
        ip(vm1, "addr add 192.168.10.70/24 dev eth0")
        ip(vm1, "addr del 192.168.10.60/24 dev eth0")
        ip(vm1, "addr replace 192.168.10.70/24 dev eth0")
        wait_until(
            lambda: "192.168.10.60" not in ip(vm1, "addr"), "the old address to go"
        )
        wait_until(
            lambda: "192.168.10.70" in ip(vm1, "addr show dev alpha0"),
            "the new address",
        )


def test_our_own_address_in_the_overlay_needs_no_other(pair):
    vm1, vm2 = pair
    with Daemon(vm1, "--address", "10.9.0.1/24") as one:
        one.cli("peers", "add", "vm2", vm2.address, "--allow", "10.9.0.2")
        assert "192.168.10.60" not in ip(vm1, "addr show dev alpha0")


def test_gateway_is_seen_on_the_way_through_it(lab):
    """traceroute: the errors come from the gateway's own address."""
    vm1, vm2, inside = lab.host("vm1"), lab.host("vm2"), lab.host("inside")
    lab.connect(vm1, vm2)
    lab.connect(vm2, inside)
    for host, dev, address in (
        (vm1, "eth0", "192.168.10.60/24"),
        (vm2, "eth0", "192.168.10.61/24"),
        (vm2, "eth1", "10.20.0.1/24"),
        (inside, "eth0", "10.20.0.2/24"),
    ):
        ip(host, f"addr add {address} dev {dev}")
    ip(inside, "route add default via 10.20.0.1")
    vm2.sysctl("net.ipv4.ip_forward", 1)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        # Of the gateway only the network behind it is named.
        one.cli("peers", "add", "vm2", "192.168.10.61", "--allow", "10.20.0.0/24")
        two.cli("peers", "add", "vm1", "192.168.10.60")
        assert answered(vm1, "10.20.0.2")
        done = vm1.run("ping", "-c1", "-t1", "-W2", "-n", "10.20.0.2", check=False)
        assert "From 192.168.10.61" in done.stdout
        assert drops(one) == {}


def test_sources_that_are_dropped_are_told_with_the_command_that_allows_them(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", vm2.address)
        two.cli("peers", "add", "vm1", vm1.address)
        ip(vm1, "addr add 10.0.0.5/32 dev lo")
        ping = vm1.popen("ping", "-q", "-i", "0.2", "-I", "10.0.0.5", vm2.address)

        def told():
            lines = two.status()["health"]
            command = "peers set vm1 --allow 192.168.10.60/32 --allow 10.0.0.5"
            return any("from 10.0.0.5" in x and command in x for x in lines)

        wait_until(told, "the source in health", 20)
        ping.terminate()
        ping.wait()
        wait_until(lambda: two.status()["health"] == [], "no complaints", 20)
        two.cli("peers", "set", "vm1", "--allow", vm1.address, "--allow", "10.0.0.5")
        ip(vm2, "route add 10.0.0.5 dev eth0")
        assert answered(vm1, vm2.address, "-I", "10.0.0.5")


def test_silent_peer_is_told_and_is_back(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", vm2.address)
        two.cli("peers", "add", "vm1", vm1.address)
        assert answered(vm1, vm2.address)
        vm1.lose(1, "udp dport 1234")
        ping = vm1.popen("ping", "-q", "-i", "0.2", vm2.address)

        def state(wanted):
            (peer,) = one.status()["peers"]
            return peer["state"] == wanted and peer

        wait_until(lambda: state("silent"), "the peer to be silent", 15)
        assert "heard nothing" in state("silent")["reason"]
        assert "silent" in one.cli("status").stdout
        assert (
            'alpha_trio_peer_established{peer="vm2"} 0.0' in one.cli("metrics").stdout
        )
        vm1.lose(0)
        wait_until(lambda: state("established"), "the peer to be back", 15)
        ping.terminate()
        ping.wait()
