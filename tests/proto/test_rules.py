"""What must never happen, rule by rule, with an attacker who is as strong as can be.

He has every datagram, he decides which arrives and when, and where it matters he
even has the session's tag keys: so what holds here rests on chains, pre-signatures
and digests alone, as it does for a relay, which has no key.

Rules are numbered like those of the security argument in docs/protocol.md.  Rule 15
is about relays: what the ends do so that these can check is proven here, the relays
themselves in relay/test_attacks.py.  Rules 23 and 24, on early data, are proven in
transport/test_early.py and relay/test_early.py.  Rules 5, 8 and 9 are proven for
chains and trees in test_chain.py, test_presign.py and test_acks.py as well, rule 11
for queues in test_sender.py and for handshakes in test_handshake.py and test_peers.py.
"""

import ast
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

import alpha_trio
from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    CONTROL,
    HEADER_SIZE,
    MAX_ASSOCIATIONS,
    MAX_RELIABLE,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    S2_TAIL,
    Control,
    Kind,
)
from alpha_trio.proto.primitives import (
    AckTree,
    ChainVerifier,
    Checker,
    HashChain,
    Presigner,
    Promise,
    chain,
)
from alpha_trio.proto.primitives.chain import MAX_SKIP
from alpha_trio.proto.primitives.presign import key_block
from alpha_trio.proto.transport import sender
from alpha_trio.proto.transport.alpha import LATER_SPACING, RENEW_BELOW
from tests.proto.ends import Ends, batch, changed, head, of_kind, packets_of
from tests.proto.inner import Packet
from tests.proto.simulation import Hostile, Simulation

TAG = 16
MODES = ["n", "c", "m", "cm"]
CHAIN_ID, KEY = bytes(range(16)), bytes(range(16, 32))


def key_of(ends: Ends, number: int = 0) -> bytes:
    """The key of one's round, which nobody else may know before its A1."""
    return ends.one.sender.associations[0].chain.element(2 * number + 2)


def chain_of(ends: Ends) -> HashChain:
    return ends.one.sender.associations[0].chain


def s1_like(ends: Ends, s1: bytes, roots: list[bytes]) -> bytes:
    """Another S1 for the same round, which even the end's tag makes good."""
    return ends.one.tagged(s1[:S1_FIXED_SIZE] + b"".join(roots))


def s2_like(s1: bytes, key: bytes, signed: Presigner, packets: list[bytes]):
    """The S2s by which an attacker who has the key delivers packets of his own."""
    place = head(s1)
    start = bytes([Kind.S2]) + s1[1:HEADER_SIZE]
    start += ROUND.pack(place.association, place.shape, 0, place.round, key)
    return [start + signed.branch(i) + packet for i, packet in enumerate(packets)]


def forged_packets(number: int) -> list[bytes]:
    bodies = [b"12345678" + b"forged packet %d" % i for i in range(number)]
    return [
        S2_TAIL.pack(i, 0, i * len(body)) + body[8:] + body[:8]
        for i, body in enumerate(bodies)
    ]


# -- 1: no key before its A1


def test_rule_1_no_key_is_disclosed_without_an_a1():
    """However long it takes, and however often S1 is repeated."""
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    carried = [sent for t in range(200) for sent in ends.one.serve(t / 10)]
    assert set(carried) == {s1}
    assert not any(key_of(ends) in message for message in [s1, *carried])


