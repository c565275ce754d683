"""The S2s of a round, one after the other in one buffer, as a kernel sealed them.

The round's key is in each of them; that they leave this host no sooner than they may is
for the Sender to see to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from attrs import define

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.engine import round_place
from alpha_trio.proto.messages import NODE_SIZE, ROUND_HEAD_SIZE, S2_TAIL
from alpha_trio.proto.packets import FRAME_WORD_SIZE
from alpha_trio.proto.primitives import Keystream, Presigner, key_block, leaf_block
from alpha_trio.proto.transport.line import Line
from alpha_trio.proto.transport.queue import Waiting

HEADS_SIZE = S2_TAIL.size + FRAME_WORD_SIZE  # in front of each segment or packet


class Opening(NamedTuple):
    """The next round of an association, as far as it is known before its packets."""

    association: int
    number: int
    shape: int
    chain_id: bytes
    key: bytes
    head: bytes  # of its S2s


class Group(NamedTuple):
    """Datagrams of one size, but for the last."""

    first: int  # number of the first packet in its round
    until: int  # one past the last
    run: memoryview
    stride: int  # bytes from one to the next
    offset: int  # of the run in the round's buffer, and so in its keystream
    traffic_class: int  # of all its packets


@define(eq=False)
class Datagrams:
    """All S2s of one round."""

    groups: list[Group]
    depth: int
    size: int  # bytes
    roots: bytes  # for the S1

    @classmethod
    def sealed(
        cls, taken: Sequence[Waiting], depth: int, opening: Opening, line: Line
    ) -> Self:
        """With the packets of ``taken``, encrypted and pre-signed."""
        name, number = opening.chain_id, opening.number
        buffer, spans, roots = line.kernel.seal(
            line.sealing,
            round_place(opening.association, number),
            opening.head,
            leaf_block(name, number),
            key_block(name, number, opening.key),
            depth,
            [waiting.frame for waiting in taken],
        )
        text = memoryview(buffer)
        groups = [
            Group(first, until, text[at:end], stride, at, traffic_class)
            for first, until, at, end, stride, traffic_class in spans
        ]
        return cls(groups, depth, len(text), roots)

    @classmethod
    def bare(cls, body: bytes, opening: Opening, instead: Buffer | None = None) -> Self:
        """With one packet, not encrypted: a control round's.

        ``instead`` is pre-signed in its place.
        """
        packet = S2_TAIL.pack(0, 0, ROUND_HEAD_SIZE) + body
        place = opening.chain_id, opening.number, opening.key
        signed = Presigner.sign(*place, [packet if instead is None else instead], 0)
        run = memoryview(opening.head + packet)
        group = Group(0, 1, run, len(run), 0, 0)
        return cls([group], 0, len(run), signed.roots[0])

    @property
    def fixed(self) -> int:
        """Bytes in front of each packet: round head and branch."""
        return ROUND_HEAD_SIZE + self.depth * NODE_SIZE

    @property
    def packets(self) -> int:
        """How many there are."""
        return self.groups[-1].until

    @property
    def largest(self) -> int:
        """Bytes of the largest."""
        return max(group.stride for group in self.groups)

    def among(self, bits: int) -> Iterator[Group]:
        """Those of the packets whose bit is set, in groups."""
        for group in self.groups:
            first, until, run, stride, offset, traffic_class = group
            for start, end in _stretches(bits >> first, until - first):
                at = start * stride
                yield Group(
                    first + start,
                    first + end,
                    run[at : end * stride],
                    stride,
                    offset + at,
                    traffic_class,
                )

    def inner_among(self, bits: int) -> int:
        """Inner packets among those whose bit is set; keepalives are none."""
        empty = self.fixed + HEADS_SIZE
        return sum(
            (bits >> first & (1 << until - first) - 1).bit_count()
            for first, until, _, stride, *_ in self.groups
            if stride > empty
        )

    def opened(
        self, keystream: Keystream, association: int, number: int
    ) -> Iterator[bytes]:
        """The packets' bodies as they were before they were encrypted, in order."""
        start = self.fixed + S2_TAIL.size
        for _, _, run, stride, offset, _ in self.groups:
            text = keystream.apply(association, number, offset, run)
            for at in range(0, len(run), stride):
                yield bytes(text[at + start : at + stride])


def _stretches(bits: int, count: int) -> Iterator[tuple[int, int]]:
    """Where bits that are set follow one another, as ranges below ``count``."""
    bits &= (1 << count) - 1
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        at, bits = at + skip, bits >> skip
        length = (~bits & (bits + 1)).bit_length() - 1
        yield at, at + length
        at, bits = at + length, bits >> length
