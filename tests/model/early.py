"""Rounds whose packets travel inside S1s, others among them, in one or two sessions.

As in rounds.py, what was put on a link stays there, so that it arrives late, twice or
never, and the attacker's messages arrive at once where he sends them.  Packets have
numbers, so that it shows when one is delivered in two rounds or two sessions.  All is
about one association of each session: those of others have other chains.

A relay that lies is the attacker on both its links; so he is one on the way to a relay
that does not, or behind it, and without any he has all of the way.

``junk`` is whatever he makes without the round's key, early data from elsewhere
included: tag and root fit neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple, TypeVar

from tests.model.early_relay import FORGED, GENUINE, KEY, Gate, Passing, Relay, Said
from tests.model.explore import Step
from tests.model.rules import ALL, Rules

T = TypeVar("T")

IDLE, OPEN, DISCLOSED, GIVEN_UP = "idle", "open", "disclosed", "given up"
SENDER, RECEIVER = "sender", "receiver"


class Message(NamedTuple):
    """S1, A1 or S2; an A1 says what the S1 did that it answers."""

    kind: str
    session: int
    round: int
    said: Said
    tagged: bool = True  # with the right tag, which relays cannot check

    @property
    def place(self) -> tuple[int, int]:
        """Session and round."""
        return self.session, self.round

    def __str__(self) -> str:
        tag = "" if self.tagged else " with a wrong tag"
        early = ", early" if self.said.early else ""
        place = f"{self.round} of session {self.session}"
        return f"{self.kind} {place} ({self.said.what}{early}){tag}"


class Put(NamedTuple):
    """A round of the sender."""

    phase: str = IDLE
    packet: int = -1


class Accepted(NamedTuple):
    """A round at the receiver."""

    round: int
    said: Said
    seen: bool = False  # its S2


class Delivered(NamedTuple):
    """What the receiver handed on, and of which round."""

    session: int
    round: int
    said: Said


class State(NamedTuple):
    """All of the world."""

    waiting: tuple[int, ...]  # packets that are in no round, the next one first
    session: int  # that the sender begins rounds in
    put: tuple[tuple[Put, ...], ...]  # by session and round
    accepted: tuple[tuple[Accepted, ...], ...]  # by session: the last two
    delivered: tuple[Delivered, ...]
    relays: tuple[Relay, ...]  # by session
    links: frozenset[tuple[int, Message]]


class Knowledge(NamedTuple):
    """What the attacker has of one session."""

    signatures: int
    acks: int
    messages: frozenset[Message]


ONCE = "early data is delivered once, where its sender put it"
ORDERED = "early data is delivered in the order of its elements"
REFUSED = "nothing is delivered early to who does not take it"
BOUNDED = "relays pass no more than was signed and there is room for"
BACK = "relays give room back for what was signed only"
ENDED = "relays pass no early data once what was agreed to was false"
SIGNED = "relays pass S2s of what was signed only"
GOES_ON = "honest ends keep their early data"
ROOM = "there is room for who comes first"


@dataclass(frozen=True)
class Early:
    """A world of such rounds."""

    rules: Rules = ALL
    relay: bool = True
    sessions: int = 1
    rounds: int = 2  # of a session, at most
    packets: int = 2
    usual: frozenset[int] = frozenset()  # packets that are not sent early
    attacker: frozenset[int] = frozenset()  # the links he reads and sends on
    ends: frozenset[str] = frozenset()  # those that he is himself
    junk: int = 1  # S1s of a round that he makes without its key
    shapes: bool = False  # whether he makes S1s of the other sort, too
    around: bool = False  # whether he carries what he read from link to link
    gives_up: bool = True  # whether the sender gives up rounds
    taken: bool = True  # whether the receiver takes early data
    let: bool = True  # whether the relay does
    room: int = 2  # S1s of either sort that the relay has room for
    places: int = 4  # for S1s of a round at the relay

    # -- properties -----------------------------------------------------------------

    @property
    def start(self) -> State:
        """Nothing has been sent."""
        relay = self._gate.begun(self.rounds, off=not self.let)
        return State(
            tuple(range(self.packets)),
            0,
            ((Put(),) * self.rounds,) * self.sessions,
            ((),) * self.sessions,
            (),
            (relay,) * self.sessions if self.relay else (),
            frozenset(),
        )

    @cached_property
    def _gate(self) -> Gate:
        return Gate(self.rules, self.room, self.places)

    @cached_property
    def always(self) -> Mapping[str, Callable[[State], bool]]:
        """True of every state."""
        properties: dict[str, Callable[[State], bool]] = {}
        if RECEIVER not in self.ends:
            properties |= {ONCE: self._once, ORDERED: self._ordered}
        if not self.taken:
            properties[REFUSED] = lambda state: not self._early(state)
        if self.relay:
            properties |= self._of_relays
        return properties

    @property
    def _of_relays(self) -> dict[str, Callable[[State], bool]]:
        def each(holds: Callable[[Relay], bool]) -> Callable[[State], bool]:
            return lambda state: all(map(holds, state.relays))

        properties = {
            BOUNDED: each(self._gate.is_bounded),
            BACK: each(lambda relay: all(map(self._signed, relay.noted.back))),
            ENDED: each(lambda relay: not relay.noted.passed_after),
            SIGNED: each(self._only_signed),
        }
        if not self.ends and self.let:
            properties[GOES_ON] = each(lambda relay: not relay.off)
        if not (self.ends or self.gives_up or 0 in self.attacker):
            properties[ROOM] = each(lambda relay: not relay.noted.no_room)
        return properties

    @property
    def in_reach(self) -> Mapping[str, Callable[[State], bool]]:
        """Nothing: early data may be lost."""
        return {}

    def _early(self, state: State) -> list[Delivered]:
        return [each for each in state.delivered if each.said.early]

    def _once(self, state: State) -> bool:
        places = [(each.session, each.round) for each in state.delivered]
        if SENDER in self.ends:  # it may send what it likes, but one packet a round
            return len(set(places)) == len(places)
        whats = [each.said.what for each in state.delivered]
        put = [_genuine(state.put[at][number].packet) for at, number in places]
        return whats == put and len(set(whats)) == len(whats)

    def _ordered(self, state: State) -> bool:
        early = self._early(state)
        return all(
            one.round < other.round
            for session in range(self.sessions)
            for one, other in pairwise(e for e in early if e.session == session)
        )

    def _signed(self, said: Said) -> bool:
        """By the sender, not just with its key."""
        if SENDER in self.ends:
            return said.fits
        return said.what.startswith(GENUINE)

    def _only_signed(self, relay: Relay) -> bool:
        passed = (said for watched in relay.rounds for said in watched.passed)
        return all(map(self._signed, passed))

    # -- what may happen ------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """All that may happen next."""
        if SENDER not in self.ends:
            yield from self._sending(state)
        for link, message in state.links:
            yield from self._arriving(state, link, message)
        if self.attacker:
            yield from self._attacking(state)

    def _arriving(
        self, state: State, link: int, message: Message
    ) -> Iterator[Step[State]]:
        forth = message.kind != "A1"
        node = link if forth else link - 1
        reached = self._reach(state, node, 0 if forth else 1, message)
        yield Step(f"{message} arrives at {self._named(node)}", reached)

    @property
    def _last(self) -> int:
        """The receiver's link, and its number as a node; -1 is the sender."""
        return int(self.relay)

    def _named(self, node: int) -> str:
        if node < 0:
            return "the sender"
        return "the receiver" if node == self._last else "the relay"

    def _reach(self, state: State, node: int, side: int, message: Message) -> State:
        """A message comes to a node, from the sender's side (0) or the other one."""
        if node < 0:
            honest = SENDER not in self.ends and message.kind == "A1"
            return self._at_sender(state, message) if honest else state
        if node < self._last:
            return self._at_relay(state, side, message)
        honest = RECEIVER not in self.ends and message.kind != "A1"
        return self._at_receiver(state, message) if honest else state

    def _send(self, state: State, link: int, message: Message) -> State:
        return state._replace(links=state.links | {(link, message)})

    # -- the sender -----------------------------------------------------------------

    def _sending(self, state: State) -> Iterator[Step[State]]:
        session = state.session
        rounds = state.put[session]
        is_open = any(put.phase == OPEN for put in rounds)
        if state.waiting and not is_open and Put() in rounds:
            yield self._start(state, rounds.index(Put()))
        for at, number in product(range(self.sessions), range(self.rounds)):
            if self.gives_up and state.put[at][number].phase == OPEN:
                given_up = self._give_up(state, at, number)
                yield Step(f"round {number} of session {at} is given up", given_up)
        if session + 1 < self.sessions:
            yield Step("the session is renewed", self._renew(state))

    def _start(self, state: State, number: int) -> Step[State]:
        packet, *waiting = state.waiting
        said = Said(_genuine(packet), self.taken and packet not in self.usual)
        s1 = Message("S1", state.session, number, said)
        begun = self._with_put(state, s1.place, Put(OPEN, packet))
        begun = begun._replace(waiting=tuple(waiting))
        return Step(f"the sender sends {s1}", self._send(begun, 0, s1))

    def _with_put(self, state: State, place: tuple[int, int], put: Put) -> State:
        session, number = place
        rounds = _set(state.put[session], number, put)
        return state._replace(put=_set(state.put, session, rounds))

    def _give_up(self, state: State, session: int, number: int) -> State:
        """Nobody knows whether what went early arrived; all else is dropped."""
        packet = state.put[session][number].packet
        state = self._with_put(state, (session, number), Put(GIVEN_UP, packet))
        if packet in self.usual or self.rules.early_once_sent:
            return state
        return state._replace(waiting=(packet, *state.waiting))

    def _renew(self, state: State) -> State:
        """What was not disclosed goes again; early data is left to the old session."""
        session = state.session
        for number, put in enumerate(state.put[session]):
            early = self.taken and put.packet not in self.usual
            if put.phase != OPEN or (early and self.rules.early_once_sent):
                continue
            given_up = Put(GIVEN_UP, put.packet)
            state = self._with_put(state, (session, number), given_up)
            state = state._replace(waiting=(put.packet, *state.waiting))
        return state._replace(session=session + 1)

    def _at_sender(self, state: State, a1: Message) -> State:
        put, said = state.put[a1.session][a1.round], a1.said
        answers = a1.tagged and said.what == _genuine(put.packet)
        if put.phase != OPEN or not answers:
            return state
        packet = Said(KEY, True) if said.early else said
        s2 = Message("S2", a1.session, a1.round, packet)
        disclosed = self._with_put(state, a1.place, Put(DISCLOSED, put.packet))
        return self._send(disclosed, 0, s2)

    # -- the receiver ---------------------------------------------------------------

    def _at_receiver(self, state: State, message: Message) -> State:
        known = state.accepted[message.session]
        at = [accepted.round for accepted in known]
        if message.kind == "S1":
            number = at.index(message.round) if message.round in at else -1
            return self._on_s1(state, message, number)
        if message.round not in at:
            return state
        return self._on_s2(state, message, at.index(message.round))

    def _on_s1(self, state: State, s1: Message, known: int) -> State:
        accepted, early = state.accepted[s1.session], s1.said.early
        if not s1.tagged and self.rules.tag_of_s1:
            return state
        if early and not self.taken and self.rules.early_if_agreed:
            return state
        if known >= 0:
            again = early and not self.rules.early_when_accepted
            same = accepted[known].said == s1.said
            return self._deliver(state, s1, s1.said) if same and again else state
        beyond = not accepted or s1.round > max(each.round for each in accepted)
        if not beyond and self.rules.early_beyond_last:
            return state
        rounds = (*accepted, Accepted(s1.round, s1.said))[-2:]
        state = self._with_accepted(state, s1.session, rounds)
        a1 = Message("A1", s1.session, s1.round, s1.said)
        state = self._send(state, self._last, a1)
        return self._deliver(state, s1, s1.said) if early else state

    def _with_accepted(
        self, state: State, session: int, rounds: tuple[Accepted, ...]
    ) -> State:
        return state._replace(accepted=_set(state.accepted, session, rounds))

    def _on_s2(self, state: State, s2: Message, known: int) -> State:
        accepted = state.accepted[s2.session]
        round_ = accepted[known]
        said, early = round_.said, round_.said.early
        fits = said.fits if early else said == s2.said
        if round_.seen or not fits or early != s2.said.early:
            return state
        rounds = _set(accepted, known, round_._replace(seen=True))
        state = self._with_accepted(state, s2.session, rounds)
        if early and self.rules.proof_brings_nothing:
            return state
        return self._deliver(state, s2, said)

    def _deliver(self, state: State, message: Message, said: Said) -> State:
        if len(state.delivered) > self.sessions * self.rounds:
            return state  # something came twice, and how often makes no difference
        delivered = Delivered(*message.place, said)
        return state._replace(delivered=(*state.delivered, delivered))

    # -- the relay ------------------------------------------------------------------

    def _at_relay(self, state: State, side: int, message: Message) -> State:
        """Let it pass, or not."""
        if side != int(message.kind == "A1"):
            return state
        checks: dict[str, Callable[[Relay, int, Said], Passing]] = {
            "S1": self._gate.s1,
            "A1": self._gate.a1,
            "S2": self._gate.s2,
        }
        relay = state.relays[message.session]
        after, passes = checks[message.kind](relay, message.round, message.said)
        relays = _set(state.relays, message.session, after)
        state = state._replace(relays=relays)
        return self._send(state, 1 - side, message) if passes else state

    # -- the attacker ---------------------------------------------------------------

    def _attacking(self, state: State) -> Iterator[Step[State]]:
        made: list[Message] = []
        for session in range(self.sessions):
            known = self._known(state, session)
            s1s = [*self._s1s(session, known)]
            made += [*s1s, *self._a1s(session, known, s1s)]
            made += [*self._s2s(session, known)]
            made += known.messages if self.around else ()
        for link, message in product(self.attacker, made):
            yield from self._sent_on(state, link, message)

    def _sent_on(
        self, state: State, link: int, message: Message
    ) -> Iterator[Step[State]]:
        """Sent on a link it comes to the node at either end of it."""
        for node, side in ((link - 1, 1), (link, 0)):
            reached = self._reach(state, node, side, message)
            said = f"the attacker sends {self._named(node)} {message} on link {link}"
            yield Step(said, reached, honest=False)

    def _known(self, state: State, session: int) -> Knowledge:
        read = frozenset(
            message
            for link, message in state.links
            if link in self.attacker and message.session == session
        )
        everything, after = 2 * self.rounds, {"S1": 1, "S2": 2}
        signatures = (2 * m.round + after.get(m.kind, -2 * m.round) for m in read)
        acks = (2 * m.round + 1 for m in read if m.kind == "A1")
        return Knowledge(
            everything if SENDER in self.ends else max(signatures, default=0),
            everything if RECEIVER in self.ends else max(acks, default=0),
            read,
        )

    def _s1s(self, session: int, known: Knowledge) -> Iterator[Message]:
        own, sorts = SENDER in self.ends, (True, False) if self.shapes else (True,)
        for number, early in product(range(self.rounds), sorts):
            if known.signatures >= 2 * number + 1:
                for i in range(1, self.junk + 1):
                    said = Said(f"junk {i}", early)
                    yield Message("S1", session, number, said, own)
            if known.signatures >= 2 * number + 2:
                yield Message("S1", session, number, Said(FORGED, early), own)

    def _a1s(
        self, session: int, known: Knowledge, s1s: list[Message]
    ) -> Iterator[Message]:
        """To S1s of his and to those that he has read."""
        own = RECEIVER in self.ends
        read = (message for message in known.messages if message.kind == "S1")
        for s1 in dict.fromkeys((*s1s, *read)):
            if known.acks >= 2 * s1.round + 1:
                yield Message("A1", session, s1.round, s1.said, own)

    def _s2s(self, session: int, known: Knowledge) -> Iterator[Message]:
        for number in range(self.rounds):
            if known.signatures >= 2 * number + 2:
                yield Message("S2", session, number, Said(FORGED, False))
                yield Message("S2", session, number, Said(KEY, True))


def _genuine(packet: int) -> str:
    return f"{GENUINE}{packet}"


def _set(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])
