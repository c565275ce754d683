"""What two hosts say to each other crosses the link inside UDP 1234 only.

vm1 192.168.10.60                     vm2 192.168.10.61
    fd00:10::60                           fd00:10::61
  alpha0 --- UDP 1234 === eth0 ------- eth0 === UDP 1234 --- alpha0
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest

from alpha_trio.proto.engine import find
from tests.netns.traffic import (
    OVERHEAD,
    Tap,
    add,
    assert_none_lost,
    assert_only_tunnel,
    drops,
    introduce,
    peer,
    ping,
    send_tcp,
    send_udp,
    wait_drop,
)
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

MTU = 1500 - OVERHEAD  # of inner packets
OFFLOADS = ("vnet-hdr", "tso", "uso", "segment", "gro")
STATUS_KEYS = {
    *("schema", "version", "uptime_seconds", "interface", "port", "key", "peers"),
    *("knocking", "relay", "drops", "health"),
}
PEER_KEYS = {
    *("name", "endpoint", "configured_endpoint", "state", "reason", "mode", "key"),
    *("key_source", "latest_handshake_seconds", "latest_receive_seconds", "rtt_ms"),
    *("mtu", "allowed", "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "rounds"),
    *("associations", "elements_left", "drops"),
}
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)


def log_lines(daemon):
    return STAMP.sub("", daemon.log).splitlines()


def talk(vm1, vm2, address):
    """Ping, UDP and TCP from vm1 to vm2."""
    assert "ttl=64" in ping(vm1, address)
    assert send_udp(vm1, vm2, address, b"this is a test\n") == [b"this is a test\n"]
    send_tcp(vm1, vm2, address)


@pytest.mark.parametrize("strictness", [0, 1, 2])
def test_all_that_two_hosts_say_goes_through_the_tunnel(pair, strictness, pytestconfig):
    vm1, vm2 = pair
    engine = pytestconfig.getoption("engine") or find("auto").name
    for host in pair:
        for scope in ("all", "default", "eth0"):
            host.sysctl(f"net.ipv4.conf.{scope}.rp_filter", strictness)
    before = [host.snapshot() for host in pair]
    with Daemon(vm1) as one, Daemon(vm2) as two:
        one.cli("peers", "add", "vm2", vm2.address)
        two.cli("peers", "add", "vm1", vm1.address)
        assert one.status()["engine"]["name"] == engine
        with Tap(vm1) as tap:
            talk(vm1, vm2, vm2.address)
            talk(vm2, vm1, vm1.address)
            assert_only_tunnel(tap.packets())
        assert_none_lost(one, two)
        assert one.cli("stop").returncode == two.cli("stop").returncode == 0
        assert one.wait() == two.wait() == 0
    assert [host.snapshot() for host in pair] == before


def test_peers_at_ipv6_addresses(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm1) as tap:
        add(one, "vm2", vm2.address6)
        add(two, "vm1", vm1.address6)
        talk(vm1, vm2, vm2.address6)
        assert_only_tunnel(tap.packets())
        assert peer(one, "vm2")["endpoint"] == f"[{vm2.address6}]:1234"
        assert peer(one, "vm2")["mtu"] == MTU - 20  # the header is longer
        assert_none_lost(one, two)


def test_ipv6_inside_ipv4(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm1) as tap:
        add(one, "vm2", vm2.address, allow=[vm2.address, vm2.address6])
        add(two, "vm1", vm1.address, allow=[vm1.address, vm1.address6])
        talk(vm1, vm2, vm2.address6)
        talk(vm1, vm2, vm2.address)
        assert_only_tunnel(tap.packets())
        assert_none_lost(one, two)


def test_another_port_at_either_end(pair):
    vm1, vm2 = pair
    with Daemon(vm1, "--port", "1300") as one, Daemon(vm2, "--port", "1400") as two:
        one.cli("peers", "add", "vm2", f"{vm2.address}:1400")
        two.cli("peers", "add", "vm1", f"{vm1.address}:1300")
        talk(vm1, vm2, vm2.address)
        assert_none_lost(one, two)


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_that_come_together_arrive_as_they_were_sent(pair, family):
    """Equal ones make super-packets on the way, which part again."""
    vm1, vm2 = pair
    texts = [bytes([i]) * size for size in (200, 30, 200) for i in range(40)]
    with Daemon(vm1) as one, Daemon(vm2) as two:
        place = "address" if family == 4 else "address6"
        add(one, "vm2", getattr(vm2, place))
        add(two, "vm1", getattr(vm1, place))
        one.cli("wait", "vm2", "--timeout", "10")
        assert send_udp(vm1, vm2, getattr(vm2, place), *texts) == texts
        assert_none_lost(one, two)
        assert peer(one, "vm2")["tx_packets"] == len(texts)


def test_large_packets_are_fragmented_or_refused_by_the_sender(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address, "-s", "8000")
        ping(vm1, vm2.address, "-M", "do", "-s", str(MTU - 28))
        too_large = ("-M", "do", "-s", str(MTU - 27))
        assert ping(vm1, vm2.address, *too_large, check=False) is None
        assert_none_lost(one, two)


def test_the_log_tells_of_the_handshake_in_the_agreed_words(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        two.wait_log("Got ACKACK")
        assert log_lines(one)[-6:] == [
            "Successfully opened tun device (alpha0)",
            "Binding listening socket to port 1234",
            "Adding host vm2 (192.168.10.61).",
            "Initiating handshake with 192.168.10.61, sending SYN.",
            "Pinned the key of vm2 (192.168.10.61): from now on it must have it.",
            "Got ACK packet. Handshake with 192.168.10.61 is done! Sending ACKACK.",
        ]
        assert log_lines(two)[-4:] == [
            "Adding host vm1 (192.168.10.60).",
            "Got SYN packet. 192.168.10.60 has initiated a handshake! Sending ACK.",
            "Pinned the key of vm1 (192.168.10.60): from now on it must have it.",
            "Got ACKACK packet. Handshake with 192.168.10.60 is done!",
        ]


INNER = "udp packet from 192.168.10.60 to 192.168.10.61 (ttl 64, 43 bytes)"


@contextmanager
def logging_packets(pair, **settings):
    """Two daemons that log every packet, of which INNER is the newest."""
    vm1, vm2 = pair
    with Daemon(vm1, "-vv") as one, Daemon(vm2, "-vv") as two:
        introduce(one, two, **settings)
        ping(vm1, vm2.address)
        send_udp(vm1, vm2, vm2.address, b"this is a test\n")
        yield one, two


def test_vv_logs_every_packet_and_its_round(pair):
    with logging_packets(pair, early=False) as (one, two):
        wait_in_order(
            one,
            f"--tun--> {INNER}",
            "Sending S1 (72 bytes) to 192.168.10.61:1234",
            "Received A1 (80 bytes) from 192.168.10.61:1234",
            "Sending S2 (91 bytes) to 192.168.10.61:1234",
            "Sending encapsulated packet to 192.168.10.61:1234",
        )
        wait_in_order(
            two,
            "Received S1 (72 bytes) from 192.168.10.60:1234",
            "Sending A1 (80 bytes) to 192.168.10.60:1234",
            "Received S2 (91 bytes) from 192.168.10.60:1234",
            "Received encapsulated packet (91 bytes) from 192.168.10.60:1234",
            f"<--tun-- {INNER}",
        )


def test_vv_logs_a_packet_inside_its_s1_there_and_nowhere_else(pair):
    with logging_packets(pair) as (one, two):
        wait_in_order(
            one,
            f"--tun--> {INNER}",
            "Sending S1 (125 bytes) to 192.168.10.61:1234",
            "Sending encapsulated packet to 192.168.10.61:1234",
        )
        wait_in_order(
            two,
            "Received S1 (125 bytes) from 192.168.10.60:1234",
            "Received encapsulated packet (125 bytes) from 192.168.10.60:1234",
            f"<--tun-- {INNER}",
            "Sending A1 (80 bytes) to 192.168.10.60:1234",
            "Received S2 (40 bytes) from 192.168.10.60:1234",
        )
        assert "Received encapsulated packet (40 bytes)" not in one.log + two.log


def test_vv_logs_every_packet_in_the_agreed_words(pair):
    with logging_packets(pair, mode="plain") as (one, two):
        wait_lines(
            one,
            f"--tun--> {INNER}",
            "Sending encapsulated packet to 192.168.10.61:1234",
        )
        wait_lines(
            two,
            "Received encapsulated packet (67 bytes) from 192.168.10.60:1234",
            f"<--tun-- {INNER}",
        )


def wait_lines(daemon, *lines):
    """Wait until these lines follow each other in a daemon's log."""
    text = "\n".join(lines)
    wait_until(lambda: text in "\n".join(log_lines(daemon)), f"lines {lines}")


