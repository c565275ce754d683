"""What somebody on a link can make of what he saw there, without any key.

Each function makes one datagram that its direction's receiver or a relay must refuse,
of what was seen in that direction; see ``Forgery`` in attacker.py.

A relay can tell every one of TELLABLE and lets none of them pass.  UNTELLABLE are
those of which it cannot: it may let some of them pass, but none of them leads to
the delivery of anything.  docs/relay.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from struct import Struct

from attrs import evolve

from alpha_trio.proto.messages import (
    A1_SIZE,
    CONTROL,
    EARLY_ROUND,
    HEADER_SIZE,
    KEY_SIZE,
    MAC_SIZE,
    NODE_SIZE,
    NONCE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    SIGNATURE_SIZE,
    TAG_SIZE,
    VERSION,
    Kind,
    Syn,
)
from alpha_trio.proto.messages.handshake import ANCHOR_SIZE
from alpha_trio.proto.primitives import Guard
from tools.attacker import Forgery, Sight

_LONGEST = 1500 - 20 - 8  # bytes of a datagram that a link takes
_ELEMENT_SIZE = 16
_CONTROL_MESSAGE = Struct("!BxH 16s")
_OPEN, _CLOSE = 1, 3
_SHAPE_AT = HEADER_SIZE + 2  # byte of a round head
_ID = slice(4, HEADER_SIZE)
_IDENTITY = slice(32, 64)  # in a SYN
_PLACE = slice(HEADER_SIZE, 16)  # association, shape and number of a round


# -- packets --------------------------------------------------------------------------


def forged_s2(sight: Sight, dice: Random, _number: int) -> bytes:
    """Another packet in a round whose key is out."""
    s2 = sight.latest(Kind.S2)
    return s2[:ROUND_HEAD_SIZE] + dice.randbytes(len(s2) - ROUND_HEAD_SIZE)


def altered_s2(sight: Sight, dice: Random, number: int) -> bytes:
    """An S2 with one byte changed, at each place in turn."""
    return altered(sight.latest(Kind.S2), number, dice)


def replayed_s2(sight: Sight, dice: Random, _number: int) -> bytes:
    """An S2 as it was, of this round or of earlier ones."""
    return sight.any(Kind.S2, dice)


def early_s2(sight: Sight, dice: Random, _number: int) -> bytes:
    """An S2 for the newest S1, whether or not its A1 has come: the key is a guess."""
    s1, s2 = sight.latest(Kind.S1), sight.latest(Kind.S2)
    head = bytes([Kind.S2]) + s1[1 : ROUND_HEAD_SIZE - _ELEMENT_SIZE]
    return head + dice.randbytes(_ELEMENT_SIZE) + s2[ROUND_HEAD_SIZE:]


def s2_without_s1(sight: Sight, dice: Random, number: int) -> bytes:
    """An S2 of a round that nobody has announced."""
    return _of_later_round(sight.latest(Kind.S2), 1 + number % 50, dice)


def s2_of_nobody(sight: Sight, dice: Random, _number: int) -> bytes:
    """An S2 of a session that does not exist."""
    return _with_id(sight.latest(Kind.S2), dice)


def close_in_data(sight: Sight, _dice: Random, _number: int) -> bytes:
    """CLOSE, under a data round's key."""
    return _control(sight.latest(Kind.S2), _CONTROL_MESSAGE.pack(_CLOSE, 0, b""))


def open_in_control(sight: Sight, dice: Random, number: int) -> bytes:
    """OPEN with anchors of his own, under the key of a control round."""
    anchor = dice.randbytes(ANCHOR_SIZE)
    message = _CONTROL_MESSAGE.pack(_OPEN, number & 0xFFFF, anchor)
    return _control(sight.latest(Kind.S2 | CONTROL), message)


# -- agreements -----------------------------------------------------------------------


def s1_of_later_round(sight: Sight, dice: Random, number: int) -> bytes:
    """An S1 of a round to come, with an element that nobody made."""
    return _of_later_round(sight.latest(Kind.S1), 1 + number % 60, dice)


def s1_after_its_key(sight: Sight, dice: Random, _number: int) -> bytes:
    """Another S1 for a round whose key is out, which fits packets he could make."""
    s2 = sight.latest(Kind.S2)
    place = s2[_PLACE]
    s1 = next(s1 for s1 in [*sight.all(Kind.S1), b""] if s1[_PLACE] in (place, b""))
    if not s1:
        raise LookupError
    return s1[:S1_FIXED_SIZE] + dice.randbytes(len(s1) - S1_FIXED_SIZE)


