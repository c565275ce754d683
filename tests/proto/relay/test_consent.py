"""Who is asked answers: what one host alone says for both ends goes nowhere."""

from random import Random

import pytest
from attrs import evolve

from alpha_trio.proto.handshake.exchange import HalfOpen, Initiation
from alpha_trio.proto.messages import (
    CONTROL_MESSAGE,
    SUITE_ALPHA,
    Control,
    Cookie,
    Kind,
    parse_ack_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.relay import Consent, RelayPolicy, Unseen
from alpha_trio.proto.relay.verdict import RelayDrop
from tests.proto.ends import ELSEWHERE, HERE, THERE, batch, of_kind, packets_of
from tests.proto.routed import STRICT, Path, Routed

ADDRESS = evolve(STRICT, consent=Consent.ADDRESS)
ANY = evolve(STRICT, consent=Consent.ANY)
MALLORY, VICTIM = ("198.51.100.66", 1234), THERE


def introduced(**settings) -> Path:
    path = Path(**settings)
    path.introduce()
    return path


def played_by_one(path: Path, source=None, link=1) -> list[bytes]:
    """Both ends' datagrams, all sent to the victim; the S2s that pass."""

    def outside(*datagrams):
        return path.send(datagrams, source or path.addresses[0], VICTIM, 0, link)

    outside(path.syn)
    outside(path.ack)
    outside(path.ackack)
    passed = []
    for _ in range(5):
        s1, a1, s2s = path.opened()
        outside(s1)
        outside(a1)
        passed += outside(*s2s)
        path.two.take(*s2s, now=path.now)
        path.now += 0.02
    return passed


@pytest.mark.parametrize("source", [MALLORY, VICTIM])
def test_one_host_outside_cannot_play_both_ends(source):
    """With two keys of its own, in its own name or in the victim's."""
    path = Path(addresses=(MALLORY, VICTIM))
    assert played_by_one(path, source) == []
    assert RelayDrop.WRONG_SIDE in path.drops
    assert path.relay.sessions(path.now) == []
    assert {each[0] for each in path.watched.passed} == {Kind.SYN}


def test_without_rules_of_consent_one_host_plays_both_ends():
    """What the rule is for."""
    assert played_by_one(Path(policy=ANY, addresses=(MALLORY, VICTIM))) != []


def test_where_addresses_alone_count_who_forges_the_victims_plays_both_ends():
    path = Path(policy=ADDRESS, addresses=(MALLORY, VICTIM))
    assert played_by_one(path) == []
    path = Path(policy=ADDRESS, addresses=(MALLORY, VICTIM))
    path.to_two(path.syn)
    assert path.to_one(path.ack, link=1) == [path.ack]


def test_an_ack_comes_from_where_its_syn_went_and_not_with_it():
    path = Path()
    path.to_two(path.syn)
    assert path.to_one(path.ack, source=ELSEWHERE) == []
    assert path.to_one(path.ack, source=(THERE[0], 9)) == []
    assert path.to_one(path.ack, link=1) == []
    assert path.drops == {RelayDrop.WRONG_SIDE: 3}
    assert path.relay.counters.same_link == 1
    assert path.to_one(path.ack, to=ELSEWHERE) == [path.ack]  # who asked has moved
    assert path.to_two(path.ackack) == [path.ackack]


def test_a_cookie_comes_from_where_its_syn_went():
    path = Path()
    path.to_two(path.syn)
    syn = parse_syn_untrusted(path.syn)
    cookie = Cookie(syn.sender_id, syn.nonce, bytes(16)).pack()
    assert path.to_one(cookie, source=ELSEWHERE) == []
    assert path.to_one(cookie, link=1) == []
    assert path.to_one(cookie) == [cookie]


def test_an_a1_comes_from_where_its_s1_went():
    path = introduced()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    assert path.to_one(a1, source=ELSEWHERE) == path.to_one(a1, link=1) == []
    assert path.to_two(*s2s) == []
    assert path.drops == {RelayDrop.WRONG_SIDE: 2, RelayDrop.UNSOLICITED: len(s2s)}
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s


def test_an_s2_goes_to_where_its_a1_came_from():
    path = introduced()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*s2s, to=ELSEWHERE) == []
    assert path.drops == {RelayDrop.WRONG_SIDE: len(s2s)}
    assert path.to_two(*s2s, source=ELSEWHERE) == s2s  # who sends has moved


