"""Rounds and control messages of somebody who knows a session's keys.

What has a wrong tag is dropped before anything else of it is looked at, so made-up
bytes seldom get further.  Here tags are right, and so are chain elements, roots and
openings where more lies behind them; everything else is as the script says.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from random import Random

from attrs import Factory, define, field, frozen

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import (
    A1,
    CONTROL,
    CONTROL_MESSAGE,
    EARLY_LENGTH,
    EARLY_ROUND,
    MAX_EARLY,
    MAX_RELIABLE,
    NODE_SIZE,
    RELIABLE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_COUNTS,
    S1_FIXED_SIZE,
    S2_TAIL,
    Control,
    Kind,
    early_of,
    first_word,
    join_early,
)
from alpha_trio.proto.packets import frames
from alpha_trio.proto.primitives import (
    ACKNOWLEDGMENT_CHAIN,
    EARLY_USE,
    ELEMENT_SIZE,
    SIGNATURE_CHAIN,
    AckTree,
    HashChain,
    Presigner,
    chain_id,
    early_packet,
)
from alpha_trio.proto.transport import AlphaTransport
from tools.fuzz_world import (
    FORGED,
    NUMBER,
    Choices,
    End,
    World,
    fed,
    latest_of,
    one_of,
    packet,
    role_of,
    spoiled,
)

KINDS = ("S1", "A1", "S2", "A2", "CONTROL", "EARLY")
"""CONTROL: the S2s of control rounds.  EARLY: S1s with early data."""

SPACING = 8  # of chains: 64 elements, 31 rounds
MOST_STEPS = 4_000  # of one script
_MODES = ("adaptive", "cm", "n")
_CHECK_EVERY = 32  # steps
_KEPT = 8  # rounds that more may follow to
_MOST_PACKETS = 12  # of a round
_MOST_DEPTH = 4  # of its trees
_MOST_INSIDE = 4  # packets in an S1
_FRAME_WORD = bytes(8)  # of a packet that is alone
_PROOF = S2_TAIL.pack(0, 0, ROUND_HEAD_SIZE)  # in the place of packets that went early
_LENGTHS = (0, 1, 8, 9, 255, MAX_EARLY, 2**16 - 1)  # that early data may say it has
_ROOT = slice(S1_FIXED_SIZE, S1_FIXED_SIZE + NODE_SIZE)  # in an S1 with early data
_FAR = (60, 66, 500, 2**31, 2**32 - 1)  # rounds ahead


@frozen
class Announced:
    """A round, by what its S1 says."""

    association: int
    number: int
    shape: int
    packets: int
    digest: bytes
    s2s: tuple[bytes, ...] = ()


@define(eq=False)
class Talker:
    """One end of a session: it says what the script wants, in the right words.

    Who has not got its chains knows those elements that the other has taken already,
    and makes up all others.
    """

    random: Random
    remote_id: int
    nonce: bytes  # its own, of the handshake
    signatures: dict[int, HashChain]  # by association
    acknowledgments: dict[int, HashChain]
    tag: Callable[[bytes], bytes]
    encrypt: Callable[[int, int, int, bytes, int], Buffer]
    inner: Callable[[bytes], bytes]  # a packet with this payload
    hearer: AlphaTransport | None = None  # who hears it, if that is an end
    knows_chains: bool = True
    rounds: deque[Announced] = Factory(lambda: deque(maxlen=_KEPT))
    trees: deque[tuple[Announced, AckTree]] = Factory(lambda: deque(maxlen=_KEPT))
    elements: set[bytes] = Factory(set)  # that it has said
    signed: set[bytes] = Factory(set)  # S2s
    true: set[bytes] = Factory(set)  # digests of S1s whose early data is signed
    early: deque[bytes] = Factory(lambda: deque(maxlen=_KEPT))  # S1s that had some
    asked: set[bytes] = Factory(set)  # nonces of TRACEs
    _said: Counter[tuple[bytes, int]] = Factory(Counter)  # the latest position

    # -- its messages

    def s1(self, choices: Choices, control: bytes | None = None) -> bytes:
        """Announce a round, of one control message if that is given."""
        number = self._association(choices)
        reached = self._reached(SIGNATURE_CHAIN, number)
        index = _near(choices, (reached + 1) // 2)
        chain = self.signatures.get(number)
        key = self._element(SIGNATURE_CHAIN, chain, number, 2 * index + 2)
        if control is None:
            depth = choices.number(_MOST_DEPTH + 1)
            shape = choices.number(2) * RELIABLE | depth
            bodies = self._made_up(choices, 1 + choices.number(_MOST_PACKETS))
        else:
            depth, shape, bodies = 0, RELIABLE | CONTROL, [control]
        parts = self._laid_out(bodies, number, index, depth, control is None)
        name = chain.chain_id if chain else bytes(NODE_SIZE)
        presigner = Presigner.sign(name, index, key, parts, depth)
        head = self._head(Kind.S2, number, shape, index, key)
        s2s = tuple(head + presigner.branch(i) + p for i, p in enumerate(parts))
        self.signed.update(s2s)
        element = self._element(SIGNATURE_CHAIN, chain, number, 2 * index + 1)
        roots = presigner.roots
        counts = S1_COUNTS.pack(len(parts), len(roots), 0)
        text = self._head(Kind.S1, number, shape, index, element) + counts
        text = spoiled(choices, text + b"".join(roots))
        digest = sha256(text).digest()[:NODE_SIZE]
        self.rounds.append(Announced(number, index, shape, len(parts), digest, s2s))
        return text + self.tag(text)

    def early_s1(self, choices: Choices) -> bytes:
        """Packets inside an S1, or what is none; or such an S1 once more."""
        if self.early and choices.number(4) == 1:
            return self._again(choices, latest_of(choices, self.early))
        text, signed = self._inside(choices), choices.number(4) != 1
        return self._around(choices, text, signed=signed)

    def unsigned_s1(self) -> bytes:
        """As much early data as there may be, whose root does not fit."""
        return self._around(Choices(b""), self._filled(MAX_EARLY), signed=False)

    def _around(self, choices: Choices, inside: bytes, *, signed: bool) -> bytes:
        """An S1 with this early data, mostly of the next round and well formed."""
        number = self._association(choices)
        index = _near(choices, (self._reached(SIGNATURE_CHAIN, number) + 1) // 2)
        chain = self.signatures.get(number)
        key = self._element(SIGNATURE_CHAIN, chain, number, 2 * index + 2)
        element = self._element(SIGNATURE_CHAIN, chain, number, 2 * index + 1)
        name, shape = chain.chain_id if chain else bytes(NODE_SIZE), EARLY_ROUND
        counts = S1_COUNTS.pack(1, 1, 0)
        if choices.number(8) == 1:
            shape |= one_of(choices, (0, RELIABLE, CONTROL, RELIABLE | CONTROL, 1, 7))
            counts = S1_COUNTS.pack(choices.number(4), choices.number(4), 0)
        text = bytes(self.encrypt(number, index, 0, inside, EARLY_USE))
        root = self.random.randbytes(NODE_SIZE)
        if signed:
            root = _early_root(name, index, key, text)
        head = self._head(Kind.S1, number, shape, index, element)
        message = spoiled(choices, head + counts + root + text)
        digest = sha256(message).digest()[:NODE_SIZE]
        proof = self._head(Kind.S2, number, shape, index, key) + _PROOF
        if message[_ROOT] == _early_root(name, index, key, early_of(message)):
            self.signed.add(proof)
            self.true.add(digest)
        self.rounds.append(Announced(number, index, shape, 1, digest, (proof,)))
        self.early.append(message + self.tag(message))
        return self.early[-1]

    def _again(self, choices: Choices, s1: bytes) -> bytes:
        """As it was, or with another tag, or altered under a good one."""
        message, tag = s1[:-NODE_SIZE], s1[-NODE_SIZE:]
        how = choices.number(3)
        if how == 0:
            return s1
        if how == 1:
            return message + self.random.randbytes(len(tag))
        altered = message[: _ROOT.start] + spoiled(choices, message[_ROOT.start :])
        return altered + self.tag(altered)

    def _inside(self, choices: Choices) -> bytes:
        """Early data: packets, or lengths and bytes that fit nothing."""
        how = choices.number(8)
        if how == 0:
            return b""  # a trial
        if how == 1:
            return EARLY_LENGTH.pack(one_of(choices, _LENGTHS)) + choices.text()
        if how == 2:
            return EARLY_LENGTH.pack(one_of(choices, _LENGTHS))
        if how == 3:
            return self._filled(MAX_EARLY + choices.number(2))
        bodies = self._made_up(choices, 1 + choices.number(_MOST_INSIDE))
        return spoiled(choices, join_early(bodies))

    def _filled(self, size: int) -> bytes:
        """One packet that takes so many bytes with its length."""
        number = FORGED + self.random.randbytes(NUMBER.size - 1)
        around = EARLY_LENGTH.size + len(_FRAME_WORD) + len(self.inner(number))
        return join_early([_FRAME_WORD + self.inner(number + bytes(size - around))])

    def a1(self, choices: Choices, rounds: Iterable[Announced]) -> bytes:
        """Agree to one of ``rounds``; without any, to one that nobody announced."""
        announced = [*rounds]
        if announced:
            round_ = latest_of(choices, announced)
        else:
            index, digest = choices.number(8), self.random.randbytes(NODE_SIZE)
            round_ = Announced(0, index, RELIABLE, 1, digest)
        number, index = round_.association, round_.number
        chain = self.acknowledgments.get(number)
        root = bytes(NODE_SIZE)
        if round_.shape & RELIABLE and round_.packets <= MAX_RELIABLE:
            tree = self._tree(round_, chain)
            self.trees.append((round_, tree))
            root = tree.root
        element = self._element(ACKNOWLEDGMENT_CHAIN, chain, number, 2 * index + 1)
        text = self._head(Kind.A1, number, round_.shape, index, element)
        text = spoiled(choices, text + A1.pack(round_.digest, root))
        return text + self.tag(text)

    def s2(self, choices: Choices) -> tuple[bytes, int]:
        """Packets of a round with the right head and key; and their stride."""
        if not self.rounds:
            head = self._head(Kind.S2, 0, choices.number(256), choices.number(8), b"")
            text = head + choices.text()
            return text, len(text)
        round_ = latest_of(choices, self.rounds)
        s2s = round_.s2s
        first, count = choices.number(len(s2s)), 1 + choices.number(len(s2s))
        run = b"".join(
            s2[:ROUND_HEAD_SIZE] + spoiled(choices, s2[ROUND_HEAD_SIZE:])
            for s2 in s2s[first : first + count]
        )
        return run, len(s2s[0])

    def a2(self, choices: Choices) -> bytes:
        """Verdicts on packets of a round that it has agreed to."""
        if not self.trees:
            head = self._head(Kind.A2, 0, RELIABLE, choices.number(8), b"")
            text = head + choices.text()
            return text + self.tag(text)
        round_, tree = latest_of(choices, self.trees)
        count = 1 + choices.number(min(tree.packets, 4))
        openings = (
            tree.packed(choices.number(tree.packets), choices.number(2))
            for _ in range(count)
        )
        number, shape, index = round_.association, round_.shape, round_.number
        text = self._head(Kind.A2, number, shape, index, tree.key) + b"".join(openings)
        self.elements.add(tree.key)
        text = spoiled(choices, text)
        return text + self.tag(text)

    def control(self, choices: Choices) -> tuple[bytes, bytes]:
        """S1 and S2 of a control round, of any kind and with any text."""
        body = b"".join(self._message(choices) for _ in range(1 + choices.number(3)))
        s1 = self.s1(choices, spoiled(choices, body))
        (s2,) = self.rounds[-1].s2s
        return s1, s2

    def _message(self, choices: Choices) -> bytes:
        kind, number = choices.number(len(Control) + 2), choices.number(6)
        if choices.number(16) == 1:
            number = choices.number(2**16)
        anchor = choices.take(ELEMENT_SIZE)
        if kind == Control.OPEN:
            anchor = self._opened(self.signatures, SIGNATURE_CHAIN, number)
        elif kind == Control.ACCEPT:
            anchor = self._opened(self.acknowledgments, ACKNOWLEDGMENT_CHAIN, number)
        elif kind == Control.TRACE:
            self.asked.add(anchor)
        return CONTROL_MESSAGE.pack(kind, number, anchor)

    def _opened(self, chains: dict[int, HashChain], use: bytes, number: int) -> bytes:
        """The anchor of a chain, made if there is none."""
        if number not in chains:
            name, seed = (
                chain_id(self.nonce, use, number),
                self.random.randbytes(ELEMENT_SIZE),
            )
            chains[number] = HashChain.make(name, seed, SPACING)
        return chains[number].anchor

    # -- what they are made of

    def _head(
        self, kind: Kind, number: int, shape: int, index: int, element: bytes
    ) -> bytes:
        word = first_word(kind, self.remote_id).to_bytes(8)
        return word + ROUND.pack(number, shape, 0, index, element)

    def _association(self, choices: Choices) -> int:
        """Mostly one that the other knows, or is about to."""
        how = choices.number(32)
        if how == 31:
            return choices.number(2**16)
        known = [*self.hearer.receiver.associations] if self.hearer else []
        if how > 3 and known:
            return latest_of(choices, known)
        return one_of(choices, [*self.signatures])

    def _reached(self, use: bytes, number: int) -> int:
        """The position up to which the other has taken the elements of a chain."""
        if self.hearer is None:
            return self._said[use, number]
        if use == SIGNATURE_CHAIN:
            incoming = self.hearer.receiver.associations.get(number)
            return incoming.signatures.position if incoming else 0
        outgoing = self.hearer.sender.associations.get(number)
        return outgoing.acks.position if outgoing else 0

    def _element(
        self, use: bytes, chain: HashChain | None, number: int, position: int
    ) -> bytes:
        known = self.knows_chains or position <= self._reached(use, number)
        if chain is None or position > chain.length or not known:
            return self.random.randbytes(ELEMENT_SIZE)
        if position % 2:
            self._said[use, number] = max(self._said[use, number], position)
        element = chain.element(position)
        self.elements.add(element)
        return element

    def _tree(self, round_: Announced, chain: HashChain | None) -> AckTree:
        number, index = round_.association, round_.number
        key = self._element(ACKNOWLEDGMENT_CHAIN, chain, number, 2 * index + 2)
        name = chain.chain_id if chain else bytes(NODE_SIZE)
        seed = self.random.randbytes(NODE_SIZE)
        return AckTree(name, index, key, seed, round_.packets)

    def _made_up(self, choices: Choices, count: int) -> list[bytes]:
        """Frame words and packets, equally long: numbered ones, or any bytes."""
        text = choices.take(choices.number(40)).replace(FORGED, b"")
        size = len(self.inner(bytes(NUMBER.size) + text))
        bodies = []
        for _ in range(count):
            if choices.number(4) == 1:
                taken = choices.take(len(_FRAME_WORD) + size).replace(FORGED, b"")
                bodies.append(taken.ljust(len(_FRAME_WORD) + size, b"\0"))
                continue
            number = FORGED + self.random.randbytes(NUMBER.size - 1)
            bodies.append(_FRAME_WORD + self.inner(number + text))
        return bodies

    def _laid_out(
        self, bodies: list[bytes], number: int, index: int, depth: int, secret: bool
    ) -> list[bytes]:
        """Index, offset and body of each packet."""
        fixed = ROUND_HEAD_SIZE + depth * NODE_SIZE
        stride, parts = fixed + S2_TAIL.size + len(bodies[0]), []
        for i, body in enumerate(bodies):
            offset = i * stride + fixed
            place = number, index, offset + S2_TAIL.size
            text = bytes(self.encrypt(*place, body, 0)) if secret else body
            parts.append(S2_TAIL.pack(i, 0, offset) + text)
        return parts


def _early_root(name: bytes, index: int, key: bytes, early: Buffer) -> bytes:
    """What signs early data as it is sent."""
    signed = Presigner.sign(name, index, key, [early_packet(early)], 0)
    return bytes(signed.roots[0])


def _near(choices: Choices, index: int) -> int:
    """Mostly the next round; else one before it, or after it, or far away."""
    how = choices.number(32)
    if how < 26:
        return index
    if how < 29:
        return max(0, index - 1 - choices.number(3))
    if how < 31:
        return index + 1 + choices.number(3)
    return min(index + one_of(choices, _FAR), 2**32 - 1)


# -- towards an end --------------------------------------------------------------------


@define(eq=False)
class Scene:
    """Two ends with a session, and who makes messages of it."""

    world: World
    peer: bool  # whether he is the peer, and has its chains
    _talkers: dict[int, Talker] = field(factory=dict)  # by whom they talk to

    def talker(self, end: End) -> tuple[Talker, AlphaTransport] | None:
        """Who talks to ``end`` in the session it uses, and that session."""
        here, there = end.session.current, self.world.other(end)
        if not isinstance(here, AlphaTransport):
            return None
        if here.local_id in self._talkers:
            return self._talkers[here.local_id], here
        for other in there.transports:
            agreement = other.line.agreement
            fits = agreement.local_id == here.line.agreement.remote_id
            if fits and isinstance(other, AlphaTransport):
                talker = self._made(end, here, other)
                self._talkers[here.local_id] = talker
                return talker, here
        return None

    def _made(self, end: End, here: AlphaTransport, other: AlphaTransport) -> Talker:
        source, destination = self.world.other(end).address, end.address
        agreement, line = other.line.agreement, other.line
        return Talker(
            self.world.random,
            agreement.remote_id,
            agreement.offer.nonce,
            {0: agreement.offer.signatures},
            {0: agreement.offer.acknowledgments},
            lambda text: line.tagged(text)[len(text) :],
            line.encrypt.apply,
            lambda text: packet(source, destination, [text])[frames.VIRTIO_SIZE :],
            here,
            self.peer,
        )

    def feed(self, end: End, kind: str, data: bytes, stride: int = 0) -> None:
        """Datagrams arrive, and are counted."""
        fed[role_of(self.world, end), kind] += -(-len(data) // (stride or len(data)))
        self.world.arrive(end, data, stride)

    def step(self, end: End, choices: Choices) -> None:
        """Make a message of some kind and let it arrive."""
        found, what = self.talker(end), choices.number(len(KINDS))
        if found is None:
            self.world.speak(end, [b"x"])
            self.world.carry(end)
            return
        talker, here = found
        kind = KINDS[what]
        if kind == "S1":
            self.feed(end, kind, talker.s1(choices))
        elif kind == "A1":
            self.feed(end, kind, talker.a1(choices, self._rounds_of(end, here)))
        elif kind == "S2":
            self.feed(end, kind, *self._s2(talker, choices))
        elif kind == "A2":
            self.feed(end, kind, talker.a2(choices))
        elif kind == "EARLY":
            self.feed(end, kind, talker.early_s1(choices))
        else:
            s1, s2 = talker.control(choices)
            self.feed(end, "S1", s1)
            self.feed(end, kind, s2)

    def _rounds_of(self, end: End, here: AlphaTransport) -> list[Announced]:
        """Rounds of ``end``, if possible ones that wait for their A1."""
        for _ in range(2):
            rounds = [a.round for a in here.sender.associations.values() if a.round]
            waiting = [r for r in rounds if not r.agreed] or rounds
            if not all(r.agreed for r in waiting):
                break
            self.world.speak(end, [b"one", b"two"])
        return [
            Announced(r.association.number, r.number, r.shape, r.packets, r.digest)
            for r in waiting
        ]

    def _s2(self, talker: Talker, choices: Choices) -> tuple[bytes, int]:
        """Of a round of his own, or of one of the peer's, changed behind its head."""
        genuine = [old for old in self.world.old if old[0] == Kind.S2]
        if not genuine or choices.number(4) < 2 + self.peer:
            return talker.s2(choices)
        s2 = one_of(choices, genuine)
        data = s2[:ROUND_HEAD_SIZE] + spoiled(choices, s2[ROUND_HEAD_SIZE:])
        return data, len(data)


def authentic(data: bytes) -> None:
    """A session whose keys somebody has, or one of whose ends is hostile.

    Who has the keys alone gets nothing delivered, as he has no element before it has
    arrived; of the peer nothing comes twice, and nothing early to who takes none.
    """
    choices = Choices(data)
    mode, reliable = one_of(choices, _MODES), bool(choices.number(2))
    early = choices.number(4) != 1
    world = World(mode, Random(1), reliable=reliable, early=early)
    world.meet(8)
    scene = Scene(world, bool(choices.number(2)))
    world.authentic, world.forged = not scene.peer, Counter()
    for number in range(MOST_STEPS):
        if choices.over:
            break
        end, what = one_of(choices, world.ends), choices.number(16)
        if what < 2:
            world.carry(end)
        elif what == 2:
            world.speak(end, [bytes(choices.number(64))] * (1 + choices.number(4)))
        elif what == 3:
            world.wait(choices.number(1_000) / 1_000)
        else:
            scene.step(end, choices)
        if number % _CHECK_EVERY == 0:
            world.check()
    world.check()
