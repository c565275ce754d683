"""Each peer's path MTU: found by probes, whatever is forged, lost or narrow.

vm1 ---1500--- r1 ---N--- r2 ---1500--- vm2, where no router says a word by ICMP
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import time

import pytest

from alpha_trio.proto.packets.frames import checksum
from tests.netns.traffic import (
    OVERHEAD,
    add,
    drops,
    introduce,
    peer,
    ping,
    prepared,
    send_tcp,
    send_udp,
)
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

SILENT = """
table inet silent {
  chain out {
    type filter hook output priority 0;
    icmp type destination-unreachable drop
    icmpv6 type packet-too-big drop
  }
}
"""

LOSSY = """
table inet lossy {
  chain forward {
    type filter hook forward priority 0;
    numgen random mod 100 < 15 drop
  }
}
"""

FORGER = """
import socket, sys
family, protocol = {
    "4": (socket.AF_INET, socket.IPPROTO_ICMP),
    "6": (socket.AF_INET6, socket.IPPROTO_ICMPV6),
}[sys.argv[1]]
with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
    for line in sys.stdin:
        raw.sendto(bytes.fromhex(line), (sys.argv[2], 0))
"""

WITHOUT_NFT = "mount --bind /dev/null /usr/sbin/nft"

VALUES = (0, 1, 68, 552, 600, 1000, 1280, 1499, 65535, 2**32 - 1)


def middle(lab, mtu):
    """Two hosts, and between them a link of ``mtu`` whose routers are silent."""
    vm1, r1, r2, vm2 = lab.chain(2)
    for router in (r1, r2):
        router.run("nft", "-f", "-", stdin=SILENT)
    narrow(r1, r2, mtu)
    return vm1, vm2, r1, r2


def narrow(r1, r2, mtu):
    for router, link in ((r1, "eth1"), (r2, "eth0")):
        router.run("ip", "link", "set", link, "mtu", str(mtu))


def takes(daemon, name, outer, version=4):
    """Wait until that is what a path is known to take, or hardly less."""
    inner = outer - OVERHEAD - (20 if version == 6 else 0)

    def found():
        document = peer(daemon, name)
        near = inner - 8 <= document["mtu"] <= inner
        return near and document["mtu_source"] == "probed"

    wait_until(found, f"a path of {outer}")


def route_mtu(host, prefix):
    shown = host.run("ip", "route", "show", "table", "5182", prefix).stdout
    return int(re.search(r"mtu (?:lock )?(\d+)", shown)[1])


@pytest.mark.parametrize("mtu", [576, 1000, 1300, 1492])
def test_a_narrow_path_is_found_whose_routers_are_silent(lab, mtu):
    vm1, vm2, *_ = middle(lab, mtu)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.cli("wait", "vm2")
        takes(one, "vm2", mtu)
        takes(two, "vm1", mtu)
        known = peer(one, "vm2")["mtu"]
        wait_until(lambda: route_mtu(vm1, vm2.address) == known, "the route's MTU")
        send_tcp(vm1, vm2, vm2.address)
        send_tcp(vm2, vm1, vm1.address)
        assert send_udp(vm1, vm2, vm2.address, bytes(5000)) == [bytes(5000)]


@pytest.mark.parametrize("mtu", [1280, 1340])
def test_ipv6_inside_works_on_every_legal_path(lab, mtu):
    vm1, vm2, *_ = middle(lab, mtu)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address6)
        add(two, "vm1", vm1.address6)
        one.cli("wait", "vm2")
        takes(one, "vm2", mtu, version=6)
        takes(two, "vm1", mtu, version=6)
        for size in (56, 1000, 1200, 1232, 1400, 4000):
            ping(vm1, vm2.address6, "-s", str(size))
        send_tcp(vm1, vm2, vm2.address6)
        send_tcp(vm2, vm1, vm1.address6)
        assert send_udp(vm1, vm2, vm2.address6, bytes(5000)) == [bytes(5000)]
        document = one.status()
        assert document["peers"][0]["split_packets"] > 0
        assert any("go as fragments" in line for line in document["health"])


def test_a_path_that_shrinks_without_icmp_carries_tcp_again(lab):
    vm1, vm2, r1, r2 = middle(lab, 1500)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        send_tcp(vm1, vm2, vm2.address)
        takes(one, "vm2", 1500)
        narrow(r1, r2, 1280)
        send_tcp(vm1, vm2, vm2.address)
        takes(one, "vm2", 1280)
        send_tcp(vm2, vm1, vm1.address)
        # vm1 asks for segments that fit: only something else is too large.
        ping(vm2, vm1.address, "-s", "1300", check=False)
        takes(two, "vm1", 1280)


def test_a_path_that_grows_is_used_when_some_route_has_changed(lab):
    vm1, vm2, r1, r2 = middle(lab, 1400)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.cli("wait", "vm2")
        takes(one, "vm2", 1400)
        narrow(r1, r2, 1500)
        time.sleep(1)  # an earlier search ended just now
        vm1.run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0")
        takes(one, "vm2", 1500)


def test_jumbo_frames(lab):
    vm1, vm2 = lab.lan(2, mtu=65535)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.cli("wait", "vm2")
        takes(one, "vm2", 65535)
        send_tcp(vm1, vm2, vm2.address, 1 << 24)
        assert send_udp(vm1, vm2, vm2.address, bytes(60_000)) == [bytes(60_000)]


def test_where_a_third_of_all_packets_is_lost(lab):
    vm1, vm2, r1, r2 = middle(lab, 1400)
    for router in (r1, r2):
        router.run("nft", "-f", "-", stdin=LOSSY)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.cli("wait", "vm2", "--timeout", "30")
        wait_until(lambda: peer(one, "vm2")["mtu"] <= 1400 - OVERHEAD, "no more", 20)
        assert peer(one, "vm2")["state"] == "established"


# -- what is forged


def forged_icmp(version, source, destination, kind, code, value):
    """An error about a datagram of the tunnel, as anybody could make it up."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    a, b = (socket.inet_pton(family, end) for end in (source, destination))
    udp = struct.pack("!HHHH", 1234, 1234, 1460, 0)
    if version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 1480, 0, 0x4000, 60, 17, 0) + a + b
        quote = head[:10] + checksum(head).to_bytes(2) + head[12:] + udp
    else:
        quote = struct.pack("!IHBB", 6 << 28, 1460, 17, 60) + a + b + udp
    body = struct.pack("!BBHI", kind, code, 0, value) + quote
    if version == 4:
        body = body[:2] + checksum(body).to_bytes(2) + body[4:]
    return body.hex()


