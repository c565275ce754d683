"""``alpha-trio trace``: who checks packets on the way, and where they get lost.

    vm1 --- link 0 --- r1 --- link 1 --- r2 --- link 2 --- vm2

Each link may have somebody in it who does something to every fifth packet.
"""

import json
from contextlib import ExitStack, contextmanager
from xml.etree import ElementTree

import pytest
from attrs import define, field

from tests.netns.traffic import add, flowing, introduce, peer, ping
from tests.proto.traced import Deed, alter, inject, lose, repeat
from tools.attacker import InLine
from tools.daemons import Daemon
from tools.lab import Host, Lab, LabError, wait_until
from tools.numbered import Numbered

pytestmark = pytest.mark.netns

RELAY = "[relay]\nenabled = true\ntrace = true\n"
SILENT = "[relay]\nenabled = true\n"
LINKS = 0, 1, 2
KINDS = {"lost": lose, "altered": alter, "injected": inject, "repeated": repeat}
PACKETS = 300  # a second
DATA = "udp dport 1234 udp length > 400"  # S2s with a packet of 500 bytes and more
MASQUERADE = """
table ip nat {
    chain out {
        type nat hook postrouting priority srcnat;
        oifname "eth1" masquerade
    }
}
"""
FIREWALL = """
table ip guard {
    chain arriving {
        type filter hook input priority filter; policy drop;
        iifname { "lo", "alpha0" } accept
        ct state established,related accept
    }
}
"""
FINE = dict.fromkeys(KINDS, 0)


@define(eq=False)
class Ground:
    """A chain whose ends have a session, and whose links are in our hands."""

    hosts: list[Host]
    daemons: list[Daemon]
    links: list[InLine] = field(factory=list)

    @contextmanager
    def doing(self, link, deed):
        """Do something to the packets to vm2 on a link."""

        def mischief(direction, datagram):
            return [datagram] if direction else deed(datagram)

        self.links[link].mischief = mischief
        try:
            yield
        finally:
            self.links[link].mischief = None

    def trace(self, *options, at=0, to="vm2"):
        done = self.daemons[at].cli("trace", to, "--json", *options)
        return json.loads(done.stdout)


def started(stack, hosts, configs):
    daemons = [
        stack.enter_context(Daemon(host, config=config))
        for host, config in zip(hosts, configs, strict=True)
    ]
    introduce(daemons[0], daemons[-1])
    ping(hosts[0], hosts[-1].address)
    return daemons


@pytest.fixture(scope="module")
def ground():
    """For tests that change nothing but what the links do."""
    with Lab() as lab, ExitStack() as stack:
        links = [stack.enter_context(InLine()) for _ in LINKS]
        hosts = lab.chain(2, wires={n: link.wire for n, link in enumerate(links)})
        yield Ground(hosts, started(stack, hosts, ("", RELAY, RELAY, "")), links)


@pytest.fixture
def talk(ground):
    """Packets from vm1 to vm2."""
    flow = Numbered(ground.hosts[0], ground.hosts[-1], PACKETS)
    flow.start()
    wait_until(lambda: flow.received, "packets")
    yield
    flow.pause()
    flow.close()


def kinds(segment):
    return {kind: segment[kind] for kind in KINDS}


def key_of(daemon):
    return daemon.cli("key", "show").stdout.strip()


def test_the_nodes_of_a_path(ground):
    found = ground.trace("--seconds", "0")
    hops = found["hops"]
    assert [hop["role"] for hop in hops] == ["here", "relay", "relay", "peer"]
    assert [hop["key"] for hop in hops] == [key_of(daemon) for daemon in ground.daemons]
    addresses = [None, "192.168.10.2", "192.168.11.2", "192.168.12.61:1234"]
    assert [hop["address"] for hop in hops] == addresses
    assert [hop["hop_limit"] for hop in hops] == [None, 64, 63, None]
    assert [hop["name"] for hop in hops] == [None, None, None, "vm2"]
    assert len({hop["forth"]["passed"] for hop in hops}) == 1
    assert [kinds(segment) for segment in found["segments"]] == [FINE] * 3


def test_the_nodes_are_drawn(ground):
    drawn = ground.daemons[0].cli("trace", "vm2", "--seconds", "0", "--svg", "-").stdout
    texts = [text.text for text in ElementTree.fromstring(drawn).iter() if text.text]
    for hop in ground.trace("--seconds", "0")["hops"]:
        assert f"key {hop['fingerprint']}" in texts
        assert hop["address"] is None or hop["address"] in texts


def test_both_ends_see_the_relays_in_their_order(ground):
    there = [hop["key"] for hop in ground.trace("--seconds", "0")["hops"]]
    back = ground.trace("--seconds", "0", at=-1, to="vm1")["hops"]
    assert [hop["key"] for hop in back] == there[::-1]


