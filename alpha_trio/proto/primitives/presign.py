"""Pre-signatures: what an S1 says about packets that only come in its S2s.

A round of n packets is split into blocks of 2**depth packets, and S1 carries one
root for each block:

    mode  blocks       depth   S1 carries        each S2 carries
    N     1 packet     0       1 MAC             -
    C     n of 1       0       n MACs            -
    M     1 of n       log n   1 root            depth nodes
    C+M   several      any     a root a block    depth nodes

With depth 0 a root is the MAC of the one packet.  Otherwise it is the top of a
Merkle tree whose leaves are hashes of the packets.  Either way the ROOT is keyed
with the element nobody knows yet: an unkeyed root could be exchanged on the way,
and packets forged to it once the key is out.

    key block   "s" | chain id | round | key element | zeros      (64 bytes)
    leaf block  "l" | chain id | round | zeros                    (64 bytes)
    MAC         SHA-256(key block | packet)[:16]
    leaf        SHA-256(leaf block | packet)[:16]
    node        SHA-256("n" | left | right)[:16]
    root        SHA-256(key block | left | right)[:16]

H(key | message) is safe here though SHA-256 is a Merkle-Damgard hash: the key fills
the first block, half of the output is cut off, so nothing can be appended to it,
and the key becomes public by design, after which only second preimages would help
(2**128 work at 16 bytes).  For the same reason no MAC that rests on a secret key
alone, such as GMAC or Poly1305, would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING

from attrs import define, field

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import NODE_SIZE, ROUND_HEAD_SIZE, S2_TAIL, split
from alpha_trio.proto.primitives.chain import digest_of

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


_NOTHING = bytes(NODE_SIZE)  # in the place of packets a last block does not have
_NOWHERE = 1 << 16  # no packet has this number
_BLOCK = Struct("!1s 16s I 16s 27x")  # tag, chain id, round, key


def key_block(chain_id: bytes, number: int, key: bytes) -> bytes:
    """64 bytes, one compression: what keyed hashes of round ``number`` begin with."""
    return _BLOCK.pack(b"s", chain_id, number, key)


def leaf_block(chain_id: bytes, number: int) -> bytes:
    """64 bytes: what leaf hashes of round ``number`` begin with."""
    return _BLOCK.pack(b"l", chain_id, number, _NOTHING)


def early_packet(early: Buffer) -> bytes:
    """What is pre-signed for early data: the head of its S2's packet, and its digest.

    So nobody has to keep the data itself until the key is out.
    """
    return S2_TAIL.pack(0, 0, ROUND_HEAD_SIZE) + digest_of(early)


@define(eq=False)
class Promise:
    """What an S1 said of its round's packets, once the round's key is known."""

    depth: int
    roots: bytes  # NODE_SIZE bytes each
    packets: int  # of the round; a tree may have leaves beyond, and none of them counts
    leaf_block: bytes
    key_block: bytes

    @classmethod
    def with_key(
        cls,
        chain_id: bytes,
        number: int,
        key: bytes,
        depth: int,
        roots: bytes,
        packets: int,
    ) -> Promise:
        """For round ``number``, whose key element has been disclosed and checked."""
        leaf, keyed = leaf_block(chain_id, number), key_block(chain_id, number, key)
        return cls(depth, roots, packets, leaf, keyed)

    def fits(self, packet: Buffer) -> bool:
        """Whether this is the one packet of a round without trees."""
        return self.depth == 0 and self.roots == mac(self.key_block, packet)


def mac(block: bytes, packet: Buffer) -> bytes:
    """NODE_SIZE bytes over a packet, with ``key_block``."""
    return sha256(block + bytes(packet)).digest()[:NODE_SIZE]


def depth_for(packets: int, roots: int) -> int:
    """The least depth with which ``roots`` blocks hold ``packets`` packets."""
    depth = 0
    while -(-packets >> depth) > roots:
        depth += 1
    return depth


@define(eq=False)
class Presigner:
    """The sender's side: roots for S1, branches for the S2s."""

    depth: int
    roots: list[bytes]
    _levels: list[list[bytes]]  # below the roots, leaves first; empty at depth 0

    @classmethod
    def sign(
        cls,
        chain_id: bytes,
        number: int,
        key: bytes,
        packets: Iterable[Buffer],
        depth: int,
    ) -> Presigner:
        """Pre-sign the packets of round ``number`` with trees of ``depth``."""
        blocks = leaf_block(chain_id, number), key_block(chain_id, number, key)
        return cls.with_blocks(*blocks, packets, depth)

    @classmethod
    def with_blocks(
        cls, leaf_block: bytes, key_block: bytes, packets: Iterable[Buffer], depth: int
    ) -> Presigner:
        """The same with the blocks all its hashes begin with."""
        keyed = sha256(key_block)
        start = keyed if not depth else sha256(leaf_block)
        hashes = _hash_all(start, packets)
        if not depth:
            return cls(0, hashes, [])
        hashes += [_NOTHING] * (-len(hashes) % (1 << depth))
        levels = [hashes]
        for _ in range(depth - 1):
            levels.append([_node(*pair) for pair in _pairs(levels[-1])])
        roots = [_root(keyed, *pair) for pair in _pairs(levels[-1])]
        return cls(depth, roots, levels)

    def branch(self, index: int) -> bytes:
        """The ``depth`` nodes that tie packet ``index`` to its root, leaf first."""
        return b"".join(
            level[(index >> height) ^ 1] for height, level in enumerate(self._levels)
        )


