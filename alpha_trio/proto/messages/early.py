"""Early data: packets that travel inside an S1, one after the other with their lengths.

    +-----------------+---------------------------------+-----------------+
    | length, 2 bytes | frame word, headers and segment | length ...      |
    +-----------------+---------------------------------+-----------------+

Big-endian; a length is that of all up to the next one, the frame word's 8 bytes among
it.  On the wire all of it is encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from attrs import define

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages.data import NODE_SIZE, S1_FIXED_SIZE
from alpha_trio.proto.messages.header import BadPacket

EARLY_LENGTH = Struct("!H")
_HEADS = Struct("!HQ")  # length, frame word


def join_early(bodies: Iterable[bytes]) -> bytes:
    """Early data of packets, each with its frame word in front."""
    return b"".join([EARLY_LENGTH.pack(len(body)) + body for body in bodies])


def early_of(message: Buffer) -> Buffer:
    """The early data of an S1 without its tag, encrypted."""
    return message[S1_FIXED_SIZE + NODE_SIZE :]


@define(eq=False)
class Pieces:
    """Inner packets, or segments of them, of any sizes."""

    packets: list[memoryview]

    def __getitem__(self, index: int) -> memoryview:
        """The one with this number."""
        return self.packets[index]

    def tails(self, first: int, until: int, skip: int) -> list[Buffer]:
        """Those from ``first`` to before ``until``, without ``skip`` bytes each."""
        return [packet[skip:] for packet in self.packets[first:until]]


def take_early_untrusted(text: memoryview) -> tuple[tuple[int, ...], Pieces]:
    """Frame words and packets of early data.  Raises BadPacket if it is cut short."""
    words: list[int] = []
    packets: list[memoryview] = []
    at, end = 0, len(text)
    while at < end:  # hot path
        body = at + _HEADS.size
        if body >= end:
            raise BadPacket
        size, word = _HEADS.unpack_from(text, at)
        at += EARLY_LENGTH.size + size
        if at <= body or at > end:
            raise BadPacket
        words.append(word)
        packets.append(text[body:at])
    return tuple(words), Pieces(packets)
