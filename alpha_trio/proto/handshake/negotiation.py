"""A peer's handshakes: when it is asked, whether it is answered, who it has to be.

handshake.py is a single handshake and its proofs; here is what goes on around it.
There may be several at once, our SYN on its way (``initiation``) and our ACKs to those
in the peer's name (``answers``), and the rules say which of them goes on.  Whatever
comes of it is an Agreement, which is handed out once; to make a session of it is for
the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from attrs import define, field, frozen

from alpha_trio.proto.batch import Counters, Drop, EventKind, Outbox, Place, Remote
from alpha_trio.proto.handshake.answers import Answers, Shown
from alpha_trio.proto.handshake.exchange import (
    HINTED_ATTEMPTS,
    Agreement,
    HalfOpen,
    Initiation,
)
from alpha_trio.proto.messages import (
    KEY_SIZE,
    SUITE_ALPHA,
    SUITE_PLAIN,
    Ack,
    AckAck,
    BadPacket,
    Cookie,
    Syn,
)
from alpha_trio.proto.primitives import Guard, Identity, RandomBytes, key_text
from alpha_trio.proto.rates import TokenBucket

# In seconds.
OWN_SYN_AFTER = 0.3  # the peer's SYN was answered, its ACKACK is missing: ask ourselves
ACKACK_AFTER = 0.3  # nothing was heard in the new session yet ...
ACKACK_GROWTH = 1.5  # ... and so much later each time
ACKACK_REPEATS = 6  # times

HINT_RATE, HINT_BURST = 0.1, 2.0  # handshakes a second for what proves nothing

WRONG_KEY_RATE, WRONG_KEY_BURST = 1.0, 10.0  # events: anybody can show one

ANSWER_RATE, ANSWER_BURST = 50.0, 20.0
"""SYNs in a peer's name that are answered, a second: each costs two milliseconds.

