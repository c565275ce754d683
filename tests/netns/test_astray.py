"""Others' rules, and what else befalls the plan: in the tunnel, or told."""

from __future__ import annotations

import pytest

from tests.netns.traffic import add, prepared
from tools.daemons import Daemon
from tools.lab import NAMESPACES, Lab, wait_until

pytestmark = pytest.mark.netns

OTHERS = ("50", "90", "91", "100")  # priorities of the rules that are not ours


def ip(host, arguments):
    return host.run("ip", *arguments.split()).stdout


def in_tunnel(host, destination):
    counter = "/sys/class/net/alpha0/statistics/tx_packets"
    before = int(host.run("cat", counter).stdout)
    host.run("ping", "-c", "1", "-W", "2", destination, check=False)
    return int(host.run("cat", counter).stdout) > before


def sorted_rules(host, family="-4"):
    return sorted(ip(host, f"{family} rule").splitlines())


def reason(daemon):
    (peer,) = daemon.status()["peers"]
    return peer["reason"] or ""


def wait_told(daemon, *parts):
    wait_until(lambda: all(p in reason(daemon) for p in parts), f"{parts} as reason")


@pytest.fixture(scope="module")
def met():
    """Two daemons that know each other by both addresses, IPv4 and IPv6."""
    with Lab(strict=False) as lab:
        vm1, vm2 = lab.lan(2)
        with Daemon(vm1) as one, Daemon(vm2) as two:
            for here, there in ((one, vm2), (two, vm1)):
                add(
                    here,
                    there.name,
                    there.address,
                    allow=[there.address, there.address6],
                )
            one.cli("wait", "vm2")
            yield one, two


@pytest.fixture
def talking(met):
    """The two, and no rules of others afterwards."""
    one, _ = met
    families = "-4", "-6"
    before = [sorted_rules(one.host, family) for family in families]
    yield met
    for family in families:
        for line in sorted_rules(one.host, family):
            priority = line.partition(":")[0]
            if priority in OTHERS:
                ip(one.host, f"{family} rule del pref {priority}")
    wait_until(
        lambda: before == [sorted_rules(one.host, family) for family in families],
        "the rules of before",
    )
    wait_until(lambda: not reason(one), "no reason")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("from 192.168.10.60 lookup main", "leave by eth0"),
        ("to 192.168.10.61 ipproto tcp lookup main", "leave by eth0"),
        ("unreachable", "are refused (Network is unreachable)"),
        ("prohibit to 192.168.10.0/24", "are refused (Permission denied)"),
        ("blackhole", "are refused"),
        ("iif lo lookup main", "leave by eth0"),
    ],
)
def test_rule_of_others_before_ours_is_named(talking, rule, told):
    one, _ = talking
    ip(one.host, f"rule add pref 90 {rule}")
    wait_told(one, told, "90:", "behind ours, above 5209")
    (peer,) = one.status()["peers"]
    assert any(peer["reason"] in line for line in one.status()["health"])
    assert not peer["routed"]
    assert peer["reason"] in one.log
    doctor = one.cli("doctor", check=False)
    assert doctor.returncode == 1
    assert "BAD" in doctor.stdout
    assert peer["reason"] in doctor.stdout
    assert 'alpha_trio_peer_routed{peer="vm2"} 0.0' in one.cli("metrics").stdout
    ip(one.host, "rule del pref 90")
    wait_until(lambda: not reason(one), "no reason")
    assert one.status()["health"] == []
    assert in_tunnel(one.host, "192.168.10.61")


def test_rule_of_others_for_ipv6_is_named(talking):
    one, _ = talking
    ip(one.host, "-6 rule add pref 90 to fd00:10::61 lookup main")
    wait_told(
        one,
        "fd00:10::61/128 leave by eth0",
        "90: from all to fd00:10::61/128 lookup main",
    )


@pytest.mark.parametrize(
    "rule",
    [
        "fwmark 7 lookup 99",  # says nothing of our packets
        "from 10.0.0.1 unreachable",
        "iif eth7 lookup main",
        "uidrange 100-200 lookup main",
        "not from all lookup main",
        "lookup 99",  # an empty table
    ],
)
def test_rule_of_others_that_does_no_harm_is_no_news(talking, rule):
    one, _ = talking
    ip(one.host, f"rule add pref 90 {rule}")
    ip(one.host, "rule add pref 91 unreachable")
    wait_told(one, "91: from all unreachable")
    ip(one.host, "rule del pref 91")
    wait_until(lambda: not reason(one), "no reason")


@pytest.mark.parametrize("route", ["10.20.0.0/24 dev eth0", "blackhole 10.20.0.0/24"])
def test_more_specific_route_of_the_host_is_no_news(pair, route):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        one.cli("peers", "add", "vm2", vm2.address, "--allow", "10.20.0.0/16")
        ip(vm1, f"route add {route}")
        ip(vm1, "rule add pref 90 unreachable")
        wait_told(one, "90: from all unreachable")
        ip(vm1, "rule del pref 90")
        wait_until(lambda: not reason(one), "no reason")


@pytest.mark.parametrize("only", ["tcp/80", "udp", "icmp"])
def test_selected_packets_are_asked_for_as_such(pair, only):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        one.cli("peers", "add", "vm2", vm2.address, "--only", only)
        assert reason(one) == ""
        protocol = only.partition("/")[0]
        ip(vm1, f"rule add pref 90 ipproto {protocol} unreachable")
        wait_told(one, "90: from all ipproto", "unreachable")


