"""What a host has to know to be heard at all: MACs of handshakes, and sealed cookies.

The key of a guard is a hash of the public key of who is to check, and of a pre-shared
key if the two hosts have one.  Who does not know both is turned away for one hash.
"""

from __future__ import annotations

from hashlib import sha256
from operator import xor

from alpha_trio.proto.primitives.cipher import PSK_SIZE, Tagger

_GUARD, _COOKIE = b"alpha-trio 1 guard", b"cookie"


class Guard:
    """MACs by which a host tells who knows its public key, and their common secret.

    Where there is no such secret, whoever knows the public keys can make them.
    """

    def __init__(self, key: bytes, psk: bytes | None) -> None:
        """``key``: of who is to check them; zero if it is not known yet."""
        secret = sha256(_GUARD + key + (psk or bytes(PSK_SIZE))).digest()
        self._tagger = Tagger(secret)

    def mac(self, message: bytes) -> bytes:
        """MAC_SIZE bytes over ``message``."""
        return self._tagger.tag(message)

    def fits(self, message: bytes, mac: bytes) -> bool:
        """Whether ``mac`` is that of ``message``, in constant time."""
        return self._tagger.fits(message, mac)

    def seal(self, cookie: bytes, nonce: bytes) -> bytes:
        """A cookie for who sent a SYN with this nonce; done twice, it is as it was."""
        return bytes(map(xor, cookie, self._tagger.tag(_COOKIE + nonce)))
