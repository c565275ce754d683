import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.primitives import (
    Identity,
    fingerprint,
    key_text,
    verify_untrusted,
)
from tests.reference import alpha as reference

SEED = bytes(range(32))
HOST, OTHER = Identity(SEED), Identity(bytes(32))


def verified(public: bytes, signature: bytes, label: bytes, *said: bytes) -> bool:
    try:
        verify_untrusted(public, signature, label, *said)
    except BadPacket:
        return False
    return True


def test_a_signature_is_plain_ed25519_with_our_context_in_front():
    signature = HOST.sign(b"ACK", b"syn", b"ack")
    public = Ed25519PublicKey.from_public_bytes(HOST.public)
    public.verify(signature, b"alpha-trio 1 ACKsynack")
    assert signature == reference.sign(SEED, b"ACK", b"synack")
    assert HOST.public == reference.public_key(SEED)


def test_a_signature_is_good_for_its_signer_role_and_messages_only():
    signature = HOST.sign(b"ACK", b"syn", b"ack")
    assert verified(HOST.public, signature, b"ACK", b"syn", b"ack")
    assert not verified(OTHER.public, signature, b"ACK", b"syn", b"ack")
    assert not verified(HOST.public, signature, b"ACKACK", b"syn", b"ack")
    assert not verified(HOST.public, signature, b"ACK", b"syn", b"nak")
    assert not verified(HOST.public, signature, b"ACK", b"syn")


def test_any_bit_flipped_in_a_signature_fails():
    signature = HOST.sign(b"ACK", b"syn")
    for bit in range(0, 512, 7):
        wrong = (int.from_bytes(signature) ^ 1 << bit).to_bytes(64)
        assert not verified(HOST.public, wrong, b"ACK", b"syn")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), b"\xff" * 32])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_keys_and_signatures_that_are_none_raise_only_bad_packet(public, signature):
    """All zeros is a point of small order, for which much would verify."""
    verified(public, signature, b"ACK", b"syn")


def test_a_seed_is_never_printed():
    assert SEED.hex() not in repr(HOST)
    assert repr(SEED) not in repr(HOST)
    assert "_private" not in repr(HOST)


def test_a_key_as_text_is_short_and_exact():
    assert len(key_text(HOST.public)) == 44
    assert key_text(HOST.public) != key_text(OTHER.public)
    assert len(fingerprint(HOST.public)) == 8
    assert fingerprint(HOST.public) != fingerprint(OTHER.public)
