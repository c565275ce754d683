"""Rounds of one packet each, from a sender over relays to a receiver.

A message lies on a link: 0 is that of the sender, the last one that of the receiver,
relays are between them.  What was put on a link stays there, so that it can arrive
late, twice or never; in what may happen, dropping is so no more than being late.

Terms.  Who knows an element of a hash chain knows all before it, so what somebody knows
of a chain is one number.  Of an S1 the pre-signature is ``genuine``, ``forged`` (made
with the round's key, for another packet), or ``junk 1``, ``junk 2`` ... (made without
the key, fit by nothing); it stands for the whole S1 and its digest.  A packet is named
like the pre-signature that it fits.

The attacker's messages are not put on a link but arrive at once at the node that he
sends them to, since he can wait for the right moment as well as the link can.  He makes
what his knowledge allows; a message with the right tag of others he can only copy, and
who copies one to another link has a way around the relays between (``around``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple, TypeVar

from tests.model.explore import Step
from tests.model.rules import ALL, Rules

T = TypeVar("T")

IDLE, OPEN, DISCLOSED, GIVEN_UP = "idle", "open", "disclosed", "given up"
GENUINE, FORGED = "genuine", "forged"

SENDER, RECEIVER, ATTACKER, VICTIM = "sender", "receiver", "attacker", "victim"
"""Addresses.  The attacker's own is on the first link, the victim's on the last."""


class Message(NamedTuple):
    """S1, A1 or S2."""

    kind: str
    round: int
    what: str  # the pre-signature, or the packet
    source: str
    target: str
    tagged: bool = True  # with the right tag, which relays cannot check

    def __str__(self) -> str:
        tag = "" if self.tagged else " with a wrong tag"
        ends = f"from {self.source} to {self.target}"
        return f"{self.kind} {self.round} ({self.what}) {ends}{tag}"


class Watched(NamedTuple):
    """A round as a relay sees it."""

    s1s: tuple[tuple[str, str], ...] = ()  # what, and to whom
    agreed: frozenset[tuple[str, str]] = frozenset()  # those that an A1 was for
    keyed: bool = False  # the key is out, and nothing is agreed to any more
    passed: frozenset[tuple[str, str]] = frozenset()  # packets, and to whom


class Relay(NamedTuple):
    """A relay: its place in both chains, and its rounds."""

    signatures: int
    acks: int
    rounds: tuple[Watched, ...]


class State(NamedTuple):
    """All of the world."""

    sender: tuple[str, ...]  # by round
    frozen: tuple[str, ...]  # by round: the S1 the receiver froze
    delivered: tuple[tuple[str, ...], ...]  # by round
    copies: tuple[int, ...]  # by round: S1s the receiver got, up to two
    position: int  # in the signature chain, at the receiver
    relays: tuple[Relay, ...]
    links: frozenset[tuple[int, Message]]


class Knowledge(NamedTuple):
    """What the attacker has read or has of his own."""

    signatures: int
    acks: int
    messages: frozenset[Message]


@dataclass(frozen=True)
class Rounds:
    """A world of rounds."""

    rules: Rules = ALL
    relays: int = 1
    rounds: int = 1
    attacker: frozenset[int] = frozenset()  # the links he reads and sends on
    ends: frozenset[str] = frozenset()  # those that he is himself
    junk: int = 1  # S1s of a round that he makes without its key
    places: int = 4  # for S1s of a round at a relay
    gives_up: bool = True  # whether the sender gives up rounds; not the last one
    around: bool = False  # whether he carries what he read from link to link
    copies: bool = False  # whether he sends S1s from an address of his own

    # -- properties -----------------------------------------------------------------

    @property
    def start(self) -> State:
        """Nothing has been sent."""
        each = self.rounds
        relay = Relay(0, 0, (Watched(),) * each)
        return State(
            (IDLE,) * each,
            ("",) * each,
            ((),) * each,
            (0,) * each,
            0,
            (relay,) * self.relays,
            frozenset(),
        )

    @cached_property
    def always(self) -> Mapping[str, Callable[[State], bool]]:
        """True of every state."""
        properties: dict[str, Callable[[State], bool]] = {}
        if not self.ends:
            properties["no key leaves before the receiver froze its S1"] = self._frozen
        if RECEIVER not in self.ends:
            properties["nothing forged is delivered, and nothing twice"] = self._once
        properties["relays pass what was signed and agreed to there"] = self._agreed
        if self.copies:
            properties["a copy does not draw all answers elsewhere"] = self._at_home
        return properties

    @property
    def in_reach(self) -> Mapping[str, Callable[[State], bool]]:
        """Reached from everywhere, once the attacker stops."""
        if self.ends:
            return {}
        return {"the last round gets through": lambda state: bool(state.delivered[-1])}

    def _frozen(self, state: State) -> bool:
        rounds = zip(state.sender, state.frozen, strict=True)
        return all(frozen == GENUINE for phase, frozen in rounds if phase == DISCLOSED)

    def _once(self, state: State) -> bool:
        if SENDER in self.ends:  # it may sign what it likes, but one packet a round
            return all(len(packets) < 2 for packets in state.delivered)
        return all(packets in ((), (GENUINE,)) for packets in state.delivered)

    def _agreed(self, state: State) -> bool:
        return all(
            self._may_pass(state, number, packet, target)
            for relay in state.relays
            for number, watched in enumerate(relay.rounds)
            for packet, target in watched.passed
        )

    def _may_pass(self, state: State, number: int, packet: str, target: str) -> bool:
        signed = SENDER in self.ends or packet == GENUINE
        agreed = RECEIVER in self.ends or state.frozen[number] == packet
        return signed and agreed and target == RECEIVER

    def _at_home(self, state: State) -> bool:
        answered = {message.round for _, message in state.links if _answers(message)}
        copies = enumerate(state.copies)
        return all(number in answered for number, count in copies if count > 1)

    # -- what may happen ------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """All that may happen next."""
        if SENDER not in self.ends:
            yield from self._sending(state)
        for link, message in state.links:
            yield from self._arriving(state, link, message)
        if self.attacker:
            yield from self._attacking(state)

    def _sending(self, state: State) -> Iterator[Step[State]]:
        for number, phase in enumerate(state.sender):
            over = number == 0 or state.sender[number - 1] in (DISCLOSED, GIVEN_UP)
            if phase == IDLE and over:
                s1 = Message("S1", number, GENUINE, SENDER, RECEIVER)
                begun = self._with_phase(state, number, OPEN)
                yield Step(f"the sender sends {s1}", self._put(begun, 0, s1))
            if phase == OPEN and self.gives_up and number + 1 < self.rounds:
                given_up = self._with_phase(state, number, GIVEN_UP)
                yield Step(f"the sender gives up round {number}", given_up)
            if phase == OPEN and not self.rules.key_after_a1:
                yield Step("the sender discloses early", self._disclose(state, number))

    def _arriving(
        self, state: State, link: int, message: Message
    ) -> Iterator[Step[State]]:
        forth = message.kind != "A1"
        node = link if forth else link - 1  # a relay; or -1, or their number: an end
        reached = self._reach(state, node, 0 if forth else 1, message)
        yield Step(f"{message} arrives at {self._named(node)}", reached)

    def _reach(self, state: State, node: int, side: int, message: Message) -> State:
        """A message comes to a node, from the sender's side (0) or the other one."""
        if node < 0:
            return state if SENDER in self.ends else self._at_sender(state, message)
        if node < self.relays:
            return self._at_relay(state, node, side, message)
        return state if RECEIVER in self.ends else self._at_receiver(state, message)

    def _named(self, node: int) -> str:
        if node < 0:
            return "the sender"
        if node == self.relays:
            return "the receiver"
        return "the relay" if self.relays == 1 else f"relay {node}"

    def _put(self, state: State, link: int, message: Message) -> State:
        return state._replace(links=state.links | {(link, message)})

    # -- the sender -----------------------------------------------------------------

    def _with_phase(self, state: State, number: int, phase: str) -> State:
        return state._replace(sender=_set(state.sender, number, phase))

    def _at_sender(self, state: State, a1: Message) -> State:
        number = a1.round
        if a1.kind != "A1" or a1.target != SENDER or state.sender[number] != OPEN:
            return state
        answers = a1.tagged and a1.what == GENUINE
        if self.rules.digest_of_a1 and not answers:
            return state
        return self._disclose(state, number)

    def _disclose(self, state: State, number: int) -> State:
        s2 = Message("S2", number, GENUINE, SENDER, RECEIVER)
        return self._put(self._with_phase(state, number, DISCLOSED), 0, s2)

    # -- the receiver ---------------------------------------------------------------

    def _at_receiver(self, state: State, message: Message) -> State:
        if message.target != RECEIVER:
            return state
        if message.kind == "S1":
            return self._on_s1(state, message)
        return self._on_s2(state, message) if message.kind == "S2" else state

    def _on_s1(self, state: State, s1: Message) -> State:
        number, opening = s1.round, 2 * s1.round + 1
        frozen = state.frozen[number]
        fresh = state.position < opening and not frozen
        other = not self.rules.s1_freezes and state.position <= opening + 1
        tagged = s1.tagged or not self.rules.tag_of_s1
        if not tagged or not (fresh or other or frozen == s1.what):
            return state
        state = state._replace(
            frozen=_set(state.frozen, number, s1.what),
            copies=_set(state.copies, number, min(2, state.copies[number] + 1)),
            position=max(state.position, opening),
        )
        targets = {s1.source}
        if self.rules.answered_at_home and not fresh:
            targets.add(SENDER)
        for target in targets:
            a1 = Message("A1", number, s1.what, RECEIVER, target)
            state = self._put(state, self.relays, a1)
        return state

    def _on_s2(self, state: State, s2: Message) -> State:
        number, packets = s2.round, state.delivered[s2.round]
        if s2.what != state.frozen[number]:
            return state
        state = state._replace(position=max(state.position, 2 * number + 2))
        if s2.what in packets and (self.rules.each_once or len(packets) > 1):
            return state
        delivered = _set(state.delivered, number, (*packets, s2.what))
        return state._replace(delivered=delivered)

    # -- a relay --------------------------------------------------------------------

    def _at_relay(self, state: State, node: int, side: int, message: Message) -> State:
        """Let it pass, or not."""
        relay = state.relays[node]
        checks = {"S1": self._pass_s1, "A1": self._pass_a1, "S2": self._pass_s2}
        after = checks[message.kind](relay, side, message)
        if after is None:
            return state
        state = state._replace(relays=_set(state.relays, node, after))
        return self._put(state, node if side else node + 1, message)

    def _pass_s1(self, relay: Relay, side: int, s1: Message) -> Relay | None:
        if side and self.rules.answers_from_there:
            return None
        number, said = s1.round, (s1.what, s1.target)
        watched = relay.rounds[number]
        if not watched.s1s:
            opening = 2 * number + 1
            if relay.signatures >= opening:
                return None
            before = tuple(_overtaken(each) for each in relay.rounds[:number])
            begun = Watched((said,)), *relay.rounds[number + 1 :]
            return Relay(opening, relay.acks, (*before, *begun))
        if said in watched.s1s:
            return None if watched.keyed else relay
        if watched.keyed or len(watched.s1s) >= self._places(watched):
            return None
        return _with(relay, number, watched._replace(s1s=(*watched.s1s, said)))

    def _places(self, watched: Watched) -> int:
        frozen = self.rules.s1s_before_a1 or not self.rules.several_s1s
        if watched.agreed and frozen:
            return 0
        return self.places if self.rules.several_s1s else 2

    def _pass_a1(self, relay: Relay, side: int, a1: Message) -> Relay | None:
        number, opening = a1.round, 2 * a1.round + 1
        watched = relay.rounds[number]
        from_there = self.rules.answers_from_there
        said = next((s1 for s1 in watched.s1s if self._answers(a1, s1)), None)
        if said is None or watched.keyed or (from_there and not side):
            return None
        if relay.signatures > opening:
            return None
        if said not in watched.agreed:
            if watched.agreed and not self.rules.several_s1s:
                return None
            s1s = watched.s1s if self.rules.several_s1s else (said,)
            watched = watched._replace(s1s=s1s, agreed=watched.agreed | {said})
        relay = relay._replace(acks=max(relay.acks, opening))
        return _with(relay, number, watched)

    def _answers(self, a1: Message, s1: tuple[str, str]) -> bool:
        what, target = s1
        here = not self.rules.answers_from_there or a1.source == target
        return a1.what == what and here

    def _pass_s2(self, relay: Relay, side: int, s2: Message) -> Relay | None:
        """Its key is right, or it would not be worth a step."""
        watched = relay.rounds[s2.round]
        if side or not watched.agreed:
            return None
        fitting = {
            (what, target)
            for what, target in watched.agreed
            if what == s2.what and self._goes(s2, target)
        }
        passing = (s2.what, s2.target)
        watched = watched._replace(keyed=True)
        if fitting and passing not in watched.passed:
            passed = watched.passed | {passing}
            watched = watched._replace(agreed=frozenset(fitting), passed=passed)
        elif passing in watched.passed or watched == relay.rounds[s2.round]:
            return None
        key = max(relay.signatures, 2 * s2.round + 2)
        return _with(relay._replace(signatures=key), s2.round, watched)

    def _goes(self, s2: Message, target: str) -> bool:
        return s2.target == target or not self.rules.answers_from_there

    # -- the attacker ---------------------------------------------------------------

    def _attacking(self, state: State) -> Iterator[Step[State]]:
        known = self._known(state)
        carried = known.messages if self.around else ()
        made = (*self._s1s(known), *self._a1s(known), *self._s2s(known), *carried)
        for link in self.attacker:
            for message in made:
                yield from self._sent_on(state, link, message)

    def _sent_on(
        self, state: State, link: int, message: Message
    ) -> Iterator[Step[State]]:
        """Sent on a link it comes to the nodes at both ends of it, one or the other."""
        for node, side in ((link - 1, 1), (link, 0)):
            reached = self._reach(state, node, side, message)
            said = f"the attacker sends {self._named(node)} {message} on link {link}"
            yield Step(said, reached, honest=False)

    def _known(self, state: State) -> Knowledge:
        read = frozenset(m for link, m in state.links if link in self.attacker)
        signatures = max(map(_signature_element, read), default=0)
        acks = max((2 * m.round + 1 for m in read if m.kind == "A1"), default=0)
        everything = 2 * self.rounds
        return Knowledge(
            everything if SENDER in self.ends else signatures,
            everything if RECEIVER in self.ends else acks,
            read,
        )

    def _s1s(self, known: Knowledge) -> Iterator[Message]:
        own = SENDER in self.ends
        sources = (SENDER, ATTACKER) if self.copies else (SENDER,)
        for number, source, target in product(
            range(self.rounds), sources, self._targets
        ):
            if known.signatures >= 2 * number + 1:
                junk = () if own else self._junk
                for what in (*junk, *((GENUINE,) if own else ())):
                    yield Message("S1", number, what, source, target, own)
            if known.signatures >= 2 * number + 2:
                yield Message("S1", number, FORGED, source, target, own)
        if self.copies:
            for message in known.messages:
                if message.kind == "S1" and message.tagged:
                    yield message._replace(source=ATTACKER)

    @property
    def _junk(self) -> tuple[str, ...]:
        return tuple(f"junk {i}" for i in range(1, self.junk + 1))

    @property
    def _targets(self) -> tuple[str, ...]:
        """Where the attacker sends; a victim only as an end, or he could anyway."""
        return (VICTIM,) if {SENDER, RECEIVER} <= self.ends else (RECEIVER,)

    def _a1s(self, known: Knowledge) -> Iterator[Message]:
        own = RECEIVER in self.ends
        for number, source in product(range(self.rounds), self._targets):
            if known.acks >= 2 * number + 1:
                for what in (GENUINE, FORGED, *self._junk):
                    yield Message("A1", number, what, source, SENDER, own)

    def _s2s(self, known: Knowledge) -> Iterator[Message]:
        for number, target in product(range(self.rounds), self._targets):
            if known.signatures >= 2 * number + 2:
                yield Message("S2", number, FORGED, SENDER, target)
                yield Message("S2", number, GENUINE, SENDER, target)


def _answers(message: Message) -> bool:
    return message.kind == "A1" and message.target == SENDER


def _signature_element(message: Message) -> int:
    return {"S1": 2 * message.round + 1, "S2": 2 * message.round + 2, "A1": 0}[
        message.kind
    ]


def _overtaken(watched: Watched) -> Watched:
    """A later round began, so its key follows; without an A1 it is forgotten."""
    return watched._replace(keyed=True) if watched.agreed else Watched()


def _set(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _with(relay: Relay, number: int, watched: Watched) -> Relay:
    return relay._replace(rounds=_set(relay.rounds, number, watched))
