"""Inner packets that have passed every check, joined to super-packets for the TUN."""

from __future__ import annotations

from collections.abc import Iterable

from alpha_trio.proto.batch import (
    MAX_DATAGRAMS,
    MAX_SEND_BYTES,
    Counters,
    Drop,
    Outbox,
)
from alpha_trio.proto.messages import BadPacket, Bodies, Pieces
from alpha_trio.proto.packets import (
    common_headers,
    is_segment,
    join_datagrams,
    join_untrusted,
    joined,
)
from alpha_trio.proto.transport.transport import OwnsSource

LIMITS = MAX_DATAGRAMS, MAX_SEND_BYTES
"""Packets and bytes of the datagrams of a flow that make one frame."""


def deliver_untrusted(
    frames: Iterable[tuple[int, int, int, int, bytes]],
    owns_source: OwnsSource,
    out: Outbox,
    counters: Counters,
) -> list[int]:
    """Hand frames, as a kernel opens them, on to the TUN.

    Returns the positions of packets that were not delivered, but counted as dropped.
    """
    refused: list[int] = []
    for at, until, word, first, data in frames:
        count = until - at
        view = memoryview(data)
        if not owns_source(view[:first]):
            counters.drop(Drop.WRONG_SOURCE, count)
            refused += range(at, until)
            continue
        whole = count == 1 or is_segment(word)
        join = join_untrusted if whole else join_datagrams
        try:
            parts = join(word, count, first, view)
        except BadPacket:
            counters.drop(Drop.MALFORMED, count)
            refused += range(at, until)
        else:
            size = len(data)
            if count > 1:
                size += (count - 1) * common_headers(word)
            out.deliver(parts, counters, count, size)
    return refused


def deliver_bodies_untrusted(
    words: tuple[int, ...],
    bodies: Bodies | Pieces,
    owns_source: OwnsSource,
    out: Outbox,
    counters: Counters,
) -> list[int]:
    """The same of packets that lie one by one."""
    return deliver_untrusted(joined(words, bodies, *LIMITS), owns_source, out, counters)
