"""Inner packets that have passed every check, joined to super-packets for the TUN."""

from __future__ import annotations

from alpha_trio.proto.batch import (
    MAX_DATAGRAMS,
    MAX_SEND_BYTES,
    Counters,
    Drop,
    Outbox,
)
from alpha_trio.proto.messages import (
    BadPacket,
    Bodies,
    Pieces,
)
from alpha_trio.proto.packets import (
    GSO_NONE,
    join_datagrams,
    join_untrusted,
    same_flow,
)
from alpha_trio.proto.transport.transport import OwnsSource

_GSO_SHIFT = 56


def deliver_untrusted(
    frames: tuple[int, ...],
    bodies: Bodies | Pieces,
    owns_source: OwnsSource,
    out: Outbox,
    counters: Counters,
) -> list[int]:
    """Join segments of a super-packet, or datagrams of a flow, for the TUN.

    ``frames`` are the frame words of the ``bodies``.  Returns the positions of those
    that were not delivered, but counted as dropped.
    """
    refused: list[int] = []
    at, count = 0, len(frames)
    while at < count:
        frame, body = frames[at], bodies[at]
        until = at + 1
        if not owns_source(body):
            counters.drop(Drop.WRONG_SOURCE)
            refused.append(at)
            at = until
            continue
        if frame >> _GSO_SHIFT != GSO_NONE:
            length = frame >> 48 & 0xFF
            until += _segments_after(frames, at)
            segments = [body, *bodies.tails(at + 1, until, length)]
            size = sum(map(len, segments)) + (until - at - 1) * length
        else:
            until = _end_of_flow(frames, bodies, at)
            segments = bodies.tails(at, until, 0)
            size = sum(map(len, segments))
        try:
            if len(segments) > 1 and frame >> _GSO_SHIFT == GSO_NONE:
                parts = join_datagrams(frame, segments)
            else:
                parts = join_untrusted(frame, segments)
        except BadPacket:
            counters.drop(Drop.MALFORMED, until - at)
            refused += range(at, until)
        else:
            out.deliver(parts, counters, until - at, size)
        at = until
    return refused


def _segments_after(frames: tuple[int, ...], at: int) -> int:
    """How many segments of the same super-packet follow ``at`` without a gap."""
    following = frames[at + 1 :]
    expected = range(frames[at] + 1, frames[at] + 1 + len(following))
    if following == tuple(expected):
        return len(following)  # hot path
    pairs = zip(following, expected, strict=True)
    return next(i for i, (frame, due) in enumerate(pairs) if frame != due)


def _end_of_flow(frames: tuple[int, ...], bodies: Bodies | Pieces, at: int) -> int:
    """One past the last whole packet that can share a super-packet with ``at``'s."""
    frame, first, size = frames[at], bodies[at], len(bodies[at])
    until, room = at + 1, min(len(frames), at + MAX_DATAGRAMS)
    total = size
    while until < room and frames[until] == frame:
        body = bodies[until]
        total += len(body)
        if total > MAX_SEND_BYTES or not same_flow(frame, first, body):
            break
        until += 1
        if len(body) < size:
            break
    return until
