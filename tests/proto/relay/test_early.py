"""What relays let pass of early data, and what that gives up."""

from collections import Counter
from random import Random

import pytest
from attrs import define, field

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import (
    NO_EARLY,
    NODE_SIZE,
    S1_FIXED_SIZE,
    S2_TAIL,
    TAG_SIZE,
    Kind,
    parse_ack_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.primitives import digest_of
from alpha_trio.proto.relay import RelayEarly, RelayPolicy, Unseen
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.watched import EARLY_BURST, EARLY_RATE, REPEAT_AFTER
from alpha_trio.proto.transport import EarlyState
from tests.proto.ends import changed, head, of_kind
from tests.proto.routed import STRICT, Parted, Path, Routed, Watched, relay_of
from tests.proto.simulation import DELAY, Hostile, Link

OFF = RelayPolicy(Unseen.DROP, early=RelayEarly.OFF)
LENIENT = RelayPolicy(Unseen.DROP, require_a1=False)
PAYLOAD, LARGE = b"x" * 200, b"x" * 1200
FIRST = S1_FIXED_SIZE + NODE_SIZE  # byte of early data in an S1


def introduced(policy=STRICT, **options) -> Path:
    path = Path("adaptive", policy, early=True, **options)
    path.introduce()
    return path


def early_round(path: Path, payload: bytes = PAYLOAD) -> tuple[bytes, bytes, bytes]:
    """S1, A1 and S2 of one that nobody has sent yet."""
    (s1,) = path.one.send(payload, now=path.now)
    (a1,) = path.two.take(s1, now=path.now)
    (s2,) = path.one.take(a1, now=path.now)
    assert head(s1).shape == 0x20
    assert len(s2) == 40
    return s1, a1, s2


def size_of(s1: bytes) -> int:
    """Bytes of early data."""
    return len(s1) - FIRST - TAG_SIZE


def pass_round(path: Path) -> None:
    s1, a1, s2 = early_round(path)
    assert path.to_two(s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2) == [s2]


@pytest.mark.parametrize("policy", [STRICT, LENIENT])
def test_a_round_with_early_data_passes_once(policy):
    path = introduced(policy)
    s1, a1, s2 = early_round(path)
    assert path.to_two(s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2) == [s2]
    assert path.to_two(s1, s2) == []
    assert path.to_one(a1) == []
    assert path.drops == {RelayDrop.REPLAYED: 3}


def test_its_s2_needs_the_a1():
    path = introduced()
    s1, a1, s2 = early_round(path)
    path.to_two(s1)
    assert path.to_two(s2) == []
    assert path.drops == {RelayDrop.UNSOLICITED: 1}
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2) == [s2]


@pytest.mark.parametrize("at", [0, 8, 20, 32, 36, 39])
def test_an_altered_s2_does_not_pass(at):
    path = introduced()
    s1, a1, s2 = early_round(path)
    path.to_two(s1)
    path.to_one(a1)
    assert path.to_two(changed(s2, at)) == []
    assert path.to_two(s2 + bytes(30)) == []
    assert path.to_two(s2) == [s2]


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(1300)])
def test_rounds_of_any_size_pass(payload):
    path = introduced()
    if not payload:
        path.one.sender.early.state = EarlyState.TRYING
        path.one.sender.start(path.now, path.one.out)
        (s1,) = path.one.sent()
        assert path.to_two(s1) == [s1]
        return
    for message, towards in zip(early_round(path, payload), "212", strict=True):
        to = path.to_two if towards == "2" else path.to_one
        assert to(message) == [message]


def test_what_proves_to_be_the_senders_is_not_limited():
    """Far more than the bucket holds, in no time at all."""
    path = introduced()
    passed = 0
    while passed < 20 * EARLY_BURST:
        s1, a1, s2 = early_round(path, LARGE)
        assert path.to_two(s1) == [s1]
        assert path.to_one(a1) == [a1]
        assert path.to_two(s2) == [s2]
        passed += size_of(s1)
    assert not path.drops


