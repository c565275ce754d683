"""The rules of SYN / ACK / ACKACK, one test named after each."""

from heapq import heappush
from itertools import pairwise
from random import Random

import pytest
from attrs import define, evolve

from alpha_trio.proto.batch import Drop, EventKind
from alpha_trio.proto.handshake import GIVE_UP_AFTER
from alpha_trio.proto.handshake.exchange import (
    RETRY_FIRST,
    RETRY_GROWTH,
    RETRY_JITTER,
    RETRY_MAX,
    HalfOpen,
    Initiation,
)
from alpha_trio.proto.messages import (
    HALF_OPEN_LIFETIME,
    SUITE_ALPHA,
    SYN_SIZE,
    Ack,
    AckAck,
    BadPacket,
    Kind,
    Syn,
    data_word,
    parse_syn_untrusted,
)
from alpha_trio.proto.messages.handshake import ACKACK_SIZE
from alpha_trio.proto.peers import State
from alpha_trio.proto.peers.waiting import QUEUE_PACKETS
from alpha_trio.proto.primitives import Identity
from tests.proto.simulation import (
    DELAY,
    PORT,
    Hostile,
    Link,
    LosesOne,
    Sent,
    Simulation,
    remote_of,
)

VM1, VM2 = ("192.168.10.60", PORT), ("192.168.10.61", PORT)
MODES = ["plain", "adaptive"]
NOBODY = "192.168.10.99"
OFFER = bytes(16), bytes(32), bytes(32), bytes(16), bytes(16)
HANDSHAKE = (Kind.SYN, Kind.ACK, Kind.ACKACK)


def handshake_messages(sim: Simulation) -> list[int]:
    return [sent.kind for sent in sim.sent if sent.kind in HANDSHAKE]


# -- beginning


def test_nothing_is_sent_before_the_first_packet():
    sim = Simulation()
    sim.pair()
    sim.run(1000)
    assert not sim.sent


def test_the_first_packet_begins_the_handshake_and_arrives():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    payloads = sim.send("vm1", "vm2")
    sim.run(3 * DELAY)
    assert handshake_messages(sim) == [Kind.SYN, Kind.ACK, Kind.ACKACK]
    assert vm2.payloads() == payloads
    assert sim.established("vm1", "vm2")
    assert [event.kind for event in vm1.events] == [
        EventKind.SYN_SENT,
        EventKind.PINNED,
        EventKind.ACK_RECEIVED,
    ]
    assert [event.kind for event in vm2.events] == [
        EventKind.SYN_RECEIVED,
        EventKind.PINNED,
        EventKind.ESTABLISHED,
    ]


def test_the_round_trip_is_measured():
    sim = Simulation()
    sim.pair()
    sim.send("vm1", "vm2")
    sim.run(1)
    assert sim.session("vm1", "vm2").statistics(sim.now).rtt == pytest.approx(2 * DELAY)


# -- retransmission


def test_the_syn_is_repeated_with_growing_jittered_delay():
    sim = Simulation()
    sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run_until_idle()
    times = [syn.time for syn in sim.messages(Kind.SYN)]
    delays = [after - before for before, after in pairwise(times)]
    for attempt, delay in enumerate(delays):
        least = min(RETRY_FIRST * RETRY_GROWTH**attempt, RETRY_MAX)
        assert least <= delay <= least * (1 + RETRY_JITTER)
    assert len({delay % 0.5 for delay in delays}) == len(delays)
    assert times[-1] > GIVE_UP_AFTER - 2 * RETRY_MAX


def test_two_hosts_do_not_repeat_in_step():
    sim = Simulation()
    sim.pair()
    sim.block("vm1", "vm2")
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    sim.send("vm2", "vm1")
    sim.run_until_idle()
    first, second = ([s.time for s in sim.messages(Kind.SYN, v)] for v in sim.hosts)
    assert not set(first[1:]) & set(second[1:])


