"""Routing at work: hosts that talk through real TUNs, and a kernel left as it was.

vm1 192.168.10.60                     vm2 192.168.10.61
  alpha0 --- UDP 1234 === eth0 ------- eth0 === UDP 1234 --- alpha0
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alpha_trio.errors import RoutingError
from alpha_trio.net.routing import cleanup
from alpha_trio.settings import Settings
from alpha_trio.settings.model import RoutingSettings
from tools.daemons import ending
from tools.lab import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.strict]

ROOT = Path(__file__).parents[2]
TCP, UDP, ICMP = 6, 17, 1
TO_VM2 = ["vm2", "192.168.10.61", ["192.168.10.61/32", "fd00:10::61/128"]]
TO_VM1 = ["vm1", "192.168.10.60", ["192.168.10.60/32", "fd00:10::60/128"]]


class Routed:
    """tests/netns/routed.py on a host."""

    def __init__(self, host, path=None, **settings):
        self.host = host
        command = (sys.executable, "-m", "tests.netns.routed", json.dumps(settings))
        if path is not None:  # for the daemon alone, not for what starts it
            command = ("/usr/bin/env", f"PATH={path}", *command)
        self.process = host.popen(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT)},
        )

    def start(self):
        assert self.expect("open") == ""
        return self

    __enter__ = start

    def __exit__(self, *_):
        _, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, errors) == (0, "")

    def apply(self, *peers):
        print(json.dumps(peers), file=self.process.stdin, flush=True)
        return json.loads(self.expect("applied"))

    def settle(self):
        """Read until it has nothing more to adapt to, such as its own addresses."""
        while select.select([self.process.stdout], [], [], 0.5)[0]:
            assert self.process.stdout.readline() == "again\n"

    def mark_stale(self):
        print("stale", file=self.process.stdin, flush=True)

    def expect(self, word):
        """Return the rest of the next line that begins with ``word``."""
        while line := self.process.stdout.readline():
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
            assert first == "again", line
        pytest.fail(self.process.stderr.read())

    def kill(self):
        with self.process:
            self.process.kill()


def refusal(host, **settings):
    """Start a daemon that cannot, and return its last words."""
    routed = Routed(host, **settings)
    _, errors = routed.process.communicate(timeout=20)
    assert routed.process.returncode == 1
    (line,) = errors.splitlines()
    return line


def ip(host, arguments):
    return host.run("ip", *arguments.split()).stdout


def ping(host, address, *options, check=True):
    command = ("ping", "-c", "1", "-W", "2", *options, address)
    return host.run(*command, check=check).returncode == 0


def forget_neighbours(*hosts):
    for host in hosts:
        ip(host, "neigh flush all")


def sent(host, interface="alpha0"):
    """Return how many packets a host has sent by an interface."""
    links = json.loads(ip(host, f"-s -j link show {interface}"))
    return links[0]["stats64"]["tx"]["packets"]


def through_tunnel(host, action):
    """Tell whether ``action()`` made the host send something into the tunnel."""
    before = sent(host)
    action()
    return sent(host) > before


def deny(host, match):
    """Drop what of ``match`` comes in by the link, so that only the tunnel is left."""
    host.lose(1, f"iifname eth0 {match}")


def filter_strictness(host, value):
    for scope in ("all", "default", "eth0"):
        host.sysctl(f"net.ipv4.conf.{scope}.rp_filter", value)


def is_heard(host, output):
    """Whether a program that writes what the kernel tells listens already."""
    ip(host, "addr replace 127.0.0.2/8 dev lo")
    return "127.0.0.2" in output.read_text()


@pytest.mark.parametrize("strictness", [0, 1, 2])
def test_two_hosts_talk_through_the_tunnel_only(pair, strictness):
    vm1, vm2 = pair
    for host in pair:
        filter_strictness(host, strictness)
    before = [host.snapshot() for host in pair]
    with Routed(vm1) as one, Routed(vm2) as two:
        assert one.apply(TO_VM2)["vm2"] == [1448, "192.168.10.60", "eth0", None]
        two.apply(TO_VM1)
        forget_neighbours(*pair)
        # Not even ARP may fail: vm2 asks first, then vm1.
        assert through_tunnel(vm2, lambda: ping(vm2, vm1.address))
        forget_neighbours(*pair)
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address))
        assert ping(vm1, vm2.address, "-s", "8000")  # fragments, which have no ports
        assert ping(vm1, vm2.address, "-M", "do", "-s", str(1448 - 28))
        assert not ping(
            vm1, vm2.address, "-W", "0.2", "-M", "do", "-s", "1421", check=False
        )
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address6))
        assert big_udp_arrives(*pair)
        assert web_answers(*pair, 80)
    assert [host.snapshot() for host in pair] == before


def big_udp_arrives(client, server):
    """Send UDP in fragments and see it arrive."""
    with server.socket() as inbound, client.socket() as outbound:
        inbound.bind((server.address, 5000))
        inbound.settimeout(5)
        outbound.sendto(bytes(8000), (server.address, 5000))
        return len(inbound.recv(9000)) == 8000


def web_answers(client, server, port, timeout=5):
    """Open a TCP connection and say something."""
    with tcp_socket(server) as listener, tcp_socket(client) as connection:
        listener.bind((server.address, port))
        listener.listen()
        listener.settimeout(timeout)
        connection.settimeout(timeout)
        try:
            connection.connect((server.address, port))
        except TimeoutError:
            return False
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(timeout)
            connection.sendall(bytes(100_000))
            return len(accepted.recv(10)) == 10


def tcp_socket(host):
    return host.socket(socket.AF_INET, socket.SOCK_STREAM)


def test_only_the_outer_datagrams_are_on_the_link(pair):
    vm1, vm2 = pair
    with Routed(vm1) as one, Routed(vm2) as two:
        one.apply(TO_VM2)
        two.apply(TO_VM1)
        for host in pair:
            deny(host, "meta l4proto != ipv6-icmp udp dport != 1234")
            deny(host, "meta l4proto { tcp, icmp }")
        assert ping(vm1, vm2.address)
        assert web_answers(*pair, 80)


def test_other_software_keeps_its_rules_routes_and_filters(pair):
    vm1, _ = pair
    ip(vm1, "rule add from 10.0.0.1 lookup 99 priority 5181")
    ip(vm1, "rule add fwmark 7 lookup 99 priority 5210")
    ip(vm1, "route add 10.5.0.0/16 via 192.168.10.61 table 99 proto 161")
    vm1.run("nft", "add", "table", "inet", "alpha_trio")
    before = vm1.snapshot()
    with Routed(vm1, routing={"backend": "marks"}) as one:
        one.apply(TO_VM2)
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        one.apply()
    assert vm1.snapshot() == before


@pytest.mark.parametrize("backend", ["rules", "marks"])
def test_leftovers_of_a_killed_daemon_go(pair, backend):
    vm1, _ = pair
    before = vm1.snapshot()
    one = Routed(vm1, routing={"backend": backend}).start()
    one.apply(TO_VM2)
    one.kill()
    assert vm1.snapshot() != before
    again = Routed(vm1).start()  # the next start removes them
    assert "alpha" not in vm1.run("nft", "list", "ruleset").stdout
    again.apply(TO_VM2)
    again.kill()
    with Routed(vm1):
        pass
    assert vm1.snapshot() == before


def test_cleanup_says_what_it_removed(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    one = Routed(vm1, routing={"backend": "marks"}).start()
    one.apply(TO_VM2)
    with pytest.raises(RoutingError, match="another daemon, on interface alpha0"):
        vm1.call(lambda: cleanup(Settings()))
    one.kill()
    assert vm1.call(lambda: cleanup(Settings())) == [
        "removed 6 routing rules",
        "removed nft table inet alpha_trio_alpha0",
    ]
    assert vm1.call(lambda: cleanup(Settings())) == []
    assert vm1.snapshot() == before


def test_places_of_others_are_refused(pair):
    vm1, _ = pair
    ip(vm1, "rule add fwmark 7 lookup 99 priority 5190")
    assert "rule of priority 5190 belongs to other software" in refusal(vm1)
    ip(vm1, "rule del priority 5190")
    ip(vm1, "route add 10.5.0.0/16 via 192.168.10.61 table 5183")
    before = vm1.snapshot()
    assert "route to 10.5.0.0/16 in table 5183 belongs to other" in refusal(vm1)
    assert vm1.snapshot() == before


def test_two_daemons_on_one_host(pair):
    vm1, _ = pair
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        before = vm1.snapshot()
        places = {"interface": "alpha1", "port": 1235}
        assert "another daemon, on interface alpha0" in refusal(vm1, **places)
        elsewhere = {"table": 6000, "priority": 6000}
        with Routed(vm1, routing=elsewhere, **places) as other:
            other.apply(["far", "192.168.10.61", ["10.7.0.0/16"]])
        assert vm1.snapshot() == before


def test_routes_change_without_touching_the_others(pair):
    vm1, _ = pair
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        with Monitor(vm1) as monitor:
            for count in (1, 20, 3, 3):
                one.apply(TO_VM2, *(other(n) for n in range(count)))
            lines = monitor.lines()
    routes = [f"10.{n}.0.0/{16 + n % 4} dev alpha0" for n in range(20)]
    added = [r for r in routes if any(line.startswith(r) for line in lines)]
    deleted = [r for r in routes if any(r in line[7:] for line in lines)]
    assert added == routes
    assert deleted == routes[3:]
    assert len([line for line in lines if "alpha0" in line]) == 20 + 17
    assert not any("192.168.10.61 dev alpha0" in line for line in lines)
    assert not any("suppress_prefixlength 31" in line for line in lines)


def other(number):
    return [f"p{number}", "192.168.10.61", [f"10.{number}.0.0/{16 + number % 4}"]]


class Monitor:
    """``ip monitor`` of routes and rules."""

    def __init__(self, host):
        self.host = host
        command = ("ip", "monitor", "route", "rule")
        self.process = host.popen(*command, stdout=subprocess.PIPE)

    def __enter__(self):
        # It listens once it reports what happens.
        wait_until(self._is_listening, "ip monitor")
        self.lines()
        return self

    def __exit__(self, *_):
        with self.process:
            self.process.kill()

    def _is_listening(self):
        for change in ("add", "del"):
            ip(self.host, f"route {change} 10.98.0.0/16 via 192.168.10.61")
        readable, _, _ = select.select([self.process.stdout], [], [], 0)
        return readable

    def lines(self):
        """Return what was reported up to now."""
        ip(self.host, "route add 10.99.0.0/16 via 192.168.10.61")
        lines = []
        for line in self.process.stdout:
            if line.startswith("10.99.0.0/16"):
                break
            lines.append(line)
        ip(self.host, "route del 10.99.0.0/16")
        return lines


def test_more_specific_routes_of_the_host_win_over_a_default_peer(lab):
    vm1, router, vm2 = lab.chain()
    with Routed(vm1) as one, Routed(vm2) as two:
        one.apply(["vm2", vm2.address, ["0.0.0.0/0"]])
        two.apply(["vm1", vm1.address, [f"{vm1.address}/32"]])
        forget_neighbours(vm1, router, vm2)
        # vm2's network is behind a route of vm1's, the router's is its own.
        assert not through_tunnel(vm1, lambda: ping(vm1, "192.168.10.2"))
        ip(vm2, "addr add 10.44.0.1/32 dev lo")
        assert through_tunnel(vm1, lambda: ping(vm1, "10.44.0.1"))
        # One that appears later wins at once.
        ip(router, "addr add 10.44.0.1/32 dev lo")
        ip(vm1, "route add 10.44.0.0/24 via 192.168.10.2")
        assert not through_tunnel(vm1, lambda: ping(vm1, "10.44.0.1"))


@pytest.mark.parametrize("backend", ["rules", "marks"])
def test_selection_takes_what_it_names_and_leaves_the_rest(pair, backend):
    vm1, vm2 = pair
    routing = {"backend": backend}
    with Routed(vm1, routing=routing) as one, Routed(vm2, routing=routing) as two:
        one.apply([*TO_VM2, [[TCP, [80, 81]], [UDP, None]]])
        two.apply([*TO_VM1, [[TCP, [80, 81]], [UDP, None]]])
        forget_neighbours(*pair)
        assert through_tunnel(vm1, lambda: web_answers(*pair, 80))
        assert through_tunnel(vm2, lambda: web_answers(*pair, 81))
        assert not through_tunnel(vm1, lambda: web_answers(*pair, 82))
        assert not through_tunnel(vm1, lambda: ping(vm1, vm2.address))
        assert through_tunnel(vm1, lambda: big_udp_arrives(*pair))


def test_selection_of_every_address_is_found_again(pair):
    vm1, _ = pair
    web = ["vm2", "192.168.10.61", ["0.0.0.0/0"], [[TCP, [80, 80]]]]
    with Routed(vm1) as one:
        one.apply(web)
        before = ip(vm1, "rule")
        assert "dport 80 lookup 5183" in before
        one.mark_stale()
        one.apply(web)
        assert ip(vm1, "rule") == before


@pytest.fixture(params=["nft", "iptables"])
def filter_path(request, tmp_path):
    """A PATH with one packet filter only."""
    for name in ("nft", "iptables", "ip6tables"):
        for program in (name, f"{name}-restore"):
            found = Path("/usr/sbin", program)
            if request.param in name.replace("6", "") and found.exists():
                (tmp_path / program).symlink_to(found)
    return tmp_path


@pytest.mark.parametrize("strictness", [0, 1, 2])
def test_marks_lead_everything_into_the_tunnel(pair, filter_path, strictness):
    vm1, vm2 = pair
    for host in pair:
        filter_strictness(host, strictness)
    settings = {"path": filter_path, "routing": {"backend": "marks"}}
    with Routed(vm1, **settings) as one, Routed(vm2, **settings) as two:
        one.apply(TO_VM2)
        two.apply(TO_VM1)
        forget_neighbours(*pair)
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address))
        assert through_tunnel(vm2, lambda: ping(vm2, vm1.address6))
        assert big_udp_arrives(*pair)
        assert through_tunnel(vm2, lambda: web_answers(vm2, vm1, 80))
        one.apply()
        assert not through_tunnel(vm1, lambda: ping(vm1, vm2.address6))
    for host in pair:
        ruleset = host.run("nft", "list", "ruleset").stdout
        assert "alpha" not in ruleset
        assert "AT-" not in ruleset


def test_overlay_addresses(pair):
    vm1, vm2 = pair
    with (
        Routed(vm1, addresses=["10.8.0.1/24", "fd00:8::1/64"]) as one,
        Routed(vm2, addresses=["10.8.0.2/24", "fd00:8::2/64"]) as two,
    ):
        one.apply(["vm2", vm2.address6, ["10.8.0.2/32", "fd00:8::2/128"]])
        two.apply(["vm1", vm1.address6, ["10.8.0.1/32", "fd00:8::1/128"]])
        assert through_tunnel(vm1, lambda: ping(vm1, "10.8.0.2"))
        assert through_tunnel(vm2, lambda: ping(vm2, "fd00:8::1"))
        assert not through_tunnel(vm1, lambda: ping(vm1, vm2.address))


def test_backend_none_sets_up_the_interface_and_nothing_else(pair):
    vm1, _ = pair
    routing = {"backend": "none"}
    with Routed(vm1, addresses=["10.8.0.1/24"], routing=routing) as one:
        assert one.apply(TO_VM2)["vm2"][0] == 1448
        link = ip(vm1, "-d link show alpha0")
        assert "mtu 1448" in link
        assert "qlen 1000" in link
        assert "gso_max_size 61200" in link
        assert "addrgenmode none" in link
        assert "10.8.0.1/24" in ip(vm1, "addr show alpha0")
        assert "161" not in ip(vm1, "rule")
        assert ip(vm1, "route show table all proto 161") == ""


def test_host_without_ipv6(pair):
    vm1, vm2 = pair
    for scope in ("all", "default"):
        vm1.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
    before = vm1.snapshot()
    with Routed(vm1) as one, Routed(vm2) as two:
        underlays = one.apply(TO_VM2, ["six", "fd00:10::61", ["fd00:8::/64"]])
        two.apply(TO_VM1)
        assert underlays["vm2"][3] is None
        assert underlays["six"][3].startswith("no route to fd00:10::61: ")
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address))
        assert "161" not in ip(vm1, "-6 rule")
    assert vm1.snapshot() == before
    words = refusal(vm1, addresses=["fd00:8::1/64"])
    assert "address fd00:8::1/64" in words
    assert "IPv6 is disabled" in words


def test_mtu_and_source_follow_the_path(pair):
    vm1, vm2 = pair
    with Routed(vm1) as one, Routed(vm2) as two:
        one.apply(TO_VM2)
        two.apply(TO_VM1)
        one.settle()
        ip(vm1, "route add 192.168.10.61/32 dev eth0 mtu 1400")
        one.expect("again")
        assert one.apply(TO_VM2)["vm2"][0] == 1348
        ip(vm1, "route del 192.168.10.61/32 dev eth0")
        ip(vm1, "link set eth0 mtu 1300")
        one.expect("again")
        assert one.apply(TO_VM2)["vm2"][0] == 1248


@pytest.mark.parametrize("backend", ["rules", "marks"])
def test_what_icmp_makes_of_a_path_is_not_believed(lab, backend):
    """Anybody can forge it; that it was noted shows in the other look-up."""
    vm1, router, vm2 = lab.chain()
    ip(router, "link set eth1 mtu 1400")
    ip(vm2, "link set eth0 mtu 1400")
    address, address6 = vm2.address, vm2.address6
    four = ["four", address, [f"{address}/32"]]
    six = ["six", address6, [f"{address6}/128"]]
    with Routed(vm1, routing={"backend": backend}) as one:
        underlays = one.apply(four, six)
        assert (underlays["four"][0], underlays["six"][0]) == (1448, 1428)
        # Nobody has to answer: it is the router that says how wide its link is.
        ping(vm1, address, "-W", "0.2", "-s", "1400", check=False)
        ping(vm1, address6, "-W", "0.2", "-s", "1370", check=False)
        own = ["ipproto", "udp", "sport", "1234", "dport", "1234"]
        for at in (address, address6):
            noted = vm1.run("ip", "-s", "route", "get", at, *own).stdout
            assert "mtu 1400" in noted
        one.mark_stale()
        underlays = one.apply(four, six)
        assert (underlays["four"][0], underlays["six"][0]) == (1448, 1428)


def test_routes_come_back_with_the_address_they_leave_from(pair):
    vm1, vm2 = pair
    with Routed(vm1) as one, Routed(vm2) as two:
        one.apply(TO_VM2)
        two.apply(TO_VM1)
        one.settle()
        ip(vm1, "addr del 192.168.10.60/24 dev eth0")
        one.expect("again")
        assert "no route to 192.168.10.61" in one.apply(TO_VM2)["vm2"][3]
        ip(vm1, "addr add 192.168.10.60/24 dev eth0")

        def is_back():
            one.expect("again")
            return one.apply(TO_VM2)["vm2"][1] == "192.168.10.60"

        wait_until(is_back, "the source address")
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address))


def test_no_packet_meets_a_gap_when_our_address_changes(pair):
    """With the last address of a link the kernel removes its routes, untold."""
    vm1, _ = pair
    ip(vm1, "addr add 192.168.10.70/24 dev eth0")
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        one.settle()
        heard = vm1.directory / "heard"
        with heard.open("w") as output:
            monitor = vm1.popen("ip", "monitor", "route", "address", stdout=output)
            with ending(monitor):
                wait_until(lambda: is_heard(vm1, heard), "it to listen")
                ip(vm1, "route add 192.168.10.61/32 dev eth0 src 192.168.10.70")
                one.expect("again")
                assert one.apply(TO_VM2)["vm2"][1] == "192.168.10.70"
                gone = "Deleted local 192.168.10.60 dev alpha0"
                wait_until(lambda: gone in heard.read_text(), "the old address's end")
        moved = "dev alpha0 table 5182 proto 161 src 192.168.10.70"
        told = heard.read_text()
        assert moved in told[: told.index(gone)]


def test_routes_stay_when_our_last_address_goes(pair):
    vm1, _ = pair
    inside = "10.9.0.0/24"
    with Routed(vm1) as one:
        one.apply(["vm2", "192.168.10.61", [inside]])
        assert "192.168.10.60" in ip(vm1, "addr show dev alpha0")
        one.apply(["vm2", "fd00:10::61", [inside]])
        assert "192.168.10.60" not in ip(vm1, "addr show dev alpha0")
        assert "dev alpha0" in ip(vm1, "route get 10.9.0.1")


def test_what_others_delete_is_put_back_and_then_it_is_quiet(pair):
    vm1, _ = pair
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        one.settle()
        before = vm1.snapshot()
        ip(vm1, "rule del priority 5188")
        ip(vm1, "route flush table 5182")
        one.expect("again")
        assert vm1.snapshot() == before


@pytest.mark.parametrize(
    "harm",
    [
        "ip addr del 10.8.0.1/24 dev alpha0",
        "ip addr flush dev alpha0",
        "ip link set alpha0 down; ip link set alpha0 up",
        "sysctl -qw {disable}=1; sysctl -qw {disable}=0",
        "sysctl -qw {disable}=1; ip addr flush dev alpha0; sysctl -qw {disable}=0",
    ],
)
def test_overlay_addresses_that_others_remove_are_put_back(pair, harm):
    vm1, vm2 = pair
    disable = "net.ipv6.conf.alpha0.disable_ipv6"
    to_vm2 = ["vm2", vm2.address, ["10.8.0.2/32", "fd00:8::2/128"]]
    to_vm1 = ["vm1", vm1.address, ["10.8.0.1/32", "fd00:8::1/128"]]
    with (
        Routed(vm1, addresses=["10.8.0.1/24", "fd00:8::1/64"]) as one,
        Routed(vm2, addresses=["10.8.0.2/24", "fd00:8::2/64"]) as two,
    ):
        one.apply(to_vm2)
        two.apply(to_vm1)
        before = overlay(vm1)
        assert "10.8.0.1/24" in before
        for command in harm.format(disable=disable).split("; "):
            vm1.run(*command.split())
        wait_until(lambda: overlay(vm1) == before, "what was there before")
        assert through_tunnel(vm1, lambda: ping(vm1, "10.8.0.2"))
        assert through_tunnel(vm1, lambda: ping(vm1, "fd00:8::2"))


def overlay(host):
    """Return the addresses of the tunnel's interface and the peers' routes."""
    addresses = ip(host, "-o addr show alpha0 scope global")
    fields = [line.split()[2:4] for line in addresses.splitlines()]
    routes = [ip(host, f"{family} route show table 5182") for family in ("-4", "-6")]
    return "\n".join(sorted(" ".join(pair) for pair in fields) + routes)


def test_strict_filter_that_comes_later_is_met(pair):
    vm1, vm2 = pair
    for host in pair:
        filter_strictness(host, 0)
    with Routed(vm1) as one, Routed(vm2) as two:
        one.apply(TO_VM2)
        two.apply(TO_VM1)
        for routed in (one, two):
            filter_strictness(routed.host, 1)
            wait_until(
                # The last of them, which lets the questions pass by.
                lambda r=routed: "5184:" in ip(r.host, "rule"),
                "all rules for strict filters",
            )
        forget_neighbours(*pair)
        assert through_tunnel(vm1, lambda: ping(vm1, vm2.address))


def test_endpoints_that_cannot_be(pair):
    vm1, _ = pair
    with Routed(vm1, addresses=["10.8.0.1/24"]) as one:
        underlays = one.apply(
            ["me", vm1.address, ["10.1.0.0/16"]],
            ["inside", "10.8.0.2", ["10.2.0.0/16"]],
            ["nowhere", "172.16.0.1", ["10.3.0.0/16"]],
        )
    assert "192.168.10.60 is that host's own address" in underlays["me"][3]
    assert "leads into the tunnel itself" in underlays["inside"][3]
    assert "no route to 172.16.0.1: Network is unreachable" in underlays["nowhere"][3]


def test_refused_plan_leaves_what_was(pair):
    vm1, _ = pair
    with Routed(vm1) as one:
        one.apply(TO_VM2)
        one.settle()
        before = vm1.snapshot()
        prefixes = [f"10.0.0.0/{n}" for n in range(8, 25)]
        print(
            json.dumps([["many", "192.168.10.61", prefixes]]),
            file=one.process.stdin,
            flush=True,
        )
        assert "more than 11" in one.expect("refused")
        assert vm1.snapshot() == before
        one.apply(TO_VM2)


def test_settings_reach_the_kernel(pair):
    vm1, _ = pair
    routing = RoutingSettings(table=7000, priority=7100, protocol=77)
    places = {"table": 7000, "priority": 7100, "protocol": 77}
    one = Routed(vm1, routing=places).start()
    one.apply(TO_VM2)
    found = ip(vm1, "route show table 7000")
    assert "192.168.10.61 dev alpha0 proto 77" in found
    one.kill()
    (line,) = vm1.call(lambda: cleanup(Settings(routing=routing)))
    assert line.endswith("routing rules")
