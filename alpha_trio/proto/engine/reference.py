"""The kernel in Python: what kernel.c does, said once more, and the one without C.

One S2 of a round, as it lies in the round's buffer and on the wire:

    +------------+------------+-------------+-----------------------------+
    | round head | branch     | index, zero,| frame word, headers,        |
    |            |            | offset      | segment; encrypted          |
    +------------+------------+-------------+-----------------------------+
      32 bytes     16 x depth   8

One datagram after another they are what a system call takes.  So the buffer is made
once: packets are put there with room in front, encrypted where they lie, given their
heads, and pre-signed.  The key is in it from then on; that it leaves this host no
sooner than it may is for the caller to see to.

Python pays for every call, so what can be is done by one for all packets.
"""

from __future__ import annotations

from struct import Struct

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.engine.face import FOLLOWS, PLACE, Frame, Joined, Span
from alpha_trio.proto.messages import (
    MAX_DEPTH,
    NODE_SIZE,
    ROUND_HEAD_SIZE,
    S2_TAIL,
    join_frames,
    split,
    take_bodies,
    take_run,
)
from alpha_trio.proto.packets import FRAME_WORD_SIZE, joined
from alpha_trio.proto.primitives import (
    ROOM,
    Checker,
    Keystream,
    Presigner,
    Promise,
    descend,
)

__all__ = ["check", "cipher", "descend", "open", "seal"]

_ROOM = bytes(ROOM)
# By depth: round head, room for the branch, index, zero, offset.
_HEADS = [
    Struct(f"!{ROUND_HEAD_SIZE}s {NODE_SIZE * depth}x HHI")
    for depth in range(MAX_DEPTH + 1)
]


def cipher(key: bytes, /) -> Keystream:
    """See ``Kernel``."""
    return Keystream(key)


def seal(
    cipher: Keystream,
    place: bytes,
    head: bytes,
    leaf_block: bytes,
    key_block: bytes,
    depth: int,
    frames: list[Frame],
    /,
) -> tuple[bytearray, list[Span], bytes]:
    """See ``Kernel``."""
    fixed = ROUND_HEAD_SIZE + depth * NODE_SIZE
    buffer, spans = _lay_out(frames, fixed + S2_TAIL.size)
    association, _, number = PLACE.unpack(place)
    text = cipher.apply_in_place(association, number, buffer)
    packets = _put_heads(text, spans, head, depth)
    presigner = Presigner.with_blocks(leaf_block, key_block, packets, depth)
    if depth:
        _put_branches(text, spans, presigner)
    del packets
    text.release()
    del buffer[-ROOM:]
    return buffer, spans, b"".join(presigner.roots)


def _put_heads(
    text: memoryview, spans: list[Span], head: bytes, depth: int
) -> list[memoryview]:
    """Write round heads and packet heads; returns the packets to be pre-signed."""
    fixed, pack_into = ROUND_HEAD_SIZE + depth * NODE_SIZE, _HEADS[depth].pack_into
    packets: list[memoryview] = []
    for index, _, begin, end, stride, _ in spans:
        for at in range(begin, end, stride):  # hot path
            pack_into(text, at, head, index, 0, at + fixed)
            packets.append(text[at + fixed : min(at + stride, end)])
            index += 1
    return packets


def _put_branches(text: memoryview, spans: list[Span], presigner: Presigner) -> None:
    """Write what ties each packet to its root."""
    for index, _, begin, end, stride, _ in spans:
        for at in range(begin + ROUND_HEAD_SIZE, end, stride):
            branch = presigner.branch(index)
            text[at : at + len(branch)] = branch
            index += 1


def _lay_out(frames: list[Frame], gap: int) -> tuple[bytearray, list[Span]]:
    """A buffer with ``gap`` bytes in front of each frame word, and room at its end.

    Single packets of one size and class share a group; a super-packet has its own, so
    that it is sent, and arrives, in one piece.
    """
    pieces: list[bytes] = []
    spans: list[Span] = []
    begin = index = 0
    may_share = False
    for word, headers, payload, start, stop, size, traffic_class in frames:
        payload = payload[start:stop]
        segments = split(payload, 0, size) if payload else [b""]
        piece = join_frames(gap, word, headers, segments)
        pieces.append(piece)
        until, end = index + len(segments), begin + len(piece)
        stride = gap + FRAME_WORD_SIZE + len(headers) + len(segments[0])
        span = index, until, begin, end, stride, traffic_class
        if may_share and not headers and spans[-1][4:] == span[4:]:
            first, last, start, stop, _, _ = spans[-1]
            if stop - start == (last - first) * stride:  # none of them is shorter
                span = first, until, start, end, stride, traffic_class
                del spans[-1]
        spans.append(span)
        begin, index, may_share = end, until, not headers
    pieces.append(_ROOM)
    return bytearray().join(pieces), spans


def check(
    view: Buffer,
    stride: int,
    head: bytes,
    least: int,
    depth: int,
    leaf_block: bytes,
    key_block: bytes,
    roots: bytes,
    packets: int,
    /,
) -> bytes:
    """See ``Kernel``."""
    run = take_run(memoryview(view), stride, head, depth * NODE_SIZE, least)
    checker = Checker.of(Promise(depth, roots, packets, leaf_block, key_block))
    heads = [S2_TAIL.unpack_from(packet) for packet in run.packets]
    promised = checker.check(heads, run.packets, run.branches)
    verdicts = bytearray(promised)
    for at in range(1, len(heads)):
        (before, _, end), (index, _, offset) = heads[at - 1 : at + 1]
        follows = index == before + 1 and offset == end + stride
        if follows and promised[at] and promised[at - 1]:
            verdicts[at] = FOLLOWS
    return bytes(verdicts)


def open(  # as in the other kernel
    cipher: Keystream,
    place: bytes,
    offset: int,
    view: Buffer,
    stride: int,
    size: int,
    most_packets: int,
    most_bytes: int,
    /,
) -> list[Joined]:
    """See ``Kernel``."""
    association, _, number = PLACE.unpack(place)
    text = cipher.apply(association, number, offset, view)
    words, bodies = take_bodies(text, stride, size)
    return joined(words, bodies, most_packets, most_bytes)
