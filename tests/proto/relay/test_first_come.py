"""First come is not last served: forgeries that come first displace nothing genuine.

Who reads a link in front of a relay and is faster than it puts his version before the
genuine one, or floods with others.  What a relay cannot check it keeps in several
versions, and what comes later decides.
"""

from hashlib import sha256
from random import Random

import pytest
from attrs import evolve

from alpha_trio.proto.handshake.exchange import Offer
from alpha_trio.proto.messages import (
    CONTROL_MESSAGE,
    FIRST_CHAIN,
    LATER_CHAIN,
    RELIABLE,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S2_TAIL,
    TAG_SIZE,
    Ack,
    Control,
    Cookie,
    Kind,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.packets import FRAME_WORD_SIZE
from alpha_trio.proto.primitives import Identity, Presigner
from alpha_trio.proto.relay.introduction import ANSWERS
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.watched import REPEAT_AFTER, VARIANTS
from alpha_trio.proto.relay.witness import _LEAST_BODY, VERSIONS_COST
from alpha_trio.proto.transport.alpha import LATER_SPACING
from tests.proto.ends import batch, changed, packets_of
from tests.proto.routed import Path

ROOTS = ROUND_HEAD_SIZE + 8  # where they begin in an S1
SEEDS = range(5)


def introduced(mode: str = "c", **settings) -> Path:
    path = Path(mode, **settings)
    path.introduce()
    return path


def forged_ack(syn, random, number: int) -> bytes:
    """An answer to a SYN that was overheard, signed by a key of one's own."""
    me, offer = Identity(random(32)), Offer.make(random)
    ids = syn.sender_id, 1000 + number
    ack = Ack(*ids, offer.nonce, me.public, *offer.public)
    signature = me.sign(b"ACK", syn.said(), ack.unsigned())
    return evolve(ack, signature=signature).pack()


# -- ACKs


def test_forged_acks_do_not_displace_the_genuine_one_that_came_first():
    path, random = Path(), Random(1).randbytes
    syn = parse_syn_untrusted(path.syn)
    path.to_two(path.syn)
    assert path.to_one(path.ack) == [path.ack]
    for number in range(100):
        path.now += 0.05
        path.to_one(forged_ack(syn, random, number))
    assert path.to_two(path.ackack) == [path.ackack]
    assert path.carry() == packets_of(batch())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_forged_acks_that_come_first_keep_no_genuine_one_out(seed):
    path, random = Path(), Random(seed).randbytes
    syn = parse_syn_untrusted(path.syn)
    path.to_two(path.syn)
    for number in range(ANSWERS - 1):
        path.to_one(forged_ack(syn, random, number))
    assert path.to_one(path.ack) == [path.ack]
    assert path.to_two(path.ackack) == [path.ackack]


def test_the_answer_of_the_other_end_in_a_session_has_a_place_of_its_own():
    """A renewal: however many others answer the SYN, before and after."""
    path, random = introduced(), Random(2).randbytes
    renewal = path.renewed()
    syn = parse_syn_untrusted(renewal.syn)
    renewal.to_two(renewal.syn)
    flood = [forged_ack(syn, random, number) for number in range(130)]
    for datagram in flood[:30]:
        renewal.now += 0.1  # as often as signatures are checked for one SYN
        assert renewal.to_one(datagram) == [datagram]
    assert renewal.to_one(renewal.ack) == [renewal.ack]
    for datagram in flood[30:]:
        renewal.now += 0.1
        assert renewal.to_one(datagram) == [datagram]
    assert renewal.to_two(renewal.ackack) == [renewal.ackack]
    assert renewal.carry() == packets_of(batch())


def test_an_id_that_somebody_else_chose_as_well_keeps_nobody_out():
    """Whoever sees a SYN or an ACK can choose the same ids, and be faster."""
    path = Path(ids=(7, 8))
    for seed in range(1, 30):
        path.to_two(Path(seed=seed, ids=(7, 8)).syn)
    path.introduce()
    assert path.carry() == packets_of(batch())


# -- repetitions


def test_no_copies_use_up_what_a_genuine_repetition_of_a_handshake_needs():
    path = Path()
    syn = parse_syn_untrusted(path.syn)
    path.to_two(path.syn)
    cookie = Cookie(syn.sender_id, syn.nonce, bytes(16)).pack()
    ack, ackack = parse_ack_untrusted(path.ack), parse_ackack_untrusted(path.ackack)
    for genuine, send in (
        (cookie, path.to_one),
        (path.ack, path.to_one),
        (path.ackack, path.to_two),
    ):
        assert send(genuine) == [genuine]
        flood(send, genuine)
        path.now += REPEAT_AFTER
        flood(send, genuine, exact=False)
        assert send(genuine) == [genuine]
    assert (ack.mac, ackack.mac) == (path.ack[-16:], path.ackack[-16:])


@pytest.mark.parametrize("kind", [Kind.S1, Kind.A1, Kind.A2])
def test_no_copies_use_up_what_a_genuine_repetition_in_a_round_needs(kind):
    path = introduced()
    s1, a1, s2, a2 = path.control(CONTROL_MESSAGE.pack(Control.CLOSE, 9, bytes(16)))
    for genuine, send in ((s1, path.to_two), (a1, path.to_one), (a2, path.to_one)):
        if genuine[0] == Kind.A2:
            path.to_two(s2)
        assert send(genuine) == [genuine]
        if genuine[0] == kind:
            flood(send, genuine)
            path.now += REPEAT_AFTER
            flood(send, genuine, exact=False)
            assert send(genuine) == [genuine]
            return


def flood(send, genuine, *, exact=True):
    """Copies with other tags or MACs, and the same over and over."""
    for number in range(1, 500):
        send(genuine[:-TAG_SIZE] + number.to_bytes(TAG_SIZE))
        if exact:
            send(genuine)


def test_copies_of_an_s2_do_the_work_of_its_repetition():
    path = introduced()
    path.one.sender.reliable = True
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*s2s) == s2s
    path.to_two(*s2s * 500)
    path.now += REPEAT_AFTER
    assert path.to_two(*s2s) == s2s


