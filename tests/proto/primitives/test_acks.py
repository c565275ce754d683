import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import MAX_RELIABLE, BadPacket
from alpha_trio.proto.primitives import (
    ACK,
    NACK,
    AckTree,
    opening_size,
    verdicts_untrusted,
)
from alpha_trio.proto.primitives.acks import branch_length, opens
from tests.reference import alpha as reference

NAME, KEY, SEED, NUMBER = bytes(range(16)), bytes(range(16, 32)), bytes(16), 7

fixed = settings(deadline=None, derandomize=True, max_examples=40)


def tree(packets: int, key: bytes = KEY) -> AckTree:
    return AckTree(NAME, NUMBER, key, SEED, packets)


def fits(made: AckTree, index: int, verdict: int, opening=None, /, **changes) -> bool:
    """Whether the opening is taken by the sender of the round."""
    secret, branch = opening or made.opening(index, verdict)
    fields = {
        "chain_id": NAME,
        "number": NUMBER,
        "key": KEY,
        "root": made.root,
        "packets": made.packets,
        "index": index,
        "verdict": verdict,
        "secret": secret,
        "branch": branch,
    }
    return opens(**(fields | changes))


@fixed
@given(st.integers(1, 64))
def test_tree_and_openings_are_those_of_a_naive_one(packets):
    made = tree(packets)
    leaves = reference.ack_leaves(NAME, NUMBER, SEED, packets)
    assert made.root == reference.root(NAME, NUMBER, KEY, leaves)
    for index in range(packets):
        for verdict, at in ((ACK, index), (NACK, len(leaves) // 2 + index)):
            secret, branch = made.opening(index, verdict)
            assert secret == reference.ack_secret(SEED, index, verdict)
            assert branch == reference.branch(leaves, at)
            assert len(branch) == 16 * branch_length(packets)


@fixed
@given(st.integers(1, 64))
def test_every_opening_opens_its_own_leaf_and_no_other(packets):
    made = tree(packets)
    leaves = [(i, verdict) for i in range(packets) for verdict in (ACK, NACK)]
    for index, verdict in leaves[:: max(1, packets // 8)]:
        opening = made.opening(index, verdict)
        places = [leaf for leaf in leaves if fits(made, *leaf, opening)]
        assert places == [(index, verdict)]


@pytest.mark.parametrize("packets", [1, 2, 5, 64])
@pytest.mark.parametrize("verdict", [ACK, NACK])
def test_any_bit_flipped_anywhere_fails(packets, verdict):
    made, index = tree(packets), packets - 1
    secret, branch = made.opening(index, verdict)
    for name, value in (("secret", secret), ("branch", branch), ("root", made.root)):
        for bit in range(0, 8 * len(value), 5):
            wrong = (int.from_bytes(value) ^ 1 << bit).to_bytes(len(value))
            assert not fits(made, index, verdict, **{name: wrong})
    assert fits(made, index, verdict)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": KEY},
        {"number": 8},
        {"key": NAME},
        {"verdict": NACK},
        {"verdict": 2},
        {"verdict": 255},
        {"index": 2},
        {"index": 5},
        {"index": 65_535},
        {"packets": 3},
        {"packets": 9},
        {"secret": b""},
        {"secret": bytes(17)},
        {"branch": b""},
        {"branch": bytes(16 * 3)},
        {"branch": bytes(16 * 5)},
    ],
    ids=str,
)
def test_an_opening_is_good_in_its_own_place_only(change):
    made = tree(5)
    assert fits(made, 3, ACK)
    assert not fits(made, 3, ACK, **change)


def test_a_verdict_given_cannot_be_turned():
    """What one opening shows does not help to open the opposite leaf."""
    made = tree(4)
    secret, branch = made.opening(2, ACK)
    nodes = [secret] + [branch[i : i + 16] for i in range(0, len(branch), 16)]
    for node in nodes:
        assert not fits(made, 2, NACK, (node, made.opening(2, NACK)[1]))


def test_the_length_of_an_a2_tells_how_many_openings_it_has():
    """So a capture can be read without the S1 of the round."""
    lengths = {}
    for packets in range(1, MAX_RELIABLE + 1):
        for count in range(1, packets + 1):
            found = count, branch_length(packets)
            assert lengths.setdefault(count * opening_size(packets), found) == found


@fixed
@given(st.integers(1, 64), st.data())
def test_an_a2_gives_just_the_verdicts_that_were_opened(packets, data):
    made = tree(packets)
    verdict = st.tuples(st.integers(0, packets - 1), st.sampled_from([ACK, NACK]))
    told = data.draw(st.lists(verdict, min_size=1, max_size=packets))
    openings = b"".join(made.packed(*each) for each in told)
    place = NAME, NUMBER, KEY, made.root, packets
    assert verdicts_untrusted(*place, openings) == told
    at = data.draw(st.integers(0, len(openings) - 1))
    for wrong in (openings[:at], openings + made.packed(*told[0]) * packets):
        if len(wrong) % opening_size(packets) or not 0 < len(wrong) <= len(openings):
            with pytest.raises(BadPacket):
                verdicts_untrusted(*place, wrong)


@fixed
@given(st.integers(0, 64), st.binary(max_size=1500))
def test_any_bytes_are_refused_as_bad_and_nothing_else(packets, openings):
    with pytest.raises(BadPacket):
        verdicts_untrusted(NAME, NUMBER, KEY, bytes(16), packets, openings)


def test_secrets_differ_for_every_packet_verdict_and_seed():
    secrets = {tree(64).opening(i, v)[0] for i in range(64) for v in (ACK, NACK)}
    other = AckTree(NAME, NUMBER, KEY, KEY, 64)
    secrets |= {other.opening(i, v)[0] for i in range(64) for v in (ACK, NACK)}
    assert len(secrets) == 256
