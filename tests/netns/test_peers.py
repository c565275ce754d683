"""Peers come, change and go while the daemon runs, and trouble no other peer.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61 (=== vm3 192.168.10.62 ...)
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.netns.traffic import (
    Tap,
    add,
    assert_none_lost,
    assert_only_tunnel,
    drops,
    flowing,
    introduce,
    peer,
    ping,
    prepared,
    tcp_timeouts,
)
from tools.daemons import Daemon
from tools.lab import Lab, wait_until

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def running():
    """Daemons on two hosts, for tests that leave them as they are but for the peers."""
    with Lab(strict=False) as lab:
        vm1, vm2 = lab.lan(2)
        with Daemon(vm1) as one, Daemon(vm2) as two:
            yield one, two


@pytest.fixture
def daemons(running):
    """Running on both hosts, without peers."""
    yield running
    for daemon in running:
        for name in names(daemon):
            daemon.request("peers.remove", name=name)


def names(daemon):
    return [peer["name"] for peer in daemon.status()["peers"]]


def refused(daemon, *arguments, code=1):
    """The one line a command that fails says."""
    done = daemon.cli(*arguments, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("alpha-trio: ")
    return line


def test_wait_asks_for_the_session_it_waits_for(daemons):
    one, two = daemons
    introduce(one, two)
    assert peer(one, "vm2")["state"] == "idle"
    one.cli("wait", "vm2", "--timeout", "10")
    entry = peer(one, "vm2")
    assert (entry["state"], entry["tx_packets"]) == ("established", 0)
    one.cli("wait", "vm2", "--timeout", "10")  # there is nothing left to wait for


# At once, and nobody else's packets


def test_ten_peers_come_and_go_beside_a_busy_one(daemons):
    one, two = daemons
    vm1, vm2 = one.host, two.host
    introduce(one, two)
    ping(vm1, vm2.address)
    before = tcp_timeouts(vm1)
    with flowing(vm1, vm2, vm2.address) as stream:
        for number in range(1, 11):
            add(one, f"other{number}", f"192.168.10.{100 + number}")
            arrived = stream.received
            wait_until(lambda: stream.received > arrived, "more data")  # noqa: B023
        assert len(names(one)) == 11
        for number in range(1, 11):
            one.request("peers.remove", name=f"other{number}")
            arrived = stream.received
            wait_until(lambda: stream.received > arrived, "more data")  # noqa: B023
    assert tcp_timeouts(vm1) == before
    assert_none_lost(one, two)


def test_a_removed_peer_is_reached_past_the_tunnel(daemons):
    one, two = daemons
    vm1, vm2 = one.host, two.host
    introduce(one, two)
    ping(vm1, vm2.address)
    one.cli("peers", "remove", "vm2")
    two.cli("peers", "del", "vm1")
    ping(vm1, vm2.address)
    assert names(one) == names(two) == []


def test_peers_survive_a_restart(daemons):
    one, _ = daemons
    settings = "--only", "udp/5000-6000", "--keepalive", "25"
    one.cli("peers", "add", "vm2", "192.168.10.61", *settings)
    shown = json.loads(one.cli("peers", "show", "vm2", "--json").stdout)
    assert one.stop() == 0
    one.start()
    assert json.loads(one.cli("peers", "show", "vm2", "--json").stdout) == shown
    one.cli("peers", "remove", "vm2")
    one.kill9()
    one.start()
    assert names(one) == []


def test_adding_again_changes_nothing_or_is_refused(daemons):
    one, _ = daemons
    one.cli("peers", "add", "vm2", "192.168.10.61")
    one.cli("peers", "add", "vm2", "192.168.10.61")
    line = refused(one, "peers", "add", "vm2", "192.168.10.77")
    assert "peers set vm2" in line
    assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.61"


def test_set_moves_a_peer(daemons):
    one, two = daemons
    vm1, vm2 = one.host, two.host
    introduce(one, two)
    one.cli("peers", "set", "vm2", "192.168.10.99")
    assert peer(one, "vm2")["allowed"] == ["192.168.10.99/32"]
    one.cli("peers", "set", "vm2", vm2.address)
    ping(vm1, vm2.address)
    assert peer(one, "vm2")["state"] == "established"


def test_a_changed_setting_keeps_the_session(daemons):
    one, two = daemons
    vm1, vm2 = one.host, two.host
    introduce(one, two)
    ping(vm1, vm2.address)
    before = one.log
    one.cli("peers", "set", "vm2", "--keepalive", "20")
    ping(vm1, vm2.address)
    assert "handshake" not in one.log.removeprefix(before)


def test_early_data_is_switched_while_packets_flow_and_none_is_lost(daemons):
    one, two = daemons
    introduce(one, two)
    ping(one.host, two.host.address)
    wait_until(lambda: peer(two, "vm1")["early_received"], "an early packet")
    for switch, states in (("off", ["off-here", "off-peer"]), ("on", ["on", "on"])):
        with flowing(one.host, two.host, two.host.address):
            one.cli("peers", "set", "vm2", "--early", switch)
            wait_states(one, two, states)
    assert_none_lost(one, two)


def wait_states(one, two, states):
    wait_until(lambda: [early(one), early(two)] == states, f"early data: {states}")


def early(daemon):
    (found,) = daemon.status()["peers"]
    return found["early_state"]


def test_a_handshake_under_way_begins_anew_when_early_data_is_switched(daemons):
    one, two = daemons
    add(one, "vm2", two.host.address)
    one.cli("wait", "vm2", "--timeout", "0.1", check=False)  # it does not know us
    one.cli("peers", "set", "vm2", "--early", "off")
    add(two, "vm1", one.host.address)
    one.cli("wait", "vm2", "--timeout", "10")
    wait_states(one, two, ["off-here", "off-peer"])


def test_without_a_session_a_change_of_early_asks_for_none(daemons):
    one, two = daemons
    before = one.log
    add(one, "vm2", two.host.address)
    one.cli("peers", "set", "vm2", "--early", "off")
    assert peer(one, "vm2")["state"] == "idle"
    assert "SYN" not in one.log.removeprefix(before)


def test_three_hosts_are_peers_of_each_other(lab):
    hosts = lab.lan(3)
    daemons = [Daemon(host) for host in hosts]
    with daemons[0], daemons[1], daemons[2]:
        for daemon in daemons:
            for other in hosts:
                if other is not daemon.host:
                    add(daemon, other.name, other.address)
        for source in hosts:
            for target in hosts:
                if source is not target:
                    ping(source, target.address, count=3)
        for daemon in daemons:
            counts = [(p["tx_packets"], p["rx_packets"]) for p in peers(daemon)]
            assert counts == [(6, 6), (6, 6)]


def peers(daemon):
    return daemon.status()["peers"]


@pytest.mark.parametrize("second", ["192.168.10.71", "fd00:10::71"])
def test_answers_leave_from_the_address_that_was_asked(daemons, second):
    one, two = daemons
    vm1, vm2 = one.host, two.host
    length, own = ("24", vm1.address) if "." in second else ("64", vm1.address6)
    vm2.run("ip", "addr", "add", f"{second}/{length}", "dev", "eth0")
    add(one, "vm2", second)
    add(two, "vm1", own)
    with Tap(vm1) as tap:
        ping(vm1, second)
        assert_only_tunnel(tap.packets())
    assert drops(one, "vm2") == {}
    vm2.run("ip", "addr", "del", f"{second}/{length}", "dev", "eth0")


def test_a_peer_with_keepalive_needs_no_traffic(daemons):
    one, two = daemons
    introduce(one, two, keepalive=30)
    one.cli("wait", "vm2", "--timeout", "10")
    assert peer(one, "vm2")["tx_packets"] == 0


# What cannot be


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("add me 127.0.0.1", "127.0.0.1"),
        ("add other 192.168.10.300", "192.168.10.300"),
        ("add other 192.168.10.62:99999", "99999"),
        ("add other 192.168.10.62 --allow 10.0.0.0/33", "10.0.0.0/33"),
        ("add other 192.168.10.62 --allow 10.0.0.1/8", "10.0.0.1/8"),
        ("add other 192.168.10.62 --only tcp/80-79", "tcp/80-79"),
        ("add other 192.168.10.62 --only nonsense", "nonsense"),
        ("add other 192.168.10.62 --key short", "key"),
        ("add other 192.168.10.62 --keepalive -1", "-1"),
        ("add .. 192.168.10.62", ".."),
        ("add other fe80::1", "fe80::1"),
        ("add other 0.0.0.0", "0.0.0.0"),
        ("add other 255.255.255.255", "255.255.255.255"),
        ("add other ::", "::"),
        ("add other ff02::1", "ff02::1"),
    ],
)
def test_nonsense_is_wrong_usage_and_changes_nothing(started, command, complaint):
    before = started.status()["peers"]
    assert complaint in refused(started, "peers", *command.split(), code=2)
    assert started.status()["peers"] == before


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("add me 192.168.10.60", "192.168.10.60 is an address of this host"),
        ("add me fd00:10::60", "fd00:10::60 is an address of this host"),
        ("add other 192.168.10.61", "vm2 and other both have endpoint"),
        ("add other 192.168.10.62 --allow 10.7.0.0/16", "10.7.0.0/16"),
        ("add other 192.168.10.255", "192.168.10.255 is the broadcast address"),
        ("add other ::ffff:192.168.10.255", "the broadcast address of a link"),
        ("set vm2 192.168.10.255", "192.168.10.255 is the broadcast address"),
        ("set vm2 192.168.10.60", "192.168.10.60 is an address of this host"),
    ],
)
def test_what_this_host_cannot_have_is_refused_and_changes_nothing(
    started, command, complaint
):
    before = started.status()["peers"]
    assert complaint in refused(started, "peers", *command.split())
    assert started.status()["peers"] == before


@pytest.fixture(scope="module")
def started():
    """A daemon with one peer, for tests that change nothing."""
    with Lab() as lab:
        vm1, vm2 = lab.lan(2)
        with Daemon(vm1) as one:
            add(one, "vm2", vm2.address, allow=[vm2.address, "10.7.0.0/16"])
            yield one


@pytest.mark.parametrize("command", ["remove", "show", "set"])
def test_an_unknown_peer_has_an_exit_code_of_its_own(started, command):
    more = ["--keepalive", "5"] if command == "set" else []
    assert "nobody" in refused(started, "peers", command, "nobody", *more, code=4)


def test_a_prefix_is_taken_over_only_when_asked_to(daemons):
    one, _ = daemons
    add(one, "vm2", "192.168.10.61", allow=["10.7.0.0/16", "10.8.0.0/16"])
    command = ("peers", "add", "vm3", "192.168.10.62", "--allow", "10.7.0.0/16")
    line = refused(one, *command)
    assert "peers vm2 and vm3 both have prefix 10.7.0.0/16; " in line
    assert "--take-over" in line
    assert names(one) == ["vm2"]
    one.cli(*command, "--take-over")
    assert peer(one, "vm2")["allowed"] == ["10.8.0.0/16"]
    assert peer(one, "vm3")["allowed"] == ["10.7.0.0/16"]


def test_the_address_a_peer_has_by_default_is_taken_over_as_well(daemons):
    one, _ = daemons
    add(one, "vm2", "192.168.10.61", allow=["192.168.10.71", "10.8.0.0/16"])
    command = ("peers", "add", "vm3", "192.168.10.71")
    assert "both have prefix 192.168.10.71/32" in refused(one, *command)
    one.cli(*command, "--take-over")
    assert peer(one, "vm2")["allowed"] == ["10.8.0.0/16"]
    assert peer(one, "vm3")["allowed"] == ["192.168.10.71/32"]


# What routing refuses


@pytest.fixture
def refusing(pair):
    """A daemon and its peer, whose route the kernel refuses, as the link is down."""
    with Daemon(pair[0]) as one, Daemon(pair[1]) as two:
        introduce(one, two)
        one.host.run("ip", "link", "set", "alpha0", "down")
        wait_until(lambda: peer(one, "vm2")["reason"], "a reason")
        yield one


def test_a_route_that_is_refused_is_told_until_it_is_there(refusing):
    reason = peer(refusing, "vm2")["reason"]
    assert reason.startswith("route to 192.168.10.61/32 in table 5182: ")
    health = f"peer vm2: not all its packets take the tunnel: {reason}"
    assert health in refusing.status()["health"]
    assert refusing.log.count("Not all packets for vm2 take the tunnel") == 1
    refusing.host.run("ip", "link", "set", "alpha0", "up")
    wait_until(lambda: peer(refusing, "vm2")["reason"] is None, "no reason")
    assert health not in refusing.status()["health"]
    ping(refusing.host, "192.168.10.61")


def test_a_refused_route_blocks_no_change_but_that_which_asks_for_it(refusing):
    refusing.cli("peers", "add", "other", "nowhere.invalid", "--keepalive", "5")
    refusing.cli("peers", "set", "vm2", "--keepalive", "20")
    new = '[peers.new]\nendpoint = "nowhere-else.invalid"\n'
    refusing.config_file.write_text(new)
    refusing.cli("reload")
    assert names(refusing) == ["vm2", "other", "new"]
    line = refused(refusing, "peers", "add", "vm3", "192.168.10.62")
    assert "route to 192.168.10.62/32" in line
    line = refused(refusing, "peers", "set", "vm2", "--allow", "10.7.0.0/16")
    assert "route to 10.7.0.0/16" in line
    refusing.config_file.write_text('[peers.new]\nendpoint = "192.168.10.63"\n')
    assert "route to 192.168.10.63/32" in refused(refusing, "reload")
    assert names(refusing) == ["vm2", "other", "new"]
    assert peer(refusing, "vm2")["allowed"] == ["192.168.10.61/32"]


# Names


@pytest.fixture
def named(pair):
    """vm1 as it reads a file of ours for /etc/hosts, and that file."""
    return with_names(pair[0])


def with_names(host):
    hosts = host.directory / "hosts"
    hosts.write_text("")
    return prepared(host, f"mount --bind {hosts} /etc/hosts"), hosts


@pytest.fixture(scope="module")
def asking():
    """A daemon with one peer, and the file in which it finds names."""
    with Lab(strict=False) as lab:
        vm1, hosts = with_names(lab.lan(2)[0])
        with Daemon(vm1) as one:
            add(one, "vm2", "192.168.10.61", allow=["192.168.10.61", "192.168.10.77"])
            yield one, hosts


def test_a_name_is_resolved_in_the_background(pair, named):
    _, vm2 = pair
    vm1, hosts = named
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        one.cli("peers", "add", "vm2")
        wait_until(lambda: peer(one, "vm2")["reason"], "a reason")
        assert peer(one, "vm2")["state"] == "resolving"
        assert "cannot resolve vm2" in peer(one, "vm2")["reason"]
        assert one.log.count("Cannot resolve vm2") == 1
        hosts.write_text(f"{vm2.address} vm2\n")
        one.wait_log(f"vm2 is {vm2.address}.", timeout=20)
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["state"] == "established"
        assert peer(one, "vm2")["reason"] is None
        assert peer(one, "vm2")["configured_endpoint"] == "vm2"


def test_all_addresses_of_a_name_are_tried(pair, named):
    _, vm2 = pair
    vm1, hosts = named
    hosts.write_text("192.168.10.62 far\n192.168.10.99 far\n")  # in this order
    vm2.run("ip", "addr", "add", "192.168.10.99/24", "dev", "eth0")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        one.cli("peers", "add", "far")
        one.wait_log("far is 192.168.10.62, 192.168.10.99.")
        ping(vm1, "192.168.10.99", "-W", "15")
        assert peer(one, "far")["endpoint"] == "192.168.10.99:1234"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("fe80::1", "fe80::1 is valid on one link only"),
        ("ff02::1", "ff02::1 is not the address of one host"),
        ("224.0.0.1", "224.0.0.1 is not the address of one host"),
        ("0.0.0.0", "0.0.0.0 is not the address of one host"),
        ("255.255.255.255", "255.255.255.255 is not the address of one host"),
        ("::", ":: is not the address of one host"),
        ("192.168.10.255", "192.168.10.255 is a broadcast address"),
        ("127.0.1.1", "127.0.1.1 is an address of this host"),
        ("192.168.10.60", "192.168.10.60 is an address of this host"),
        ("::ffff:192.168.10.60", "192.168.10.60 is an address of this host"),
        ("192.168.10.61", "192.168.10.61 belongs to peer vm2"),
        ("::ffff:192.168.10.61", "192.168.10.61 belongs to peer vm2"),
        ("192.168.10.77", "192.168.10.77 belongs to peer vm2"),
    ],
)
def test_an_answer_that_could_not_be_typed_is_left_out(asking, answer, complaint):
    one, hosts = asking
    hosts.write_text(f"{answer} other\n")
    add(one, "other", "other")
    wait_until(lambda: peer(one, "other")["reason"], "a reason")
    entry = peer(one, "other")
    assert (entry["state"], entry["allowed"]) == ("resolving", [])
    assert entry["reason"].startswith(f"cannot resolve other: {complaint}")
    add(one, "vm3", "192.168.10.62")
    for name in ("other", "vm3"):
        one.request("peers.remove", name=name)


def test_a_name_with_usable_answers_has_only_those(named):
    vm1, hosts = named
    hosts.write_text("192.168.10.61 far\n224.0.0.1 far\n192.168.10.63 far\n")
    with Daemon(vm1) as one:
        add(one, "vm2", "192.168.10.61")
        add(one, "far", "far")
        one.wait_log("far is 192.168.10.63.")
        assert peer(one, "far")["allowed"] == ["192.168.10.63/32"]
        assert peer(one, "far")["reason"] is None


def test_an_endpoint_of_another_peer_is_no_answer_either(named):
    vm1, hosts = named
    hosts.write_text("192.168.10.61 other\n")
    with Daemon(vm1) as one:
        add(one, "vm2", "192.168.10.61", allow=["10.7.0.0/16"])
        add(one, "other", "other", allow=["10.8.0.0/16"])
        wait_until(lambda: peer(one, "other")["reason"], "a reason")
        assert "192.168.10.61 belongs to peer vm2" in peer(one, "other")["reason"]


def test_what_a_name_stands_for_belongs_to_its_peer(named):
    vm1, hosts = named
    hosts.write_text("192.168.10.63 far\n")
    with Daemon(vm1) as one:
        add(one, "far", "far")
        one.wait_log("far is 192.168.10.63.")
        line = refused(one, "peers", "add", "vm2", "192.168.10.63")
        assert "peers far and vm2 both have prefix 192.168.10.63/32" in line
        one.config_file.write_text('[peers.vm2]\nendpoint = "192.168.10.63"\n')
        assert "both have prefix 192.168.10.63/32" in refused(one, "reload")
        assert names(one) == ["far"]


def test_a_name_that_routing_refuses_blocks_no_other_peer(named):
    vm1, hosts = named
    hosts.write_text("192.168.10.63 far\n")
    with Daemon(vm1) as one:
        add(one, "far", "far", only=["tcp/1024-65535"])  # which no rule can take
        wait_until(lambda: peer(one, "far")["reason"], "a reason")
        assert "ports 1024-65535 cannot be selected" in peer(one, "far")["reason"]
        assert peer(one, "far")["state"] == "resolving"
        add(one, "vm2", "192.168.10.61")
        assert peer(one, "vm2")["reason"] is None


# The config file


def test_reload_applies_the_difference_and_loses_nothing(pair):
    vm1, vm2 = pair
    kept = f'[peers.vm2]\nendpoint = "{vm2.address}"\n'
    old = '[peers.old]\nendpoint = "192.168.10.70"\n'
    moved = '[peers.moved]\nendpoint = "192.168.10.7{}"\n'
    new = '[peers.new]\nendpoint = "192.168.10.73"\n'
    with Daemon(vm1, config=kept + old + moved.format(1)) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        pinging = vm1.popen(
            *f"ping -q -i 0.002 -c 400 {vm2.address}".split(), stdout=-1
        )
        one.reload(kept + moved.format(2) + new)
        one.wait_log("Reloaded: 1 added, 1 changed, 1 removed.")
        assert "Received SIGHUP!" in one.log
        assert names(one) == ["vm2", "moved", "new"]
        assert peer(one, "moved")["configured_endpoint"] == "192.168.10.72"
        one.config_file.write_text(kept)
        one.cli("reload")
        assert names(one) == ["vm2"]
        assert "400 received, 0% packet loss" in pinging.communicate(timeout=20)[0]
        assert_none_lost(one, two)


def test_a_bad_config_file_changes_nothing_and_says_where(pair):
    good = '[peers.vm2]\nendpoint = "192.168.10.61"\n'
    with Daemon(pair[0], config=good) as one:
        one.reload(good + "[peers.vm3]\nendpoint = 7\n")
        one.wait_log("Nothing was changed")
        assert names(one) == ["vm2"]
        line = refused(one, "reload")
        assert re.search(r"alpha-trio\.toml:4: peers\.vm3\.endpoint: ", line)
        one.config_file.write_text("[peers")
        assert "alpha-trio.toml" in refused(one, "reload")
        assert names(one) == ["vm2"]


def test_a_peer_of_the_config_file_is_changed_there_only(pair):
    with Daemon(pair[0], config='[peers.vm2]\nendpoint = "192.168.10.61"\n') as one:
        assert "alpha-trio.toml" in refused(one, "peers", "remove", "vm2")
        assert "alpha-trio.toml" in refused(one, "peers", "set", "vm2", "192.168.10.9")
        assert peer(one, "vm2")["endpoint"] == "192.168.10.61:1234"


def test_the_config_file_hides_a_peer_added_by_command_but_loses_it_not(pair):
    with Daemon(pair[0]) as one:
        one.cli("peers", "add", "vm2", "192.168.10.61")
        one.config_file.write_text('[peers.vm2]\nendpoint = "192.168.10.77"\n')
        one.cli("reload")
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.77"
        one.cli("peers", "add", "vm3", "192.168.10.62")  # saves the hidden one, too
        assert one.stop() == 0
        one.start()
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.77"
        one.config_file.write_text("")
        one.cli("reload")
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.61"
        assert sorted(names(one)) == ["vm2", "vm3"]


def test_a_hidden_peer_that_would_clash_when_it_returns_is_refused(pair):
    hiding = '[peers.vm2]\nendpoint = "192.168.10.77"\n'
    with Daemon(pair[0]) as one:
        one.cli("peers", "add", "vm2", "192.168.10.61")
        one.config_file.write_text(hiding)
        one.cli("reload")
        one.config_file.write_text('[peers.other]\nendpoint = "192.168.10.61"\n')
        assert "and vm2 (added by command" in refused(one, "reload")
        assert names(one) == ["vm2"]
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.77"


def unroutable():
    """A peer of the config file that passes every check but that of routing."""
    allow = [f"10.{length}.0.0/{length}" for length in range(16, 28)]
    return f'[peers.many]\nendpoint = "192.168.10.70"\nallow = {json.dumps(allow)}\n'


def test_a_reload_that_routing_refuses_forgets_no_pinned_key(pair):
    vm1, vm2 = pair
    config = f'[peers.vm2]\nendpoint = "{vm2.address}"\n'
    with Daemon(vm1, config=config) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        one.cli("wait", "vm2", "--timeout", "10")
        key = two.status()["key"]
        one.config_file.write_text(unroutable())
        assert "different lengths" in refused(one, "reload")
        assert names(one) == ["vm2"]
        assert peer(one, "vm2")["key_source"] == "pinned"
        assert peer(one, "vm2")["key"] == key
        one.config_file.write_text(config)
        assert one.stop() == 0
        one.start()
        assert peer(one, "vm2")["key"] == key


def test_a_reload_that_routing_refuses_loses_no_hidden_peer(pair):
    hiding = '[peers.vm2]\nendpoint = "192.168.10.77"\n'
    with Daemon(pair[0]) as one:
        one.cli("peers", "add", "vm2", "192.168.10.61")
        one.config_file.write_text(hiding)
        one.cli("reload")
        one.config_file.write_text(unroutable())
        assert "different lengths" in refused(one, "reload")
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.77"
        one.config_file.write_text("")
        one.cli("reload")
        assert peer(one, "vm2")["configured_endpoint"] == "192.168.10.61"


def test_own_address_in_a_reloaded_file_is_refused(pair):
    with Daemon(pair[0]) as one:
        one.config_file.write_text('[peers.me]\nendpoint = "192.168.10.60"\n')
        assert "is an address of this host" in refused(one, "reload")
        assert names(one) == []


def test_a_broadcast_address_in_a_file_is_told_and_never_asked(pair):
    vm1, _ = pair
    config = '[peers.all]\nendpoint = "192.168.10.255"\nkeepalive = 1\n'
    with Tap(vm1) as tap, Daemon(vm1, config=config) as one:
        wait_until(lambda: peer(one, "all")["reason"], "a reason")
        assert "192.168.10.255 is the broadcast address" in peer(one, "all")["reason"]
        one.wait_log("Cannot send to 192.168.10.255")
        vm1.run("ip", "addr", "add", "192.168.77.1/24", "dev", "eth0")
        one.config_file.write_text('[peers.all]\nendpoint = "192.168.77.255"\n')
        assert "is the broadcast address" in refused(one, "reload")
        assert not any(packet.is_tunnel for packet in tap.packets())


def test_an_address_that_becomes_one_of_broadcast_is_told(pair):
    vm1, _ = pair
    with Daemon(vm1) as one:
        add(one, "vm3", "192.168.77.255")
        vm1.run("ip", "addr", "add", "192.168.77.1/24", "dev", "eth0")
        wait_until(lambda: "broadcast" in (peer(one, "vm3")["reason"] or ""), "a word")


def test_a_reload_minds_only_what_it_changes(pair):
    own = '[peers.me]\nendpoint = "192.168.10.60"\n'
    with Daemon(pair[0], config=own) as one:
        assert "own address" in peer(one, "me")["reason"]
        one.config_file.write_text(own + '[peers.vm2]\nendpoint = "192.168.10.61"\n')
        one.cli("reload")
        assert names(one) == ["me", "vm2"]
        one.config_file.write_text(own + "port = 1300\n")
        assert "is an address of this host" in refused(one, "reload")
        assert names(one) == ["me", "vm2"]


# From one daemon to another

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PSK = "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs="


def exported(daemon, *options):
    return daemon.cli("peers", "export", *options).stdout


def imported(daemon, text, *options, code=0):
    """What an import of this text says; a refusal is one line."""
    path = daemon.host.directory / "peers.toml"
    path.write_text(text)
    arguments = ("peers", "import", str(path), *options)
    if code:
        return refused(daemon, *arguments, code=code)
    return daemon.cli(*arguments).stdout


@pytest.fixture
def psk_file(tmp_path):
    path = tmp_path / "a psk"
    path.write_text(PSK)
    path.chmod(0o600)
    return path


def test_what_was_exported_is_imported_as_it_was_and_exported_again(daemons, psk_file):
    one, two = daemons
    everything = {
        "port": 5555,
        "key": KEY,
        "allow": ["10.7.0.0/16", "fd00:7::/64"],
        "only": ["tcp/80-90", "udp", "icmp"],
        "keepalive": 2.5,
        "reliable": True,
        "early": False,
        "mtu": 1300,
    }
    add(one, "vm3.example.org", "192.168.10.63", **everything)
    add(one, "a", "2001:db8::1", mode="cm")
    one.request(
        "peers.add", name="laptop", settings={"key": KEY, "allow": ["10.8.0.1"]}
    )
    one.cli("peers", "add", "secret", "192.168.10.64", "--psk-file", str(psk_file))
    text = exported(one)
    assert PSK not in text
    names = ["a", "laptop", "secret", "vm3.example.org"]
    assert re.findall(r'^\[peers\."?(.*?)"?\]$', text, re.M) == names
    assert imported(two, text) == f"added: {', '.join(names)}\n"
    assert exported(two) == text
    assert {p["name"]: p for p in peers(two)} == {p["name"]: p for p in peers(one)}
    assert imported(two, text) == f"unchanged: {', '.join(names)}\n"
    two.config_file.write_text(text)
    assert "has 4 peers" in two.cli("check", str(two.config_file)).stdout
    two.config_file.write_text("")


def test_only_the_peers_named_are_exported_and_pinned_keys_when_asked_for(daemons):
    one, two = daemons
    introduce(one, two)
    add(one, "vm3", "192.168.10.63")
    one.cli("wait", "vm2", "--timeout", "10")
    key = two.status()["key"]
    table = '[peers.vm2]\nendpoint = "192.168.10.61"\n'
    assert exported(one, "vm2") == table
    pinned = f'{table}key = "{key}"\n'
    assert exported(one, "vm2", "--pinned") == pinned
    assert "nobody" in refused(one, "peers", "export", "vm2", "nobody", code=4)
    assert "--replace" in imported(one, pinned, code=1)
    assert imported(one, pinned, "--replace") == "changed: vm2\n"
    assert peer(one, "vm2")["key_source"] == "configured"
    one.cli("wait", "vm2", "--timeout", "10")


def test_an_import_changes_all_or_nothing(daemons):
    one, _ = daemons
    add(one, "vm2", "192.168.10.61", allow=["10.7.0.0/16", "10.8.0.0/16"])
    add(one, "vm3", "192.168.10.62", keepalive=25)
    before = exported(one)
    new = '[peers.vm4]\nendpoint = "192.168.10.63"\n'
    other = '[peers.vm3]\nendpoint = "192.168.10.62"\n[peers.vm2]\nport = 5\n'
    for text, said in (
        (new + other, "peers vm3, vm2 are there with other settings"),
        (new + '[peers.me]\nendpoint = "192.168.10.60"\n', "an address of this host"),
        (new + 'allow = ["10.7.0.0/16"]\n', "--take-over"),
        (new + '[peers.vm5]\nendpoint = "x.y"\nallow = ["1.2.3.4/8"]', ":5: peers.vm5"),
        (
            new + 'on_up = ["/bin/true"]',
            "programs are run for peers of the config file",
        ),
        ("port = 1234\n" + new, ":1: port: unknown key; known are peers"),
        (new + new, "Cannot declare"),
        (new + unroutable(), "different lengths"),
    ):
        assert said in imported(one, text, code=1)
        assert exported(one) == before
    taking = new + 'allow = ["10.7.0.0/16", "10.9.0.0/16"]\n'
    assert imported(one, taking, "--take-over") == "added: vm4\n"
    assert peer(one, "vm2")["allowed"] == ["10.8.0.0/16"]


def test_an_import_keeps_what_no_file_of_it_says(pair, psk_file):
    """A psk that came from standard input, and what the config file alone can say."""
    hook = '[peers.vm2]\nendpoint = "192.168.10.61"\non_up = ["/bin/true"]\n'
    with Daemon(pair[0], config=hook) as one:
        add(one, "vm3", "192.168.10.62", psk=PSK)
        text = exported(one)
        assert "# It has on_up, which the config file alone can say" in text
        assert "# It has a psk, which is not printed" in text
        assert PSK not in text
        assert imported(one, text) == "unchanged: vm2, vm3\n"
        assert "alpha-trio.toml" in imported(one, "[peers.vm2]", "--replace", code=1)
        moved = '[peers.vm3]\nendpoint = "192.168.10.63"\n'
        assert imported(one, moved, "--replace") == "changed: vm3\n"
        assert peer(one, "vm3")["psk"] is True
        one.stop()
        one.start()
        assert peer(one, "vm3")["psk"] is True


def test_a_thousand_peers_are_imported_at_once(pair):
    many = "".join(
        f'[peers.p{n:04}]\nendpoint = "10.99.{n >> 8}.{n & 255}"\nkey = "{KEY}"\n'
        for n in range(1, 1001)
    )
    with Daemon(pair[0]) as one:
        assert imported(one, many).count("p0") == 999
        assert exported(one) == many.replace("\n[", "\n\n[")


# An endpoint inside of another's prefix


def test_an_endpoint_in_anothers_prefix_is_told_with_what_becomes_of_it(daemons):
    one, _ = daemons
    add(one, "vm2", "192.168.10.61", allow=["10.7.0.0/16"])
    done = one.cli("peers", "add", "vm3", "10.7.0.5").stdout
    sentence = (
        "its endpoint 10.7.0.5 is in 10.7.0.0/16 of vm2: packets to it take the tunnel "
        "to vm3, the datagrams of the tunnel to vm3 another way past vm2"
    )
    assert f"Note: vm3: {sentence}.\n" in done
    assert peer(one, "vm3")["nested"] == sentence
    for command in ("status", "status vm3", "doctor vm3"):
        page = one.cli(*command.split(), check=False).stdout
        assert sentence in " ".join(page.split()), command
    one.cli("peers", "set", "vm3", "--allow", "10.8.0.0/16")
    assert "packets to it take the tunnel to vm2" in peer(one, "vm3")["nested"]
    assert "Note" not in one.cli("peers", "set", "vm2", "--allow", "10.9.0.0/16").stdout
    assert peer(one, "vm3")["nested"] is None
    done = one.cli("peers", "set", "vm2", "--allow", "10.0.0.0/8").stdout
    assert "Note: in the prefixes of vm2 are the endpoints of vm3: " in done


# What takes effect later


def test_a_reload_names_what_takes_effect_at_the_next_start(pair):
    with Daemon(pair[0], "--dscp", "8") as one:  # which wins at the next start, too
        one.config_file.write_text(
            "port = 4321\ndscp = 46\nlog_format = 'json'\n[relay]\nenabled = true\n"
            "[offloads]\ngro = false\n[peers.vm2]\nendpoint = '192.168.10.61'\n"
        )
        names = "port, relay.enabled, offloads.gro, log_format"
        said = f"Takes effect at the next start: {names}; restart the daemon"
        assert one.cli("reload").stdout.splitlines() == [
            "added: vm2",
            f"{said}, as by 'systemctl restart alpha-trio'.",
        ]
        one.wait_log(f"{said}.")
        assert any(names in line for line in one.status()["health"])
        again = one.cli("reload").stdout
        assert again == f"{said}, as by 'systemctl restart alpha-trio'.\n"
        one.config_file.write_text("")
        assert one.cli("reload").stdout == "removed: vm2\n"
        assert not any("next start" in line for line in one.status()["health"])


# The disk


def with_disk(host, options=""):
    """The host with a disk for the daemon's state alone, and where that is."""
    state = host.directory / "state"
    state.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o mode=0700{options} none {state}"
    return prepared(host, mount), state