@pytest.mark.parametrize("mode", MODES)
def test_rule_1_key_not_disclosed_before_the_a1_of_exactly_this_s1(mode):
    """An A1 to an S1 changed on the way discloses nothing; the right one does."""
    ends, twins = Ends.of_mode(mode), Ends.of_mode(mode)  # twins: all goes well
    (s1,) = ends.one.emit(batch(mode))
    roots = [bytes(NODE_SIZE)] * ((len(s1) - S1_FIXED_SIZE - TAG) // NODE_SIZE)
    (answer,) = ends.two.take(s1_like(ends, s1, roots))
    assert ends.one.take(answer) == []
    assert ends.one.drops == {Drop.BAD_ROUND: 1}
    (right,) = twins.two.take(s1)
    s2 = ends.one.take(right)
    assert {head(message).element for message in s2} == {key_of(ends)}


A1_FIELDS = {
    "association": 9,
    "round": 15,
    "first of element": 16,
    "last of element": 31,
    "first of digest": 32,
    "last of digest": 47,
}


@pytest.mark.parametrize("at", A1_FIELDS.values(), ids=A1_FIELDS)
def test_rule_1_an_a1_with_one_wrong_field_discloses_nothing(at):
    """Though its tag is right."""
    ends = Ends.make()
    (a1,) = ends.two.take(*ends.one.emit(batch()))
    wrong = ends.two.tagged(changed(a1, at)[:-TAG])
    assert ends.one.take(wrong) == []
    assert ends.one.drops == {Drop.BAD_ROUND: 1}
    assert len(ends.one.take(a1)) == 7


@pytest.mark.parametrize("at", range(-TAG, 0))
def test_rule_1_an_a1_without_the_tag_of_the_end_discloses_nothing(at):
    ends = Ends.make()
    (a1,) = ends.two.take(*ends.one.emit(batch()))
    assert ends.one.take(changed(a1, at)) == []


def test_rule_1_the_a1_of_an_earlier_round_discloses_nothing():
    ends = Ends.make()
    (old,) = ends.two.take(*ends.one.emit(batch()))
    ends.two.take(*ends.one.take(old))
    (s1,) = ends.one.emit(batch())
    place = ROUND.pack(0, 0, 0, 1, head(old).element)
    renamed = ends.two.tagged(old[:HEADER_SIZE] + place + old[ROUND_HEAD_SIZE:-TAG])
    assert ends.one.take(old, renamed) == []
    assert len(ends.one.take(*ends.two.take(s1))) == 7


# -- 2: S1 freezes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("public", [False, True])
def test_rule_2_another_s1_for_the_same_element_is_refused(mode, public):
    """Before the key is known, and after, when it could promise forged packets."""
    ends = Ends.of_mode(mode)
    (s1,) = ends.one.emit(batch(mode))
    (a1,) = ends.two.take(s1)
    s2 = ends.one.take(a1)
    if public:
        ends.two.take(s2[0])
    depth, forged = head(s1).shape, forged_packets(len(s2))
    signed = Presigner.sign(chain_of(ends).chain_id, 0, key_of(ends), forged, depth)
    assert ends.two.take(s1_like(ends, s1, signed.roots)) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}
    ends.two.take(*s2_like(s1, key_of(ends), signed, forged))
    assert ends.two.drops[Drop.FORGED] == len(s2)
    ends.two.take(*s2)
    assert sorted(ends.two.received) == sorted(packets_of(batch(mode)))


def test_rule_2_the_same_s1_again_gets_the_same_a1_again():
    ends = Ends.make()
    s1 = ends.one.emit(batch())
    a1 = ends.two.take(*s1)
    assert ends.two.take(*s1) == a1
    ends.two.take(*ends.one.take(*a1))
    assert ends.two.take(*s1) == a1
    assert ends.two.drops == {}


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_rule_2_no_s1_opens_a_round_whose_key_may_be_public(skipped):
    """Neither one that took place long ago nor one whose S1 never arrived."""
    ends = Ends.make()
    for number in range(5):
        s1 = ends.one.emit(batch(seed=number))
        if number != skipped:
            ends.two.take(*ends.one.take(*ends.two.take(*s1)))
        ends.one.serve(20.0 * number + 19)  # gives up what was not answered
    received = len(ends.two.received)
    key, forged = key_of(ends, skipped), forged_packets(7)
    signed = Presigner.sign(chain_of(ends).chain_id, skipped, key, forged, 0)
    element = chain_of(ends).element(2 * skipped + 1)
    place = s1[0][:HEADER_SIZE] + ROUND.pack(0, 0, 0, skipped, element)
    counts = S1_COUNTS.pack(7, 7, 0)
    old = ends.one.tagged(place + counts + b"".join(signed.roots))
    assert ends.two.take(old) == []
    assert ends.two.take(*s2_like(old, key, signed, forged)) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1, Drop.UNSOLICITED: 7}
    assert len(ends.two.received) == received


