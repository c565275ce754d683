"""Marks of congestion: copied outward and combined inward, RFC 6040."""

import pytest

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.packets import frames
from tests.proto.inner import CWR, TCP, UDP, Packet, parse
from tests.proto.simulation import Simulation

NOT_ECT, ECT_1, ECT_0, CE = range(4)
BULK = 10 << 2  # a DSCP
ENDS = {
    4: ("192.168.10.60", "192.168.10.61"),
    6: ("fd00:10::60", "fd00:10::61"),
}
CARRIERS = {"adaptive": Kind.S2, "plain": Kind.DATA}


def agreed(mode, **options):
    sim = Simulation(mode=mode, **options)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.run(1)
    sim.classes.clear()
    return sim


def carriers(sim):
    """The traffic classes of what carried packets, and those of all else."""
    kind = CARRIERS[sim.mode]
    return (
        [shown for what, shown in sim.classes if what == kind],
        [shown for what, shown in sim.classes if what != kind],
    )


@pytest.mark.parametrize("mode", CARRIERS)
@pytest.mark.parametrize("ecn", [NOT_ECT, ECT_1, ECT_0, CE])
def test_a_packet_is_carried_with_its_own_ecn(mode, ecn):
    sim = agreed(mode, early=False)
    packet = sim.packet("vm1", "vm2", payload=b"x", traffic_class=BULK | ecn)
    sim.emit("vm1", packet.frame())
    sim.run(1)
    carried, others = carriers(sim)
    assert (carried, set(others)) == ([ecn], set(others) & {0})
    assert sim.hosts["vm2"].received[-1].traffic_class == BULK | ecn


@pytest.mark.parametrize("mode", CARRIERS)
@pytest.mark.parametrize("reliable", [False, True])
def test_packets_of_different_ecn_share_a_round_but_no_send(mode, reliable):
    if mode == "plain" and reliable:
        return
    sim = agreed(mode, reliable=reliable, early=False)
    sim.send("vm1", "vm2")  # a round under way, for which the others wait
    marks = [ECT_0, ECT_0, NOT_ECT, CE, CE, ECT_0]
    for number, ecn in enumerate(marks):
        payload = b"%d" % number
        packet = sim.packet("vm1", "vm2", payload=payload, traffic_class=ecn)
        sim.emit("vm1", packet.frame())
    sim.run(2)
    arrived = {p.payload: p.traffic_class for p in sim.hosts["vm2"].received}
    assert [arrived[b"%d" % i] for i in range(len(marks))] == marks
    carried, _ = carriers(sim)
    assert {*carried} == {NOT_ECT, ECT_0, CE}


def test_a_repeated_packet_has_its_ecn_again():
    sim = agreed("adaptive", reliable=True)
    sim.block("vm1", "vm2")
    packet = sim.packet("vm1", "vm2", payload=b"x", traffic_class=ECT_0)
    sim.emit("vm1", packet.frame())
    sim.run(0.5)
    sim.unblock()
    sim.block("vm2", "vm1")
    sim.run(2)
    sim.unblock()
    sim.run(5)
    carried, _ = carriers(sim)
    assert carried
    assert {*carried} == {ECT_0}
    assert sim.hosts["vm2"].received[-1].payload == b"x"


@pytest.mark.parametrize(
    ("inner", "outer", "result"),
    [
        (NOT_ECT, ECT_0, NOT_ECT),
        (NOT_ECT, ECT_1, NOT_ECT),
        (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, ECT_0),
        (ECT_0, ECT_0, ECT_0),
        (ECT_0, ECT_1, ECT_1),
        (ECT_0, CE, CE),
        (ECT_1, NOT_ECT, ECT_1),
        (ECT_1, ECT_0, ECT_1),
        (ECT_1, ECT_1, ECT_1),
        (ECT_1, CE, CE),
        (CE, NOT_ECT, CE),
        (CE, ECT_0, CE),
        (CE, ECT_1, CE),
        (CE, CE, CE),
    ],
)
@pytest.mark.parametrize("mode", CARRIERS)
def test_what_arrives_is_combined_as_rfc_6040_says(mode, inner, outer, result):
    sim = agreed(mode)
    vm2 = sim.hosts["vm2"]
    before = len(vm2.received)
    sim.ecn = outer
    packet = sim.packet("vm1", "vm2", payload=b"x", traffic_class=BULK | inner)
    sim.emit("vm1", packet.frame())
    sim.run(1)
    told = [p.traffic_class for p in vm2.received[before:]]
    assert told == ([] if result is None else [BULK | result])
    assert vm2.drops()[Drop.CONGESTED] == (result is None)
    assert vm2.garbage == 0  # checksums are right


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ecn", [ECT_1, CE])
@pytest.mark.parametrize("traffic_class", [ECT_0, 0xFC | ECT_0, 0x14 | ECT_0])
def test_a_super_packet_is_marked_whole(version, protocol, ecn, traffic_class):
    size = {TCP: 1000, UDP: 900}[protocol]
    packet = Packet(
        *ENDS[version],
        protocol,
        bytes(3500),
        flags=CWR if protocol == TCP else 0,
        segment_size=size,
        traffic_class=traffic_class,
    )
    cut = frames.cut(packet.frame(), 1400)
    first = len(cut.headers) + cut.size
    parts = frames.join_untrusted(cut.word, len(cut.segments), first, cut.data)
    assert frames.mark(parts, ecn)
    found = [parse(bytes(whole)) for whole in frames.finished(parts)]
    assert {p.traffic_class for p in found} == {traffic_class & 0xFC | ecn}
    assert b"".join(p.payload for p in found) == packet.payload


def test_marking_alters_no_buffer_of_others():
    packet = Packet(payload=b"x" * 20, traffic_class=ECT_0).build()
    borrowed = memoryview(bytearray(packet))
    parts = [bytes(frames.VIRTIO_SIZE), borrowed]
    assert frames.mark(parts, CE)
    assert bytes(borrowed) == packet
    assert parse(bytes(parts[1])).traffic_class == CE


def test_the_dscp_is_seen_outside_only_if_asked_for():
    for visible, seen in ((0x03, ECT_0), (0xFF, BULK | ECT_0)):
        sim = Simulation(mode="adaptive", early=False)
        sim.host("vm1").table.visible = visible
        sim.host("vm2")
        sim.peer("vm1", "vm2")
        sim.peer("vm2", "vm1")
        assert sim.ping("vm1", "vm2")
        sim.classes.clear()
        fields = {"payload": b"x", "traffic_class": BULK | ECT_0}
        sim.emit("vm1", sim.packet("vm1", "vm2", **fields).frame())
        sim.run(1)
        assert carriers(sim)[0] == [seen]