@define(eq=False)
class Checker:
    """The other side, ends and relays: checks packets against the roots of an S1.

    The path of the last packet that was right is remembered: two nodes for each
    height.  The way of the next one up the tree ends where it meets that path, so of a
    block that arrives in order each node is hashed once and not ``depth`` times, and
    memory does not grow with the round.  In another order it costs at most ``depth``
    hashes a packet.
    """

    depth: int
    roots: Sequence[bytes]
    packets: int  # of the round; a tree may have leaves beyond, and none of them counts
    _keyed: Hash
    _start: Hash
    _index: int = _NOWHERE  # of the remembered path's packet
    _path: list[bytes] = field(init=False, factory=list)  # its nodes, leaf first
    _branch: bytes = b""  # and their siblings

    @classmethod
    def of(cls, promise: Promise) -> Checker:
        """For the packets of one round."""
        keyed = sha256(promise.key_block)
        start = sha256(promise.leaf_block) if promise.depth else keyed
        roots = split(promise.roots, 0, NODE_SIZE)
        return cls(promise.depth, roots, promise.packets, keyed, start)

    def check(
        self,
        heads: Sequence[tuple[int, int, int]],
        packets: Iterable[Buffer],
        branches: Sequence[Buffer] | None,
    ) -> list[bool]:
        """Which packets are what the S1 promised.

        ``heads`` begin with each packet's number in the round, ``branches`` are the
        nodes of their S2s, NODE_SIZE * depth bytes each, None without trees.
        """
        hashes = _hash_all(self._start, packets)
        if branches is not None:
            return [
                self._climb(head[0], node, bytes(branch))
                for head, node, branch in zip(heads, hashes, branches, strict=True)
            ]
        roots = self.roots
        count = min(len(roots), self.packets)
        return [
            head[0] < count and node == roots[head[0]]
            for head, node in zip(heads, hashes, strict=True)
        ]

    def _climb(self, index: int, node: bytes, branch: bytes) -> bool:
        if index >= self.packets or index >> self.depth >= len(self.roots):
            return False
        apart = (index ^ self._index).bit_length()  # heights until the paths meet
        if not apart:
            return node == self._path[0] and branch == self._branch
        path = []
        for height in range(self.depth):
            path.append(node)
            at, above = height * NODE_SIZE, (height + 1) * NODE_SIZE
            if height == apart - 1:  # the two are siblings: nothing left to hash
                known = self._path[height] + self._branch[above:]
                if node != self._branch[at:above] or branch[at:] != known:
                    return False
                path += self._path[height + 1 :]
                break
            sibling = branch[at:above]
            pair = (sibling, node) if index >> height & 1 else (node, sibling)
            if height < self.depth - 1:
                node = _node(*pair)
            elif _root(self._keyed, *pair) != self.roots[index >> self.depth]:
                return False
        self._index, self._path, self._branch = index, path, branch
        return True


def _hash_all(start: Hash, packets: Iterable[Buffer]) -> list[bytes]:
    hashes: list[bytes] = []
    copy, append = start.copy, hashes.append
    for packet in packets:  # hot path
        state = copy()
        state.update(packet)
        append(state.digest()[:NODE_SIZE])
    return hashes


def _pairs(level: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(level[::2], level[1::2], strict=True)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"n" + left + right).digest()[:NODE_SIZE]


def _root(keyed: Hash, left: bytes, right: bytes) -> bytes:
    state = keyed.copy()
    state.update(left + right)
    return state.digest()[:NODE_SIZE]
