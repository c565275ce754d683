"""Rubbish, forgery and broken links: the daemon lives on, and counts.

vm1 192.168.10.60 --- vm2 192.168.10.61, a peer (--- vm3 192.168.10.62, a stranger)
"""

from __future__ import annotations

import os
import random

import pytest

from alpha_trio.proto.messages import HEADER, KEY_SIZE, VERSION, Kind, Syn
from alpha_trio.proto.messages.handshake import ANCHOR_SIZE
from tests.netns.traffic import (
    OVERHEAD,
    Forger,
    Tap,
    add,
    datagrams,
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

ROUND = Kind.S1, Kind.S2

pytestmark = pytest.mark.netns


def rubbish():
    """Datagrams that are no messages: too short, too long, random, of our form."""
    dice = random.Random(1)
    for size in (1, 2, 7, 8, 15, 16, 17, 24, 40, 64, 65, 500, 1472):
        yield dice.randbytes(size)
        for kind in (*Kind, 0, 255):
            head = HEADER.pack(kind, VERSION, 0, dice.getrandbits(32))
            yield (head + dice.randbytes(size))[:size]
            yield (HEADER.pack(kind, VERSION + 1, 0, 0) + dice.randbytes(size))[:size]


def syn_of_a_stranger():
    """Well formed, with a key that no peer has."""
    anchors = os.urandom(ANCHOR_SIZE), os.urandom(ANCHOR_SIZE)
    keys = os.urandom(KEY_SIZE), os.urandom(KEY_SIZE)
    return Syn(7, os.urandom(16), *keys, *anchors).pack()


def lost(daemon):
    """Packets dropped for any reason."""
    document = daemon.status()
    places = [document, *document["peers"]]
    return sum(count for place in places for count in place["drops"].values())


@pytest.mark.parametrize("verbosity", ["-v", "-vv"])
def test_rubbish_from_the_peers_address(pair, verbosity):
    vm1, vm2 = pair
    with (
        Daemon(vm1, verbosity) as one,
        Daemon(vm2) as two,
        Forger(vm2, vm1) as forger,
    ):
        introduce(one, two)
        ping(vm1, vm2.address)
        messages = list(rubbish())
        for message in messages:
            forger.send(message, vm2.address)
        forger.send(b"", vm2.address)
        wait_until(lambda: lost(one) >= len(messages), "all of it counted")
        received = peer(one, "vm2")["rx_packets"]
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["rx_packets"] == received + 1
        assert one.log.count("Initiating handshake") == 1


def test_a_cut_or_altered_packet_of_a_session_harms_nobody(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm2, vm1) as forger:
        introduce(one, two)
        with Tap(vm1) as tap:
            ping(vm1, vm2.address, count=2)
            *_, true = datagrams(tap.packets(), vm2.address)
        received = peer(one, "vm2")["rx_packets"]
        for size in range(1, len(true)):
            forger.send(true[:size], vm2.address)
        dice = random.Random(2)
        for _ in range(300):
            altered = bytearray(true)
            altered[dice.randrange(len(true))] ^= 1 << dice.randrange(8)
            forger.send(bytes(altered), vm2.address)
        forger.send(true + bytes(1472 - len(true)), vm2.address)
        wait_until(lambda: lost(one) >= len(true) - 1 + 300 + 1, "all of it counted")
        assert peer(one, "vm2")["rx_packets"] == received
        ping(vm1, vm2.address, count=3)
        send_tcp(vm1, vm2, vm2.address)


def captured(tap, source, kind, count):
    """What `source` sent, once `count` of `kind` have come and no round is open."""
    seen = []

    def enough():
        seen.extend(datagrams(tap.packets(), source.address))
        rounds = [{d[8:10] + d[12:16] for d in seen if d[0] == k} for k in ROUND]
        # A ping answered in an S1, early, is over before the S2 of its round.
        closed = rounds[0] <= rounds[1]
        return closed and [datagram[0] for datagram in seen].count(kind) >= count

    wait_until(enough, "the datagrams on the link")
    return seen


def test_nothing_is_delivered_twice(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm2, vm1) as forger:
        introduce(one, two)
        ping(vm1, vm2.address)
        with Tap(vm1) as tap:
            for _ in range(5):  # several at once could cross the link as one
                ping(vm1, vm2.address)
            seen = captured(tap, vm2, Kind.S2, 5)
        received = peer(one, "vm2")["rx_packets"]
        for datagram in (*seen, *reversed(seen)):
            forger.send(datagram, vm2.address)
        # The last round is still known, of those before nothing is.
        wait_until(lambda: drops(one, "vm2").get("replayed", 0) >= 2, "repeated ones")
        wait_until(lambda: drops(one, "vm2").get("unsolicited", 0) >= 6, "older ones")
        assert peer(one, "vm2")["rx_packets"] == received
        ping(vm1, vm2.address)
        assert one.log.count("Initiating handshake") == 1


def test_nothing_is_delivered_twice_in_plain_mode(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm2, vm1) as forger:
        introduce(one, two, mode="plain")
        ping(vm1, vm2.address)
        with Tap(vm1) as tap:
            for _ in range(5):  # several at once could cross the link as one
                ping(vm1, vm2.address)
            seen = captured(tap, vm2, Kind.DATA, 5)
        assert len(seen) == 5
        received = peer(one, "vm2")["rx_packets"]
        for datagram in (*seen, *reversed(seen)):
            forger.send(datagram, vm2.address)
        wait_drop(one, "replayed", "vm2", count=10)
        assert peer(one, "vm2")["rx_packets"] == received
        ping(vm1, vm2.address)
        assert one.log.count("Initiating handshake") == 1


def test_a_stranger_gets_no_answer_and_is_listed(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1) as one, vm3.socket() as stranger, Tap(vm3) as tap:
        add(one, "vm2", vm2.address)
        to = vm1.address, 1234
        messages = [*rubbish(), os.urandom(60_000)]
        for message in messages:
            stranger.sendto(message, to)
        for _ in range(2):
            stranger.sendto(syn_of_a_stranger(), to)
        wait_drop(one, "stranger", count=2)
        wait_until(lambda: lost(one) == len(messages) + 2, "each counted once")
        (knocking,) = one.status()["knocking"]
        assert (knocking["address"], knocking["count"]) == (vm3.address, 2)
        assert one.log.count("Unknown host 192.168.10.62 asks for a handshake") == 1
        assert vm1.address not in [packet.source for packet in tap.packets()]


def test_a_repeated_session_packet_from_elsewhere_moves_no_peer(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm3, vm1) as forger:
        introduce(one, two)
        with Tap(vm1) as tap:
            ping(vm1, vm2.address, count=3)
            seen = datagrams(tap.packets(), vm2.address)
        before = lost(one)
        for true in seen:
            forger.send(true, vm3.address)
            forger.send(true, vm2.address, port=4321)
        wait_until(lambda: lost(one) > before, "something counted")
        assert peer(one, "vm2")["endpoint"] == f"{vm2.address}:1234"
        with Tap(vm3) as tap:
            ping(vm1, vm2.address, count=3)
            assert not any(packet.is_tunnel for packet in tap.packets())
        assert one.log.count("Initiating handshake") == 1


def test_a_forged_session_packet_from_a_stranger_is_dropped_in_plain_mode(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm3, vm1) as forger:
        introduce(one, two, mode="plain")
        with Tap(vm1) as tap:
            ping(vm1, vm2.address)
            *_, true = datagrams(tap.packets(), vm2.address)
        forger.send(true, vm3.address)
        forger.send(true, vm2.address, port=4321)
        wait_drop(one, "wrong-address", "vm2", count=2)
        ping(vm1, vm2.address)


def test_answers_from_another_address_are_dropped_with_the_reason(pair):
    vm1, vm2 = pair
    alter = (
        "table ip lab { chain leaving { type filter hook postrouting priority 0;"
        " udp sport 1234 ip saddr set 192.168.10.99; }; }"
    )
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        vm2.run("nft", "-f", "-", stdin=alter)
        ping(vm1, vm2.address, "-W", "0.2", check=False)
        wait_until(lambda: drops(one, "vm2").get("wrong-address"), "the drop")
        entry = peer(one, "vm2")
        assert entry["state"] == "handshaking"
        assert "192.168.10.99" in entry["reason"]
        assert one.log.count("they come from 192.168.10.99") == 1
        vm2.run("nft", "delete", "table", "ip", "lab")
        one.cli("wait", "vm2", "--timeout", "10")
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["reason"] is None


# The interface and the link


@pytest.mark.strict
def test_the_interface_deleted_under_the_daemon(pair):
    vm1, vm2 = pair
    before = vm1.snapshot()
    one = Daemon(vm1).start()
    add(one, "vm2", vm2.address)
    vm1.run("ip", "link", "delete", "alpha0")
    assert one.wait() == 1
    last = one.log.splitlines()[-1]
    assert last.startswith("alpha-trio: the interface alpha0 is gone")
    assert "Traceback" not in one.log
    assert vm1.snapshot() == before


@pytest.mark.strict
def test_the_interface_set_down_and_up(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        vm1.run("ip", "link", "set", "alpha0", "down")
        vm1.run("ip", "link", "set", "alpha0", "up")
        carried = peer(one, "vm2")["tx_packets"]

        def by_tunnel():
            ping(vm1, vm2.address, "-W", "0.2", check=False)
            return peer(one, "vm2")["tx_packets"] > carried

        wait_until(by_tunnel, "traffic in the tunnel")
        ping(vm1, vm2.address)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.strict
def test_the_link_goes_down_and_comes_back(pair, version):
    vm1, vm2 = pair
    near, far = (
        (vm1.address, vm2.address) if version == 4 else (vm1.address6, vm2.address6)
    )
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", far)
        add(two, "vm1", near)
        ping(vm1, far)
        vm1.run("ip", "link", "set", "eth0", "down")
        assert ping(vm1, far, "-W", "0.3", check=False, count=3) is None
        vm1.run("ip", "link", "set", "eth0", "up")
        if version == 6:  # IPv6 addresses are lost with the link
            vm1.run("ip", "addr", "add", f"{near}/64", "dev", "eth0")

        def answered():
            return ping(vm1, far, "-W", "0.3", check=False)

        wait_until(answered, "an answer")
        carried = peer(one, "vm2")["tx_packets"]
        ping(vm1, far)
        send_tcp(vm1, vm2, far)
        assert peer(one, "vm2")["tx_packets"] > carried
        assert peer(one, "vm2")["state"] == "established"


REFUSE_TO_SEND = (
    "table ip lab { chain leaving { type filter hook output priority 0;"
    " udp sport 1234 drop; }; }"
)


def test_packets_outlive_a_short_refusal_of_the_kernel(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        vm1.run("nft", "-f", "-", stdin=REFUSE_TO_SEND)
        pinging = vm1.popen("ping", "-q", "-c", "5", "-i", "0.01", vm2.address)
        one.wait_log("Cannot send to 192.168.10.61")
        vm1.run("nft", "delete", "table", "ip", "lab")
        assert pinging.wait(timeout=20) == 0
        wait_until(lambda: peer(one, "vm2")["rx_packets"] == 6, "each answer")
        assert one.log.count("Cannot send to 192.168.10.61") == 1
        assert drops(one, "vm2") == {}


def test_repeated_failures_are_logged_once(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two, mode="plain")
        ping(vm1, vm2.address)
        vm1.run("nft", "-f", "-", stdin=REFUSE_TO_SEND)
        assert ping(vm1, vm2.address, "-W", "0.2", check=False, count=5) is None
        wait_drop(one, "send-failed", "vm2", count=5)
        assert one.log.count("Cannot send to 192.168.10.61") == 1
        vm1.run("nft", "delete", "table", "ip", "lab")
        ping(vm1, vm2.address)
        one.wait_log("happened 5 times")


@pytest.mark.strict
def test_a_link_that_takes_less_than_before(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        for host in pair:
            host.run("ip", "link", "set", "eth0", "mtu", "1400")
        send_tcp(vm1, vm2, vm2.address)
        wait_until(lambda: peer(one, "vm2")["mtu"] == 1400 - OVERHEAD, "lower MTU")
        ping(vm1, vm2.address, "-M", "do", "-s", str(1400 - OVERHEAD - 28))
        for host in pair:
            host.run("ip", "link", "set", "eth0", "mtu", "1500")
        wait_until(lambda: peer(one, "vm2")["mtu"] == 1500 - OVERHEAD, "higher MTU")
        send_tcp(vm2, vm1, vm1.address)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.strict
def test_a_path_that_takes_less_than_the_link(lab, version):
    """vm1 ---1500--- r1 ---1440--- r2 ---1500--- vm2: the routers say so, by ICMP."""
    vm1, r1, r2, vm2 = lab.chain(2)
    for host, link in ((r1, "eth1"), (r2, "eth0")):
        host.run("ip", "link", "set", link, "mtu", "1440")
    near, far, overhead = (
        (vm1.address, vm2.address, OVERHEAD)
        if version == 4
        else (vm1.address6, vm2.address6, OVERHEAD + 20)
    )
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", far)
        add(two, "vm1", near)
        ping(vm1, far)
        send_tcp(vm1, vm2, far)
        wait_until(lambda: peer(one, "vm2")["mtu"] == 1440 - overhead, "lower MTU")
        send_tcp(vm2, vm1, near)
        assert send_udp(vm1, vm2, far, bytes(5000)) == [bytes(5000)]
        assert drops(one).keys() <= {"too-big"}


def test_ipv6_keeps_its_smallest_mtu_on_a_path_of_1400(lab):
    vm1, vm2 = lab.lan(2, mtu=1400)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address6)
        add(two, "vm1", vm1.address6)
        ping(vm1, vm2.address6, "-s", str(1280 - 40 - 8))