def test_the_handshake_is_given_up_after_90_seconds():
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2", 3)
    sim.run(GIVE_UP_AFTER - 0.01)
    assert not vm1.told(EventKind.GAVE_UP)
    sim.run(0.01)
    assert vm1.told(EventKind.GAVE_UP) == 1
    assert vm1.drops() == {Drop.NO_SESSION: 3}
    assert sim.session("vm1", "vm2").state(sim.now) is State.UNREACHABLE
    before = len(sim.sent)
    sim.run(1000)
    assert len(sim.sent) == before


def test_new_traffic_begins_again_after_giving_up():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run_until_idle()
    sim.unblock()
    payloads = sim.send("vm1", "vm2")
    sim.run(1)
    assert vm2.payloads() == payloads


def test_only_the_initiator_repeats():
    sim = Simulation()
    sim.pair()
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    sim.run(60)
    syns, acks = sim.messages(Kind.SYN), sim.messages(Kind.ACK)
    assert len(acks) == len(syns) > 5
    assert {ack.source for ack in acks} == {"vm2"}


def test_every_address_of_a_peer_is_asked_in_turn():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.locate("vm1", "vm2", NOBODY, vm2.address)
    sim.send("vm1", "vm2")
    sim.run(5)
    assert sim.established("vm1", "vm2")
    assert sim.session("vm1", "vm2").remote == VM2


def test_a_peer_that_moved_is_asked_there_at_once():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.locate("vm1", "vm2", NOBODY)
    sim.send("vm1", "vm2")
    sim.run(60)
    sim.locate("vm1", "vm2", vm2.address)
    sim.run(3 * DELAY)
    assert sim.established("vm1", "vm2")


def test_a_peer_that_did_not_move_is_asked_no_more_often():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run(10)
    before = len(sim.sent)
    for _ in range(20):
        sim.locate("vm1", "vm2", vm2.address)
        sim.run(0.01)
    assert len(sim.sent) <= before + 1


def test_packets_wait_while_the_name_of_a_peer_is_resolved():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.locate("vm1", "vm2")
    payloads = sim.send("vm1", "vm2", 2)
    sim.run(60)
    assert sim.session("vm1", "vm2").state(sim.now) is State.RESOLVING
    assert not sim.sent
    sim.locate("vm1", "vm2", vm2.address)
    sim.run(3 * DELAY)
    assert vm2.payloads() == payloads


# -- waiting packets


def test_128_packets_wait_and_the_oldest_are_dropped_first():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    payloads = sim.send("vm1", "vm2", QUEUE_PACKETS + 10)
    assert vm1.drops() == {Drop.QUEUE_FULL: 10}
    sim.run(1)
    assert vm2.payloads() == payloads[10:]


def test_a_waiting_super_packet_counts_as_its_packets():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    for number in range(4):
        payload = bytes([number]) * 50 * 100
        sim.emit(
            "vm1", sim.packet("vm1", "vm2", payload=payload, segment_size=100).frame()
        )
    assert vm1.drops() == {Drop.QUEUE_FULL: 100}
    sim.run(1)
    assert vm2.payloads() == [bytes([n]) * 100 for n in (2, 3) for _ in range(50)]


def test_a_single_super_packet_may_be_larger_than_the_queue():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    size = 2 * QUEUE_PACKETS * 10
    frame = sim.packet("vm1", "vm2", payload=bytes(size), segment_size=10).frame()
    sim.emit("vm1", frame)
    sim.run(1)
    assert len(vm2.received) == 2 * QUEUE_PACKETS
    assert not vm1.drops()


# -- both ends begin


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("gap", [0.0, DELAY / 2, DELAY, 1.5 * DELAY, 2.5 * DELAY])
def test_both_ends_may_begin_at_once(seed, gap):
    sim = Simulation(seed)
    vm1, vm2 = sim.pair()
    to_vm2 = sim.send("vm1", "vm2", 2)
    sim.run(gap)
    to_vm1 = sim.send("vm2", "vm1", 2)
    sim.run(5)
    assert vm1.payloads() == to_vm1
    assert vm2.payloads() == to_vm2
    assert len(handshake_messages(sim)) <= 5  # no storm
    one = sim.session("vm1", "vm2").current.agreement
    other = sim.session("vm2", "vm1").current.agreement
    assert (one.local_id, one.remote_id) == (other.remote_id, other.local_id)


