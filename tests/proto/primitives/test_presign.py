from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import MAX_DEPTH, NODE_SIZE
from alpha_trio.proto.primitives import Checker, Presigner, Promise, depth_for, presign
from tests.reference import alpha as reference

NAME, KEY, NUMBER = bytes(range(16)), bytes(range(16, 32)), 7
DEPTHS = range(MAX_DEPTH + 1)

fixed = settings(deadline=None, derandomize=True, max_examples=60)


def packets_of(number: int, seed: int = 0) -> list[bytes]:
    """Of random sizes, short ones among them."""
    random = Random(seed)
    return [random.randbytes(random.randrange(1, 90)) for _ in range(number)]


def sign(packets: list[bytes], depth: int) -> Presigner:
    return Presigner.sign(NAME, NUMBER, KEY, packets, depth)


def checker_of(signed: Presigner, key: bytes = KEY, number: int = NUMBER) -> Checker:
    packets = len(signed.roots) << signed.depth
    return checker_with(NAME, number, key, signed.depth, signed.roots, packets)


def checker_with(name, number, key, depth, roots, packets) -> Checker:
    place = name, number, key
    return Checker.of(Promise.with_key(*place, depth, b"".join(roots), packets))


def check(checker: Checker, index: int, packet: bytes, branch: bytes) -> bool:
    """One S2."""
    branches = [branch] if checker.depth else None
    return checker.check([(index, 0, 0)], [packet], branches) == [True]


@fixed
@given(st.integers(1, 80), st.integers(0, MAX_DEPTH), st.integers(0, 99))
def test_roots_and_branches_are_those_of_naive_trees(number, depth, seed):
    packets = packets_of(number, seed)
    signed = sign(packets, depth)
    naive = reference.pre_signatures(NAME, NUMBER, KEY, packets, depth)
    assert signed.roots == naive
    for index in range(number):
        branch = reference.branch_of_packet(NAME, NUMBER, packets, depth, index)
        assert signed.branch(index) == branch


@fixed
@given(st.integers(1, 80), st.integers(0, MAX_DEPTH), st.randoms(use_true_random=False))
def test_every_packet_of_a_round_is_recognised_in_any_order(number, depth, random):
    packets = packets_of(number)
    signed = sign(packets, depth)
    checker, order = checker_of(signed), list(range(number))
    random.shuffle(order)
    while order:  # in batches, as they come
        size = random.randint(1, 9)
        batch, order = order[:size], order[size:]
        heads = [(i, 0, 0) for i in batch]
        branches = [signed.branch(i) for i in batch] if depth else None
        assert all(checker.check(heads, [packets[i] for i in batch], branches))


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_bit_flipped_anywhere_fails(depth):
    """In the packet, in each node of the branch, and in the root of S1."""
    packets = packets_of(1 << depth)
    signed = sign(packets, depth)
    index = len(packets) // 2
    packet, branch = packets[index], signed.branch(index)
    for at in range(8 * len(packet)):
        assert not check(checker_of(signed), index, flipped(packet, at), branch)
    for at in range(8 * len(branch)):
        assert not check(checker_of(signed), index, packet, flipped(branch, at))
    for at in range(8 * NODE_SIZE):
        other = Presigner(depth, [flipped(signed.roots[0], at)], signed._levels)
        if depth or index == 0:
            assert not check(checker_of(other), index, packet, branch)
    assert check(checker_of(signed), index, packet, branch)


def flipped(data: bytes, bit: int) -> bytes:
    number = int.from_bytes(data) ^ 1 << bit
    return number.to_bytes(len(data))


@pytest.mark.parametrize("depth", DEPTHS)
def test_another_key_round_or_chain_fails(depth):
    packets = packets_of(9)
    signed = sign(packets, depth)
    branch = signed.branch(4)
    assert check(checker_of(signed), 4, packets[4], branch)
    assert not check(checker_of(signed, key=NAME), 4, packets[4], branch)
    assert not check(checker_of(signed, number=8), 4, packets[4], branch)
    other = checker_with(KEY, NUMBER, KEY, depth, signed.roots, 9)
    assert not check(other, 4, packets[4], branch)


