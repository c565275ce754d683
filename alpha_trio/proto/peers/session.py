"""One peer: its transport, the packets that wait, its timers.

How a session is agreed on is in negotiation.py.

Timers are timestamps, not alarms.  Events only write down when they happened;
``wake`` says when somebody should look again, and :meth:`Session.on_deadline`
then compares.  So a busy session costs no timer work per packet, and an idle one
wakes nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from math import inf

from attrs import define, field

from alpha_trio.proto.batch import (
    Buffer,
    Counters,
    Drop,
    EventKind,
    Outbox,
    Place,
    Remote,
)
from alpha_trio.proto.handshake import (
    GIVE_UP_AFTER,
    Agreement,
    Negotiation,
    Shown,
)
from alpha_trio.proto.messages import (
    PREVIOUS_LIFETIME,
    REFUSE_AFTER,
    SUITE_ALPHA,
    SUITE_PLAIN,
    Ack,
    AckAck,
    BadPacket,
    Cookie,
    Syn,
)
from alpha_trio.proto.packets import IPV6_LEAST, Cut, frames, icmp, split_frame
from alpha_trio.proto.peers.pathmtu import PathMtu, Phase, Source
from alpha_trio.proto.peers.statistics import State, Statistics
from alpha_trio.proto.peers.waiting import WaitingFrames
from alpha_trio.proto.peers.whereabouts import Whereabouts
from alpha_trio.proto.primitives import Identity, RandomBytes
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.traces import Trace, parse_report_untrusted
from alpha_trio.proto.transport import (
    ECN,
    MODES,
    OUTER_HEADERS,
    AlphaTransport,
    Arrival,
    EarlyState,
    Line,
    Outcome,
    PlainTransport,
    SizeProbe,
    Transport,
    overhead,
)

# All in seconds.
KEEPALIVE_AFTER = 10.0  # data came and nothing went back: say that it arrived
SILENT_AFTER = 5.0  # data went and nothing came back: this is to be told
SILENCE_AFTER = 15.0  # data went and nothing came back: the peer may have restarted
REKEY_AFTER = 120.0  # age at which the initiator asks for a new session, if in use
REKEY_GRACE = 10.0  # later the responder asks itself
WIPE_AFTER = 540.0  # age at which its keys are forgotten
NEXT_LIFETIME = 10.0  # nothing has come in a session that was agreed on
TWIN_AFTER = 5.0  # nothing new is sent in a former session so long after the next one

LOOP_TOLD = 30.0  # s for which a loop is told after it was last seen

# SYNs that show the session they renew: a second, and at once.
RENEWAL_RATE, RENEWAL_BURST = 1.0, 5.0

WRONG_ADDRESS_RATE, WRONG_ADDRESS_BURST = 0.2, 5.0  # events: anybody can make them


@define(eq=False)
class ConnectionIds:
    """Where a session gets the ids by which datagrams find it."""

    take: Callable[[Session], int]
    free: Callable[[int], None]
    bind: Callable[[Session, Transport], None]
    """From now on what begins with the transport's words goes to it."""
    taken: Callable[[Session, bytes], str | None]
    """Which other peer has a key, if one does."""


