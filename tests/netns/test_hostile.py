"""Between the daemons sits an enemy: what arrives is genuine, once, and keeps coming.

vm1 192.168.10.60 --- Mallory --- vm2 192.168.10.61

ALPHA_TRIO_HOSTILE=1000000 sets how many datagrams the enemy gets into his hands.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from base64 import b64decode
from collections import Counter
from contextlib import contextmanager
from itertools import cycle
from random import Random

import pytest

from alpha_trio.proto.messages import KEY_SIZE
from alpha_trio.proto.transport.timing import BACKED_OFF_RTO, RTO_JITTER
from tests.netns.hostile import (
    DEEDS,
    Mallory,
    every_nth,
    everything,
    losing,
    memory,
)
from tests.netns.traffic import (
    Forger,
    flowing,
    introduce,
    peer,
    ping,
    send_tcp,
)
from tools.daemons import Daemon
from tools.forgeries import forged_syn
from tools.lab import wait_until
from tools.numbered import Numbered

pytestmark = pytest.mark.netns

DATAGRAMS = int(os.environ.get("ALPHA_TRIO_HOSTILE", "20000"))
HOSTILE_SHARE = 0.1
RATE = 1500  # inner packets a second, each way
SLOWEST = 500  # datagrams a second that Mallory and two daemons carry at least
REPETITION = BACKED_OFF_RTO * (1 + RTO_JITTER)  # s until an S1 comes again, at most
GROWTH = 16e6  # bytes a daemon may grow under attack
TOO_OLD = ("queue-full", "no-agreement")  # why packets are given up before they go
FLOOD_RATE = 20_000  # SYNs a second
FLOOD_SECONDS = 2


@pytest.fixture
def mallory(lab):
    with Mallory(lab) as mallory:
        yield mallory


@pytest.fixture
def daemons(mallory):
    """Running at both ends of Mallory's link, without peers."""
    vm1, vm2 = mallory.hosts
    with Daemon(vm1) as one, Daemon(vm2) as two:
        yield one, two
        assert "Traceback" not in one.log + two.log


def meet(one, two, **settings):
    """Have a session between both, however bad the link."""
    introduce(one, two, keepalive=20, **settings)
    for daemon, name in ((one, "vm2"), (two, "vm1")):
        daemon.cli("wait", name, "--timeout", "60", timeout=70)


class Exchange:
    """Numbered packets both ways, and an account of what became of them.

    At the end of the block the last of them has arrived; ``complete``: all of them.
    """

    def __init__(self, mallory, one, two, rate=RATE, complete=False):
        vm1, vm2 = mallory.hosts
        self._complete = complete
        self._arrived, self._since = [], 0.0
        self._mallory, self._ends = mallory, ((one, "vm2"), (two, "vm1"))
        mallory.spoiled.clear()
        self.flows = Numbered(vm1, vm2, rate), Numbered(vm2, vm1, rate)

    def __enter__(self):
        for flow in self.flows:
            flow.start()
        return self

    def __exit__(self, *_):
        for flow in self.flows:
            flow.pause()
        try:
            wait_until(self._is_settled, "the last packets", 40)
        finally:
            for flow in self.flows:
                flow.close()

    def _entries(self):
        """What sender and receiver say of each other, each way."""
        near, far = (peer(*end) for end in self._ends)
        return (near, far), (far, near)

    def _is_settled(self):
        """Whether it is over and stays so: what went early may have to come again."""
        if self._complete:
            return all(len(flow.received) == flow.sent for flow in self.flows)
        arrived = [flow.arrived for flow in self.flows]
        if not self._is_over() or self._arrived != arrived:
            self._arrived, self._since = arrived, time.monotonic()
        return time.monotonic() - self._since > REPETITION

    def _is_over(self):
        return self._mallory.is_idle and all(
            sender["queued"] == 0 and receiver["rx_packets"] == flow.arrived
            for flow, (sender, receiver) in zip(
                self.flows, self._entries(), strict=True
            )
        )

    def assert_genuine(self):
        """All that came was sent, and came once; and nothing else came, of any kind."""
        for flow in self.flows:
            assert flow.wrong == []
            assert flow.twice == []
        for host in self._mallory.hosts:
            assert kernel_errors(host) == {}

    def assert_explained(self):
        """Each packet arrived, waited too long, or its S2 was not let through.

        Of the S2s that were only late some were good for something all the same, and
        what went inside an S1 was repeated with it.
        """
        for way, (sender, receiver) in enumerate(self._entries()):
            sent, received = sender["tx_packets"], receiver["rx_packets"]
            given_up = sum(sender["drops"].get(reason, 0) for reason in TOO_OLD)
            assert sent + given_up == self.flows[way].sent
            assert received == len(self.flows[way].received)
            assert sent - self._mallory.spoiled[way] <= received <= sent


