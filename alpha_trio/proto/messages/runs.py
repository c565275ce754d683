"""Many equal pieces in one buffer, taken apart and put together by one call.

Super-packets, runs of datagrams, lists of roots: everything on the data path has
this form.  Python pays for every call, so ``struct`` does with one what slicing does
with one for each piece; layouts are kept, because the same ones come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

from attrs import define

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages.data import (
    CONTROL,
    DEPTH_MASK,
    EARLY_ROUND,
    NODE_SIZE,
    RELIABLE,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    S2_TAIL,
)
from alpha_trio.proto.messages.header import BadPacket
from alpha_trio.proto.messages.limits import (
    MAX_DEPTH,
    MAX_EARLY,
    MAX_PACKETS,
    MAX_RELIABLE,
    MAX_ROOTS,
)

_WORD = Struct("!Q")


@lru_cache(maxsize=256)
def _layout(count: int, *sizes: int) -> Struct:
    return Struct("".join(f"{size}s" for size in sizes) * count)


def split(buffer: Buffer, start: int, size: int) -> list[bytes]:
    """The pieces of ``size`` bytes from ``start`` on, copied; the last has the rest."""
    whole, rest = divmod(len(buffer) - start, size)
    pieces = list(_layout(whole, size).unpack_from(buffer, start))
    if rest:
        pieces.append(bytes(buffer[len(buffer) - rest :]))
    return pieces


def roots_untrusted(message: bytes, shape: int) -> tuple[int, bytes]:
    """Packets of an S1, and its roots, NODE_SIZE bytes each.

    Raises BadPacket if they do not fit together.
    """
    packets, count, _ = S1_COUNTS.unpack_from(message, ROUND_HEAD_SIZE)
    roots, depth = message[S1_FIXED_SIZE:], shape & DEPTH_MASK
    if shape & EARLY_ROUND:
        if shape & (RELIABLE | CONTROL | DEPTH_MASK) or packets != 1:
            raise BadPacket
        if len(roots) > NODE_SIZE + MAX_EARLY:
            raise BadPacket
        roots = roots[:NODE_SIZE]
    if depth > MAX_DEPTH or not 0 < packets <= MAX_PACKETS:
        raise BadPacket
    if count > MAX_ROOTS or len(roots) != count * NODE_SIZE:
        raise BadPacket
    if shape & CONTROL and (packets != 1 or not shape & RELIABLE):
        raise BadPacket
    if shape & RELIABLE and packets > MAX_RELIABLE:
        raise BadPacket
    if -(-packets >> depth) != count:
        raise BadPacket
    return packets, roots


def join_frames(
    gap: int, word: int, headers: bytes, segments: Sequence[bytes]
) -> bytes:
    """Packets one after the other: a gap, frame word, headers, segment of each.

    The segments have one size, but for the last.  Frame words count up; without headers
    these are whole packets, which all have the same.
    """
    count = len(segments) - 1
    words = range(word, word + count + 1) if headers else [word] * (count + 1)
    last = bytes(gap) + _WORD.pack(words[-1]) + headers + segments[-1]
    if not count:
        return last
    fields: list[int | bytes] = [headers] * (3 * count)
    fields[::3] = words[:-1]
    fields[2::3] = segments[:-1]
    layout = _frame_layout(count, gap, len(headers), len(segments[0]))
    return layout.pack(*fields) + last


@lru_cache(maxsize=256)
def _frame_layout(count: int, gap: int, length: int, size: int) -> Struct:
    return Struct("!" + f"{gap}xQ{length}s{size}s" * count)


@define(eq=False)
class Run:
    """The S2s of one round at the head of a view; borrowed, as that is."""

    view: memoryview  # what they take of it
    stride: int
    start: int  # of each packet in its datagram
    packets: list[memoryview]  # index, zero, offset and body of each
    branches: list[memoryview] | None  # of each; None without trees

    @property
    def size(self) -> int:
        """Bytes of all."""
        return len(self.view)


@lru_cache(maxsize=256)
def _heads_layout(count: int, stride: int) -> Struct:
    return Struct(f"{ROUND_HEAD_SIZE}s{stride - ROUND_HEAD_SIZE}x" * count)


def take_run(
    view: memoryview, stride: int, prefix: bytes, branch: int, least: int
) -> Run:
    """What at the head of ``view`` begins with ``prefix``, one datagram after another.

    ``stride`` is the distance of the datagrams, of which the last may be shorter,
    ``branch`` the bytes of tree nodes behind the prefix; a datagram is at least
    ``least`` bytes longer than these two.
    """
    # hot path
    start, at, end = ROUND_HEAD_SIZE + branch, 0, len(view)
    whole = end // stride
    # What does not even begin so is not taken apart, nor its layout kept.
    if whole > 1 and stride - start >= least and _begins(view, 0, prefix):
        heads = _heads_layout(whole, stride).unpack_from(view)
        if heads.count(prefix) != whole:  # what follows belongs to another round
            whole = next(i for i, head in enumerate(heads) if head != prefix)
        at = whole * stride
    while min(stride, end - at) - start >= least and _begins(view, at, prefix):
        at = min(at + stride, end)
    view = view[:at]
    packets = [view[i + start : i + stride] for i in range(0, at, stride)]
    branches = None
    if branch:
        branches = [view[i - branch : i] for i in range(start, at, stride)]
    return Run(view, stride, start, packets, branches)


def _begins(view: memoryview, at: int, prefix: bytes) -> bool:
    return view[at : at + len(prefix)] == prefix


@define(eq=False)
class Bodies:
    """Inner packets, or segments of them, at equal distances in one buffer."""

    text: memoryview  # ends where the last of them ends
    start: int  # where the first one begins
    stride: int  # bytes from one to the next
    size: int  # bytes of each but the last, which may be shorter

    def __getitem__(self, index: int) -> memoryview:
        """The one with this number."""
        at = self.start + index * self.stride
        return self.text[at : at + self.size]

    def tails(self, first: int, until: int, skip: int) -> list[Buffer]:
        """Those from ``first`` to before ``until``, without ``skip`` bytes each."""
        text, size, base = self.text, self.size, self.start
        places = range(
            base + first * self.stride, base + until * self.stride, self.stride
        )
        return [text[at + skip : at + size] for at in places]  # hot path


@lru_cache(maxsize=256)
def _words_layout(count: int, stride: int) -> Struct:
    heads = S2_TAIL.size
    rest = stride - heads - _WORD.size
    return Struct("!" + f"{heads}xQ{rest}x" * (count - 1) + f"{heads}xQ")


def take_bodies(
    text: memoryview, stride: int, size: int
) -> tuple[tuple[int, ...], Bodies]:
    """Frame words and bodies of decrypted packets.

    They begin ``stride`` bytes apart, and have ``size`` bytes each but the last, which
    may be shorter.  Each has a head and its frame word in front of its body; one that
    has no more than these is a keepalive, and left out.
    """
    heads = S2_TAIL.size + _WORD.size
    bodies = Bodies(text, heads, stride, size - heads)
    count = -(-len(text) // stride)
    if len(text) - (count - 1) * stride <= heads:
        count -= 1
    if size <= heads or not count:
        return (), bodies
    return _words_layout(count, stride).unpack_from(text), bodies