def wait_in_order(daemon, *lines):
    """Wait until these lines come one after the other, whatever is between."""

    def found():
        rest = iter(log_lines(daemon))
        return all(line in rest for line in lines)

    wait_until(found, f"lines {lines}")


def test_vv_under_load(pair):
    vm1, vm2 = pair
    with Daemon(vm1, "-vv") as one, Daemon(vm2, "-vv") as two:
        introduce(one, two)
        send_tcp(vm1, vm2, vm2.address, 4 << 20)
        send_tcp(vm2, vm1, vm1.address, 4 << 20)
        assert_none_lost(one, two)


@pytest.mark.parametrize("switched_off", [*zip(OFFLOADS), OFFLOADS])
def test_without_kernel_offloads(pair, switched_off):
    vm1, vm2 = pair
    options = [word for name in switched_off for word in ("--no-offload", name)]
    with Daemon(vm1, *options) as one, Daemon(vm2, *options) as two:
        introduce(one, two)
        talk(vm1, vm2, vm2.address)
        talk(vm2, vm1, vm1.address)
        assert_none_lost(one, two)
        status = one.status()
        offloads = status["interface"]["offloads"]
        used = {*offloads["udp"], *(name.rstrip("46") for name in offloads["tun"])}
        assert used.isdisjoint(switched_off)
        for name in switched_off:
            assert f"offload {name} is switched off: slower" in status["health"]