def remount(daemon, how, place):
    """Change a mount as the daemon sees it."""
    command = f"nsenter --target {daemon.pid} --mount mount -o remount,{how} {place}"
    daemon.host.run(*command.split())


def test_a_peer_that_cannot_be_saved_is_not_added(pair):
    vm1, vm2 = pair
    vm1, state = with_disk(vm1, ",size=8k")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        many = [f"10.{a}.{b}.0/24" for a in range(8) for b in range(256)]
        with pytest.raises(Exception, match="No space left"):
            add(one, "vm3", "192.168.10.62", allow=many)
        assert names(one) == ["vm2"]
        ping(vm1, vm2.address)
        assert_none_lost(one, two)
        saved = json.loads(Path(f"/proc/{one.pid}/root{state}/peers.json").read_text())
        assert [entry["name"] for entry in saved["peers"]] == ["vm2"]


def test_a_read_only_disk_when_a_peer_is_saved(pair):
    vm1, vm2 = pair
    vm1, state = with_disk(vm1)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        remount(one, "ro", state)
        line = refused(one, "peers", "add", "vm3", "192.168.10.62")
        assert "Read-only file system" in line
        assert "--state-dir" in line
        assert "Read-only" in refused(one, "peers", "remove", "vm2")
        assert names(one) == ["vm2"]
        ping(vm1, vm2.address)
        remount(one, "rw", state)
        one.cli("peers", "add", "vm3", "192.168.10.62")
        assert names(one) == ["vm2", "vm3"]
