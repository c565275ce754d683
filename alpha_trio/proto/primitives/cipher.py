"""Session keys, confidentiality, and the short tags of the two ends.

Packets are encrypted first and pre-signed as ciphertext, so that relays verify what
they cannot read.  The ALPHA MAC authenticates every byte, hence AES-256-CTR without
a tag of its own: one call for a whole round.

A keystream position is never used twice.  The 16 bytes AES encrypts are::

    association (2) | use (2) | round (4) | block number (8)      big-endian

Use is 0 for the packets of a round's S2s, 1 for the early data of its S1.  The key
belongs to one direction of one session, an association number is used for one pair of
chains in it, a round number for one round, and inside a round the offsets of the
packets do not overlap.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import TAG_SIZE

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

KEY_SIZE = 32
PSK_SIZE = 32

EARLY_USE = 1
"""Of a round's keystream: early data."""

_BLOCK = 16
ROOM = _BLOCK - 1
"""Bytes the library wants behind those it writes, though it leaves them as they are."""
_COUNTER = Struct("!HHIQ")

_HASH_BLOCK = 64  # of SHA-256, bytes
_INNER_PAD, _OUTER_PAD = (bytes(i ^ pad for i in range(256)) for pad in (0x36, 0x5C))


@frozen
class SessionKeys:
    """Four keys of KEY_SIZE bytes, for this end of the session."""

    send_cipher: bytes = field(repr=False)
    receive_cipher: bytes = field(repr=False)
    send_tag: bytes = field(repr=False)
    receive_tag: bytes = field(repr=False)

    @classmethod
    def derive(
        cls, shared: bytes, transcript: bytes, psk: bytes = b"", *, initiator: bool
    ) -> SessionKeys:
        """HKDF-SHA-256 (RFC 5869) over the X25519 secret and the pre-shared key.

        ``psk``: PSK_SIZE bytes, or none if the two hosts share none.  ``transcript`` is
        the hash of all handshake messages: keys that agree prove that both ends saw the
        same ones.
        """
        info = b"alpha-trio session keys 1"
        okm = HKDF(SHA256(), 4 * KEY_SIZE, transcript, info).derive(shared + psk)
        keys = [okm[i : i + KEY_SIZE] for i in range(0, len(okm), KEY_SIZE)]
        to_responder, to_initiator, tag_responder, tag_initiator = keys
        if initiator:
            return cls(to_responder, to_initiator, tag_responder, tag_initiator)
        return cls(to_initiator, to_responder, tag_initiator, tag_responder)


@define(eq=False)
class Keystream:
    """Encrypts and decrypts one direction; in CTR mode that is the same."""

    key: bytes = field(repr=False)
    _context: CipherContext = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._context = Cipher(AES256(self.key), CTR(bytes(_BLOCK))).encryptor()

    def apply(
        self, association: int, number: int, offset: int, data: Buffer, use: int = 0
    ) -> memoryview:
        """``data`` with the keystream of round ``number`` from byte ``offset`` on.

        The result is writable and belongs to the caller.
        """
        context = self._at(association, number, offset, use)
        result = bytearray(len(data) + ROOM)
        return memoryview(result)[: context.update_into(data, result)]

    def apply_in_place(
        self, association: int, number: int, buffer: bytearray
    ) -> memoryview:
        """Apply round ``number`` from its beginning to all but ROOM bytes at the end.

        The result is the part that was changed.
        """
        view = memoryview(buffer)[: len(buffer) - ROOM]
        self._at(association, number, 0).update_into(view, buffer)
        return view

    def _at(
        self, association: int, number: int, offset: int, use: int = 0
    ) -> CipherContext:
        block, skip = divmod(offset, _BLOCK)
        # A new context for each round would cost half as much again.
        self._context.reset_nonce(_COUNTER.pack(association, use, number, block))
        if skip:
            self._context.update(bytes(skip))
        return self._context


@define(eq=False)
class Tagger:
    """HMAC-SHA-256 (RFC 2104), cut to TAG_SIZE, under one key of KEY_SIZE bytes.

    Sixteen bytes: of a round that was given up the key may be public before its S1
    arrives, and then it is the tag alone on which rests what is delivered.

    Both hashes are begun once: the library's HMAC takes half as long again.
    """

    key: bytes = field(repr=False)
    _inner: Hash = field(init=False, repr=False)
    _outer: Hash = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        block = self.key.ljust(_HASH_BLOCK, b"\0")
        self._inner = sha256(block.translate(_INNER_PAD))
        self._outer = sha256(block.translate(_OUTER_PAD))

    def tag(self, message: Buffer) -> bytes:
        """TAG_SIZE bytes over ``message``."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()[:TAG_SIZE]

    def fits(self, message: Buffer, tag: Buffer) -> bool:
        """Whether ``tag`` belongs to ``message``, in constant time."""
        return hmac.compare_digest(self.tag(message), tag)
