"""Hosts with two relays between them, one near each host.

    vm1 --- relay 0 --- link --- relay 1 --- vm2

What a host sends passes the relay near it at once, what arrives the one near its
target; so what the link does, it does between the two.
"""

from random import Random

from attrs import define, evolve, field

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.handshake.exchange import HalfOpen, Initiation
from alpha_trio.proto.messages import SUITE_ALPHA, Kind
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.relay import Relay, RelayPolicy, Unseen
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.witness import ASSOCIATION_COST, EARLY_COST
from tests.proto.ends import HERE, SIZE, THERE, End, _end, batch, of_kind
from tests.proto.simulation import Link, Simulation, remote_of

STRICT = RelayPolicy(unseen=Unseen.DROP)


def relay_of(policy: RelayPolicy = STRICT, started: float = 0.0) -> Relay:
    """One whose chance is the same each time."""
    return Relay(policy, started, Random(7).randbytes)


@define(eq=False)
class Watched:
    """A relay, and what it let pass."""

    relay: Relay
    passed: list[bytes] = field(factory=list)

    def through(self, data, stride, source, destination, now, link=0) -> list[bytes]:
        """The runs that go on, of those that came by a link; 0: it is not told."""
        view = memoryview(bytearray(data))
        crossing = Crossing(source, destination, link)
        ranges = self.relay.transit(view, stride, crossing, now)
        at = 0
        for start, end in ranges:
            assert at <= start < end <= len(view)
            assert start == 0 or at < start  # those that touch are one
            assert start % stride == 0
            assert end % stride == 0 or end == len(view)
            at = end
        runs = [bytes(view[start:end]) for start, end in ranges]
        for run in runs:
            self.passed += [run[i : i + stride] for i in range(0, len(run), stride)]
        return runs

    @property
    def drops(self) -> dict[RelayDrop, int]:
        return self.relay.counters.drops


class Routed(Simulation):
    """A simulation whose hosts are behind relays."""

    def __init__(
        self,
        seed: int = 0,
        link: Link | None = None,
        mode: str = "adaptive",
        policy: RelayPolicy = STRICT,
        **settings,
    ) -> None:
        super().__init__(seed, link, mode, **settings)
        self.policy = policy
        self.relays = [Watched(relay_of(policy)) for _ in range(2)]
        self.refused: list[bytes] = []  # by the relay next to who sent it
        self._tidied = 0.0

    def restart_relays(self) -> None:
        """They forget everything."""
        for watched in self.relays:
            watched.relay = relay_of(self.policy, self.now)

    def near(self, name: str) -> Watched:
        """The relay next to a host."""
        return self.relays[0 if name == next(iter(self.hosts)) else 1]

    def _carry(self, host, source, address, data):
        here, there = remote_of(source), remote_of(address)
        # 1 leads to the host that a relay is next to, 2 to the other relay.
        runs = self.near(host.name).through(data, len(data), here, there, self.now, 1)
        if not runs:
            self.refused.append(data)
        for run in runs:
            super()._carry(host, source, address, run)

    def inject(self, target, sender, data, stride=0, local=b"local"):
        if self.now - self._tidied >= 1:
            self._tidied = self.now
            for watched in self.relays:
                watched.relay.forget_idle(self.now)
                assert_sound(watched.relay)
        there = remote_of(self.hosts[target].address)
        stride = stride or len(data)
        for run in self.near(target).through(data, stride, sender, there, self.now, 2):
            super().inject(target, sender, run, stride, local)

    def drops(self) -> dict[RelayDrop, int]:
        """Of both relays."""
        total: dict[RelayDrop, int] = {}
        for watched in self.relays:
            for reason, count in watched.drops.items():
                total[reason] = total.get(reason, 0) + count
        return total


class Parted(Routed):
    """The two directions take different routes, with a relay on each."""

    def inject(self, target, sender, data, stride=0, local=b"local"):
        Simulation.inject(self, target, sender, data, stride, local)


def assert_sound(relay: Relay) -> None:
    """What is kept in two places is the same in both."""
    sessions = list(relay._all())
    assert relay._held == sum(session.memory for session in sessions)
    ends = {end for session in sessions for end in session.ends}
    assert ends == {end for ends in relay._ends.values() for end in ends}
    for session in sessions:
        weight = sum(map(weight_of, (end.incoming for end in session.ends)))
        assert session.meter.held == weight


def weight_of(witness) -> int:
    rounds = [
        round_
        for association in witness.associations.values()
        for round_ in (association.current, association.previous)
        if round_ is not None
    ]
    associations = witness.associations.values()
    buckets = sum(association.early is not None for association in associations)
    fixed = ASSOCIATION_COST * len(associations) + EARLY_COST * buckets
    return fixed + sum(r.weight for r in rounds)