def test_the_next_s1_proves_as_well_as_the_s2():
    """Its element gives away the key."""
    path = introduced()
    passed = 0
    while passed < 10 * EARLY_BURST:
        s1, a1, _ = early_round(path)
        assert path.to_two(s1) == [s1]
        assert path.to_one(a1) == [a1]
        passed += size_of(s1)


def test_what_nobody_agrees_to_is_bounded_in_bytes():
    """A receiver that is not there, or asked for nothing, gets no more than that."""
    path = introduced()
    passed, seconds = 0, 20
    for _ in range(10 * seconds):
        s1, *_ = early_round(path, LARGE)
        passed += sum(map(size_of, path.to_two(s1)))
        path.now += 0.1
    assert EARLY_RATE * seconds / 2 < passed <= EARLY_BURST + EARLY_RATE * seconds
    assert path.drops[RelayDrop.EARLY_RATE] > 0


def test_copies_and_altered_ones_are_bounded_as_well():
    path = introduced()
    s1, *_ = early_round(path)
    dice, passed = Random(3), 0
    assert path.to_two(s1) == [s1]
    for _ in range(4000):
        at = dice.randrange(FIRST, len(s1))
        copy = changed(s1, at, dice.randrange(1, 256)) if dice.random() < 0.9 else s1
        passed += sum(map(size_of, path.to_two(copy)))
        path.now += 0.005
    assert passed <= EARLY_BURST + EARLY_RATE * 20


def test_a_flood_of_copies_takes_nothing_from_what_comes_first():
    path = introduced()
    for _ in range(200):
        s1, a1, s2 = early_round(path)
        assert path.to_two(s1) == [s1]
        for _ in range(10):
            path.to_two(s1, changed(s1, FIRST), changed(s1, FIRST + 1, 7))
        assert path.to_one(a1) == [a1]
        assert path.to_two(s2) == [s2]
        path.now += 0.05


def test_who_comes_first_with_an_altered_one_does_not_stop_the_genuine():
    """Its packets are taken by nobody; what was agreed to and fits the key counts."""
    path = introduced()
    for _ in range(50):
        s1, a1, s2 = early_round(path)
        false = changed(s1, FIRST)
        assert path.to_two(false) == [false]
        assert path.two.take(false) == []
        assert path.to_two(s1) == [s1]
        assert path.to_one(a1) == [a1]
        assert path.to_two(s2) == [s2]
        path.now += 1
    assert path.relay.policy.early is RelayEarly.LIMITED
    pass_round(path)


@pytest.mark.parametrize("shape", [0x20, 0x28])
def test_an_a1_for_an_altered_one_ends_nothing(shape):
    """Who reads A1s on their way can make one for an S1 that he made up."""
    path = introduced()
    s1, a1, s2 = early_round(path)
    false = bytearray(changed(s1, FIRST))
    false[10] = shape
    digest = digest_of(false[:-TAG_SIZE])
    forged = a1[:10] + bytes([shape]) + a1[11:32] + digest + a1[48:]
    assert path.to_two(s1, bytes(false)) == [s1, bytes(false)]
    assert path.to_one(a1, forged) == [a1, forged]
    assert path.to_two(s2) == [s2]
    pass_round(path)


def test_off_marks_the_handshake_and_drops_what_comes_all_the_same():
    path = Path("adaptive", OFF, early=True)
    (syn,), (ack,) = path.to_two(path.syn), path.to_one(path.ack)
    path.to_two(path.ackack)
    assert parse_syn_untrusted(syn).marks == NO_EARLY
    assert parse_ack_untrusted(ack).marks == NO_EARLY
    assert parse_syn_untrusted(syn) == parse_syn_untrusted(path.syn)
    s1, *_ = early_round(path)
    assert path.to_two(s1) == []
    assert path.drops == {RelayDrop.EARLY: 1}


