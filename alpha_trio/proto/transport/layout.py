"""The S2s of a round, laid out in one buffer as they go on the wire.

    +------------+------------+-------------+-----------------------------+
    | round head | branch     | index, zero,| frame word, headers,        |
    |            |            | offset      | segment; encrypted          |
    +------------+------------+-------------+-----------------------------+
      32 bytes     16 x depth   8

One datagram after another they are what a system call takes.  So the buffer is made
once: packets are put there with room in front, encrypted where they lie, given their
heads, and pre-signed.  The key is in it from then on; that it leaves this host no
sooner than it may is for the Sender to see to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple, Self

from attrs import define

from alpha_trio.proto.messages import (
    MAX_DEPTH,
    NODE_SIZE,
    ROUND_HEAD_SIZE,
    S2_TAIL,
    join_frames,
)
from alpha_trio.proto.packets import FRAME_WORD_SIZE
from alpha_trio.proto.primitives import ROOM, Keystream, Presigner
from alpha_trio.proto.transport.queue import Waiting

HEADS_SIZE = S2_TAIL.size + FRAME_WORD_SIZE  # in front of each segment or packet

_ROOM = bytes(ROOM)
_WORD = Struct("!Q")
# By depth: round head, room for the branch, index, zero, offset.
_HEADS = [
    Struct(f"!{ROUND_HEAD_SIZE}s {NODE_SIZE * depth}x HHI")
    for depth in range(MAX_DEPTH + 1)
]


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

    @classmethod
    def sealed(
        cls,
        taken: Sequence[Waiting],
        depth: int,
        keystream: Keystream,
        association: int,
        number: int,
    ) -> Self:
        """With the packets of ``taken``, encrypted for this round, and no heads yet."""
        fixed = ROUND_HEAD_SIZE + depth * NODE_SIZE
        buffer, spans = _lay_out(taken, fixed + S2_TAIL.size)
        text = keystream.apply_in_place(association, number, buffer)
        groups = [
            Group(first, until, text[at:end], stride, at, traffic_class)
            for first, until, at, end, stride, traffic_class in spans
        ]
        return cls(groups, depth, len(text))

    @classmethod
    def bare(cls, body: bytes) -> Self:
        """With one packet, not encrypted: a control round's."""
        run = memoryview(bytearray(ROUND_HEAD_SIZE + S2_TAIL.size) + body)
        return cls([Group(0, 1, run, len(run), 0, 0)], 0, len(run))

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

    def put_heads(self, prefix: bytes) -> list[memoryview]:
        """Write round heads and packet heads; returns the packets to be pre-signed."""
        fixed, pack_into = self.fixed, _HEADS[self.depth].pack_into
        packets: list[memoryview] = []
        for index, _, run, stride, offset, _ in self.groups:
            offset += fixed
            for at in range(0, len(run), stride):  # hot path
                pack_into(run, at, prefix, index, 0, offset + at)
                packets.append(run[at + fixed : at + stride])
                index += 1
        return packets

    def put_branches(self, presigner: Presigner) -> None:
        """Write what ties each packet to its root."""
        for index, _, run, stride, *_ in self.groups:
            for at in range(ROUND_HEAD_SIZE, len(run), stride):
                branch = presigner.branch(index)
                run[at : at + len(branch)] = branch
                index += 1

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


def _lay_out(
    taken: Sequence[Waiting], gap: int
) -> tuple[bytearray, list[tuple[int, int, int, int, int, int]]]:
    """A buffer with ``gap`` bytes in front of each frame word, and room at its end.

    Also the groups: first, until, begin, end, stride, traffic class.  Single packets of
    one size and class share one; a super-packet has its own, so that it is sent, and
    arrives, in one piece.
    """
    pieces: list[bytes] = []
    spans: list[tuple[int, int, int, int, int, int]] = []
    begin = index = 0
    for waiting in taken:
        headers, segments = waiting.headers, waiting.segments
        piece = join_frames(gap, waiting.word, headers, segments)
        pieces.append(piece)
        until, end, stride = index + len(segments), begin + len(piece), len(piece)
        traffic_class = waiting.traffic_class
        if len(segments) > 1:
            stride = gap + FRAME_WORD_SIZE + len(headers) + len(segments[0])
        elif spans and spans[-1][4] == stride and spans[-1][5] == traffic_class:
            first, _, start, _, _, _ = spans[-1]
            if begin - start == (index - first) * stride:  # none of them is shorter
                index, begin = first, start
                del spans[-1]
        spans.append((index, until, begin, end, stride, traffic_class))
        begin, index = end, until
    pieces.append(_ROOM)
    return bytearray().join(pieces), spans


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