@pytest.mark.parametrize("seed", range(10))
def test_the_syn_with_the_larger_nonce_goes_on(seed):
    sim = Simulation(seed)
    sim.pair()
    sim.send("vm1", "vm2")
    sim.send("vm2", "vm1")
    sim.run(0.4)
    syns = sim.messages(Kind.SYN)
    winner = max(syns, key=lambda syn: parse_syn_untrusted(syn.data).nonce)
    assert {ack.source for ack in sim.messages(Kind.ACK)} == {"vm1", "vm2"} - {
        winner.source
    }


def test_if_both_syns_were_answered_nothing_is_lost():
    """vm2's answers get lost until it asks itself; then both ACKs cross on the way."""
    crossed = 0
    for seed in range(20):
        sim = Simulation(seed, link=_Slow())
        vm1, vm2 = sim.pair()
        sim.block("vm2", "vm1")
        to_vm2 = sim.send("vm1", "vm2")
        sim.run(0.45)
        to_vm1 = sim.send("vm2", "vm1")
        sim.run(0.65)
        sim.unblock()
        for _ in range(60):
            to_vm2 += sim.send("vm1", "vm2")
            to_vm1 += sim.send("vm2", "vm1")
            sim.run(0.1)
        sim.run(5)
        assert sorted(vm1.payloads()) == sorted(to_vm1)
        assert sorted(vm2.payloads()) == sorted(to_vm2)
        crossed += bool(
            vm1.told(EventKind.ACK_RECEIVED) and vm2.told(EventKind.ACK_RECEIVED)
        )
    assert crossed


class _Slow(Link):
    def carry(self, datagram):
        yield 0.4, datagram


def test_a_peer_that_asks_itself_is_asked_soon():
    """It lost the tie and got no answer: it must not wait for the old schedule."""
    sim = Simulation()
    vm2 = sim.pair()[1]
    payloads = sim.send("vm1", "vm2")
    sim.block("vm1", "vm2")
    sim.run(40)  # the SYN is repeated every ten seconds by now
    sim.unblock()
    sim.inject("vm1", VM2, vm2.syn().pack())
    sim.run(RETRY_FIRST + 3 * DELAY)
    assert vm2.payloads() == payloads


@pytest.mark.parametrize("places", [(), ("192.168.10.99",)])
@pytest.mark.parametrize("seed", range(16))
def test_a_peer_that_asks_from_elsewhere_is_asked_there(seed, places):
    """Where we would ask it nobody is; and its SYN may lose the tie against ours."""
    sim = Simulation(seed, mode="adaptive")
    vm1, vm2 = sim.pair()
    prefixes, key = vm1.table._prefixes_of["vm2"], vm2.identity.public
    session = sim.session("vm1", "vm2")
    remotes = [remote_of(place) for place in places]
    vm1.table.configure(session, remotes, prefixes, key=key, mode="adaptive")
    sim.send("vm1", "vm2")
    sim.send("vm2", "vm1")
    sim.run(2)
    assert vm1.received
    assert vm2.received


class _TwoWays(Simulation):
    """vm2 has a second address, which vm1 reaches from its own second one."""

    def _carry(self, host, origin, address, data):
        if address not in ("fd00::1", "fd00::2"):
            super()._carry(host, origin, address, data)
            return
        self.sent.append(Sent(self.now, host.name, data))
        target, source = {
            "fd00::2": (self.hosts["vm2"], "fd00::1"),
            "fd00::1": (self.hosts["vm1"], "fd00::2"),
        }[address]
        way = target, source, address
        heappush(self._arrivals, (self.now + 0.1, next(self._order), way, data))


