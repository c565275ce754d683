"""Datagrams of one round, one after the other, and what was found of them."""

from __future__ import annotations

from attrs import define

from alpha_trio.proto.engine.face import FOLLOWS, PROMISED, Kernel
from alpha_trio.proto.messages import NODE_SIZE, ROUND_HEAD_SIZE, S2_TAIL
from alpha_trio.proto.primitives import Promise


@define(eq=False)
class Run:
    """The S2s of one round at the head of a view; borrowed, as that is."""

    view: memoryview  # what they take of it
    stride: int
    start: int  # of each packet in its datagram
    verdicts: bytes  # of each packet: FORGED, PROMISED or FOLLOWS

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.verdicts)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return len(self.view)

    @property
    def whole(self) -> bool:
        """Whether all of them were promised, and they are as they were sent."""
        return is_whole(self.verdicts)

    def packet(self, number: int) -> memoryview:
        """Index, zero, offset and body of one."""
        at = number * self.stride
        return self.view[at + self.start : at + self.stride]

    def head(self, number: int) -> tuple[int, int]:
        """Index and offset of one."""
        at = number * self.stride + self.start
        index, _, offset = S2_TAIL.unpack_from(self.view, at)
        return index, offset

    def stretch(self, first: int, until: int) -> memoryview:
        """From where packet ``first`` begins to where the one before ``until`` ends."""
        begin = first * self.stride + self.start
        return self.view[begin : until * self.stride]


def is_whole(verdicts: bytes) -> bool:
    """Whether all of some packets were promised, and they are as they were sent."""
    follow = verdicts.count(FOLLOWS)
    return follow == len(verdicts) - 1 and verdicts[0] == PROMISED


def check_run(
    kernel: Kernel,
    promise: Promise,
    view: memoryview,
    stride: int,
    head: bytes,
    least: int,
) -> Run:
    """The datagrams at the head of ``view`` that begin with ``head``, checked.

    Each has at least ``least`` bytes behind its branch; there may be none of them.
    """
    verdicts = verdicts_on(kernel, promise, view, stride, head, least)
    start = ROUND_HEAD_SIZE + promise.depth * NODE_SIZE
    return Run(view[: len(verdicts) * stride], stride, start, verdicts)


def verdicts_on(
    kernel: Kernel,
    promise: Promise,
    view: memoryview,
    stride: int,
    head: bytes,
    least: int,
) -> bytes:
    """The verdicts of such a run alone."""
    return kernel.check(
        view,
        stride,
        head,
        least,
        promise.depth,
        promise.leaf_block,
        promise.key_block,
        promise.roots,
        promise.packets,
    )
