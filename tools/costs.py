"""What a hostile datagram costs who gets it: an end, or a relay on the way.

Each kind is handed in a few thousand times by a bare loop, in one thread and to a core
without sockets, again and again with everything made anew; the median is printed, and
how many times the cheapest it is.  That is a datagram with an unknown id, and somebody
who sends as many of those needs nothing but an address.

What costs more has to be limited, or it is worth more to an attacker than a flood: the
column in the middle says by what.  Where there is a rate, what comes beyond it is a row
of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import cycle, islice
from random import Random
from statistics import median
from time import thread_time

from attrs import Factory, define, evolve, field, frozen
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from rich.console import Console
from rich.table import Table

from alpha_trio.proto.batch import Drop, Outbox, Remote
from alpha_trio.proto.handshake import cookies, exchange
from alpha_trio.proto.messages import (
    A1_SIZE,
    COOKIE_SIZE,
    HEADER,
    HEADER_SIZE,
    KEY_SIZE,
    MAC_SIZE,
    MAX_ROOTS,
    NODE_SIZE,
    NONCE_SIZE,
    ROUND,
    ROUND_HEAD_SIZE,
    SUITE_ALPHA,
    TAG_SIZE,
    VERSION,
    Ack,
    AckAck,
    Cookie,
    Kind,
    Syn,
    parse_cookie_untrusted,
)
from alpha_trio.proto.primitives import Guard, Identity
from alpha_trio.proto.primitives.chain import MAX_SKIP
from alpha_trio.proto.relay import Relay, RelayPolicy, Unseen
from alpha_trio.proto.relay import introduction as seen
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.relay.witness import CHEAP_SKIP, SKIP_BURST, SKIP_RATE
from alpha_trio.proto.traces import Counts, Report, Role
from alpha_trio.proto.traces.trace import MAX_CHECKS
from tools.fuzz_handshakes import tagger_of
from tools.fuzz_world import PORT, End, World

CALLS, REPETITIONS = 2_000, 5
_FEW = 10  # times fewer of what costs a thousand times as much
_LARGE = 1_400  # bytes
_STRANGER: Remote = ("203.0.113.9", PORT)
_AGES = 1_000.0  # s: every bucket is full again

Reason = Drop | RelayDrop | None
"""Why it is dropped; None if it is not."""


@frozen
class Trial:
    """Datagrams, where they come from, and who gets them."""

    call: Callable[[memoryview, Remote, float], object]
    drops: Callable[[], Counter[Drop | RelayDrop]]
    datagrams: Sequence[bytes]
    now: float
    apart: float = 0.0  # s between two
    remotes: Sequence[Remote] = (_STRANGER,)

    def run(self) -> float:
        """Hand them in; seconds of CPU each of them took."""
        views = [memoryview(bytearray(data)) for data in self.datagrams]
        remotes = [*islice(cycle(self.remotes), len(views))]
        call, now, apart = self.call, self.now, self.apart
        began = thread_time()
        for view, remote in zip(views, remotes, strict=True):
            call(view, remote, now)
            now += apart
        return (thread_time() - began) / len(views)


@frozen
class Case:
    """One kind of hostile datagram."""

    what: str
    reason: Reason
    prepare: Callable[[int], Trial]  # for so many datagrams
    limit: str = ""  # how often it can be had; empty: as often as it comes


@frozen
class Cost:
    """What it came to."""

    case: Case
    microseconds: float
    times: float  # the cheapest


def measured(
    cases: Sequence[Case], calls: int = CALLS, repetitions: int = REPETITIONS
) -> list[Cost]:
    """The cost of each."""
    # All of them in turn: what else the machine does meanwhile hits none alone.
    rounds = [[case.prepare(calls).run() for case in cases] for _ in range(repetitions)]
    seconds = [median(each) for each in zip(*rounds, strict=True)]
    least = min(seconds)
    return [
        Cost(case, 1e6 * each, each / least)
        for case, each in zip(cases, seconds, strict=True)
    ]


# -- an end ----------------------------------------------------------------------------


@define(eq=False)
class Target:
    """An end, its peer, and somebody who knows both public keys."""

    world: World
    end: End
    random: Random = Factory(lambda: Random(2))
    share: X25519PrivateKey = field(init=False)  # the attacker's
    own: Identity = field(init=False)  # likewise

    def __attrs_post_init__(self) -> None:
        self.own = Identity(self.noise(KEY_SIZE))
        self.share = X25519PrivateKey.from_private_bytes(self.noise(KEY_SIZE))

    @classmethod
    def met(cls, steps: int, end: int = 1) -> Target:
        """After so many datagrams of a handshake that ends[0] has begun."""
        world = World("adaptive", Random(1), known=True)
        world.meet(steps)
        return cls(world, world.ends[end])

    @property
    def peer(self) -> End:
        """The other end."""
        return self.world.other(self.end)

    @property
    def at(self) -> Remote:
        """Where the peer is."""
        return self.peer.address, PORT

    @property
    def id(self) -> int:
        """By which the end finds its session."""
        assert self.end.session.current is not None
        return self.end.session.current.local_id

    def noise(self, size: int) -> bytes:
        """Some that nobody knows."""
        return self.random.randbytes(size)

    def signature(self) -> bytes:
        """Of the attacker's, for something else: what is no curve point is cheap."""
        return self.own.sign(b"ACK", self.noise(NONCE_SIZE))

    def trial(
        self,
        datagrams: Iterable[bytes],
        remotes: Sequence[Remote] = (_STRANGER,),
        apart: float = 0.0,
    ) -> Trial:
        """The end gets them, from now on."""
        incoming, out = self.end.table.incoming, Outbox()

        def call(view: memoryview, remote: Remote, now: float) -> None:
            incoming(view, len(view), remote, b"here", now, out)

        return Trial(call, self._drops, [*datagrams], self.world.now, apart, remotes)

    def _drops(self) -> Counter[Drop | RelayDrop]:
        total: Counter[Drop | RelayDrop] = Counter()
        for counters in (self.end.table.counters, self.end.session.counters):
            total.update(counters.drops)
        return total

    def genuine(self, kind: Kind) -> bytes:
        """The latest datagram of the peer's of this kind."""
        for old in reversed(self.world.old):
            ids = [HEADER.unpack_from(old)[3], 0 if kind == Kind.SYN else self.id]
            if old[0] == kind and ids[0] == ids[1]:
                return old
        raise LookupError(kind)

    def syn(self, key: bytes = b"", cookie: bytes = b"") -> Syn:
        """In the peer's name, by the attacker."""
        anchors = self.noise(NODE_SIZE), self.noise(NODE_SIZE)
        identity = key or self.peer.table.identity.public
        share = self.share.public_key().public_bytes_raw()
        syn = Syn(7, self.noise(NONCE_SIZE), identity, share, *anchors)
        if cookie:
            syn = evolve(syn, cookie=cookie)
        guard = Guard(self.end.table.identity.public, None)
        return evolve(syn, mac=guard.mac(syn.guarded()))

    def cookie(self, remote: Remote) -> bytes:
        """That the end wants to see from there."""
        guard = Guard(self.end.table.identity.public, None)
        for _ in range(2):  # the first one is answered at once
            out = Outbox()
            data = memoryview(self.syn().pack())
            now = self.world.now
            self.end.table.incoming(data, len(data), remote, b"here", now, out)
        datagram = b"".join(bytes(part) for part in out.sends[-1].parts)
        cookie = parse_cookie_untrusted(datagram)
        return guard.seal(cookie.sealed, cookie.nonce)

    def drained(self, datagrams: Sequence[bytes], remote: Remote, times: int) -> None:
        """So many come before, so that no rate has anything left."""
        self.trial(islice(cycle(datagrams), times), (remote,)).run()


