"""Handshakes past a relay, what it keeps of them, and what its policies are."""

from random import Random

import pytest
from attrs import evolve

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.handshake import exchange
from alpha_trio.proto.messages import (
    MAC_SIZE,
    REFUSE_AFTER,
    SAID_SIZE,
    SUITE_PLAIN,
    SYN_SIZE,
    Cookie,
    Kind,
    parse_ackack_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.messages.handshake import ACK_SIZE, ACKACK_SIZE
from alpha_trio.proto.relay import RelayEventKind, RelayPolicy, Unseen
from alpha_trio.proto.relay.budgets import (
    ABOUT_BURST,
    REST_BURST,
    SOURCE_SYN_BURST,
)
from alpha_trio.proto.relay.relay import EVENTS_KEPT, LIFETIME, SAME_ID
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.watched import REPEAT_AFTER
from tests.proto.ends import ELSEWHERE, HERE, THERE, batch, changed, packets_of
from tests.proto.inner import Packet
from tests.proto.routed import STRICT, Path, Routed, Watched, assert_sound, relay_of
from tests.proto.simulation import DELAY, Link

LIMIT = range(12, 15)  # and marks: of SYN and ACK no signature covers it
FREE = {"syn": SAID_SIZE, "ack": ACK_SIZE - MAC_SIZE, "ackack": ACKACK_SIZE - MAC_SIZE}
"""From where on the rest is for the other end alone: cookie, MAC, padding."""


def introduced(**settings) -> Path:
    path = Path(**settings)
    path.introduce()
    return path


def many(count: int, policy: RelayPolicy = STRICT, **settings) -> list[Path]:
    """Paths of different hosts through one relay, all introduced."""
    watched = Watched(relay_of(policy))
    paths = []
    for number in range(count):
        ids = 2 * number + 1, 2 * number + 2
        hosts = (f"10.1.{number >> 8}.{number & 255}", 1234), THERE
        path = Path(
            policy=policy,
            seed=number,
            ids=ids,
            addresses=hosts,
            watched=watched,
            now=100.0 + number / 50,
            **settings,
        )
        path.introduce()
        paths.append(path)
    return paths


# -- handshakes


class _NoAcks(Link):
    """No ACK arrives until a time; everything else does."""

    sim: Routed
    until = 70.0

    def carry(self, datagram):
        if datagram[0] != Kind.ACK or self.sim.now >= self.until:
            yield DELAY, datagram


def test_a_syn_may_be_answered_as_often_as_the_responder_forgets_it():
    """Every 20 s it does, if no ACKACK comes, and the same SYN gets another ACK."""
    link = _NoAcks()
    link.sim = sim = Routed(5, link)
    _, vm2 = sim.pair()
    while not vm2.received and sim.now < 100:
        sim.send("vm1", "vm2")
        sim.run(0.25)
    assert link.until < sim.now < link.until + 6


def test_a_copy_of_an_ackack_with_another_suite_keeps_out_no_genuine_one():
    """No signature covers the suite there."""
    path = Path()
    path.to_two(path.syn)
    path.to_one(path.ack)
    copy = evolve(parse_ackack_untrusted(path.ackack), suite=SUITE_PLAIN).pack()
    assert path.to_two(copy) == []
    for _ in range(2):
        assert path.to_two(path.ackack) == [path.ackack]
        path.now += REPEAT_AFTER


@pytest.mark.parametrize("name", ["syn", "ack", "ackack"])
def test_no_handshake_that_was_altered_becomes_a_session(name):
    genuine = Path()
    for at in range(len(getattr(genuine, name))):
        path = Path()
        setattr(path, name, changed(getattr(path, name), at))
        path.to_two(path.syn)
        path.to_one(path.ack)
        path.to_two(path.ackack)
        free = (name != "ackack" and at in LIMIT) or at >= FREE[name]
        assert len(path.relay.sessions(path.now)) == (1 if free else 0), at


def test_a_bad_signature_is_dropped_and_the_right_one_still_passes():
    path = Path()
    path.to_two(path.syn)
    assert path.to_one(changed(path.ack, 150)) == []
    assert path.to_one(path.ack) == [path.ack]
    assert path.to_two(changed(path.ackack, 50)) == []
    assert path.to_two(path.ackack) == [path.ackack]
    assert path.drops == {RelayDrop.BAD_SIGNATURE: 2}
    path.carry()


def test_an_answer_to_nothing_does_not_pass():
    path = Path()
    assert path.to_one(path.ack) == []
    assert path.to_two(path.ackack) == []
    assert path.drops == {RelayDrop.UNSEEN: 2}


def test_repeated_handshake_messages_pass_now_and_then_however_often_they_came():
    path = introduced()
    for _ in range(100):
        path.now += REPEAT_AFTER
        assert path.to_one(path.ack, path.ack) == [path.ack]
        assert path.to_two(path.ackack, path.ackack) == [path.ackack]
    assert path.drops == {RelayDrop.REPLAYED: 200}
    assert len(path.relay.sessions(path.now)) == 1


def test_a_cookie_passes_for_who_asked_and_the_syn_with_it_is_the_same_handshake():
    path = Path()
    syn = parse_syn_untrusted(path.syn)
    cookie = Cookie(syn.sender_id, syn.nonce, b"c" * 16).pack()
    assert path.to_one(cookie) == []
    first = evolve(syn, cookie=b"x" * 16).pack()
    assert path.to_two(first) == [first]
    assert path.to_one(cookie) == [cookie]
    assert path.to_one(changed(cookie, 9)) == []
    path.introduce()  # the ACK is to another variant than the first
    assert path.carry() == packets_of(batch())


def test_a_flood_of_syns_is_limited_by_source_and_costs_bounded_memory():
    path = Path()
    syn = parse_syn_untrusted(path.syn)
    floods = [evolve(syn, nonce=bytes(12) + n.to_bytes(4), sender_id=n + 9)
              for n in range(1000)]  # fmt: skip
    passed = path.to_two(*[flood.pack() for flood in floods], source=ELSEWHERE)
    assert len(passed) == SOURCE_SYN_BURST
    assert path.drops == {RelayDrop.RATE: 1000 - SOURCE_SYN_BURST}
    path.introduce()  # of another source
    before = path.relay.memory
    path.now += 25
    path.relay.forget_idle(path.now)
    assert path.relay.memory < before - 1000 * SOURCE_SYN_BURST


def test_spoofed_syns_of_many_sources_fill_no_more_than_their_place():
    path = Path()
    syn = parse_syn_untrusted(path.syn)
    for number in range(20_000):
        path.now += 0.001
        flood = evolve(syn, nonce=number.to_bytes(16), sender_id=number + 9).pack()
        source = (f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}", 9)
        view = memoryview(bytearray(flood))
        path.relay.transit(view, len(view), Crossing(source, THERE), path.now)
    assert path.relay.memory < STRICT.memory / 4
    path.introduce()
    path.carry()


def test_signatures_are_checked_at_a_bounded_rate():
    path = Path()
    path.to_two(path.syn)
    at = 150, 151  # in the signature
    forged = [changed(path.ack, place, by) for place in at for by in range(1, 200)]
    assert path.to_one(*forged) == []
    assert path.drops[RelayDrop.RATE] == 398 - 1 - ABOUT_BURST
    path.now += 1
    assert path.to_one(path.ack) == [path.ack]


def test_a_recorded_session_does_not_pass_again():
    path = introduced()
    path.carry()
    recorded = list(path.watched.passed)
    path.now += LIFETIME + 1
    path.relay.forget_idle(path.now)
    assert path.relay.sessions(path.now) == []
    for message in recorded:
        path.to_two(message)
        path.to_one(message)
    assert path.relay.sessions(path.now) == []
    assert path.drops[RelayDrop.REPLAYED] >= 2  # either way


def test_a_recorded_handshake_does_not_pass_at_the_second_try_either():
    path = introduced()
    path.now += LIFETIME + 1
    path.relay.forget_idle(path.now)
    path.to_two(path.syn)
    path.to_one(path.ack)
    assert path.to_two(path.ackack, path.ackack) == []
    assert path.drops == {RelayDrop.REPLAYED: 2}


def test_who_was_refused_for_want_of_room_may_try_again():
    path = Path(ids=(7, 8))
    for seed in range(1, SAME_ID + 1):
        path.now += 21
        path.relay.forget_idle(path.now)
        other = Path(seed=seed, ids=(7, 8), watched=path.watched, now=path.now)
        other.introduce()
        other.carry()  # or it would make way
    path.now += LIFETIME - 21 * (SAME_ID - 1) - 1
    path.relay.forget_idle(path.now)
    path.to_two(path.syn)
    path.to_one(path.ack)
    assert path.to_two(path.ackack, path.ackack) == []
    assert path.drops == {RelayDrop.COLLISION: 2}
    path.now += 2
    path.relay.forget_idle(path.now)
    assert path.to_two(path.ackack) == [path.ackack]
    assert path.carry() == packets_of(batch())


def test_who_asks_from_two_addresses_gets_the_answer_at_either():
    path = Path()
    path.to_two(path.syn)
    assert path.to_two(path.syn, source=ELSEWHERE) == [path.syn]
    assert path.to_one(path.ack) == [path.ack]
    assert path.to_two(path.ackack) == [path.ackack]
    assert path.carry() == packets_of(batch())


def test_only_listed_keys_may_pass():
    path = Path()
    one, two = (key.public for key in path.keys)
    for keys, passes in (({one, two}, True), ({one}, False), ({two}, False)):
        path = Path(policy=RelayPolicy(keys=frozenset(keys)))
        if passes:
            path.introduce()
            path.carry()
            continue
        path.to_two(path.syn)
        path.to_one(path.ack)
        assert path.to_two(path.ackack) == [] or RelayDrop.NOT_ALLOWED in path.drops
        assert path.relay.sessions(path.now) == []
        assert RelayDrop.NOT_ALLOWED in path.drops


# -- many sessions


def test_a_thousand_sessions_share_a_relay(monkeypatch):
    monkeypatch.setattr(exchange, "FIRST_SPACING", 4)  # few rounds, short chains
    paths = many(1000, checked=False)
    relay = paths[0].relay
    assert len(relay.sessions(200.0)) == 1000
    for path in paths:
        path.now = 130.0
    for path in Random(1).sample(paths, 200):
        assert path.carry() == packets_of(batch())
    assert relay.counters.drops == {}
    assert_sound(relay)


def test_the_session_idle_longest_makes_way():
    paths = many(5, RelayPolicy(sessions=4))
    relay = paths[0].relay
    keys = [session.initiator.key for session in relay.sessions(200.0)]
    assert keys == [path.keys[0].public for path in paths[1:]]
    paths[1].now = 140.0
    paths[1].carry()
    more = Path(seed=9, ids=(90, 91), watched=paths[0].watched, now=150.0)
    more.introduce()
    left = {session.initiator.key for session in relay.sessions(200.0)}
    assert paths[1].keys[0].public in left
    assert paths[2].keys[0].public not in left
    assert relay.counters.evicted == 2
    kinds = [event.kind for event in relay.events]
    assert kinds.count(RelayEventKind.EVICTED) == 2


@pytest.mark.parametrize("limit", [100_000, 250_000])
def test_memory_is_bounded(limit):
    paths = many(50, RelayPolicy(Unseen.DROP, memory=limit))
    relay = paths[0].relay
    for path in paths:
        path.now = 130.0
        path.to_two(path.opened()[0])
        assert relay.memory <= limit
    assert relay.counters.evicted > 0
    assert len(relay.sessions(200.0)) > 5
    assert_sound(relay)


def test_sessions_that_take_much_do_not_drive_out_those_that_are_quiet():
    limit = 760_000
    paths = many(90, RelayPolicy(Unseen.DROP, memory=limit))
    relay, quiet, greedy = paths[0].relay, paths[:30], paths[30:]
    relay.forget_idle(130.0)
    many_small = Packet(payload=bytes(8000), segment_size=100)
    for path in greedy:
        path.now = 130.0
        (s1,) = path.one.emit(many_small, now=path.now)
        assert path.to_two(s1) == [s1]
        assert relay.memory <= limit
    assert relay.counters.evicted > 0
    left = {session.initiator.key for session in relay.sessions(130.0)}
    assert left >= {path.keys[0].public for path in quiet}


def test_what_is_over_is_forgotten():
    path = Path()
    assert path.relay.idle
    path.to_two(path.syn)
    assert not path.relay.idle
    path.introduce()
    path.carry()
    path.now += LIFETIME
    path.relay.forget_idle(path.now)
    assert not path.relay.idle
    path.now += 1
    path.relay.forget_idle(path.now)
    assert path.relay.idle  # although the handshake is remembered
    assert path.relay.sessions(path.now) == []
    assert path.to_two(path.opened()[0]) == []
    assert path.relay._held == 0
    assert path.relay._ends == {}


# -- the same connection id


def test_sessions_with_the_same_ids_do_not_disturb_each_other():
    first = introduced(ids=(7, 8))
    hosts = ("10.9.9.9", 1234), ("10.9.9.8", 1234)
    others = [
        Path(seed=seed, ids=(7, 8), addresses=hosts, watched=first.watched)
        for seed in range(1, 4)
    ]
    for other in others:
        other.introduce()
    for _ in range(3):
        for path in (first, *others):
            del path.two.received[:]
            assert path.carry() == packets_of(batch())
    assert first.drops == {}
    for path in (first, *others):  # ends that have moved are known by their chains
        s1, a1, s2s = path.opened()
        assert path.to_two(s1, source=ELSEWHERE) == [s1]
        assert path.to_one(a1) == [a1]
        assert path.to_two(*s2s, source=ELSEWHERE) == s2s


@pytest.mark.parametrize("apart", [0.0, 21.0])  # s; the handshakes are forgotten then
def test_an_attacker_who_chooses_our_id_gets_nothing_and_takes_nothing(apart):
    first = introduced(ids=(7, 8))
    for seed in range(1, 8):
        first.now += apart
        first.relay.forget_idle(first.now)
        other = Path(seed=seed, ids=(7, 8), watched=first.watched, now=first.now)
        other.to_two(other.syn)
        other.to_one(other.ack)
        if other.to_two(other.ackack):
            other.carry()
    assert len(first.relay.sessions(first.now)) == SAME_ID
    assert RelayDrop.COLLISION in first.drops
    assert first.carry() == packets_of(batch())


# -- policies


@pytest.mark.parametrize(
    ("unseen", "early", "late"),
    [
        (Unseen.PASS, True, True),
        (Unseen.DROP, False, False),
        (Unseen.UNTIL_HANDSHAKE, True, False),
    ],
)
def test_sessions_whose_handshake_was_not_seen(unseen, early, late):
    path = Path(policy=RelayPolicy(unseen))
    s1, _, _ = path.opened()
    assert bool(path.to_two(s1)) is early
    assert path.relay.counters.unverified_packets == early
    path.now = REFUSE_AFTER + 1
    assert bool(path.to_two(s1)) is late


def test_after_a_handshake_its_two_ends_have_no_unseen_sessions_for_long():
    old, new = Path(policy=RelayPolicy(), ids=(3, 4)), None
    s1, _, _ = old.opened()
    assert old.to_two(s1) == [s1]
    new = Path(seed=1, watched=old.watched)
    new.introduce()
    old.now = new.now = new.now + 20
    assert old.to_two(s1) == [s1]  # a handshake alone may be anybody's
    new.carry()
    assert old.to_two(s1) == [s1]  # what is under way in the session before
    old.now += 20
    assert old.to_two(s1) == []
    other = Path(seed=2, ids=(5, 6), addresses=(ELSEWHERE, THERE), watched=old.watched)
    other.now = old.now
    assert other.to_two(other.opened()[0]) != []  # others have not had theirs


def test_a_relay_started_mid_session_picks_up_at_the_next_handshake_without_a_cut():
    sim = Routed(policy=RelayPolicy())
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.run(30)
    sim.restart_relays()
    for _ in range(200):
        assert sim.ping("vm1", "vm2", timeout=0.5)
        sim.run(0.5)
    for watched in sim.relays:
        (session, *_) = watched.relay.sessions(sim.now)
        assert session.verified
        assert session.initiator.forwarded
        assert watched.relay.counters.unverified_packets
        assert watched.drops == {}
    before = [watched.relay.counters.unverified_packets for watched in sim.relays]
    sim.ping("vm1", "vm2")
    after = [watched.relay.counters.unverified_packets for watched in sim.relays]
    assert before == after


def test_a_relay_that_restarts_inside_a_handshake_does_not_stop_it():
    sim = Routed(policy=RelayPolicy())
    sim.pair()
    sim.send("vm1", "vm2")
    sim.run(0.015)  # the ACK is under way
    sim.restart_relays()
    sim.run(1)
    assert sim.ping("vm1", "vm2", timeout=0.5)


def test_data_of_mode_plain_is_dropped_unless_all_may_pass():
    for unseen in Unseen:
        sim = Routed(mode="plain", policy=RelayPolicy(unseen))
        sim.pair()
        assert sim.ping("vm1", "vm2") is (unseen is Unseen.PASS)
        assert sim.established("vm1", "vm2")
        assert (RelayDrop.PLAIN in sim.drops()) is (unseen is not Unseen.PASS)


def test_the_limit_of_roots_is_announced_and_held():
    path = introduced(policy=RelayPolicy(roots=5), mode="c")
    syn, ack, _ = path.watched.passed
    assert syn[12:14] == ack[12:14] == (5).to_bytes(2)
    assert syn[:12] + bytes(2) + syn[14:] == path.syn
    s1, _, _ = path.opened()  # seven packets, and a root each
    assert path.to_two(s1) == []
    assert path.drops == {RelayDrop.ROOTS: 1}


@pytest.mark.parametrize(
    ("ours", "others", "announced"), [(9, 0, 9), (9, 12, 9), (9, 6, 6), (0, 6, 6)]
)
def test_the_lowest_limit_on_the_path_counts(ours, others, announced):
    path = Path(policy=RelayPolicy(roots=ours))
    (syn,) = path.to_two(path.syn[:12] + others.to_bytes(2) + path.syn[14:])
    assert int.from_bytes(syn[12:14]) == announced
    assert path.to_one(path.ack)
    assert path.to_two(path.ackack) == [path.ackack]


# -- routes on which the directions part

LENIENT = RelayPolicy(Unseen.DROP, require_a1=False)


@pytest.mark.parametrize("mode", ["n", "c", "m", "cm"])
def test_a_lenient_relay_checks_the_half_it_sees(mode):
    to_two, to_one = Path(mode, LENIENT), Path(mode, LENIENT)
    assert to_two.to_two(to_two.syn, to_two.ackack) == [to_two.syn, to_two.ackack]
    assert to_one.to_one(to_one.ack) == [to_one.ack]
    for _ in range(3):
        s1, _, s2s = to_two.opened()
        assert to_two.to_two(s2s[0]) == []
        assert to_two.to_two(s1) == [s1]
        assert to_two.to_two(changed(s2s[0], -1)) == []
        assert to_two.to_two(*s2s, *s2s) == s2s
        _, a1, _ = to_one.opened()
        assert to_one.to_one(changed(a1, 20)) == []
        assert to_one.to_one(a1) == [a1]
    for path in (to_two, to_one):
        (session,) = path.relay.sessions(path.now)
        assert not session.verified


def test_a_lenient_relay_takes_repetitions_of_half_a_handshake_for_what_they_are():
    to_two, to_one = Path(policy=LENIENT), Path(policy=LENIENT)
    to_two.to_two(to_two.syn)
    for _ in range(SAME_ID + 1):
        assert to_two.to_two(to_two.ackack) == [to_two.ackack]
        assert to_one.to_one(to_one.ack) == [to_one.ack]
        to_two.now += REPEAT_AFTER
    for path in (to_two, to_one):
        assert len(path.relay.sessions(path.now)) == 1
        assert path.drops == {}


def test_half_handshakes_are_looked_at_at_a_bounded_rate():
    path = Path(policy=LENIENT)
    path.to_two(path.syn)
    made_up = [path.ackack[:4] + n.to_bytes(4) + path.ackack[8:] for n in range(9, 609)]
    assert path.to_two(*made_up, source=ELSEWHERE) == []
    assert path.drops[RelayDrop.RATE] == 600 - REST_BURST


def test_a_strict_relay_lets_no_half_session_pass():
    path = Path()
    assert path.to_two(path.syn, path.ackack) == [path.syn]
    assert path.to_two(path.opened()[0]) == []


def test_what_could_not_be_verified_makes_way_first():
    policy = RelayPolicy(Unseen.DROP, require_a1=False, sessions=2)
    verified = introduced(policy=policy)
    for seed in range(1, 4):
        half = Path(seed=seed, ids=(seed + 10, seed + 20), watched=verified.watched)
        half.now = verified.now + seed
        assert half.to_one(half.ack) == [half.ack]
    states = [session.verified for session in verified.relay.sessions(200.0)]
    assert states == [True, False]


# -- what is told


def test_drops_are_told_once_a_second_for_each_session_and_reason():
    path = introduced()
    path.relay.events.clear()
    s1, _, s2s = path.opened()
    for _ in range(30):
        path.now += 0.125
        path.to_two(s2s[0])
        path.to_two(changed(s1, 30))
    told = [event for event in path.relay.events if event.reason]
    assert {event.kind for event in told} == {RelayEventKind.DROPPED}
    for reason in (RelayDrop.UNSOLICITED, RelayDrop.BAD_ROUND):
        counts = [event.count for event in told if event.reason is reason]
        assert counts[:3] == [1, 8, 8]
    assert told[0].initiator == HERE
    assert told[0].keys[0] == path.keys[0].public


def test_events_nobody_takes_are_counted():
    relay = relay_of(STRICT)
    for number in range(2 * EVENTS_KEPT):
        relay.transit(memoryview(bytearray(8)), 8, Crossing(HERE, THERE), 2.0 * number)
    assert len(relay.events) == EVENTS_KEPT
    assert relay.counters.untold == EVENTS_KEPT


def test_what_is_no_message_is_told_apart():
    path = introduced()
    path.relay.transit(memoryview(bytearray()), 1, Crossing(HERE, THERE), path.now)
    path.to_two(b"\x05\x01", bytes([Kind.S1, 2, 0, 0]) + bytes(60))
    path.to_two(bytes([77, 1, 0, 0]) + bytes(60))
    path.to_two(bytes([Kind.S1, 1, 0, 9, 0, 0, 0, 1]) + bytes(60))
    path.to_two(bytes([Kind.SYN, 1, 0, 9]) + bytes(SYN_SIZE - 4))
    assert path.drops == {RelayDrop.MALFORMED: 5, RelayDrop.VERSION: 1}


def test_ends_may_move():
    path = introduced()
    s1, a1, s2s = path.opened()
    assert path.to_two(s1, source=ELSEWHERE) == [s1]
    (session,) = path.relay.sessions(path.now)
    assert session.initiator.address == ELSEWHERE
    assert path.to_one(a1) == [a1]
    assert path.to_two(*s2s) == s2s
