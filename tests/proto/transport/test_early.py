"""Early data between the two ends: what it gains, and what it must never do."""

from collections import Counter, defaultdict
from hashlib import sha256
from random import Random

import pytest
from attrs import define, field

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    CONTROL,
    MAX_EARLY,
    NO_EARLY,
    NODE_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    S2_TAIL,
    TAG_SIZE,
    Kind,
    join_early,
)
from alpha_trio.proto.packets.frames import cut
from alpha_trio.proto.primitives import EARLY_USE
from alpha_trio.proto.transport import Arrival, EarlyState
from alpha_trio.proto.transport.early import LOSSES, TRIALS, TRIES, Early
from alpha_trio.proto.transport.sender import CONTROL_LIFETIME, ROUND_LIFETIME
from tests.proto.ends import ELSEWHERE, Ends, changed, head, of_kind
from tests.proto.inner import Packet
from tests.proto.simulation import Hostile, Link, Simulation, remote_of

EARLY_SHAPE = 0x20
ONE_WAY = 0.05  # s
WORD = bytes(8)  # frame word of a packet that is whole
LARGE = 1245  # bytes of a packet that fits its S2, but no S1


@define
class Far(Link):
    """Takes its time, and loses what it is told to."""

    one_way: float = ONE_WAY
    loses: object = field(default=lambda datagram: False)

    def carry(self, datagram):
        if not self.loses(datagram):
            yield self.one_way, datagram


def is_early(datagram: bytes, *, filled: bool = True) -> bool:
    size = S1_FIXED_SIZE + NODE_SIZE + TAG_SIZE
    early = datagram[0] == Kind.S1 and head(datagram).shape == EARLY_SHAPE
    return early and (len(datagram) > size or not filled)


def far(**options) -> Simulation:
    sim = Simulation(link=Far(), mode="adaptive", **options)
    sim.pair()
    return sim


def arrival_time(sim: Simulation, number: int = 1) -> float:
    """Seconds until packets sent together have all arrived."""
    begun, host = sim.now, sim.hosts["vm2"]
    sent = sim.send("vm1", "vm2", number)
    while not set(sent) <= set(host.payloads()):
        sim.run(0.001)
        assert sim.now < begun + 5
    return sim.now - begun


def settled(**options) -> Simulation:
    """A session over a long way, with all its associations."""
    sim = far(**options)
    assert sim.ping("vm1", "vm2")
    sim.run(3)
    for _ in range(4):
        sim.ping("vm1", "vm2")
        sim.run(1)
    sim.sent.clear()
    return sim


# -- what it gains


def test_a_packet_that_comes_alone_takes_half_a_round_trip():
    assert arrival_time(settled()) == pytest.approx(ONE_WAY, abs=0.002)


def test_without_it_takes_one_and_a_half():
    sim = settled(early=False)
    assert arrival_time(sim) == pytest.approx(3 * ONE_WAY, abs=0.002)


def test_the_first_packet_takes_the_handshake_and_one_way():
    """SYN, ACK, and behind the ACKACK the packet: one and a half round trips."""
    assert arrival_time(far()) == pytest.approx(3 * ONE_WAY, abs=0.002)


@pytest.mark.parametrize("interval", [0.02, 0.05, 0.09, 0.13])
def test_several_key_strokes_are_under_way_at_once(interval):
    sim = settled()
    sent, host = {}, sim.hosts["vm2"]
    before, late = len(host.received), []
    for _ in range(60):
        (payload,) = sim.send("vm1", "vm2")
        sent[payload] = sim.now
        until = sim.now + interval
        while sim.now < until:
            sim.run(0.005)
            arrived = host.received[before:]
            late += [sim.now - sent[packet.payload] for packet in arrived]
            before = len(host.received)
    assert max(late) <= ONE_WAY + 0.006
    assert len(late) >= 55


def test_packets_that_come_together_go_together():
    ends = Ends.make(early=True)
    for number in range(8):
        packet = Packet(payload=b"%d" % number)
        ends.one.transport.outgoing(cut(packet.frame(), 60_000), 0.0, ends.one.out)
    ends.one.transport.push(0.0, ends.one.out)
    (s1,) = ends.one.sent()
    assert is_early(s1)
    ends.two.take(s1)
    assert len(ends.two.received) == 8


# -- when not


def test_what_does_not_fit_waits_for_its_agreement():
    sim = settled()
    packet = sim.packet("vm1", "vm2", payload=bytes(LARGE))
    sim.emit("vm1", packet.frame())
    sim.run(ONE_WAY + 0.01)
    assert not [s for s in sim.messages(Kind.S1, "vm1") if is_early(s.data)]
    sim.run(1)
    assert sim.hosts["vm2"].received[-1].payload == bytes(LARGE)


