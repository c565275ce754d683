"""A handshake of two ends over a relay, above all one that renews a live session.

The initiator is on link 0, the responder on link 1, the relay between them.  A message
is under way until it arrives; who wants it to come again has to send it again, as the
ends do: the SYN until an ACK was taken, the ACKACK until something came in the new
session, the ACK when the SYN comes again.  So a message that is refused is lost, and
what the ends do about that is all that helps.

Terms.  A SYN is its key, its ``offer`` (share and anchors), whether it shows a session
that it renews, and its cookie.  An ACK is what was signed of the SYN it answers, a key,
and its own offer; an ACKACK is the ACK it ends, signed by the SYN's key.  Only who owns
a key signs with it; the attacker has some of his own, knows everybody's public keys,
makes any SYN and COOKIE, and repeats all that he has read.  What two ends derive their
keys from is the ACK with the SYN in it, so they agree if that is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from tests.model.explore import Step
from tests.model.rules import ALL, Rules

INITIATOR, RESPONDER, ELSEWHERE = "initiator", "responder", "elsewhere"
"""Keys of the two ends and their addresses; an address that is the attacker's."""

GENUINE, ALTERED = "genuine", "altered"

NO_COOKIE, COOKIE, FORGED_COOKIE = "no cookie", "cookie", "forged cookie"


class Syn(NamedTuple):
    """As it is on the wire."""

    key: str
    offer: str
    renews: bool  # shows the session, if anybody looks
    cookie: str = NO_COOKIE

    def __str__(self) -> str:
        renewal = ", renewal" if self.renews else ""
        return f"SYN({self.key}, {self.offer}{renewal}, {self.cookie})"


class Ack(NamedTuple):
    """What it answers is the SYN as it was signed."""

    syn: Syn
    key: str
    offer: int  # of the answers of its responder, which one

    def __str__(self) -> str:
        return f"ACK({self.key} {self.offer} to {self.syn})"


class Ackack(NamedTuple):
    """Signed by the key of the SYN."""

    ack: Ack

    def __str__(self) -> str:
        return f"ACKACK(to {self.ack})"


class Cookie(NamedTuple):
    """For who sent the initiator's SYN."""

    cookie: str

    def __str__(self) -> str:
        return f"COOKIE({self.cookie})"


Message = Syn | Ack | Ackack | Cookie


class Sent(NamedTuple):
    """A message under way on a link."""

    link: int
    forth: bool  # towards the responder
    message: Message
    source: str  # where a SYN came from


class Answer(NamedTuple):
    """A half-open answer of the responder."""

    shown: str  # by which kinds are kept apart
    place: str
    ack: Ack


class State(NamedTuple):
    """All of the world."""

    cookie: str = NO_COOKIE  # what the initiator puts into its SYN
    asked_again: bool = False  # it has taken a COOKIE
    taken: Ack | None = None  # the initiator's
    heard: bool = False  # something came to the initiator in the new session
    heard_back: bool = False  # and to the responder
    answers: tuple[Answer, ...] = ()
    made: int = 0  # answers
    session: Ack | None = None  # the responder's new one
    syns: frozenset[Syn] = frozenset()  # that passed the relay, as signed
    acks: tuple[Ack, ...] = ()  # the relay's, the oldest first
    sessions: frozenset[Ack] = frozenset()  # the relay's new ones
    way: frozenset[Sent] = frozenset()  # under way
    read: frozenset[Message] = frozenset()  # by the attacker