# -- 3: roots are keyed


@pytest.mark.parametrize("depth", range(1, 7))
def test_rule_3_every_root_depends_on_the_undisclosed_key(depth):
    """Who knows all packets but not the key cannot compute a root that will hold."""
    packets = forged_packets(100)
    guesses = [KEY, bytes(16), CHAIN_ID]
    made = [Presigner.sign(CHAIN_ID, 5, key, packets, depth) for key in guesses]
    for right, *wrong in zip(*(signed.roots for signed in made), strict=True):
        assert right not in wrong
    promised = depth, b"".join(made[1].roots), 100
    checker = Checker.of(Promise.with_key(CHAIN_ID, 5, KEY, *promised))
    heads = [(i, 0, 0) for i in range(100)]
    branches = [made[1].branch(i) for i in range(100)]
    assert not any(checker.check(heads, packets, branches))


def test_rule_3_the_root_of_acknowledgments_is_keyed_too():
    trees = [AckTree(CHAIN_ID, 5, key, bytes(16), 4) for key in (KEY, bytes(16))]
    assert trees[0].root != trees[1].root


# -- 4: codes that hold when the key is public


def mac(packet: bytes) -> bytes:
    return Presigner.sign(CHAIN_ID, 5, KEY, [packet], 0).roots[0]


def test_rule_4_codes_are_not_linear():
    """As those of GMAC, Poly1305 and CRC are, for whoever knows the key."""
    random = Random(4)
    for size in (16, 64, 1000):
        one, two, three = (random.randbytes(size) for _ in range(3))
        sums = [x ^ y ^ z for x, y, z in zip(one, two, three, strict=True)]
        codes = zip(mac(one), mac(two), mac(three), strict=True)
        assert mac(bytes(sums)) != bytes(x ^ y ^ z for x, y, z in codes)


def test_rule_4_a_code_is_half_of_what_would_be_needed_to_append_to_it():
    """The key fills a block of SHA-256 of its own, and half of the output is cut."""
    assert len(key_block(CHAIN_ID, 5, KEY)) == 64
    assert len(mac(b"packet")) == 16
    longer = b"packet" + b"\x80" + bytes(49) + (8 * (64 + 6)).to_bytes(8)
    assert len({mac(b"packet"), mac(b"packet\0"), mac(longer)}) == 3


def test_rule_4_every_byte_of_a_packet_counts():
    packet = Random(4).randbytes(300)
    codes = {mac(changed(packet, at)) for at in range(300)}
    assert len(codes | {mac(packet)}) == 301


# -- 5: one accepted element


def test_rule_5_only_elements_beyond_the_last_accepted_one_count():
    made = HashChain.make(CHAIN_ID, KEY, 20)
    verifier = ChainVerifier(CHAIN_ID, made.anchor)
    verifier.accept(7, made.element(7))
    for position in range(401):
        good = 7 < position <= 7 + MAX_SKIP
        try:
            verifier.check_untrusted(position, made.element(position))
        except chain.BadPacket:
            assert not good, position
        else:
            assert good, position


def test_rule_5_an_end_remembers_one_element_of_a_chain():
    ends = Ends.make()
    for number in range(20):
        ends.settle(*ends.one.emit(batch(seed=number)))
    verifier = ends.two.receiver.associations[0].signatures
    assert (verifier.position, verifier.element) == (40, key_of(ends, 19))


