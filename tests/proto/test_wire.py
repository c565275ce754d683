from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto import wire
from alpha_trio.proto.wire import Ack, AckAck, BadPacket, Syn

IDS = st.integers(1, 2**32 - 1)
SYNS = st.builds(Syn, IDS, st.binary(min_size=16, max_size=16))
PROOFS = st.binary(min_size=32, max_size=32)
ACKS = st.builds(Ack, IDS, IDS, st.binary(min_size=16, max_size=16), PROOFS)
ACKACKS = st.builds(AckAck, IDS, PROOFS)

PARSERS = {
    Syn: wire.parse_syn_untrusted,
    Ack: wire.parse_ack_untrusted,
    AckAck: wire.parse_ackack_untrusted,
}
EXAMPLES = [
    Syn(1, bytes(16)),
    Ack(1, 2, bytes(16), bytes(32)),
    AckAck(1, bytes(32)),
]

fixed = settings(deadline=None, derandomize=True)


@fixed
@given(SYNS | ACKS | ACKACKS)
def test_messages_survive_the_wire(message):
    assert PARSERS[type(message)](message.pack()) == message


@pytest.mark.parametrize("message", EXAMPLES)
def test_a_message_of_another_length_is_refused(message):
    packed, parse = message.pack(), PARSERS[type(message)]
    for wrong in (b"", packed[:-1], packed + b"\0"):
        with pytest.raises(BadPacket):
            parse(wrong)


@pytest.mark.parametrize("message", EXAMPLES)
def test_a_suite_we_do_not_speak_is_refused(message):
    packed = bytearray(message.pack())
    packed[2:4] = b"\xff\xff"
    with pytest.raises(BadPacket):
        PARSERS[type(message)](packed)


@pytest.mark.parametrize(
    "message", [Syn(0, bytes(16)), Ack(1, 0, bytes(16), bytes(32))]
)
def test_the_sender_must_say_where_to_answer(message):
    with pytest.raises(BadPacket):
        PARSERS[type(message)](message.pack())


def test_a_syn_is_for_no_connection():
    packed = bytearray(Syn(1, bytes(16)).pack())
    packed[7] = 1
    with pytest.raises(BadPacket):
        wire.parse_syn_untrusted(packed)


@fixed
@given(st.binary(max_size=80) | st.binary(min_size=64, max_size=64))
def test_random_bytes_raise_only_bad_packet(datagram):
    for parse in PARSERS.values():
        with suppress(BadPacket):
            parse(datagram)


def test_no_answer_is_larger_than_its_question():
    assert wire.ACK_SIZE <= wire.SYN_SIZE
    assert wire.ACKACK_SIZE <= wire.ACK_SIZE


def test_the_data_word_is_how_a_data_datagram_begins():
    datagram = wire.DATA.pack(wire.data_word(0x01020304), 9)
    kind, version, suite, receiver_id = wire.HEADER.unpack_from(datagram)
    assert (kind, version, suite) == (wire.Kind.DATA, wire.VERSION, 0)
    assert receiver_id == 0x01020304
