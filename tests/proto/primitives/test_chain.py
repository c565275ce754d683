import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.primitives import ChainVerifier, HashChain, chain
from alpha_trio.proto.primitives.chain import MAX_SKIP
from tests.reference import alpha as reference

NAME, OTHER_NAME, SEED = bytes(16), bytes(15) + b"\1", bytes(range(16))
LENGTH = 20 * 20

fixed = settings(deadline=None, derandomize=True, max_examples=60)
sixteen = st.binary(min_size=16, max_size=16)


@pytest.fixture(scope="module")
def elements() -> list[bytes]:
    return reference.chain(NAME, SEED, LENGTH)


@pytest.fixture
def verifier(elements) -> ChainVerifier:
    return ChainVerifier(NAME, elements[0])


# -- the owner


@fixed
@given(sixteen, sixteen, st.integers(1, 12))
def test_a_chain_is_what_hashing_step_by_step_gives(name, seed, spacing):
    made = HashChain.make(name, seed, spacing)
    naive = reference.chain(name, seed, spacing**2)
    assert made.length == spacing**2
    assert made.anchor == naive[0]
    assert [made.element(i) for i in range(1, made.length + 1)] == naive[1:]


@fixed
@given(st.lists(st.integers(1, LENGTH), max_size=30))
def test_elements_may_be_asked_for_in_any_order(positions):
    """Forwards it costs one stretch at a time, but no order gives a wrong one."""
    made, naive = HashChain.make(NAME, SEED, 20), reference.chain(NAME, SEED, LENGTH)
    for position in positions:
        assert made.element(position) == naive[position]


def test_every_position_of_the_contract_has_its_element(elements):
    made = HashChain.make(NAME, SEED, 20)
    assert made.element(0) == elements[0]
    assert made.element(LENGTH) == elements[LENGTH] == SEED


def test_a_chain_made_in_slices_is_the_same_chain(elements):
    made, slices = HashChain(NAME, SEED, 64), 1
    while not made.make_some():
        slices += 1
    assert slices > 2
    assert made.anchor == HashChain.make(NAME, SEED, 64).anchor
    assert made.make_some()  # and no more is made of it
    assert made.anchor == reference.chain(NAME, SEED, 4096)[0]


def test_a_slice_is_bounded_work():
    """Packets are carried between slices, so none may take long."""
    made = HashChain(NAME, SEED, 64)
    left = made.length
    while not made.make_some():
        assert 0 < left - made._made <= 1024
        left = made._made


def test_memory_grows_with_the_square_root():
    made = HashChain.make(NAME, SEED, 100)
    for position in range(1, made.length + 1):
        made.element(position)
    assert len(made._checkpoints) == 101
    assert len(made._stretch) <= 101 * 16


@fixed
@given(st.binary(min_size=16, max_size=16), st.integers(0, 65_535))
def test_chains_have_different_ids(nonce, association):
    """By nonce, use and association, so by direction and session too."""
    uses = chain.SIGNATURE_CHAIN, chain.ACKNOWLEDGMENT_CHAIN
    ids = {chain.chain_id(nonce, use, association) for use in uses}
    ids |= {chain.chain_id(nonce, uses[0], association ^ bit) for bit in (1, 256)}
    ids.add(chain.chain_id(nonce[::-1] + b"", uses[0], association))
    palindrome = nonce == nonce[::-1]
    assert len(ids) == 5 - palindrome
    assert reference.chain_id(nonce, uses[0], association) in ids


# -- the verifier


def accepts(verifier: ChainVerifier, position: int, element: bytes) -> bool:
    try:
        verifier.check_untrusted(position, element)
    except BadPacket:
        return False
    return True


@fixed
@given(st.integers(0, LENGTH), st.integers(-1, LENGTH + 1))
def test_an_element_counts_if_it_is_later_and_not_too_far(last, position):
    naive = reference.chain(NAME, SEED, LENGTH)
    verifier = ChainVerifier(NAME, naive[0])
    verifier.accept(last, naive[last])
    element = naive[max(0, min(position, LENGTH))]
    good = last < position <= min(last + MAX_SKIP, LENGTH)
    assert accepts(verifier, position, element) is good


@pytest.mark.parametrize("distance", [1, 2, 3, MAX_SKIP])
def test_one_wrong_bit_is_refused(verifier, elements, distance):
    verifier.accept(10, elements[10])
    position = 10 + distance
    good = int.from_bytes(elements[position])
    for bit in range(128):
        assert not accepts(verifier, position, (good ^ 1 << bit).to_bytes(16))
    assert accepts(verifier, position, elements[position])


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_an_element_of_another_size_is_refused(verifier, elements, length):
    assert not accepts(verifier, 1, (elements[1] * 2)[:length])


def test_an_element_fits_its_own_position_only(verifier, elements):
    for position in range(1, MAX_SKIP + 1):
        others = [e for i, e in enumerate(elements[:140]) if i != position]
        assert not any(accepts(verifier, position, e) for e in others[::7])
        assert accepts(verifier, position, elements[position])


def test_an_element_of_another_chain_is_refused(verifier):
    other = reference.chain(OTHER_NAME, SEED, LENGTH)
    assert not any(accepts(verifier, i, other[i]) for i in range(1, MAX_SKIP))
    # Nor is one when only the seed differs, or only the anchor is the same.
    other = reference.chain(NAME, SEED[::-1], LENGTH)
    assert not any(accepts(verifier, i, other[i]) for i in range(1, MAX_SKIP))


def test_the_roles_alternate_inside_the_hash(elements):
    """Recomputing the chain with the roles exchanged gives another one throughout."""
    for position in range(LENGTH):
        role = b"o" if position % 2 else b"k"
        other = b"k" if position % 2 else b"o"
        above = elements[position + 1]
        assert chain.step(role + NAME, position, above) == elements[position]
        assert chain.step(other + NAME, position, above) != elements[position]


def test_checking_accepts_nothing(verifier, elements):
    verifier.check_untrusted(5, elements[5])
    assert (verifier.position, verifier.element) == (0, elements[0])
    verifier.check_untrusted(3, elements[3])


def test_an_earlier_element_follows_from_a_later_one(verifier, elements):
    for later in range(1, MAX_SKIP):
        for earlier in (0, later // 2, later):
            assert verifier.derive(later, elements[later], earlier) == elements[earlier]
