"""Acknowledgments that relays can verify: the acknowledgment Merkle tree.

For a reliable round the receiver puts into its A1 a root over 2n leaves, an ack and
a nack for each of the n packets, keyed with the acknowledgment element it will
disclose in A2.  An A2 opens one leaf: everybody on the path then knows that this
receiver, and nobody else, took the packet or refused it.  For a single packet this
is ALPHA's pair of pre-ack and pre-nack with a keyed root over the two.

    secret    SHA-256("r" | seed | index | verdict)[:16]        known to the receiver
    leaf      SHA-256("a" | chain id | round | index | verdict | secret)[:16]
    node      SHA-256("n" | left | right)[:16]
    root      SHA-256(key block | left | right)[:16]             see presign.py

The acks are the left half of the leaves, the nacks the right half.  An opening as A2
carries it is packet, verdict, secret and branch; an A2 has one or more of them.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct

from attrs import define, field

from alpha_trio.proto.messages import A2_OPENING, NODE_SIZE, BadPacket
from alpha_trio.proto.primitives.presign import key_block

ACK, NACK = 1, 0
SECRET_SIZE = 16

_LEAF = Struct("!1s 16s I H B 16s")
_CHOICE = Struct("!HB")
_NOTHING = bytes(NODE_SIZE)


def branch_length(packets: int) -> int:
    """Nodes in an opening's branch for a round of ``packets``."""
    return (packets - 1).bit_length() + 1


def opening_size(packets: int) -> int:
    """Bytes of one opening in an A2 for a round of ``packets``."""
    return A2_OPENING.size + branch_length(packets) * NODE_SIZE


@define(eq=False)
class AckTree:
    """The receiver's side: the root for A1 and the openings for A2."""

    chain_id: bytes  # of the acknowledgment chain
    number: int
    key: bytes = field(repr=False)  # element 2 * number + 2 of that chain
    seed: bytes = field(repr=False)  # random, secret
    packets: int
    root: bytes = field(init=False)
    _levels: list[list[bytes]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        half = 1 << (self.packets - 1).bit_length()
        leaves = [_NOTHING] * (2 * half)
        for index in range(self.packets):
            leaves[index] = self._leaf(index, ACK)
            leaves[half + index] = self._leaf(index, NACK)
        self._levels = [leaves]
        while len(self._levels[-1]) > 2:
            below = self._levels[-1]
            pairs = zip(below[::2], below[1::2], strict=True)
            self._levels.append([_node(left, right) for left, right in pairs])
        left, right = self._levels[-1]
        self.root = _root(self.chain_id, self.number, self.key, left, right)

    def _secret(self, index: int, verdict: int) -> bytes:
        choice = _CHOICE.pack(index, verdict)
        return sha256(b"r" + self.seed + choice).digest()[:SECRET_SIZE]

    def _leaf(self, index: int, verdict: int) -> bytes:
        secret = self._secret(index, verdict)
        return _leaf(self.chain_id, self.number, index, verdict, secret)

    def opening(self, index: int, verdict: int) -> tuple[bytes, bytes]:
        """Secret and branch that open one leaf."""
        at = index + (0 if verdict == ACK else len(self._levels[0]) // 2)
        branch = [
            level[(at >> height) ^ 1] for height, level in enumerate(self._levels)
        ]
        return self._secret(index, verdict), b"".join(branch)

    def packed(self, index: int, verdict: int) -> bytes:
        """One opening as A2 carries it, ``opening_size`` bytes."""
        secret, branch = self.opening(index, verdict)
        return A2_OPENING.pack(index, verdict, 0, secret) + branch


def verdicts_untrusted(
    chain_id: bytes,
    number: int,
    key: bytes,
    root: bytes,
    packets: int,
    openings: bytes,
) -> list[tuple[int, int]]:
    """The verdicts of an A2: the packet and ACK or NACK, for each of its openings.

    ``openings`` is what stands between head and tag.  Raises BadPacket unless these
    are at least one and at most ``packets`` openings, and all of them belong to the
    root of the round's A1.
    """
    size = opening_size(packets)
    count, rest = divmod(len(openings), size)
    if rest or not 0 < count <= packets:
        raise BadPacket
    verdicts = []
    for at in range(0, len(openings), size):
        index, verdict, _, secret = A2_OPENING.unpack_from(openings, at)
        branch = openings[at + A2_OPENING.size : at + size]
        place = chain_id, number, key, root, packets
        if not opens(*place, index, verdict, secret, branch):
            raise BadPacket
        verdicts.append((index, verdict))
    return verdicts


def opens(
    chain_id: bytes,
    number: int,
    key: bytes,
    root: bytes,
    packets: int,
    index: int,
    verdict: int,
    secret: bytes,
    branch: bytes,
) -> bool:
    """Whether an A2's opening belongs to the root of the round's A1.

    ``key`` has been checked against the acknowledgment chain before.
    """
    if index >= packets or verdict not in (ACK, NACK):
        return False
    height = branch_length(packets)
    if len(branch) != height * NODE_SIZE or len(secret) != SECRET_SIZE:
        return False
    at = index + (0 if verdict == ACK else 1 << height - 1)
    node = _leaf(chain_id, number, index, verdict, secret)
    for level in range(height):
        sibling = branch[level * NODE_SIZE : (level + 1) * NODE_SIZE]
        left, right = (sibling, node) if at & 1 else (node, sibling)
        at >>= 1
        if level == height - 1:
            return _root(chain_id, number, key, left, right) == root
        node = _node(left, right)
    return False


def _leaf(
    chain_id: bytes, number: int, index: int, verdict: int, secret: bytes
) -> bytes:
    leaf = _LEAF.pack(b"a", chain_id, number, index, verdict, secret)
    return sha256(leaf).digest()[:NODE_SIZE]


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"n" + left + right).digest()[:NODE_SIZE]


def _root(chain_id: bytes, number: int, key: bytes, left: bytes, right: bytes) -> bytes:
    block = key_block(chain_id, number, key)
    return sha256(block + left + right).digest()[:NODE_SIZE]