@define(eq=False, repr=False)
class Path:
    """Two ends, one relay between them, and every datagram in the test's hands."""

    mode: str = "c"
    policy: RelayPolicy = STRICT
    seed: int = 0
    ids: tuple[int, int] = (1, 2)
    addresses: tuple = (HERE, THERE)
    watched: Watched = None
    now: float = 100.0
    checked: bool = True  # whether each datagram is followed by assert_sound
    keys: tuple[Identity, Identity] = None
    early: bool = False  # whether both ends take early data
    syn: bytes = field(init=False)
    ack: bytes = field(init=False)
    ackack: bytes = field(init=False)
    one: End = field(init=False)
    two: End = field(init=False)

    def __attrs_post_init__(self) -> None:
        random = Random(self.seed).randbytes
        if self.watched is None:
            self.watched = Watched(relay_of(self.policy))
        if self.keys is None:
            self.keys = Identity(random(32)), Identity(random(32))
        one, two = self.keys
        asked = one, SUITE_ALPHA, self.ids[0], random, self.now
        asking = Initiation.begin(*asked, early=self.early)
        place = self.addresses[0], b"", self.now
        answered = asking.syn, two, self.ids[1], random, *place
        answer = HalfOpen.answer(*answered, early=self.early)
        ackack = asking.finish_untrusted(answer.ack, one)
        answer.verify_untrusted(ackack)
        messages = asking.syn, answer.ack, ackack
        self.syn, self.ack, self.ackack = (message.pack() for message in messages)
        here, there = self.addresses
        size = 312 if self.mode == "cm" else SIZE
        ours = asking.agree(answer.ack, there, b"")
        theirs = answer.agree(here, b"")
        self.one = _end(
            *self.ids,
            there,
            ours.keys,
            asking.offer,
            answer.ack,
            random,
            self.mode,
            size,
        )
        self.two = _end(
            *self.ids[::-1],
            here,
            theirs.keys,
            answer.offer,
            asking.syn,
            random,
            self.mode,
            size,
        )

    @property
    def relay(self) -> Relay:
        return self.watched.relay

    @property
    def drops(self) -> dict[RelayDrop, int]:
        return self.watched.drops

    def renewed(self) -> "Path":
        """The same two hosts, about to make another session."""
        more = {"seed": self.seed + 1, "ids": (11, 12), "keys": self.keys}
        return evolve(self, now=self.now + 1, **more)

    def introduce(self) -> None:
        """The handshake passes."""
        (syn,), (ack,) = self.to_two(self.syn), self.to_one(self.ack)
        assert self.to_two(self.ackack) == [self.ackack]
        if not self.policy.roots:
            assert (syn, ack) == (self.syn, self.ack)

    def to_two(self, *datagrams, source=None, to=None, stride=0, link=1) -> list[bytes]:
        """Send datagrams that way; returns those that pass."""
        ends = source or self.addresses[0], to or self.addresses[1]
        return self.send(datagrams, *ends, stride, link)

    def to_one(self, *datagrams, source=None, to=None, stride=0, link=2) -> list[bytes]:
        """Send datagrams this way; returns those that pass."""
        ends = source or self.addresses[1], to or self.addresses[0]
        return self.send(datagrams, *ends, stride, link)

    def send(self, datagrams, source, destination, stride=0, link=0) -> list[bytes]:
        """Let them come in by a link, 1 from one and 2 from two; those that pass."""
        before = len(self.watched.passed)
        for data in datagrams:
            each = stride or len(data)
            self.watched.through(data, each, source, destination, self.now, link)
        if self.checked:
            assert_sound(self.relay)
        return self.watched.passed[before:]

    def opened(self) -> tuple[bytes, bytes, list[bytes]]:
        """S1, A1 and S2s of a round that nobody has sent yet."""
        (s1,) = self.one.emit(batch(self.mode), now=self.now)
        (a1,) = self.two.take(s1, now=self.now)
        s2s = of_kind(Kind.S2, self.one.take(a1, now=self.now))
        return s1, a1, s2s

    def carry(self) -> list[bytes]:
        """A whole round passes; returns the packets delivered."""
        s1, a1, s2s = self.opened()
        assert self.to_two(s1) == [s1]
        assert self.to_one(a1) == [a1]
        assert self.to_two(*s2s) == s2s
        self.two.take(*s2s, now=self.now)
        return self.two.received

    def control(self, body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """S1, A1, S2 and A2 of a control round."""
        self.one.sender.controls.send([body], self.now, self.one.out)
        (s1,) = self.one.sent()
        (a1,) = self.two.take(s1, now=self.now)
        (s2,) = self.one.take(a1, now=self.now)
        a2 = of_kind(Kind.A2, self.two.take(s2, now=self.now))[0]
        self.one.take(a2, now=self.now)
        return s1, a1, s2, a2
