"""A relay between two ends, and others whose sessions it lets pass as well.

The others are both ends of their sessions, with ids and addresses like those of the
genuine one, and know all that is said in it, but none of its chains.  A strict relay
lets pass only what an end of the session said; whatever they do, the genuine session
goes on, and what is kept of all of them is counted and bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from hashlib import sha256
from itertools import product
from random import Random
from weakref import WeakKeyDictionary

from attrs import Factory, define, field

from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.proto.messages import (
    EARLY_ROUND,
    HEADER_SIZE,
    NODE_SIZE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    SAID_SIZE,
    SIGNATURE_SIZE,
    TAG_SIZE,
    Ack,
    Kind,
    Syn,
    parse_cookie_untrusted,
)
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    SIGNATURE_CHAIN,
    HashChain,
    Identity,
    chain_id,
)
from alpha_trio.proto.relay import Relay, RelayEarly, RelayPolicy, Unseen
from alpha_trio.proto.relay.introduction import (
    ANSWER_COST,
    ANSWERS,
    COST,
    OWN_ANSWERS,
    Introductions,
)
from alpha_trio.proto.relay.session import SESSION_COST
from alpha_trio.proto.relay.watched import EARLY_BURST, EARLY_RATE, EarlyBuckets
from alpha_trio.proto.relay.witness import ASSOCIATION_COST, EARLY_COST, Witness
from tools.fuzz_handshakes import KINDS as HANDSHAKE_KINDS
from tools.fuzz_handshakes import Seen, Stranger
from tools.fuzz_rounds import KINDS as ROUND_KINDS
from tools.fuzz_rounds import SPACING, Talker
from tools.fuzz_world import (
    PORT,
    Choices,
    End,
    World,
    fed,
    insist,
    latest_of,
    one_of,
    spoiled,
)

KINDS = (*HANDSHAKE_KINDS, *ROUND_KINDS)
ROLE = "relay"
MOST_STEPS = 4_000  # of one script
POLICIES = tuple(
    RelayPolicy(unseen, strict, memory=memory, roots=roots, early=early)
    for unseen, strict, memory, roots, early in product(
        (Unseen.DROP, Unseen.UNTIL_HANDSHAKE),
        (True, False),
        (64 << 20, 48 << 10),
        (0, 4),
        (RelayEarly.LIMITED, RelayEarly.OFF),
    )
)
LASTS = 60.0  # s of a world: the genuine session is not to be replaced meanwhile
_CHECK_EVERY = 32  # steps
_KEPT = 6  # sessions of the others
_ADDRESSES = ("203.0.113.9", "203.0.113.10", "192.168.10.60", "192.168.10.61")
_VOLLEY = 16  # full S1s: more than twice what an association has room for
_ROUNDS = (Kind.S1, Kind.A1, Kind.S2, Kind.A2)
_ELEMENT = slice(ROUND_HEAD_SIZE - NODE_SIZE, ROUND_HEAD_SIZE)
_SHAPE_AT = HEADER_SIZE + 2  # in messages of a round
_DIGEST = slice(ROUND_HEAD_SIZE, ROUND_HEAD_SIZE + NODE_SIZE)  # in an A1
_LIMIT = slice(12, 16)
_LARGEST_HANDSHAKE = COST + (ANSWERS + OWN_ANSWERS) * ANSWER_COST  # there is room for
_PATIENCE = 200  # times a tenth of a second: an S1 is repeated that long
_TIDY_EVERY = 1.0  # s

_Chains = tuple[HashChain, HashChain]


@define(eq=False)
class Pair:
    """A session of the others: who speaks at either end, and from where."""

    talkers: tuple[Talker, Talker]
    places: tuple[Remote, Remote]


@define(eq=False)
class Unproven:
    """Early data that passed in an association, whatever its relay has counted."""

    since: float  # s
    passed: int = 0  # bytes, of copies as well
    signed: dict[tuple[int, bytes], int] = Factory(dict)  # bytes of each S1, once

    def most(self, now: float) -> float:
        """Bytes that may have passed."""
        room = EARLY_BURST + EARLY_RATE * (now - self.since)
        return 2 * room + sum(self.signed.values())


@define(eq=False)
class Scene:
    """The relay, the genuine session and the others."""

    policy: RelayPolicy
    random: Random
    relay: Relay = field(init=False)
    world: World = field(init=False)
    stranger: Stranger = field(init=False)
    chains: dict[bytes, _Chains] = Factory(dict)  # by nonce
    pairs: deque[Pair] = Factory(lambda: deque(maxlen=_KEPT))
    asked: set[bytes] = Factory(set)  # nonces of SYNs that passed
    said: set[bytes] = Factory(set)  # genuine S2s, and signed parts of ACKs, ACKACKs
    signed: set[bytes] = Factory(set)  # S2s of the others
    elements: set[bytes] = Factory(set)  # of all chains, that somebody has said
    genuine: deque[bytes] = Factory(lambda: deque(maxlen=_KEPT))  # S1s with early data
    answers: dict[bytes, bytes] = Factory(dict)  # genuine A1s, by what they answer
    true: set[bytes] = Factory(set)  # digests of S1s whose early data was signed
    unproven: WeakKeyDictionary[EarlyBuckets, Unproven] = Factory(WeakKeyDictionary)
    tidied: float = 0.0

    def __attrs_post_init__(self) -> None:
        random = self.random
        self.world = World("adaptive", random, through=self._through)
        self.relay = Relay(self.policy, self.world.now, Random(7).randbytes)
        own = [Identity(random.randbytes(32)) for _ in range(3)]
        self.stranger = Stranger(random, own, None, self._anchors)

    # -- what passes

    def _through(self, end: End, datagram: bytes) -> Iterable[bytes]:
        """A genuine datagram for ``end``: what of it goes on."""
        self._note(datagram)
        source = self.world.other(end).address, PORT
        return self._transit(datagram, len(datagram), source, (end.address, PORT))

    def _note(self, datagram: bytes) -> None:
        if datagram[0] == Kind.S2:
            self.said.add(datagram)
        if datagram[0] == Kind.A1:
            self.answers[datagram[_DIGEST]] = datagram
        if _is_early(datagram):
            self.genuine.append(datagram)
            self.true.add(_digest(datagram))
        if datagram[0] in _ROUNDS:
            self.elements.add(datagram[_ELEMENT])
        elif datagram[0] == Kind.SYN:
            self.asked.add(datagram[16:32])
        else:
            self.said.add(_signed_part(datagram))

    def feed(
        self, kind: str, data: bytes, stride: int, source: Remote, destination: Remote
    ) -> list[bytes]:
        """Datagrams of the others come to the relay; what passes."""
        fed[ROLE, kind] += -(-len(data) // (stride or 1))
        return self._transit(data, stride, source, destination)

    def _transit(
        self, data: bytes, stride: int, source: Remote, destination: Remote
    ) -> list[bytes]:
        view, passed, at = memoryview(bytearray(data)), [], 0
        # The S1 that shows that what came before was false has passed itself.
        off = {w for w in self._witnesses() if w.early is RelayEarly.OFF}
        crossing = Crossing(source, destination)
        ranges = self.relay.transit(view, stride, crossing, self.world.now)
        for start, end in ranges:
            insist(at <= start < end <= len(view), "ranges follow one another")
            insist(start % stride == 0, "a range begins with a datagram")
            at = end
            run = bytes(view[start:end])
            passed += [run[i : i + stride] for i in range(0, len(run), stride)]
        for datagram in passed:
            if self.policy.unseen is Unseen.DROP:
                self._check_passed(datagram)
            if _is_early(datagram):
                self._check_early(datagram, off)
        return passed

    def _check_early(self, s1: bytes, off: set[Witness]) -> None:
        """More than there is room for passes only if it was signed, none where off."""
        digest, size = _digest(s1), len(s1) - S1_FIXED_SIZE - NODE_SIZE - TAG_SIZE
        number, _, _, index, _ = ROUND.unpack_from(s1, HEADER_SIZE)
        for witness in self._witnesses():
            association = witness.associations.get(number)
            round_ = None if association is None else association.round(index)
            if association is None or association.early is None or round_ is None:
                continue
            if all(said.digest != digest for said in round_.s1s):
                continue
            insist(witness not in off, "no early data where it is off")
            noted = self.unproven.setdefault(
                association.early, Unproven(self.world.now)
            )
            noted.passed += size
            if digest in self.true:
                noted.signed[index, digest] = size
            within = noted.passed <= noted.most(self.world.now)
            insist(within, "early data that nobody has proven is bounded")

    def _witnesses(self) -> list[Witness]:
        return [end.incoming for same in self.relay._all() for end in same.ends]

    def _check_passed(self, datagram: bytes) -> None:
        kind, strict = datagram[0], self.policy.require_a1
        if kind == Kind.S2:
            known = datagram in self.said or datagram in self.signed
            insist(known, "an S2 that passes is what its sender signed")
        elif kind in _ROUNDS and (strict or kind != Kind.A1):
            # Lenient: the ACCEPT that tells the chain may have gone another way.
            element = datagram[_ELEMENT] in self.elements
            insist(element, "a message of a round has an element of its sender's")
        elif kind == Kind.SYN:
            self.asked.add(datagram[16:32])
        elif kind == Kind.COOKIE:
            nonce = parse_cookie_untrusted(datagram).nonce
            insist(nonce in self.asked, "a COOKIE is for who asked")
        elif kind in (Kind.ACK, Kind.ACKACK) and strict:
            part = _signed_part(datagram)
            known = part in self.said or part in self.stranger.signed
            insist(known, "an ACK or ACKACK that passes is signed")

    # -- the others

    def _anchors(self, nonce: bytes) -> tuple[bytes, bytes]:
        """Of chains that are named after ``nonce``, as those of a session are."""
        if nonce not in self.chains:
            signatures, acknowledgments = (
                HashChain.make(
                    chain_id(nonce, use, 0), self.random.randbytes(NODE_SIZE), SPACING
                )
                for use in (SIGNATURE_CHAIN, ACKNOWLEDGMENT_CHAIN)
            )
            self.chains[nonce] = signatures, acknowledgments
        signatures, acknowledgments = self.chains[nonce]
        return signatures.anchor, acknowledgments.anchor

    def join(self) -> None:
        """The others make a session of theirs."""
        plain, seen = Choices(b""), self._seen()
        places = (_ADDRESSES[0], PORT), (_ADDRESSES[1], PORT)
        syn = self._syn(plain, seen, places)
        ack = self._ack(plain, seen, syn, places)
        self._ackack(plain, syn, ack, places)

    def _syn(self, choices: Choices, seen: Seen, places: tuple[Remote, Remote]) -> Syn:
        self.feed_one("SYN", self.stranger.syn(choices, seen, bytes(32)), *places)
        return self.stranger.asked[-1][0]

    def _ack(
        self,
        choices: Choices,
        seen: Seen,
        syn: Syn,
        places: tuple[Remote, Remote],
    ) -> Ack:
        data = self.stranger.ack(choices, seen, syn, bytes(32))
        self.feed_one("ACK", data, *places[::-1])
        return self.stranger.answered[-1][1]

    def _ackack(
        self, choices: Choices, syn: Syn, ack: Ack, places: tuple[Remote, Remote]
    ) -> None:
        data = self.stranger.ackack(choices, syn, ack)
        chains = self.chains.get(syn.nonce), self.chains.get(ack.nonce)
        if self.feed_one("ACKACK", data, *places) and chains[0] and chains[1]:
            one = self._talker(ack.sender_id, syn.nonce, chains[0])
            other = self._talker(syn.sender_id, ack.nonce, chains[1])
            self.pairs.append(Pair((one, other), places))

    def _talker(self, remote_id: int, nonce: bytes, chains: _Chains) -> Talker:
        return Talker(
            self.random,
            remote_id,
            nonce,
            {0: chains[0]},
            {0: chains[1]},
            lambda text: bytes(16),
            lambda association, number, offset, text, use: text,
            lambda text: text,
            elements=self.elements,
            signed=self.signed,
            true=self.true,
        )

    def feed_one(
        self, kind: str, data: bytes, source: Remote, destination: Remote
    ) -> list[bytes]:
        """The same with one datagram."""
        return self.feed(kind, data, max(1, len(data)), source, destination)

    def _seen(self) -> Seen:
        """What of the genuine session, and of their own, may be said again."""
        genuine = [t.line.agreement for end in self.world.ends for t in end.transports]
        nonces = [agreement.offer.nonce for agreement in genuine]
        offers = [agreement.offer for agreement in genuine]
        anchors = [offer.signatures.anchor for offer in offers]
        anchors += [offer.acknowledgments.anchor for offer in offers]
        ids = [agreement.local_id for agreement in genuine]
        ids += [t.remote_id for pair in self.pairs for t in pair.talkers]
        keys = [end.table.identity.public for end in self.world.ends]
        return Seen(ids, nonces, anchors, keys)

    def step(self, choices: Choices) -> None:
        """The others make a datagram of some kind."""
        kind = one_of(choices, KINDS)
        if kind == "EARLY" and self.genuine and choices.number(3) == 0:
            self._disturb(choices)
        elif kind in HANDSHAKE_KINDS:
            self._shake(kind, choices)
        elif not self.pairs:
            self.join()
        else:
            self._talk(kind, choices)

    def _shake(self, kind: str, choices: Choices) -> None:
        stranger, seen = self.stranger, self._seen()
        source, destination = (
            (one_of(choices, _ADDRESSES), PORT + choices.number(2)) for _ in range(2)
        )
        places = source, destination
        if kind == "SYN" or not stranger.asked:
            self._syn(choices, seen, places)
        elif kind == "ACK":
            self._ack(choices, seen, latest_of(choices, stranger.asked)[0], places)
        elif kind == "ACKACK" and stranger.answered:
            self._ackack(choices, *latest_of(choices, stranger.answered), places)
        elif kind == "REPORT" and self.pairs:
            pair = one_of(choices, self.pairs)
            talker = one_of(choices, pair.talkers)
            nonces = sorted(talker.asked) or [bytes(16)]
            report = stranger.report(choices, talker.remote_id, one_of(choices, nonces))
            self.feed_one(kind, report, *places)
        else:
            syn = latest_of(choices, stranger.asked)[0]
            cookie = stranger.cookie(choices, syn, bytes(32))
            self.feed_one("COOKIE", cookie, *places[::-1])

    def _talk(self, kind: str, choices: Choices) -> None:
        pair, forth = latest_of(choices, self.pairs), choices.number(2)
        talker, other = pair.talkers[forth], pair.talkers[1 - forth]
        source, destination = pair.places[forth], pair.places[1 - forth]
        if choices.number(16) == 15:
            source = one_of(choices, _ADDRESSES), PORT
        way = source, destination
        if kind == "S1":
            self.feed_one(kind, talker.s1(choices), *way)
        elif kind == "A1":
            self.feed_one(kind, talker.a1(choices, other.rounds), *way)
        elif kind == "S2":
            self.feed(kind, *self._s2(talker, choices), *way)
        elif kind == "A2":
            self.feed_one(kind, talker.a2(choices), *way)
        elif kind == "EARLY" and choices.number(8) == 1:
            for _ in range(_VOLLEY):
                self.feed_one(kind, talker.unsigned_s1(), *way)
        elif kind == "EARLY":
            self.feed_one(kind, talker.early_s1(choices), *way)
        else:
            s1, s2 = talker.control(choices)
            self.feed_one("S1", s1, *way)
            a1 = other.a1(Choices(b""), [talker.rounds[-1]])
            self.feed_one("A1", a1, *way[::-1])
            self.feed_one(kind, spoiled(choices, s2), *way)

    def _disturb(self, choices: Choices) -> None:
        """An S1 of the genuine session, altered, and perhaps an A1 to that."""
        s1 = latest_of(choices, self.genuine)
        altered = s1[:ROUND_HEAD_SIZE] + spoiled(choices, s1[ROUND_HEAD_SIZE:])
        if choices.number(8) == 1:  # of another shape
            altered = altered[:_SHAPE_AT] + b"\0" + altered[_SHAPE_AT + 1 :]
        one, other = self.world.ends
        for source, target in ((one, other), (other, one)):
            way = (source.address, PORT), (target.address, PORT)
            for datagram in self.feed_one("EARLY", altered, *way):
                self.world.arrive(target, datagram)
            if (a1 := self.answers.get(_digest(s1))) and choices.number(2):
                forged = a1[: _DIGEST.start] + _digest(altered) + a1[_DIGEST.stop :]
                self.feed_one("A1", forged, *way[::-1])

    def _s2(self, talker: Talker, choices: Choices) -> tuple[bytes, int]:
        """Of theirs, or a genuine one that was changed behind its head."""
        genuine = [old for old in self.world.old if old[0] == Kind.S2]
        if not genuine or choices.number(4) < 3:
            return talker.s2(choices)
        s2 = one_of(choices, genuine)
        data = s2[:ROUND_HEAD_SIZE] + spoiled(choices, s2[ROUND_HEAD_SIZE:])
        return data, len(data)

    # -- what must hold

    def check(self) -> None:
        """Insist on what must hold at any time."""
        self.world.check()
        recount(self.relay)
        if self.world.now - self.tidied >= _TIDY_EVERY:
            self.tidied = self.world.now
            self.relay.forget_idle(self.world.now)
            recount(self.relay)

    def finish(self) -> None:
        """The genuine session goes on, unless it had to make room."""
        if self.relay.counters.evicted:
            return
        keys = {end.table.identity.public for end in self.world.ends}
        for session in self.relay._all():  # an id may be that of others as well
            ours = keys == {end.key for end in session.ends}
            ended = any(e.incoming.early is not self.policy.early for e in session.ends)
            insist(not (ours and ended), "honest ends keep their early data")
        for end in self.world.ends:
            other = self.world.other(end)
            (payload,) = self.world.speak(end, [b"after all"])
            for _ in range(_PATIENCE):
                for each in self.world.ends:
                    self.world.carry(each)
                if not other.owed[payload]:
                    break
                self.world.wait(0.1)
            arrived = not other.owed[payload] or self.relay.counters.evicted
            insist(bool(arrived), "the genuine session is not disturbed")


def _is_early(datagram: bytes) -> bool:
    least = S1_FIXED_SIZE + NODE_SIZE + TAG_SIZE
    is_s1 = datagram[0] == Kind.S1 and len(datagram) >= least
    return is_s1 and bool(datagram[_SHAPE_AT] & EARLY_ROUND)


def _digest(s1: bytes) -> bytes:
    return sha256(s1[:-TAG_SIZE]).digest()[:NODE_SIZE]


def _signed_part(datagram: bytes) -> bytes:
    """Of an ACK what its sender says and the signature; of an ACKACK the latter."""
    if datagram[0] == Kind.ACKACK:
        return datagram[HEADER_SIZE : HEADER_SIZE + SIGNATURE_SIZE]
    said = datagram[: SAID_SIZE + SIGNATURE_SIZE]
    return said[: _LIMIT.start] + bytes(4) + said[_LIMIT.stop :]


def recount(relay: Relay) -> None:
    """Insist that the relay has counted right, and keeps no more than it may."""
    sessions = list(relay._all())
    held = sum(session.memory for session in sessions)
    insist(relay._held == held, "the relay knows what its sessions hold")
    ends = {end for session in sessions for end in session.ends}
    found = {end for same in relay._ends.values() for end in same}
    insist(ends == found, "ids lead to the ends of sessions")
    for session in sessions:
        weight = sum(_weight(end.incoming) for end in session.ends)
        insist(session.meter.held == weight, "a session knows what it holds")
        insist(session.memory == SESSION_COST + weight, "and what it takes")
    insist(len(sessions) <= relay.policy.sessions, "sessions are bounded")
    _recount_handshakes(relay._handshakes)
    spare = relay._handshakes.memory if not sessions else 0
    share = max(relay.policy.memory // 4, _LARGEST_HANDSHAKE)
    insist(relay._handshakes.memory <= share, "so are handshakes")
    bound = relay.policy.memory + spare
    insist(relay.memory <= bound, f"memory is bounded: {relay.memory}")


def _recount_handshakes(known: Introductions) -> None:
    asked = {id(each) for each in known.asked.values()}
    by_id = [id(each) for same in known._by_id.values() for each in same]
    insist(sorted(by_id) == sorted(asked), "each SYN is found by its id")
    answers = [id(a) for each in known.asked.values() for a in each.answers]
    found = [id(a) for same in known._answers.values() for a in same]
    insist(sorted(answers) == sorted(found), "each ACK is found by its id")


def _weight(witness: Witness) -> int:
    rounds = [
        round_
        for association in witness.associations.values()
        for round_ in (association.current, association.previous)
        if round_ is not None
    ]
    associations = witness.associations.values()
    buckets = sum(association.early is not None for association in associations)
    held = ASSOCIATION_COST * len(associations) + EARLY_COST * buckets
    return held + sum(round_.weight for round_ in rounds)


def relay(data: bytes) -> None:
    """Sessions of others past a relay, beside a genuine one."""
    choices = Choices(data)
    scene = Scene(one_of(choices, POLICIES), Random(1))
    world = scene.world
    began = world.now
    world.meet(8)
    for _ in range(2):
        scene.join()
    for number in range(MOST_STEPS):
        if choices.over:
            break
        what = choices.number(16)
        if what == 0:
            world.carry(one_of(choices, world.ends))
        elif what == 1:
            world.speak(one_of(choices, world.ends), [bytes(choices.number(64))] * 2)
        elif what == 2 and world.now < began + LASTS:
            world.wait(choices.number(1_000) / 1_000)
        else:
            scene.step(choices)
        if number % _CHECK_EVERY == 0:
            scene.check()
    scene.check()
    scene.finish()
    scene.check()