def test_a_cookie_is_shown_where_it_came_from():
    """The peer's other address sees us under another one, and asks for another."""
    sim = _TwoWays(1, _Slow(), "adaptive")
    vm1, vm2 = sim.pair()
    remotes = [remote_of("fd00::2"), remote_of(vm2.address)]
    for at, of, places in ((vm1, vm2, remotes), (vm2, vm1, [remote_of(vm1.address)])):
        prefixes, key = at.table._prefixes_of[of.name], of.identity.public
        session = sim.session(at.name, of.name)
        at.table.configure(session, places, prefixes, key=key, mode="adaptive")
    forged = evolve(vm1.syn(bytes(16)), suite=SUITE_ALPHA, share=bytes(31) + b"\1")
    sim.inject("vm2", ("192.0.2.9", 9), forged.pack())  # now it asks for cookies
    payloads = sim.send("vm1", "vm2")
    sim.run(2)
    assert vm2.payloads() == payloads
    assert len(sim.messages(Kind.COOKIE, "vm2")) < 4


@pytest.mark.parametrize("seed", [123, 141, 215, 333, 369])
def test_when_both_ask_both_use_the_same_session(seed):
    """Whatever overtakes what; else both would forget the one that the other uses."""
    sim = Simulation(seed, Hostile(Random(seed), late=0.2, delay=0.3), "adaptive")
    sim.pair()
    sim.send("vm1", "vm2")
    sim.send("vm2", "vm1")
    for _ in range(10):
        sim.send("vm1", "vm2")
        sim.send("vm2", "vm1")
        sim.run(0.2)
    one, two = sim.session("vm1", "vm2").current, sim.session("vm2", "vm1").current
    assert one.line.agreement.remote_id == two.local_id
    assert two.line.agreement.remote_id == one.local_id


def test_forged_syns_cannot_put_off_our_own_for_ever():
    sim = Simulation()
    sim.pair()
    sim.block("vm1", "vm2")
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    random = Random(1)
    for _ in range(100):
        nonce = b"\xff" * 12 + random.randbytes(4)
        sim.inject("vm1", VM2, sim.hosts["vm2"].syn(nonce).pack())
        sim.run(0.2)
    assert len(sim.messages(Kind.SYN, "vm1")) >= 4


def test_our_own_syn_sent_back_is_not_answered():
    sim = Simulation()
    sim.pair()
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2")
    sim.run(0.1)
    sim.inject("vm1", VM2, sim.sent[0].data)
    assert not sim.messages(Kind.ACK)


def test_a_lost_tie_is_taken_up_when_the_peer_breaks_off():
    sim = Simulation()
    _, vm2 = sim.pair()
    payloads = sim.send("vm1", "vm2")
    sim.block("vm1", "vm2")
    sim.run(40)  # the SYN is repeated every ten seconds by now
    sim.inject("vm1", VM2, vm2.syn(b"\xff" * 16).pack())
    sim.unblock()
    sim.run(1 + 3 * DELAY)
    assert vm2.payloads() == payloads


# -- losses and repeats


@pytest.mark.parametrize("number", range(40))
def test_the_loss_of_any_single_message_heals(number):
    """With packets every 50 ms both ways; only what was in the message is missing."""
    sim = Simulation(number, link=LosesOne(number), mode="adaptive")
    vm1, vm2 = sim.pair()
    to_vm2, to_vm1 = sim.send("vm1", "vm2", 5), []
    for _ in range(40):
        sim.run(0.05)
        to_vm2 += sim.send("vm1", "vm2")
        to_vm1 += sim.send("vm2", "vm1")
    sim.run(60)
    assert sim.established("vm1", "vm2")
    lost = set(to_vm1 + to_vm2) - set(vm1.payloads() + vm2.payloads())
    assert len(lost) <= (sim.sent[number].kind == Kind.S2)
    assert sim.ping("vm1", "vm2", timeout=8 * DELAY)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", range(12))