@dataclass(frozen=True)
class Handshake:
    """A world of one handshake; another one, 15 s later, is not in it."""

    rules: Rules = ALL
    live: bool = True  # there is a session that it renews
    attacker: frozenset[int] = frozenset()  # the links he reads and sends on
    drops: bool = False  # whether he is on the path of all he reads
    keys: tuple[str, ...] = ()  # of his own
    alters: int = 0  # SYNs he makes in the initiator's name, and uses what COOKIEs say
    sources: tuple[str, ...] = (INITIATOR,)  # where those seem to come from
    cookies: bool = False  # whether he makes COOKIEs
    asks: bool = False  # whether he asks for sessions in his own name
    most_made: int = 2  # answers before the last one to a SYN of the attacker's
    prompt: frozenset[int] = frozenset()  # links on which nothing is late
    initiates: bool = True  # whether the initiator asks for a session

    # -- properties -----------------------------------------------------------------

    @property
    def start(self) -> State:
        """Nobody has said anything."""
        return State()

    @cached_property
    def always(self) -> Mapping[str, Callable[[State], bool]]:
        """True of every state."""
        return {
            "nobody is believed to be somebody else": _nobody_else,
            "both ends agree on ids, keys and anchors": _agreed,
            "a relay's sessions are those of ends that answered": self._answered,
        }

    @cached_property
    def in_reach(self) -> Mapping[str, Callable[[State], bool]]:
        """Reached from everywhere, once the attacker stops, by this handshake alone."""
        properties = {"data flows in both directions": self._flows}
        if self.initiates:
            properties["the new session comes about"] = lambda state: state.heard
        return properties

    def _answered(self, state: State) -> bool:
        return all(ack.key == RESPONDER or 1 in self.attacker for ack in state.sessions)

    def _flows(self, state: State) -> bool:
        there = state.taken if self._moves(state.heard) else None
        back = state.session if self._moves(state.heard_back) else None
        received = there in (None, state.session) and back in (None, state.taken)
        return received and self._carries(state, there) and self._carries(state, back)

    def _moves(self, heard: bool) -> bool:
        """Whether an end that has the new session sends in it."""
        return heard or not (self.live and self.rules.old_carries_on)

    def _carries(self, state: State, session: Ack | None) -> bool:
        """Whether the relay lets a session pass; None is the old one."""
        return self.live if session is None else session in state.sessions

    # -- what may happen ------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """All that may happen next."""
        yield from self._asking(state)
        for sent in state.way:
            yield from self._arriving(state, sent)
        yield from self._attacking(state)

    def _asking(self, state: State) -> Iterator[Step[State]]:
        if not self.initiates:
            return
        if state.taken is None:
            for syn in self._own_syns(state):
                yield Step(f"the initiator sends {syn}", self._send(state, syn))
            return
        if not state.heard:
            again = self._send(state, Ackack(state.taken))
            yield Step("the initiator sends its ACKACK", again)
            yield from self._hearing(state)

    def _hearing(self, state: State) -> Iterator[Step[State]]:
        """The initiator says something in the new session, and is answered there."""
        if state.session == state.taken and state.taken in state.sessions:
            heard = state._replace(heard_back=True)
            yield Step("the responder hears something in the new session", heard)
            if self._moves(state.heard_back):
                heard = state._replace(heard=True)
                yield Step("the initiator hears something in the new session", heard)

    def _own_syns(self, state: State) -> Iterator[Syn]:
        free = self.rules.ack_for_every_variant
        # Without that rule the cookie is where the proof of renewal was.
        renews = self.live and (free or state.cookie == NO_COOKIE)
        yield Syn(INITIATOR, GENUINE, renews, state.cookie)
        if free and state.cookie != NO_COOKIE:
            yield Syn(INITIATOR, GENUINE, renews)

    def _send(self, state: State, message: Message) -> State:
        return self._put(state, Sent(0, True, message, INITIATOR))

    def _put(self, state: State, sent: Sent) -> State:
        if sent.link in self.attacker and self._worth_reading(sent.message):
            state = state._replace(read=state.read | {sent.message})
        if _key(sent.message) in self.keys and sent.link == sent.forth:
            return self._reach(state, sent)  # refused there, and so at any time
        if sent.link in self.prompt:
            return self._reach(state, sent)
        return state._replace(way=state.way | {sent})

    def _worth_reading(self, message: Message) -> bool:
        return not isinstance(message, Cookie) or self.alters > 0

    def _arriving(self, state: State, sent: Sent) -> Iterator[Step[State]]:
        without = state._replace(way=state.way - {sent})
        target = RESPONDER if sent.forth else INITIATOR
        node = "the relay" if sent.link != sent.forth else f"the {target}"
        reached = self._reach(without, sent)
        yield Step(f"{sent.message} arrives at {node}", reached)
        if self.drops and sent.link in self.attacker:
            yield Step(f"the attacker drops {sent.message}", without, honest=False)

    def _reach(self, state: State, sent: Sent) -> State:
        if sent.link != sent.forth:
            return self._at_relay(state, sent)
        if sent.forth:
            return self._at_responder(state, sent)
        return self._at_initiator(state, sent.message)

    def _signed(self, syn: Syn) -> Syn:
        """What an ACK to it is about."""
        if self.rules.ack_for_every_variant:
            return syn._replace(renews=False, cookie=NO_COOKIE)
        return syn

    def _fits(self, ack: Ack, syn: Syn) -> bool:
        """Whether the ACK's signature is over this SYN."""
        if self.rules.all_is_signed:
            return ack.syn == self._signed(syn)
        return ack.syn._replace(offer="") == self._signed(syn)._replace(offer="")

    # -- the initiator --------------------------------------------------------------

    def _at_initiator(self, state: State, message: Message) -> State:
        if state.taken is not None:
            return state
        if isinstance(message, Cookie):
            return self._on_cookie(state, message)
        if not isinstance(message, Ack) or message.key != RESPONDER:
            return state
        if not any(self._fits(message, syn) for syn in self._own_syns(state)):
            return state
        taken = message._replace(syn=self._signed(next(self._own_syns(state))))
        return state._replace(taken=taken)

    def _on_cookie(self, state: State, message: Cookie) -> State:
        if state.asked_again and not self.rules.ack_for_every_variant:
            return state  # it comes too soon after the SYN it answers
        return state._replace(cookie=message.cookie, asked_again=True)

    # -- the responder --------------------------------------------------------------

    def _at_responder(self, state: State, sent: Sent) -> State:
        message = sent.message
        if isinstance(message, Syn) and message.key == INITIATOR:
            return self._on_syn(state, message, sent.source)
        if isinstance(message, Ackack):
            return self._on_ackack(state, message)
        return state

    def _on_syn(self, state: State, syn: Syn, source: str) -> State:
        signed = self._signed(syn)
        for answer in state.answers:
            if answer.ack.syn == signed:
                return self._answer(state, answer)
        shown = self._shown(syn, source)
        if state.session is not None:
            return state
        if syn.offer != GENUINE and state.made >= self.most_made:
            return state
        if shown != "session" and syn.cookie != COOKIE:
            wary = bool(state.answers) or syn.cookie != NO_COOKIE
            if wary:
                return self._put(state, Sent(1, False, Cookie(COOKIE), source))
        ack = Ack(signed, RESPONDER, state.made)
        answer = Answer(shown, source, ack)
        state = state._replace(
            answers=self._keep(state.answers, answer), made=state.made + 1
        )
        return self._answer(state, answer)

    def _shown(self, syn: Syn, source: str) -> str:
        covered = syn.offer == GENUINE or not self.rules.proof_covers_syn
        if self.live and syn.renews and covered:
            return "session"
        return "place" if source == INITIATOR else "nothing"

    def _keep(self, kept: tuple[Answer, ...], answer: Answer) -> tuple[Answer, ...]:
        """Which one goes is chance; here it is the oldest, as the attacker wants it."""
        if not self.rules.answers_apart:
            return (*(a for a in kept if a.place != answer.place), answer)
        alike = [a for a in kept if a[:2] == answer[:2]]
        gone = alike[0] if len(alike) >= 2 else None
        return (*(a for a in kept if a is not gone), answer)

    def _answer(self, state: State, answer: Answer) -> State:
        if answer.place != INITIATOR:
            return state  # it does not come by here
        return self._put(state, Sent(1, False, answer.ack, RESPONDER))

    def _on_ackack(self, state: State, ackack: Ackack) -> State:
        """It names an answer by its id, and is signed over SYN and ACK."""
        for answer in state.answers:
            if self._ends(ackack, answer.ack):
                return state._replace(session=answer.ack, answers=())
        return state

    def _ends(self, ackack: Ackack, ack: Ack) -> bool:
        said = ackack.ack
        same = (said.key, said.offer) == (ack.key, ack.offer)
        return same and self._fits(said, ack.syn)

    # -- the relay ------------------------------------------------------------------

    def _at_relay(self, state: State, sent: Sent) -> State:
        message = sent.message
        if isinstance(message, Syn):
            state = state._replace(syns=state.syns | {self._signed(message)})
        elif isinstance(message, Ack):
            if message not in state.acks:
                if not any(self._fits(message, syn) for syn in state.syns):
                    return state
                state = state._replace(acks=self._remember(state.acks, message))
        elif isinstance(message, Ackack):
            ended = next((a for a in state.acks if self._ends(message, a)), None)
            if ended is None:
                return state
            state = state._replace(sessions=state.sessions | {ended})
        elif not state.syns:
            return state
        link = 1 if sent.forth else 0
        return self._put(state, sent._replace(link=link))

    def _remember(self, acks: tuple[Ack, ...], ack: Ack) -> tuple[Ack, ...]:
        """Three ACKs to a SYN, and as many of the responder of the live session."""
        own = self.live and self.rules.place_for_live_key
        apart = [a for a in acks if own and a.key == RESPONDER]
        others = [a for a in acks if a not in apart and a.syn == ack.syn]
        if own and ack.key == RESPONDER:
            gone = apart[:1] if len(apart) >= 3 else []
        else:
            gone = others[:1] if len(others) >= 3 else []
        return (*(a for a in acks if a not in gone), ack)

    # -- the attacker ---------------------------------------------------------------

    def _attacking(self, state: State) -> Iterator[Step[State]]:
        for link in self.attacker:
            for forth, message, source in self._made(state):
                for sent in self._both_ends(link, forth, message, source):
                    reached = self._reach(state, sent)
                    node = self._node(sent)
                    said = f"the attacker sends {node} {message} as from {source}"
                    yield Step(said, reached, honest=False)

    def _both_ends(
        self, link: int, forth: bool, message: Message, source: str
    ) -> Iterator[Sent]:
        """On a link it goes where it would go, or by the relay to the other side."""
        yield Sent(link, forth, message, source)
        if not self.rules.answers_from_there and link == 0 and not forth:
            yield Sent(1, False, message, source)  # as if it came from behind

    def _node(self, sent: Sent) -> str:
        if sent.link != sent.forth:
            return "the relay"
        return f"the {RESPONDER if sent.forth else INITIATOR}"

    def _made(self, state: State) -> Iterator[tuple[bool, Message, str]]:
        """Messages: whether they go to the responder, which, and as from where."""
        for message in state.read:
            forth = isinstance(message, (Syn, Ackack))
            yield forth, message, INITIATOR if forth else RESPONDER
        seen = {m for m in state.read if isinstance(m, Syn) and m.key == INITIATOR}
        if seen and self.alters:
            yield from self._altered(state, seen)
        if seen and self.cookies:
            yield False, Cookie(FORGED_COOKIE), RESPONDER
        for key in self.keys:
            for signed in sorted({self._signed(syn) for syn in seen}):
                yield False, Ack(signed, key, 0), RESPONDER
        if self.asks:
            yield from self._in_own_name()

    def _altered(
        self, state: State, seen: set[Syn]
    ) -> Iterator[tuple[bool, Message, str]]:
        cookies = {NO_COOKIE} | {m.cookie for m in state.read if isinstance(m, Cookie)}
        renews = any(syn.renews for syn in seen)
        for number, cookie in product(range(self.alters), sorted(cookies)):
            syn = Syn(INITIATOR, f"{ALTERED} {number}", renews, cookie)
            for source in self.sources:
                yield True, syn, source

    def _in_own_name(self) -> Iterator[tuple[bool, Message, str]]:
        one, *others = self.keys
        syn = Syn(one, ALTERED, False)
        yield True, syn, ELSEWHERE
        for key in (*others, one):
            ack = Ack(self._signed(syn), key, 0)
            yield False, ack, RESPONDER
            yield True, Ackack(ack), ELSEWHERE


def _nobody_else(state: State) -> bool:
    asked = state.taken is None or state.taken.key == RESPONDER
    answered = state.session is None or state.taken is not None
    return asked and answered


def _agreed(state: State) -> bool:
    return state.session is None or state.session == state.taken


def _key(message: Message) -> str:
    """Whose it is."""
    if isinstance(message, Ackack):
        return message.ack.syn.key
    return "" if isinstance(message, Cookie) else message.key