@pytest.mark.parametrize(
    ("version", "kinds"),
    [
        (4, [(3, code) for code in range(16)] + [(11, 0), (12, 0), (5, 1)]),
        (6, [(2, 0), (1, 0), (1, 4), (3, 0), (4, 0)]),
    ],
)
def test_forged_icmp_of_every_kind_and_value_changes_nothing(lab, version, kinds):
    vm1, vm2, evil = lab.lan(3)
    ends = [host.address if version == 4 else host.address6 for host in (vm1, vm2)]
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", ends[1])
        add(two, "vm1", ends[0])
        ping(vm1, ends[1])
        takes(one, "vm2", 1500, version)
        forged = [
            forged_icmp(version, *ends, kind, code, value)
            for kind, code in kinds
            for value in VALUES
        ]
        command = sys.executable, "-c", FORGER, str(version), ends[0]
        evil.run(*command, stdin="\n".join(forged))
        vm1.run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0")
        full = 1500 - OVERHEAD - (20 if version == 6 else 0)
        header = 28 if version == 4 else 48
        ping(vm1, ends[1], "-M", "do", "-s", str(full - header))
        send_tcp(vm1, vm2, ends[1])
        assert peer(one, "vm2")["mtu"] == full
        assert drops(one) == {}


# -- what the operator says


