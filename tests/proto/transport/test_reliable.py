"""Reliable rounds of packets: verdicts, repetition, and what is told when both end."""

from random import Random

import pytest

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    A2_OPENING,
    CONTROL,
    MAX_RELIABLE,
    RELIABLE,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    Kind,
)
from alpha_trio.proto.primitives import ACK, NACK, opening_size
from alpha_trio.proto.primitives.acks import branch_length
from alpha_trio.proto.transport import Arrival
from alpha_trio.proto.transport.sender import HELD_BYTES, QUEUE_AGE, RELIABLE_LIFETIME
from alpha_trio.proto.transport.timing import RoundTrip
from tests.proto.ends import SIZE, Ends, batch, changed, head, of_kind, packets_of
from tests.proto.inner import Packet
from tests.proto.simulation import Hostile, Link, Simulation

TAG = 16
MODES = ["n", "c", "m", "cm"]
LARGEST = Packet(payload=bytes(MAX_RELIABLE * 100), segment_size=100)


def disclosed(packet: Packet, mode: str = "adaptive") -> tuple[Ends, list[bytes]]:
    """Ends with a reliable round that two agreed to, and its S2s on their way."""
    ends = Ends.reliable(mode)
    return ends, ends.one.take(*ends.two.take(*ends.one.emit(packet)))


def verdicts(a2s: list[bytes], packets: int) -> dict[int, int]:
    """What these A2s say of which packet."""
    size = opening_size(packets)
    found = {}
    for a2 in a2s:
        openings = a2[ROUND_HEAD_SIZE:-TAG]
        assert len(openings) % size == 0
        for at in range(0, len(openings), size):
            index, verdict, _, _ = A2_OPENING.unpack_from(openings, at)
            found[index] = verdict
    return found


def open_round(ends: Ends):
    return ends.one.sender.associations[0].round


# -- a round


@pytest.mark.parametrize("mode", MODES)
def test_every_packet_is_delivered_and_acknowledged(mode):
    ends = Ends.reliable(mode, 312 if mode == "cm" else SIZE)
    carried = ends.settle(*ends.one.emit(batch(mode)))
    assert ends.two.received == packets_of(batch(mode))
    (s1,) = of_kind(Kind.S1, carried)
    assert head(s1).shape & (RELIABLE | CONTROL) == RELIABLE
    packets = len(packets_of(batch(mode)))
    said = verdicts(of_kind(Kind.A2, carried), packets)
    assert said == dict.fromkeys(range(packets), ACK)
    assert open_round(ends) is None
    assert ends.one.drops == ends.two.drops == {}
    assert ends.one.serve(2 * RELIABLE_LIFETIME) == []


def test_a2_of_one_packet_has_one_opening_and_a_branch_of_one_node():
    ends, s2 = disclosed(batch("n"))
    (a2,) = ends.two.take(*s2)
    assert len(a2) == ROUND_HEAD_SIZE + A2_OPENING.size + 16 + TAG