def test_where_a_receiver_was_before_gets_nothing_any_more():
    path = introduced()
    path.carry()
    path.now += 1
    s1, a1, s2s = path.opened()
    path.to_two(s1, to=ELSEWHERE)
    path.to_one(a1, source=ELSEWHERE)
    assert path.to_two(*s2s) == []
    assert path.to_two(*s2s, to=ELSEWHERE) == s2s


def test_a_receiver_that_moves_after_its_a1_is_followed_by_what_is_repeated():
    """Packets of a reliable round, once it has agreed to anything where it is now."""
    path = introduced()
    path.one.sender.reliable = True
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(*s2s, to=ELSEWHERE) == []
    assert path.relay._all()  # another round is agreed to, at the new place
    (end,) = {end for ends in path.relay._ends.values() for end in ends if end.id == 2}
    end.incoming.places[ELSEWHERE] = path.now
    assert path.to_two(*s2s, to=ELSEWHERE) == s2s


def test_an_a2_comes_from_where_its_s2s_went():
    path = introduced()
    s1, a1, s2, a2 = path.control(CONTROL_MESSAGE.pack(Control.CLOSE, 9, bytes(16)))
    path.to_two(s1)
    path.to_one(a1)
    path.to_two(s2)
    assert path.to_one(a2, source=ELSEWHERE) == path.to_one(a2, link=1) == []
    assert path.drops == {RelayDrop.WRONG_SIDE: 2}
    assert path.to_one(a2) == [a2]


def test_a_name_with_several_addresses_may_be_asked_at_each():
    path = Path()
    path.to_two(path.syn, to=ELSEWHERE)
    path.to_two(path.syn)
    assert path.to_one(path.ack) == [path.ack]
    path.now += 1
    assert path.to_one(path.ack, source=ELSEWHERE) == [path.ack]


def test_copies_of_a_question_sent_elsewhere_do_not_displace_where_it_went():
    """For good, that is: a repetition brings it back."""
    path = introduced()
    s1, a1, _ = path.opened()
    path.to_two(s1)
    for number in range(50):
        path.now += 0.01
        path.to_two(s1, to=(f"203.0.113.{number}", 1234))
    path.now += 0.01
    path.to_two(s1)
    assert path.to_one(a1) == [a1]


@pytest.mark.parametrize("listed", [False, True])
def test_one_key_at_both_ends_is_no_session(listed):
    random, me = Random(3).randbytes, Identity(bytes(range(32)))
    keys = frozenset({me.public}) if listed else frozenset()
    path = Path(policy=RelayPolicy(Unseen.DROP, keys=keys, consent=Consent.ANY))
    asking = Initiation.begin(me, SUITE_ALPHA, 11, random, path.now)
    answer = HalfOpen.answer(asking.syn, me, 12, random, HERE, b"", path.now)
    assert path.to_two(asking.syn.pack()) != []
    assert path.to_one(answer.ack.pack()) == []
    assert path.drops == {RelayDrop.WRONG_SIDE: 1}


@pytest.mark.parametrize("field", ["nonce", "signatures", "acknowledgments", "suite"])
def test_an_answer_that_no_end_takes_does_not_pass(field):
    """With a nonce or an anchor of the one who asked, or of another suite."""
    path = Path(policy=ANY)
    path.to_two(path.syn)
    syn, ack = parse_syn_untrusted(path.syn), parse_ack_untrusted(path.ack)
    value = 2 if field == "suite" else getattr(syn, field)
    changed = evolve(ack, **{field: value})
    signature = path.keys[1].sign(b"ACK", syn.said(), changed.unsigned())
    assert path.to_one(evolve(changed, signature=signature).pack()) == []
    assert path.to_one(path.ack) == [path.ack]


