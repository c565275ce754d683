"""What somebody on the path may try at a relay, and what becomes of it.

Of S1, A1 and A2 a relay cannot check the tag, of an S1 nothing but element and round:
such a message may pass altered.  Then the end refuses it, and the round still comes
about; what never happens is that an altered packet passes.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.messages import CONTROL_MESSAGE, ROUND_HEAD_SIZE, Control, Kind
from alpha_trio.proto.primitives.chain import MAX_SKIP
from alpha_trio.proto.relay import RelayPolicy, Unseen
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.watched import REPEAT_AFTER, REPEAT_FOR, S2S_AT_ONCE
from alpha_trio.proto.transport.sender import RELIABLE_LIFETIME
from tests.proto.ends import HERE, THERE, batch, changed, of_kind, packets_of
from tests.proto.routed import STRICT, Path, relay_of

MODES = ("n", "c", "m", "cm")
LENIENT = RelayPolicy(Unseen.DROP, require_a1=False)
TAG = 16


def introduced(mode: str = "c", **settings) -> Path:
    path = Path(mode, **settings)
    path.introduce()
    return path


@pytest.mark.parametrize("mode", MODES)
def test_a_round_passes(mode):
    path = introduced(mode)
    assert path.carry() == packets_of(batch(mode))
    assert path.drops == {}


# -- S2


@pytest.mark.parametrize("mode", MODES)
def test_no_altered_s2_passes_whatever_byte_it_is(mode):
    path = introduced(mode)
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    for at in range(len(s2s[0])):
        assert path.to_two(changed(s2s[0], at)) == []
    assert path.to_two(*s2s) == s2s


@pytest.mark.parametrize("mode", ["m", "cm"])
def test_no_altered_s2_passes_after_others_of_its_tree(mode):
    path = introduced(mode)
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(s2s[0]) == [s2s[0]]
    for at in range(len(s2s[1])):
        assert path.to_two(changed(s2s[1], at)) == []
    assert path.to_two(*s2s[1:]) == s2s[1:]


def test_an_s2_in_a_batch_is_judged_alone():
    path = introduced("c")
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    run = [*s2s[:2], changed(s2s[2], 60), *s2s[2:4], s2s[1], *s2s[4:]]
    assert len({len(s2) for s2 in run}) == 2  # only the last is shorter
    assert path.to_two(b"".join(run), stride=len(s2s[0])) == s2s
    assert path.drops == {RelayDrop.FORGED: 1, RelayDrop.REPLAYED: 1}


def test_an_s2_passes_after_the_a1_only():
    path = introduced()
    s1, a1, s2s = path.opened()
    assert path.to_two(s2s[0]) == []
    path.to_two(s1)
    assert path.to_two(s2s[0]) == []
    assert path.drops == {RelayDrop.UNSOLICITED: 2}
    path.to_one(a1)
    assert path.to_two(*s2s) == s2s


@pytest.mark.parametrize("mode", MODES)
def test_each_packet_passes_once(mode):
    path = introduced(mode)
    path.carry()
    s2s = of_kind(Kind.S2, path.watched.passed)
    assert path.to_two(*s2s) == []
    path.carry()
    assert path.to_two(*s2s) == []  # of the round before
    path.carry()
    assert path.to_two(*s2s) == []
    assert set(path.drops) <= {RelayDrop.REPLAYED, RelayDrop.UNSOLICITED}


def test_what_the_next_round_overtakes_still_passes():
    path = introduced()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    path.carry()
    assert path.to_two(*s2s) == s2s


# -- S1 and A1


@pytest.mark.parametrize("kind", [Kind.S1, Kind.A1])
def test_whatever_byte_of_s1_or_a1_is_altered_the_round_comes_about(kind):
    """The altered one comes first, and the genuine one as a repetition."""
    told_apart = 0
    for at in range(72):
        path = introduced()
        s1, a1, s2s = path.opened()
        for genuine, send in ((s1, path.to_two), (a1, path.to_one)):
            if genuine[0] == kind:
                told_apart += not send(changed(genuine, at))
                path.now += 2 * REPEAT_AFTER
            assert send(genuine) == [genuine]
        assert path.to_two(*s2s) == s2s
    # Of an S1 header, association, round and element must be right; the shape, too,
    # must fit the counts.  Of an A1 nothing but the tag could be anything.
    assert told_apart >= (8 + 2 + 4 + 16 if kind == Kind.S1 else 64)


def test_of_two_s1s_the_one_the_receiver_agreed_to_counts():
    path = introduced()
    s1, a1, s2s = path.opened()
    forged = changed(s1, ROUND_HEAD_SIZE + 8 + 3)  # in a root
    assert path.to_two(forged, forged) == [forged]
    assert path.to_two(s1, s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(changed(s1, 50)) == []  # none since the A1
    assert path.to_two(*s2s) == s2s


def test_after_the_a1_no_other_s1_counts():
    path = introduced()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    path.now += 1
    assert path.to_two(changed(s1, 50)) == []
    assert path.to_two(s1) == [s1]
    assert path.to_two(*s2s) == s2s


def test_an_a1_of_another_round_agrees_to_nothing():
    path, other = introduced(), introduced(seed=1)
    s1, _, s2s = path.opened()
    path.to_two(s1)
    assert path.to_one(other.opened()[1]) == []
    path.to_one(changed(head_of_a1(path, s1), 20))
    assert path.to_two(*s2s) == []


def head_of_a1(path: Path, s1: bytes) -> bytes:
    """An A1 with everything right but what only the receiver knows."""
    element = bytes(16)
    return (
        bytes([Kind.A1])
        + s1[1:4]
        + bytes([0, 0, 0, 1])
        + s1[8:16]
        + element
        + bytes(40)
    )


def test_repetitions_of_s1_and_a1_pass_now_and_then_until_the_key_is_out():
    path = introduced()
    s1, a1, s2s = path.opened()
    for datagram, send in ((s1, path.to_two), (a1, path.to_one)):
        assert send(datagram, datagram) == [datagram]
        path.now += REPEAT_AFTER
        assert send(datagram) == [datagram]
        path.now += REPEAT_AFTER
        retagged = changed(datagram, len(datagram) - 1)
        assert send(retagged, datagram, retagged) == [retagged, datagram]
    path.to_two(*s2s)
    path.now += 1
    assert path.to_two(s1) == path.to_one(a1) == []
    assert set(path.drops) == {RelayDrop.REPLAYED}


@pytest.mark.parametrize("kind", [Kind.S1, Kind.A1])
def test_repetitions_end_when_no_end_repeats_any_more(kind):
    path = introduced()
    s1, a1, _ = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    datagram, send = (s1, path.to_two) if kind == Kind.S1 else (a1, path.to_one)
    for _ in range(500):
        path.now += REPEAT_AFTER
        assert send(datagram) == [datagram]
    path.now += RELIABLE_LIFETIME  # an end gives up by then
    assert send(datagram) == [datagram]
    path.now += REPEAT_FOR
    assert send(datagram) == []


def test_s1s_of_rounds_that_were_are_refused():
    path = introduced()
    old = [path.opened()[0] for _ in range(3)]
    path.to_two(old[2])
    assert path.to_two(*old) == []
    assert path.drops == {RelayDrop.REPLAYED: 3}


def test_forged_s1s_cost_hashes_at_a_bounded_rate():
    path = introduced()
    s1 = path.opened()[0]
    far = s1[:12] + (20).to_bytes(4) + s1[16:]
    assert path.to_two(*[far] * 1000) == []
    assert path.drops[RelayDrop.S1_RATE] > 800
    assert path.to_two(s1) == [s1]  # near ones do not suffer


def test_more_s1s_than_a_session_may_send_are_dropped():
    path = introduced(policy=RelayPolicy(Unseen.DROP, s1_rate=1.0))
    for number in range(100):
        s1, a1, _ = path.opened()
        assert path.to_two(s1) == ([s1] if number < 64 else [])
        assert path.to_one(a1) == ([a1] if number < 64 else [])
    path.now += 1
    assert path.drops == {RelayDrop.S1_RATE: 36, RelayDrop.BAD_ROUND: 36}
    s1, a1, s2s = path.opened()
    assert path.to_two(s1) == [s1]  # although so many were missed
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s


def test_a_session_whose_rounds_were_missed_for_too_long_is_lost():
    path = introduced()
    for _ in range(MAX_SKIP // 2):
        path.opened()
    assert path.to_two(path.opened()[0]) == []
    assert path.drops == {RelayDrop.BAD_ROUND: 1}


# -- control messages and A2


def test_open_and_accept_make_an_association_and_close_ends_it():
    path = introduced()
    message = CONTROL_MESSAGE.pack(Control.OPEN, 1, bytes(16))
    s1, a1, s2, a2 = path.control(message)
    to_two = path.relay.sessions(path.now)[0].responder
    assert to_two.associations == 1
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(changed(s2, 45)) == []  # spoofed
    assert path.relay.sessions(path.now)[0].responder.associations == 1
    assert path.to_two(s2) == [s2]
    assert path.relay.sessions(path.now)[0].responder.associations == 2
    assert path.to_one(a2) == [a2]
    close = path.control(CONTROL_MESSAGE.pack(Control.CLOSE, 1, bytes(16)))
    path.to_two(close[0])
    path.to_one(close[1])
    path.to_two(close[2])
    assert path.relay.sessions(path.now)[0].responder.associations == 1


def test_no_altered_a2_passes_but_for_its_tag():
    path = introduced()
    s1, a1, s2, a2 = path.control(CONTROL_MESSAGE.pack(Control.CLOSE, 9, bytes(16)))
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_one(a2) == []  # about what never passed
    path.to_two(s2)
    for at in range(len(a2) - TAG):
        assert path.to_one(changed(a2, at)) == []
    altered = changed(a2, len(a2) - 1)
    assert path.to_one(altered) == [altered]
    assert path.to_one(a2) == [a2]


def test_an_a2_about_many_packets_is_checked_opening_by_opening():
    path = introduced("m")
    path.one.sender.reliable = True
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*s2s[:-1]) == s2s[:-1]
    (early,) = path.two.take(b"".join(s2s[:2]), stride=len(s2s[0]), now=path.now)
    for at in range(len(early) - TAG):
        assert path.to_one(changed(early, at)) == []
    assert path.to_one(early) == [early]
    (late,) = path.two.take(s2s[-1], now=path.now)
    assert path.to_one(late) == []  # about what did not pass
    assert path.to_two(*s2s) == s2s  # some of them again, since an A2 may be lost
    path.now += REPEAT_AFTER
    assert path.to_one(late, early) == [late, early]


def test_the_root_of_an_a1_that_no_a2_opens_counts_for_nothing():
    path = introduced()
    s1, a1, s2, a2 = path.control(CONTROL_MESSAGE.pack(Control.CLOSE, 9, bytes(16)))
    path.to_two(s1)
    forged = changed(a1, ROUND_HEAD_SIZE + 16)
    assert path.to_one(forged) == [forged]
    path.now += REPEAT_AFTER
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2) == [s2]
    assert path.to_one(a2) == [a2]


def test_a_control_message_may_be_repeated_now_and_then():
    path = introduced()
    s1, a1, s2, a2 = path.control(CONTROL_MESSAGE.pack(Control.OPEN, 1, bytes(16)))
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*[s2] * 100) == [s2] * (1 + S2S_AT_ONCE)
    assert path.to_one(*[a2] * 100) == [a2]
    for _ in range(300):  # more than once were counted
        path.now += REPEAT_AFTER
        assert path.to_two(s2, s2) == [s2]
        assert path.to_one(a2, a2) == [a2]
    path.now += REPEAT_FOR
    assert path.to_two(s2) == path.to_one(a2) == []
    assert path.relay.sessions(path.now)[0].responder.associations == 2


def test_associations_are_bounded():
    path = introduced()
    for number in range(1, 100):
        message = CONTROL_MESSAGE.pack(Control.OPEN, number, bytes(16))
        s1, a1, s2, _ = path.control(message)
        path.to_two(s1)
        path.to_one(a1)
        assert path.to_two(s2) == [s2]
    assert path.relay.sessions(path.now)[0].responder.associations == 64


# -- lengths and rubbish


def test_wrong_lengths_do_not_pass():
    path = introduced()
    s1, a1, s2s = path.opened()
    for size in [*range(len(s1) - TAG), len(s1) - 1, len(s1) + 1]:
        message = (s1 + bytes(9))[:size] if size else b"\x05"
        assert path.to_two(message) in ([], [message])
    path = introduced()
    path.to_two(s1)
    for size in [*range(1, len(a1)), len(a1) + 1]:
        assert path.to_one((a1 + bytes(9))[:size]) == []
    path.to_one(a1)
    for size in [*range(1, len(s2s[0])), len(s2s[0]) + 1]:
        assert path.to_two((s2s[0] + bytes(9))[:size]) == []
    assert path.to_two(*s2s) == s2s
    for message in (path.syn, path.ack, path.ackack):
        for size in range(1, len(message)):
            assert path.to_two(message[:size]) == []


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.data())
def test_nothing_that_bytes_can_be_raises(data):
    for policy in (STRICT, LENIENT, RelayPolicy(roots=5)):
        path = introduced(policy=policy)
        s1, a1, s2s = path.opened()
        control = path.control(CONTROL_MESSAGE.pack(Control.OPEN, 1, bytes(16)))
        genuine = [path.syn, path.ack, path.ackack, s1, a1, *s2s, *control]
        for _ in range(10):
            message = bytearray(data.draw(st.sampled_from(genuine)))
            for _ in range(data.draw(st.integers(0, 3))):
                message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(
                    st.integers(0, 255)
                )
            tail = data.draw(st.binary(max_size=40))
            send = path.to_one if data.draw(st.booleans()) else path.to_two
            stride = data.draw(st.integers(1, len(message)))
            send(bytes(message) + tail, stride=stride)
            send(tail)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 9), st.booleans())
def test_no_random_bytes_raise(tail, kind, lenient):
    relay = relay_of(LENIENT if lenient else STRICT)
    for head_ in (bytes([kind, 1, 0, 0]), bytes([kind, 1, 0, 1]), b""):
        view = memoryview(bytearray(head_ + tail))
        relay.transit(view, len(view), Crossing(HERE, THERE), 1.0)
