"""The face of both kernels."""

from __future__ import annotations

from struct import Struct
from typing import Any, Protocol

from alpha_trio.proto.batch import Buffer

Frame = tuple[int, bytes, bytes, int, int, int, int]
"""Packets that were one frame of the TUN: frame word of the first, headers in front of
each segment, bytes with the payload, where in these it begins and ends, bytes of each
segment but the last, traffic class.

Without headers these are whole packets, which all have the same word."""

Span = tuple[int, int, int, int, int, int]
"""Datagrams of one size but the last, that are sent together: number of the first
packet, one past the last, where they begin and end in the buffer, bytes from one to the
next, traffic class."""

Joined = tuple[int, int, int, int, bytes]
"""Packets that make one frame for the TUN: number of the first, one past the last,
frame word, bytes of the first, and all of them: the first whole, the others without the
headers that they have in common."""

FORGED, PROMISED, FOLLOWS = range(3)
"""Verdicts on a packet."""

PLACE = Struct("!HHI")  # association, use, round


def round_place(association: int, number: int, use: int = 0) -> bytes:
    """Eight bytes that tell the keystream of a round from all others: see cipher.py."""
    return PLACE.pack(association, use, number)


class Kernel(Protocol):
    """Four calls, and the key for two of them."""

    def descend(
        self, chain_id: bytes, position: int, element: bytes, count: int, /
    ) -> bytes:
        """The ``count`` elements of a chain before this one, the nearest first."""

    def cipher(self, key: bytes, /) -> Any:
        """What ``seal`` and ``open`` want of a key of 32 bytes."""

    def seal(
        self,
        cipher: Any,
        place: bytes,
        head: bytes,
        leaf_block: bytes,
        key_block: bytes,
        depth: int,
        frames: list[Frame],
        /,
    ) -> tuple[bytearray, list[Span], bytes]:
        """Lay out a round's datagrams, encrypt and pre-sign their packets.

        ``head`` is the round head of each.  The datagrams, the groups in which they are
        sent, and the roots for the S1, NODE_SIZE bytes each.
        """

    def check(
        self,
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
        """Judge what at the head of ``view`` begins with ``head``, ``stride`` apart.

        A datagram has at least ``least`` bytes behind its branch.  Of each that is one
        there is a verdict: FORGED, PROMISED or, if it is the next in the round and in
        its keystream after one that was promised, FOLLOWS.
        """

    def open(
        self,
        cipher: Any,
        place: bytes,
        offset: int,
        view: Buffer,
        stride: int,
        size: int,
        most_packets: int,
        most_bytes: int,
        /,
    ) -> list[Joined]:
        """Decrypt packets, ``stride`` bytes apart, and join them to frames.

        The first one's head begins with ``view``, at ``offset`` in the round's
        keystream; each has ``size`` bytes with its head, but the last may be shorter.
        Datagrams of a flow are joined up to the two limits, segments all.  Nothing that
        is inside of them was checked: they are as the peer wants them.
        """