def test_an_mtu_that_is_set(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        one.cli("peers", "set", "vm2", "--mtu", "1000")
        document = peer(one, "vm2")
        assert (document["mtu"], document["mtu_source"]) == (1000, "set")
        wait_until(lambda: route_mtu(vm1, vm2.address) == 1000, "the route's MTU")
        send_tcp(vm1, vm2, vm2.address)
        assert "1000, as set" in one.cli("status", "vm2").stdout
        listed = json.loads(one.cli("peers", "list", "--json").stdout)["peers"]
        assert listed[0]["mtu"] == 1000
        one.cli("peers", "set", "vm2", "--mtu", "auto")
        takes(one, "vm2", 1500)
        wait_until(lambda: route_mtu(vm1, vm2.address) == 1408, "the route's MTU")
        refused = one.cli("peers", "set", "vm2", "--mtu", "20", check=False)
        assert refused.returncode == 2
        assert "out of range" in refused.stderr


def test_the_doctor_explains_the_mtu_step_by_step(lab):
    vm1, vm2, *_ = middle(lab, 1300)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.cli("wait", "vm2")
        takes(one, "vm2", 1300)
        wait_until(lambda: "are tried in" in one.cli("doctor", "vm2").stdout, "the end")
        lines = one.cli("doctor", "vm2").stdout.splitlines()
        assert any("by eth0 takes packets of 1500 bytes" in line for line in lines)
        first = next(line for line in lines if "a probe of" in line)
        assert "a probe of 1500 bytes" in first
        assert first.endswith("lost")
        assert any("probe of 1280" in line and "arrived" in line for line in lines)
        assert any("in use: 1208 bytes inside, 1300 outside" in line for line in lines)
        assert one.cli("doctor", "vm9", check=False).returncode == 4


# -- what is forwarded


MAXSEG = """
import socket, sys
with socket.create_server((sys.argv[1], 7007), family=int(sys.argv[2])) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    print(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7007), 5)"


def behind(lab, gateway):
    """A host that knows the gateway and nothing of the tunnel."""
    host = lab.host("lan")
    port, at_gateway = lab.connect(host, gateway)
    for family, net in (("-4", "10.9.0.{}/24"), ("-6", "fd09::{}/64")):
        host.run("ip", family, "addr", "add", net.format(2), "dev", port)
        gateway.run("ip", family, "addr", "add", net.format(1), "dev", at_gateway)
        via = net.format(1).partition("/")[0]
        host.run("ip", family, "route", "add", "default", "via", via)
    gateway.sysctl("net.ipv4.ip_forward", 1)
    gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
    return host


def segment_size(source, target, address):
    """What a server may send in a segment, after what the SYN told it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    command = sys.executable, "-c", MAXSEG, address, str(int(family))
    with target.popen(*command, stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == "ready\n"
        source.run(sys.executable, "-c", CONNECT, address)
        return int(server.stdout.readline())


@pytest.mark.parametrize("tool", ["nft", "iptables"])
def test_the_segment_size_of_what_is_forwarded(lab, tool):
    vm1, vm2 = lab.lan()
    lan = behind(lab, vm1)
    lan_prefixes = "10.9.0.0/24", "fd09::/64"
    # Seen by nft in either case: it shows what iptables has put there, too.
    table = "alpha_trio_mss" if tool == "nft" else "AT-alpha0-fwd"
    here = vm1 if tool == "nft" else prepared(vm1, WITHOUT_NFT)
    with Daemon(here, "--mss") as one, Daemon(vm2) as two:
        own = f"{vm2.address}/32", f"{vm2.address6}/128"
        allow = [word for prefix in own for word in ("--allow", prefix)]
        one.cli("peers", "add", "vm2", vm2.address, *allow, "--mtu", "1300")
        theirs = (f"{vm1.address}/32", *lan_prefixes)
        allow = [word for prefix in theirs for word in ("--allow", prefix)]
        two.cli("peers", "add", "vm1", vm1.address, *allow)
        one.cli("wait", "vm2")
        assert segment_size(lan, vm2, vm2.address) <= 1300 - 40
        assert segment_size(lan, vm2, vm2.address6) <= 1300 - 60
        assert table in vm1.run("nft", "list", "ruleset").stdout
        one.kill9()
        assert table in vm1.run("nft", "list", "ruleset").stdout
        one.cli("cleanup")
        assert table not in vm1.run("nft", "list", "ruleset").stdout