def test_nothing_overtakes_its_flow():
    """A large packet waits for its A1, and a small one behind it."""
    sim = settled()
    large = sim.packet("vm1", "vm2", payload=bytes(LARGE))
    small = sim.packet("vm1", "vm2", payload=b"small")
    for packet in (large, small):
        sim.emit("vm1", packet.frame())
        sim.run(0.02)
    sim.run(1)
    sizes = [len(p.payload) for p in sim.hosts["vm2"].received[-2:]]
    assert sizes == [LARGE, 5]


def test_nor_across_a_renewal():
    """What the old session did not disclose goes again, and knows its flow."""
    sim = settled()
    sim.link.one_way = 0.001
    for _ in range(8):
        assert sim.ping("vm1", "vm2")
    session = sim.session("vm1", "vm2")
    old = session.current
    unheard = bytes([Kind.A1]), old.local_id.to_bytes(4)
    sim.link.loses = lambda datagram: (datagram[:1], datagram[4:8]) == unheard
    sent = [bytes([number]) * LARGE for number in range(20)]
    for payload in sent:
        sim.emit("vm1", sim.packet("vm1", "vm2", payload=payload).frame())
    sim.run(0.2)
    sim.hosts["vm1"].table.ask(session, sim.now)
    while session.current is old:
        sim.run(0.0001)
    assert len(session.current.sender.queue) == len(sent)
    sent += sim.send("vm1", "vm2")
    sim.run(3)
    assert sim.hosts["vm2"].payloads()[-len(sent) :] == sent


@pytest.mark.parametrize("seed", range(6))
def test_flows_stay_in_order_where_nothing_is_lost(seed):
    """Packets of all sizes, several flows, long ways and short ones, renewals."""
    dice = Random(seed)
    one_way = (0.0005, 0.002, 0.01, 0.05, 0.15)[seed % 5]
    sim = Simulation(seed, Far(one_way), mode="adaptive")
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sent, before = defaultdict(list), len(sim.hosts["vm2"].received)
    for number in range(400):
        flow, size = dice.randrange(4), dice.choice((8, 8, 8, 20, 200, 700, LARGE))
        payload = b"%d " % number + bytes(size)
        sent[flow].append(payload)
        packet = sim.packet("vm1", "vm2", payload=payload, ports=(100 + flow, 9))
        sim.emit("vm1", packet.frame())
        if dice.random() < 0.02:
            sim.hosts["vm1"].table.ask(sim.session("vm1", "vm2"), sim.now)
        if dice.random() < 0.6:
            sim.run(dice.choice((0.0001, 0.001, 0.01, 0.05, 0.1)))
    sim.run(5)
    arrived = defaultdict(list)
    for packet in sim.hosts["vm2"].received[before:]:
        port = int.from_bytes(packet.transport[:2])
        arrived[port - 100].append(packet.payload)
    assert arrived == sent
    assert sim.session("vm1", "vm2").counters.early_sent > 10
    assert len(sim.messages(Kind.ACK)) > 2


def test_another_flow_is_not_held_up():
    sim = settled()
    sim.emit("vm1", sim.packet("vm1", "vm2", payload=bytes(LARGE)).frame())
    other = sim.packet("vm1", "vm2", payload=b"other", ports=(77, 78))
    sim.emit("vm1", other.frame())
    sim.run(ONE_WAY + 0.001)
    assert sim.hosts["vm2"].received[-1].payload == b"other"


def test_after_a_large_packet_small_ones_go_early_again():
    """And not for ever behind each other, each in a round of its own."""
    sim = settled()
    sim.emit("vm1", sim.packet("vm1", "vm2", payload=bytes(LARGE)).frame())
    for _ in range(10):
        sim.send("vm1", "vm2")
        sim.run(0.03)
    assert arrival_time(sim) == pytest.approx(ONE_WAY, abs=0.002)


@pytest.mark.parametrize("options", [{"reliable": True}, {"mode": "c"}])
def test_not_in_reliable_rounds_nor_in_another_mode(options):
    sim = Simulation(link=Far(), **{"mode": "adaptive", **options})
    sim.pair()
    for _ in range(5):
        assert sim.ping("vm1", "vm2")
    assert not [s for s in sim.sent if is_early(s.data, filled=False)]
    assert sim.session("vm1", "vm2").early_state is EarlyState.NO_USE


def test_a_keepalive_does_not_go_early():
    ends = Ends.make(early=True)
    ends.one.transport.keepalive(0.0, ends.one.out)
    (s1,) = ends.one.sent()
    assert head(s1).shape == 0


@pytest.mark.parametrize("here", [False, True])
def test_who_does_not_want_it_gets_none(here):
    """One that has it off sends none either."""
    sim = Simulation(link=Far(), mode="adaptive")
    sim.pair()
    sim.session("vm2", "vm1").allow_early(False)
    assert sim.ping("vm1", "vm2")
    assert sim.ping("vm2", "vm1")
    assert not [s for s in sim.sent if is_early(s.data, filled=False)]
    states = EarlyState.OFF_PEER, EarlyState.OFF_HERE
    name, other = ("vm2", "vm1") if here else ("vm1", "vm2")
    assert sim.session(name, other).early_state is states[here]


