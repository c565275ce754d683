"""The receiving half of a session, message by message."""

from itertools import permutations
from random import Random

import pytest

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    MAX_PACKETS,
    NODE_SIZE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S2_SIZE,
    Kind,
)
from alpha_trio.proto.packets import Cut
from alpha_trio.proto.transport import Arrival
from tests.proto.ends import (
    HERE,
    Ends,
    batch,
    changed,
    head,
    of_kind,
    packets_of,
)
from tests.proto.inner import Packet

MODES = ["n", "c", "m", "cm"]


def opened(mode: str = "c") -> tuple[Ends, list[bytes]]:
    """Ends with a round two has agreed to, and its S2s, which have not arrived."""
    ends = Ends.of_mode(mode)
    return ends, ends.one.take(*ends.two.take(*ends.one.emit(batch(mode))))


# -- what arrives how


@pytest.mark.parametrize("mode", MODES)
def test_a_round_that_arrives_in_one_piece_is_one_write(mode):
    ends, s2 = opened(mode)
    ends.two.take(b"".join(s2), stride=len(s2[0]))
    assert ends.two.received == packets_of(batch(mode))
    assert ends.two.arrival is Arrival.DATA
    assert ends.two.drops == {}


def test_keepalives_that_come_together_are_keepalives():
    """What is none would be answered by one, and these would never end."""
    ends = Ends.make()
    for _ in range(2):
        ends.one.transport.outgoing(Cut(0, b"", b"", 0, 0), 0.0, ends.one.out)
    ends.one.transport.push(0.0, ends.one.out)
    s2 = ends.one.take(*ends.two.take(*ends.one.sent()))
    assert len(s2) == 2
    ends.two.take(b"".join(s2), stride=len(s2[0]))
    assert ends.two.arrival is Arrival.KEEPALIVE
    assert ends.two.received == []


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
@pytest.mark.parametrize("mode", MODES[1:])
def test_packets_of_a_round_are_good_in_any_order_whatever_was_lost(mode, order):
    ends, s2 = opened(mode)
    ends.two.take(*[s2[i] for i in order])
    assert ends.two.received == [packets_of(batch(mode))[i] for i in order]
    assert ends.two.drops == {}


def test_packets_of_different_sizes_share_a_round():
    ends = Ends.make()
    first = ends.one.send(b"first")
    random = Random(0)
    sizes = [random.choice([1, 50, 50, 900]) for _ in range(40)]
    packets = [bytes(1) + random.randbytes(size) for size in sizes]  # of no flow
    assert ends.one.send(*packets) == []
    ends.settle(*first)
    assert ends.two.received == [b"first", *packets]


def test_a_packet_that_was_overtaken_by_the_next_s1_is_delivered():
    """Though its key then comes from the element of that S1."""
    ends, s2 = opened()
    (next_s1,) = ends.one.emit(batch(seed=1))
    ends.two.take(next_s1)
    ends.two.take(*s2)
    assert ends.two.received == packets_of(batch())
    ends.two.take(*ends.one.take(*ends.two.take(next_s1)))
    assert ends.two.received == packets_of(batch()) + packets_of(batch(seed=1))


def test_a_packet_two_rounds_late_is_unsolicited():
    ends, s2 = opened()
    for seed in (1, 2):
        ends.two.take(*ends.one.take(*ends.two.take(*ends.one.emit(batch(seed=seed)))))
    ends.two.take(*s2)
    assert ends.two.drops == {Drop.UNSOLICITED: 7}


def test_a_keepalive_is_a_sign_of_life_and_no_packet():
    ends = Ends.make()
    ends.one.transport.keepalive(0.0, ends.one.out)
    (s2,) = of_kind(Kind.S2, ends.settle(*ends.one.sent()))
    assert ends.two.received == []
    assert ends.two.arrival is Arrival.KEEPALIVE
    assert len(s2) == S2_SIZE + 8
    ends.two.take(s2)
    assert ends.two.arrival is Arrival.NOTHING


# -- what is refused


def test_s2_without_s1_is_unsolicited():
    _, s2 = opened()
    other = Ends.make()
    other.two.take(*s2)
    assert other.two.drops == {Drop.UNSOLICITED: 7}
    assert other.two.received == []


