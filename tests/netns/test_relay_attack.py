"""Between relays, and beside them, sits an enemy: nothing that he makes gets further.

    vm1 --- switch --- r1 --- within --- r2 --- vm2
              |
            beside

ALPHA_TRIO_INJECTED=100000 sets how many datagrams he makes at each place.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from attrs import define, frozen

from alpha_trio.proto.messages import Kind
from tests.netns.hostile import memory
from tests.netns.test_hostile import kernel_errors
from tests.netns.traffic import add, flowing, introduce, peer, ping
from tools.attacker import Beside, Flood, InLine, Watch, Way, slot
from tools.daemons import Daemon
from tools.forgeries import TELLABLE, UNTELLABLE, altered, unsigned
from tools.lab import Host, Lab, wait_until
from tools.numbered import Numbered

pytestmark = pytest.mark.netns

INJECTED = int(os.environ.get("ALPHA_TRIO_INJECTED", "20000"))
FEWER = 2_000  # where the number proves nothing
RATE = 20_000  # of the flood, datagrams a second
PACKETS = 400  # genuine ones a second, each way
LEAST = 0.5  # share of them that arrives under attack, however slow the machine
FAIR = 0.3  # the same where every fourth datagram is lost as well
GROWTH = 16e6  # bytes a relay may grow under attack
MEMORY = 64 << 20  # bytes that a relay may take for what it remembers
SYN_RATE, SYN_BURST = 500, 500  # that may pass of one source
STALL = 1.0  # s that a restart may cost
SETTLE = 20.0  # s until what is still missing after a flood will not come
STRICT = '[relay]\nenabled = true\nunseen = "drop"\n'
TOLERANT = "[relay]\nenabled = true\n"


@define(eq=False)
class Ground:
    """The hosts with their daemons, whose ends have a session, and both attackers."""

    hosts: list[Host]
    daemons: list[Daemon]
    within: InLine
    beside: Beside

    @property
    def ends(self):
        return self.hosts[0], self.hosts[-1]


@pytest.fixture(scope="module")
def ground():
    with Lab() as lab, InLine() as within, Beside(lab) as beside, ExitStack() as stack:
        hosts = lab.chain(2, wires={0: beside.wire, 1: within.wire})
        configs = "", STRICT, STRICT, ""
        daemons = [
            stack.enter_context(Daemon(host, config=config))
            for host, config in zip(hosts, configs, strict=True)
        ]
        introduce(daemons[0], daemons[-1], keepalive=20)
        there = Ground(hosts, daemons, within, beside)
        say_hello(there)
        yield there
        assert not any("Traceback" in daemon.log for daemon in daemons)


@contextmanager
def meddling(ground, mischief):
    """Within the block not all that passes the enemy goes on as it was."""
    ground.within.mischief = mischief
    try:
        yield
    finally:
        ground.within.mischief = None


def say_hello(ground):
    """An echo each way; what was under way before is where it was to go."""
    vm1, vm2 = ground.ends
    ping(vm1, vm2.address)
    ping(vm2, vm1.address)


@contextmanager
def traffic(ground):
    """Numbered packets both ways in the block; after it no more of them will come."""
    vm1, vm2 = ground.ends
    flows = Numbered(vm1, vm2, PACKETS), Numbered(vm2, vm1, PACKETS)
    for flow in flows:
        flow.start()
    try:
        wait_until(lambda: all(flow.received for flow in flows), "genuine packets")
        yield flows
    finally:
        for flow in flows:
            flow.pause()
        settle(flows)
        for flow in flows:
            flow.close()


def settle(flows):
    """Wait until nothing more arrives: a flood may delay it by seconds."""
    deadline = time.monotonic() + SETTLE
    before = []
    while before != (now := [flow.arrived for flow in flows]) or (
        any(flow.arrived < LEAST * flow.sent for flow in flows)
        and time.monotonic() < deadline
    ):
        before = now
        time.sleep(0.5)


def assert_genuine(ground, flows):
    """What arrived was sent, came once, and is a fair share of what was sent."""
    for flow in flows:
        assert flow.wrong == []
        assert flow.twice == []
        # Where every fourth datagram is lost few rounds carry all, and one that is
        # given up, or loses its A1 again and again, is much of that.
        assert len(flow.received) > FAIR * flow.sent
    for host in ground.ends:
        assert kernel_errors(host) == {}
    say_hello(ground)


@frozen
class Place:
    """Where the enemy sits, and which way he sends."""

    attacker: str
    direction: int
    sender: int  # the host he pretends to be
    relay: int  # the one that he meets
    behind: int  # the host behind that


PLACES = {
    "within, towards vm2": Place("within", 0, 0, 2, 3),
    "within, towards vm1": Place("within", 1, 3, 1, 0),
    "beside, towards vm2": Place("beside", 0, 0, 1, 2),
}


WITHIN = ["within, towards vm2", "within, towards vm1"]


class Observed:
    """What a host sent, and what of that address arrived behind a relay."""

    def __init__(self, ground, place):
        self._address = ground.hosts[place.sender].address
        self._sent = Watch(ground.hosts[place.sender], "eth0", Way.LEAVING)
        say_hello(ground)  # or what was under way would seem to have come from nowhere
        self._arrived = Watch(ground.hosts[place.behind], "eth0", Way.ARRIVING)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sent.close()
        self._arrived.close()

    def all(self):
        """The datagrams that were sent, and those that arrived; none was missed."""
        # In this order: what is sent meanwhile would seem to have come from nowhere.
        arrived, sent = self._all_of(self._arrived), self._all_of(self._sent)
        return sent, arrived

    def _all_of(self, watch):
        seen = watch.datagrams()
        assert watch.lost == 0
        return [each for each in seen if each.source == self._address]


def relay_of(daemon):
    return daemon.status()["relay"]


def wait_over(flood):
    wait_until(lambda: flood.is_over, "all of the flood", 20 + INJECTED / 1000)


# What a relay can tell


@pytest.mark.parametrize("where", PLACES)
def test_nothing_that_was_injected_leaves_the_next_relay(ground, where):
    place = PLACES[where]
    attacker, relay = getattr(ground, place.attacker), ground.daemons[place.relay]
    dropped = sum(relay_of(relay)["drops"].values())
    resident = memory(relay)
    flood = Flood(
        attacker, TELLABLE, rate=RATE, most=INJECTED, direction=place.direction
    )
    with Observed(ground, place) as observed:
        # With losses there are rounds, too, of which something is still to come.
        with meddling(ground, every_nth_lost(4)), traffic(ground) as flows, flood:
            wait_over(flood)
        sent, arrived = observed.all()
    assert {seen.mark for seen in sent} == {0}
    # A copy may overtake what it copies, and is as good; but only one of them passes.
    copies = {mark for mark, kind in flood.marks.items() if kind == "replayed S2"}
    assert {seen.mark for seen in arrived} - copies == {0}
    assert not counted(arrived) - counted(sent)
    # As many as the machine brought there; each was looked at and counted.
    assert sum(relay_of(relay)["drops"].values()) - dropped > LEAST * INJECTED
    # Who saw only one direction of the handshake has no ACK, or no ACKACK.
    assert len(flood.sent) >= len(TELLABLE) - 1
    assert_genuine(ground, flows)
    assert memory(relay) - resident < GROWTH
    assert relay_of(relay)["memory_bytes"] < MEMORY


def every_nth_lost(n):
    """Of the S2s with data, in either direction."""
    passed = Counter()

    def lose(direction, datagram):
        if slot(datagram) != Kind.S2:
            return [datagram]
        passed[direction] += 1
        return [datagram] if passed[direction] % n else []

    return lose


def counted(seen):
    """How often each datagram was there."""
    return Counter(each.datagram for each in seen)


def test_handshakes_with_a_wrong_signature_go_no_further(ground):
    """Before each ACK and ACKACK goes one with its signature changed."""
    made = Counter()

    def alter(_direction, datagram):
        if datagram[0] not in (Kind.ACK, Kind.ACKACK):
            return [datagram]
        made[datagram[0]] += 1
        return [unsigned(datagram, made.total(), ground.within.dice), datagram]

    vm1, vm2 = ground.ends
    there, back = (Observed(ground, PLACES[where]) for where in WITHIN)
    with there, back, meddling(ground, alter):
        for daemon, other in ((ground.daemons[0], vm2), (ground.daemons[-1], vm1)):
            daemon.request("peers.remove", name=other.name)
            add(daemon, other.name, other.address, keepalive=20)
            ping(daemon.host, other.address)
        for sent, arrived in (there.all(), back.all()):
            assert not counted(arrived) - counted(sent)
    assert made.keys() == {Kind.ACK, Kind.ACKACK}
    refused = [relay_of(daemon)["drops"] for daemon in ground.daemons[1:3]]
    assert all(drops["bad-signature"] >= 2 for drops in refused)


def test_what_is_altered_on_its_way_goes_no_further(ground):
    """A byte of each S2 is changed, at every place in turn; the original follows."""
    made = Counter()

    def alter(_direction, datagram):
        if slot(datagram) != Kind.S2:
            return [datagram]
        made[len(datagram)] += 1
        return [altered(datagram, made[len(datagram)], ground.within.dice), datagram]

    with Observed(ground, PLACES["within, towards vm2"]) as observed:
        with meddling(ground, alter), traffic(ground) as flows:
            wait_until(lambda: made.total() > 500, "altered packets", 30)
        sent, arrived = observed.all()
    assert not counted(arrived) - counted(sent)
    assert_genuine(ground, flows)


# What it cannot


def test_what_a_relay_cannot_tell_leads_to_no_delivery(ground):
    flood = Flood(ground.within, UNTELLABLE, rate=RATE / 10, most=FEWER)
    sessions = relay_of(ground.daemons[2])["sessions"]
    with Observed(ground, PLACES["within, towards vm2"]) as observed:
        with traffic(ground) as flows, flood:
            wait_over(flood)
        _, arrived = observed.all()
    passed = Counter(flood.marks[seen.mark] for seen in arrived if seen.mark)
    assert passed.keys() <= UNTELLABLE.keys()
    assert 0 < passed.total() < FEWER
    assert_genuine(ground, flows)
    assert relay_of(ground.daemons[2])["sessions"] == sessions


def test_a_flood_of_handshakes_is_thinned_and_disturbs_nobody(ground):
    strangers = {"SYN of a stranger": UNTELLABLE["SYN of a stranger"]}
    relay = ground.daemons[2]
    flood = Flood(ground.within, strangers, rate=RATE, most=INJECTED // 2)
    resident, begun = memory(relay), time.monotonic()
    with Observed(ground, PLACES["within, towards vm2"]) as observed:
        with traffic(ground) as flows, flood:
            wait_over(flood)
        _, arrived = observed.all()
    seconds = time.monotonic() - begun
    passed = sum(seen.mark != 0 for seen in arrived)
    assert 0 < passed <= SYN_BURST + SYN_RATE * seconds
    assert_genuine(ground, flows)
    assert peer(ground.daemons[0], "vm2")["state"] == "established"
    assert memory(relay) - resident < GROWTH


# Without relays


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
def test_a_restart_under_traffic_costs_less_than_a_second(ground, end):
    relay = ground.daemons[1]
    relay.config_file.write_text(TOLERANT)
    vm1, vm2 = ground.ends

    def restart():
        end(relay)
        relay.start()

    with flowing(vm1, vm2, vm2.address) as stream:
        go_on(stream)
        assert longest_pause(stream, restart) < STALL
        go_on(stream)
    assert relay_of(relay)["forwarded_packets"] > 0


def go_on(stream):
    """Wait until more of it has arrived."""
    start = stream.received
    wait_until(lambda: stream.received > start + (1 << 20), "the stream to go on")


def longest_pause(stream, action):
    """Seconds, of a stream while something is done."""
    pause, received, since = 0.0, stream.received, time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        doing = pool.submit(action)
        while not doing.done() or stream.received == received:
            now = time.monotonic()
            pause = max(pause, now - since)
            if stream.received != received:
                received, since = stream.received, now
            time.sleep(0.005)
        doing.result()
    return max(pause, time.monotonic() - since)


def test_without_relays_all_of_it_reaches_the_host_which_delivers_none(ground):
    for relay in ground.daemons[1:3]:
        relay.stop()
    flood = Flood(ground.within, TELLABLE, rate=RATE / 10, most=FEWER)
    with Observed(ground, PLACES["within, towards vm2"]) as observed:
        with traffic(ground) as flows, flood:
            wait_over(flood)
        _, arrived = observed.all()
    marks = Counter(flood.marks[seen.mark] for seen in arrived if seen.mark)
    assert marks == flood.sent
    assert_genuine(ground, flows)