def test_one_end_without_offloads(pair):
    vm1, vm2 = pair
    options = [word for name in OFFLOADS for word in ("--no-offload", name)]
    with Daemon(vm1, *options) as one, Daemon(vm2) as two:
        introduce(one, two)
        talk(vm1, vm2, vm2.address)
        talk(vm2, vm1, vm1.address)
        assert_none_lost(one, two)


@pytest.mark.parametrize("mode", ["adaptive", "plain"])
def test_status_has_what_scripts_rely_on(pair, mode):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two, mode=mode)
        ping(vm1, vm2.address)
        status = json.loads(one.cli("status", "--json").stdout)
        assert status["schema"] == 1
        assert status.keys() >= STATUS_KEYS
        assert status["interface"]["name"] == "alpha0"
        (entry,) = status["peers"]
        assert entry.keys() >= PEER_KEYS
        assert (entry["endpoint"], entry["state"]) == (
            "192.168.10.61:1234",
            "established",
        )
        assert entry["allowed"] == ["192.168.10.61/32"]
        assert entry["tx_bytes"] == entry["rx_bytes"] == 84
        assert 0 < entry["rtt_ms"] < 1000
        assert entry["mode"] == ("plain" if mode == "plain" else "alpha")
        assert (entry["rounds"]["n"] > 0) == (mode == "adaptive")
        warned = [line for line in status["health"] if "neither authenticated" in line]
        assert len(warned) == (mode == "plain")


# Part of the traffic only


@pytest.mark.parametrize("backend", ["rules", "marks"])
@pytest.mark.strict
def test_only_what_was_selected_takes_the_tunnel(pair, backend):
    vm1, vm2 = pair
    before = [host.snapshot() for host in pair]
    config = f'[routing]\nbackend = "{backend}"\n'
    with Daemon(vm1, config=config) as one, Daemon(vm2, config=config) as two:
        one.cli("peers", "add", "vm2", vm2.address, "--only", "udp")
        two.cli("peers", "add", "vm1", vm1.address, "--only", "udp")
        with Tap(vm1) as tap:
            send_udp(vm1, vm2, vm2.address, b"in")
            assert_only_tunnel(tap.packets())
        for daemon, name in ((one, "vm2"), (two, "vm1")):
            wait_until(
                lambda at=daemon, of=name: peer(at, of)["mtu_source"] == "probed",
                "the end of the probes of the path",
            )
        with Tap(vm1) as tap:
            ping(vm1, vm2.address)
            send_tcp(vm1, vm2, vm2.address)
            assert not any(packet.is_tunnel for packet in tap.packets())
        assert peer(one, "vm2")["tx_packets"] == 1
    assert [host.snapshot() for host in pair] == before