def test_the_loss_of_two_messages_heals(number, mode):
    sim = Simulation(mode=mode)
    sim.pair()
    sim.link = _LosesTwo(LosesOne(number // 4), LosesOne(number % 4))
    sim.send("vm1", "vm2")
    sim.run(20)
    assert sim.established("vm1", "vm2")
    assert sim.ping("vm1", "vm2", timeout=8 * DELAY)
    assert sim.ping("vm2", "vm1", timeout=8 * DELAY)


class _LosesTwo(Link):
    """Loses one datagram, then one of those that came through."""

    def __init__(self, one: LosesOne, other: LosesOne) -> None:
        self.one, self.other = one, other

    def carry(self, datagram):
        for _, arriving in self.one.carry(datagram):
            yield from self.other.carry(arriving)


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_ackack_is_repeated_until_something_is_heard(mode):
    """Nobody sends anything: only the silence tells that it was lost."""
    sim = Simulation(mode=mode)
    _, vm2 = sim.pair()
    sim.ping("vm1", "vm2")
    sim.restart("vm1")
    sim.link = _LosesAckAck(3)
    vm2.events.clear()
    sim.send("vm2", "vm1")  # which vm1 does not know any more, and asks
    sim.run(5)
    assert len(sim.messages(Kind.ACKACK, "vm1")) >= 5
    assert vm2.told(EventKind.ESTABLISHED) == 1
    assert sim.ping("vm2", "vm1", timeout=8 * DELAY)


@define
class _LosesAckAck(Link):
    number: int

    def carry(self, datagram):
        if datagram[0] == Kind.ACKACK and self.number:
            self.number -= 1
            return
        yield DELAY, datagram


def test_the_same_syn_gets_the_same_ack():
    sim = Simulation()
    sim.pair()
    sim.block("vm2", "vm1")
    sim.send("vm1", "vm2")
    sim.run(10)
    assert len({syn.data for syn in sim.messages(Kind.SYN)}) == 1
    assert len({ack.data for ack in sim.messages(Kind.ACK)}) == 1


def limited(message: bytes, limit: int) -> bytes:
    """SYN or ACK as a relay that keeps few roots passes it on."""
    return message[:12] + limit.to_bytes(2) + message[14:]


def test_a_syn_with_another_limit_is_the_same_syn():
    sim = Simulation()
    _, vm2 = sim.pair()
    syn = sim.hosts["vm1"].syn().pack()
    for limit in (9, 0, 5):
        sim.inject("vm2", VM1, limited(syn, limit))
    assert len(sim.messages(Kind.ACK)) == 3
    assert len({ack.data for ack in sim.messages(Kind.ACK)}) == 1
    assert vm2.told(EventKind.SYN_RECEIVED) == 1
    assert [a.syn.limit for a in sim.session("vm2", "vm1").negotiation.answers] == [9]


def test_an_ack_with_another_limit_is_the_same_ack():
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.send("vm1", "vm2")
    sim.run(1)
    ack = sim.messages(Kind.ACK)[0]
    before = len(sim.messages(Kind.ACKACK))
    sim.inject("vm1", VM2, limited(ack.data, 9))
    ackacks = sim.messages(Kind.ACKACK)
    assert len(ackacks) == before + 1
    assert len({ackack.data for ackack in ackacks}) == 1
    assert vm1.told(EventKind.ACK_RECEIVED) == 1


def test_the_same_ack_gets_the_same_ackack():
    sim = Simulation()
    sim.pair()
    sim.send("vm1", "vm2")
    sim.run(1)
    ack = sim.messages(Kind.ACK)[0]
    sim.inject("vm1", VM2, ack.data)
    ackacks = sim.messages(Kind.ACKACK)
    assert ackacks[-1].time == sim.now
    assert len({ackack.data for ackack in ackacks}) == 1


def test_repeated_messages_disturb_no_session():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    assert sim.ping("vm1", "vm2")
    sessions = [sim.session("vm1", "vm2"), sim.session("vm2", "vm1")]
    ids = [session.current.local_id for session in sessions]
    for sent in list(sim.sent):
        target, sender = ("vm2", VM1) if sent.source == "vm1" else ("vm1", VM2)
        sim.inject(target, sender, sent.data)
    assert [session.current.local_id for session in sessions] == ids
    received = len(vm1.received), len(vm2.received)
    sim.run(60)
    assert (len(vm1.received), len(vm2.received)) == received
    assert sim.ping("vm1", "vm2", timeout=3 * DELAY)


# -- restart and half-open answers


def test_a_restarted_peer_is_noticed_by_15_seconds_of_silence():
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.ping("vm1", "vm2")
    sim.block("vm2", "vm1")
    silent_from = sim.now
    for _ in range(29):
        sim.send("vm1", "vm2")
        sim.run(0.5)
    assert not vm1.told(EventKind.SILENT)
    sim.run(1)
    assert vm1.told(EventKind.SILENT) == 1
    assert sim.messages(Kind.SYN)[-1].time == pytest.approx(silent_from + 15)
    sim.unblock()
    sim.run(1)
    assert sim.ping("vm1", "vm2", timeout=3 * DELAY)


def test_a_restarted_peer_recovers_from_data_with_an_unknown_id():
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.ping("vm1", "vm2")
    sim.restart("vm2")
    sim.send("vm1", "vm2")
    sim.run(5 * DELAY)
    assert sim.established("vm1", "vm2")
    assert vm2.drops()[Drop.UNKNOWN_ID] == 1
    assert sim.ping("vm1", "vm2", timeout=3 * DELAY)


def test_a_restarted_peer_recovers_by_its_own_traffic():
    sim = Simulation()
    sim.pair()
    sim.ping("vm1", "vm2")
    sim.restart("vm2")
    assert sim.ping("vm2", "vm1", timeout=8 * DELAY)


def test_unknown_data_triggers_one_handshake_at_a_time():
    sim = Simulation()
    sim.pair()
    sim.block("vm1", "vm2")
    unknown = data_word(5).to_bytes(8) + bytes(100)
    for _ in range(100):
        sim.inject("vm1", VM2, unknown)
        sim.run(0.1)
    assert len(sim.messages(Kind.SYN)) <= 6  # as many as for one packet to send
    assert sim.hosts["vm1"].drops() == {Drop.UNKNOWN_ID: 100}


def test_unknown_data_leaves_a_live_session_alone():
    sim = Simulation()
    sim.pair()
    sim.ping("vm1", "vm2")
    before = len(sim.sent)
    sim.inject("vm1", VM2, data_word(5).to_bytes(8) + bytes(100))
    sim.run(1)
    assert len(sim.sent) == before


def test_a_half_open_answer_never_disturbs_the_live_session():
    sim = Simulation()
    sim.pair()
    sim.ping("vm1", "vm2")
    session = sim.session("vm2", "vm1")
    before = session.current
    sim.inject("vm2", VM1, sim.hosts["vm1"].syn().pack())
    assert len(session.negotiation.answers) == 1
    assert session.current is before
    for _ in range(30):
        assert sim.ping("vm1", "vm2", timeout=3 * DELAY)
        sim.run(1)
    assert session.current is before
    assert not session.negotiation.answers
    sim.run_until_idle()


def test_there_is_one_half_open_answer_per_peer():
    sim = Simulation()
    vm2 = sim.pair()[1]
    random = Random(1)
    for _ in range(200):
        syn = sim.hosts["vm1"].syn(random.randbytes(16))
        sim.inject("vm2", VM1, syn.pack())
        sim.run(0.05)
    assert len(vm2.table._by_id) == 1
    sim.run(HALF_OPEN_LIFETIME)
    assert not vm2.table._by_id


def test_giving_up_leaves_a_session_alone_that_was_heard_since():
    """vm2 hears nothing and says so; its own handshake fails, vm1's data arrive."""
    sim = Simulation()
    _, vm2 = sim.pair()
    sim.ping("vm1", "vm2")
    sim.link = _LosesHandshakes()
    sim.block("vm1", "vm2")
    sim.send("vm2", "vm1")
    sim.run(16)
    assert vm2.told(EventKind.SILENT)
    sim.unblock()
    for _ in range(120):
        sim.send("vm1", "vm2")
        sim.run(1)
    assert not vm2.told(EventKind.GAVE_UP)
    assert sim.ping("vm1", "vm2", timeout=3 * DELAY)


class _LosesHandshakes(Link):
    def carry(self, datagram):
        if datagram[0] == Kind.DATA:
            yield DELAY, datagram


def test_an_unproven_session_carries_nothing_outwards():
    sim = Simulation()
    sim.pair()
    sim.inject("vm2", VM1, sim.hosts["vm1"].syn().pack())
    sim.send("vm2", "vm1")
    assert not sim.messages(Kind.DATA)
    assert sim.session("vm2", "vm1").state(sim.now) is State.HANDSHAKING


# -- strangers


def test_strangers_get_no_answer_and_no_state():
    sim = Simulation()
    vm2 = sim.pair()[1]
    stranger = ("192.0.2.1", PORT)
    syn = Syn(1, *OFFER)
    sim.inject("vm2", stranger, syn.pack())
    sim.inject("vm2", stranger, Ack(2, 1, *OFFER).pack())
    sim.inject("vm2", stranger, AckAck(2, bytes(64)).pack())
    sim.inject("vm2", stranger, data_word(2).to_bytes(8) + bytes(100))
    sim.run(1000)
    assert not sim.sent
    assert not vm2.table._by_id
    assert vm2.table.deadline == float("inf")
    assert vm2.drops() == {Drop.STRANGER: 1, Drop.UNKNOWN_ID: 3}


def test_no_answer_is_larger_than_its_question():
    """Whoever forges an address gets no more thrown at it than was spent on asking."""
    sim = Simulation()
    vm2 = sim.pair()[1]
    sim.inject("vm2", VM1, sim.hosts["vm1"].syn().pack())
    (answer,) = sim.sent
    assert len(answer.data) <= SYN_SIZE
    sim.run_until_idle()
    assert len(sim.sent) == 1
    assert len(vm2.events) == 1


def test_a_session_answers_an_ack_with_no_more_than_it_got():
    sim = Simulation()
    sim.pair()
    sim.ping("vm1", "vm2")
    ack = sim.messages(Kind.ACK)[0]
    before = len(sim.sent)
    sim.inject("vm1", VM2, ack.data)
    assert [len(sent.data) for sent in sim.sent[before:]] == [ACKACK_SIZE]


# -- proofs


RANDOM = Random(1).randbytes
ALICE, BOB, MALLORY = (Identity(RANDOM(32)) for _ in range(3))


def _begin(identity: Identity) -> Initiation:
    return Initiation.begin(identity, SUITE_ALPHA, 9, RANDOM, 0.0)


def _answer(initiation: Initiation, identity: Identity) -> HalfOpen:
    return HalfOpen.answer(initiation.syn, identity, 4, RANDOM, VM1, b"", 0.0)


def test_an_ack_that_does_not_answer_our_syn_is_refused():
    ours, other = _begin(ALICE), _begin(ALICE)
    ack = _answer(other, BOB).ack
    with pytest.raises(BadPacket):
        ours.finish_untrusted(ack, ALICE)
    other.finish_untrusted(ack, ALICE)


def test_an_ackack_of_another_handshake_is_refused():
    initiation = _begin(ALICE)
    one, other = _answer(initiation, BOB), _answer(initiation, BOB)
    ackack = initiation.finish_untrusted(one.ack, ALICE)
    with pytest.raises(BadPacket):
        other.verify_untrusted(ackack)
    one.verify_untrusted(ackack)


def test_an_ack_somebody_else_signed_is_refused():
    initiation = _begin(ALICE)
    ack = evolve(_answer(initiation, MALLORY).ack, identity=BOB.public)
    with pytest.raises(BadPacket):
        initiation.finish_untrusted(ack, ALICE)


def test_an_ackack_of_another_suite_is_refused():
    """What no signature covers must not differ either."""
    initiation = Initiation.begin(ALICE, 1, 1, Random(1).randbytes, 0.0)
    half_open = _answer(initiation, BOB)
    ackack = initiation.finish_untrusted(half_open.ack, ALICE)
    half_open.verify_untrusted(ackack)
    with pytest.raises(BadPacket):
        half_open.verify_untrusted(evolve(ackack, suite=2))


def test_an_ackack_somebody_else_signed_is_refused():
    initiation = _begin(ALICE)
    half_open = _answer(initiation, BOB)
    ackack = initiation.finish_untrusted(half_open.ack, MALLORY)
    with pytest.raises(BadPacket):
        half_open.verify_untrusted(ackack)


def test_both_ends_agree_on_keys_that_nobody_else_has():
    initiation = _begin(ALICE)
    half_open = _answer(initiation, BOB)
    half_open.verify_untrusted(initiation.finish_untrusted(half_open.ack, ALICE))
    one = initiation.agree(half_open.ack, VM2, b"").keys
    other = half_open.agree(half_open.remote, b"").keys
    assert (one.send_cipher, one.send_tag) == (other.receive_cipher, other.receive_tag)
    assert (one.receive_cipher, one.receive_tag) == (other.send_cipher, other.send_tag)
    assert len({one.send_cipher, one.receive_cipher}) == 2


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.ACKACK])
def test_a_wrong_proof_changes_nothing_and_is_counted(kind):
    sim = Simulation()
    vm1, vm2 = sim.pair()
    sim.link = _Breaks(kind)
    sim.send("vm1", "vm2")
    sim.run(0.4)
    breaks = vm1 if kind == Kind.ACK else vm2
    assert breaks.drops()[Drop.BAD_PROOF] >= 1
    assert not vm2.received
    sim.link = Link()
    sim.run(10)
    assert sim.established("vm1", "vm2")


