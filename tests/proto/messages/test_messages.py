from contextlib import suppress

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.messages import (
    Ack,
    AckAck,
    BadPacket,
    Cookie,
    Syn,
    data,
    handshake,
    header,
)

IDS = st.integers(1, 2**32 - 1)
SUITES = st.sampled_from(sorted(header.SUITES))


def _bytes(*sizes: int) -> list[st.SearchStrategy[bytes]]:
    return [st.binary(min_size=size, max_size=size) for size in sizes]


SYNS = st.builds(Syn, IDS, *_bytes(16, 32, 32, 16, 16, 16, 16, 16), SUITES)
ACKS = st.builds(Ack, IDS, IDS, *_bytes(16, 32, 32, 16, 16, 64, 16), SUITES)
ACKACKS = st.builds(AckAck, IDS, *_bytes(64, 16), SUITES)
COOKIES = st.builds(Cookie, IDS, *_bytes(16, 16, 16))

OFFER = bytes(16), bytes(32), bytes(32), bytes(16), bytes(16)
EXAMPLES = [
    Syn(1, *OFFER),
    Ack(1, 2, *OFFER),
    AckAck(1, bytes(64)),
    Cookie(1, bytes(16), bytes(16)),
]
PARSERS = {
    Syn: handshake.parse_syn_untrusted,
    Ack: handshake.parse_ack_untrusted,
    AckAck: handshake.parse_ackack_untrusted,
    Cookie: handshake.parse_cookie_untrusted,
}

fixed = settings(deadline=None, derandomize=True)


@fixed
@given(SYNS | ACKS | ACKACKS | COOKIES)
def test_messages_survive_the_wire(message):
    assert PARSERS[type(message)](message.pack()) == message


@pytest.mark.parametrize("message", EXAMPLES[:2])
def test_what_relays_say_is_read_but_part_of_nothing_compared_or_signed(message):
    """Limit and marks."""
    packed = bytearray(message.pack())
    assert packed[12:16] == bytes(4)
    packed[12:15] = b"\1\2\3"
    limited = PARSERS[type(message)](packed)
    assert (message.limit, limited.limit) == (0, 0x102)
    assert (message.marks, limited.marks) == (0, 3)
    assert limited == message
    assert limited.pack() == message.pack()


@pytest.mark.parametrize("message", EXAMPLES[:2])
def test_options_are_part_of_what_is_said(message):
    chosen = evolve(message, options=1)
    assert chosen != message
    assert PARSERS[type(message)](chosen.pack()) == chosen
    assert chosen.pack()[15] == 1


@pytest.mark.parametrize("message", EXAMPLES)
def test_a_message_of_another_length_is_refused(message):
    packed, parse = message.pack(), PARSERS[type(message)]
    for wrong in (b"", packed[:-1], packed + b"\0"):
        with pytest.raises(BadPacket):
            parse(wrong)


@pytest.mark.parametrize("message", EXAMPLES[:3])
def test_a_suite_we_do_not_speak_is_refused(message):
    packed = bytearray(message.pack())
    packed[2:4] = b"\xff\xff"
    with pytest.raises(BadPacket):
        PARSERS[type(message)](packed)


@pytest.mark.parametrize("message", [Syn(0, *OFFER), Ack(1, 0, *OFFER)])
def test_the_sender_must_say_where_to_answer(message):
    with pytest.raises(BadPacket):
        PARSERS[type(message)](message.pack())


def test_a_syn_is_for_no_connection():
    packed = bytearray(Syn(1, *OFFER).pack())
    packed[7] = 1
    with pytest.raises(BadPacket):
        handshake.parse_syn_untrusted(packed)


SIZES = [len(message.pack()) for message in EXAMPLES]


@fixed
@given(st.binary(max_size=300) | st.sampled_from(SIZES).flatmap(lambda n: _bytes(n)[0]))
def test_random_bytes_raise_only_bad_packet(datagram):
    for parse in PARSERS.values():
        with suppress(BadPacket):
            parse(datagram)


def test_no_answer_is_larger_than_its_question():
    syn, ack, ackack, cookie = SIZES
    assert max(ack, cookie) <= syn
    assert ackack <= ack


def test_the_data_word_is_how_a_data_datagram_begins():
    datagram = data.DATA.pack(data.data_word(0x01020304), 9)
    kind, version, suite, receiver_id = header.HEADER.unpack_from(datagram)
    assert (kind, version, suite) == (header.Kind.DATA, header.VERSION, 0)
    assert receiver_id == 0x01020304
