"""What a hostile datagram costs who gets it.

An end is measured here, a relay by ``relay_costs.py``.  Each kind is handed in a few
thousand times by a bare loop, in one thread and to a core without sockets, again and
again with everything made anew; the median is printed, and how many times the cheapest
it is.  That is a datagram with an unknown id, and somebody who sends as many of those
needs nothing but an address.

What costs more has to be limited, or it is worth more to an attacker than a flood: the
column in the middle says by what.  Where there is a rate, what comes beyond it is a row
of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    VERSION,
    Ack,
    AckAck,
    Cookie,
    Kind,
    Syn,
    parse_cookie_untrusted,
)
from alpha_trio.proto.primitives import Guard, Identity
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.proto.traces import Counts, Report, Role
from alpha_trio.proto.traces.trace import MAX_CHECKS
from tools import relay_costs
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
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="tools/costs", description=__doc__)
    add = parser.add_argument
    add("--calls", type=int, default=CALLS, help=f"of each kind (default: {CALLS})")
    add(
        "--repetitions",
        type=int,
        default=REPETITIONS,
        help=f"of which the median is taken (default: {REPETITIONS})",
    )
    add("--relay", action="store_true", help="what passes by a relay, instead")
    options = parser.parse_args(arguments)
    console = Console()
    if options.relay:
        for name, cost in relay_costs.measure_relay().items():
            console.print(f"{cost:10,.1f}  {name}", highlight=False)
        return 0
    costs = measured(AT_AN_END, options.calls, options.repetitions)
    console.print(printed("At an end", costs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
