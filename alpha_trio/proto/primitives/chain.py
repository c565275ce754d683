"""Hash chains: the elements whose disclosure, in order, proves who is speaking.

A chain is made from its end: a random seed is the last element, and each element
is the hash of the one after it.  Element 0, the anchor, is published in the
handshake; 1, 2, 3 ... are disclosed one after another.  Whoever holds element i
checks element j > i by hashing it j - i times, and cannot compute it before.

    element[i] = SHA-256(role(i) | chain id | i | element[i + 1])[:16]

Odd elements open a round (S1 on a signature chain, A1 on an acknowledgment
chain), even ones are the round's key (S2, A2).  The role is inside the hash, and
so are the chain's own id and the position: an element can never pass for another
one, of this chain or any other.  One step is one SHA-256 compression: 1 + 16 + 4
+ 16 = 37 bytes, less than the 55 that fit.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from struct import Struct

from attrs import define, field

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import BadPacket

ELEMENT_SIZE = 16

ROLE_OPEN, ROLE_KEY = b"o", b"k"

MAX_SKIP = 128
"""Elements one datagram may make us hash: 64 rounds that we never heard of."""

SIGNATURE_CHAIN, ACKNOWLEDGMENT_CHAIN = b"s", b"a"

_NAME = Struct("!6s 1s H 16s")
_POSITION = Struct("!I")
_MAKING_SLICE = 1024  # steps of making a chain in one go: well under 1 ms


def step(prefix: bytes, position: int, following: bytes) -> bytes:
    """Element ``position`` from the one after it; ``prefix`` is role and chain id."""
    return sha256(prefix + _POSITION.pack(position) + following).digest()[:ELEMENT_SIZE]


def descend(chain_id: bytes, position: int, element: bytes, count: int) -> bytes:
    """The ``count`` elements of a chain before this one, the nearest first."""
    both = prefixes(chain_id)
    elements: list[bytes] = []
    for at in range(position - 1, position - 1 - count, -1):
        element = step(both[at & 1], at, element)
        elements.append(element)
    return b"".join(elements)


Descend = Callable[[bytes, int, bytes, int], bytes]

_descend: Descend = descend


def descend_by(how: Descend) -> None:
    """From now on elements are made by ``how``, which does what ``descend`` does."""
    global _descend
    _descend = how


def digest_of(message: Buffer) -> bytes:
    """The first 16 bytes of SHA-256, which docs/protocol.md calls H."""
    return sha256(message).digest()[:16]


def chain_id(nonce: bytes, use: bytes, association: int) -> bytes:
    """16 bytes that name a chain: its owner's handshake nonce, its use, its number."""
    return digest_of(_NAME.pack(b"chain ", use, association, nonce))


def prefixes(chain_id: bytes) -> tuple[bytes, bytes]:
    """The constant head of a step's hash for even and for odd positions."""
    return ROLE_KEY + chain_id, ROLE_OPEN + chain_id


@define(eq=False)
class HashChain:
    """The owner's side: makes the chain, remembers checkpoints, discloses in order.

    Only every ``spacing``-th element is kept, and the stretch in use is made again
    when it is entered.  With ``spacing`` the square root of the length, 2**16
    elements cost 2 * 256 * 16 bytes = 8 kB instead of 1 MB, and two hashes an
    element instead of one.

    A long chain is made in slices, see :meth:`make_some`, because the loop that
    carries packets must not stand still for tens of milliseconds.
    """

    chain_id: bytes  # 16 bytes, different for every chain there ever is
    seed: bytes = field(repr=False)  # ELEMENT_SIZE random bytes: the last element
    spacing: int
    length: int = field(init=False)  # position of the last element
    _made: int = field(init=False)  # the lowest position made so far
    _checkpoints: dict[int, bytes] = field(init=False, repr=False)  # by position
    # The elements before this position, downwards.
    _top: int = field(init=False, default=-1)
    _stretch: bytes = field(init=False, default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        self.length = self._made = self.spacing * self.spacing
        self._checkpoints = {self.length: self.seed}

    @classmethod
    def make(cls, chain_id: bytes, seed: bytes, spacing: int) -> HashChain:
        """A whole chain of ``spacing`` squared elements at once: 0.6 us an element."""
        chain = cls(chain_id, seed, spacing)
        while not chain.make_some():
            pass
        return chain

    def make_some(self) -> bool:
        """Make a slice of the chain, under 1 ms of work; True when it is complete."""
        for _ in range(max(1, _MAKING_SLICE // self.spacing)):
            if not self._made:
                break
            self._made -= self.spacing
            last = self._down(self._made + self.spacing)[-ELEMENT_SIZE:]
            self._checkpoints[self._made] = last
        return not self._made

    def _down(self, top: int) -> bytes:
        """The elements from a checkpoint down to the next one."""
        return _descend(self.chain_id, top, self._checkpoints[top], self.spacing)

    @property
    def anchor(self) -> bytes:
        """Element 0, to be published.  The chain must be complete."""
        return self._checkpoints[0]

    def element(self, position: int) -> bytes:
        """The element at ``position``, 0 <= position <= length, of a complete chain."""
        if position in self._checkpoints:
            return self._checkpoints[position]
        if not self._top - self.spacing <= position < self._top:
            self._top = -(-position // self.spacing) * self.spacing
            self._stretch = self._down(self._top)
        at = (self._top - 1 - position) * ELEMENT_SIZE
        return self._stretch[at : at + ELEMENT_SIZE]


@define(eq=False)
class ChainVerifier:
    """The other side: the last accepted element, and nothing older.

    There is no window of elements that might still come: what is not after the
    last accepted one is refused, so a disclosed element can never open or close
    anything again.
    """

    chain_id: bytes
    element: bytes  # at first the anchor: trust begins there
    position: int = 0

    def check_untrusted(self, position: int, element: bytes) -> None:
        """Raises BadPacket unless ``element`` belongs at ``position``, after ours.

        Hashes at most MAX_SKIP times.  Accepts nothing yet: see ``accept``.
        """
        ahead = position - self.position
        if not 0 < ahead <= MAX_SKIP or len(element) != ELEMENT_SIZE:
            raise BadPacket
        if not _descend(self.chain_id, position, element, ahead).endswith(self.element):
            raise BadPacket

    def derive(self, position: int, element: bytes, earlier: int) -> bytes:
        """The element at ``earlier`` which follows from a later one."""
        if position <= earlier:
            return element
        between = _descend(self.chain_id, position, element, position - earlier)
        return between[-ELEMENT_SIZE:]

    def accept(self, position: int, element: bytes) -> None:
        """From now on only what comes after this element counts."""
        self.position, self.element = position, element
