from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import (
    CONTROL,
    DEPTH_MASK,
    EARLY_ROUND,
    HEADER_SIZE,
    ROUND_HEAD_SIZE,
    S2_TAIL,
    TAG_SIZE,
    Kind,
    early_of,
)
from alpha_trio.proto.primitives import EARLY_USE, Keystream, SessionKeys, Tagger
from alpha_trio.proto.primitives.cipher import KEY_SIZE
from alpha_trio.proto.transport.sender import ROUND_LIFETIME
from tests.proto.ends import head
from tests.proto.simulation import Hostile, Simulation
from tests.reference import alpha as reference

KEY, OTHER_KEY = bytes(range(32)), bytes(32)

fixed = settings(deadline=None, derandomize=True, max_examples=60)


# -- positions


@fixed
@given(
    st.integers(0, 65_535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 5000),
    st.binary(max_size=100),
)
def test_any_position_is_that_of_one_long_stream(association, number, offset, data):
    text = Keystream(KEY).apply(association, number, offset, data)
    naive = reference.encrypt(KEY, association, number, offset, data)
    assert bytes(text) == naive
    assert bytes(Keystream(KEY).apply(association, number, offset, text)) == data


def test_offsets_up_to_the_largest_have_a_block_of_their_own():
    last = Keystream(KEY).apply(65_535, 2**32 - 1, 2**32 - 1, bytes(40))
    assert len(last) == 40
    assert bytes(last) != bytes(Keystream(KEY).apply(65_535, 2**32 - 1, 0, bytes(40)))


def test_no_block_is_shared_between_keys_associations_rounds_and_uses():
    numbers = [0, 1, 255, 256, 65_535, 65_536, 2**32 - 1]
    associations = [0, 1, 255, 256, 65_535]
    streams = [
        bytes(Keystream(key).apply(association, number, 0, bytes(16 * 64), use))
        for key in (KEY, OTHER_KEY)
        for association in associations
        for number in numbers
        for use in (0, EARLY_USE)
    ]
    blocks = {s[i : i + 16] for s in streams for i in range(0, len(s), 16)}
    assert len(blocks) == 64 * 2 * 2 * len(associations) * len(numbers)


def test_the_result_is_the_callers_to_change():
    text = Keystream(KEY).apply(0, 0, 0, b"packet")
    text[:] = bytes(6)
    assert bytes(Keystream(KEY).apply(0, 0, 0, b"packet")) != bytes(6)


@pytest.mark.parametrize(("seed", "goes_early"), [(0, False), (1, True), (2, False)])
def test_no_position_is_ever_used_for_two_packets(seed, goes_early):
    """With losses, repetition, renewal, new sessions, and packets that move to them.

    What is on the wire tells: the receiver's connection id stands for the key. Two
    different ciphertexts at one place would be two packets under one keystream.
    """
    sim = Simulation(seed, mode="adaptive", early=goes_early)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.link = Hostile(sim.random, loss=0.1, duplicate=0.1, late=0.1, delay=0.5)
    for number in range(130):
        for source, target in (("vm1", "vm2"), ("vm2", "vm1")):
            payload = sim.random.randbytes(40 * sim.random.randrange(1, 20))
            sim.emit(source, sim.packet(source, target, payload=payload).frame())
            sim.send(source, target, sim.random.randrange(4))
        sim.run(sim.random.uniform(0, 4) if number % 10 else ROUND_LIFETIME)
    used: dict[tuple, bytes] = {}
    early: dict[tuple, bytes] = {}
    for sent in sim.sent:
        if sent.kind not in (Kind.S1, Kind.S2) or head(sent.data).shape & CONTROL:
            continue
        place = head(sent.data)
        if place.shape & EARLY_ROUND:
            if sent.kind == Kind.S1:
                text = bytes(early_of(sent.data[:-TAG_SIZE]))
                stream = sent.data[4:HEADER_SIZE], place.association, place.round
                assert early.setdefault(stream, text) == text
            continue
        if sent.kind == Kind.S1:
            continue
        start = ROUND_HEAD_SIZE + 16 * (place.shape & DEPTH_MASK)
        _, _, offset = S2_TAIL.unpack_from(sent.data, start)
        stream = sent.data[4:HEADER_SIZE], place.association, place.round
        body = sent.data[start + S2_TAIL.size :]
        for at, byte in enumerate(body, offset + S2_TAIL.size):
            assert used.setdefault((stream, at), byte) == byte
    streams = set(early) if goes_early else {stream for stream, _ in used}
    assert len(streams) > 100
    assert len({key for key, *_ in streams}) >= 4  # sessions and directions
    assert len({association for _, association, _ in streams}) > 1


# -- session keys


def keys_of(initiator: bool, shared: bytes = KEY, said: bytes = KEY) -> SessionKeys:
    return SessionKeys.derive(shared, said, initiator=initiator)


def test_what_one_end_sends_with_the_other_receives_with():
    one, two = keys_of(True), keys_of(False)
    assert one.send_cipher == two.receive_cipher
    assert one.receive_cipher == two.send_cipher
    assert one.send_tag == two.receive_tag
    assert one.receive_tag == two.send_tag


def test_every_direction_use_and_session_has_its_own_key():
    keys = set()
    for shared, said in ((KEY, KEY), (OTHER_KEY, KEY), (KEY, OTHER_KEY)):
        made = keys_of(True, shared, said)
        keys |= {made.send_cipher, made.receive_cipher, made.send_tag}
        keys.add(made.receive_tag)
    assert len(keys) == 12
    assert {len(key) for key in keys} == {KEY_SIZE}


# -- tags


@fixed
@given(st.binary(max_size=200), st.data())
def test_a_tag_fits_its_own_message_and_direction_only(message, data):
    tagger = Tagger(KEY)
    tag = tagger.tag(message)
    assert len(tag) == TAG_SIZE
    assert tagger.fits(message, tag)
    assert not Tagger(OTHER_KEY).fits(message, tag)
    assert not tagger.fits(message + b"\0", tag)
    bit = data.draw(st.integers(0, 8 * TAG_SIZE - 1))
    wrong = (int.from_bytes(tag) ^ 1 << bit).to_bytes(TAG_SIZE)
    assert not tagger.fits(message, wrong)


@pytest.mark.parametrize("size", [0, 1, TAG_SIZE - 1, TAG_SIZE + 1, 32])
def test_a_tag_of_another_length_does_not_fit(size):
    whole = Random(0).randbytes(24)
    tag = (Tagger(KEY).tag(whole) * 4)[:size]
    assert not Tagger(KEY).fits(whole, tag)