@pytest.mark.parametrize("backend", ["marks", "none"])
@pytest.mark.strict
def test_other_ways_to_lead_packets_into_the_tunnel(pair, backend):
    vm1, vm2 = pair
    before = [host.snapshot() for host in pair]
    config = f'[routing]\nbackend = "{backend}"\n'
    with (
        Daemon(vm1, "--address", "10.9.0.1/24", config=config) as one,
        Daemon(vm2, "--address", "10.9.0.2/24", config=config) as two,
    ):
        add(one, "vm2", vm2.address, allow=["10.9.0.2"])
        add(two, "vm1", vm1.address, allow=["10.9.0.1"])
        with Tap(vm1) as tap:
            talk(vm1, vm2, "10.9.0.2")
            assert_only_tunnel(tap.packets())
        assert_none_lost(one, two)
    assert [host.snapshot() for host in pair] == before


# Addresses of its own, and prefixes behind a peer


@pytest.mark.strict
def test_an_overlay_of_its_own(pair):
    vm1, vm2 = pair
    with (
        Daemon(vm1, "--address", "10.9.0.1/24", "--address", "fd09::1/64") as one,
        Daemon(vm2, "--address", "10.9.0.2/24", "--address", "fd09::2/64") as two,
    ):
        one.cli(
            *("peers", "add", "vm2", vm2.address),
            *("--allow", "10.9.0.2/32", "--allow", "fd09::2/128"),
        )
        two.cli(
            *("peers", "add", "vm1", vm1.address),
            *("--allow", "10.9.0.1/32", "--allow", "fd09::1/128"),
        )
        with Tap(vm1) as tap:
            talk(vm1, vm2, "10.9.0.2")
            talk(vm1, vm2, "fd09::2")
            assert_only_tunnel(tap.packets())
            ping(vm1, vm2.address)  # not of the overlay: past the tunnel
            assert not all(p.is_tunnel or p.is_of_the_link for p in tap.packets())
        assert_none_lost(one, two)


def test_an_inner_source_that_is_not_the_peers_is_dropped(pair):
    vm1, vm2 = pair
    with (
        Daemon(vm1, "--address", "10.9.0.1/24") as one,
        Daemon(vm2, "--address", "10.9.0.2/24", "--address", "10.9.0.99/24") as two,
    ):
        add(one, "vm2", vm2.address, allow=["10.9.0.2/32"])
        add(two, "vm1", vm1.address, allow=["10.9.0.1/32"])
        ping(vm2, "10.9.0.1", "-I", "10.9.0.2")
        received = peer(one, "vm2")["rx_packets"]
        quick = ("-I", "10.9.0.99", "-W", "0.2")
        assert ping(vm2, "10.9.0.1", *quick, check=False) is None
        wait_drop(one, "wrong-source", "vm2")
        assert peer(one, "vm2")["rx_packets"] == received


def test_a_destination_of_no_peer_is_answered_unreachable(pair):
    vm1, vm2 = pair
    with Daemon(vm1, "--address", "10.9.0.1/24") as one:
        add(one, "vm2", vm2.address, allow=["10.9.0.2/32"])
        done = vm1.run("ping", "-n", "-c", "1", "-W", "2", "10.9.0.7", check=False)
        assert "Destination Host Unreachable" in done.stdout
        assert drops(one)["no-peer"] == 1


@pytest.mark.strict
def test_everything_through_a_peer_but_what_has_a_better_route(lab):
    """vm1 === r1 --- vm2: vm1 reaches 203.0.113.5, at vm2, by the tunnel to r1."""
    vm1, r1, vm2 = lab.chain()
    vm1.run("ip", "route", "add", "default", "via", "192.168.10.2")
    vm2.run("ip", "addr", "add", "203.0.113.5/32", "dev", "lo")
    r1.run("ip", "route", "add", "203.0.113.5", "via", vm2.address)
    before = vm1.snapshot()
    with Daemon(vm1) as one, Daemon(r1) as two:
        add(one, "r1", "192.168.10.2", allow=["0.0.0.0/0"])
        add(two, "vm1", vm1.address)
        with Tap(vm1) as tap:
            assert "ttl=63" in ping(vm1, "203.0.113.5")
            send_tcp(vm1, vm2, "203.0.113.5")
            assert_only_tunnel(tap.packets())
            with vm1.socket() as outbound:  # 192.168.11.0/24 is in the main table
                outbound.sendto(b"", (vm2.address, 9))
            assert vm2.address in [packet.destination for packet in tap.packets()]
    assert vm1.snapshot() == before