def test_nothing_is_blamed_on_links_that_are_good(ground, talk):
    segments = ground.trace("--seconds", "1")["segments"]
    assert [kinds(segment) for segment in segments] == [FINE] * 3
    assert min(segment["packets"] for segment in segments) > PACKETS / 2


def said_between(ground, link, kind):
    """The lines on links, of a look long enough for something to have happened."""

    def lines():
        text = ground.daemons[0].cli("trace", "vm2", "--seconds", "0.5").stdout
        found = [line for line in text.splitlines() if line.startswith("  between")]
        return found if kind in found[link].replace("nothing of", "") else None

    return wait_until(lines, f"{kind} is said of link {link}")


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_link_where_it_happens_is_named(ground, talk, link, kind):
    deed = Deed(KINDS[kind])
    with ground.doing(link, deed):
        wait_until(lambda: deed.done > 5, "something happens")
        segments = ground.trace("--seconds", "1")["segments"]
        lines = said_between(ground, link, kind)
    for number, segment in enumerate(segments):
        if number != link:
            assert kinds(segment) == FINE
    blamed = kinds(segments[link])
    assert blamed.pop(kind) > PACKETS / 20
    assert set(blamed.values()) == {0}
    assert [kind in line.replace("nothing of", "") for line in lines] == [
        number == link or kind == "lost" for number in LINKS
    ]
    assert sum("nothing of" not in line for line in lines) == (
        kind in ("lost", "altered")
    )


@pytest.fixture
def chain(lab):
    """Links of the kernel's, which carry whole runs of datagrams."""
    return lab.chain(2)


def lost(ground):
    return [s["lost"] for s in ground.trace("--seconds", "0")["segments"]]


@pytest.mark.parametrize("link", LINKS)
def test_loss_in_a_fast_stream_is_named(chain, link):
    vm1, _, _, vm2 = chain
    with ExitStack() as stack:
        ground = Ground(chain, started(stack, chain, ("", RELAY, RELAY, "")))
        with flowing(vm1, vm2, vm2.address) as stream:
            wait_until(lambda: stream.received > 1 << 20, "a stream")
            chain[link + 1].lose(0.05, DATA)
            wait_until(lambda: lost(ground)[link], "a loss where it is")
        found = lost(ground)
    assert found.pop(link) > 0
    assert found == [0, 0]


def test_relays_answer_only_if_they_are_told_to(chain):
    with ExitStack() as stack:
        ground = Ground(chain, started(stack, chain, ("", SILENT, RELAY, "")))
        hops = ground.trace("--seconds", "0")["hops"]
        assert [hop["address"] for hop in hops[1:-1]] == ["192.168.11.2"]


def test_over_ipv6(chain):
    vm1, _, _, vm2 = chain
    with ExitStack() as stack:
        daemons = started(stack, chain, ("", RELAY, RELAY, ""))
        for daemon, other in ((daemons[0], vm2), (daemons[-1], vm1)):
            daemon.request("peers.remove", name=other.name)  # one host is one peer
            add(daemon, "six", other.address6)
        ping(vm1, vm2.address6)
        hops = Ground(chain, daemons).trace("--seconds", "0", to="six")["hops"]
        addresses = [hop["address"] for hop in hops[1:]]
        assert addresses == ["fd00:10::2", "fd00:11::2", f"[{vm2.address6}]:1234"]


def test_what_cannot_be_traced(chain):
    vm1, _, _, vm2 = chain
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address)
        with pytest.raises(
            LabError, match=r"exit 1: .*no session with vm2: .*wait vm2"
        ):
            one.cli("trace", "vm2")
        with pytest.raises(LabError, match=r"exit 4: .*no peer is called 'vm9'"):
            one.cli("trace", "vm9")
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        vm2.lose(1.0, "udp dport 1234")
        with pytest.raises(LabError, match=r"exit 5: .*nobody on the way to vm2 has"):
            one.cli("trace", "vm2")
        vm2.lose(0)
        for daemon in one, two:
            (other,) = daemon.status()["peers"]
            daemon.cli("peers", "set", other["name"], "--mode", "plain")
        with pytest.raises(LabError, match=r"exit 1: .*has mode plain"):
            one.cli("trace", "vm2")
        assert peer(one, "vm2")["configured_mode"] == "plain"


def test_answers_pass_nat_and_a_firewall(chain):
    """r1 hides vm1, which lets in only what belongs to its own flows; r2 relays."""
    vm1, r1, _, vm2 = chain
    r1.run("nft", "-f", "-", stdin=MASQUERADE)
    vm1.run("nft", "-f", "-", stdin=FIREWALL)
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(Daemon(host, config=config))
            for host, config in zip(chain, ("", "", RELAY, ""), strict=True)
        ]
        add(daemons[0], "vm2", vm2.address)
        add(daemons[-1], "vm1", "192.168.11.1", allow=[vm1.address])
        ping(vm1, vm2.address)
        hops = Ground(chain, daemons).trace("--seconds", "0")["hops"]
        assert [hop["address"] for hop in hops[1:-1]] == ["192.168.11.2"]