@define(eq=False)
class Session:
    """One configured peer.  All methods are synchronous; ``now`` is in seconds."""

    name: str
    ids: ConnectionIds
    identity: Identity  # ours
    random: RandomBytes
    owner: Callable[[bytes], Session | None]  # who owns an inner address
    visible: int = ECN  # bits of inner traffic classes that outer headers have, too
    lane: int = 0  # number of the process that carries its packets
    keepalive: float = 0.0  # seconds between keepalives; 0: none
    mode: str = "adaptive"  # or "n", "c", "m", "cm", "plain"
    reliable: bool = False  # packets are repeated until they are acknowledged
    early: bool = True  # small packets may travel inside S1
    mtu: int = 1280  # largest inner packet, bytes
    fixed_mtu: int = 0  # the same, if the operator knows better; 0: find it out
    path: PathMtu = field(factory=PathMtu)
    counters: Counters = field(factory=Counters)
    wake: float = inf  # when on_deadline wants to be called

    negotiation: Negotiation = field(init=False)
    next: Transport | None = None  # agreed on, but nothing has come in it yet
    current: Transport | None = None
    previous: Transport | None = None
    waiting: WaitingFrames = field(factory=WaitingFrames)

    initiated: bool = False  # whether the current session was asked for by us
    unanswered_since: float = inf  # first data sent after the last was heard
    silent_since: float = inf  # the same, from when a handshake was begun because of it
    owed_since: float = inf  # first data heard after the last was sent
    greets: bool = False  # the peer is to hear of us at once
    last_sent: float = -inf
    gave_up: bool = False
    wrong_address: Remote | None = None
    whereabouts: Whereabouts = field(factory=Whereabouts)
    foreign_source: bytes = b""  # of the latest inner packet that had a wrong one
    looped: float = -inf  # when a datagram of ours last came back to us
    tracing: Trace | None = None
    _wrong_addresses: TokenBucket = field(
        factory=lambda: TokenBucket(WRONG_ADDRESS_RATE, WRONG_ADDRESS_BURST)
    )
    _probe: SizeProbe | None = None
    _path_host: str = ""  # whose path it is that ``path`` knows
    modes: dict[str, int] = field(factory=lambda: dict.fromkeys(MODES, 0))
    _renewals: TokenBucket = field(
        factory=lambda: TokenBucket(RENEWAL_RATE, RENEWAL_BURST)
    )

    def __attrs_post_init__(self) -> None:
        self.negotiation = Negotiation(
            self.name,
            self.identity,
            self.random,
            partial(self.ids.take, self),
            self.ids.free,
            self.counters,
            partial(self.ids.taken, self),
        )

    def require(self, key: bytes | None, mode: str, psk: bytes | None = None) -> None:
        """What the peer has to show in the next handshake, and what it agrees on."""
        self.mode = mode
        suite = SUITE_PLAIN if mode == "plain" else SUITE_ALPHA
        self.negotiation.require(key, suite, psk)

    def rely(self, reliable: bool) -> None:
        """Whether the rounds from now on are reliable."""
        self.reliable = reliable
        for transport in self._transports:
            if isinstance(transport, AlphaTransport):
                transport.sender.reliable = reliable

    def allow_early(self, early: bool) -> None:
        """Whether small packets may travel inside S1."""
        self.early = self.negotiation.early = early
        for transport in self._transports:
            if isinstance(transport, AlphaTransport):
                transport.sender.early.allowed = early

    @property
    def early_state(self) -> EarlyState:
        """Whether they do, or why not."""
        if self.reliable or self.mode != "adaptive":
            return EarlyState.NO_USE
        if not self.early:
            return EarlyState.OFF_HERE
        if not isinstance(self.current, AlphaTransport):
            return EarlyState.NO_SESSION
        return self.current.sender.early.state

    # -- the path's MTU ------------------------------------------------------

    def allow(self, ceiling: int, fixed: int, now: float) -> None:
        """The link, or the route, towards the peer takes IP packets so large, bytes.

        ``fixed``: the inner MTU that the operator wants, bytes; 0: find it out.
        """
        version, path = self._version, self.path
        same = (path.version, path.ceiling) == (version, ceiling)
        if fixed or self.mode == "plain":
            path.stop(version, ceiling)
            self._forget_probe()
        elif not same or path.phase is Phase.OFF:
            path.begin(version, ceiling, now)
            self._forget_probe()
            self._path_host = self.remote[0] if self.remote else ""
        self.fixed_mtu = fixed
        self._fit()
        self._wake_by(self._path_deadline)

    def route_changed(self, now: float) -> None:
        """Some route of this host has changed, and maybe the path with it."""
        self.path.route_changed(now)
        self._wake_by(self._path_deadline)

    @property
    def mtu_source(self) -> Source:
        """How ``mtu`` was found."""
        return Source.SET if self.fixed_mtu else self.path.source

    @property
    def mtu_limit(self) -> int | None:
        """``mtu``, once something is known of the path."""
        return self.mtu if self.path.ceiling else None

    @property
    def _version(self) -> int:
        return 6 if self.remote is not None and len(self.remote) == 4 else 4

    @property
    def _path_deadline(self) -> float:
        return self.path.deadline if isinstance(self.current, AlphaTransport) else inf

    def _fit(self) -> bool:
        """Use what is known of the path; tells whether that changes the MTU."""
        path, around = self.path, OUTER_HEADERS[self.path.version]
        inner = path.size - around - overhead(self.mode)
        if self.fixed_mtu:
            inner = min(self.fixed_mtu, inner)
        was, self.mtu = self.mtu, inner
        for transport in self._transports:
            if isinstance(transport, AlphaTransport):
                transport.fit(inner + overhead(self.mode), path.floor - around)
                self._wake_by(transport.deadline)
        return inner != was

    def _tell_path(self, out: Outbox) -> None:
        if self._fit():
            out.tell(EventKind.PATH_MTU, self.name, self.remote, self.mtu)

    def _run_path(self, now: float, out: Outbox) -> None:
        current, path = self.current, self.path
        if now < self._path_deadline or not isinstance(current, AlphaTransport):
            return
        if self._usable(now) is None:
            path.pause()
            return
        if current.remote[0] != self._path_host:
            path.begin(self._version, path.ceiling, now)
            self._path_host = current.remote[0]
        size = path.next_probe(now, large=current.take_large())
        self._tell_path(out)
        if size is not None:
            around = OUTER_HEADERS[path.version]
            self._probe = SizeProbe(size - around, now, self._on_probed)
            current.ask_size(self._probe, now, out)

    def _forget_probe(self) -> None:
        """What was asked of the path before matters no more."""
        self._probe = None
        if isinstance(self.current, AlphaTransport):
            self.current.sender.controls.sized = None

    def _on_probed(
        self, probe: SizeProbe, outcome: Outcome, now: float, out: Outbox
    ) -> None:
        if probe is not self._probe:
            return  # of a session before this one
        self._probe = None
        if outcome is Outcome.ARRIVED:
            self.path.on_arrived(now)
        elif outcome is Outcome.SILENT:
            self.path.on_silence(now)
        else:
            self.path.on_lost(now, surely=outcome is Outcome.STUCK)
        self._tell_path(out)
        self._wake_by(self.path.deadline)

    # -- the way out ---------------------------------------------------------

    def outgoing(self, frame: memoryview, now: float, out: Outbox) -> None:
        """Send the TUN frame, with ``push``, or let it wait for a handshake."""
        transport = self._usable(now)
        if transport is None and self.next is not None:
            self._begin(self.next, now, out)
            transport = self.current
        if transport is None:
            if self.negotiation.nowhere:
                self._refuse_unreachable(frame, out)
                return
            self._wait(frame)
            self._want_session(now)
            return
        cut = frames.cut(frame, self.mtu)
        if cut is not None:
            transport.outgoing(cut, now, out)
        elif not self._split(transport, frame, now, out):
            return
        self._sent(now)
        if self.unanswered_since == inf and self.negotiation.initiation is None:
            self.unanswered_since = now
            self._wake_by(now + SILENCE_AFTER)
            self.path.in_use(now)
            self._wake_by(self._path_deadline)
            self._rekey(transport, now)

    def push(self, now: float, out: Outbox) -> None:
        """No more follows at once: send what was handed in."""
        transport = self.current
        if transport is not None:
            transport.push(now, out)
            if transport.deadline < self.wake:
                self.wake = transport.deadline

    def _rekey(self, transport: Transport, now: float) -> None:
        """Ask for a new session in time; the old one serves until that is proven."""
        due = REKEY_AFTER if self.initiated else REKEY_AFTER + REKEY_GRACE
        exhausted = isinstance(transport, AlphaTransport) and transport.exhausted
        if self.next is not None:
            return
        if now - transport.established > due or exhausted:
            self._want_session(now)

    def _split(
        self, transport: Transport, frame: memoryview, now: float, out: Outbox
    ) -> bool:
        """Send in fragments what is larger than the path takes; False: not allowed."""
        number = int.from_bytes(self.random(4))
        pieces = split_frame(frame, self.mtu, number)
        if pieces is None:
            self._refuse_too_big(frame, out)
            return False
        self.counters.split_packets += frames.packets(frame)
        for piece in pieces:
            transport.outgoing(Cut(0, b"", piece, len(piece), len(piece)), now, out)
        return True

    def _refuse_too_big(self, frame: memoryview, out: Outbox) -> None:
        self.counters.drop(Drop.TOO_BIG, frames.packets(frame))
        least = IPV6_LEAST if frame[frames.VIRTIO_SIZE] >> 4 == 6 else 0
        icmp.answer(frame, icmp.Problem.TOO_BIG, out, max(self.mtu, least))

    def _refuse_unreachable(self, frame: memoryview, out: Outbox) -> None:
        self.counters.drop(Drop.NO_SESSION, frames.packets(frame))
        icmp.answer(frame, icmp.Problem.UNREACHABLE, out)

    def _sent(self, now: float) -> None:
        self.last_sent = now
        self.owed_since = inf

    def _wait(self, frame: memoryview) -> None:
        if pushed_out := self.waiting.put(frame):
            self.counters.drop(Drop.QUEUE_FULL, pushed_out)

    def _want_session(self, now: float, *, hinted: bool = False) -> None:
        current = self.current
        renewal = None
        if isinstance(current, AlphaTransport) and not self._forgotten(current, now):
            renewal = current.line.renewal
        self.negotiation.begin(now, renewal, hinted=hinted)
        self._wake_by(self.negotiation.deadline)

    def connect(self, now: float, *, hinted: bool = False) -> None:
        """Ask for a session, unless there is one or it is being asked for.

        One in which nothing is heard any more is none.  ``hinted``: something came that
        proves nothing.
        """
        if self._usable(now) is None or self.silence(now) is not None:
            self._want_session(now, hinted=hinted)

    def woke(self, now: float) -> None:
        """Time has passed in which nobody could answer: what is under way begins anew.

        The old session serves until the new one has proven itself, if it may still.
        """
        if self.current is not None or self.negotiation.initiation is not None:
            self.negotiation.stop()
            self.negotiation.answers.expire(now)
            self._want_session(now)
            self.unanswered_since = inf

    # -- where we are, and where the peer is ---------------------------------

    def readdress(self, now: float, *, lost: bool) -> None:
        """The way to the peer has changed: let it hear from us at once.

        ``lost``: the address by which it knows us is ours no more, or not on that way.
        Then the kernel chooses one, and the peer follows what is authentic.
        """
        if lost:
            for transport in self._transports:
                transport.line.local = b""
            if self.negotiation.proven is not None:
                self.negotiation.proven = Place(self.negotiation.proven.remote)
        if isinstance(self._usable(now), AlphaTransport):
            self.greets = True
            self._wake_by(now)
        elif self.current is not None or self.negotiation.initiation is not None:
            self.ask(now)  # nothing else is authentic, and so followed

    def ask(self, now: float) -> None:
        """Ask for a session wherever the peer may be, though there may be one."""
        self._want_session(now)
        if self.negotiation.initiation is not None:
            self.negotiation.initiation.restart(everywhere=True)
            self._wake_by(now)

    def _follow(self, transport: Transport, now: float, out: Outbox) -> None:
        """The peer has proven to be elsewhere."""
        line, place = transport.line, transport.line.proven
        line.proven = None
        if place is None or place == line.place:
            return
        if transport is not self.current:
            line.move(place, now)
        elif self.whereabouts.follow(line.place, place, now):
            line.move(place, now)
            self.negotiation.proven = place
            transport.hasten(now)  # what went where it is not
            out.tell(EventKind.MOVED, self.name, place.remote)

    def _note_twin(self, former: Transport, now: float, out: Outbox) -> None:
        """A session is used that its peer has left: by whom then?"""
        current = self.current
        if (
            current is not None
            and current.heard > current.established
            and now > current.established + TWIN_AFTER
            and current.remote != former.remote
            and self.whereabouts.doubled(former.remote, current.remote, now)
        ):
            out.tell(EventKind.TWINS, self.name, former.remote)

    # -- handshakes ----------------------------------------------------------

    def shown(self, syn: Syn, remote: Remote, now: float) -> Shown:
        """What ``syn``, whose MAC is good, shows of who sent it."""
        if self.is_renewal(syn) and self._spares(syn, now):
            return Shown.SESSION
        if self.negotiation.psk is not None:
            return Shown.SECRET
        return Shown.PLACE if self.is_at(remote) else Shown.NOTHING

    def is_renewal(self, syn: Syn) -> bool:
        """Whether ``syn`` shows that it is from the one we have a session with."""
        current = self.current
        if not isinstance(current, AlphaTransport) or not any(syn.renewal):
            return False
        return current.line.is_renewal(syn)

    def _spares(self, syn: Syn, now: float) -> bool:
        """Whether one more renewal is within its rate: it may be an old one."""
        return self.negotiation.answers.to(syn) is not None or self._renewals.take(now)

    def is_at(self, remote: Remote) -> bool:
        """Whether the peer is configured, or was heard last, at this host."""
        return remote[0] in [place.remote[0] for place in self.negotiation.places()]

    def on_syn(
        self,
        syn: Syn,
        remote: Remote,
        local: bytes,
        now: float,
        out: Outbox,
        shown: Shown,
    ) -> None:
        """See Negotiation.on_syn."""
        self.negotiation.on_syn(syn, remote, local, now, out, shown)
        self._wake_by(self.negotiation.deadline)

    def on_cookie_untrusted(
        self, cookie: Cookie, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """See Negotiation.on_cookie_untrusted.  Raises BadPacket."""
        self.negotiation.on_cookie_untrusted(cookie, remote, local, now, out)
        self._wake_by(self.negotiation.deadline)

    def on_ack_untrusted(
        self, ack: Ack, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """Begin the session we asked for.  Raises BadPacket without proof."""
        agreement = self.negotiation.on_ack_untrusted(ack, remote, local, now, out)
        if agreement is None:
            return
        self.initiated = True
        self._wake_by(self.negotiation.deadline)
        transport = self._transport(agreement, now)
        self._establish(transport, now, out)
        if transport is self.next or self.last_sent < now:
            # Without an answer we would not know that the ACKACK arrived.
            transport.keepalive(now, out)
            self._sent(now)

    def on_ackack_untrusted(
        self, ackack: AckAck, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """Begin the session the peer asked for.  Raises BadPacket without proof."""
        if ackack.receiver_id in [each.local_id for each in self._transports]:
            return  # a repeated one
        agreement = self.negotiation.on_ackack_untrusted(
            ackack, remote, local, now, out
        )
        if agreement is None:
            return
        if agreement.lost:
            self._receive_on(self._transport(agreement, now))
            return
        self.initiated = False
        self._establish(self._transport(agreement, now), now, out)
        if self.whereabouts.called(remote, now):
            out.tell(EventKind.TWINS, self.name, remote)

    def _receive_on(self, transport: Transport) -> None:
        """Both asked: the peer may have sent in this session before it got the other.

        Undisclosed rounds it sends again in the other one; plain packets it does not.
        """
        if self.previous is not None:
            self.ids.free(transport.local_id)
            return
        self.ids.bind(self, transport)
        self.previous = transport
        self._wake_by(transport.heard + PREVIOUS_LIFETIME)

    def _transport(self, agreement: Agreement, now: float) -> Transport:
        if agreement.theirs.suite == SUITE_PLAIN:
            return PlainTransport(agreement, self.counters, now, now, self.visible)
        size = self.mtu + overhead(self.mode)
        line = Line(
            agreement,
            self.counters,
            self.random,
            size,
            self.identity,
            visible=self.visible,
        )
        transport = AlphaTransport(line, now, now)
        transport.sender.restrict(self.mode, self.modes)
        transport.sender.reliable = self.reliable
        transport.sender.early.allowed = self.early
        if self.negotiation.rtt is not None:
            transport.sender.rtt.begin(self.negotiation.rtt)
        if self.path.phase is not Phase.OFF:
            transport.fit(size, self.path.floor - OUTER_HEADERS[self.path.version])
        transport.add_first(agreement)
        return transport

    def _establish(self, transport: Transport, now: float, out: Outbox) -> None:
        """It was agreed on: use it when something has come in it.

        Until then the one there is carries on: what was agreed on here may not have
        come to pass there, or not at relays on the way.
        """
        self.ids.bind(self, transport)
        if self.next is not None:
            self._forget_transport(self.next)
            self.next = None
        self.gave_up = False
        self.wrong_address = None
        old = self._usable(now)
        if isinstance(old, AlphaTransport) and isinstance(transport, AlphaTransport):
            self.next = transport
            self._wake_by(min(now + NEXT_LIFETIME, transport.deadline))
        else:
            self._begin(transport, now, out)

    def _begin(self, transport: Transport, now: float, out: Outbox) -> None:
        """Send in it from now on."""
        self.next = None
        if self.previous is not None:
            self._forget_transport(self.previous)
        # What is under way on the old one still arrives; nothing new is sent on it.
        self.previous, self.current = self.current, transport
        self.negotiation.proven = transport.line.place
        self.unanswered_since = self.silent_since = self.owed_since = inf
        if isinstance(self.previous, AlphaTransport) and isinstance(
            transport, AlphaTransport
        ):
            transport.sender.succeed(self.previous.sender, now, out)
        if self._is_outdated(transport):
            self._want_session(now)
        self._probe = None
        self.path.resume(now)
        established = transport.established
        self._wake_by(min(established + REFUSE_AFTER, self._path_deadline))
        if self.keepalive:
            self._wake_by(now + self.keepalive)
        self._send_waiting(now, out)

    def _is_outdated(self, transport: Transport) -> bool:
        """Whether the peer was told what we do not want any more.

        Its handshake may have been under way when that was changed.
        """
        told = transport.line.agreement.early
        return isinstance(transport, AlphaTransport) and told != self.early

    def _send_waiting(self, now: float, out: Outbox) -> None:
        for frame in self.waiting.take():
            self.outgoing(memoryview(frame), now, out)
        self.push(now, out)

    # -- the way in ----------------------------------------------------------

    def incoming(
        self,
        transport: Transport,
        view: memoryview,
        stride: int,
        remote: Remote,
        local: bytes,
        now: float,
        out: Outbox,
    ) -> int:
        """Take datagrams of ``transport``; returns the bytes consumed of ``view``."""
        consumed, arrival = transport.incoming(
            view, stride, remote, local, self.owns_source, now, out
        )
        if transport.line.proven is not None:
            self._follow(transport, now, out)
        if arrival > Arrival.NOTHING:
            transport.heard = now
            if transport is self.next:
                self._begin(transport, now, out)
            if transport is self.current:
                self.unanswered_since = self.silent_since = inf
                if self.next is None:
                    if self.negotiation.doubtful:
                        transport.hasten(now)
                    self.negotiation.settle()
            else:
                self._note_twin(transport, now, out)
            if arrival is Arrival.DATA and self.owed_since == inf:
                self.owed_since = now
                self._wake_by(now + KEEPALIVE_AFTER)
        elif arrival is Arrival.WRONG_ADDRESS:
            self._tell_wrong_address(remote, now, out)
        if transport.deadline < self.wake:
            self.wake = transport.deadline
        return consumed

    def note_wrong_address(self, remote: Remote, now: float, out: Outbox) -> None:
        """A handshake message, but not from where the peer is: dropped, told once."""
        self.counters.drop(Drop.WRONG_ADDRESS)
        self._tell_wrong_address(remote, now, out)

    def _tell_wrong_address(self, remote: Remote, now: float, out: Outbox) -> None:
        if self.wrong_address != remote and self._wrong_addresses.take(now):
            self.wrong_address = remote
            out.tell(EventKind.WRONG_ADDRESS, self.name, remote)

    def note_loop(self, now: float, out: Outbox) -> None:
        """A datagram of ours was about to be sent to this peer in the tunnel."""
        if now >= self.looped + LOOP_TOLD:
            out.tell(EventKind.LOOP, self.name, self.remote)
        self.looped = now

    def owns_source(self, packet: Buffer) -> bool:
        """Whether the inner packet that begins so may come from this peer.

        Its source must lie in the peer's own prefixes, as its destination must on
        the way out; or be the address at which the session has proven it to be, from
        which it sends ICMP errors, unless that is another peer's.
        """
        size = len(packet)
        version = packet[0] >> 4 if size else 0
        if version == 4 and size >= 20:
            source = bytes(packet[12:16])
        elif version == 6 and size >= 40:
            source = bytes(packet[8:24])
        else:
            return False
        owner = self.owner(source)
        if owner is self:  # hot path
            return True
        if owner is None and self._is_at_source(source):
            return True
        self.foreign_source = source
        return False

    def _is_at_source(self, source: bytes) -> bool:
        current = self.current
        if not isinstance(current, AlphaTransport):
            return False  # in mode plain nobody has proven where he is
        host = str(current.remote[0]).partition("%")[0]
        return ip_address(host).packed == source

    # -- traces --------------------------------------------------------------

    def trace(self, seconds: float, now: float) -> Trace | None:
        """Ask the nodes between us and the peer, for ``seconds``, what they count.

        None if there is no ALPHA session.  TRACED tells when it is done, unless it
        ends with the session; one that goes on ends.
        """
        current = self._usable(now)
        if not isinstance(current, AlphaTransport):
            return None
        peer = current.line.agreement.theirs.identity
        rtt = current.sender.rtt.smoothed or 0.0
        ours, session = self.identity.public, current.local_id
        self.end_trace()
        self.tracing = Trace(ours, peer, session, now, seconds, rtt, self.random)
        self._wake_by(now)
        return self.tracing

    def end_trace(self) -> None:
        """Ask no more; what is known is known."""
        if self.tracing is not None:
            self.tracing.done = True
            self.tracing = None

    def on_report_untrusted(self, datagram: bytes, now: float) -> None:
        """Take an answer to a TRACE.  Raises BadPacket if it is none."""
        if self.tracing is None:  # as for nearly all that strangers send
            raise BadPacket
        report = parse_report_untrusted(datagram)
        if report.receiver_id != self.tracing.session:
            raise BadPacket
        self.tracing.on_report_untrusted(report, now)
        self._wake_by(self.tracing.deadline)

    def _run_trace(self, now: float, out: Outbox) -> None:
        current, trace = self._usable(now), self.tracing
        if trace is None:
            return
        if not isinstance(current, AlphaTransport):
            trace.done = True
        elif (probe := trace.due(current.local_id, now)) is not None:
            current.trace(probe, now, out)
            self._rekey(current, now)  # a long trace needs no other traffic
        if trace.done:
            self.end_trace()
            out.tell(EventKind.TRACED, self.name, self.remote)

    # -- time ----------------------------------------------------------------

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Do what is due, and set ``wake`` to when the next thing is.

        What is due is found by the very sums that ``next_wake`` makes.  Differences
        are rounded otherwise: a deadline could have come and nothing yet be due.
        """
        self._negotiate(now, out)
        self._run_trace(now, out)
        self._run_path(now, out)
        self._run_transports(now, out)
        if now >= self.unanswered_since + SILENCE_AFTER:
            out.tell(EventKind.SILENT, self.name, self.remote)
            self.silent_since = min(self.silent_since, self.unanswered_since)
            self.unanswered_since = inf
            self._want_session(now)
            self._negotiate(now, out)
        self._keep_alive(now, out)
        self._age(now, out)
        self.wake = self.next_wake()

    def _negotiate(self, now: float, out: Outbox) -> None:
        initiation, newest = self.negotiation.initiation, self.next or self.current
        if newest is not None and self.negotiation.repeats_ackack(now):
            newest.hasten(now)  # what follows finds the session there
            if newest is self.next:
                newest.keepalive(now, out)
        if self.negotiation.on_deadline(now, out) and initiation is not None:
            self._give_up(initiation.started, now, out)

    def _give_up(self, asked: float, now: float, out: Outbox) -> None:
        """Nobody answered since ``asked``, at least not to the handshake."""
        if self.current is not None and self.current.heard > asked:
            self.negotiation.stop()  # the session came back to life meanwhile
            self._send_waiting(now, out)
            return
        remote = self.remote
        self._abandon()
        self.gave_up = True
        out.tell(EventKind.GAVE_UP, self.name, remote)

    def _keep_alive(self, now: float, out: Outbox) -> None:
        transport = self._usable(now)
        owed = now >= self.owed_since + KEEPALIVE_AFTER
        due = bool(self.keepalive) and now >= self.last_sent + self.keepalive
        if transport is None:
            self.owed_since = inf
            if due:
                self._want_session(now)
        elif owed or due or self.greets:
            self.greets = False
            transport.keepalive(now, out)
            self._sent(now)
            self._rekey(transport, now)  # keepalives alone keep a session, too

    def _run_transports(self, now: float, out: Outbox) -> None:
        previous = self.previous
        if previous is not None:
            if now >= previous.deadline:
                previous.on_deadline(now, out)
            if now >= previous.heard + PREVIOUS_LIFETIME:
                self._forget_transport(previous)
                self.previous = None
        if self.current is not None and now >= self.current.deadline:
            self.current.on_deadline(now, out)
        if self.next is not None and now >= self.next.deadline:
            self.next.on_deadline(now, out)
        if self.next is not None and now >= self.next.established + NEXT_LIFETIME:
            self._forget_transport(self.next)  # the next packet asks for another
            self.next = None
            self.negotiation.settle()

    def _age(self, now: float, out: Outbox) -> None:
        current = self.current
        if current is not None and self._forgotten(current, now):
            remote = self.remote
            self._forget_transports()
            out.tell(EventKind.EXPIRED, self.name, remote)

    def _forgotten(self, transport: Transport, now: float) -> bool:
        """Whether it is so old that neither side knows its keys any more."""
        return now >= transport.established + WIPE_AFTER

    def next_wake(self) -> float:
        """When the next thing will be due, if nothing happens until then."""
        times = [
            self.unanswered_since + SILENCE_AFTER,
            self.owed_since + KEEPALIVE_AFTER,
            self.negotiation.deadline,
        ]
        if self.tracing is not None:
            times.append(self.tracing.deadline)
        if self.keepalive and self.negotiation.initiation is None:
            times.append(self.last_sent + self.keepalive)
        if self.current is not None:
            times += [self.current.established + WIPE_AFTER, self.current.deadline]
            times.append(self._path_deadline)
        if self.next is not None:
            times += [self.next.established + NEXT_LIFETIME, self.next.deadline]
        if self.previous is not None:
            lifetime = self.previous.heard + PREVIOUS_LIFETIME
            times += [lifetime, self.previous.deadline]
        return min(times)

    def _wake_by(self, when: float) -> None:
        self.wake = min(self.wake, when)

    # -- the rest ------------------------------------------------------------

    @property
    def remote(self) -> Remote | None:
        """Where the peer is: where it was last heard from, else where to ask."""
        if self.current is not None:
            return self.current.remote
        places = self.negotiation.places()
        return places[0].remote if places else None

    @property
    def local(self) -> bytes:
        """Which address of ours the peer knows, as the socket reported it, if any."""
        return self.current.local if self.current is not None else b""

    @property
    def key(self) -> bytes | None:
        """The key it must have, configured or pinned; None: the first contact tells."""
        return self.negotiation.key

    @property
    def attempts(self) -> int | None:
        """SYNs of the handshake that we have begun; None: there is none."""
        asked = self.negotiation.initiation
        return None if asked is None else asked.attempts

    @property
    def places(self) -> int:
        """At how many places it is looked for."""
        return len(self.negotiation.places())

    @property
    def heard(self) -> float:
        """When something authentic came last, seconds; -inf: there is no session."""
        return -inf if self.current is None else self.current.heard

    def stop_asking(self) -> None:
        """End the handshake that we have begun, if there is one."""
        self.negotiation.stop()

    def reset(self) -> None:
        """Forget every session and handshake; what waits is dropped and counted."""
        self.negotiation.reset()
        self.negotiation.proven = None
        self.whereabouts = Whereabouts()
        self._abandon()

    def _abandon(self) -> None:
        self.negotiation.stop()
        self._forget_transports()
        self.end_trace()
        if packets := self.waiting.clear():
            self.counters.drop(Drop.NO_SESSION, packets)

    def _forget_transports(self) -> None:
        for transport in self._transports:
            self._forget_transport(transport)
        self.next = self.current = self.previous = None
        self.unanswered_since = self.silent_since = self.owed_since = inf
        self.negotiation.settle()

    def _forget_transport(self, transport: Transport) -> None:
        transport.abandon()
        self.ids.free(transport.local_id)

    @property
    def _transports(self) -> list[Transport]:
        every = self.next, self.current, self.previous
        return [transport for transport in every if transport is not None]

    def _usable(self, now: float) -> Transport | None:
        if self.current is None or now - self.current.established > REFUSE_AFTER:
            return None
        return self.current

    def state(self, now: float) -> State:
        """How the peer stands."""
        if self._usable(now) is not None:
            silent = self.silence(now) is not None
            return State.SILENT if silent else State.ESTABLISHED
        if self.negotiation.offered_key is not None:
            return State.KEY_MISMATCH
        if self.negotiation.nowhere:
            return State.IDLE
        if not self.negotiation.places():
            return State.RESOLVING
        if self.negotiation.going:
            return State.HANDSHAKING
        return State.UNREACHABLE if self.gave_up else State.IDLE

    def silence(self, now: float) -> float | None:
        """For how long we have sent and heard nothing, in s; None: not long enough.

        In ALPHA each round is answered; in mode plain a peer that only receives says
        so after ``KEEPALIVE_AFTER``.
        """
        since = min(self.unanswered_since, self.silent_since)
        if self.previous is not None and self.previous.heard > since:
            return None  # a session that is being replaced: the peer lives
        alpha = isinstance(self.current, AlphaTransport)
        due = since + (SILENT_AFTER if alpha else SILENCE_AFTER)
        return now - since if now >= due else None

    def _reason(self, now: float) -> str | None:
        if self.negotiation.refusal is not None:
            return self.negotiation.refusal
        if now < self.looped + LOOP_TOLD:
            return (
                "our own datagrams are led back into the tunnel: look at rules before "
                "ours ('ip rule') and at routes set by hand"
            )
        if self.wrong_address is not None:
            return f"answers come from {self.wrong_address[0]}, not from its endpoint"
        if self._usable(now) is None and self.negotiation.nowhere:
            return "it has no endpoint, so it is waited for: it has to call"
        silence = self.silence(now)
        if silence is not None:
            return (
                f"sent for {silence:.0f} s and heard nothing: is the peer up, and its "
                "UDP port reachable?"
            )
        if self.state(now) is State.UNREACHABLE:
            return f"no answer to handshakes for {GIVE_UP_AFTER:.0f} s"
        return None

    @property
    def queued(self) -> int:
        """Packets from here that wait, for a session or in it."""
        current = self.current
        rounds = current.sender if isinstance(current, AlphaTransport) else None
        return self.waiting.packets + (rounds.queued_packets if rounds else 0)

    def statistics(self, now: float) -> Statistics:
        """A snapshot for the control plane."""
        current, negotiation = self.current, self.negotiation
        rounds = current.sender if isinstance(current, AlphaTransport) else None
        return Statistics(
            state=self.state(now),
            reason=self._reason(now),
            remote=self.remote,
            handshake_age=None if current is None else now - current.established,
            receive_age=None if current is None else now - current.heard,
            rtt=(rounds and rounds.rtt.smoothed) or negotiation.rtt,
            queued=self.queued,
            counters=self.counters,
            key=negotiation.key,
            offered_key=negotiation.offered_key,
            rounds=dict(self.modes),
            associations=len(rounds.associations) if rounds else 0,
            elements_left=rounds.elements_left if rounds else 0,
            mtu=self.mtu,
            mtu_source=self.mtu_source,
            loss=rounds.rtt.loss if rounds else None,
            twins=self.whereabouts.twins_at(now),
        )