Not counted are those by which the peer itself, where it is known to be, shows that it
receives what we send, so that nobody else can use that up.
"""


@frozen
class _Answered:
    """An ACK that we accepted, where it came from, and our ACKACK to it."""

    nonce: bytes  # of our SYN
    ack: bytes  # without its MAC
    ackack: bytes
    remote: Remote
    local: bytes


@define(eq=False)
class Negotiation:
    """All handshakes with one peer.  ``now`` is in seconds."""

    name: str
    identity: Identity  # ours
    random: RandomBytes
    take_id: Callable[[], int]  # a connection id by which datagrams find the peer
    free_id: Callable[[int], None]
    counters: Counters
    taken: Callable[[bytes], str | None]  # which other peer has a key, if one does
    remotes: Sequence[Remote] = ()  # where the peer may be, first choice first
    proven: Place | None = None  # where it was last, wherever it is configured to be
    waits: bool = False  # it has no address of its own: it is the one that calls
    key: bytes | None = None  # the peer's; None: whatever it shows first is pinned
    suite: int = SUITE_ALPHA  # what we ask for, and insist on
    psk: bytes | None = field(
        default=None, repr=False
    )  # PSK_SIZE bytes, if we have one

    early: bool = False  # whether we take early data

    initiation: Initiation | None = None
    answers: Answers = field(init=False)
    rtt: float | None = None  # s, of the last handshake in which one was certain
    offered_key: bytes | None = None  # shown by somebody at the peer's address
    _wrong_suite: bool = False
    _wrong_mac: bool = False
    _is_other: str = ""  # the peer that is where this one should be
    _guards: tuple[Guard, Guard] = field(init=False)  # for who knows our key, and not
    _answered: _Answered | None = None
    _ackack_repeats: int = 0
    _ackack_at: float = inf  # when the ACKACK is to be repeated
    _wrong_keys: TokenBucket = field(
        factory=lambda: TokenBucket(WRONG_KEY_RATE, WRONG_KEY_BURST)
    )
    _hints: TokenBucket = field(factory=lambda: TokenBucket(HINT_RATE, HINT_BURST))
    _answering: TokenBucket = field(
        factory=lambda: TokenBucket(ANSWER_RATE, ANSWER_BURST)
    )

    def __attrs_post_init__(self) -> None:
        self.answers = Answers(self.random, self.free_id)
        self._share(None)

    def require(self, key: bytes | None, suite: int, psk: bytes | None = None) -> None:
        """What the peer has to show from now on; without ``key``, any one once."""
        self.suite = suite
        if self.psk != psk:
            self._share(psk)
        if self.key != key:
            self.key, self.offered_key = key, None

    def _share(self, psk: bytes | None) -> None:
        self.psk, self._wrong_mac = psk, False
        own, unknown = self.identity.public, bytes(KEY_SIZE)
        self._guards = Guard(own, psk), Guard(unknown, psk)

    def move(self, remotes: Sequence[Remote]) -> None:
        """From now on the peer is to be asked at ``remotes``."""
        if remotes != self.remotes and self.initiation is not None:
            self.initiation.restart()
        self.remotes = remotes

    # -- asking --------------------------------------------------------------

    def places(self) -> list[Place]:
        """Where to ask the peer, first choice first.

        Where it was last stays one of them: it may have moved, and not be found where
        it is configured to be any more.
        """
        proven = self.proven
        places = [
            proven if proven is not None and proven.remote == remote else Place(remote)
            for remote in self.remotes
        ]
        if proven is not None and proven not in places:
            places.append(proven)
        return places

    @property
    def nowhere(self) -> bool:
        """Whether there is nobody to ask, and will not be: the peer has to call."""
        return self.waits and self.proven is None and not self.remotes

    def begin(
        self,
        now: float,
        renewal: Callable[[bytes], bytes] | None = None,
        *,
        hinted: bool = False,
    ) -> None:
        """Ask the peer for a session, unless we do so already, or it has to call.

        ``renewal``: what shows, for a SYN, that we have one already.  ``hinted``: what
        calls for it proves nothing, so there are few SYNs, and not often.
        """
        if self.initiation is not None or self.nowhere:
            if self.initiation is not None and not hinted:
                self.initiation.hinted = False
            return
        if hinted and not self._hints.take(now):
            return
        self.initiation = Initiation.begin(
            self.identity,
            self.suite,
            self.take_id(),
            self.random,
            now,
            renewal,
            key=self.key,
            psk=self.psk,
            early=self.early and self.suite == SUITE_ALPHA,
        )
        self.initiation.hinted = hinted
        if self.answers:
            # The peer was faster; its ACKACK should be on its way.
            self.initiation.resend_at = now + OWN_SYN_AFTER

    def _ask(self, initiation: Initiation, now: float, out: Outbox) -> None:
        """Send the SYN where it is its turn, and where the peer asks from itself."""
        places = self.places()  # none while its name is still being resolved
        self._send_syn(initiation, initiation.next_places(places), now, out)
        initiation.schedule(len(places), now, self.random)

    def _send_syn(
        self, initiation: Initiation, places: list[Place], now: float, out: Outbox
    ) -> None:
        syn = initiation.variant()
        initiation.sent(now)
        for remote, local in places:
            send_control(out, remote, local, self.counters, syn)
            out.tell(EventKind.SYN_SENT, self.name, remote, initiation.attempts)

    def on_cookie_untrusted(
        self, cookie: Cookie, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """The peer is busy.  Raises BadPacket if we asked it nothing.

        It is answered where it came from, from where it went to: between other
        addresses the peer would ask for another cookie.
        """
        if self.initiation is None:
            raise BadPacket
        if self.initiation.take_cookie_untrusted(cookie, now):
            syn = self.initiation.with_cookie()
            send_control(out, remote, local, self.counters, syn)

    def on_ack_untrusted(
        self, ack: Ack, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> Agreement | None:
        """Finish our handshake.  Raises BadPacket if ``ack`` does not belong to it.

        None if it is a repetition, or shows what we do not want.
        """
        packed = ack.said()
        if self._answered is not None and self._answered.ack == packed:
            send_control(out, remote, local, self.counters, self._answered.ackack)
            return None
        initiation = self.initiation
        if initiation is None:
            raise BadPacket
        if not self._acceptable(ack, remote, now, out):
            return None
        ackack = initiation.finish_untrusted(ack, self.identity, now).pack()
        agreement = initiation.agree(ack, remote, local)
        self._pin(ack.identity, remote, out)
        if initiation.attempts == 1:
            self.rtt = now - initiation.started
        out.tell(EventKind.ACK_RECEIVED, self.name, remote)
        send_control(out, remote, local, self.counters, ackack)
        nonce = initiation.syn.nonce
        self._answered = _Answered(nonce, packed, ackack, remote, local)
        self._ackack_repeats, self._ackack_at = 0, now + ACKACK_AFTER
        self.initiation = None  # the session has the id now
        self.answers.yield_to(nonce)
        return agreement

    # -- answering -----------------------------------------------------------

    def guard_of(self, syn: Syn) -> Guard | None:
        """By which of what the peer may know the MAC of ``syn`` was made."""
        said = syn.guarded()
        for guard in self._guards:
            if guard.fits(said, syn.mac):
                return guard
        return None

    def is_blind(self, guard: Guard) -> bool:
        """Whether a MAC made so shows that our key is not known."""
        return guard is self._guards[1]

    def note_wrong_mac(self) -> None:
        """Who asks where the peer is does not know what it has to know."""
        self._wrong_mac = True

    def on_syn(
        self,
        syn: Syn,
        remote: Remote,
        local: bytes,
        now: float,
        out: Outbox,
        shown: Shown,
    ) -> None:
        """Answer the peer's SYN, unless it is not for us to answer, or ours goes on."""
        if not self._acceptable(syn, remote, now, out):
            return
        half_open = self.answers.to(syn)
        if half_open is not None:  # its ACK was lost
            half_open.repeats += 1
            if self.initiation is not None:
                self.initiation.encourage()
        elif self._wins_against(syn):
            if self.initiation is not None:
                # It may be elsewhere than we think, and where we ask nobody hear us.
                self.initiation.hurry(Place(remote, local), now)
            return
        elif not self._is_spared(syn, shown) and not self._answering.take(now):
            self.counters.drop(Drop.RATE)
            return
        else:
            half_open = self._answer(syn, remote, local, now, out)
            self.answers.put(half_open, shown)
        send_control(out, remote, local, self.counters, half_open.ack.pack())

    def _is_spared(self, syn: Syn, shown: Shown) -> bool:
        """Whether the rate is not for it: who wants to use that up could not send it.

        A pre-shared key alone does not say so: it may be an old SYN once more.
        """
        return shown is Shown.SESSION or (
            shown is not Shown.NOTHING and any(syn.cookie)
        )

    def _wins_against(self, other: Syn) -> bool:
        """The tie-break when both ends began; the other end computes the opposite.

        Ours is under way until it is sure that the peer has got our ACKACK: or else
        there could be two sessions, of which each end got another one last.  Our own
        SYN, sent back to us by somebody, loses too.
        """
        if self.initiation is not None:
            return self.initiation.syn.nonce >= other.nonce
        if self._answered is not None and self._ackack_at < inf:
            return self._answered.nonce >= other.nonce
        return False

    def _answer(
        self, syn: Syn, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> HalfOpen:
        half_open = HalfOpen.answer(
            syn,
            self.identity,
            self.take_id(),
            self.random,
            remote,
            local,
            now,
            self.psk,
            early=self.early and self.suite == SUITE_ALPHA,
        )
        if self.initiation is not None and not self.answers:
            # Ours lost the tie.  It stays valid, should the peer's break off.  Only
            # the first SYN puts it off, lest a stream of forged ones does for ever.
            self.initiation.resend_at = now + OWN_SYN_AFTER
        out.tell(EventKind.SYN_RECEIVED, self.name, remote)
        return half_open

    def on_ackack_untrusted(
        self, ackack: AckAck, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> Agreement | None:
        """The peer has proven itself.  Raises BadPacket if it has not.

        None if what it proved to be is not what we want any more.
        """
        half_open = self.answers.with_id(ackack.receiver_id)
        if half_open is None:
            raise BadPacket
        half_open.verify_untrusted(ackack, now)
        # Its key may have been pinned, or set, since the SYN was answered.
        if not self._acceptable(half_open.syn, remote, now, out):
            self.answers.forget(half_open)
            return None
        agreement = half_open.agree(remote, local)
        self.answers.take(half_open)
        if half_open.lost:
            return agreement
        rtt = now - half_open.created
        if not half_open.repeats and rtt < ACKACK_AFTER:  # neither was repeated
            self.rtt = rtt
        self._pin(half_open.syn.identity, remote, out)
        out.tell(EventKind.ESTABLISHED, self.name, remote)
        self.answers.clear()
        self.stop()
        return agreement

    # -- who it is -----------------------------------------------------------

    def _acceptable(
        self, said: Syn | Ack, remote: Remote, now: float, out: Outbox
    ) -> bool:
        """Whether key and mode are those we want with this peer."""
        if said.identity == self.identity.public:
            self.counters.drop(Drop.WRONG_KEY)  # our own message, sent back to us
            return False
        if said.identity != self.key and (other := self.taken(said.identity)):
            self.counters.drop(Drop.WRONG_KEY)
            self._is_other = other
            return False
        if self.key is not None and said.identity != self.key:
            self.counters.drop(Drop.WRONG_KEY)
            if self.offered_key != said.identity:
                self.offered_key = said.identity
                if self._wrong_keys.take(now):
                    out.tell(EventKind.WRONG_KEY, self.name, remote)
            return False
        if said.suite != self.suite:
            self.counters.drop(Drop.WRONG_MODE)
            if not self._wrong_suite:
                self._wrong_suite = True
                out.tell(EventKind.WRONG_MODE, self.name, remote)
            return False
        return True

    def _pin(self, key: bytes, remote: Remote, out: Outbox) -> None:
        """Trust on first use: from now on it must be this key."""
        if self.key is None:
            self.key = key
            out.tell(EventKind.PINNED, self.name, remote)
        self.offered_key = None
        self._wrong_suite = self._wrong_mac = False
        self._is_other = ""

    @property
    def going(self) -> bool:
        """Whether a handshake is under way, of ours or of the peer's."""
        return self.initiation is not None or len(self.answers) > 0

    @property
    def refusal(self) -> str | None:
        """Why the one who asks or answers at the peer's address is not accepted."""
        if self.offered_key is not None:
            return (
                f"somebody at its address shows the key {key_text(self.offered_key)}; "
                f"if that is right: alpha-trio peers set {self.name} --key "
                f"{key_text(self.offered_key)}"
            )
        if self._wrong_suite:
            ours = "plain" if self.suite == SUITE_PLAIN else "alpha"
            return (
                f"the peer wants another mode than {ours}: set the same on both sides"
            )
        if self._is_other:
            return (
                f"who is at its address has the key of peer {self._is_other}, and one "
                f"host is one peer: remove {self.name}, and allow its addresses for "
                f"{self._is_other} (peers set {self._is_other} --allow)"
            )
        if self._wrong_mac:
            return (
                "who asks at its address does not know this host's key, or has another "
                "pre-shared key: set the same psk on both sides, or none"
            )
        return None

    # -- time ----------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When on_deadline wants to be called; inf if nothing is under way."""
        due = self._ackack_at
        if self.initiation is not None:
            due = min(due, self.initiation.resend_at)
        return min(due, self.answers.deadline)

    def on_deadline(self, now: float, out: Outbox) -> bool:
        """Repeat what is due.  True if nobody answered: then stop, or reset."""
        self.answers.expire(now)
        if self._answered is not None and now >= self._ackack_at:
            self._repeat_ackack(self._answered, now, out)
        initiation = self.initiation
        if initiation is None or now < initiation.resend_at:
            return False
        if initiation.hinted and initiation.attempts >= HINTED_ATTEMPTS:
            self.stop()
            return False
        if initiation.expired(now):
            return True
        self._ask(initiation, now, out)
        return False

    def _repeat_ackack(self, answered: _Answered, now: float, out: Outbox) -> None:
        """Nothing was heard in the new session: perhaps the peer does not have it."""
        remote, local = answered.remote, answered.local
        for _ in range(2):  # or a loss of every other datagram might hit it for ever
            send_control(out, remote, local, self.counters, answered.ackack)
        self._ackack_repeats += 1
        jitter = 1 + int.from_bytes(self.random(1)) / 512
        growth = ACKACK_GROWTH**self._ackack_repeats
        self._ackack_at = now + ACKACK_AFTER * jitter * growth
        if self._ackack_repeats >= ACKACK_REPEATS:
            self._ackack_at = inf

    # -- ending --------------------------------------------------------------

    def settle(self) -> None:
        """The peer has the session that was agreed on, or nobody wants it any more."""
        self._ackack_repeats, self._ackack_at = 0, inf

    def repeats_ackack(self, now: float) -> bool:
        """Whether on_deadline will send the ACKACK again."""
        return now >= self._ackack_at

    @property
    def doubtful(self) -> bool:
        """Whether the peer may not have had the session from the start.

        That is, whether the ACKACK was repeated and nothing heard since.
        """
        return self._ackack_repeats > 0

    def stop(self) -> None:
        """Ask for nothing more."""
        self.settle()
        if self.initiation is not None:
            self.free_id(self.initiation.syn.sender_id)
            self.initiation = None

    def reset(self) -> None:
        """Forget every handshake."""
        self.stop()
        self.answers.clear()


def send_control(
    out: Outbox, remote: Remote, local: bytes, counters: Counters, message: bytes
) -> None:
    """Send one datagram that belongs to no data path."""
    out.send(remote, local, counters, message, len(message))
