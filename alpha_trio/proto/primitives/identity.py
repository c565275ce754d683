"""Who a host is: one Ed25519 key, and what it signs.

Public-key work is done twice in a handshake and never for a packet.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

from attrs import define, field
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from alpha_trio.proto.messages import BadPacket

_CONTEXT = b"alpha-trio 1 "

_PRIME = 2**255 - 19
_SIGN = 1 << 255
_ORDER_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL = frozenset({0, 1, _PRIME - 1, _ORDER_EIGHT, _PRIME - _ORDER_EIGHT})
"""The y coordinates of all points of small order: for such a key there are signatures
that fit every message."""


@define(eq=False)
class Identity:
    """This host's key pair, from its 32-byte seed.  Never print it."""

    seed: bytes = field(repr=False)
    public: bytes = field(init=False)
    _private: Ed25519PrivateKey = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, label: bytes, *messages: bytes) -> bytes:
        """SIGNATURE_SIZE bytes over messages of fixed sizes, in the role ``label``."""
        return self._private.sign(_CONTEXT + label + b"".join(messages))


def verify_untrusted(
    public: bytes, signature: bytes, label: bytes, *messages: bytes
) -> None:
    """Raises BadPacket unless ``public`` signed the messages in that role.

    A key of small order signs nothing (RFC 8032 leaves that open).
    """
    if (int.from_bytes(public, "little") & ~_SIGN) % _PRIME in _SMALL:
        raise BadPacket
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(signature, _CONTEXT + label + b"".join(messages))
    except (InvalidSignature, ValueError):
        raise BadPacket from None


def key_text(public: bytes) -> str:
    """A public key as users see and type it: 44 characters of base64."""
    return b64encode(public).decode()


def fingerprint(public: bytes) -> str:
    """Eight characters that tell keys apart for a human eye, no more than that."""
    return sha256(public).hexdigest()[:8]
