"""The attacker of other tests and the demos: sees, alters and adds what he should.

vm1 192.168.10.60 --- within, or beside --- vm2 192.168.10.61
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import contextmanager

import pytest

from alpha_trio.proto.messages import Kind
from tools.attacker import PORT, Beside, Flood, InLine, Watch, Way
from tools.lab import wait_until

pytestmark = pytest.mark.netns

UDP_SEGMENT = 103
S2 = bytes([Kind.S2, 1, 0, 0]) + bytes(range(100))


@contextmanager
def speaking(vm1, vm2):
    """The two hosts' sockets of the tunnel's port, connected to each other."""
    with vm1.socket() as one, vm2.socket() as two:
        for sock, here, there in ((one, vm1, vm2), (two, vm2, vm1)):
            sock.bind((here.address, PORT))
            sock.connect((there.address, PORT))
            sock.settimeout(5)
        yield one, two


def test_within_the_link_everything_passes_and_is_remembered(lab):
    with InLine() as mallory:
        hosts = lab.chain(0, wires={0: mallory.wire})
        with speaking(*hosts) as (one, two):
            one.send(S2)
            two.send(b"\x06 back")
            assert (two.recv(200), one.recv(200)) == (S2, b"\x06 back")
        there, back = mallory.sights
        wait_until(lambda: there.count == back.count == 1, "both remembered")
        assert there.latest(Kind.S2) == S2
        assert there.all(Kind.A1) == []
        with pytest.raises(LookupError):
            back.latest(Kind.S2)


def test_within_the_link_a_datagram_can_be_replaced_and_others_be_added(lab):
    with InLine(lambda _, datagram: [datagram[:5], datagram]) as mallory:
        hosts = lab.chain(0, wires={0: mallory.wire})
        with speaking(*hosts) as (one, two), Watch(hosts[1], "eth0", Way.ARRIVING) as w:
            one.send(S2)
            assert [two.recv(200), two.recv(200)] == [S2[:5], S2]
            mallory.send(0, b"added", mark=63)
            assert two.recv(200) == b"added"
            assert [seen.mark for seen in w.datagrams()] == [0, 0, 63]
        # What is not the tunnel's is none of his business.
        hosts[0].run("ping", "-c", "1", "-W", "2", hosts[1].address6)
        assert mallory.carried == 1


@pytest.mark.parametrize("hub", [True, False])
def test_beside_the_link_one_sees_what_a_hub_repeats(lab, hub):
    with Beside(lab, hub=hub) as mallory:
        vm1, vm2 = lab.chain(0, wires={0: mallory.wire})
        vm1.run("ping", "-c", "1", "-W", "2", vm2.address)  # a switch learns from it
        with speaking(vm1, vm2) as (one, two):
            one.send(S2)
            assert two.recv(200) == S2
            if hub:
                wait_until(lambda: mallory.sights[0].count, "the datagram seen")
                assert mallory.sights[0].latest(Kind.S2) == S2
            else:
                mallory.aim(0, vm1.address, vm2.address)
            mallory.send(0, b"from nobody", mark=1)
            assert two.recv(200) == b"from nobody"
        assert mallory.sights[0].count == hub
        assert mallory.sights[1].count == 0


def test_a_watch_sees_each_datagram_of_a_super_packet(pair):
    with speaking(*pair) as (one, two), Watch(pair[0], "eth0", Way.LEAVING) as watch:
        one.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 30)
        one.send(S2)
        assert b"".join(two.recv(200) for _ in range(4)) == S2
        seen = watch.datagrams()
        assert [each.datagram for each in seen] == [
            S2[:30],
            S2[30:60],
            S2[60:90],
            S2[90:],
        ]
        assert {each.source for each in seen} == {pair[0].address}
        two.send(b"not leaving but arriving")
        one.recv(200)
        assert watch.datagrams() == []
        assert watch.lost == 0


def test_a_flood_is_bounded_and_each_kind_has_its_mark(lab):
    kinds = {
        "numbered": lambda _sight, _dice, number: bytes([number]),
        "copied": lambda sight, _dice, _number: sight.latest(Kind.S2),
        "impossible": lambda sight, _dice, _number: sight.latest(Kind.A2),
    }
    with InLine() as mallory:
        hosts = lab.chain(0, wires={0: mallory.wire})
        with speaking(*hosts) as (one, two), Watch(hosts[1], "eth0", Way.ARRIVING) as w:
            one.send(S2)
            assert two.recv(200) == S2
            wait_until(lambda: mallory.sights[0].count, "the datagram remembered")
            with Flood(mallory, kinds, rate=10_000, most=100) as flood:
                wait_until(lambda: flood.is_over, "the flood")
            for _ in range(100):
                two.recv(200)
            assert flood.sent == {"numbered": 50, "copied": 50}
            marks = Counter(flood.marks.get(seen.mark) for seen in w.datagrams())
    assert marks == {**flood.sent, None: 1}
