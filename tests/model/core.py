"""Small worlds of the daemon's own core: two ends, a relay, all orders.

The same search as in the model, but a step is carried out by the real thing.  That
cannot be copied, so a state remembers which steps led to it and is made again from the
start, with the same random bytes.  Two states are the same if each node got the same
datagrams in the same order, and the same are under way: whatever a node does follows
from that.

``python -m tests.model.core`` looks at worlds that are too large for the suite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from alpha_trio.proto.messages import Kind
from tests.model.explore import Step, explore
from tests.proto.ends import changed, head
from tests.proto.inner import Packet
from tests.proto.routed import Path

PACKETS = [Packet(payload=letter * 20) for letter in (b"a", b"b")]

WAIT = 0.7  # s, after which an S1 without answer goes again
LIFETIME = 3.5  # s, after which a round without answer is given up

ALTERED_AT = {
    Kind.S1: {"its pre-signature": 41, "its tag": -1},
    Kind.A1: {"its digest": 33, "its tag": -1},
    Kind.S2: {"its key": 20, "its packet": -1},
}
"""What is changed, and at which byte that is."""
EARLY_ALTERED_AT = {**ALTERED_AT, Kind.S1: {"its packet": 60, "its tag": -1}}
EARLY_ALTERED_AT[Kind.S2] = {"its key": 20, "its end": -1}

ARRIVES, COMES_TWICE, IS_LOST = "arrives", "arrives, and will again", "is lost"
GOES_AROUND = "goes around the relay"
TIME_PASSES = "time passes"


class UnderWay(NamedTuple):
    """A datagram on one of the four ways between ends and relay."""

    source: str
    target: str
    data: bytes

    def __str__(self) -> str:
        number = head(self.data).round
        return f"{Kind(self.data[0]).name} {number} from {self.source}"


class Choice(NamedTuple):
    """What happens to something that is under way, or just time."""

    datagram: UnderWay | None
    what: str  # one of those above, or what of it is altered

    def __str__(self) -> str:
        if self.datagram is None:
            return self.what
        if self.what in (ARRIVES, COMES_TWICE, IS_LOST, GOES_AROUND):
            return f"{self.datagram} {self.what}"
        return f"a copy of {self.datagram} arrives with {self.what} altered"


@dataclass(frozen=True)
class State:
    """What the nodes got and what is under way."""

    got: tuple[tuple[str, tuple[bytes, ...]], ...]
    way: tuple[UnderWay, ...]
    spent: tuple[int, ...]
    history: tuple[Choice, ...] = field(compare=False)
    delivered: tuple[bytes, ...] = field(compare=False)
    passed: tuple[bytes, ...] = field(compare=False)  # S2s, by the relay
    sent: frozenset[bytes] = field(compare=False)  # S2s, by the sender
    answered: frozenset[int] = field(compare=False)  # rounds whose A1 passed


class Replay:
    """One course of events."""

    def __init__(self, world: Core) -> None:
        early, self.pause = world.early, world.pause
        self.altered_at = world.altered_at
        mode = "adaptive" if early else "n"
        self.path = Path(mode=mode, checked=False, early=early)
        self.path.introduce()
        self.got: dict[str, list[bytes]] = {"one": [], "relay": [], "two": []}
        self.way: list[UnderWay] = []
        self.sent: set[bytes] = set()
        self.answered: set[int] = set()
        self.passed: list[bytes] = []
        for packet in PACKETS[: world.packets]:
            self._send("one", self.path.one.emit(packet, now=self.path.now))

    def carry_out(self, choice: Choice) -> None:
        """Do what was chosen."""
        datagram, what = choice
        if datagram is None:
            self._wait()
            return
        if what in (ARRIVES, IS_LOST, GOES_AROUND):
            self.way.remove(datagram)
        if what == GOES_AROUND:
            beyond = "two" if datagram.source == "one" else "one"
            self.way.append(datagram._replace(source="relay", target=beyond))
        elif what != IS_LOST:
            at = self.altered_at[Kind(datagram.data[0])].get(what)
            data = datagram.data if at is None else changed(datagram.data, at)
            self._arrive(datagram._replace(data=data))

    def _wait(self) -> None:
        path = self.path
        path.now += self.pause
        for got in self.got.values():
            got.append(b"")
        self._send("one", path.one.serve(path.now))
        self._send("two", path.two.serve(path.now))

    def _arrive(self, datagram: UnderWay) -> None:
        source, target, data = datagram
        self.got[target].append(data)
        if target == "relay":
            self._pass(source, data)
            return
        end = self.path.one if target == "one" else self.path.two
        self._send(target, end.take(data, now=self.path.now))

    def _pass(self, source: str, data: bytes) -> None:
        forth = source == "one"
        through = self.path.to_two if forth else self.path.to_one
        for passed in through(data):
            self.way.append(UnderWay("relay", "two" if forth else "one", passed))
            if passed[0] == Kind.S2:
                self.passed.append(passed)
            if passed[0] == Kind.A1:
                self.answered.add(head(passed).round)

    def _send(self, source: str, datagrams: list[bytes]) -> None:
        for data in datagrams:
            self.way.append(UnderWay(source, "relay", data))
            if data[0] == Kind.S2:
                self.sent.add(data)


@dataclass(frozen=True)
class Core:
    """A world, and how often the network does what to one of the datagrams."""

    packets: int = 2
    copies: int = 0
    losses: int = 0
    alterations: int = 0
    waits: int = 0
    detours: int = 0
    early: bool = False  # whether packets travel inside S1s
    pause: float = WAIT  # s, each time that time passes

    @property
    def altered_at(self) -> dict[Kind, dict[str, int]]:
        """What can be altered of each kind."""
        return EARLY_ALTERED_AT if self.early else ALTERED_AT

    @property
    def start(self) -> State:
        """The packets were handed in."""
        return self._state(())

    def _state(self, history: tuple[Choice, ...]) -> State:
        replay = Replay(self)
        for choice in history:
            replay.carry_out(choice)
        return State(
            tuple((name, tuple(got)) for name, got in replay.got.items()),
            tuple(sorted(replay.way)),
            self._left(history),
            history,
            tuple(replay.path.two.received),
            tuple(replay.passed),
            frozenset(replay.sent),
            frozenset(replay.answered),
        )

    def _left(self, history: tuple[Choice, ...]) -> tuple[int, ...]:
        """Of copies, losses, waits, detours and alterations."""
        used = Counter(choice.what for choice in history)
        whole = COMES_TWICE, IS_LOST, TIME_PASSES, GOES_AROUND
        known = [used[what] for what in whole]
        altered = len(history) - sum(known) - used[ARRIVES]
        limits = self.copies, self.losses, self.waits, self.detours, self.alterations
        return tuple(
            limit - count
            for limit, count in zip(limits, (*known, altered), strict=True)
        )

    # -- properties -----------------------------------------------------------------

    @cached_property
    def always(self) -> Mapping[str, Callable[[State], bool]]:
        """True of every state."""
        properties = {
            "nothing forged is delivered, and nothing twice": _once,
            "the relay passes what the sender sent, and nothing twice": _genuine,
            "the relay passes S2s only of rounds whose A1 it passed": _agreed,
        }
        if self.early:
            properties["what goes early arrives in its order"] = _ordered
        return properties

    @cached_property
    def in_reach(self) -> Mapping[str, Callable[[State], bool]]:
        """Reached from everywhere by arrivals alone, if the network is no worse."""
        given_up = self.waits and self.pause >= LIFETIME
        if self.losses or self.alterations or self.detours or given_up:
            return {}
        return {"every packet gets through": self._through}

    def _through(self, state: State) -> bool:
        return len(state.delivered) == self.packets

    # -- what may happen ------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """All that may happen next."""
        for choice in self._choices(state):
            reached = self._state((*state.history, choice))
            honest = choice.what in (ARRIVES, TIME_PASSES)
            yield Step(str(choice), reached, honest)

    def _choices(self, state: State) -> Iterator[Choice]:
        copies, losses, waits, detours, alterations = state.spent
        if waits:
            yield Choice(None, TIME_PASSES)
        for datagram in dict.fromkeys(state.way):
            yield Choice(datagram, ARRIVES)
            if copies:
                yield Choice(datagram, COMES_TWICE)
            if losses:
                yield Choice(datagram, IS_LOST)
            if detours and datagram.target == "relay":
                yield Choice(datagram, GOES_AROUND)
            if alterations:
                for what in self.altered_at[Kind(datagram.data[0])]:
                    yield Choice(datagram, what)


def _once(state: State) -> bool:
    return Counter(state.delivered) <= Counter(packet.build() for packet in PACKETS)


def _ordered(state: State) -> bool:
    order = [packet.build() for packet in PACKETS]
    places = [order.index(packet) for packet in state.delivered if packet in order]
    return places == sorted(places)


def _genuine(state: State) -> bool:
    return Counter(state.passed) <= Counter(state.sent)


def _agreed(state: State) -> bool:
    return {head(data).round for data in state.passed} <= state.answered


WIDE = [
    Core(copies=1),
    Core(alterations=1),
    Core(losses=1, waits=1),
    Core(packets=1, copies=1, losses=1, waits=1),
    Core(packets=1, copies=1, alterations=1),
    Core(packets=1, alterations=1, waits=1),
    Core(detours=2),
    Core(early=True, copies=2),
    Core(early=True, alterations=2),
    Core(early=True, copies=1, losses=1, waits=1, pause=LIFETIME),
    Core(early=True, packets=1, copies=1, alterations=1, detours=2),
]

if __name__ == "__main__":
    for world in WIDE:
        print(f"{world}:\n  {explore(world).told()}", flush=True)