def s1_of_nobody(sight: Sight, dice: Random, _number: int) -> bytes:
    """An S1 of a session that does not exist."""
    return _with_id(sight.latest(Kind.S1), dice)


def spoofed_a1(sight: Sight, dice: Random, number: int) -> bytes:
    """An A1 that agrees to the next rounds, with an element that nobody made."""
    return _of_later_round(sight.latest(Kind.A1), number % 4, dice)


def altered_a1(sight: Sight, dice: Random, number: int) -> bytes:
    """An A1 with one byte changed before the tag, at each place in turn."""
    a1 = sight.latest(Kind.A1)
    kept = A1_SIZE - TAG_SIZE
    return altered(a1[:kept], number, dice) + a1[kept:]


def spoofed_a2(sight: Sight, dice: Random, _number: int) -> bytes:
    """A verdict on packets, with elements and openings that nobody made."""
    a1 = sight.latest(Kind.A1 | CONTROL)
    head = bytes([Kind.A2]) + a1[1 : ROUND_HEAD_SIZE - _ELEMENT_SIZE]
    return head + dice.randbytes(_ELEMENT_SIZE + 20 + 16 + TAG_SIZE)


# -- handshakes, and what is no message -----------------------------------------------


def unsigned_ack(sight: Sight, dice: Random, number: int) -> bytes:
    """The ACK with its signature changed."""
    return unsigned(sight.latest(Kind.ACK), number, dice)


def unsigned_ackack(sight: Sight, dice: Random, number: int) -> bytes:
    """The ACKACK with its signature changed."""
    return unsigned(sight.latest(Kind.ACKACK), number, dice)


def wrong_length(sight: Sight, dice: Random, _number: int) -> bytes:
    """A message that is too short or too long."""
    kinds = Kind.SYN, Kind.ACK, Kind.S1, Kind.A1, Kind.S2
    found = sight.any(dice.choice(kinds), dice)
    if found[0] == Kind.S1 and found[_SHAPE_AT] & EARLY_ROUND:
        # Early data may have any length: only its tag, or its key, tells.
        found = found[: S1_FIXED_SIZE + NODE_SIZE]
    more = dice.choice((1, 3, 8, 16))
    whole = len(found) != S1_FIXED_SIZE + NODE_SIZE
    if whole and dice.random() < 0.2 and len(found) + more <= _LONGEST:
        return found + dice.randbytes(more)
    # Never to nothing: what is empty is no message, and is not seen on a link.
    return found[: -dice.randrange(1, min(41, len(found)))]


def plain_data(sight: Sight, dice: Random, _number: int) -> bytes:
    """DATA of mode plain in a session that is not plain."""
    s2 = sight.latest(Kind.S2)
    return bytes([Kind.DATA]) + s2[1:HEADER_SIZE] + dice.randbytes(100)


def noise(_sight: Sight, dice: Random, _number: int) -> bytes:
    """Random bytes that begin like a message."""
    head = bytes([dice.randrange(12), VERSION, 0, 0])
    return head + dice.randbytes(dice.randrange(1, 400))


TELLABLE: Mapping[str, Forgery] = {
    "forged S2": forged_s2,
    "altered S2": altered_s2,
    "replayed S2": replayed_s2,
    "S2 before its A1": early_s2,
    "S2 without S1": s2_without_s1,
    "S2 of nobody": s2_of_nobody,
    "CLOSE in data": close_in_data,
    "OPEN in control": open_in_control,
    "S1 of later round": s1_of_later_round,
    "S1 after its key": s1_after_its_key,
    "S1 of nobody": s1_of_nobody,
    "spoofed A1": spoofed_a1,
    "altered A1": altered_a1,
    "spoofed A2": spoofed_a2,
    "unsigned ACK": unsigned_ack,
    "unsigned ACKACK": unsigned_ackack,
    "wrong length": wrong_length,
    "plain DATA": plain_data,
    "noise": noise,
}


# -- what relays cannot tell ----------------------------------------------------------


def copied_s1(sight: Sight, _dice: Random, _number: int) -> bytes:
    """The newest S1 as it was: its sender would repeat it just so."""
    return sight.latest(Kind.S1)


