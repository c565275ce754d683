"""Early data as bytes: what is put together comes apart again, all else is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import (
    MAX_EARLY,
    NODE_SIZE,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    BadPacket,
    early_of,
    join_early,
    roots_untrusted,
    take_early_untrusted,
)

fixed = settings(deadline=None, derandomize=True, max_examples=200)

WORD, EARLY_SHAPE = 8, 0x20
ROOT = bytes(range(NODE_SIZE))
bodies = st.lists(st.binary(min_size=WORD + 1, max_size=60), max_size=5)


def taken(text: bytes) -> list[bytes]:
    """Its packets, each with its frame word in front."""
    words, pieces = take_early_untrusted(memoryview(text))
    pairs = zip(words, pieces.packets, strict=True)
    return [word.to_bytes(WORD) + bytes(packet) for word, packet in pairs]


@fixed
@given(bodies)
def test_what_is_put_together_comes_apart_again(some):
    assert taken(join_early(some)) == some


@fixed
@given(bodies, st.data())
def test_what_is_cut_short_is_refused_as_a_whole(some, data):
    """Where a packet ends nothing is cut short: nobody can tell, but for the tag."""
    text = join_early(some)
    ends = [len(join_early(some[:count])) for count in range(len(some) + 1)]
    at = data.draw(st.integers(0, len(text)))
    if at in ends:
        assert taken(text[:at]) == some[: ends.index(at)]
    else:
        with pytest.raises(BadPacket):
            take_early_untrusted(memoryview(text[:at]))


@fixed
@given(bodies, st.data())
def test_other_bytes_are_refused_or_taken_whole(some, data):
    text = bytearray(join_early(some) + data.draw(st.binary(max_size=20)))
    for at in data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=4)):
        text[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    try:
        found = taken(bytes(text))
    except BadPacket:
        return
    assert join_early(found) == text
    assert all(len(body) > WORD for body in found)


@pytest.mark.parametrize("size", [0, 1, WORD])
def test_a_piece_without_a_packet_is_none(size):
    with pytest.raises(BadPacket):
        take_early_untrusted(memoryview(join_early([bytes(size)])))


# -- the S1 around it


def s1_of(packets: int, count: int, behind: bytes) -> bytes:
    return bytes(ROUND_HEAD_SIZE) + S1_COUNTS.pack(packets, count, 0) + behind


@pytest.mark.parametrize("size", [0, 1, 15, NODE_SIZE, MAX_EARLY])
def test_what_is_behind_the_root_is_no_root(size):
    message = s1_of(1, 1, ROOT + b"e" * size)
    assert roots_untrusted(message, EARLY_SHAPE) == (1, ROOT)
    assert early_of(message) == b"e" * size


@pytest.mark.parametrize("size", [MAX_EARLY + 1, MAX_EARLY + 16])
def test_there_is_a_most(size):
    with pytest.raises(BadPacket):
        roots_untrusted(s1_of(1, 1, ROOT + bytes(size)), EARLY_SHAPE)


def test_without_its_root_it_is_none():
    with pytest.raises(BadPacket):
        roots_untrusted(s1_of(1, 1, ROOT[:-1]), EARLY_SHAPE)


@fixed
@given(
    st.integers(0, 255).map(lambda shape: shape | EARLY_SHAPE),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_it_goes_with_one_packet_one_root_and_no_flag_or_tree(shape, packets, count):
    message = s1_of(packets, count, ROOT * 3)
    bare = not shape & 0xC7
    if bare and packets == count == 1:
        assert roots_untrusted(message, shape) == (1, ROOT)
    else:
        with pytest.raises(BadPacket):
            roots_untrusted(message, shape)


def test_in_another_round_there_is_nothing_behind_the_roots():
    with pytest.raises(BadPacket):
        roots_untrusted(s1_of(1, 1, ROOT + b"e" * 30), 0)