def test_a_repeated_s1_passes_after_a_while():
    path = introduced()
    s1, a1, _ = early_round(path)
    for _ in range(5):
        assert path.to_two(s1) == [s1]
        path.now += 3 * REPEAT_AFTER
    assert path.to_one(a1) == [a1]


def test_a_sender_that_signs_other_bytes_gets_no_more_through():
    """Both ends may want to have pass what nobody can check."""
    path, honest = introduced(), introduced()
    s1, *_ = early_round(honest)
    next_s1, *_ = early_round(honest)
    lie = bytearray(s1[:-TAG_SIZE])
    lie[S1_FIXED_SIZE:FIRST] = bytes(NODE_SIZE)
    s1 = path.one.tagged(bytes(lie))
    (a1,) = path.two.take(s1, now=path.now)
    key = path.one.sender.associations[0].chain.element(2)
    s2 = bytes([Kind.S2]) + s1[1:16] + key + S2_TAIL.pack(0, 0, 32)
    assert path.to_two(s1) == [s1]
    assert path.to_one(a1) == [a1]
    assert path.to_two(s2) == []
    assert path.to_two(next_s1) == []
    assert path.drops == {RelayDrop.EARLY_FALSE: 1, RelayDrop.EARLY: 1}


# -- whole hosts


@pytest.mark.parametrize("policy", [STRICT, OFF, LENIENT])
@pytest.mark.parametrize("seed", range(2))
def test_hostile_links_and_relays_deliver_nothing_twice(policy, seed):
    sim = Routed(seed=seed, policy=policy)
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.link = Hostile(
        sim.random, loss=0.05, duplicate=0.1, late=0.1, delay=0.3, replay=0.1
    )
    sent = []
    for _ in range(150):
        sent += sim.send("vm1", "vm2", sim.random.randrange(3))
        sim.run(sim.random.uniform(0, 0.2))
    sim.link = Link()
    sim.run(10)
    received = sim.hosts["vm2"].payloads()[1:]
    assert len(set(received)) == len(received)
    assert set(received) <= set(sent)
    assert len(received) > 0.7 * len(sent)
    early = sim.session("vm1", "vm2").counters.early_sent
    assert (early > 10) == (policy is not OFF)
    for drop in (RelayDrop.EARLY, RelayDrop.EARLY_FALSE):
        assert not sim.drops().get(drop)


def stroke_by_stroke(sim: Routed, number: int = 40, pause: float = 0.06) -> list[bytes]:
    """Packets that come alone; those that did not arrive by their S1's first copy."""
    late, host = [], sim.hosts["vm2"]
    for _ in range(number):
        (payload,) = sim.send("vm1", "vm2")
        sim.run(DELAY + 0.001)
        if payload not in host.payloads():
            late.append(payload)
        sim.run(pause)
    sim.run(5)
    return late


@pytest.mark.parametrize("lenient", [False, True])
def test_directions_that_part_have_early_data_with_lenient_relays(lenient):
    """One that wants an A1 sees none, nor a handshake: all is unknown to it."""
    sim = Parted(policy=LENIENT if lenient else STRICT)
    sim.pair()
    assert sim.ping("vm1", "vm2") == lenient
    if not lenient:
        return
    sim.run(2)
    assert stroke_by_stroke(sim) == []
    assert sim.session("vm1", "vm2").counters.early_sent > 35
    assert set(sim.drops()) <= {RelayDrop.REPLAYED}


@define
class Altering(Link):
    """Changes a byte of early data in the first copies of S1s between the relays."""

    copies: int = 0
    seen: Counter = field(factory=Counter)

    def carry(self, datagram):
        if datagram[0] == Kind.S1 and head(datagram).shape == 0x20:
            self.seen[datagram] += 1
            if self.seen[datagram] <= self.copies and size_of(datagram):
                datagram = changed(datagram, FIRST + 9)
        yield DELAY, datagram