def test_marks_are_asked_for_with_their_mark(pair):
    vm1, vm2 = pair
    with Daemon(vm1, config='[routing]\nbackend = "marks"\n') as one:
        one.cli("peers", "add", "vm2", vm2.address)
        assert one.status()["health"] == []
        ip(vm1, "rule add pref 90 fwmark 0x182 lookup main")
        wait_told(one, "leave by eth0", "90: from all fwmark 0x182 lookup main")


@pytest.mark.parametrize("to", [10000, 5186, 32000])
def test_table_local_behind_our_rules_is_looked_up_in_front(pair, to):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", vm2.address, "--allow", "0.0.0.0/0")
        two.cli("peers", "add", "vm1", vm1.address)
        ip(vm1, "addr add 10.77.0.1/32 dev lo")
        for options in ("", "-6 "):
            ip(vm1, f"{options}rule add pref 32700 lookup local")
            ip(vm1, f"{options}rule del pref 0")
        wait_until(
            lambda: "5185:\tfrom all lookup local" in ip(vm1, "rule"), "our own rule"
        )
        assert "local" in ip(vm1, "route get 192.168.10.60")
        vm2.run("ping", "-c", "1", "-W", "2", vm1.address)
        assert in_tunnel(vm1, "203.0.113.1")
        assert one.status()["health"] == []
        ip(vm1, "rule add pref 0 lookup local")
        wait_until(
            lambda: "5185:\tfrom all lookup local" not in ip(vm1, "rule"),
            "our own rule to go",
        )


def test_own_address_that_leads_elsewhere_is_told(talking):
    one, _ = talking
    ip(one.host, "rule add pref 50 to 192.168.10.60 unreachable")
    ip(one.host, "rule add pref 100 lookup local")
    ip(one.host, "rule del pref 0")
    wait_until(
        lambda: any(
            "192.168.10.60, an address of this host" in line
            and "50: from all to 192.168.10.60/32 unreachable" in line
            for line in one.status()["health"]
        ),
        "the own address in health",
    )
    ip(one.host, "rule add pref 0 lookup local")


@pytest.mark.parametrize("backend", ["rules", "marks"])
def test_renamed_interface_goes_on(pair, backend):
    vm1, vm2 = pair
    config = f'[routing]\nbackend = "{backend}"\n'
    with Daemon(vm1, config=config) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", vm2.address)
        two.cli("peers", "add", "vm1", vm1.address)
        one.cli("wait", "vm2")
        ip(vm1, "link set alpha0 name x")
        wait_until(lambda: one.status()["interface"]["name"] == "x", "its new name")
        assert one.status()["interface"]["mtu"] == 1408
        vm1.run("ping", "-c", "1", "-W", "2", vm2.address)
        wait_until(lambda: one.status()["health"] == [], "no complaints")
        # Down and up again, it still has its routes.
        ip(vm1, "link set x down")
        ip(vm1, "link set x up")
        wait_until(lambda: "dev x" in ip(vm1, "route show table 5182"), "the route")
        vm1.run("ping", "-c", "1", "-W", "2", vm2.address)
    assert "alpha" not in vm1.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("moved", [True, False])
def test_lost_interface_ends_the_daemon_with_one_line(lab, moved):
    vm1, vm2 = lab.lan(2)
    before = vm1.snapshot()
    one = Daemon(vm1).start()
    one.cli("peers", "add", "vm2", vm2.address)
    if moved:
        ip(vm1, f"link set alpha0 netns {NAMESPACES / vm2.namespace}")
    else:
        ip(vm1, "link del alpha0")
    assert one.wait() == 1
    last = one.log.splitlines()[-1]
    assert last.startswith("alpha-trio: the interface alpha0 is gone")
    assert "Traceback" not in one.log
    assert "alpha0" not in ip(vm2, "link")
    assert vm1.snapshot() == before


def test_gateway_that_is_a_peer_is_not_found_in_the_tunnel(talking):
    one, _ = talking
    ip(one.host, "route add 10.5.0.0/16 via 192.168.10.61")
    assert "dev eth0" in ip(one.host, "route show 10.5.0.0/16")
    ip(one.host, "route del 10.5.0.0/16")


def test_removed_rules_and_routes_come_back(talking):
    one, _ = talking
    vm1 = one.host
    wait_until(lambda: "5209" in ip(vm1, "rule"), "the rules")
    rules, routes = sorted_rules(vm1), ip(vm1, "route show table 5182")
    for priority in (5182, 5187, 5188, 5209):
        vm1.run("ip", "rule", "del", "pref", str(priority), check=False)
    ip(vm1, "route flush table 5182")
    wait_until(lambda: sorted_rules(vm1) == rules, "the rules to come back")
    wait_until(lambda: ip(vm1, "route show table 5182") == routes, "the routes")
    one.wait_log("Others removed what is ours: put back ")


@pytest.mark.parametrize(
    ("config", "table", "prepare"),
    [
        ('backend = "marks"', "alpha_trio_alpha0", "true"),
        ("mss = true", "alpha_trio_mss_alpha0", "true"),
        ('backend = "marks"', "AT-alpha0-out", "mount --bind /dev/null /usr/sbin/nft"),
    ],
)
def test_rules_of_the_packet_filter_come_back(pair, config, table, prepare):
    """As after the restart of nftables, or of a firewall that removes all there is."""
    vm1, vm2 = pair
    there = ("nft", "list", "ruleset")
    daemon = Daemon(prepared(vm1, prepare), config=f"[routing]\n{config}\n")
    with daemon as one:
        add(one, "vm2", vm2.address)
        wait_until(lambda: table in vm1.run(*there).stdout, "our table")
        vm1.run("nft", "flush", "ruleset")
        one.wait_log("Others removed what is ours: put back the packet filter's")
        assert table in vm1.run(*there).stdout