def test_a_leaf_beyond_the_packets_of_the_round_is_none_of_them():
    packets = packets_of(8)
    signed = sign(packets, 3)
    checker = checker_with(NAME, NUMBER, KEY, 3, signed.roots, 5)
    good = [check(checker, i, packets[i], signed.branch(i)) for i in range(8)]
    assert good == [True] * 5 + [False] * 3


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_packet_is_good_in_its_own_place_only(depth):
    packets = packets_of(20)
    signed = sign(packets, depth)
    for index in range(20):
        fresh = [checker_of(signed) for _ in range(100)]
        places = [
            place
            for place, checker in enumerate(fresh)
            if check(checker, place, packets[index], signed.branch(index))
        ]
        assert places == [index]


@pytest.mark.parametrize("depth", DEPTHS[1:])
def test_the_branch_of_another_packet_fails(depth):
    packets = packets_of(1 << depth)
    signed = sign(packets, depth)
    for other in range(1, 1 << depth):
        assert not check(checker_of(signed), 0, packets[0], signed.branch(other))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("index", [64, 65, 128, 65_535])
def test_a_number_beyond_the_round_fails(depth, index):
    packets = packets_of(64)
    signed = sign(packets, depth)
    assert not check(checker_of(signed), index, packets[0], signed.branch(0))


def test_a_place_without_packet_stays_empty():
    """Nothing is delivered as the packet that fills up the last block."""
    signed = sign(packets_of(5), 3)
    for index in (5, 6, 7):
        for packet in (b"", bytes(16), bytes(NODE_SIZE)):
            assert not check(checker_of(signed), index, packet, signed.branch(index))


@pytest.mark.parametrize("depth", DEPTHS[1:])
@pytest.mark.parametrize("seed", range(4))
def test_remembered_nodes_cannot_be_poisoned(depth, seed):
    """Forged branches before, between and after good ones change no verdict."""
    random, packets = Random(seed), packets_of(2 << depth)
    signed = sign(packets, depth)
    checker = checker_of(signed)
    for _ in range(300):
        index = random.randrange(len(packets))
        packet, branch = packets[index], signed.branch(index)
        if random.random() < 0.5:
            packet, good = random.choice(packets) + b"!", False
        elif random.random() < 0.5:
            packet, good = packets[index ^ 1], False
        else:
            good = True
        if not good and random.random() < 0.7:
            branch = signed.branch(random.randrange(len(packets)))
        assert check(checker, index, packet, branch) is good


def test_a_forged_branch_teaches_nothing():
    packets = packets_of(8)
    signed = sign(packets, 3)
    checker = checker_of(signed)
    forged = flipped(signed.branch(0), 0)
    assert not check(checker, 0, packets[0], forged)
    assert check(checker, 0, packets[0], signed.branch(0))
    assert not check(checker, 0, packets[0], forged)
    assert not check(checker, 1, packets[1], flipped(signed.branch(1), 0))
    assert check(checker, 1, packets[1], signed.branch(1))


@pytest.mark.parametrize("before", [None, 0, 4, 6, 7, 5])
def test_a_branch_is_checked_to_its_top_wherever_the_last_packet_was(before):
    packets = packets_of(16)
    signed = sign(packets, 3)
    for at in range(8 * 3 * NODE_SIZE):
        checker = checker_of(signed)
        if before is not None:
            assert check(checker, before, packets[before], signed.branch(before))
        assert not check(checker, 5, packets[5], flipped(signed.branch(5), at))
        assert check(checker, 5, packets[5], signed.branch(5))


def test_a_block_that_arrives_in_order_costs_one_hash_a_node(monkeypatch):
    """The way up ends where it meets that of the packet before."""
    packets = packets_of(64)
    signed = sign(packets, 6)
    checker, hashed = checker_of(signed), []

    def counted(left: bytes, right: bytes) -> bytes:
        hashed.append(left + right)
        return node(left, right)

    node = presign._node
    monkeypatch.setattr(presign, "_node", counted)
    for index in range(64):
        assert check(checker, index, packets[index], signed.branch(index))
    assert len(hashed) <= 63


def test_memory_does_not_grow_with_the_round():
    packets = packets_of(1024)
    signed = sign(packets, 6)
    checker = checker_of(signed)
    for index in range(1024):
        assert check(checker, index, packets[index], signed.branch(index))
        assert len(checker._path) == 6
        assert len(checker._branch) == 6 * NODE_SIZE


@fixed
@given(st.integers(1, 70_000), st.integers(1, 100))
def test_trees_are_no_deeper_than_needed(packets, roots):
    depth = depth_for(packets, roots)
    assert -(-packets >> depth) <= roots
    assert depth == 0 or -(-packets >> depth - 1) > roots
