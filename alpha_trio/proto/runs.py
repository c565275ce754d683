"""Many equal pieces in one buffer, taken apart and put together by one call.

Super-packets, runs of datagrams, lists of roots: everything on the data path has
this form.  Python pays for every call, so ``struct`` does with one what slicing does
with one for each piece; layouts are kept, because the same ones come again.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from attrs import frozen

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.wire import ROUND_HEAD_SIZE

_FRAME = Struct("!8xQ")


@frozen
class Run:
    """The S2s of one round at the head of a view, copied."""

    packets: list[bytes]  # index, zero, offset and body of each
    branches: list[bytes] | None  # of each; None without trees
    size: int  # bytes of the view they took


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


def join_frames(word: int, headers: bytes, segments: list[bytes]) -> bytes:
    """Packets as they wait: room for a head, frame word, headers, segment of each.

    The segments have one size, but for the last; frame words count up.
    """
    count = len(segments) - 1
    last = _FRAME.pack(word + count) + headers + segments[-1]
    if not count:
        return last
    fields: list[int | bytes] = [headers] * (3 * count)
    fields[::3] = range(word, word + count)
    fields[2::3] = segments[:-1]
    return _frame_layout(count, len(headers), len(segments[0])).pack(*fields) + last


@lru_cache(maxsize=256)
def _frame_layout(count: int, length: int, size: int) -> Struct:
    return Struct("!" + f"8xQ{length}s{size}s" * count)


@lru_cache(maxsize=256)
def _words_layout(count: int, size: int) -> Struct:
    return Struct("!" + f"8xQ{size}x" * count)


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
    packets: list[bytes] = []
    branches: list[bytes] | None = [] if branch else None
    whole = end // stride
    # What does not even begin so is not taken apart, nor its layout kept.
    if whole > 1 and stride - start >= least and _begins(view, 0, prefix):
        sizes = (ROUND_HEAD_SIZE, branch, stride - start)
        pieces = _layout(whole, *filter(None, sizes)).unpack_from(view)
        step = len(pieces) // whole
        heads = pieces[::step]
        if heads.count(prefix) != whole:  # what follows belongs to another round
            whole = next(i for i, head in enumerate(heads) if head != prefix)
            end = whole * stride
        packets += pieces[step - 1 : whole * step : step]
        if branches is not None:
            branches += pieces[1 : whole * step : step]
        at = whole * stride
    while min(stride, end - at) - start >= least and _begins(view, at, prefix):
        packets.append(bytes(view[at + start : at + stride]))
        if branches is not None:
            branches.append(bytes(view[at + ROUND_HEAD_SIZE : at + start]))
        at = min(at + stride, end)
    return Run(packets, branches, at)


def _begins(view: memoryview, at: int, prefix: bytes) -> bool:
    return view[at : at + len(prefix)] == prefix


def take_bodies(text: memoryview, size: int) -> tuple[list[int], list[Buffer]]:
    """Frame words and bodies of decrypted packets, ``size`` bytes each but the last.

    Each has a head and its frame word in front of its body; one that has no more
    than these is a keepalive, and left out.
    """
    # hot path
    heads, at = _FRAME.size, 0
    frames: list[int] = []
    bodies: list[Buffer] = []
    whole = len(text) // size
    if whole > 1 and size > heads:
        at = whole * size
        frames += _words_layout(whole, size - heads).unpack_from(text)
        bodies += [text[start + heads : start + size] for start in range(0, at, size)]
    while len(text) - at > heads < size:
        frames.append(_FRAME.unpack_from(text, at)[0])
        bodies.append(text[at + heads : at + size])
        at += size
    return frames, bodies
