"""Cookies: proof that somebody receives what we send to its address, without state.

Under load a SYN without a valid cookie is answered by a COOKIE message, which is
smaller than the SYN and costs one hash, and only a SYN that brings the cookie back
leads to public-key work.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from attrs import define, evolve, field

from alpha_trio.proto.batch import Remote
from alpha_trio.proto.messages import COOKIE_SIZE, Cookie, Syn
from alpha_trio.proto.primitives import Guard, RandomBytes
from alpha_trio.proto.rates import TokenBucket, bucket_of

SECRET_LIFETIME = 120.0  # s; a cookie is good for one to two of them
LOAD_RATE = 50.0  # SYNs a second above which cookies are asked for
LOAD_BURST = 100.0
BLIND_RATE, BLIND_BURST = 5.0, 20.0  # the same for who does not know our key
ADDRESS_RATE, ADDRESS_BURST = 20.0, 5.0  # proven addresses: SYNs a second
COOKIE_RATE, COOKIE_BURST = 20.0, 10.0  # to one address, a second: it reads them all
ANSWER_RATE, ANSWER_BURST = 50.0, 50.0
"""SYNs that are answered a second, for all peers together: each costs two milliseconds.

Not counted are those that show a secret, or with a cookie that the peer receives where
it is known to be.
"""


@define(eq=False)
class Doorkeeper:
    """Decides which SYNs are worth public-key work."""

    random: RandomBytes
    _load: TokenBucket = field(factory=lambda: TokenBucket(LOAD_RATE, LOAD_BURST))
    _blind: TokenBucket = field(factory=lambda: TokenBucket(BLIND_RATE, BLIND_BURST))
    _answers: TokenBucket = field(
        factory=lambda: TokenBucket(ANSWER_RATE, ANSWER_BURST)
    )
    _asked: dict[str, TokenBucket] = field(factory=dict)
    _addresses: dict[str, TokenBucket] = field(factory=dict)
    _secrets: tuple[bytes, bytes] = (b"", b"")  # in force, and the one before
    _since: float = 0.0

    def admit(
        self,
        remote: Remote,
        cookie: bytes,
        now: float,
        *,
        wary: bool = False,
        secret: bool = False,
        blind: bool = False,
    ) -> bool | None:
        """True: answer.  None: ask for a cookie.  False: too much from there.

        ``wary``: ask for a cookie even without load.  ``secret``: the SYN shows one,
        and the load that strangers make does not count for it.  ``blind``: not even our
        public key is known to its sender.
        """
        busy = not secret and not self._load.take(now)
        busy |= blind and not self._blind.take(now)
        if not any(cookie):
            return None if busy or wary else True
        if not self._fits(remote, cookie, now):
            return None
        bucket = bucket_of(self._addresses, remote, ADDRESS_RATE, ADDRESS_BURST)
        return bucket.take(now)

    def answers(self, now: float) -> bool:
        """Whether one more SYN that shows little may be answered."""
        return self._answers.take(now)

    def cookie(self, remote: Remote, now: float) -> bytes | None:
        """COOKIE_SIZE bytes for this address and port.

        None beyond COOKIE_RATE: a flood in a peer's name must not become a flood of
        cookies at that peer.
        """
        if not bucket_of(self._asked, remote, COOKIE_RATE, COOKIE_BURST).take(now):
            return None
        self._rotate(now)
        return _cookie(self._secrets[0], remote)

    def _fits(self, remote: Remote, cookie: bytes, now: float) -> bool:
        self._rotate(now)
        good = [
            hmac.compare_digest(cookie, _cookie(secret, remote))
            for secret in self._secrets
            if secret
        ]
        return any(good)

    def _rotate(self, now: float) -> None:
        age = now - self._since
        if not self._secrets[0] or age >= SECRET_LIFETIME:
            before = self._secrets[0] if age < 2 * SECRET_LIFETIME else b""
            self._secrets = self.random(32), before
            self._since = now


def sealed_cookie(syn: Syn, cookie: bytes, guard: Guard) -> Cookie:
    """What brings a cookie to who sent ``syn``, whose MAC ``guard`` made."""
    message = Cookie(syn.sender_id, syn.nonce, guard.seal(cookie, syn.nonce))
    return evolve(message, mac=guard.mac(message.guarded()))


def _cookie(secret: bytes, remote: Remote) -> bytes:
    place = f"{remote[0]} {remote[1]}".encode()
    return hmac.digest(secret, place, sha256)[:COOKIE_SIZE]