# -- 6: one open round on a chain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("early", [False, True])
def test_rule_6_no_chain_has_two_open_rounds(seed, early):
    """A round begins when the one before is disclosed, or is given up for good."""
    sim = Simulation(seed, mode="adaptive", early=early)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.link = Hostile(sim.random, loss=0.3, duplicate=0.2, late=0.3, replay=0.1)
    for _ in range(60):
        sim.send("vm1", "vm2", sim.random.randrange(8))
        sim.run(sim.random.uniform(0, 0.4))
    began: dict[tuple, dict[int, float]] = defaultdict(dict)  # by chain and round
    disclosed: dict[tuple, set[int]] = defaultdict(set)
    for sent in sim.sent:
        if sent.source != "vm1" or sent.kind not in (Kind.S1, Kind.S2):
            continue
        place = head(sent.data)
        of_chain = sent.data[4:HEADER_SIZE], place.association
        if sent.kind == Kind.S2:
            first = place.round not in disclosed[of_chain]
            late = place.round != max(began[of_chain])
            assert not (first and late), "a key after the next S1"
            disclosed[of_chain].add(place.round)
        elif place.round not in began[of_chain]:
            for earlier, since in began[of_chain].items():
                given_up = sent.time - since >= sender.ROUND_LIFETIME
                assert earlier in disclosed[of_chain] or given_up, "two open rounds"
            began[of_chain][place.round] = sent.time
    assert sum(map(len, began.values())) > 40


# -- 7: nothing twice


@pytest.mark.parametrize("mode", MODES)
def test_rule_7_no_packet_of_a_round_is_delivered_twice(mode):
    ends = Ends.of_mode(mode)
    s2 = ends.one.take(*ends.two.take(*ends.one.emit(batch(mode))))
    twice = s2[:-1] * 2 + s2[-1:]
    ends.two.take(b"".join(twice), stride=len(s2[0]))
    for _ in range(2):
        ends.two.take(*reversed(s2))
    ends.two.take(b"".join(s2), stride=len(s2[0]))
    assert sorted(ends.two.received) == sorted(packets_of(batch(mode)))
    assert ends.two.drops == {Drop.REPLAYED: 4 * len(s2) - 1}


def test_rule_7_no_packet_of_an_earlier_round_is_delivered_twice():
    ends, old = Ends.make(), []
    for number in range(4):
        s2 = ends.one.take(*ends.two.take(*ends.one.emit(batch(seed=number))))
        ends.two.take(*s2)
        old += s2
    ends.two.take(*old)
    assert len(ends.two.received) == 28
    assert ends.two.drops == {Drop.REPLAYED: 14, Drop.UNSOLICITED: 14}


# -- 8: everything is bound to its place


def test_rule_8_an_opening_element_is_no_key():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    s2 = ends.one.take(*ends.two.take(s1))
    opening = [m[:16] + head(s1).element + m[ROUND_HEAD_SIZE:] for m in s2]
    ends.two.take(*opening)
    assert ends.two.drops == {Drop.UNSOLICITED: 7}


def test_rule_8_a_key_opens_no_round():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    ends.one.take(*ends.two.take(s1))
    place = ROUND.pack(0, 0, 0, 1, key_of(ends))
    late = ends.one.tagged(s1[:HEADER_SIZE] + place + s1[ROUND_HEAD_SIZE:-TAG])
    assert ends.two.take(late) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 1}


def test_rule_8_an_element_of_one_direction_is_none_of_the_other():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    other_way = ends.two.emit(batch())[0][:HEADER_SIZE]
    for tagged in (ends.one.tagged, ends.two.tagged):
        reflected = tagged(other_way + s1[HEADER_SIZE:-TAG])
        assert ends.one.take(reflected) == []
    assert ends.one.drops == {Drop.BAD_ROUND: 2}


@pytest.mark.parametrize("kind", [Kind.S1, Kind.S2])
def test_rule_8_an_element_of_one_association_is_none_of_another(kind):
    ends = Ends.make()
    open_association(ends, 1)
    (s1,) = ends.one.emit(batch())
    assert head(s1).association == 0
    message = s1
    if kind is Kind.S2:
        message = ends.one.take(*ends.two.take(s1))[0]
    place = head(message)
    moved = ROUND.pack(1, place.shape, 0, 0, place.element)
    message = message[:HEADER_SIZE] + moved + message[ROUND_HEAD_SIZE:]
    if kind is Kind.S1:
        message = ends.one.tagged(message[:-TAG])
    assert ends.two.take(message) == []
    assert sum(ends.two.drops.values()) == 1
    assert ends.two.received == []


def open_association(ends: Ends, number: int) -> None:
    """Have it opened, at the receiving end."""
    ends.one.sender.controls.send([opening(ends, number)], 0.0, ends.one.out)
    ends.settle()


