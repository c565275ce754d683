"""Marks of congestion and traffic classes, with real hosts and a router between them.

vm1 192.168.10.60 --- r1 --- 192.168.11.61 vm2
"""

from __future__ import annotations

import socket

import pytest

from alpha_trio.proto.messages import CONTROL, EARLY_ROUND, Kind
from tests.netns.traffic import Tap, add, drops, family_of, ping
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

IP_RECVTOS = 13
NOT_ECT, ECT_1, ECT_0, CE = range(4)
MARKING = (
    "table inet lab { chain crossing { type filter hook forward priority 0;"
    " udp dport 1234 %s ecn set ce; }; }"
)


def far(host, version):
    return host.address if version == 4 else host.address6


def brings_packets(message):
    """Whether there are packets in it: not in control rounds, as size probes are."""
    kind, shape = message[0], message[10]
    if kind == Kind.S1:
        return shape & EARLY_ROUND != 0
    if kind == Kind.S2:
        return not shape & (CONTROL | EARLY_ROUND)
    return kind == Kind.DATA


def outer_classes(packets, kind=None):
    """The traffic classes of the tunnel's datagrams that bring packets, or of a kind
    that do not."""
    messages = [(p.payload[8:], p.traffic_class) for p in packets if p.is_tunnel]
    if kind is None:
        return {shown for message, shown in messages if brings_packets(message)}
    return {
        shown
        for message, shown in messages
        if message[0] == kind and not brings_packets(message)
    }


def option_of(address):
    if ":" in address:
        return socket.IPPROTO_IPV6, socket.IPV6_TCLASS
    return socket.IPPROTO_IP, socket.IP_TOS


def carried(source, target, address, traffic_class, expected=3):
    """Send three UDP packets of this class; the classes of those that arrive."""
    option = option_of(address)
    family = family_of(address)
    with target.socket(family) as inbound, source.socket(family) as outbound:
        inbound.bind((address, 0))
        inbound.settimeout(10)
        wants = {socket.IP_TOS: IP_RECVTOS, socket.IPV6_TCLASS: socket.IPV6_RECVTCLASS}
        inbound.setsockopt(option[0], wants[option[1]], 1)
        outbound.setsockopt(*option, traffic_class)
        for _ in range(3):
            outbound.sendto(b"x", inbound.getsockname())
        found = [inbound.recvmsg(10, 100)[1] for _ in range(expected)]
    return [messages[0][2][0] for messages in found]


@pytest.fixture
def routed(lab):
    return lab.chain(1)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["adaptive", "plain"])
def test_ecn_goes_outward_and_what_routers_say_comes_in(routed, mode, version):
    vm1, r1, vm2 = routed
    target = far(vm2, version)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", target, mode=mode)
        add(two, "vm1", far(vm1, version), mode=mode)
        ping(vm1, target)
        for ecn in (NOT_ECT, ECT_0, ECT_1, CE):
            with Tap(vm1) as tap:
                assert carried(vm1, vm2, target, ecn) == [ecn] * 3
                assert outer_classes(tap.packets()) == {ecn}
        r1.run("nft", "-f", "-", stdin=MARKING % ("ip" if version == 4 else "ip6"))
        for ecn in (ECT_0, ECT_1, CE):
            assert carried(vm1, vm2, target, ecn) == [CE] * 3
        carried(vm1, vm2, target, NOT_ECT, expected=0)
        wait_until(lambda: drops(two, "vm1").get("congested") == 3, "dropped")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("dscp", "inner", "outer", "control"),
    [("46", 10 << 2, 46 << 2, 46 << 2), ("copy", 10 << 2 | 2, 10 << 2 | 2, 0)],
)
def test_dscp_is_fixed_or_copied(pair, version, dscp, inner, outer, control):
    vm1, vm2 = pair
    target = far(vm2, version)
    with Daemon(vm1, "--dscp", dscp) as one, Daemon(vm2) as two, Tap(vm1) as tap:
        add(one, "vm2", target)
        add(two, "vm1", far(vm1, version))
        assert carried(vm1, vm2, target, inner) == [inner] * 3
        seen = [p for p in tap.packets() if p.source == far(vm1, version)]
        assert outer_classes(seen) == {outer}
        assert outer_classes(seen, Kind.SYN) == {control}
        assert outer_classes(seen, Kind.A1) <= {control}
        assert outer_classes(seen, Kind.S1) <= {control}