def test_who_did_not_agree_takes_none():
    """Whoever sends it all the same, with the session's keys."""
    text = join_early([WORD + b"x" * 30])
    agreed, refusing = Ends.make(early=True), Ends.make()
    agreed.two.take(tagged_s1(agreed, text))
    assert agreed.two.received == [b"x" * 30]
    assert refusing.two.take(tagged_s1(refusing, text)) == []
    assert refusing.two.received == []
    assert refusing.two.drops == {Drop.BAD_ROUND: 1}


def test_a_change_takes_effect_at_once_for_what_is_sent():
    sim = settled()
    sim.session("vm1", "vm2").allow_early(False)
    sim.send("vm1", "vm2")
    sim.run(1)
    assert not [s for s in sim.messages(Kind.S1, "vm1") if is_early(s.data)]


def test_a_change_during_a_handshake_is_told_by_another_one():
    """What the ACK says was said before."""
    sim = far()
    sim.send("vm1", "vm2")
    sim.run(2.5 * ONE_WAY)  # the ACK is on its way
    sim.session("vm2", "vm1").allow_early(False)
    sim.run(2)
    assert sim.session("vm1", "vm2").early_state is EarlyState.OFF_PEER


# -- once, and only what the peer sent


def test_an_s1_that_comes_again_delivers_nothing_more():
    ends = Ends.make(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    (a1,) = ends.two.take(s1)
    for _ in range(5):
        assert ends.two.take(s1) == [a1]
    assert ends.two.received == [b"x" * 30]


def test_old_s1s_deliver_nothing_in_any_order():
    """Of rounds before, of the other direction, of another session."""
    ends, other = Ends.make(early=True), Ends.make(seed=1, early=True)
    s1s, random = [], Random(1)
    for number in range(12):
        (s1,) = ends.one.send(b"%02d" % number * 9)
        ends.settle(s1)
        s1s.append(s1)
    before = list(ends.two.received)
    assert len(before) == 12
    for s1 in random.sample(s1s, 12):
        ends.two.take(s1)
        ends.one.take(s1)
        other.two.take(s1)
    assert ends.two.received == before
    assert ends.one.received == other.two.received == []


def test_no_altered_byte_is_taken():
    ends = Ends.make(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    for at in range(len(s1)):
        for copy in (changed(s1, at), s1[:at]):
            ends.two.take(copy)
    assert ends.two.received == []
    ends.two.take(s1)
    assert ends.two.received == [b"x" * 30]


def test_the_key_alone_delivers_nothing():
    ends = Ends.make(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    (a1,) = ends.two.take(s1)
    (s2,) = ends.one.take(a1)
    assert (len(s2), head(s2).shape) == (40, EARLY_SHAPE)
    for proof in (s2, s2, s2 + bytes(20), changed(s2, 33), changed(s2, 39)):
        ends.two.take(proof)
    assert ends.two.received == [b"x" * 30]
    assert ends.two.drops == {Drop.REPLAYED: 1, Drop.FORGED: 3}


def tagged_s1(ends: Ends, text: bytes, *, shape=EARLY_SHAPE, counts=(1, 1)) -> bytes:
    """The S1 of the first round as only ``one`` can make it, whatever is in it."""
    line, chain = ends.one.transport.line, ends.one.sender.associations[0].chain
    head_ = line.head(Kind.S1, 0, shape, 0, chain.element(1))
    early = line.encrypt.apply(0, 0, 0, text, EARLY_USE)
    roots = bytes(NODE_SIZE * counts[1])
    return ends.one.tagged(head_ + S1_COUNTS.pack(*counts, 0) + roots + bytes(early))


def assert_refused(ends: Ends, made: bytes) -> None:
    """Without a trace: what makes sense is taken afterwards, for the same round."""
    assert ends.two.take(made) == []
    assert ends.two.received == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}
    ends.two.take(tagged_s1(ends, join_early([WORD + b"good"])))
    assert ends.two.received == [b"good"]


@pytest.mark.parametrize(
    "text",
    [
        b"\0",
        b"\0\x20" + bytes(9),
        b"\0\x08" + bytes(8),
        b"\0\0",
        join_early([bytes(9)]) + b"\1",
        bytes(MAX_EARLY + 1),
    ],
)
def test_early_data_that_makes_no_sense_is_refused_as_a_whole(text):
    ends = Ends.make(early=True)
    assert_refused(ends, tagged_s1(ends, text))


@pytest.mark.parametrize(
    ("shape", "counts"),
    [(0xA0, (1, 1)), (0xE0, (1, 1)), (0x21, (1, 1)), (0x20, (2, 2)), (0x20, (0, 0))],
)
def test_a_round_with_early_data_has_one_of_all(shape, counts):
    ends = Ends.make(early=True)
    text = join_early([WORD + bytes(30)])
    assert_refused(ends, tagged_s1(ends, text, shape=shape, counts=counts))


def test_a_peer_that_signed_something_else_is_found_out():
    """Its packets are its own all the same; the key does not prove them to relays."""
    ends = Ends.make(early=True)
    ends.two.take(tagged_s1(ends, join_early([WORD + b"x" * 30])))
    assert ends.two.received == [b"x" * 30]
    key = ends.one.sender.associations[0].chain.element(2)
    proof = ends.one.transport.line.head(Kind.S2, 0, EARLY_SHAPE, 0, key)
    ends.two.take(proof + S2_TAIL.pack(0, 0, 32))
    assert ends.two.drops == {Drop.FORGED: 1}


def test_inner_sources_are_checked():
    ends = Ends.make(early=True)
    ends.two.owns = lambda packet: False
    ends.settle(*ends.one.send(b"x" * 30))
    assert ends.two.received == []
    assert ends.two.drops == {Drop.WRONG_SOURCE: 1}
    assert ends.two.transport.line.counters.early_received == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("renewals", [False, True])
def test_nothing_twice_on_a_link_that_does_everything(seed, renewals):
    """In one session and across several."""
    sim = Simulation(seed, mode="adaptive")
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.link = Hostile(
        sim.random, loss=0.2, duplicate=0.2, late=0.2, replay=0.2, flip=0.05
    )
    sent = []
    for _ in range(120 if renewals else 80):
        sent += sim.send("vm1", "vm2", sim.random.randrange(3))
        sim.run(sim.random.uniform(0, 4.0 if renewals else 0.3))
    sim.link = Link()
    sim.run(30)
    received = Counter(sim.hosts["vm2"].payloads())
    assert set(received.values()) == {1}
    assert set(received) - {b"ping 1"} <= set(sent)
    assert len(received) > 0.6 * len(sent)
    assert sim.session("vm1", "vm2").counters.early_sent > 20


def is_doomed(s1: bytes, seed: int) -> bool:
    """Of one in twelve S1s of packets no copy ever arrives."""
    if s1[0] != Kind.S1 or head(s1).shape & CONTROL:
        return False
    return sha256(s1[:-TAG_SIZE] + bytes([seed])).digest()[0] < 256 // 12


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("renewals", [False, True])
def test_each_packet_arrives_or_is_counted_as_lost_once(seed, renewals):
    """S1s are lost for good, no S2 is: that one is lost nobody knows."""
    sim, dice = far(), Random(seed)
    assert sim.ping("vm1", "vm2")
    sim.link.loses = lambda datagram: is_doomed(datagram, seed)
    sent, host = [], sim.hosts["vm2"]
    before = len(host.received)
    for _ in range(200):
        sent += sim.send("vm1", "vm2", dice.choice((0, 1, 1, 2)))
        if renewals and dice.random() < 0.02:
            sim.hosts["vm1"].table.ask(sim.session("vm1", "vm2"), sim.now)
        sim.run(dice.choice((0.02, 0.05, 0.3, 1)))
    sim.link.loses = lambda datagram: False
    sim.run(200)
    arrived = host.payloads()[before:]
    assert len(set(arrived)) == len(arrived)
    counters = sim.session("vm1", "vm2").counters
    assert len(sent) - len(arrived) == sum(counters.drops.values())
    assert counters.drops[Drop.UNACKNOWLEDGED] > 0
    assert counters.tx_packets == len(arrived) + 1 + counters.drops[Drop.UNACKNOWLEDGED]


def test_an_early_packet_that_was_given_up_is_not_sent_again():
    """It may have arrived: another round would deliver it twice."""
    sim = settled()
    sim.link.loses = lambda datagram: datagram[0] == Kind.A1
    (payload,) = sim.send("vm1", "vm2")
    sim.run(ROUND_LIFETIME + 2)
    sim.link.loses = lambda datagram: False
    sim.run(20)
    assert sim.hosts["vm2"].payloads().count(payload) == 1
    counters = sim.session("vm1", "vm2").counters
    assert counters.drops == {Drop.UNACKNOWLEDGED: 1}


def test_nor_in_the_next_session():
    sim = settled()
    sim.link.loses = lambda datagram: datagram[0] == Kind.A1
    (payload,) = sim.send("vm1", "vm2")
    sim.run(0.2)
    table = sim.hosts["vm1"].table
    table.ask(sim.session("vm1", "vm2"), sim.now)
    sim.run(0.1)
    sim.link.loses = lambda datagram: False
    sim.run(5)
    assert len(sim.messages(Kind.ACK)) == 1
    assert sim.hosts["vm2"].payloads().count(payload) == 1


def test_an_s1_that_was_held_back_counts_until_a_later_one_came():
    """Of its association.  Until then whoever holds it decides when it is delivered."""
    for late in (False, True):
        ends = Ends.make(early=True)
        (held,) = ends.one.send(b"held")
        ends.one.serve(ROUND_LIFETIME + 1)  # given up
        assert ends.one.drops == {Drop.UNACKNOWLEDGED: 1}
        ends.one.sender.early.state = EarlyState.ON
        (later,) = ends.one.send(b"later", now=5)
        assert head(later).association == head(held).association
        ends.two.take(*((later, held) if late else (held, later)))
        assert ends.two.received == ([b"later"] if late else [b"held", b"later"])


def test_a_lost_one_may_come_later_than_those_behind_it():
    """As any packet that is repeated; none waits for it."""
    sim, lost = settled(), []
    sim.link.loses = lambda datagram: is_early(datagram) and not lost.append(1)
    (first,) = sim.send("vm1", "vm2")
    sim.run(0.01)
    sim.link.loses = lambda datagram: False
    (second,) = sim.send("vm1", "vm2")
    sim.run(ONE_WAY + 0.001)
    assert sim.hosts["vm2"].payloads()[-1] == second
    sim.run(2)
    assert sim.hosts["vm2"].payloads()[-2:] == [second, first]


# -- when it does not arrive


def lost_on_the_way(filled: bool) -> Simulation:
    """A path that lets no S1 with early data pass, or none with something in it."""
    sim = settled()
    sim.link.loses = lambda datagram: is_early(datagram, filled=filled)
    return sim


@pytest.mark.parametrize("filled", [False, True])
def test_a_path_that_lets_none_pass_is_found_out(filled):
    """Some packets are lost for that, each counted; then all arrive, only later."""
    sim = lost_on_the_way(filled)
    state = sim.session("vm1", "vm2")
    for _ in range(40):
        sim.send("vm1", "vm2")
        sim.run(0.5)
    assert state.early_state is EarlyState.LOST
    lost = state.counters.drops[Drop.UNACKNOWLEDGED]
    assert 0 < lost <= 16
    sent = sim.send("vm1", "vm2", 3)
    sim.run(1)
    assert sim.hosts["vm2"].payloads()[-3:] == sent
    assert state.counters.drops[Drop.UNACKNOWLEDGED] == lost


def test_the_next_session_tries_again():
    sim = lost_on_the_way(True)
    session = sim.session("vm1", "vm2")
    for _ in range(40):
        sim.send("vm1", "vm2")
        sim.run(0.5)
    sim.link.loses = lambda datagram: False
    sim.hosts["vm1"].table.ask(session, sim.now)
    sim.run(2)
    assert session.early_state is EarlyState.ON


def test_after_a_session_in_which_none_arrived_it_costs_no_packet():
    """Or each renewal would lose some: the next session begins with a trial."""
    sim = far()
    sim.link.loses = lambda datagram: is_early(datagram, filled=False)
    for _ in range(40):
        sim.send("vm1", "vm2")
        sim.run(0.5)
    session = sim.session("vm1", "vm2")
    before, sent = len(sim.hosts["vm2"].received), []
    lost = session.counters.drops.copy()
    for _ in range(3):
        sim.sent.clear()
        sim.hosts["vm1"].table.ask(session, sim.now)
        for _ in range(30):
            sent += sim.send("vm1", "vm2")
            sim.run(0.5)
        assert len(sim.messages(Kind.ACK)) == 1
        early = [s.data for s in sim.messages(Kind.S1, "vm1") if s.data[10] & 0x20]
        assert early
        assert not any(map(is_early, early))
        assert session.early_state is EarlyState.LOST
    assert sim.hosts["vm2"].payloads()[before:] == sent
    assert session.counters.drops == lost


def test_after_a_loss_an_empty_one_goes_first():
    sim = settled()
    sim.link.loses = lambda datagram: is_early(datagram, filled=False)
    sim.send("vm1", "vm2")
    sim.run(ROUND_LIFETIME + 1)
    assert sim.session("vm1", "vm2").early_state is EarlyState.TRYING
    sim.link.loses = lambda datagram: False
    sim.sent.clear()
    sim.run(10)
    assert sim.ping("vm1", "vm2")
    sim.run(3)
    tried = [s.data for s in sim.messages(Kind.S1, "vm1") if is_early(s.data, filled=0)]
    assert not is_early(tried[0])
    assert sim.session("vm1", "vm2").early_state is EarlyState.ON


def test_trials_come_to_an_end_though_each_gave_way():
    """What made it give way was answered; an outage counts once, however long."""
    early = Early(EarlyState.TRYING)
    for number in range(5):
        early.on_lost(0, number, number + 1)
    early.on_other_answer(6)
    assert early.state is EarlyState.TRYING
    for number in range(6, 6 + TRIALS - 1):
        assert early.state is EarlyState.TRYING
        early.on_lost(0, number, number + 0.5)
        early.on_other_answer(number + 0.6)
    assert early.state is EarlyState.LOST


def test_one_that_arrives_between_makes_up_for_one_that_was_lost():
    early = Early(EarlyState.ON)
    for number in range(3 * LOSSES):
        early.on_lost(1, number, number + 0.5)
        assert early.state is EarlyState.TRYING
        early.on_answer(0)
        early.on_answer(1)
        assert early.state is EarlyState.ON


def test_one_that_is_repeated_in_vain_while_others_are_answered_is_the_last():
    """Nobody waits until it is given up."""
    early = Early(EarlyState.ON)
    assert not early.on_silence(1.0, TRIES)  # perhaps nothing passes
    early.on_other_answer(1.5)
    assert not early.on_silence(1.0, TRIES - 1)
    assert not early.on_silence(2.0, TRIES)
    assert early.state is EarlyState.ON
    assert early.on_silence(1.0, TRIES)
    assert early.state is EarlyState.LOST


@pytest.mark.parametrize("some", [False, True])
def test_a_path_that_only_loses_much_is_not_held_against_the_next_session(some):
    before, early = Early(EarlyState.ON), Early(EarlyState.ON)
    if some:
        before.on_answer(1)
    for number in range(LOSSES):
        before.on_lost(1, number, number + 3)
    assert before.state is EarlyState.LOST
    early.succeed(before)
    assert early.state is (EarlyState.ON if some else EarlyState.TRYING)


@pytest.mark.parametrize("state", [EarlyState.OFF_PEER, EarlyState.OFF_RELAY])
def test_what_was_not_agreed_to_is_not_tried_either(state):
    early = Early(state)
    early.succeed(Early(EarlyState.LOST))
    assert early.state is state


def test_a_trial_gives_way_to_what_waits():
    ends = Ends.make(early=True)
    ends.one.sender.early.state = EarlyState.TRYING
    ends.one.sender.start(0.0, ends.one.out)
    (trial,) = ends.one.sent()
    assert is_early(trial, filled=False)
    assert not is_early(trial)
    assert ends.one.send(b"x" * 30, now=0.1) == []
    later = 1.01 * ends.one.sender.rtt.timeout(1)
    sent = ends.one.serve(later) + ends.one.send(b"y" * 30, now=later)
    assert {head(s1).round for s1 in sent if head(s1).shape == 0} == {1}


def test_a_trial_says_that_the_peer_is_there_and_has_no_packet():
    """Or each would be answered by a keepalive, and these by trials."""
    ends = Ends.make(early=True)
    for filled in (False, True):
        if not filled:
            ends.one.sender.early.state = EarlyState.TRYING
            ends.one.sender.start(0.0, ends.one.out)
        (s1,) = ends.one.send(b"x" * 30) if filled else ends.one.sent()
        (a1,) = ends.two.take(s1)
        assert ends.two.arrival is (Arrival.DATA if filled else Arrival.KEEPALIVE)
        ends.two.take(*ends.one.take(a1))
        assert ends.two.arrival is Arrival.KEEPALIVE
    assert ends.two.received == [b"x" * 30]


def test_patience_is_bounded():
    assert TRIALS + LOSSES + TRIES < 16


@pytest.mark.parametrize("jumps", [(0.0025, 0.15, 0.0025), (0.15, 0.0025, 0.15)])
def test_a_delay_that_jumps_loses_nothing_and_delivers_nothing_twice(jumps):
    sim = settled()
    sent = []
    for one_way in jumps:
        sim.link.one_way = one_way
        for _ in range(60):
            sent += sim.send("vm1", "vm2")
            sim.run(0.05)
    sim.run(2)
    received = sim.hosts["vm2"].payloads()[-len(sent) :]
    assert sorted(received) == sorted(sent)
    assert sim.session("vm1", "vm2").early_state is EarlyState.ON


# -- what relays say, and where it goes


@pytest.mark.parametrize("marked", ["syn", "ack"])
def test_a_mark_of_a_relay_is_heeded(marked):
    """In the SYN the responder heeds it and tells; in the ACK the initiator does."""

    class Marking(Far):
        def carry(self, datagram):
            if datagram[0] == {"syn": Kind.SYN, "ack": Kind.ACK}[marked]:
                datagram = changed(datagram, 14, NO_EARLY)
            yield from Far.carry(self, datagram)

    sim = Simulation(link=Marking(), mode="adaptive")
    sim.pair()
    sim.session("vm2", "vm1")
    for _ in range(3):
        assert sim.ping("vm1", "vm2")
    early = {s.source for s in sim.sent if is_early(s.data, filled=False)}
    assert "vm1" not in early
    states = {"syn": EarlyState.OFF_PEER, "ack": EarlyState.OFF_RELAY}
    assert sim.session("vm1", "vm2").early_state is states[marked]
    if marked == "syn":
        assert not early
        assert sim.session("vm2", "vm1").early_state is EarlyState.OFF_RELAY


@pytest.mark.parametrize("traffic_class", [0, 1, 2, 3, 10 << 2 | 2])
def test_an_s1_bears_the_class_of_what_is_in_it(traffic_class):
    """Of it what the outer header shows: ECN alone, unless DSCP is copied as well."""
    sim = settled()
    sim.classes.clear()
    fields = {"payload": b"x", "traffic_class": traffic_class}
    sim.emit("vm1", sim.packet("vm1", "vm2", **fields).frame())
    sim.run(1)
    assert (Kind.S1, traffic_class & 3) in sim.classes
    assert {shown for kind, shown in sim.classes if kind != Kind.S1} == {0}
    assert sim.hosts["vm2"].received[-1].traffic_class == traffic_class


def test_an_s1_that_goes_again_bears_it_again():
    sim = settled()
    sim.classes.clear()
    sim.block("vm1", "vm2")
    sim.emit("vm1", sim.packet("vm1", "vm2", payload=b"x", traffic_class=2).frame())
    sim.run(1)
    assert len(sim.classes) > 2
    assert set(sim.classes) == {(Kind.S1, 2)}


def test_dscp_is_copied_if_it_is_to_be():
    sim = Simulation(link=Far(), mode="adaptive")
    for name in ("vm1", "vm2"):
        sim.host(name).table.visible = 0xFF
    sim.peer("vm1", "vm2")
    sim.peer("vm2", "vm1")
    assert sim.ping("vm1", "vm2")
    sim.classes.clear()
    for number, shown in enumerate((0xB8, 0x28 | 2)):
        fields = {"traffic_class": shown, "ports": (5 + number, 9)}
        sim.emit("vm1", sim.packet("vm1", "vm2", payload=b"x", **fields).frame())
    sim.run(1)
    carried = [shown for kind, shown in sim.classes if kind == Kind.S1 and shown]
    assert carried == [0xB8, 0x28 | 2]  # and not both in one


@pytest.mark.parametrize(("inner", "arrives"), [(0, []), (2, [3])])
def test_a_mark_of_a_router_reaches_the_flow(inner, arrives):
    """What cannot bear it is dropped; the S1 was authentic, and is answered."""
    sim = settled()
    host = sim.hosts["vm2"]
    before, sim.ecn = len(host.received), 3
    packet = sim.packet("vm1", "vm2", payload=b"x", traffic_class=inner)
    sim.emit("vm1", packet.frame())
    sim.run(1)
    assert [p.traffic_class for p in host.received[before:]] == arrives
    assert host.drops()[Drop.CONGESTED] == 1 - len(arrives)
    assert len(sim.messages(Kind.S1, "vm1")) == 1
    assert sim.session("vm1", "vm2").early_state is EarlyState.ON


def test_packets_of_two_classes_go_in_two():
    ends = Ends.make(early=True)
    ends.one.sender.rtt.begin(0.1)
    for ecn in (0, 2):
        packet = Packet(payload=b"x", traffic_class=ecn, ports=(5 + ecn, 9))
        ends.one.transport.outgoing(cut(packet.frame(), 60_000), 0.0, ends.one.out)
    ends.one.transport.push(0.0, ends.one.out)
    assert len(ends.one.sent()) == 1  # the other one waits for an association


def test_a_copy_from_elsewhere_moves_nothing():
    """It is answered where it came from; the proof is the S2, as ever."""
    ends = Ends.make(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    ends.two.take(s1, source=ELSEWHERE)
    assert ends.two.received == [b"x" * 30]
    assert ends.two.transport.line.proven is None
    (a1, *_) = ends.two.take(s1)
    (s2,) = ends.one.take(a1)
    ends.two.take(s2)
    assert ends.two.transport.line.proven is None


def test_who_moved_is_followed_by_its_proof():
    ends = Ends.make(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    (a1,) = ends.two.take(s1, source=ELSEWHERE)
    (s2,) = ends.one.take(a1)
    ends.two.take(s2, source=ELSEWHERE)
    assert ends.two.transport.line.proven.remote == ELSEWHERE


def place_of(sim: Simulation, at: str, of: str) -> tuple:
    """Where a host sends what it has for a peer."""
    return sim.session(at, of).current.line.remote


def test_a_host_that_moves_loses_nothing_by_early_data():
    sim = settled()
    sent = []
    for number in range(4):
        sim.renumber("vm1", f"192.168.10.{90 + number}")
        for _ in range(10):
            sent += sim.send("vm1", "vm2")
            sim.run(0.07)
        assert place_of(sim, "vm2", "vm1") == remote_of(f"192.168.10.{90 + number}")
    (answer,) = sim.send("vm2", "vm1")
    sim.run(1)
    assert sim.hosts["vm2"].payloads()[-len(sent) :] == sent
    assert sim.hosts["vm1"].payloads()[-1] == answer


@pytest.mark.parametrize("first", [False, True])
def test_copies_of_all_s1s_from_elsewhere_move_no_host(first):
    """First or not, and delivered once all the same."""
    sim, copied = settled(), []
    home = place_of(sim, "vm2", "vm1")
    for _ in range(30):
        sim.send("vm1", "vm2")
        sim.run(0.01 if first else ONE_WAY + 0.01)
        for sent in sim.messages(Kind.S1, "vm1")[len(copied) :]:
            copied.append(sent.data)
            sim.inject("vm2", ELSEWHERE, sent.data)
        sim.run(0.05)
        assert place_of(sim, "vm2", "vm1") == home
    sim.run(1)
    received = sim.hosts["vm2"].payloads()
    assert len(set(received)) == len(received) >= 30
    assert len([s1 for s1 in copied if is_early(s1)]) >= 30


# -- control rounds give their association back with their key


def test_a_control_round_frees_its_association_with_its_key():
    ends = Ends.make()
    message = bytes([5]) + bytes(19)  # PADDING
    ends.one.sender.controls.send([message], 0.0, ends.one.out)
    (s1,) = ends.one.sent()
    (a1,) = ends.two.take(s1)
    (s2,) = ends.one.take(a1)
    (next_s1,) = ends.one.send(b"x" * 30)  # without a verdict on the one before
    assert head(next_s1).round == 1
    (a2,) = of_kind(Kind.A2, ends.two.take(s2))
    (next_a1,) = ends.two.take(next_s1)
    ends.one.take(next_a1)
    assert ends.one.send(b"y" * 30) == []  # the receiver would forget round 0
    assert ends.one.drops == {}
    later = ends.one.take(a2)  # its element is older than that of the A1: still taken
    assert ends.one.drops == {}
    assert [head(m).round for m in of_kind(Kind.S1, later)] == [2]


def settling(early: bool = False) -> tuple[Ends, bytes, bytes]:
    """A control round whose key is out, with its S2 and the A2 that did not come."""
    ends = Ends.make(early=early)
    message = bytes([5]) + bytes(19)  # PADDING
    ends.one.sender.controls.send([message], 0.0, ends.one.out)
    (a1,) = ends.two.take(*ends.one.sent())
    (s2,) = of_kind(Kind.S2, ends.one.take(a1))
    (a2,) = of_kind(Kind.A2, ends.two.take(s2))
    return ends, s2, a2


def test_early_data_need_not_wait_for_a_verdict():
    ends, _, a2 = settling(early=True)
    (s1,) = ends.one.send(b"x" * 30)
    assert is_early(s1)
    (a1,) = ends.two.take(s1)
    (proof,) = ends.one.take(a1)
    ends.two.take(proof)
    assert ends.one.send(b"y" * 30) == []
    (s1,) = ends.one.take(a2)
    assert is_early(s1)
    ends.two.take(s1)
    assert ends.two.received == [b"x" * 30, b"y" * 30]
    assert (ends.one.drops, ends.two.drops) == ({}, {})


def test_a_verdict_that_was_lost_is_asked_for_again_beside_the_next_round():
    ends, s2, a2 = settling()
    ends.settle(*ends.one.send(b"x" * 30))
    assert ends.one.send(b"y" * 30) == []
    assert ends.one.serve(1.0) == [s2]
    again = of_kind(Kind.A2, ends.two.take(s2, now=1.0))
    assert again == [a2]
    (s1,) = of_kind(Kind.S1, ends.one.take(*again, now=1.0))
    assert head(s1).round == 2
    ends.settle(s1, now=1.0)
    assert ends.two.received == [b"x" * 30, b"y" * 30]


def test_a_verdict_that_comes_again_changes_nothing():
    ends, _, a2 = settling()
    ends.one.take(a2)
    for payload in (b"x", b"y", b"z"):
        ends.settle(*ends.one.send(payload))
        assert ends.one.take(a2) == []
    assert ends.two.received == [b"x", b"y", b"z"]
    assert head(*ends.one.send(b"last")).round == 4


def test_a_verdict_that_never_comes_is_waited_for_no_longer_than_a_message():
    ends, *_ = settling()
    ends.settle(*ends.one.send(b"x"))
    for tenth in range(int(10 * CONTROL_LIFETIME)):
        assert not of_kind(Kind.S1, ends.one.serve(tenth / 10))
    later = CONTROL_LIFETIME + 2  # it is looked at when a repetition is due
    ends.settle(*ends.one.serve(later), *ends.one.send(b"y", now=later), now=later)
    assert ends.two.received == [b"x", b"y"]
