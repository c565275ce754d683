"""Which packets that arrived one after the other make one frame for the TUN."""

from __future__ import annotations

from alpha_trio.proto.messages import Bodies, Pieces
from alpha_trio.proto.packets.frames import (
    DATAGRAMS,
    GSO_NONE,
    UDP_HEADER_SIZE,
    same_flow,
)


def is_segment(word: int) -> bool:
    """Whether a frame word is that of a segment; else the packet stays whole."""
    return word >> 56 != GSO_NONE


def common_headers(word: int) -> int:
    """Bytes of headers that packets joined to one frame have in common."""
    return (
        word >> 48 & 0xFF if is_segment(word) else (word >> 40 & 0xFF) + UDP_HEADER_SIZE
    )


def joined(
    words: tuple[int, ...],
    bodies: Bodies | Pieces,
    most_packets: int,
    most_bytes: int,
) -> list[tuple[int, int, int, int, bytes]]:
    """Segments of a super-packet, and datagrams of a flow, each as one.

    ``words`` are the frame words of the ``bodies``.  See ``Joined`` in the engine for
    what comes out; the limits are for datagrams.
    """
    frames = []
    at, count = 0, len(words)
    while at < count:
        word, first = words[at], bodies[at]
        if is_segment(word):
            until = at + 1 + _segments_after(words, at)
        elif word in DATAGRAMS:
            until = _end_of_flow(words, bodies, at, most_packets, most_bytes)
        else:
            until = at + 1
        data = bytes(first)
        if until > at + 1:
            data = b"".join([data, *bodies.tails(at + 1, until, common_headers(word))])
        frames.append((at, until, word, len(first), data))
        at = until
    return frames


def _segments_after(words: tuple[int, ...], at: int) -> int:
    """How many segments of the same super-packet follow ``at`` without a gap."""
    following = words[at + 1 :]
    expected = range(words[at] + 1, words[at] + 1 + len(following))
    if following == tuple(expected):
        return len(following)  # hot path
    pairs = zip(following, expected, strict=True)
    return next(i for i, (word, due) in enumerate(pairs) if word != due)


def _end_of_flow(
    words: tuple[int, ...],
    bodies: Bodies | Pieces,
    at: int,
    most_packets: int,
    most_bytes: int,
) -> int:
    """One past the last whole packet that can share a super-packet with ``at``'s."""
    word, first, size = words[at], bodies[at], len(bodies[at])
    until, room = at + 1, min(len(words), at + most_packets)
    total = size
    while until < room and words[until] == word:
        body = bodies[until]
        total += len(body)
        if total > most_bytes or not same_flow(word, first, body):
            break
        until += 1
        if len(body) < size:
            break
    return until