# -- both directions by one link, or by any


@pytest.mark.parametrize(
    ("policy", "passes"), [(STRICT, False), (ADDRESS, True), (ANY, True)]
)
def test_a_router_on_a_stick_is_told_so_by_its_operator(policy, passes):
    path = Path(policy=policy)
    path.to_two(path.syn)
    assert bool(path.to_one(path.ack, link=1)) is passes
    if passes:
        path.to_two(path.ackack)
        s1, a1, s2s = path.opened()
        path.to_two(s1)
        assert path.to_one(a1, link=1) == [a1]
        assert path.to_two(*s2s) == s2s


def test_where_no_link_is_known_addresses_count():
    path = Path()
    path.to_two(path.syn, link=0)
    assert path.to_one(path.ack, link=0) == [path.ack]
    path.to_two(path.ackack, link=0)
    s1, a1, s2s = path.opened()
    path.to_two(s1, link=0)
    assert path.to_one(a1, source=ELSEWHERE, link=0) == []
    assert path.to_one(a1, link=0) == [a1]
    assert path.to_two(*s2s, link=0) == s2s


# -- hosts that move, behind relays


@pytest.mark.parametrize("mover", ["vm1", "vm2"])
@pytest.mark.parametrize("reliable", [False, True])
def test_who_moves_is_followed_through_relays(mover, reliable):
    sim = Routed(seed=3, reliable=reliable)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sent = []
    for step in range(60):
        if step == 20:
            sim.renumber(mover, "192.0.2.99")
        sent += sim.send("vm1", "vm2", 5)
        sim.send("vm2", "vm1", 5)
        sim.run(0.1)
    sim.run(30)
    received = sim.hosts["vm2"].payloads()
    assert set(received[-25:]) <= set(sent)
    assert len(received) > len(sent) * (0.99 if reliable else 0.9)


# -- what one spoofed handshake does


def test_one_handshake_does_not_end_the_tolerance_for_two_addresses():
    old = Path(policy=RelayPolicy(), ids=(3, 4))
    s1, a1, s2s = old.opened()
    spoofed = Path(seed=1, watched=old.watched)
    spoofed.introduce()
    old.now += 60
    assert old.to_two(s1) == [s1]
    assert old.to_one(a1) == [a1]
    assert old.to_two(*s2s) == s2s
    assert of_kind(Kind.S2, old.watched.passed) == s2s


# -- who makes room


def test_sessions_of_one_source_make_room_for_each_other():
    policy = RelayPolicy(Unseen.DROP, sessions=20)
    quiet = introduced(policy=policy, ids=(1, 2))
    others = [
        Path(
            policy=policy,
            seed=seed,
            ids=(2 * seed + 1, 2 * seed + 2),
            addresses=(MALLORY, THERE),
            watched=quiet.watched,
            now=100 + seed,
        )
        for seed in range(1, 60)
    ]
    for other in others:
        other.introduce()
        other.carry()
    left = {each.initiator.key for each in quiet.relay.sessions(200.0)}
    assert quiet.keys[0].public in left
    assert others[-1].keys[0].public in left
    assert quiet.carry() == packets_of(batch())


def test_memory_that_one_source_takes_it_makes_room_for_itself():
    limit = 300_000
    policy = RelayPolicy(Unseen.DROP, memory=limit)
    quiet = introduced(policy=policy, ids=(1, 2))
    for seed in range(1, 200):
        other = Path(
            policy=policy,
            seed=seed,
            ids=(2 * seed + 1, 2 * seed + 2),
            addresses=(MALLORY, THERE),
            watched=quiet.watched,
            now=100 + seed / 2,
        )
        other.relay.forget_idle(other.now)
        if other.to_two(other.syn) and other.to_one(other.ack):
            other.to_two(other.ackack)
        assert other.relay.memory <= limit
    assert quiet.relay.counters.evicted > 0
    assert quiet.carry() == packets_of(batch())