def opening(ends: Ends, number: int) -> bytes:
    """The message that asks for an association."""
    name = chain.chain_id(
        ends.one.transport.line.agreement.offer.nonce, chain.SIGNATURE_CHAIN, number
    )
    made = HashChain.make(name, bytes(16), LATER_SPACING)
    return bytes([Control.OPEN, 0]) + number.to_bytes(2) + made.anchor


def closing(number: int) -> bytes:
    """The message that ends an association."""
    return bytes([Control.CLOSE, 0]) + number.to_bytes(2) + bytes(16)


def test_rule_8_role_chain_use_and_association_are_inside_the_hash():
    """Even where seed and position are the same, elements have nothing in common."""
    nonces = bytes(16), KEY
    uses = chain.SIGNATURE_CHAIN, chain.ACKNOWLEDGMENT_CHAIN
    names = {chain.chain_id(n, u, a) for n in nonces for u in uses for a in (0, 1, 256)}
    assert len(names) == 12
    steps = {chain.step(role, 6, KEY) for n in names for role in chain.prefixes(n)}
    assert len(steps) == 24


def test_rule_8_a_node_is_no_leaf():
    """A packet made of two nodes does not pass for the node over them."""
    packets = forged_packets(4)
    signed = Presigner.sign(CHAIN_ID, 5, KEY, packets, 2)
    leaves = [signed.branch(i ^ 1)[:NODE_SIZE] for i in range(4)]
    upper = signed.branch(0)[NODE_SIZE:]
    promised = 1, b"".join(signed.roots), 2
    checker = Checker.of(Promise.with_key(CHAIN_ID, 5, KEY, *promised))
    for start in (b"", b"n", b"l"):
        fake = start + leaves[0] + leaves[1]
        assert checker.check([(0, 0, 0)], [fake], [upper]) == [False]


# -- 9: sixteen bytes


@pytest.mark.parametrize("mode", MODES)
def test_rule_9_every_hash_on_the_wire_has_16_bytes(mode):
    ends = Ends.of_mode(mode)
    (s1,) = ends.one.emit(batch(mode))
    packets, roots, _ = S1_COUNTS.unpack_from(s1, ROUND_HEAD_SIZE)
    assert len(s1) == S1_FIXED_SIZE + 16 * roots + TAG
    depth = head(s1).shape
    s2 = ends.one.take(*ends.two.take(s1))
    assert len(s2) == packets
    # ICMP errors and checksums aside, a body is its frame word, headers and payload.
    headers = 8 + 28 + 100
    assert len(s2[0]) == ROUND_HEAD_SIZE + 16 * depth + S2_TAIL.size + headers
    assert all(len(head(message).element) == 16 for message in s2)
    assert chain.ELEMENT_SIZE == NODE_SIZE == 16


# -- 10: one exception


def corpus() -> list[bytes]:
    """One of everything the ends say to each other, control messages included."""
    said = []
    for mode in MODES:
        ends = Ends.of_mode(mode)
        said += ends.settle(*ends.one.emit(batch(mode)))
        ends = Ends.reliable(mode)
        said += ends.settle(*ends.one.emit(batch(mode)))
    ends = Ends.make()
    first = ends.one.emit(batch())
    ends.one.send(b"this one waits, so that associations are opened")
    return said + ends.settle(*first)


@pytest.mark.parametrize("flags", [0, RELIABLE, RELIABLE | CONTROL])
def test_rule_10_a_packet_beyond_those_of_its_round_raises_nothing(flags):
    """The peer itself makes a tree with more leaves than its S1 has packets."""
    ends = Ends.make()
    line, packets = ends.one.transport.line, forged_packets(64)
    signed = Presigner.sign(chain_of(ends).chain_id, 0, key_of(ends), packets, 6)
    first = line.head(Kind.S1, 0, flags | 6, 0, chain_of(ends).element(1))
    first += S1_COUNTS.pack(1, 1, 0) + signed.roots[0]
    assert len(ends.two.take(line.tagged(first))) == 1
    ends.two.take(*s2_like(first, key_of(ends), signed, packets)[1:])
    assert ends.two.received == []
    assert ends.two.drops == {Drop.FORGED: 63}


