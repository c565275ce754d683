"""A router that checks others' tunnel traffic: taken, sent on, and left as it was.

vm1 192.168.10.60 --- r1 --- r2 --- vm2 192.168.12.61
    fd00:10::60                         fd00:12::61

Which datagrams may go on is tested with the core, in tests/proto/; here, that it is so.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from collections import Counter
from random import Random

import pytest

from alpha_trio.proto.messages import RELIABLE, Kind
from tests.netns.test_lifecycle import start_and_fail
from tests.netns.traffic import (
    PATIENCE,
    Forger,
    Tap,
    add,
    assert_none_lost,
    datagrams,
    family_of,
    flowing,
    introduce,
    peer,
    ping,
    prepared,
    send_tcp,
    send_udp,
)
from tools.daemons import PROGRAM, Daemon
from tools.lab import Lab, wait_until
from tools.selfmade import both_ends

pytestmark = pytest.mark.netns

LOOKS = 40  # 10 ms apart, at which nothing may change

IP_RECVERR, IPV6_RECVERR, IP_RECVTTL = 11, 25, 12
ERRORS = socket.MSG_ERRQUEUE
PASS = '[relay]\nenabled = true\nunseen = "pass"\n'
CLOSED = '[relay]\nenabled = true\nfail = "closed"\n'


@pytest.fixture
def chain(lab):
    """vm1, r1, r2 and vm2; the marker "strict" is for the routers only."""
    hosts = lab.chain(2)
    for end in (hosts[0], hosts[-1]):
        end.sysctl("net.ipv4.conf.all.rp_filter", 2)
    return hosts


@pytest.fixture(scope="module")
def passing():
    """The same with relays that let pass what no handshake introduced."""
    with Lab(strict=False) as lab:
        hosts = lab.chain(2)
        with Daemon(hosts[1], config=PASS) as a, Daemon(hosts[2], config=PASS):
            yield hosts, a


def assert_nothing_wrong(daemon):
    """Nothing was dropped but what is sent again although it has passed."""
    assert set(relaying(daemon)["drops"]) <= {"replayed"}


def relaying(daemon):
    return daemon.status()["relay"]


def forwarded(daemon):
    return relaying(daemon)["forwarded_packets"]


def s2(size=1200):
    """A datagram of a session that no relay knows."""
    return bytes([Kind.S2, 1, 0, 0]) + os.urandom(size - 4)


def introduce6(one, two):
    add(one, two.host.name, two.host.address6)
    add(two, one.host.name, one.host.address6)


# On its way


@pytest.mark.parametrize("acquaint", [introduce, introduce6])
@pytest.mark.strict
def test_all_of_a_tunnel_crosses_two_relays(chain, acquaint):
    vm1, r1, r2, vm2 = chain
    before = [host.snapshot() for host in chain]
    address = vm2.address if acquaint is introduce else vm2.address6
    with Daemon(vm1) as one, Daemon(vm2) as two:
        with Daemon(r1, "--relay") as a, Daemon(r2, "--relay") as b:
            acquaint(one, two)
            with Tap(vm2) as tap:
                ping(vm1, address, count=3)
                packets = [p for p in tap.packets() if p.is_tunnel]
            send_tcp(vm1, vm2, address)
            send_tcp(vm2, vm1, vm1.address if ":" not in address else vm1.address6)
            assert_none_lost(one, two)
            for relay in (a, b):
                found = relaying(relay)
                assert found["forwarded_packets"] > 1500
                assert found["forwarded_bytes"] > 2 << 20
                assert_nothing_wrong(relay)
        ping(vm1, address)
    assert [host.snapshot() for host in chain] == before
    # With the addresses it had, and two hops nearer to its end.
    arrived = [p for p in packets if p.destination == address]
    hops = 7 if ":" in address else 8
    assert {p.source for p in arrived} == {peer_address(vm1, address)}
    assert {p.bytes[hops] for p in arrived} == {62}


def peer_address(host, like):
    return host.address6 if ":" in like else host.address


@pytest.mark.parametrize("offload", [(), ("--no-offload", "segment")])
def test_runs_stay_whole_unless_the_kernel_cannot(chain, offload):
    vm1, r1, r2, vm2 = chain
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, "--relay", *offload) as a:
        introduce(one, two)
        with Tap(r2) as tap:
            send_tcp(vm1, vm2, vm2.address, 8 << 20)
            sent = [p for p in tap.packets() if p.source == vm1.address]
        longest = max(len(packet.payload) for packet in sent)
        assert (longest > 1500) == (not offload)
        assert_nothing_wrong(a)


@pytest.mark.parametrize("family", [4, 6])
def test_a_datagram_arrives_as_it_was_sent(passing, family):
    (vm1, _, _, vm2), _ = passing
    here, there = addresses(vm1, vm2, family)
    with (
        socket_of(vm1, here, 40001) as near,
        socket_of(vm2, there, 1234) as far,
    ):
        if family == 4:
            near.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xBA)
            near.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
            far.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            far.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        else:
            near.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xBA)
            near.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 9)
            far.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            far.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        # Not from the tunnel's own port, as behind NAT; and so is the answer.
        for payload in (s2(), s2(9)):
            near.sendto(payload, (there, 1234))
            data, ancillary, _, source = far.recvmsg(2000, 200)
            assert data == payload
            assert source[:2] == (here, 40001)
            assert sorted(value[0] for _, _, value in ancillary) == [7, 0xBA]
            far.sendto(payload, source)
            assert near.recvfrom(2000)[1][:2] == (there, 1234)


def addresses(one, two, family):
    if family == 4:
        return one.address, two.address
    return one.address6, two.address6


def socket_of(host, address, port):
    sock = host.socket(family_of(address))
    sock.bind((address, port))
    sock.settimeout(PATIENCE)
    return sock


def test_many_senders_with_ports_of_their_own(passing):
    (vm1, _, _, vm2), relay = passing
    with socket_of(vm2, vm2.address, 1234) as far:
        for port in range(20000, 20300):
            with socket_of(vm1, vm1.address, port) as near:
                near.sendto(s2(100), (vm2.address, 1234))
                assert far.recvfrom(2000)[1] == (vm1.address, port)
        assert len(os.listdir(f"/proc/{relay.pid}/fd")) < 300


@pytest.mark.parametrize(("hops", "router"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("family", [4, 6])
def test_the_last_hop_answers_as_routers_do(passing, hops, router, family):
    (vm1, r1, r2, vm2), _ = passing
    here, there = addresses(vm1, vm2, family)
    answers = peer_address({1: r1, 2: r2}[router], there)
    with socket_of(vm1, here, 1234) as near:
        listen_for_errors(near, hops)
        near.sendto(s2(), (there, 1234))
        assert error_from(near) == (errno.EHOSTUNREACH, answers)


def listen_for_errors(sock, hops=64):
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)


def error_from(sock):
    """Error number and sender of an ICMP error about what was sent."""
    found = []

    def arrived():
        try:
            found.append(sock.recvmsg(2000, 500, ERRORS)[1])
        except OSError:
            return False
        return True

    sock.setblocking(False)
    wait_until(arrived, "an ICMP error")
    ((_, _, data),) = [a for a in found[0] if a[1] in (IP_RECVERR, IPV6_RECVERR)]
    number = struct.unpack_from("=I", data)[0]  # sock_extended_err, then its sender
    family = struct.unpack_from("=H", data, 16)[0]
    packed = data[20:24] if family == socket.AF_INET else data[24:40]
    return number, socket.inet_ntop(family, packed)


@pytest.mark.parametrize("acquaint", [introduce, introduce6])
def test_the_ends_learn_that_a_link_behind_is_smaller(chain, acquaint):
    vm1, _, r2, vm2 = chain
    for host, port in ((r2, "eth1"), (vm2, "eth0")):
        host.run("ip", "link", "set", port, "mtu", "1400")
    address = peer_address(vm2, "::" if acquaint is introduce6 else "")
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r2, "--relay") as relay:
        acquaint(one, two)
        wide = peer(one, "vm2")["mtu"]
        largest = ("-M", "do", "-s", str(wide - (48 if ":" in address else 28)))
        wait_until(
            lambda: (
                ping(vm1, address, *largest, "-W", "1", check=False)
                or peer(one, "vm2")["mtu"] == wide - 100
            ),
            "a smaller MTU",
        )
        wait_until(
            lambda: "larger ones are tried in" in one.cli("doctor", "vm2").stdout,
            "the end of the search",
        )
        assert peer(one, "vm2")["mtu"] == wide - 100
        dropped = relaying(relay)["drops"]["too-big"]
        assert dropped > 0
        fitting = ("-M", "do", "-s", str(int(largest[-1]) - 100))
        wait_until(lambda: ping(vm1, address, *fitting, check=False), "an echo")
        send_tcp(vm1, vm2, address)
        assert relaying(relay)["drops"]["too-big"] == dropped


@pytest.mark.parametrize("family", [4, 6])
def test_a_missing_route_is_answered(passing, family):
    (vm1, r1, _, _), relay = passing
    where = "192.168.77.1" if family == 4 else "fd00:77::1"
    net = f"{where}/{32 if family == 4 else 128}"
    near_router = r1.address if family == 4 else r1.address6
    vm1.run("ip", "route", "add", net, "via", near_router)
    before = Counter(relaying(relay)["drops"])
    with socket_of(vm1, vm1.address if family == 4 else vm1.address6, 1234) as near:
        listen_for_errors(near)
        near.sendto(s2(), (where, 1234))
        number, sender = error_from(near)
        assert number in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        assert sender == near_router
    # IPv6 knows before it comes to us that there is no route.
    drops = Counter(relaying(relay)["drops"]) - before
    assert drops == ({"no-route": 1} if family == 4 else {})


# From where an answer comes


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("consent", "passes"), [("link", False), ("address", True)])
def test_who_is_on_one_link_cannot_answer_for_who_is_on_another(
    chain, family, consent, passes
):
    """Nor in his name: it is seen by which link a datagram comes."""
    vm1, r1, r2, vm2 = chain
    for host in (r1, r2):
        for interface in host.call(lambda: os.listdir("/proc/sys/net/ipv4/conf")):
            host.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
    here, there = addresses(vm1, vm2, family)
    nearer = r2.address if family == 4 else r2.address6
    config = f'[relay]\nenabled = true\nunseen = "drop"\nconsent = "{consent}"\n'
    with (
        Daemon(r1, config=config) as relay,
        socket_of(vm2, there, 1234) as far,
        socket_of(vm1, here, 1234) as one,
        vm1.socket(family_of(there)) as two,
    ):
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        two.setsockopt(level, 19 if family == 4 else 75, 1)  # transparent
        two.bind((there, 1234))
        sent = 0
        for number, datagram in both_ends(Random(3), 5):
            sent += datagram[0] == Kind.S2
            if number == 0:
                one.sendto(datagram, (there, 1234))
            else:
                two.sendto(datagram, (nearer, 1234))
            time.sleep(0.002)  # the S2s follow what they need
        wait_until(lambda: far.recv(2000)[0] == Kind.SYN, "what may pass")
        far.settimeout(0.5)
        arrived = list(kinds_from(far))
        assert sent > 0
        assert arrived.count(Kind.S2) == (sent if passes else 0)
        assert passes or set(arrived) <= {Kind.SYN}
        assert ("wrong-side" in relaying(relay)["drops"]) is not passes
        if not passes:
            relay.wait_log("see consent under [relay]")


def kinds_from(sock):
    """Of all that still arrives."""
    while True:
        try:
            yield sock.recv(2000)[0]
        except TimeoutError:
            return


# With the host's other business


@pytest.mark.parametrize("backend", ["rules", "marks", "none"])
@pytest.mark.strict
def test_a_relay_can_be_an_end_as_well(chain, backend):
    vm1, r1, _, vm2 = chain
    before = r1.snapshot()
    config = f'[relay]\nenabled = true\n[routing]\nbackend = "{backend}"\n'
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, config=config) as both:
        introduce(one, two)
        nearest = "192.168.11.1"  # of r1, seen from vm2
        add(two, "r1", nearest)
        add(both, "vm2", vm2.address)
        if backend != "none":
            ping(r1, vm2.address, "-I", nearest)
            assert peer(both, "vm2")["tx_packets"] > 0
        ping(vm1, vm2.address, count=3)
        send_tcp(vm1, vm2, vm2.address)
        assert forwarded(both) > 700
        assert_nothing_wrong(both)
        # What vm1 and vm2 say goes from end to end, not through r1's own tunnel.
        assert peer(both, "vm2")["tx_packets"] == peer(two, "r1")["rx_packets"] < 20
    assert r1.snapshot() == before


@pytest.mark.strict
def test_reverse_path_checks_may_look_at_marks(chain):
    vm1, r1, _, vm2 = chain
    r1.sysctl("net.ipv4.conf.all.src_valid_mark", 1)
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, "--relay") as relay:
        introduce(one, two)
        ping(vm1, vm2.address)
        assert forwarded(relay) > 0


@pytest.mark.parametrize("strict", [0, 1])
def test_reverse_path_checks_are_not_lifted(chain, strict):
    """What comes from where its sender is not goes as far as without a relay."""
    vm1, r1, r2, vm2 = chain
    for host, checks in ((r1, strict), (r2, 0), (vm2, 0)):
        for interface in host.call(lambda: os.listdir("/proc/sys/net/ipv4/conf")):
            host.sysctl(f"net.ipv4.conf.{interface}.rp_filter", checks)
    with (
        Daemon(r1, config=PASS) as relay,
        socket_of(vm2, vm2.address, 1234) as far,
        socket_of(vm1, vm1.address, 1234) as honest,
        vm1.socket(socket.AF_INET) as spoofing,
    ):
        spoofing.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        spoofing.bind(("192.168.12.99", 1234))
        spoofing.sendto(s2(), (vm2.address, 1234))
        honest.sendto(s2(), (vm2.address, 1234))
        senders = [far.recvfrom(2000)[1][0] for _ in range(2 - strict)]
        assert senders == ["192.168.12.99", vm1.address][strict:]
        assert forwarded(relay) == 2 - strict


def test_other_traffic_is_left_alone(chain):
    vm1, r1, _, vm2 = chain
    with Daemon(r1, "--relay") as relay:
        assert send_udp(vm1, vm2, vm2.address, b"hello") == [b"hello"]
        send_tcp(vm1, vm2, vm2.address)
        assert relaying(relay)["drops"] == {}
        assert forwarded(relay) == 0


# Without it


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
@pytest.mark.strict
def test_open_traffic_goes_on_without_the_relay(chain, end):
    vm1, r1, _, vm2 = chain
    before = r1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two:
        relay = Daemon(r1, "--relay").start()
        introduce(one, two)
        with flowing(vm1, vm2, vm2.address) as stream:
            progress(stream)
            end(relay)
            progress(stream)
            relay.start()
            progress(stream)
            wait_until(lambda: forwarded(relay) > 100, "packets relayed again")
        assert relay.stop() == 0
        ping(vm1, vm2.address)
    assert r1.snapshot() == before


def progress(stream, size=4 << 20):
    """Wait until more has arrived; it may pause for a second."""
    start = stream.received
    wait_until(lambda: stream.received > start + size, "the stream to go on")


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
@pytest.mark.strict
def test_closed_nothing_crosses_without_the_relay(chain, end):
    vm1, r1, _, vm2 = chain
    before = r1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two:
        relay = Daemon(r1, config=CLOSED).start()
        introduce(one, two)
        ping(vm1, vm2.address)
        end(relay)
        assert ping(vm1, vm2.address, "-W", "1", check=False) is None
        relay.cli("cleanup", "--keep-closed")
        assert ping(vm1, vm2.address, "-W", "1", check=False) is None
        relay.start()
        wait_until(lambda: ping(vm1, vm2.address, check=False), "an echo again")
        end(relay)
        assert "alpha_closed_alpha0" in relay.cli("cleanup").stdout
        wait_until(lambda: ping(vm1, vm2.address, check=False), "an echo again")
    assert r1.snapshot() == before


@pytest.mark.parametrize("config", ["[relay]\nenabled = true\n", ""])
def test_a_start_that_is_not_closed_opens(chain, config):
    vm1, r1, _, vm2 = chain
    before = r1.snapshot()
    relay = Daemon(r1, config=CLOSED).start()
    relay.kill9()
    relay.config_file.write_text(config)
    with Daemon(vm1) as one, Daemon(vm2) as two, relay:
        introduce(one, two)
        ping(vm1, vm2.address)
        assert (relaying(relay) is None) == (not config)
    assert r1.snapshot() == before


@pytest.mark.strict
def test_cleanup_after_kill_9(chain):
    _, r1, _, _ = chain
    before = r1.snapshot()
    relay = Daemon(r1, "--relay").start()
    relay.kill9()
    assert r1.snapshot() != before
    assert "removed" in relay.cli("cleanup").stdout
    assert r1.snapshot() == before


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
def test_cleanup_is_told_which_interface_it_was(chain, end):
    _, r1, _, _ = chain
    before = r1.snapshot()
    relay = Daemon(r1, "--interface", "tun7", config=CLOSED).start()
    end(relay)
    relay.cli("cleanup")
    assert "alpha_closed_tun7" in r1.run("nft", "list", "ruleset").stdout
    named = ("cleanup", "--interface", "tun7")
    relay.cli(*named, "--keep-closed")
    assert "alpha_closed_tun7" in r1.run("nft", "list", "ruleset").stdout
    assert "alpha_closed_tun7" in relay.cli(*named).stdout
    assert r1.snapshot() == before


@pytest.mark.strict
def wait_for_associations(one, two):
    """Until no more are opened: what is while a relay sees nothing it never knows."""
    seen = []

    def settled():
        seen.append(
            [peer(one, "vm2")["associations"], peer(two, "vm1")["associations"]]
        )
        return len(seen) > LOOKS and all(each == seen[-1] for each in seen[-LOOKS:])

    wait_until(settled, "no more associations")


def test_rules_that_are_flushed_come_back(chain):
    vm1, r1, _, vm2 = chain
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, config=CLOSED) as relay:
        introduce(one, two)
        ping(vm1, vm2.address, count=20)
        wait_for_associations(one, two)
        r1.run("nft", "flush", "ruleset")
        r1.run("ip", "rule", "del", "priority", "5180")
        relay.wait_log("rules of the relay were removed: restored")
        wait_until(
            lambda: "5180:" in r1.run("ip", "rule").stdout, "the routing rule again"
        )
        passed = forwarded(relay)
        ping(vm1, vm2.address)
        assert forwarded(relay) > passed


# Where things differ


WITHOUT_NFT = "mount --bind /dev/null /usr/sbin/nft"


@pytest.mark.strict
def test_iptables_where_there_is_no_nft(chain):
    vm1, r1, _, vm2 = chain
    before = r1.snapshot()
    relay = Daemon(prepared(r1, WITHOUT_NFT), "--relay")
    with Daemon(vm1) as one, Daemon(vm2) as two:
        relay.start()
        add(one, "six", vm2.address6)
        add(two, "six", vm1.address6)
        ping(vm1, vm2.address6)
        for daemon in (one, two):  # one host is one peer
            daemon.request("peers.remove", name="six")
        introduce(one, two)
        ping(vm1, vm2.address)
        send_tcp(vm1, vm2, vm2.address)
        assert forwarded(relay) > 700
        relay.kill9()  # TPROXY drops what it has no socket for
        assert ping(vm1, vm2.address, "-W", "1", check=False) is None
        relay.start()
        wait_until(lambda: ping(vm1, vm2.address, check=False), "an echo again")
        assert relay.stop() == 0
        wait_until(lambda: ping(vm1, vm2.address, check=False), "an echo again")
    assert "AT-alpha0" not in r1.run("nft", "list", "ruleset").stdout
    cleaned(r1)
    assert r1.snapshot() == before


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
@pytest.mark.strict
def test_closed_with_iptables(chain, end):
    vm1, r1, _, vm2 = chain
    relay = Daemon(prepared(r1, WITHOUT_NFT), config=CLOSED)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        relay.start()
        introduce(one, two)
        ping(vm1, vm2.address)
        end(relay)
        assert ping(vm1, vm2.address, "-W", "1", check=False) is None
        assert "AT-alpha0-closed" in relay.cli("cleanup").stdout
        wait_until(lambda: ping(vm1, vm2.address, check=False), "an echo again")


def cleaned(host):
    """Remove the empty tables that iptables itself has left."""
    for family in ("ip", "ip6"):
        for table in ("mangle", "filter"):
            host.run("nft", "delete", "table", family, table, check=False)


def test_neither_nft_nor_iptables(chain, tmp_path):
    r1 = chain[1]
    hidden = prepared(r1, "mount -t tmpfs none /usr/sbin")
    before = r1.snapshot()
    assert "neither is installed: install nftables" in start_and_fail(hidden, "--relay")
    assert r1.snapshot() == before


def test_places_of_other_software_are_not_taken(chain):
    r1 = chain[1]
    r1.run("ip", "rule", "add", "fwmark", "7", "lookup", "99", "priority", "5180")
    before = r1.snapshot()
    line = start_and_fail(r1, "--relay")
    assert "routing rule of priority 5180 belongs to other software" in line
    assert r1.snapshot() == before
    with Daemon(r1):  # who does not relay does not need them
        pass
    assert r1.snapshot() == before


def test_what_is_relayed_can_be_seen(chain):
    vm1, r1, _, vm2 = chain
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, "--relay") as relay:
        assert relaying(one) is None
        introduce(one, two)
        ping(vm1, vm2.address)
        document = json.loads(relay.cli("status", "--json").stdout)["relay"]
        assert document["policy"]["unseen"] == "until-handshake"

        def agree():
            count = relaying(relay)["forwarded_packets"]
            return f"{count} packets" in relay.cli("status").stdout

        wait_until(agree, "both kinds of status to tell the same of a silent link")
        metrics = relay.cli("metrics").stdout
        assert "alpha_trio_relay_forwarded_packets_total" in metrics


def test_a_monitor_tells_whose_packets_pass_and_whose_do_not(chain, tmp_path):
    vm1, r1, _, vm2 = chain
    with (
        Daemon(vm1) as one,
        Daemon(vm2) as two,
        Daemon(r1, "--relay") as relay,
        (tmp_path / "events").open("w+") as events,
        Forger(vm1, vm2, r1) as forger,
    ):
        program = str(PROGRAM), "monitor", "--json"
        r1.popen(*program, stdout=events, env=relay.environment)

        def told(event):
            events.seek(0)
            return [e for e in map(json.loads, events) if e["event"] == event]

        def listening():
            add(relay, "somebody", "192.0.2.1")
            relay.cli("peers", "remove", "somebody")
            return told("peer-added")

        wait_until(listening, "the monitor to hear of peers")
        introduce(one, two)
        ping(vm1, vm2.address)
        wait_until(lambda: told("relay-verified"), "the handshake to be told")
        event = told("relay-verified")[-1]
        ends = {event[end].split(":")[0] for end in ("initiator", "responder")}
        assert ends == {vm1.address, vm2.address}
        (session,) = relaying(relay)["latest"]
        marks = [session[end]["fingerprint"] for end in ("initiator", "responder")]
        assert event["keys"] == marks
        forger.send(b"c" * 40, vm1.address)
        wait_until(lambda: told("relay-dropped"), "the packet that is none to be told")


# What it is for


def test_what_somebody_makes_up_dies_at_the_first_relay(chain):
    vm1, r1, r2, vm2 = chain
    with (
        Daemon(vm1) as one,
        Daemon(vm2) as two,
        Daemon(r1, "--relay") as first,
        Daemon(r2, "--relay") as second,
        Tap(vm1) as tap,
        Forger(vm1, vm2, r1) as forger,
    ):
        introduce(one, two)
        ping(vm1, vm2.address)
        for daemon, name in ((one, "vm2"), (two, "vm1")):
            wait_until(
                lambda of=(daemon, name): peer(*of)["mtu_source"] == "probed",
                "the answer to a probe of the path's MTU",
            )
        (session,) = relaying(first)["latest"]
        assert session["state"] == "verified"
        keys = {session[end]["key"] for end in ("initiator", "responder")}
        assert keys == {daemon.status()["key"] for daemon in (one, two)}
        seen = datagrams(tap.packets(), vm1.address)
        packet = next(d for d in seen if d[0] == Kind.S2 and not d[10] & RELIABLE)
        forged = packet[:-1] + bytes([packet[-1] ^ 1])
        before, count = forwarded(second), dropped(first)
        for payload in (packet, forged, bytes([Kind.S2, 7]) + packet[2:], b"c" * 40):
            forger.send(payload, vm1.address)
            count += 1
            wait_until(lambda n=count: dropped(first) == n, "one more drop")
        assert forwarded(second) == before
        assert peer(two, "vm1")["drops"] == {}
        first.wait_log("Not relaying packets between")
        ping(vm1, vm2.address)  # nobody was disturbed


def dropped(daemon):
    return sum(relaying(daemon)["drops"].values())


@pytest.mark.parametrize("listed", [True, False])
def test_only_listed_keys_pass(chain, listed):
    vm1, r1, _, vm2 = chain
    with Daemon(vm1) as one, Daemon(vm2) as two:
        keys = [daemon.status()["key"] for daemon in (one, two)]
        config = f"[relay]\nenabled = true\nkeys = {keys if listed else keys[:1]}\n"
        with Daemon(r1, config=config) as relay:
            introduce(one, two)
            found = ping(vm1, vm2.address, "-W", "1", check=False)
            assert (found is not None) == listed
            assert ("not-allowed" in relaying(relay)["drops"]) == (not listed)


@pytest.mark.parametrize("early", ["limited", "off"])
def test_the_operator_of_a_relay_decides_about_early_data(chain, early):
    vm1, r1, r2, vm2 = chain
    passes, config = early == "limited", f'[relay]\nearly = "{early}"\n'
    with (
        Daemon(r1, "--relay", config=config) as a,
        Daemon(r2, "--relay") as b,
        Daemon(vm1) as one,
        Daemon(vm2) as two,
    ):
        introduce(one, two)
        ping(vm1, vm2.address, count=3)
        for found in (peer(one, "vm2"), peer(two, "vm1")):
            assert found["early_state"] == ("on" if passes else "off-relay")
            assert (found["early_sent"] > 0) == passes
            assert (found["early_received"] > 0) == passes
        told = "Early data to vm2 is off: a relay on the way"
        assert (told in one.cli("status").stdout) != passes
        assert ("good  early data" in one.cli("doctor", "vm2").stdout) == passes
        assert relaying(a)["policy"]["early"] == early
        assert_nothing_wrong(a)
        assert_nothing_wrong(b)


def test_a_router_without_ipv6(chain):
    vm1, r1, _, vm2 = chain
    for scope in ("all", "default"):
        r1.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
    before = r1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two, Daemon(r1, "--relay") as relay:
        introduce(one, two)
        ping(vm1, vm2.address)
        assert relaying(relay)["sessions"] == 1
    assert r1.snapshot() == before