def _of_kind(kind: Kind, target: Target) -> bytes:
    """One with an unknown id, as long as the kind is."""
    sizes = {
        Kind.ACK: 208,
        Kind.ACKACK: 88,
        Kind.COOKIE: 56,
        Kind.A1: A1_SIZE,
        Kind.REPORT: 256,
    }
    suite = SUITE_ALPHA if kind in (Kind.ACK, Kind.ACKACK) else 0
    head = HEADER.pack(kind, VERSION, suite, 1)
    return head + target.noise(sizes.get(kind, 100) - HEADER_SIZE)


def _stranded(kind: Kind) -> Case:
    """With an unknown id."""

    def prepare(count: int) -> Trial:
        target = Target.met(8)
        return target.trial([_of_kind(kind, target)] * count)

    return Case(f"{kind.name}, unknown id", Drop.UNKNOWN_ID, prepare)


def _few(count: int) -> int:
    return max(1, count // _FEW)


def _strange_syn(count: int) -> Trial:
    target = Target.met(8)
    data = [target.syn(target.noise(KEY_SIZE)).pack() for _ in range(count)]
    return target.trial(data)


def _unheard_syn(count: int) -> Trial:
    target = Target.met(8)
    syn = evolve(target.syn(), mac=target.noise(MAC_SIZE))
    return target.trial([syn.pack()] * count)


def _asking_syn(count: int) -> Trial:
    """Each from another address: every one of them gets its cookie."""
    target = Target.met(8)
    target.drained([target.syn().pack()], _STRANGER, 2)
    remotes = [(f"10.0.{n >> 8}.{n & 255}", PORT) for n in range(count)]
    return target.trial([target.syn().pack() for _ in range(count)], remotes)


def _refused_syn(count: int) -> Trial:
    target = Target.met(8)
    data = [target.syn().pack() for _ in range(count)]
    target.drained(data, _STRANGER, 300)
    return target.trial(data)


def _answered_syn(count: int) -> Trial:
    target = Target.met(8)
    cookie, count = target.cookie(_STRANGER), _few(count)
    data = [target.syn(cookie=cookie).pack() for _ in range(count)]
    return target.trial(data, apart=1 / cookies.ADDRESS_RATE)


def _repeated_syn(count: int) -> Trial:
    """Its ACK goes out again."""
    target = Target.met(8)
    data = [target.syn(cookie=target.cookie(_STRANGER)).pack()]
    target.drained(data, _STRANGER, 1)
    return target.trial(data * _few(count), apart=1 / cookies.ADDRESS_RATE)


def _cookie(nonce: bool, mac: bool) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        target = Target.met(0, 0)
        initiation = target.end.session.negotiation.initiation
        assert initiation is not None
        said = initiation.syn.nonce if nonce else target.noise(NONCE_SIZE)
        cookie = Cookie(initiation.syn.sender_id, said, target.noise(COOKIE_SIZE))
        guard = Guard(target.peer.table.identity.public, None)
        right = guard.mac(cookie.guarded()) if mac else target.noise(MAC_SIZE)
        data = [evolve(cookie, mac=right).pack()]
        target.drained(data, target.at, 8)
        return target.trial(data * count, (target.at,))

    return prepare


def _ack(
    *, key: bool = True, mac: bool = True, apart: float = 0.0
) -> Callable[[int], Trial]:
    """For a SYN of the end's, with a wrong signature."""

    def prepare(count: int) -> Trial:
        target = Target.met(0, 0)
        initiation = target.end.session.negotiation.initiation
        assert initiation is not None
        identity = target.peer.table.identity.public
        share = target.share.public_key().public_bytes_raw()
        ack = Ack(
            initiation.syn.sender_id,
            77,
            target.noise(NONCE_SIZE),
            identity if key else target.noise(KEY_SIZE),
            share,
            target.noise(NODE_SIZE),
            target.noise(NODE_SIZE),
            target.signature(),
        )
        guard = Guard(target.end.table.identity.public, None)
        said = initiation.syn.said() + ack.said()
        right = guard.mac(said) if mac else target.noise(MAC_SIZE)
        data = [evolve(ack, mac=right).pack()]
        if not apart:
            target.drained(data, target.at, 50)
        return target.trial(
            data * (_few(count) if apart else count), (target.at,), apart
        )

    return prepare


def _again(kind: Kind, end: int) -> Callable[[int], Trial]:
    """The genuine one, once more."""

    def prepare(count: int) -> Trial:
        target = Target.met(8, end)
        return target.trial([target.genuine(kind)] * count)

    return prepare


def _ackack(*, mac: bool, apart: float = 0.0) -> Callable[[int], Trial]:
    """For an answer to the attacker's own SYN, with a wrong signature."""

    def prepare(count: int) -> Trial:
        target = Target.met(8)
        syn = target.syn()
        target.drained([syn.pack()], _STRANGER, 1)
        (answer,) = target.end.session.negotiation.answers
        signature = target.signature()
        ackack = AckAck(answer.ack.sender_id, signature)
        tag = tagger_of(target.share, syn, answer.ack, None).tag(ackack.guarded())
        right = tag if mac else target.noise(MAC_SIZE)
        data = [evolve(ackack, mac=right).pack()]
        target.drained(data, _STRANGER, 1 if apart else 50)
        return target.trial(data * (_few(count) if apart else count), apart=apart)

    return prepare


def _mistagged(kind: Kind, size: int = 0) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        target = Target.met(8)
        head = HEADER.pack(kind, VERSION, 0, target.id)
        return target.trial([head + target.noise((size or 100) - HEADER_SIZE)] * count)

    return prepare


def _speaking(target: Target) -> None:
    """A whole round of the peer's reaches the end."""
    target.world.speak(target.peer, [bytes(64)] * 4)
    for each in (target.end, target.peer, target.end):
        target.world.carry(each)


def _s2(*, known: bool, copied: bool, size: int) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        target = Target.met(8)
        if known:
            _speaking(target)
            head = target.genuine(Kind.S2)[:ROUND_HEAD_SIZE]
        else:
            target.world.speak(target.peer, [bytes(64)] * 4)
            target.world.carry(target.end)
            head = _as_s2(target.genuine(Kind.S1), target.noise(NODE_SIZE))
        if not copied:
            number = ROUND.pack(0, 0, 0, 10_000, target.noise(NODE_SIZE))
            head = head[:HEADER_SIZE] + number
        return target.trial([head + target.noise(size - len(head))] * count)

    return prepare


def _as_s2(s1: bytes, key: bytes) -> bytes:
    """The head of an S2 for this S1, with a key."""
    return bytes([Kind.S2]) + s1[1 : ROUND_HEAD_SIZE - NODE_SIZE] + key


def _report(*, asked: bool, apart: float = 0.0) -> Callable[[int], Trial]:
    """Of a relay that is none."""

    def prepare(count: int) -> Trial:
        target = Target.met(8)
        world, end = target.world, target.end
        world.carry(end)
        trace = end.table.trace(end.session, 3.0, world.now)
        assert trace is not None
        world.wait(0.0)
        for each in (target.peer, end) * 2:
            world.carry(each)
        nonce = trace.probes[0].nonce if asked else target.noise(NONCE_SIZE)
        counts = Counts(), Counts()
        report = Report(target.id, nonce, target.own.public, Role.RELAY, *counts)
        data = [evolve(report, signature=target.signature()).pack()]
        if not apart:
            target.drained(data, _STRANGER, MAX_CHECKS)
            return target.trial(data * count)
        return target.trial(data * MAX_CHECKS)

    return prepare


_OF_KIND = (
    Kind.DATA,
    Kind.S1,
    Kind.A1,
    Kind.S2,
    Kind.A2,
    Kind.ACK,
    Kind.ACKACK,
    Kind.COOKIE,
    Kind.REPORT,
)
_PER_SYN = f"{exchange.CHECK_RATE:g}/s and SYN of ours"
_PER_ANSWER = f"{exchange.ANSWER_CHECKS:g}/s and answer of ours"

AT_AN_END = (
    *(_stranded(kind) for kind in _OF_KIND),
    Case("SYN, stranger's", Drop.STRANGER, _strange_syn),
    Case("SYN, wrong MAC", Drop.BAD_MAC, _unheard_syn),
    Case("SYN, right MAC, too many", Drop.RATE, _refused_syn),
    Case(
        "SYN, right MAC, gets a cookie",
        None,
        _asking_syn,
        f"{cookies.COOKIE_RATE:g}/s and address",
    ),
    Case(
        "SYN, answered",
        None,
        _answered_syn,
        f"{cookies.ADDRESS_RATE:g}/s and address, {cookies.ANSWER_RATE:g}/s",
    ),
    Case(
        "SYN, answered before",
        None,
        _repeated_syn,
        f"{cookies.ADDRESS_RATE:g}/s and address",
    ),
    Case("COOKIE, wrong nonce", Drop.BAD_PROOF, _cookie(False, True)),
    Case("COOKIE, wrong MAC", Drop.BAD_PROOF, _cookie(True, False)),
    Case("COOKIE, right MAC", None, _cookie(True, True)),
    Case("ACK, wrong key", Drop.WRONG_KEY, _ack(key=False)),
    Case("ACK, wrong MAC", Drop.BAD_PROOF, _ack(mac=False)),
    Case(
        "ACK, right MAC, wrong signature",
        Drop.BAD_PROOF,
        _ack(apart=1 / exchange.CHECK_RATE),
        _PER_SYN,
    ),
    Case("the same, too many", Drop.BAD_PROOF, _ack()),
    Case("ACK, repeated", None, _again(Kind.ACK, 0)),
    Case("ACKACK, wrong MAC", Drop.BAD_PROOF, _ackack(mac=False)),
    Case(
        "ACKACK, right MAC, wrong signature",
        Drop.BAD_PROOF,
        _ackack(mac=True, apart=1 / exchange.ANSWER_CHECKS),
        _PER_ANSWER,
    ),
    Case("the same, too many", Drop.BAD_PROOF, _ackack(mac=True)),
    Case("ACKACK, repeated", None, _again(Kind.ACKACK, 1)),
    Case("S1, wrong tag", Drop.BAD_ROUND, _mistagged(Kind.S1)),
    Case(
        "S1 of 8 KiB, wrong tag",
        Drop.BAD_ROUND,
        _mistagged(Kind.S1, MAX_ROOTS * NODE_SIZE),
    ),
    Case("A1, wrong tag", Drop.BAD_ROUND, _mistagged(Kind.A1, A1_SIZE)),
    Case("A2, wrong tag", Drop.BAD_ROUND, _mistagged(Kind.A2)),
    Case("S2, unsolicited", Drop.UNSOLICITED, _s2(known=True, copied=False, size=100)),
    Case("S2, guessed key", Drop.UNSOLICITED, _s2(known=False, copied=True, size=100)),
    Case("S2, copied head", Drop.FORGED, _s2(known=True, copied=True, size=100)),
    Case(
        "S2 of 1,400 bytes, copied head",
        Drop.FORGED,
        _s2(known=True, copied=True, size=_LARGE),
    ),
    Case("REPORT, nobody asked", Drop.BAD_REPORT, _report(asked=False)),
    Case(
        "REPORT, wrong signature",
        Drop.BAD_REPORT,
        _report(asked=True, apart=1.0),
        f"{MAX_CHECKS} for each TRACE",
    ),
    Case("the same, too many", Drop.BAD_REPORT, _report(asked=True)),
)


# -- a relay ---------------------------------------------------------------------------


@define(eq=False)
class Passage:
    """A relay, the genuine session that passes it, and attackers beside it."""

    target: Target = field(init=False)
    relay: Relay = field(init=False)
    losing: bool = False  # all S2s of a round but the first, before they get here

    def __attrs_post_init__(self) -> None:
        world = World("adaptive", Random(1), known=True, through=self._through)
        self.relay = Relay(RelayPolicy(unseen=Unseen.DROP), world.now)
        self.target = Target(world, world.ends[1])

    @classmethod
    def met(cls) -> Passage:
        """After the handshake."""
        passage = cls()
        passage.target.world.meet(8)
        return passage

    def _through(self, end: End, datagram: bytes) -> list[bytes]:
        if self.losing and self.target.world.old[-2][0] == datagram[0] == Kind.S2:
            return []
        view, size = memoryview(bytearray(datagram)), len(datagram)
        world = self.target.world
        way = (world.other(end).address, PORT), (end.address, PORT)
        ranges = self.relay.transit(view, size, *way, world.now)
        return [bytes(view[start:until]) for start, until in ranges]

    def trial(
        self,
        datagrams: Iterable[bytes],
        remotes: Sequence[Remote] = (_STRANGER,),
        apart: float = 0.0,
        there: Remote | None = None,
    ) -> Trial:
        """The relay gets them from now on, on their way to the end if not elsewhere."""
        transit = self.relay.transit
        there = there or (self.target.end.address, PORT)

        def call(view: memoryview, remote: Remote, now: float) -> None:
            transit(view, len(view), remote, there, now)

        now = self.target.world.now
        return Trial(call, self._drops, [*datagrams], now, apart, remotes)

    def _drops(self) -> Counter[Drop | RelayDrop]:
        return Counter(self.relay.counters.drops)

    def drained(self, data: bytes, times: int) -> None:
        """So many come before."""
        self.trial([data] * times).run()

    def asked(self) -> Syn:
        """A SYN of the attacker's has passed."""
        syn = self.target.syn(self.target.own.public)
        self.drained(syn.pack(), 1)
        return syn

    def answered(self, syn: Syn, sender_id: int = 77) -> Ack:
        """And an ACK of his to it."""
        own = self.target.own
        ack = evolve(_answer(self.target, syn), sender_id=sender_id)
        signature = own.sign(b"ACK", syn.said(), ack.unsigned())
        ack = evolve(ack, signature=signature)
        self.drained(ack.pack(), 1)
        return ack

    def introduction(self, one: int, other: int) -> bytes:
        """The ACKACK of a session of his with these ids; what is before has passed."""
        own = self.target.own
        syn = evolve(self.target.syn(own.public), sender_id=one)
        self.drained(syn.pack(), 1)
        ack = self.answered(syn, other)
        signature = own.sign(b"ACKACK", syn.said(), ack.said())
        return AckAck(other, signature).pack()


def _answer(target: Target, syn: Syn) -> Ack:
    """With a signature for something else."""
    share = target.share.public_key().public_bytes_raw()
    anchors = target.noise(NODE_SIZE), target.noise(NODE_SIZE)
    said = target.noise(NONCE_SIZE), target.own.public, share, *anchors
    return Ack(syn.sender_id, 77, *said, target.signature())


def _unseen(kind: Kind) -> Case:
    """Of no handshake that passed."""

    def prepare(count: int) -> Trial:
        passage = Passage.met()
        return passage.trial([_of_kind(kind, passage.target)] * count)

    return Case(f"{kind.name}, unknown id", RelayDrop.UNSEEN, prepare)


def _malformed(count: int) -> Trial:
    return Passage.met().trial([bytes(100)] * count)


def _passing_syn(*, apart: float = 0.0) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        passage = Passage.met()
        syns = (evolve(passage.target.syn(), sender_id=9 + n) for n in range(count))
        data = [syn.pack() for syn in syns]
        if not apart:
            passage.drained(data[0], int(seen.SOURCE_SYN_BURST) + 1)
        return passage.trial(data, apart=apart)

    return prepare


def _repeated(kind: Kind) -> Callable[[int], Trial]:
    """A genuine ACK or ACKACK, more often than it may pass."""

    def prepare(count: int) -> Trial:
        passage = Passage.met()
        data = next(old for old in passage.target.world.old if old[0] == kind)
        passage.drained(data, seen.REPEATS)
        return passage.trial([data] * count)

    return prepare


def _missigned_ack(*, apart: float = 0.0) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        passage = Passage.met()
        data = _answer(passage.target, passage.asked()).pack()
        if not apart:
            passage.drained(data, int(seen.SOURCE_CHECK_BURST) + 1)
        return passage.trial([data] * count, apart=apart)

    return prepare


def _missigned_ackack(*, apart: float = 0.0) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        passage = Passage.met()
        ack = passage.answered(passage.asked())
        data = AckAck(ack.sender_id, passage.target.signature()).pack()
        if not apart:
            passage.drained(data, int(seen.SOURCE_CHECK_BURST) + 1)
        return passage.trial([data] * count, apart=apart)

    return prepare


def _cookie_past(*, asked: bool) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        passage = Passage.met()
        syn, target = passage.asked(), passage.target
        nonce = syn.nonce if asked else target.noise(NONCE_SIZE)
        cookie = Cookie(syn.sender_id, nonce, target.noise(COOKIE_SIZE)).pack()
        there = _STRANGER if asked else None
        passage.trial([cookie] * seen.REPEATS, there=there).run()
        return passage.trial([cookie] * count, there=there)

    return prepare


def _introducing(count: int) -> Trial:
    """The last message of a handshake of the attacker's; the others passed before."""
    passage, data = Passage.met(), []
    for number in range(_few(count)):
        passage.target.world.now += 1.0
        data.append(passage.introduction(1_000 + number, 500_000 + number))
    return passage.trial(data, apart=1 / seen.SOURCE_CHECK_RATE)


def _round(
    kind: Kind, ahead: int, *, apart: float = 0.0, sessions: int = 1
) -> Callable[[int], Trial]:
    """A round's message of nobody's, so many elements ahead of the last one known.

    ``sessions`` have the same id.
    """

    def prepare(count: int) -> Trial:
        passage = Passage.met()
        target = passage.target
        for number in range(1, sessions):
            passage.drained(passage.introduction(1_000 + number, target.id), 1)
        target.world.speak(target.peer, [bytes(64)] * 4)
        s1 = target.genuine(Kind.S1)
        number = ROUND.unpack_from(s1, HEADER_SIZE)[3] + ahead // 2
        head = HEADER.pack(kind, VERSION, 0, target.id)
        if kind == Kind.A1:
            head = HEADER.pack(kind, VERSION, 0, _peers_id(target))
        shape = s1[HEADER_SIZE + 2]
        head += ROUND.pack(0, shape, 0, number, target.noise(NODE_SIZE))
        rest = s1[ROUND_HEAD_SIZE:]
        if kind == Kind.A1:
            digest = sha256(s1[:-TAG_SIZE]).digest()[:NODE_SIZE]
            rest = digest + bytes(NODE_SIZE) + bytes(TAG_SIZE)
        data = head + rest
        if not apart:
            passage.drained(data, int(SKIP_BURST) + 1)
        return passage.trial([data] * count, apart=apart)

    return prepare


def _peers_id(target: Target) -> int:
    assert target.peer.session.current is not None
    return target.peer.session.current.local_id


def _copied_s1(count: int) -> Trial:
    passage = Passage.met()
    target = passage.target
    target.world.speak(target.peer, [bytes(64)] * 4)
    return passage.trial([target.genuine(Kind.S1)] * count)


def _s2_past(*, copied: bool, size: int) -> Callable[[int], Trial]:
    def prepare(count: int) -> Trial:
        passage = Passage.met()
        target, world = passage.target, passage.target.world
        passage.losing = True  # where nothing more may pass, nothing is hashed
        world.speak(target.peer, [bytes(64)] * 4)
        world.carry(target.end)
        world.carry(target.peer)
        head = target.genuine(Kind.S2)[:ROUND_HEAD_SIZE]
        if not copied:
            head = head[:HEADER_SIZE] + ROUND.pack(0, 0, 0, 10_000, bytes(NODE_SIZE))
        return passage.trial([head + target.noise(size - len(head))] * count)

    return prepare


def _report_past(count: int) -> Trial:
    passage = Passage.met()
    target = passage.target
    nonce = target.noise(NONCE_SIZE)
    who = target.own.public, Role.RELAY, Counts(), Counts()
    data = Report(target.id, nonce, *who).pack()
    return passage.trial([data] * count)


_PER_SOURCE = f"{seen.SOURCE_CHECK_RATE:g}/s and address, {seen.CHECK_RATE:g}/s"

AT_A_RELAY = (
    *(_unseen(kind) for kind in _OF_KIND),
    Case("no message of the protocol", RelayDrop.VERSION, _malformed),
    Case(
        "SYN",
        None,
        _passing_syn(apart=1 / seen.SOURCE_SYN_RATE),
        f"{seen.SOURCE_SYN_RATE:g}/s and address, {seen.SYN_RATE:g}/s",
    ),
    Case("SYN, too many", RelayDrop.RATE, _passing_syn()),
    Case(
        "ACK, wrong signature",
        RelayDrop.BAD_SIGNATURE,
        _missigned_ack(apart=1 / seen.SOURCE_CHECK_RATE),
        _PER_SOURCE,
    ),
    Case("the same, too many", RelayDrop.RATE, _missigned_ack()),
    Case("ACK, repeated", RelayDrop.REPLAYED, _repeated(Kind.ACK)),
    Case(
        "ACKACK, wrong signature",
        RelayDrop.BAD_SIGNATURE,
        _missigned_ackack(apart=1 / seen.SOURCE_CHECK_RATE),
        _PER_SOURCE,
    ),
    Case("the same, too many", RelayDrop.RATE, _missigned_ackack()),
    Case("ACKACK of a session", None, _introducing, _PER_SOURCE),
    Case("ACKACK, repeated", RelayDrop.REPLAYED, _repeated(Kind.ACKACK)),
    Case("COOKIE, wrong nonce", RelayDrop.UNSEEN, _cookie_past(asked=False)),
    Case("COOKIE, repeated", RelayDrop.REPLAYED, _cookie_past(asked=True)),
    Case(
        f"S1, forged, up to {CHEAP_SKIP} ahead",
        RelayDrop.BAD_ROUND,
        _round(Kind.S1, CHEAP_SKIP - 2, apart=1e-6),
    ),
    Case(
        f"the same, {seen.SAME_ID} sessions of its id",
        RelayDrop.BAD_ROUND,
        _round(Kind.S1, CHEAP_SKIP - 2, apart=1e-6, sessions=seen.SAME_ID),
    ),
    Case(
        f"S1, forged, {MAX_SKIP - 2} ahead",
        RelayDrop.BAD_ROUND,
        _round(Kind.S1, MAX_SKIP - 2, apart=1 / SKIP_RATE),
        f"{SKIP_RATE:g}/s and direction of a session",
    ),
    Case("the same, too many", RelayDrop.S1_RATE, _round(Kind.S1, MAX_SKIP - 2)),
    Case("S1, repeated", RelayDrop.REPLAYED, _copied_s1),
    Case("A1, forged", RelayDrop.BAD_ROUND, _round(Kind.A1, 0, apart=1e-6)),
    Case("A2, forged", RelayDrop.BAD_ROUND, _round(Kind.A2, 0, apart=1e-6)),
    Case("S2, unsolicited", RelayDrop.UNSOLICITED, _s2_past(copied=False, size=100)),
    Case("S2, copied head", RelayDrop.FORGED, _s2_past(copied=True, size=100)),
    Case(
        "S2 of 1,400 bytes, copied head",
        RelayDrop.FORGED,
        _s2_past(copied=True, size=_LARGE),
    ),
    Case("REPORT, nobody asked", RelayDrop.BAD_REPORT, _report_past),
)


# -- the table -------------------------------------------------------------------------


def printed(title: str, costs: Sequence[Cost]) -> Table:
    """A row for each kind."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("datagram")
    table.add_column("limit")
    table.add_column("us", justify="right")
    table.add_column("times", justify="right")
    for cost in costs:
        case = cost.case
        table.add_row(
            case.what, case.limit, f"{cost.microseconds:.1f}", f"{cost.times:.1f}"
        )
    return table


def main(arguments: Sequence[str]) -> int:
    """Measure both, and print a table of each."""
    parser = argparse.ArgumentParser(prog="tools/costs", description=__doc__)
    add = parser.add_argument
    add("--calls", type=int, default=CALLS, help=f"of each kind (default: {CALLS})")
    add(
        "--repetitions",
        type=int,
        default=REPETITIONS,
        help=f"of which the median is taken (default: {REPETITIONS})",
    )
    options = parser.parse_args(arguments)
    console = Console()
    for title, cases in (("At an end", AT_AN_END), ("At a relay", AT_A_RELAY)):
        costs = measured(cases, options.calls, options.repetitions)
        console.print(printed(title, costs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