@pytest.mark.parametrize("reliable", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_rule_10_no_datagram_raises_even_with_the_right_tag(seed, reliable):
    """Messages cut, lengthened, mixed, and altered anywhere, by the peer itself."""
    random, said = Random(seed), corpus()
    ends = Ends.make(seed)
    ends.one.sender.reliable = reliable
    kinds = [Kind.S1, Kind.A1, Kind.S2, Kind.A2]
    for number in range(1000):
        now = number / 100
        ends.one.emit(batch(seed=number), now)
        message = bytearray(random.choice(said))
        for _ in range(random.randrange(4)):
            message[random.randrange(HEADER_SIZE, len(message))] = random.choice(
                (0, 1, 255, random.randrange(256))
            )
        if random.random() < 0.3:
            del message[random.randrange(HEADER_SIZE, len(message)) :]
        if random.random() < 0.2:
            message += random.choice(said)[HEADER_SIZE:]
        message[0] = random.choice([message[0], random.choice(kinds)])
        one_speaks = message[0] in (Kind.S1, Kind.S2)
        at, by = (ends.two, ends.one) if one_speaks else (ends.one, ends.two)
        message[4:8] = b"\0\0\0\2" if one_speaks else b"\0\0\0\1"
        data = by.tagged(bytes(message)) if random.random() < 0.7 else bytes(message)
        at.take(data, now=now, stride=random.choice([0, 0, random.randrange(8, 300)]))
        at.serve(now)


@pytest.mark.parametrize("shape", [RELIABLE, RELIABLE | CONTROL, RELIABLE | 6])
def test_rule_10_a_number_that_was_only_announced_allocates_nothing(shape):
    """A reliable round of 65,535 packets would cost 131,070 leaves."""
    ends = Ends.make()
    element = chain_of(ends).element(1)
    start = ends.one.emit(batch())[0][:HEADER_SIZE]
    for packets in (MAX_RELIABLE + 1, 65_535):
        roots = -(-packets >> (shape & 7))
        place = start + ROUND.pack(0, shape, 0, 0, element)
        s1 = place + S1_COUNTS.pack(packets, roots, 0) + bytes(16 * roots)
        assert ends.two.take(ends.one.tagged(s1)) == []
    assert ends.two.drops == {Drop.BAD_ROUND: 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [7, 63, 64, 65_535])
def test_rule_10_a_packet_beyond_its_round_is_a_forged_one(mode, index):
    """Everybody can make it once the key is public."""
    ends = Ends.of_mode(mode)
    (s1,) = ends.one.emit(batch(mode))
    s2 = ends.one.take(*ends.two.take(s1))[0]
    at = ROUND_HEAD_SIZE + NODE_SIZE * head(s1).shape
    ends.two.take(s2[:at] + index.to_bytes(2) + s2[at + 2 :])
    assert ends.two.drops == {Drop.FORGED: 1}


def test_rule_10_a_peer_with_a_longer_chain_gets_no_answer_beyond_ours():
    ends = Ends.make()
    name = chain_of(ends).chain_id
    longer = HashChain.make(name, KEY, 40)
    association = ends.two.receiver.associations[0]
    association.signatures = ChainVerifier(name, longer.element(1016), 1016)
    start = ends.one.emit(batch())[0][:HEADER_SIZE]
    for number in range(508, 520):
        place = ROUND.pack(0, 0, 0, number, longer.element(2 * number + 1))
        s1 = start + place + S1_COUNTS.pack(1, 1, 0) + bytes(16)
        answers = ends.two.take(ends.one.tagged(s1))
        assert len(answers) == (2 * number + 2 <= association.chain.length)


# -- 11: bounded state


def test_rule_11_a_peer_can_open_so_many_associations_and_no_more():
    ends = Ends.make()
    for number in range(1, MAX_ASSOCIATIONS + 20):
        open_association(ends, number)
    assert sorted(ends.two.receiver.associations) == list(range(MAX_ASSOCIATIONS))


def test_rule_11_a_peer_that_never_answers_is_not_owed_more_and_more():
    """It opens associations and closes them, and agrees to none of our rounds."""
    ends = Ends.make()
    for number in range(1, 3 * MAX_ASSOCIATIONS):
        for message in (opening(ends, number), closing(number)):
            ends.one.sender.controls.send([message], 0.0, ends.one.out)
            (s1,) = ends.one.sent()
            (s2,) = ends.one.take(*of_kind(Kind.A1, ends.two.take(s1)))
            answers = ends.two.take(s2) + ends.two.serve(0.0)
            ends.one.take(*of_kind(Kind.A2, answers))
    assert len(ends.two.sender.controls.waiting) <= MAX_ASSOCIATIONS


def test_rule_11_a_receiver_keeps_two_rounds_of_an_association():
    ends = Ends.make()
    for number in range(50):
        ends.two.take(*ends.one.emit(batch(seed=number)))
        ends.one.serve(20.0 * number + 19)  # no A1 came: it is given up
        association = ends.two.receiver.associations[0]
        kept = [association.current, association.previous]
        assert {r.number for r in kept if r} == {number, max(0, number - 1)}


# -- 12: nothing waits without reason


def test_rule_12_a_packet_on_an_idle_line_goes_at_once():
    """No timer, no waiting for more packets, in every round anew."""
    ends = Ends.make()
    for number in range(20):
        (s1,) = ends.one.send(b"packet %d" % number)
        assert s1[0] == Kind.S1
        ends.settle(s1)
        assert ends.two.received[-1] == b"packet %d" % number


def test_rule_12_repetition_ends():
    ends = Ends.make()
    ends.one.emit(batch())
    repeated, now = 0, 0.0
    while (due := ends.one.transport.deadline) < 1000:
        now = due
        repeated += len(ends.one.serve(now))
    assert 1 <= repeated <= 10
    assert now <= 2 * sender.ROUND_LIFETIME
    assert ends.one.drops == {Drop.NO_AGREEMENT: 7}


@pytest.mark.parametrize("seed", range(20))
def test_rule_12_packets_leave_in_the_order_they_came(seed):
    """Whatever the order of the A1s, and however many of those are lost."""
    random, ends = Random(seed), Ends.make(seed)
    ends.settle(*ends.one.send(*[b"%06d" % i for i in range(5)]))
    assert len(ends.one.sender.associations) > 1
    left, on_the_way, now = [], [], 1.0
    for number in range(5, 200):
        now += random.uniform(0, 0.02)
        on_the_way += ends.one.send(b"%06d" % number, now=now)
        on_the_way += ends.one.serve(now)
        random.shuffle(on_the_way)
        for message in [on_the_way.pop() for _ in range(len(on_the_way) // 2)]:
            if random.random() < 0.2:
                continue
            answers = ends.one.take(*ends.two.take(message, now=now), now=now)
            s2 = of_kind(Kind.S2, answers)
            ends.two.take(*s2, now=now)
            left += s2
            on_the_way += [m for m in answers if m[0] != Kind.S2]
        on_the_way += ends.two.serve(now)
    assert len(ends.two.received) > 100
    assert ends.two.received == sorted(ends.two.received)


# -- 13: renewal in time


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_rule_13_successors_are_there_before_a_chain_runs_out(loss):
    """Control messages are repeated when lost; no packet is dropped meanwhile."""
    random, ends, now = Random(13), Ends.make(), 0.0
    lowest = 1.0
    for number in range(900):
        sent, until = ends.one.send(b"%d" % number, now=now), now + 0.03
        while sent or ends.one.transport.deadline <= until:
            kept = [m for m in sent if m[0] == Kind.S2 or random.random() >= loss]
            back = ends.two.take(*kept, now=now) + ends.two.serve(now)
            now = min(until, now + 0.001)
            kept = [m for m in back if random.random() >= loss]
            sent = ends.one.take(*kept, now=now) + ends.one.serve(now)
        now = until
        left = [a.rounds_left / a.rounds for a in ends.one.sender.associations.values()]
        lowest = min(lowest, max(left))
    assert lowest > RENEW_BELOW / 2
    assert Drop.QUEUE_FULL not in ends.one.drops
    assert Drop.NO_AGREEMENT not in ends.one.drops
    assert len(ends.two.received) + ends.one.sender.queued_packets == 900


# -- 14: S1 fits a datagram


@pytest.mark.parametrize("mode", [*MODES, "adaptive"])
@pytest.mark.parametrize("size", [296, 1280, 8960, 60_000])
def test_rule_14_no_s1_is_larger_than_the_path_takes(mode, size):
    """Nor is any answer; and however much waits, the receiver takes the round."""
    ends = Ends.make(mode=mode, size=size)
    sixty = Packet(payload=bytes(60 * 8), segment_size=8)
    first = ends.one.emit(sixty)
    waiting = 40 if size > 8000 and mode != "n" else 10
    rounds = [m for _ in range(waiting) for m in ends.one.emit(sixty)]
    for _ in range(3):
        carried = ends.settle(*first, *rounds)
        rounds = []
        signed = [m for m in carried if m[0] in (Kind.S1, Kind.A1)]
        assert max(map(len, signed)) <= size
        first = ends.one.emit(sixty)
    assert ends.two.drops == {}


# -- 15: what relays need


def test_rule_15_anchors_of_new_associations_pass_in_the_clear():
    ends = Ends.make()
    first = ends.one.emit(batch())
    ends.one.send(b"this one waits, so that associations are opened")
    carried = b"".join(of_kind(Kind.S2, ends.settle(*first)))
    new = [a for number, a in ends.one.sender.associations.items() if number]
    assert len(new) >= 3
    answering = ends.two.receiver.associations
    for association in new:
        assert association.chain.anchor in carried
        assert answering[association.number].chain.anchor in carried


@pytest.mark.parametrize("mode", MODES)
def test_rule_15_an_s2_can_be_checked_without_any_key_of_the_session(mode):
    """From S1, the anchor, and what S2 itself says."""
    ends = Ends.of_mode(mode)
    (s1,) = ends.one.emit(batch(mode))
    s2 = ends.one.take(*ends.two.take(s1))
    name, anchor = chain_of(ends).chain_id, chain_of(ends).anchor
    verifier = ChainVerifier(name, anchor)
    verifier.check_untrusted(1, head(s1).element)
    verifier.check_untrusted(2, head(s2[0]).element)
    depth, roots = head(s1).shape, s1[S1_FIXED_SIZE:-TAG]
    key, packets = head(s2[0]).element, len(s2)
    checker = Checker.of(Promise.with_key(name, 0, key, depth, roots, packets))
    start = ROUND_HEAD_SIZE + 16 * depth
    heads = [S2_TAIL.unpack_from(message, start) for message in s2]
    branches = [message[ROUND_HEAD_SIZE:start] for message in s2] if depth else None
    assert all(checker.check(heads, [m[start:] for m in s2], branches))


# -- 16: randomness and comparison


SOURCES = sorted(Path(alpha_trio.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_rule_16_no_module_uses_a_generator_that_can_be_predicted(path):
    tree = ast.walk(ast.parse(path.read_text()))
    imported = set()
    for node in tree:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"random", "numpy", "uuid"}


@pytest.mark.parametrize(
    ("module", "function"), [("cipher", "fits"), ("cookies", "_fits")]
)
def test_rule_16_what_stays_secret_is_compared_in_constant_time(module, function):
    (path,) = [path for path in SOURCES if path.stem == module]
    (found,) = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    calls = [n.attr for n in ast.walk(found) if isinstance(n, ast.Attribute)]
    assert "compare_digest" in calls
    assert not any(isinstance(node, ast.Compare) for node in ast.walk(found))


# -- 17: only what is true


@pytest.mark.parametrize(
    "limit",
    ["drop and delay", "one round trip more", "both directions must cross the same"],
)
def test_rule_17_the_specification_says_what_is_not_protected(limit):
    text = Path(alpha_trio.__file__).parents[1] / "docs" / "protocol.md"
    _, _, limits = text.read_text().partition("\n## What is not protected")
    assert limit in limits
