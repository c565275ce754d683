"""Hosts whose packet filter, or kernel, asks how a peer's address would be reached.

Both ends check sources; nothing of the tunnel may look as if it came by a wrong way.
"""

from __future__ import annotations

import pytest

from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

# As firewalld (IPv6_rpfilter) and NixOS (checkReversePath) have it.
NFT = """table inet fw {
  chain pre {
    type filter hook prerouting priority mangle + 10; policy accept;
    icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
    fib saddr KEYS oif missing counter drop
  }
}"""


def nft(host, rules):
    host.run("nft", "-f", "-", stdin=rules)


def met(host, destination, *options):
    """Tell whether a ping is answered, and all of it went through the tunnel."""
    before = host.run("cat", "/sys/class/net/alpha0/statistics/tx_packets").stdout
    done = host.run(
        "ping", "-c", "2", "-i", "0.2", "-W", "2", *options, destination, check=False
    )
    after = host.run("cat", "/sys/class/net/alpha0/statistics/tx_packets").stdout
    return done.returncode == 0 and int(after) > int(before)


def add_each_other(one, two, version=4):
    vm1, vm2 = one.host, two.host
    at = {4: (vm1.address, vm2.address), 6: (vm1.address6, vm2.address6)}[version]
    one.cli("peers", "add", "vm2", at[1])
    two.cli("peers", "add", "vm1", at[0])
    return at


def set_filters(host, **values):
    for name, value in values.items():
        for scope in ("all", "default", "eth0"):
            host.sysctl(f"net.ipv4.conf.{scope}.{name}", value)


def forget_neighbours(*hosts):
    for host in hosts:
        host.run("ip", "neigh", "flush", "all")


def udp_arrives(client, server, destination, size):
    with server.socket() as inbound, client.socket() as outbound:
        inbound.bind(("", 5000))
        inbound.settimeout(5)
        outbound.sendto(bytes(size), (destination, 5000))
        return len(inbound.recv(20000)) == size


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 6])
def test_source_check_of_nftables_is_met(pair, version, rp_filter):
    before = []
    for host in pair:
        set_filters(host, rp_filter=rp_filter)
        nft(host, NFT.replace("KEYS", ". mark . iif"))
        before.append(host.run("nft", "-s", "list", "ruleset").stdout)
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        at = add_each_other(one, two, version)
        forget_neighbours(*pair)
        assert met(vm1, at[1])
        forget_neighbours(*pair)
        assert met(vm2, at[0])
        assert met(vm1, at[1], "-s", "8000")
        if version == 4:
            assert udp_arrives(vm1, vm2, at[1], 800)
        assert one.status()["health"] == []
        assert one.cli("doctor").stdout.count("packets are marked for it") == 1
    after = [host.run("nft", "-s", "list", "ruleset").stdout for host in pair]
    assert after == before


@pytest.mark.parametrize("command", ["iptables", "ip6tables"])
def test_source_check_of_iptables_is_met(pair, command):
    version = 6 if command == "ip6tables" else 4
    vm1, vm2 = pair
    check = "-t raw -A PREROUTING -m rpfilter --validmark --invert -j DROP"
    if version == 6:
        nd = "-t raw -A PREROUTING -p icmpv6 -j ACCEPT"
        vm1.run(command, *nd.split())
    vm1.run(command, *check.split())
    with Daemon(vm1) as one, Daemon(vm2) as two:
        at = add_each_other(one, two, version)
        assert met(vm1, at[1])
        assert met(vm2, at[0])


def test_source_check_that_comes_while_we_run_is_met(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        at = add_each_other(one, two)
        assert met(vm1, at[1])
        nft(vm1, NFT.replace("KEYS", ". mark . iif"))
        wait_until(lambda: met(vm1, at[1]), "the check to be met", 20)
        # firewalld removes everything when it loads anew.
        nft(vm1, "flush ruleset\n" + NFT.replace("KEYS", ". mark . iif"))
        wait_until(lambda: met(vm1, at[1]), "the check to be met again", 20)
        nft(vm1, "flush ruleset")
        wait_until(
            lambda: "5185" not in vm1.run("ip", "-6", "rule").stdout,
            "the rules against questions to go",
            20,
        )


def test_source_check_without_marks_is_told(pair):
    vm1, vm2 = pair
    nft(vm1, NFT.replace("KEYS", ". iif"))
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add_each_other(one, two)
        (line,) = one.status()["health"]
        assert "'fib saddr . iif oif missing counter drop'" in line.replace(
            "counter packets 0 bytes 0 ", "counter "
        )
        assert "accept what comes from the tunnel's interface" in line
        assert line in one.log
        assert "let it look at marks" in one.cli("doctor", check=False).stdout


def test_interface_that_is_spared_by_a_source_check_needs_nothing(pair):
    vm1, vm2 = pair
    spared = NFT.replace("KEYS", ". iif").replace(
        "    fib", '    iifname "alpha0" accept\n    fib'
    )
    nft(vm1, spared)
    with Daemon(vm1) as one, Daemon(vm2):
        one.cli("peers", "add", "vm2", vm2.address)
        assert one.status()["health"] == []


def test_overlay_addresses_are_not_disturbed_by_a_check_without_marks(pair):
    vm1, vm2 = pair
    nft(vm1, NFT.replace("KEYS", ". iif"))
    with (
        Daemon(vm1, "--address", "10.9.0.1/24") as one,
        Daemon(vm2, "--address", "10.9.0.2/24") as two,
    ):
        one.cli("peers", "add", "vm2", vm2.address, "--allow", "10.9.0.2/32")
        two.cli("peers", "add", "vm1", vm1.address, "--allow", "10.9.0.1/32")
        assert met(vm1, "10.9.0.2")
        assert one.status()["health"] == []


def test_arp_filter_is_met(pair):
    for host in pair:
        set_filters(host, arp_filter=1, rp_filter=0)
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        at = add_each_other(one, two)
        for host, there in ((vm1, at[1]), (vm2, at[0])):
            forget_neighbours(*pair)
            assert met(host, there)


def test_redirected_packets_of_this_host_still_take_the_tunnel(pair):
    """What is routed again after DNAT, as to a Kubernetes service, has its ports."""
    vm1, vm2 = pair
    for host in pair:
        set_filters(host, rp_filter=1)
    nft(
        vm1,
        """table ip nat {
          chain output {
            type nat hook output priority -100;
            ip daddr 10.96.0.1 dnat to 192.168.10.61
          }
        }""",
    )
    vm1.run("ip", "route", "add", "10.96.0.0/16", "via", "192.168.10.61")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add_each_other(one, two)
        assert met(vm1, "10.96.0.1")
        assert udp_arrives(vm1, vm2, "10.96.0.1", 100)