def carry(mallory, datagrams):
    """Wait until Mallory had so many more datagrams in his hands."""
    goal = mallory.carried + datagrams
    patience = 10 + datagrams / SLOWEST
    wait_until(lambda: mallory.carried >= goal, f"{datagrams} datagrams", patience)


def kernel_errors(host):
    """What the kernel of a host found wrong with packets it was given.

    Not that it had no room for some: that is what happens to floods.
    """
    names = (
        "UdpInErrors",
        "UdpRcvbufErrors",
        "UdpNoPorts",
        "IpInHdrErrors",
        "IpInAddrErrors",
        "TcpInErrs",
    )
    lines = host.run("nstat", "-asz", *names).stdout.splitlines()[1:]
    counted = {line.split()[0]: int(line.split()[1]) for line in lines}
    assert counted.keys() == {*names}
    counted["UdpInErrors"] -= counted.pop("UdpRcvbufErrors")
    return {name: number for name, number in counted.items() if number}


# The enemy on the path


def test_on_a_hostile_link_only_genuine_packets_arrive_and_each_once(mallory, daemons):
    mallory.mischief = everything(HOSTILE_SHARE)
    meet(*daemons)
    begun = time.monotonic()
    with Exchange(mallory, *daemons) as exchange:
        carry(mallory, DATAGRAMS // 10)
        before = [memory(daemon) for daemon in daemons]
        carry(mallory, DATAGRAMS)
    after = [memory(daemon) for daemon in daemons]
    report(mallory, exchange.flows, time.monotonic() - begun, before, after)
    assert mallory.deeds.keys() == DEEDS.keys()
    exchange.assert_genuine()
    exchange.assert_explained()
    assert all(b - a < GROWTH for a, b in zip(before, after, strict=True))


def report(mallory, flows, seconds, before, after):
    """The figures of a long run, shown by pytest -s."""
    print(f"\n{mallory.carried} datagrams, {seconds:.0f} s; {dict(mallory.deeds)}")
    for way, flow in enumerate(flows):
        received, spoiled = len(flow.received), mallory.spoiled[way]
        print(f"sent {flow.sent}, received {received}, S2s spoiled {spoiled}")
    print(f"resident before and after: {before} {after}")


def test_tcp_gets_through_a_hostile_link(mallory, daemons):
    (vm1, vm2), (one, two) = mallory.hosts, daemons
    mallory.mischief = everything(HOSTILE_SHARE / 2)
    meet(one, two)
    send_tcp(vm1, vm2, vm2.address, 100_000)
    send_tcp(vm2, vm1, vm1.address, 100_000)
    assert kernel_errors(vm1) == kernel_errors(vm2) == {}


# Not every third or fourth: a packet on a quiet line is S1, S2 and A1 each way, so that
# the same one may be lost each time, and an S2 that is not acknowledged comes once.
@pytest.mark.parametrize(("n", "early"), [(7, False), (13, True), (31, False)])
def test_every_nth_datagram_is_lost(mallory, daemons, n, early):
    mallory.mischief = every_nth(n)
    meet(*daemons, early=early)
    with Exchange(mallory, *daemons, rate=300) as exchange:
        carry(mallory, 1000)
    exchange.assert_genuine()
    exchange.assert_explained()


def test_a_ping_comes_back_by_reliable_rounds_though_every_third_is_lost(
    mallory, daemons
):
    vm1, vm2 = mallory.hosts
    mallory.mischief = every_nth(3)
    meet(*daemons, reliable=True)
    for source, target in ((vm1, vm2), (vm2, vm1)) * 5:
        ping(source, target.address, "-W", "10")


# Not every third lost: there the beginning of a session can cost half a minute.
def test_by_reliable_rounds_all_of_a_stream_arrives_and_each_once(mallory, daemons):
    mallory.mischief = losing(0.1)
    one, two = daemons
    meet(one, two, reliable=True)
    with Exchange(mallory, one, two, rate=300, complete=True) as exchange:
        carry(mallory, 2000)
    exchange.assert_genuine()
    for sender, receiver in ((peer(one, "vm2"), two), (peer(two, "vm1"), one)):
        assert sender["drops"].keys().isdisjoint({*TOO_OLD, "unacknowledged"})
        (other,) = receiver.status()["peers"]
        assert sender["tx_packets"] == other["rx_packets"]
        assert sender["reliable_rounds"] == sum(sender["rounds"].values()) > 0


# Floods of handshakes


@contextmanager
def flooded(forger, source, identity):
    """Within the block, FLOOD_RATE SYNs a second, each with a nonce of its own."""
    dice = Random(7)
    syns = [forged_syn(identity, dice) for _ in range(1000)]
    done, sent = threading.Event(), Counter()

    def flood():
        begun = time.monotonic()
        for syn in cycle(syns):
            forger.send(syn, source)
            sent["syn"] += 1
            while sent["syn"] > (time.monotonic() - begun) * FLOOD_RATE:
                if done.wait(0.002):
                    return
            if done.is_set():
                return

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        yield sent
    finally:
        done.set()
        flooding.join()


@pytest.mark.parametrize("who", ["the peer", "another at its address", "a stranger"])
def test_a_flood_of_handshakes_stops_nobody(pair, who):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Forger(vm2, vm1) as forger:
        introduce(one, two)
        ping(vm1, vm2.address)
        key = b64decode(two.status()["key"])
        identity = key if who == "the peer" else os.urandom(KEY_SIZE)
        source = "192.168.10.99" if who == "a stranger" else vm2.address
        handshakes, before = one.log.count("is done"), memory(one)
        with (
            flowing(vm1, vm2, vm2.address) as stream,
            flooded(forger, source, identity) as sent,
        ):
            wait_until(lambda: sent["syn"] > FLOOD_RATE / 10, "a flood")
            arrived = stream.received
            wait_until(lambda: sent["syn"] > FLOOD_RATE / 2, "more of it")
            assert peer(one, "vm2")["state"] == "established"
            wait_until(lambda: stream.received > arrived, "the stream to go on")
        ping(vm1, vm2.address)
        ping(vm2, vm1.address)
        assert one.log.count("is done") == handshakes
        assert memory(one) - before < GROWTH
        assert one.log.count("\n") < 20


# Peers that fall silent


def test_traffic_is_back_soon_after_kill_9_of_the_other_side(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        two.kill9()
        assert ping(vm1, vm2.address, "-W", "0.2", check=False) is None
        two.start()

        def answered():
            return ping(vm1, vm2.address, "-W", "0.5", check=False)

        wait_until(answered, "an answer", timeout=20)
        send_tcp(vm1, vm2, vm2.address)
        send_tcp(vm2, vm1, vm1.address)


def test_a_daemon_that_was_stopped_goes_on_at_once(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        os.kill(two.pid, signal.SIGSTOP)
        try:
            assert ping(vm1, vm2.address, "-W", "2", check=False, count=3) is None
        finally:
            os.kill(two.pid, signal.SIGCONT)
        ping(vm1, vm2.address)
        ping(vm2, vm1.address)
        send_tcp(vm1, vm2, vm2.address)
        assert one.log.count("Initiating handshake") == 1
