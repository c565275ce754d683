"""What every datagram begins with, and how the kinds of them are told apart.

All integers are big-endian.  The first eight bytes are::

     0               1               2               3
     0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
    +---------------+---------------+-------------------------------+
    |     kind      |    version    |             suite             |
    +---------------+---------------+-------------------------------+
    |                     receiver's connection id                  |
    +---------------------------------------------------------------+

The connection id is chosen by the receiver, so that it finds its session without
looking at addresses; it is zero in a SYN, which has no session yet.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

VERSION = 1

SUITE_ALPHA = 1
"""ALPHA: SHA-256 cut to 16 bytes, Ed25519, X25519, HKDF-SHA-256, AES-256-CTR."""

SUITE_PLAIN = 2
"""The same handshake, but packets that are neither authenticated nor encrypted."""

SUITES = frozenset({SUITE_ALPHA, SUITE_PLAIN})


class BadPacket(Exception):
    """A datagram that is no message of ours.  The only error bytes can cause."""


class Kind(IntEnum):
    """First byte of every datagram."""

    SYN = 1
    ACK = 2
    ACKACK = 3
    DATA = 4
    S1 = 5
    A1 = 6
    S2 = 7
    A2 = 8
    COOKIE = 9
    REPORT = 10


HEADER = Struct("!BBHI")  # kind, version, suite, receiver's connection id
HEADER_SIZE = HEADER.size

ID_SIZE = 4
NONCE_SIZE = 16
KEY_SIZE = 32  # Ed25519 and X25519 public keys
SIGNATURE_SIZE = 64


def first_word(kind: Kind, receiver_id: int) -> int:
    """The first eight bytes of every ``kind`` datagram to ``receiver_id``, a word."""
    return int.from_bytes(HEADER.pack(kind, VERSION, 0, receiver_id))
