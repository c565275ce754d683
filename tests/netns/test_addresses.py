"""The addresses by which hosts know each other, and what becomes of them.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61, or with a router between them.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
import sys
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest

from tests.netns.traffic import (
    Tap,
    add,
    drops,
    flowing,
    introduce,
    peer,
    ping,
    prepared,
)
from tools.daemons import Daemon, ending
from tools.lab import wait_until

pytestmark = pytest.mark.netns

INNER1, INNER2 = "10.9.0.1", "10.9.0.2"


@contextmanager
def overlaid(vm1, vm2, **settings):
    """Daemons with a network of their own, that have met."""
    with (
        Daemon(vm1, "--address", f"{INNER1}/24") as one,
        Daemon(vm2, "--address", f"{INNER2}/24") as two,
    ):
        add(one, "vm2", vm2.address, allow=[INNER2], **settings)
        add(two, "vm1", vm1.address, allow=[INNER1], **settings)
        ping(vm1, INNER2)
        yield one, two


@contextmanager
def pinging(host, address, interval=0.01):
    """Echo requests all the time; afterwards which of them were answered."""
    answered = []
    command = "ping", "-n", "-i", str(interval), address
    output = host.directory / "pinging"
    with output.open("w") as stdout, ending(host.popen(*command, stdout=stdout)):
        wait_until(lambda: "time=" in output.read_text(), "the first answer")
        yield answered
    answered += map(int, re.findall(r"icmp_seq=(\d+) .*time=", output.read_text()))


def longest_gap(answered):
    """How many requests in a row had no answer."""
    return max(b - a for a, b in pairwise(answered)) - 1


def renumber(host, old, new):
    """The new one becomes the first, instead of going with the old one."""
    host.sysctl("net.ipv4.conf.eth0.promote_secondaries", 1)
    host.run("ip", "addr", "add", new, "dev", "eth0")
    host.run("ip", "addr", "del", old, "dev", "eth0")


# -- by which the peer knows us


def test_both_begin_and_one_is_known_by_its_second_address(pair):
    vm1, vm2 = pair
    vm2.run("ip", "addr", "add", "192.168.10.71/24", "dev", "eth0")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", "192.168.10.71")
        add(two, "vm1", vm1.address)
        ping(vm2, vm1.address, "-W", "0.2", check=False)
        ping(vm1, "192.168.10.71")
        # What has no source of its own gets the one that vm1 knows.
        route = ("ip", "route", "show", "table", "5182", vm1.address)
        wait_until(lambda: "src 192.168.10.71" in vm2.run(*route).stdout, "source")
        ping(vm2, vm1.address)
        assert peer(one, "vm2")["endpoint"] == "192.168.10.71:1234"


ADVERTISEMENT = """
import socket, struct, sys
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 600, 300, 0)
prefix += socket.inet_pton(socket.AF_INET6, "fd00:99::")
message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 0, 0, 0) + prefix
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
link = socket.if_nametoindex(sys.argv[1])
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.sendto(message, ("ff02::1", 0, 0, link))
"""


def autoconfigured(host, router):
    """The stable address of a host that prefers a temporary one."""
    for name, value in (("use_tempaddr", 2), ("accept_ra", 2)):
        host.sysctl(f"net.ipv6.conf.eth0.{name}", value)
    router.run("ip", "addr", "add", "fd00:99::61/64", "dev", "eth0", "nodad")

    def found():
        router.run(sys.executable, "-c", ADVERTISEMENT, "eth0")
        shown = json.loads(host.run("ip", "-j", "-6", "addr", "show", "eth0").stdout)
        own = [a for a in shown[0]["addr_info"] if a["local"].startswith("fd00:99:")]
        temporary = {bool(address.get("temporary")) for address in own}
        stable = [a["local"] for a in own if not a.get("temporary")]
        return stable if temporary == {True, False} else []

    wait_until(found, "a stable and a temporary address")
    return found()[0]


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("overlay", [False, True])
def test_a_host_with_temporary_addresses_is_known_by_its_stable_one(
    pair, keys, overlay
):
    vm1, vm2 = pair
    stable = autoconfigured(vm1, vm2)
    own = ("fd99::1", "fd99::2") if overlay else (stable, "fd00:99::61")
    arguments = [("--address", f"{a}/64") if overlay else () for a in own]
    with Daemon(vm1, *arguments[0]) as one, Daemon(vm2, *arguments[1]) as two:
        for at, of, name, place, inner in (
            (one, two, "vm2", "fd00:99::61", own[1]),
            (two, one, "vm1", stable, own[0]),
        ):
            settings = {"key": of.status()["key"]} if keys else {}
            settings |= {"allow": [inner]} if overlay else {}
            add(at, name, place, **settings)
        ping(vm1, own[1], count=3)
        # It learns by which of its addresses it is known when it is called.
        find = "ip", "route", "get", own[0]
        wait_until(lambda: f"src {own[1]} " in vm2.run(*find).stdout, "its address")
        ping(vm2, own[0], count=3)
        assert peer(two, "vm1")["endpoint"] == f"[{stable}]:1234"
        assert drops(one, "vm2") == drops(two, "vm1") == {}


# -- that changes


def test_hardly_a_packet_is_lost_when_our_address_is_replaced(pair):
    vm1, vm2 = pair
    with overlaid(vm1, vm2) as (one, two):
        with pinging(vm2, INNER1) as answered:
            renumber(vm1, "192.168.10.60/24", "192.168.10.80/24")
            there = "192.168.10.80:1234"
            wait_until(lambda: peer(two, "vm1")["endpoint"] == there, "vm1 elsewhere")
            time.sleep(0.5)
        assert longest_gap(answered) < 100
        # It is found there by a handshake, too, though it is not configured so.
        two.cli("peers", "set", "vm1", "--keepalive", "3")
        one.kill9()
        one.start()
        # What went early to the one that was killed is not sent again.
        again = partial(ping, vm2, INNER1, "-W", "1", check=False)
        wait_until(again, "an answer", 30)
        assert two.log.count("vm1 is at 192.168.10.80 now.") == 1


def test_a_peer_hears_of_our_address_though_we_send_nothing(pair):
    vm1, vm2 = pair
    with overlaid(vm1, vm2) as (_, two):
        renumber(vm1, "192.168.10.60/24", "192.168.10.80/24")
        there = "192.168.10.80:1234"
        wait_until(lambda: peer(two, "vm1")["endpoint"] == there, "vm1 elsewhere")
        ping(vm2, INNER1)


def routed_by_two(lab):
    """vm1 with two uplinks to a router that lets only their own addresses pass."""
    vm1, router, vm2 = lab.chain(1)
    left, right = lab.connect(vm1, router)
    vm1.run("ip", "addr", "add", "192.168.20.60/24", "dev", left)
    router.run("ip", "addr", "add", "192.168.20.2/24", "dev", right)
    rules = (
        "table ip lab { chain passing { type filter hook prerouting priority -300;"
        f" iifname eth0 ip saddr != 192.168.10.0/24 drop;"
        f" iifname {right} ip saddr != 192.168.20.0/24 drop; }}; }}"
    )
    router.run("nft", "-f", "-", stdin=rules)
    vm1.run("ip", "route", "add", "default", "via", "192.168.10.2")
    vm1.run("ip", "route", "del", "192.168.11.0/24")
    vm2.run("ip", "route", "add", "192.168.20.0/24", "via", "192.168.11.1")
    return vm1, vm2


def test_the_default_route_moves_to_a_second_uplink(lab):
    vm1, vm2 = routed_by_two(lab)
    with overlaid(vm1, vm2) as (_, two):
        with pinging(vm1, INNER2) as answered:
            vm1.run("ip", "route", "replace", "default", "via", "192.168.20.2")
            there = "192.168.20.60:1234"
            wait_until(lambda: peer(two, "vm1")["endpoint"] == there, "other uplink")
            time.sleep(0.5)
        assert longest_gap(answered) < 100


def forget_connections(host):
    """Have the NAT of a host forget all it has translated."""
    request = struct.pack("=IHHII", 20, 0x102, 0x5, 1, 0) + bytes(4)
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
        netfilter.send(request)
        (error,) = struct.unpack_from("=i", netfilter.recv(4096), 16)
        assert error == 0


def masquerade(router, port, device="eth1"):
    """Translate what leaves by a device, to this port from now on."""
    rules = (
        "add table ip lab_nat; delete table ip lab_nat; table ip lab_nat {"
        " chain leaving { type nat hook postrouting priority srcnat;"
        f" oifname {device} udp sport 1234 masquerade to :{port}; }}; "
        " chain passing { type filter hook forward priority 0;"
        f" iifname {device} ct state new drop; }}; }}"
    )
    router.run("nft", "-f", "-", stdin=rules)
    forget_connections(router)


def behind_nat(lab):
    """vm1 behind a router that translates, vm2 outside."""
    vm1, router, vm2 = lab.chain(1)
    masquerade(router, 40000)
    vm2.run("ip", "route", "del", "192.168.10.0/24")
    return vm1, router, vm2


@contextmanager
def calling(vm1, vm2):
    """vm2 waits for vm1, of which it knows the key alone, and has been called."""
    with (
        Daemon(vm1, "--address", f"{INNER1}/24") as one,
        Daemon(vm2, "--address", f"{INNER2}/24") as two,
    ):
        key = one.status()["key"]
        two.cli("peers", "add", "laptop", "--key", key, "--allow", INNER1)
        add(one, "vm2", vm2.address, allow=[INNER2])
        ping(vm1, INNER2)
        yield one, two


def test_a_nat_that_rebinds_every_second(lab):
    vm1, router, vm2 = behind_nat(lab)
    with calling(vm1, vm2) as (one, two):
        with pinging(vm1, INNER2, 0.05) as answered:
            for port in range(40001, 40005):
                masquerade(router, port)
                there = f"192.168.11.1:{port}"
                wait_until(
                    lambda: peer(two, "laptop")["endpoint"] == there,  # noqa: B023
                    "the new port",
                )
                time.sleep(1)
        assert longest_gap(answered) <= 8
        with flowing(vm1, vm2, INNER2) as stream:
            for port in range(40005, 40008):
                masquerade(router, port)
                at = stream.received
                wait_until(lambda: stream.received > at + (1 << 20), "more")  # noqa: B023
        assert one.log.count("Initiating handshake") == 1
        assert two.log.count("laptop is at") == 1  # the rest is counted


def test_an_address_family_disappears_and_comes_back(pair):
    vm1, vm2 = pair
    hosts = vm1.directory / "hosts"
    hosts.write_text(f"{vm2.address} far\n{vm2.address6} far\n")
    vm1 = prepared(vm1, f"mount --bind {hosts} /etc/hosts")
    with (
        Daemon(vm1, "--address", f"{INNER1}/24") as one,
        Daemon(vm2, "--address", f"{INNER2}/24") as two,
    ):
        key = one.status()["key"]
        two.cli("peers", "add", "laptop", "--key", key, "--allow", INNER1)
        add(one, "far", "far", allow=[INNER2])
        ping(vm1, INNER2)
        addresses = {4: ("192.168.10.60/24",), 6: ("fd00:10::60/64", "nodad")}
        places = {4: f"{vm2.address}:1234", 6: f"[{vm2.address6}]:1234"}
        first = 4 if peer(one, "far")["endpoint"] == places[4] else 6
        for gone, left in ((first, 10 - first), (10 - first, first)):
            with pinging(vm1, INNER2) as answered:
                vm1.run("ip", "addr", "del", addresses[gone][0], "dev", "eth0")
                wait_until(
                    lambda: peer(one, "far")["endpoint"] == places[left],  # noqa: B023
                    "the other family",
                )
                time.sleep(0.3)
            assert longest_gap(answered) < 100
            vm1.run("ip", "addr", "add", *addresses[gone], "dev", "eth0")


# -- peers that call


def test_who_is_waited_for_is_neither_asked_nor_looked_up(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm2) as tap:
        key = one.status()["key"]
        two.cli("peers", "add", "laptop", "--key", key, "--allow", INNER1)
        entry = peer(two, "laptop")
        assert (entry["state"], entry["configured_endpoint"]) == ("idle", None)
        assert "call" in entry["reason"]
        assert ping(vm2, INNER1, "-W", "1", check=False) is None
        assert drops(two, "laptop") == {"no-session": 1}
        assert "waits to be called" in two.cli("status").stdout
        assert not [packet for packet in tap.packets() if packet.is_tunnel]
        assert "laptop" not in re.findall(r"resolve (\w+)", two.log)
        assert two.stop() == 0
        two.start()
        assert peer(two, "laptop")["state"] == "idle"


@pytest.mark.parametrize("command", ["gw.invalid", "gw gw.invalid"])
def test_a_host_name_is_looked_up_whatever_else_is_given(pair, command):
    vm1, _ = pair
    with Daemon(vm1) as one:
        more = "--key", "A" * 42 + "E=", "--allow", INNER1
        one.cli("peers", "add", *command.split(), *more)
        name = command.split()[0]
        wait_until(lambda: "resolve" in (peer(one, name)["reason"] or ""), "it")
        assert peer(one, name)["state"] == "resolving"


def test_who_has_called_is_not_shown_as_looked_up(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        keys = [daemon.status()["key"] for daemon in (one, two)]
        two.cli("peers", "add", "laptop", "--key", keys[0])
        wait_until(lambda: peer(two, "laptop")["reason"], "a reason")
        assert peer(two, "laptop")["state"] == "resolving"
        told = two.cli("status").stdout
        assert "alpha-trio peers set laptop --key KEY --allow PREFIX" in told
        one.cli("peers", "add", "gw", vm2.address, "--key", keys[1])
        one.cli("wait", "gw", "--timeout", "10")
        wait_until(lambda: peer(two, "laptop")["state"] != "resolving", "the caller")
        assert peer(two, "laptop")["state"] == "established"


# -- names


def test_a_name_that_points_elsewhere_now_is_noticed(pair):
    vm1, vm2 = pair
    hosts = vm1.directory / "hosts"
    hosts.write_text(f"{vm2.address} far\n")
    vm1 = prepared(vm1, f"mount --bind {hosts} /etc/hosts")
    with (
        Daemon(vm1, "--address", f"{INNER1}/24") as one,
        Daemon(vm2, "--address", f"{INNER2}/24") as two,
    ):
        add(one, "far", "far", allow=[INNER2])
        two.cli("peers", "add", "vm1", "--key", one.status()["key"], "--allow", INNER1)
        ping(vm1, INNER2)
        two.kill9()  # so it cannot tell where it is
        renumber(vm2, "192.168.10.61/24", "192.168.10.99/24")
        two.start()
        hosts.write_text("192.168.10.99 far\n")
        started = time.monotonic()
        with pinging_in_vain(vm1, INNER2):
            there = "192.168.10.99:1234"
            wait_until(lambda: peer(one, "far")["endpoint"] == there, "far", 25)
        assert time.monotonic() - started < 25
        ping(vm1, INNER2)


@contextmanager
def pinging_in_vain(host, address):
    with ending(host.popen("ping", "-n", "-i", "0.2", address)):
        yield


def test_of_a_hundred_addresses_sixteen_are_tried(pair):
    vm1, vm2 = pair
    hosts = vm1.directory / "hosts"
    wrong = [f"192.168.10.{number}" for number in range(101, 116)]
    more = [f"192.168.10.{number}" for number in range(116, 201)]
    hosts.write_text("".join(f"{a} far\n" for a in [*wrong, vm2.address, *more]))
    vm1 = prepared(vm1, f"mount --bind {hosts} /etc/hosts")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        add(one, "far", "far")
        one.wait_log("(and 85 more, which are not tried)")
        one.cli("wait", "far", "--timeout", "8")
        assert peer(one, "far")["endpoint"] == f"{vm2.address}:1234"
        assert len(peer(one, "far")["allowed"]) == 16


# -- link-local addresses


def link_local(host):
    shown = json.loads(host.run("ip", "-j", "-6", "addr", "show", "eth0").stdout)
    return next(
        a["local"] for a in shown[0]["addr_info"] if a["local"].startswith("fe80")
    )


def test_an_endpoint_may_be_link_local_with_its_zone(pair):
    vm1, vm2 = pair
    with (
        Daemon(vm1, "--address", f"{INNER1}/24") as one,
        Daemon(vm2, "--address", f"{INNER2}/24") as two,
    ):
        here, there = (f"{link_local(host)}%eth0" for host in pair)
        one.cli("peers", "add", "vm2", there, "--allow", INNER2)
        two.cli("peers", "add", "vm1", f"[{here}]:1234", "--allow", INNER1)
        ping(vm1, INNER2)
        entry = peer(one, "vm2")
        assert entry["endpoint"] == f"[{there}]:1234"
        assert (entry["configured_endpoint"], entry["reason"]) == (there, None)
        assert one.stop() == 0
        one.start()
        assert peer(one, "vm2")["configured_endpoint"] == there
        ping(vm1, INNER2)
        add(one, "other", "fe80::1%eth9", allow=["10.9.1.0/24"])
        assert "no interface eth9" in peer(one, "other")["reason"]


# -- two hosts with one key


def test_two_hosts_with_one_key_are_named(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        state = vm3.directory / "state"
        state.mkdir(mode=0o700)
        shutil.copy(vm1.directory / "state" / "host.key", state)
        with Daemon(vm3) as three:
            add(three, "vm2", vm2.address)
            with pinging_in_vain(vm1, vm2.address), pinging_in_vain(vm3, vm2.address):
                two.wait_log("Two hosts have the key of vm1", timeout=20)
            (line,) = two.status()["health"]
            assert "192.168.10.60:1234" in line
            assert "192.168.10.62:1234" in line
            assert "host.key" in line