def test_the_openings_of_a_batch_share_as_few_a2s_as_the_path_takes():
    ends, s2 = disclosed(LARGEST)
    a2s = ends.two.take(b"".join(s2), stride=len(s2[0]))
    room = (SIZE - ROUND_HEAD_SIZE - TAG) // opening_size(MAX_RELIABLE)
    assert [len(a2) <= SIZE for a2 in a2s] == [True] * -(-MAX_RELIABLE // room)
    assert len(verdicts(a2s, MAX_RELIABLE)) == MAX_RELIABLE


def test_a_round_takes_no_more_packets_than_a_receiver_answers():
    ends = Ends.reliable()
    more = Packet(payload=bytes(100 * 100), segment_size=100)
    carried = ends.settle(*ends.one.emit(more))
    counts = [S1_COUNTS.unpack_from(s1, ROUND_HEAD_SIZE)[0] for s1 in of_s1(carried)]
    assert counts == [64, 36]
    assert ends.two.received == packets_of(more)


def of_s1(datagrams):
    return [s1 for s1 in of_kind(Kind.S1, datagrams) if not head(s1).shape & CONTROL]


def test_sent_packets_are_counted_once_however_often_they_go():
    ends, s2 = disclosed(batch())
    counters = ends.one.transport.line.counters
    size = sum(map(len, packets_of(batch())))
    for now in (0.0, ends.one.transport.deadline):
        ends.one.serve(now)
        assert (counters.tx_packets, counters.tx_bytes) == (len(s2), size)
    assert counters.reliable_rounds == 1


# -- repetition


@pytest.mark.parametrize("mode", ["c", "m"])
def test_only_what_was_not_answered_is_repeated_and_to_the_byte(mode):
    ends, s2 = disclosed(batch(mode), mode)
    arrived = [2, 3, 6]
    ends.one.take(*ends.two.take(*[s2[i] for i in arrived]))
    again = ends.one.serve(ends.one.transport.deadline + 1)
    assert again == [s2[i] for i in range(7) if i not in arrived]
    ends.settle(*again, now=2.0)
    assert sorted(ends.two.received) == sorted(packets_of(batch(mode)))
    assert open_round(ends) is None


def test_a_lost_a2_is_made_again_and_nothing_is_delivered_twice():
    ends, s2 = disclosed(batch())
    lost = ends.two.take(b"".join(s2), stride=len(s2[0]))
    again = ends.one.serve(ends.one.transport.deadline + 1)
    assert again == s2
    assert ends.two.take(b"".join(again), stride=len(s2[0])) == lost
    assert ends.two.received == packets_of(batch())
    assert ends.two.drops == {}
    assert ends.two.arrival is Arrival.NOTHING


def test_a_packet_that_comes_twice_in_one_piece_gets_one_verdict():
    ends, s2 = disclosed(batch())
    run = b"".join([s2[0], s2[1], s2[0], s2[0]])
    (a2,) = ends.two.take(run, stride=len(s2[0]))
    assert len(a2) == ROUND_HEAD_SIZE + 2 * opening_size(7) + TAG
    assert verdicts([a2], 7) == {0: ACK, 1: ACK}


def test_repetition_slows_down_until_something_new_is_heard():
    ends, s2 = disclosed(batch())
    gaps, now = [], 0.0
    for _ in range(5):
        due = ends.one.transport.deadline
        gaps.append(due - now)
        now = due
        ends.one.serve(now)
    assert gaps == sorted(gaps)
    assert gaps[-1] > gaps[0]
    ends.one.take(*ends.two.take(s2[0]), now=now)
    while (due := ends.one.transport.deadline) <= now:
        ends.one.serve(due)
    assert ends.one.sender.associations[0].round.attempts == 1


def test_a_round_that_waits_for_a2_holds_up_no_other():
    ends = Ends.reliable()
    open_more(ends)
    first = ends.one.emit(batch())
    second = ends.one.emit(batch(seed=1))
    s2_of_first = ends.one.take(*ends.two.take(*first))
    assert of_kind(Kind.S2, s2_of_first)
    s2_of_second = ends.one.take(*ends.two.take(*second))
    ends.two.take(*of_kind(Kind.S2, s2_of_second))
    assert ends.two.received == packets_of(batch(seed=1))


def open_more(ends: Ends) -> None:
    """Let one have a second association."""
    ends.one.transport._open_one()
    ends.settle()
    assert len(ends.one.sender.associations) > 1
    ends.one.sender.rtt = RoundTrip()  # on a way without delay rounds would wait


def test_keys_are_disclosed_in_the_order_of_their_rounds():
    ends = Ends.reliable()
    open_more(ends)
    first, second = ends.one.emit(batch()), ends.one.emit(batch(seed=1))
    assert of_kind(Kind.S2, ends.one.take(*ends.two.take(*second))) == []
    disclosed = of_kind(Kind.S2, ends.one.take(*ends.two.take(*first)))
    assert [head(s2).association for s2 in disclosed] == sorted(
        head(s2).association for s2 in disclosed
    )
    ends.two.take(*disclosed)
    assert ends.two.received == packets_of(batch()) + packets_of(batch(seed=1))


# -- the verdict no


def test_a_packet_that_is_refused_for_good_gets_a_nack_and_is_not_repeated():
    ends, s2 = disclosed(batch())
    ends.two.owns = lambda packet: False
    a2s = ends.two.take(b"".join(s2), stride=len(s2[0]))
    assert NACK in verdicts(a2s, 7).values()
    ends.two.owns = lambda packet: True
    ends.one.take(*a2s)
    assert open_round(ends) is None
    assert ends.one.drops == {Drop.REFUSED: 7}
    assert ends.two.drops == {Drop.WRONG_SOURCE: 7}
    assert ends.two.received == []


def test_of_a_mixed_round_just_the_refused_packets_are():
    ends = Ends.reliable()
    first = ends.one.send(b"first")
    ends.one.send(b"good one", b"bad one", b"good two", b"bad two")
    ends.two.owns = lambda packet: bytes(packet[:3]) != b"bad"
    carried = ends.settle(*first)
    a2s = [a2 for a2 in of_kind(Kind.A2, carried) if not head(a2).shape & CONTROL]
    said = verdicts(a2s[1:], 4)
    assert said == {0: ACK, 1: NACK, 2: ACK, 3: NACK}
    assert ends.two.received == [b"first", b"good one", b"good two"]
    assert ends.one.drops == {Drop.REFUSED: 2}


def test_a_nack_stays_one_when_the_packet_comes_again():
    ends, s2 = disclosed(batch("n"))
    ends.two.owns = lambda packet: False
    (a2,) = ends.two.take(*s2)
    ends.two.owns = lambda packet: True
    assert ends.two.take(*s2) == [a2]
    assert ends.two.received == []


# -- the end of a round nobody answers


def test_what_was_not_acknowledged_in_time_is_counted_and_forgotten():
    ends, s2 = disclosed(batch())
    ends.one.take(*ends.two.take(*s2[:3]))
    end = 2 * RELIABLE_LIFETIME
    assert ends.one.sender.under_way_bytes > 0
    ends.one.serve(end)
    assert ends.one.drops == {Drop.UNACKNOWLEDGED: 4}
    assert ends.one.sender.under_way_bytes == 0
    assert open_round(ends) is None
    late = ends.two.take(*s2)
    assert ends.one.take(*late, now=end) == []
    assert ends.one.arrival is Arrival.NOTHING
    assert ends.one.drops == {Drop.UNACKNOWLEDGED: 4}
    ends.settle(*ends.one.emit(batch(seed=1), now=end), now=end)
    assert ends.two.received[-7:] == packets_of(batch(seed=1))


def test_what_waited_for_its_turn_has_all_its_time_for_repetition():
    ends = Ends.reliable()
    open_more(ends)
    first, second = ends.one.emit(batch()), ends.one.emit(batch(seed=1))
    late = RELIABLE_LIFETIME - 1
    ends.one.take(*ends.two.take(*second))
    ends.one.serve(late)
    s2 = of_kind(Kind.S2, ends.one.take(*ends.two.take(*first), now=late))
    assert len(s2) == 14
    ends.one.serve(late + RELIABLE_LIFETIME - 2)
    assert ends.one.drops == {}
    ends.one.serve(late + 2 * RELIABLE_LIFETIME)
    assert ends.one.drops == {Drop.UNACKNOWLEDGED: 14}


def test_a_round_without_a1_is_given_up_after_its_lifetime_and_not_before():
    ends = Ends.reliable()
    ends.one.emit(batch())
    ends.one.serve(RELIABLE_LIFETIME / 2)
    assert ends.one.drops == {}
    ends.one.serve(2 * RELIABLE_LIFETIME)
    assert ends.one.drops == {Drop.NO_AGREEMENT: 7}
    assert ends.one.sender.under_way_bytes == 0


def test_a_session_that_ends_counts_what_is_sent_and_what_waits_apart():
    ends, _ = disclosed(batch())
    ends.one.emit(batch(seed=1))
    ends.one.transport.abandon()
    assert ends.one.drops == {Drop.UNACKNOWLEDGED: 7, Drop.NO_SESSION: 7}
    ends.one.transport.abandon()
    assert ends.one.drops == {Drop.UNACKNOWLEDGED: 7, Drop.NO_SESSION: 7}


def test_an_unanswered_keepalive_is_no_lost_packet():
    ends = Ends.reliable()
    ends.one.transport.keepalive(0.0, ends.one.out)
    ends.one.take(*ends.two.take(*ends.one.sent()))
    ends.one.serve(2 * RELIABLE_LIFETIME)
    assert sum(ends.one.drops.values()) == 0
    assert ends.one.transport.line.counters.tx_packets == 0


# -- the next session


def test_the_next_session_sends_what_was_not_disclosed_and_only_that():
    ends, s2 = disclosed(batch())
    ends.one.emit(batch(seed=1))  # waits
    new = Ends.make(seed=1)
    new.one.sender.reliable = True
    new.one.sender.succeed(ends.one.sender, 0.0, new.one.out)
    new.settle(*new.one.sent())
    assert new.two.received == packets_of(batch(seed=1))
    again = of_kind(Kind.S2, ends.one.serve(0.03))
    assert again == s2
    ends.one.take(*ends.two.take(*again))
    assert ends.two.received == packets_of(batch())
    assert ends.one.sender.under_way_bytes == 0
    assert ends.one.drops == new.one.drops == {}


def test_rounds_that_move_to_the_next_session_hold_nothing_in_the_old_one():
    ends = Ends.reliable()
    open_more(ends)
    ends.one.emit(batch())
    ends.one.emit(batch(seed=1))
    new = Ends.make(seed=1)
    new.one.sender.succeed(ends.one.sender, 0.0, new.one.out)
    assert ends.one.sender.under_way_bytes == 0
    new.settle(*new.one.sent())
    assert new.two.received == packets_of(batch()) + packets_of(batch(seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_a_new_session_every_few_seconds_loses_and_repeats_nothing(seed):
    sim = Simulation(seed, Hostile(Random(seed), loss=0.2), "adaptive", reliable=True)
    one, two = sim.pair()
    sent = []
    for _ in range(40):
        sent += sim.send("vm1", "vm2", 3)
        sim.run(sim.random.uniform(0, 0.3))
        if sim.random.random() < 0.1:
            sim.session("vm1", "vm2")._want_session(sim.now)
            sim.run(0.1)
    sim.run(60)
    given_up = one.drops()[Drop.UNACKNOWLEDGED]
    assert len(set(two.payloads())) == len(two.payloads())
    assert len(sent) - len(two.payloads()) <= given_up


# -- the setting


def test_the_setting_holds_from_the_next_round_on():
    ends = Ends.make()
    (first,) = ends.one.send(b"one")
    ends.one.sender.reliable = True
    carried = ends.settle(first)
    assert of_kind(Kind.A2, carried) == []
    assert of_kind(Kind.A2, ends.settle(*ends.one.send(b"two")))
    ends.one.sender.reliable = False
    assert of_kind(Kind.A2, ends.settle(*ends.one.send(b"three"))) == []
    assert ends.two.received == [b"one", b"two", b"three"]


def test_a_table_tells_a_live_session():
    sim = Simulation(mode="adaptive")
    one, two = sim.pair()
    sim.send("vm1", "vm2")
    sim.run(1)
    session = sim.session("vm1", "vm2")
    known = session.negotiation.remotes, one.table._prefixes_of["vm2"]
    key = session.negotiation.key
    one.table.configure(session, *known, key=key, reliable=True)
    before = len(sim.messages(Kind.SYN))
    sim.send("vm1", "vm2")
    sim.run(1)
    assert len(sim.messages(Kind.A2, "vm2")) >= 1
    assert len(sim.messages(Kind.SYN)) == before
    assert len(two.received) == 2


# -- bounds


def test_memory_is_bounded_however_much_waits_for_its_verdict():
    ends = Ends.reliable()
    large = Packet(payload=bytes(60 * 900), segment_size=900)
    sender, handed_in = ends.one.sender, 0
    open_more(ends)
    for now in range(400):
        s1 = of_kind(Kind.S1, ends.one.emit(large, now=now / 1000))
        handed_in += 60
        ends.one.take(*ends.two.take(*s1), now=now / 1000)  # the S2s are lost
        assert sender.queued_bytes + sender.under_way_bytes <= HELD_BYTES
    counters = ends.one.transport.line.counters
    waiting = sender.queued_packets + counters.tx_packets
    assert waiting + ends.one.drops[Drop.QUEUE_FULL] == handed_in
    ends.one.serve(100.0)
    ends.one.serve(200.0)
    assert sender.under_way_bytes == sum(
        a.round.size for a in sender.associations.values() if a.round
    )


def test_packets_wait_longer_for_a_reliable_round():
    ends = Ends.reliable()
    ends.one.emit(batch())
    ends.one.emit(batch(seed=1))
    ends.one.serve(2 * QUEUE_AGE)
    assert ends.one.drops == {}


# -- A2s that are not the receiver's


def test_an_a2_with_any_byte_changed_changes_nothing():
    """With the tag of the end: what holds it is the tree, as it does for a relay."""
    ends, s2 = disclosed(batch())
    (a2,) = ends.two.take(b"".join(s2), stride=len(s2[0]))
    round_ = open_round(ends)
    opening = opening_size(7)
    zeros = {ROUND_HEAD_SIZE + 3 + i * opening for i in range(7)} | {11}
    shape = {10}  # says nothing the round does not know
    for at in range(8, len(a2) - TAG):
        if at in zeros | shape:
            continue
        before = round_.unanswered
        ends.one.take(ends.one.tagged(changed(a2[:-TAG], at)))
        ends.one.take(ends.two.tagged(changed(a2[:-TAG], at)))
        assert (open_round(ends), round_.unanswered) == (round_, before), at
        assert round_.ack_key == b""
    for at in range(len(a2) - TAG, len(a2)):
        ends.one.take(changed(a2, at))
    assert open_round(ends) is round_
    ends.one.take(a2)
    assert open_round(ends) is None


@pytest.mark.parametrize("size", [0, 1, 19, 20, 83, 85, 7 * 84 + 84])
def test_an_a2_of_another_length_is_refused(size):
    assert opening_size(7) == 84
    ends, s2 = disclosed(batch())
    (a2,) = ends.two.take(b"".join(s2), stride=len(s2[0]))
    openings = (a2[ROUND_HEAD_SIZE:-TAG] * 2)[:size]
    ends.one.take(ends.two.tagged(a2[:ROUND_HEAD_SIZE] + openings))
    assert ends.one.drops == {Drop.BAD_ROUND: 1}
    assert open_round(ends).unanswered == 0x7F


def test_one_wrong_opening_spoils_an_a2():
    ends, s2 = disclosed(batch())
    first, second = ends.two.take(s2[0]), ends.two.take(s2[1])
    good = first[0][ROUND_HEAD_SIZE:-TAG]
    bad = changed(second[0][ROUND_HEAD_SIZE:-TAG], 5)
    for openings in (good + bad, bad + good):
        ends.one.take(ends.two.tagged(first[0][:ROUND_HEAD_SIZE] + openings))
    assert open_round(ends).unanswered == 0x7F
    assert ends.one.drops == {Drop.BAD_ROUND: 2}


def test_an_ack_for_one_packet_is_none_for_another_nor_a_nack():
    """Who sees an A2 knows the key of the tree, and still not another secret."""
    ends, s2 = disclosed(batch())
    (a2,) = ends.two.take(s2[3])
    ends.one.take(a2)
    for index in range(7):
        for verdict in (ACK, NACK, 2):
            place = A2_OPENING.pack(index, verdict, 0, a2[36:52])
            forged = a2[:ROUND_HEAD_SIZE] + place + a2[52:-TAG]
            ends.one.take(ends.two.tagged(forged))
    assert open_round(ends).unanswered == 0x7F & ~(1 << 3)


def test_an_a2_before_the_packets_were_sent_is_refused():
    """An ack of what nobody has seen would end a round that was never disclosed."""
    ends = Ends.reliable()
    open_more(ends)
    first, second = ends.one.emit(batch()), ends.one.emit(batch(seed=1))
    ends.one.take(*ends.two.take(*second))  # agreed, but waits for the first
    found = ends.two.receiver.associations[head(second[0]).association]
    ends.two.receiver._send_a2(found, found.current, [0, 1], ends.two.out)
    ends.one.take(*ends.two.sent())
    assert ends.one.drops == {Drop.BAD_ROUND: 1}
    ends.settle(*first)
    assert ends.two.received == packets_of(batch()) + packets_of(batch(seed=1))


def test_an_a2_for_a_round_that_is_not_reliable_is_refused():
    ends = Ends.make()
    s1 = ends.one.emit(batch())
    ends.two.take(*s1)
    place = s1[0][8:16]
    key = ends.two.receiver.associations[0].chain.element(2)
    opening = bytes(opening_size(7))
    start = ends.two.transport.line._words[Kind.A2] + place + key
    ends.one.take(ends.two.tagged(start + opening))
    assert ends.one.drops == {Drop.BAD_ROUND: 1}


def test_control_without_reliable_is_refused():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch("n"))
    wrong = bytearray(s1[:-TAG])
    wrong[10] = CONTROL
    assert ends.two.take(ends.one.tagged(bytes(wrong))) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}


@pytest.mark.parametrize("seed", range(20))
def test_altered_a2s_of_the_peer_itself_raise_nothing_and_end_nothing_early(seed):
    random, (ends, s2) = Random(seed), disclosed(batch())
    a2s = [ends.two.take(m)[0] for m in s2[:5]]  # two packets never arrive
    for _ in range(300):
        message = bytearray(random.choice(a2s)[:-TAG])
        for _ in range(random.randrange(3)):
            message[random.randrange(8, len(message))] ^= 1 << random.randrange(8)
        message += random.choice(a2s)[ROUND_HEAD_SIZE:-TAG] * random.randrange(3)
        del message[random.choice([len(message), random.randrange(8, len(message))]) :]
        ends.one.take(ends.two.tagged(bytes(message)))
        assert open_round(ends).unanswered >> 5 == 0b11
    ends.one.take(*a2s)
    assert open_round(ends).unanswered == 0b1100000
    assert not ends.one.drops.keys() - {Drop.BAD_ROUND}


def test_branches_are_as_long_as_the_document_says():
    assert [branch_length(n) for n in (1, 2, 3, 4, 5, 8, 33, 64)] == [
        *(1, 2, 3, 3, 4, 4, 7, 7)
    ]


# -- links that lose


class EveryNth(Link):
    """Loses every n-th datagram of each direction."""

    def __init__(self, n: int) -> None:
        self.n, self.passed = n, {}

    def carry(self, datagram: bytes):
        receiver = datagram[4:8]
        self.passed[receiver] = self.passed.get(receiver, 0) + 1
        return super().carry(datagram) if self.passed[receiver] % self.n else []


def in_trickles(sim: Simulation, rounds: int) -> list[bytes]:
    """Packets of one or more at a time, with and without time between."""
    sent = sim.send("vm1", "vm2")
    sim.run(20)  # before there is a session, few can wait
    for _ in range(rounds):
        sent += sim.send("vm1", "vm2", sim.random.choice([1, 1, 3, 20]))
        sim.run(sim.random.choice([0.0, 0.01, 0.1]))
    return sent


@pytest.mark.parametrize("seed", range(10))
def test_everything_arrives_once_on_a_link_that_loses_repeats_and_reorders(seed):
    link = Hostile(
        Random(seed), loss=0.3, duplicate=0.1, late=0.1, delay=0.2, replay=0.05
    )
    sim = Simulation(seed, link, "adaptive", reliable=True)
    one, two = sim.pair()
    sent = in_trickles(sim, 60)
    sim.run(90)
    assert sorted(two.payloads()) == sorted(sent)
    assert not one.drops().keys() & {Drop.UNACKNOWLEDGED, Drop.NO_AGREEMENT}


# Each place in a round, and some that move on from round to round.
@pytest.mark.parametrize("n", [*range(2, 17), 19, 23, 29, 37])
def test_nothing_is_lost_when_every_nth_datagram_is(n):
    sim = Simulation(n, EveryNth(n), "adaptive", reliable=True)
    _, two = sim.pair()
    sent = in_trickles(sim, 25)
    sim.run(90)
    assert sorted(two.payloads()) == sorted(sent)


@pytest.mark.parametrize("n", range(2, 8))
def test_pings_come_back_when_every_nth_datagram_is_lost(n):
    """Without reliable rounds every third S2 of a ping on an idle line is lost."""
    sim = Simulation(n, EveryNth(n), "adaptive", reliable=True)
    sim.pair()
    assert all(sim.ping("vm1", "vm2", timeout=20) for _ in range(20))