def altered_s1(sight: Sight, dice: Random, _number: int) -> bytes:
    """The newest S1 with other roots and tag."""
    s1 = sight.latest(Kind.S1)
    return s1[:S1_FIXED_SIZE] + dice.randbytes(len(s1) - S1_FIXED_SIZE)


def copied_a1(sight: Sight, _dice: Random, _number: int) -> bytes:
    """The newest A1 as it was."""
    return sight.latest(Kind.A1)


def retagged_a1(sight: Sight, dice: Random, _number: int) -> bytes:
    """The newest A1 with another tag."""
    return sight.latest(Kind.A1)[:-TAG_SIZE] + dice.randbytes(TAG_SIZE)


def copied_control(sight: Sight, dice: Random, _number: int) -> bytes:
    """An S2 of a reliable round as it was: its sender would repeat it just so."""
    return sight.any(Kind.S2 | CONTROL, dice)


def copied_handshake(sight: Sight, dice: Random, _number: int) -> bytes:
    """A message of the handshake as it was."""
    kinds = [k for k in (Kind.SYN, Kind.ACK, Kind.ACKACK) if sight.all(k)]
    return sight.any(dice.choice(kinds), dice) if kinds else sight.latest(Kind.SYN)


def syn_of_stranger(_sight: Sight, dice: Random, _number: int) -> bytes:
    """A SYN of somebody new.  Nothing can be known of it."""
    return forged_syn(dice.randbytes(KEY_SIZE), dice)


def syn_of_peer(sight: Sight, dice: Random, _number: int) -> bytes:
    """A SYN in the name of who sends here, who is asked for no proof in it."""
    return forged_syn(sight.latest(Kind.SYN)[_IDENTITY], dice)


UNTELLABLE: Mapping[str, Forgery] = {
    "copied S1": copied_s1,
    "altered S1": altered_s1,
    "copied A1": copied_a1,
    "A1 with another tag": retagged_a1,
    "copied control S2": copied_control,
    "copied handshake": copied_handshake,
    "SYN of a stranger": syn_of_stranger,
    "SYN of the peer": syn_of_peer,
}


def altered(datagram: bytes, place: int, dice: Random) -> bytes:
    """A datagram with one byte changed, counted from its start, and over again."""
    at = place % len(datagram)
    changed = datagram[at] ^ dice.randrange(1, 256)
    return datagram[:at] + bytes([changed]) + datagram[at + 1 :]


def unsigned(message: bytes, number: int, dice: Random) -> bytes:
    """An ACK or ACKACK with one byte of its signature changed."""
    end = len(message) - MAC_SIZE
    start = end - SIGNATURE_SIZE
    signature = altered(message[start:end], number, dice)
    return message[:start] + signature + message[end:]


def forged_syn(identity: bytes, dice: Random, asked: bytes = bytes(KEY_SIZE)) -> bytes:
    """Well formed, from somebody who does not have the key of ``identity``.

    ``asked``: the key of who is to answer; without, as at first contact, what anybody
    can make.
    """
    anchors = dice.randbytes(ANCHOR_SIZE), dice.randbytes(ANCHOR_SIZE)
    nonce, share = dice.randbytes(NONCE_SIZE), dice.randbytes(KEY_SIZE)
    syn = Syn(dice.randrange(1, 1 << 32), nonce, identity, share, *anchors)
    return evolve(syn, mac=Guard(asked, None).mac(syn.guarded())).pack()


# -- parts ----------------------------------------------------------------------------


def _with_id(datagram: bytes, dice: Random) -> bytes:
    return datagram[: _ID.start] + dice.randbytes(4) + datagram[_ID.stop :]


def _of_later_round(datagram: bytes, ahead: int, dice: Random) -> bytes:
    fields = ROUND.unpack_from(datagram, HEADER_SIZE)
    association, shape, zero, number, _ = fields
    element = dice.randbytes(_ELEMENT_SIZE)
    number = (number + ahead) & 0xFFFFFFFF
    head = datagram[:HEADER_SIZE] + ROUND.pack(
        association, shape, zero, number, element
    )
    return head + datagram[ROUND_HEAD_SIZE:]


def _control(s2: bytes, message: bytes) -> bytes:
    """A control message under the key of a round."""
    shape = bytes([RELIABLE | CONTROL])
    head = s2[: HEADER_SIZE + 2] + shape + s2[HEADER_SIZE + 3 : ROUND_HEAD_SIZE]
    return head + bytes(8) + message