# -- S1s and A1s of a round


@pytest.mark.parametrize("mode", ["n", "c", "m", "cm"])
def test_of_many_s1s_that_come_first_none_keeps_the_genuine_one_out(mode):
    path = introduced(mode)
    s1, a1, s2s = path.opened()
    path.to_two(*(changed(s1, ROOTS, by) for by in range(1, VARIANTS)))
    assert path.to_two(s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s


def test_no_s1s_that_come_later_displace_the_one_that_came_first():
    path = introduced()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_two(*(changed(s1, ROOTS + at, by) for at in range(9) for by in (1, 2, 3)))
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s


@pytest.mark.parametrize("mode", ["n", "c", "m", "cm"])
@pytest.mark.parametrize("reliable", [False, True])
def test_a_planted_a1_does_not_decide_and_the_s2_does(mode, reliable):
    """By who saw the genuine element on its way to the relay, and was faster."""
    path = introduced(mode)
    path.one.sender.reliable = reliable
    s1, a1, s2s = path.opened()
    for by in (1, 2):
        forged = changed(s1, ROOTS, by)
        assert path.to_two(forged) == [forged]
        if by == 1:
            assert path.to_two(s1) == [s1]
        planted = agreeing(a1, forged)
    assert path.to_one(planted) == [planted]
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s
    if reliable:
        a2s = [a2 for a2 in path.two.take(*s2s, now=path.now) if a2[0] == Kind.A2]
        assert path.to_one(*a2s) == a2s


def agreeing(a1: bytes, s1: bytes) -> bytes:
    """An A1 with the genuine element that agrees to another S1."""
    digest = sha256(s1[:-TAG_SIZE]).digest()[:16]
    return a1[:ROUND_HEAD_SIZE] + digest + a1[ROUND_HEAD_SIZE + 16 :]


@pytest.mark.parametrize("at", range(7))
def test_an_s1_with_some_genuine_roots_does_not_decide_either(at):
    """The first packet fits both; the others must still pass."""
    path = introduced()
    s1, a1, s2s = path.opened()
    forged = changed(s1, ROOTS + 16 * at)
    path.to_two(forged, s1)
    path.to_one(agreeing(a1, forged), a1)
    assert path.to_two(*s2s) == s2s


@pytest.mark.parametrize("more", [True, False])
def test_an_s1_with_another_number_of_packets_does_not_decide_either(more):
    """Of a tree: as many roots, and more or fewer packets under them."""
    path = introduced("m")
    s1, a1, s2s = path.opened()
    number = int.from_bytes(s1[32:34])
    other = 2 ** (s1[10] & 7) if more else 2 ** (s1[10] & 7) // 2 + 1
    if other == number:
        pytest.skip("no other number has as many roots")
    forged = s1[:32] + other.to_bytes(2) + s1[34:]
    path.to_two(forged, s1)
    path.to_one(agreeing(a1, forged), a1)
    assert path.to_two(*s2s) == s2s


@pytest.mark.parametrize("overtaken", [False, True])
def test_an_s1_of_another_shape_does_not_decide_either(overtaken):
    """The shape is in no root, so packets in which it is altered as well fit it."""
    path = introduced()
    s1, a1, s2s = path.opened()
    reliable = [data[:10] + bytes([data[10] ^ RELIABLE]) + data[11:] for data in s2s]
    forged = s1[:10] + bytes([s1[10] ^ RELIABLE]) + s1[11:]
    planted = agreeing(a1, forged)
    planted = planted[:10] + forged[10:11] + planted[11:]
    path.to_two(forged, s1)
    assert path.to_one(planted, a1) == [planted, a1]
    if overtaken:
        path.carry()
    path.to_two(*reliable)  # an end drops them: it agreed to no such round
    assert path.to_two(*s2s) == s2s
    assert path.to_two(*s2s) == []


def test_what_is_overtaken_passes_though_an_a1_was_planted():
    path = introduced()
    s1, a1, s2s = path.opened()
    forged = changed(s1, ROOTS)
    path.to_two(forged, s1)
    path.to_one(agreeing(a1, forged), a1)
    path.carry()
    assert path.to_two(*s2s) == s2s


def test_an_altered_s2_that_comes_first_does_not_decide():
    path = introduced()
    s1, a1, s2s = path.opened()
    forged = changed(s1, ROOTS)
    path.to_two(forged, s1)
    path.to_one(agreeing(a1, forged), a1)
    assert path.to_two(changed(s2s[0], 60)) == []
    assert path.to_two(*s2s) == s2s


def test_forged_s1s_take_bounded_memory():
    path = introduced()
    s1, _, _ = path.opened()
    before = path.relay.memory
    path.to_two(s1)
    for number in range(1, 400):
        path.now += 0.01
        roots = bytes(8_000)
        forged = s1[:32] + (500).to_bytes(2) * 2 + bytes(4) + roots
        path.to_two(forged + number.to_bytes(32))
    assert path.relay.memory < before + VERSIONS_COST + 10_000


# -- a relay and an end agree


@pytest.mark.parametrize("number", [0, 1])
def test_no_round_is_longer_than_its_chains(number):
    """An end refuses such an S1; a relay must not forget the round before for it."""
    path = introduced()
    end = path.two.receiver.associations[0]
    assert end.chain.length == FIRST_CHAIN
    assert LATER_SPACING**2 == LATER_CHAIN
    (watched,) = {e for ends in path.relay._ends.values() for e in ends if e.id == 2}
    association = watched.incoming.associations[0]
    association.signatures.position = FIRST_CHAIN - 3
    index = FIRST_CHAIN // 2 - 1 + number
    association.signatures.element = association.signatures.derive(
        2 * index + 1, bytes(16), FIRST_CHAIN - 3
    )
    head = bytes([Kind.S1, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]) + index.to_bytes(4)
    s1 = head + bytes(16) + b"\0\1\0\1" + bytes(4 + 16 + TAG_SIZE)
    assert path.to_two(s1) == [s1][number:]


def test_no_packet_without_a_frame_word_passes():
    """An end takes it for forged; one who signs it himself has it pass for his own."""
    assert _LEAST_BODY == FRAME_WORD_SIZE
    path = introduced("n")
    path.opened()  # association and round are in use
    s1, a1, s2s = signed_round(path, bytes(FRAME_WORD_SIZE - 1))
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*s2s) == []
    assert path.drops == {RelayDrop.FORGED: 1}


def signed_round(path: Path, body: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """S1, A1 and S2 of a round with this one body, as its sender could make it."""
    association = path.one.sender.associations[0]
    index, chain = association.next_round, association.chain
    line = path.one.transport.line
    element, key = chain.element(2 * index + 1), chain.element(2 * index + 2)
    packet = S2_TAIL.pack(0, 0, 0) + body
    roots = Presigner.sign(chain.chain_id, index, key, [packet], 0).roots
    head = line.head(Kind.S1, 0, 0, index, element)
    s1 = line.tagged(head + S1_COUNTS.pack(1, 1, 0) + roots[0])
    (a1,) = path.two.take(s1, now=path.now)
    s2 = line.head(Kind.S2, 0, 0, index, key) + packet
    return s1, a1, [s2]


def test_shapes_that_no_end_takes_begin_no_round():
    path = introduced()
    s1, a1, s2s = path.opened()
    for shape in (0x40, 7, RELIABLE | 7):
        assert path.to_two(s1[:10] + bytes([shape]) + s1[11:]) == []
    assert path.to_two(s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s
