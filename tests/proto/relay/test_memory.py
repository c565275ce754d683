"""What a relay says it holds is what it holds, and no more than it may."""

from random import Random

from attrs import evolve

from alpha_trio.proto.handshake.exchange import HalfOpen, Initiation
from alpha_trio.proto.messages import (
    HALF_OPEN_LIFETIME,
    SUITE_ALPHA,
    parse_ack_untrusted,
)
from alpha_trio.proto.primitives import Identity
from tests.proto.ends import HERE, changed
from tests.proto.routed import STRICT, Path


def test_what_is_freed_by_an_s2_that_does_not_pass_is_counted():
    path = Path()
    path.introduce()
    s1, a1, s2s = path.opened()
    assert len(path.to_two(s1, changed(s1, 41))) == 2  # of which one is forgotten
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2s[0][:40]) == []  # its key is right; the sums are looked at
    assert path.to_two(*s2s) == s2s


def asked(path, seed, answers):
    """SYN of somebody, and ACKs of as many others to it."""
    random = Random(seed).randbytes
    one, *others = (Identity(random(32)) for _ in range(answers + 1))
    asking = Initiation.begin(one, SUITE_ALPHA, seed, random, path.now)
    path.to_two(asking.syn.pack())
    for number, other in enumerate(others):
        place = 100 * seed + number, random, HERE, b"", path.now
        answer = HalfOpen.answer(asking.syn, other, *place)
        ack = answer.ack.pack()
        assert parse_ack_untrusted(ack).receiver_id == seed
        assert path.to_one(ack) == [ack]


def test_several_answers_to_each_of_some_syns_take_no_more_than_their_share():
    path = Path(policy=evolve(STRICT, memory=256 << 10))
    for seed in range(1, 17):
        asked(path, seed, 4)
    assert path.relay._handshakes.memory <= path.policy.memory // 4
    assert len(path.relay._handshakes.asked) > 1


def test_a_handshake_makes_the_relay_keep_to_its_memory_like_all_else():
    path = Path(policy=evolve(STRICT, memory=48 << 10))
    path.introduce()
    for seed in range(1, 9):  # as many sessions as there is room for
        setting = {"seed": seed, "ids": (10 * seed, 10 * seed + 1), "now": path.now}
        Path(policy=path.policy, watched=path.watched, **setting).introduce()
        path.now += HALF_OPEN_LIFETIME + 1
        path.relay.forget_idle(path.now)
    assert path.relay.memory > 3 * path.policy.memory // 4
    for seed in range(50, 53):
        asked(path, seed, 1)
        assert path.relay.memory <= path.policy.memory