@pytest.mark.parametrize("copies", [1, 2])
def test_what_was_altered_behind_a_relay_passes_when_it_is_sent_again(copies):
    """The second relay took the altered one first; the receiver takes none of it."""
    sim = Routed(link=Altering())
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.run(2)
    sim.link.copies = copies
    late = stroke_by_stroke(sim, 20, 2)
    assert len(late) == 20
    received = sim.hosts["vm2"].payloads()
    assert received[-20:] == late
    assert sim.session("vm1", "vm2").early_state is EarlyState.ON
    assert sim.hosts["vm2"].drops() == {Drop.BAD_ROUND: 20 * copies}


class Observed(Routed):
    """Somebody sees each S1 where it passes, and is ``faster`` at the relay, or not."""

    faster = False
    forged = 3  # altered versions of each, beside as many copies

    def _carry(self, host, source, address, data):
        if data[0] != Kind.S1 or not head(data).shape & 0x20 or not size_of(data):
            return super()._carry(host, source, address, data)
        if self.faster:
            self.flood(host, source, address, data)
        super()._carry(host, source, address, data)
        if not self.faster:
            self.flood(host, source, address, data)
            self.flood(host, source, address, data)
        return None

    def flood(self, host, source, address, data):
        for _ in range(self.forged):
            at = self.random.randrange(FIRST, len(data))
            false = changed(data, at, self.random.randrange(1, 256))
            for made in (false, data) if not self.faster else (false,):
                Routed._carry(self, host, source, address, made)


@pytest.mark.parametrize("faster", [False, True])
def test_an_observer_holds_up_nothing_and_has_nothing_delivered(faster):
    """However many copies and versions he adds, within what genuine ones need."""
    sim = Observed()
    sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.run(2)
    sim.faster = faster
    assert stroke_by_stroke(sim, 60, 0.3 if faster else 0.06) == []
    received = sim.hosts["vm2"].payloads()
    assert len(set(received)) == len(received) == 61
    assert sim.session("vm1", "vm2").early_state is EarlyState.ON
    assert not sim.drops().get(RelayDrop.EARLY)
    assert not sim.drops().get(RelayDrop.EARLY_FALSE)


@define(eq=False)
class Lying(Watched):
    """Puts no mark into the handshake, and drops early data all the same."""

    filled: bool = True  # only what has packets in it

    def through(self, data, stride, source, destination, now, link=0):
        early = data[0] == Kind.S1 and head(data).shape & 0x20
        if early and (size_of(data) or not self.filled):
            return []
        return super().through(data, stride, source, destination, now, link)


@pytest.mark.parametrize("filled", [False, True])
def test_a_relay_that_lies_costs_some_packets_and_then_none(filled):
    sim = Routed()
    sim.pair()
    sim.relays[1] = Lying(relay_of(), filled=filled)
    sent = []
    for _ in range(40):
        sent += sim.send("vm1", "vm2")
        sim.run(0.5)
    session = sim.session("vm1", "vm2")
    assert session.early_state is EarlyState.LOST
    drops = session.counters.drops
    assert set(drops) == {Drop.UNACKNOWLEDGED, Drop.QUEUE_FULL}  # waited for the first
    received = sim.hosts["vm2"].payloads()
    assert 0 < len(sent) - len(received) == sum(drops.values()) <= 16
    sent = sim.send("vm1", "vm2", 3)
    sim.run(1)
    assert sim.hosts["vm2"].payloads()[-3:] == sent


def test_ends_hear_of_a_relay_that_does_not_want_it():
    sim = Routed(policy=OFF)
    sim.pair()
    for _ in range(3):
        assert sim.ping("vm1", "vm2")
    for at, of in (("vm1", "vm2"), ("vm2", "vm1")):
        assert sim.session(at, of).early_state is EarlyState.OFF_RELAY
    assert not sim.drops()
    assert not [s for s in of_kind(Kind.S1, [s.data for s in sim.sent]) if s[10] & 0x20]