class _Breaks(Link):
    """Breaks the proof, the last thing in its message, of one kind of message."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def carry(self, datagram):
        if datagram[0] == self.kind:
            datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
        yield DELAY, datagram


# -- all at once


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_link_does_packets_pass_again_soon_after(seed, mode):
    sim = Simulation(seed, mode=mode)
    sim.pair()
    sim.link = Hostile(
        sim.random,
        loss=0.3,
        duplicate=0.2,
        late=0.3,
        replay=0.2,
        truncate=0.05,
        flip=0.05,
    )
    _chat(sim, rounds=150)
    sim.link = Link()
    _chat(sim, rounds=60)
    for _ in range(10):
        assert sim.ping("vm1", "vm2", timeout=8 * DELAY)
        assert sim.ping("vm2", "vm1", timeout=8 * DELAY)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_restarts_on_a_bad_link_need_no_manual_step(seed, mode):
    sim = Simulation(seed, mode=mode)
    sim.pair()
    sim.link = Hostile(sim.random, loss=0.2, duplicate=0.1, late=0.2)
    for _ in range(10):
        sim.restart(sim.random.choice(["vm1", "vm2"]))
        _chat(sim, rounds=15)
    sim.link = Link()
    _chat(sim, rounds=60)
    sim.run(1)  # what is under way would be waited for
    assert sim.ping("vm1", "vm2", timeout=8 * DELAY)
    assert sim.ping("vm2", "vm1", timeout=8 * DELAY)


def _chat(sim: Simulation, rounds: int) -> None:
    """Both ends, or one, send now and then."""
    for _ in range(rounds):
        for source, destination in (("vm1", "vm2"), ("vm2", "vm1")):
            if sim.random.random() < 0.7:
                sim.send(source, destination)
        sim.run(sim.random.uniform(0, 1.5))