@pytest.mark.parametrize("mode", MODES)
def test_a_packet_with_any_byte_changed_is_refused(mode):
    """And costs no other packet of its round anything."""
    ends, s2 = opened(mode)
    wrong = [changed(s2[0], at) for at in range(8, len(s2[0]))]
    ends.two.take(*wrong)
    assert ends.two.received == []
    reasons = set(ends.two.drops)
    assert reasons == {Drop.FORGED, Drop.UNSOLICITED}
    assert sum(ends.two.drops.values()) == len(wrong)
    ends.two.take(*s2)
    assert ends.two.received == packets_of(batch(mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_packet_cut_anywhere_is_refused(mode):
    ends, s2 = opened(mode)
    cut = [s2[0][:size] for size in range(8, len(s2[0]))]
    ends.two.take(*cut)
    assert ends.two.received == []
    assert sum(ends.two.drops.values()) == len(cut)
    ends.two.take(*s2)
    assert ends.two.received == packets_of(batch(mode))


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("seed", range(5))
def test_forged_packets_in_one_piece_with_good_ones_cost_those_nothing(mode, seed):
    """The attacker has the real key and the real head of S2."""
    random, (ends, s2) = Random(seed), opened(mode)
    whole = s2[:-1]
    start = ROUND_HEAD_SIZE + NODE_SIZE * head(whole[0]).shape
    forged = [changed(m, random.randrange(start, len(m))) for m in whole]
    mixed = whole + forged + whole
    random.shuffle(mixed)
    ends.two.take(b"".join(mixed), stride=len(whole[0]))
    assert sorted(ends.two.received) == sorted(packets_of(batch(mode))[:-1])
    assert ends.two.drops == {Drop.FORGED: 6, Drop.REPLAYED: 6}


def test_datagrams_of_several_rounds_in_one_piece_are_told_apart():
    ends, s2 = opened()
    later = ends.one.take(*ends.two.take(*ends.one.emit(batch(seed=1))))
    mixed = [m for pair in zip(s2[:-1], later[:-1], strict=True) for m in pair]
    ends.two.take(b"".join(mixed), stride=len(mixed[0]))
    expected = packets_of(batch())[:-1] + packets_of(batch(seed=1))[:-1]
    assert sorted(ends.two.received) == sorted(expected)


@pytest.mark.parametrize("shape", [1, 6, 7, 0x40, 0x80, 0xC0, 0x08])
def test_another_shape_than_that_of_s1_is_refused(shape):
    ends, s2 = opened()
    ends.two.take(*[changed(m, 10, shape) for m in s2])
    assert ends.two.drops == {Drop.UNSOLICITED: 7}


COUNTS = [
    (0, 0, 0),
    (0, 1, 0),
    (1, 2, 0),
    (2, 1, 0),
    (9, 1, 3),
    (8, 2, 3),
    (2, 1, 7),
    (MAX_PACKETS + 1, MAX_PACKETS + 1, 0),
    (65_535, 1024, 6),
    (2, 2, 0xC0),
]


@pytest.mark.parametrize(("packets", "roots", "shape"), COUNTS)
def test_an_s1_whose_numbers_do_not_fit_together_is_refused(packets, roots, shape):
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    place = ROUND.pack(0, shape, 0, 0, head(s1).element)
    message = s1[:8] + place + S1_COUNTS.pack(packets, roots, 0)
    assert ends.two.take(ends.one.tagged(message + bytes(16 * roots))) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}
    assert len(ends.two.take(s1)) == 1  # nothing was accepted by that


@pytest.mark.parametrize("size", [-17, -16, -1, 1, 16])
def test_an_s1_with_more_or_less_than_its_roots_is_refused(size):
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    message = s1[:-8] + bytes(size) if size > 0 else s1[: -8 + size]
    assert ends.two.take(ends.one.tagged(message)) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}


@pytest.mark.parametrize("at", range(-8, 0))
def test_an_s1_without_the_tag_of_the_end_is_refused(at):
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    assert ends.two.take(changed(s1, at)) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}


# -- what nothing is answered to


def control_round() -> tuple[Ends, bytes, bytes]:
    """Ends, the S2 of a control message that was carried out, and the A2 to it."""
    ends = Ends.make()
    ends.one.sender.controls.send([bytes([3, 0, 0, 9]) + bytes(16)], 0.0, ends.one.out)
    (s2,) = ends.one.take(*ends.two.take(*ends.one.sent()))
    (a2,) = ends.two.take(s2)
    assert a2[0] == Kind.A2
    return ends, s2, a2


def test_a_control_message_that_comes_again_gets_the_same_a2():
    ends, s2, a2 = control_round()
    assert ends.two.take(s2) == [a2]
    assert ends.two.drops == {}


def test_a_forged_control_message_gets_no_answer():
    """It would be one to a sender who need not be the peer."""
    ends, s2, _ = control_round()
    for at in range(ROUND_HEAD_SIZE, len(s2)):
        assert ends.two.take(changed(s2, at)) == []


@pytest.mark.parametrize(
    "body",
    [b"\x01", bytes(20), b"\x09" + bytes(19), bytes([3, 0, 0, 9]) + bytes(17)],
)
def test_a_control_message_nobody_understands_gets_a_nack(body):
    ends = Ends.make()
    ends.one.sender.controls.send([body], 0.0, ends.one.out)
    answers = ends.two.take(*ends.one.take(*ends.two.take(*ends.one.sent())))
    verdicts = [a2[ROUND_HEAD_SIZE + 2] for a2 in of_kind(Kind.A2, answers)]
    assert verdicts == [0]


# -- where the peer is


def test_a_packet_of_a_source_that_is_not_the_peers_is_dropped():
    ends, s2 = opened("n")
    view = memoryview(bytearray(s2[0]))
    ends.two.transport.incoming(
        view, len(view), HERE, b"", lambda packet: False, 0.0, ends.two.out
    )
    assert ends.two.out.delivers == []
    assert ends.two.drops == {Drop.WRONG_SOURCE: 1}


def test_a_super_packet_of_udp_arrives_as_one_of_its_segments_or_all():
    ends = Ends.make()
    packet = Packet(payload=bytes(range(250)) * 8, segment_size=500)
    s2 = ends.one.take(*ends.two.take(*ends.one.emit(packet)))
    ends.two.take(s2[2])
    ends.two.take(b"".join(s2), stride=len(s2[0]))
    segments = [segment.build() for segment in packet.segments()]
    assert sorted(ends.two.received) == sorted(segments)
