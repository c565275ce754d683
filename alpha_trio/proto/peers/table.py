"""The peer table: by name, by connection id, by address, by prefix, by deadline.

Every task of the daemon works on this one table.  There is no lock: all methods
are synchronous and there is one thread, so between two awaits nobody sees it
half updated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from ipaddress import ip_address
from itertools import count
from math import inf
from struct import Struct

from attrs import define, field, frozen

from alpha_trio.proto.batch import Counters, Drop, EventKind, Outbox, Remote
from alpha_trio.proto.handshake import Doorkeeper, Shown, sealed_cookie, send_control
from alpha_trio.proto.messages import (
    DATA_SIZE,
    HEADER_SIZE,
    ID_SIZE,
    VERSION,
    BadPacket,
    Kind,
    Syn,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.packets import frames, icmp
from alpha_trio.proto.peers.prefixes import IPNetwork, Prefixes
from alpha_trio.proto.peers.session import ConnectionIds, Session
from alpha_trio.proto.primitives import Identity, RandomBytes
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.traces import Trace
from alpha_trio.proto.transport import ECN, Transport

KNOCKING_HOSTS = 64
"""Strangers remembered for ``status``; the one that knocked longest ago goes."""

KNOCK_RATE, KNOCK_BURST = 1.0, 20.0
"""Events of strangers a second, and at once: their source addresses may be made up."""

_DUE_AT_ONCE = 16
"""Sessions whose deadlines are looked at in one go: about as much as a batch costs."""

_FOUND_FOR = 1.0  # s until it is asked again where the peers are

_STALE_PLANS = 256  # deadlines that no longer hold, beside as many as there are peers

_WORD = Struct("!Q")
_PORTS = Struct("!HH")

_SESSION_KINDS = frozenset({Kind.DATA, Kind.S1, Kind.A1, Kind.S2, Kind.A2})


_Plan = tuple[float, int, float, Session]
"""When to look at a session, order among those at once, its ``wake`` then, itself."""


@frozen
class Knock:
    """A stranger's attempts.  Its key is what it says, not proven."""

    key: bytes
    count: int


@define(eq=False)
class PeerTable:
    """All peers, and the two ways through them: ``outgoing`` and ``incoming``."""

    port: int  # our own UDP port, to tell our datagrams when they loop
    identity: Identity
    random: RandomBytes
    visible: int = ECN  # bits of inner traffic classes that outer headers have, too
    sessions: dict[str, Session] = field(factory=dict)
    counters: Counters = field(factory=Counters)  # what belongs to no peer
    knocking: OrderedDict[str, Knock] = field(factory=OrderedDict)  # by host

    _prefixes_of: dict[str, tuple[IPNetwork, ...]] = field(factory=dict)
    _prefixes: Prefixes = field(factory=Prefixes)
    _by_id: dict[int, Session] = field(factory=dict)
    _by_word: dict[int, tuple[Session, Transport]] = field(factory=dict)
    _words_of: dict[int, list[int]] = field(factory=dict)  # by connection id
    bindings: int = 0  # how often ``bound`` has changed
    _by_key: dict[bytes, Session] = field(factory=dict)
    _door: Doorkeeper = field(init=False)
    _knocks: TokenBucket = field(factory=lambda: TokenBucket(KNOCK_RATE, KNOCK_BURST))
    _by_remote: dict[tuple[str, int], Session] = field(factory=dict)
    _by_host: dict[str, list[Session]] = field(factory=dict)
    _endpoints: set[bytes] = field(factory=set)  # packed address and port
    _found: set[bytes] = field(factory=set)  # these, and where peers were heard from
    _found_at: float = -inf
    _unpushed: dict[Session, None] = field(factory=dict)  # in the order of their frames
    _indexed: bool = False  # whether the look-ups above reflect the peers
    _heap: list[_Plan] = field(factory=list)
    _planned: dict[Session, float] = field(factory=dict)  # which wake of it holds
    _order: count[int] = field(factory=count)

    def __attrs_post_init__(self) -> None:
        self._door = Doorkeeper(self.random)

    # -- configuration -------------------------------------------------------

    def add(
        self,
        name: str,
        remotes: Sequence[Remote],
        prefixes: Iterable[IPNetwork],
        keepalive: float = 0.0,
        key: bytes | None = None,
        mode: str = "adaptive",
        reliable: bool = False,
        waits: bool = False,
        psk: bytes | None = None,
        early: bool = True,
    ) -> Session:
        """Enter a new peer; whether names or prefixes clash is for the caller."""
        ids = ConnectionIds(self._take_id, self._free_id, self._bind, self._taken)
        session = Session(
            name,
            ids,
            self.identity,
            self.random,
            self._prefixes.owner,
            visible=self.visible,
        )
        self.sessions[name] = session
        how = keepalive, key, mode, reliable, waits, psk, early
        self.configure(session, remotes, prefixes, *how)
        return session

    def configure(
        self,
        session: Session,
        remotes: Sequence[Remote],
        prefixes: Iterable[IPNetwork],
        keepalive: float = 0.0,
        key: bytes | None = None,
        mode: str = "adaptive",
        reliable: bool = False,
        waits: bool = False,
        psk: bytes | None = None,
        early: bool = True,
    ) -> None:
        """Change how a peer is reached and what it must show; its session lives on.

        Without ``key`` the first contact decides.  ``psk``: PSK_SIZE bytes that it has,
        too, if any.  A new key, psk or mode holds for the next session: to end the
        present one is for the caller.  ``reliable`` holds for
        the next round; ``early``, whether small packets may travel inside S1, at once
        for what is sent, and with the next session for what is taken.
        ``waits``: it has no remotes, and will have none: it calls.
        """
        session.negotiation.move(tuple(remotes))
        session.negotiation.waits = waits
        session.require(key, mode, psk)
        session.rely(reliable)
        session.allow_early(early)
        session.keepalive = keepalive
        session.wake = min(session.wake, session.next_wake())
        self._prefixes_of[session.name] = tuple(prefixes)
        self._indexed = False
        self._let_in(session)
        self._plan(session)

    def _let_in(self, session: Session) -> None:
        """Who is a peer now, by its address or its key, knocks no longer."""
        key = session.negotiation.key
        hosts = {remote[0] for remote in session.negotiation.remotes}
        for host, knock in list(self.knocking.items()):
            if host in hosts or knock.key == key:
                del self.knocking[host]

    def connect(self, session: Session, now: float) -> None:
        """Begin a handshake as a first packet would, unless there is a session."""
        session.connect(now)
        self._plan(session, now)

    def ask(self, session: Session, now: float) -> None:
        """See Session.ask."""
        session.ask(now)
        self._plan(session, now)

    def readdress(self, session: Session, now: float, *, lost: bool) -> None:
        """See Session.readdress."""
        session.readdress(now, lost=lost)
        self._plan(session, now)

    def woke(self, now: float) -> None:
        """This host was suspended: ask every peer for a session that had one.

        They may have given us up, or either of us may be elsewhere now.
        """
        for session in self.sessions.values():
            session.woke(now)
            self._plan(session, now)

    def trace(self, session: Session, seconds: float, now: float) -> Trace | None:
        """See Session.trace."""
        trace = session.trace(seconds, now)
        self._plan(session, now)
        return trace

    def allow(self, session: Session, ceiling: int, fixed: int, now: float) -> None:
        """See Session.allow."""
        session.allow(ceiling, fixed, now)
        self._plan(session, now)

    def route_changed(self, session: Session, now: float) -> None:
        """See Session.route_changed."""
        session.route_changed(now)
        self._plan(session, now)

    def remove(self, name: str) -> None:
        """Forget a peer, its session, and what waited for it."""
        session = self.sessions.pop(name)
        session.reset()
        del self._prefixes_of[name]
        self._planned.pop(session, None)
        self._unpushed.pop(session, None)
        self._indexed = False

    def _index(self) -> None:
        """Rebuild the look-ups: by the first packet after a change, not by each one.

        Or else starting with a thousand peers would rebuild them a thousand times.
        """
        self._indexed = True
        owned = self._prefixes_of
        self._prefixes.rebuild((s, owned[name]) for name, s in self.sessions.items())
        self._by_remote.clear()
        self._by_host.clear()
        self._endpoints.clear()
        self._by_key.clear()
        for session in self.sessions.values():
            if session.negotiation.key is not None:
                self._by_key.setdefault(session.negotiation.key, session)
            for remote in session.negotiation.remotes:
                host, port = _host_of(remote), remote[1]
                self._by_remote[host, port] = session
                there = self._by_host.setdefault(host, [])
                if session not in there:
                    there.append(session)
                self._endpoints.add(_packed(remote))
        self._found_at = -inf

    def _take_id(self, session: Session) -> int:
        while True:
            chosen = self._some_id()
            if chosen and chosen not in self._by_id:
                self._by_id[chosen] = session
                return chosen

    def _some_id(self) -> int:
        """A connection id, or 0, which is none; whether it is free is not looked at."""
        return int.from_bytes(self.random(ID_SIZE))

    def _free_id(self, connection_id: int) -> None:
        self._by_id.pop(connection_id, None)
        for word in (words := self._words_of.pop(connection_id, ())):
            del self._by_word[word]
        self.bindings += bool(words)

    def _taken(self, session: Session, key: bytes) -> str | None:
        """Which other peer's key it is, if it is one's."""
        owner = self._by_key.get(key, session)
        return None if owner is session else owner.name

    def _bind(self, session: Session, transport: Transport) -> None:
        self.bindings += 1
        self._words_of[transport.local_id] = transport.words
        for word in transport.words:
            self._by_word[word] = session, transport

    @property
    def bound(self) -> Collection[int]:
        """The connection ids of all sessions: what has another is of none."""
        return self._words_of.keys()

    def owner(self, address: bytes) -> Session | None:
        """Whose inner address it is, packed as in a header."""
        if not self._indexed:
            self._index()
        return self._prefixes.owner(address)

    # -- from the TUN to the network -----------------------------------------

    def outgoing(self, frame: memoryview, now: float, out: Outbox) -> None:
        """Take one TUN frame (virtio header and packet, borrowed) on its way out.

        It goes with ``push``, which has to follow the last one that is there: what is
        handed in together shares a round.
        """
        if not self._indexed:
            self._index()
        packet = frame[frames.VIRTIO_SIZE :]
        size = len(packet)
        version = packet[0] >> 4 if size else 0
        if version == 4 and size >= 20:
            destination = bytes(packet[16:20])
            udp, multicast = packet[9] == 17, destination[0] >= 0xE0
        elif version == 6 and size >= 40:
            destination = bytes(packet[24:40])
            udp, multicast = packet[6] == 17, destination[0] == 0xFF
        else:
            self.counters.drop(Drop.NOT_IP)
            return
        session = self._prefixes.owner(destination)
        if session is None:
            self._refuse(frame, multicast, out)
        elif udp and self._loops(packet, version, destination, now):
            session.counters.drop(Drop.LOOP, frames.packets(frame))
            session.note_loop(now, out)
        else:
            session.outgoing(frame, now, out)
            self._unpushed[session] = None

    def push(self, now: float, out: Outbox) -> None:
        """Send what was handed in since the last call."""
        for session in self._unpushed:
            session.push(now, out)
            self._plan(session, now)
        self._unpushed.clear()

    def _refuse(self, frame: memoryview, multicast: bool, out: Outbox) -> None:
        reason = Drop.MULTICAST if multicast else Drop.NO_PEER
        self.counters.drop(reason, frames.packets(frame))
        if not multicast:
            icmp.answer(frame, icmp.Problem.UNREACHABLE, out)

    def _loops(
        self, packet: memoryview, version: int, destination: bytes, now: float
    ) -> bool:
        """Whether it is a datagram of ours to a peer, where that is to be found.

        In a tunnel it would become another one to the same place, and so on.
        """
        header = (packet[0] & 0xF) * 4 if version == 4 else 40
        if len(packet) < header + 4:
            return False
        source_port, port = _PORTS.unpack_from(packet, header)
        return (
            source_port == self.port
            # A later fragment has payload there, and ours are never fragmented.
            and not (version == 4 and int.from_bytes(packet[6:8]) & 0x1FFF)
            and destination + port.to_bytes(2) in self._places(now)
        )

    def _places(self, now: float) -> set[bytes]:
        """Where peers are configured to be, and where they were found to be.

        Looked for once a second at most: whole sites behind us may use our port.
        """
        if now >= self._found_at + _FOUND_FOR:
            self._found_at = now
            remotes = (session.remote for session in self.sessions.values())
            self._found = {_packed(remote) for remote in remotes if remote}
            self._found |= self._endpoints
        return self._found

    # -- from the network to the TUN -----------------------------------------

    def incoming(
        self,
        view: memoryview,
        stride: int,
        remote: Remote,
        local: bytes,
        now: float,
        out: Outbox,
        ecn: int = 0,
    ) -> None:
        """Take datagrams of one sender, ``stride`` bytes apart, borrowed.

        ``local`` is the address of ours they were sent to, as the socket gave it;
        ``ecn`` what their headers say of congestion, RFC 3168.
        """
        if not self._indexed:
            self._index()
        at, end = 0, len(view)
        while at < end:
            if min(stride, end - at) < HEADER_SIZE:
                self.counters.drop(Drop.MALFORMED)
                at += stride
                continue
            found = self._by_word.get(_WORD.unpack_from(view, at)[0])
            if found is not None:
                session, transport = found
                before = len(out.delivers)
                at += session.incoming(
                    transport, view[at:], stride, remote, local, now, out
                )
                if ecn & 1:  # cold path: CE, and ECT(1), as routers could set it
                    _mark(out, before, ecn)
                self._plan(session, now)
            else:
                datagram = bytes(view[at : at + stride])
                self._control_untrusted(datagram, remote, local, now, out)
                at += stride

    def _control_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        if datagram[1] != VERSION:
            self.counters.drop(Drop.VERSION)
        elif datagram[0] == Kind.SYN:
            self._on_syn_untrusted(datagram, remote, local, now, out)
        elif datagram[0] in (Kind.ACK, Kind.ACKACK, Kind.COOKIE):
            self._on_answer_untrusted(datagram, remote, local, now, out)
        elif datagram[0] == Kind.REPORT:
            self._on_report_untrusted(datagram, now)
        elif datagram[0] in _SESSION_KINDS:
            self._on_lost_data(len(datagram), remote, now)
        else:
            self.counters.drop(Drop.MALFORMED)

    def _on_syn_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        try:
            syn = parse_syn_untrusted(datagram)
        except BadPacket:
            self.counters.drop(Drop.MALFORMED)
            return
        session = self._peer_of(syn, remote)
        if session is None:
            self._knock(remote, syn.identity, now, out)
            return
        guard = session.negotiation.guard_of(syn)
        if guard is None:
            session.counters.drop(Drop.BAD_MAC)
            if session.is_at(remote):
                session.negotiation.note_wrong_mac()
            return
        shown = session.shown(syn, remote, now)
        admitted: bool | None = True
        if shown is not Shown.SESSION:
            admitted = self._door.admit(
                remote,
                syn.cookie,
                now,
                wary=session.negotiation.answers.is_other(syn),
                secret=shown is Shown.SECRET,
                blind=session.negotiation.is_blind(guard),
            )
        cookie = self._door.cookie(remote, now) if admitted is None else None
        if cookie is not None:
            answer = sealed_cookie(syn, cookie, guard).pack()
            send_control(out, remote, local, session.counters, answer)
        elif not admitted or not self._may_answer(session, syn, shown, now):
            session.counters.drop(Drop.RATE)
        else:
            session.on_syn(syn, remote, local, now, out, shown)
            self._plan(session, now)

    def _may_answer(self, session: Session, syn: Syn, shown: Shown, now: float) -> bool:
        if shown >= Shown.SECRET or (shown is Shown.PLACE and any(syn.cookie)):
            return True
        again = session.negotiation.answers.to(syn) is not None
        return again or self._door.answers(now)

    def _peer_of(self, syn: Syn, remote: Remote) -> Session | None:
        """Who asks: by its key, wherever it is now, or by its address.

        The key first: at an address without a key nobody else's is to be pinned.
        """
        return self._by_key.get(syn.identity) or self._peer_at(remote)

    def _on_answer_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        session = self._by_id.get(int.from_bytes(datagram[4:8]))
        if session is None:
            self.counters.drop(Drop.UNKNOWN_ID)
        elif session.negotiation.key is None and self._peer_at(remote) is not session:
            # A key that is about to be pinned comes from where it was asked for.
            session.note_wrong_address(remote, now, out)
        else:
            known = session.negotiation.key
            try:
                if datagram[0] == Kind.ACK:
                    ack = parse_ack_untrusted(datagram)
                    session.on_ack_untrusted(ack, remote, local, now, out)
                elif datagram[0] == Kind.ACKACK:
                    ackack = parse_ackack_untrusted(datagram)
                    session.on_ackack_untrusted(ackack, remote, local, now, out)
                else:
                    cookie = parse_cookie_untrusted(datagram)
                    session.on_cookie_untrusted(cookie, remote, local, now, out)
            except BadPacket:
                session.counters.drop(Drop.BAD_PROOF)
            if session.negotiation.key != known:
                self._note_pinned(session)
            self._plan(session, now)

    def _note_pinned(self, session: Session) -> None:
        """Its key is known from now on.

        Nothing else is indexed anew: a thousand first contacts may come at once.
        """
        assert session.negotiation.key is not None
        self._by_key.setdefault(session.negotiation.key, session)
        self._let_in(session)

    def _on_report_untrusted(self, datagram: bytes, now: float) -> None:
        session = self._by_id.get(int.from_bytes(datagram[4:8]))
        if session is None:
            self.counters.drop(Drop.UNKNOWN_ID)
            return
        try:
            session.on_report_untrusted(datagram, now)
        except BadPacket:
            session.counters.drop(Drop.BAD_REPORT)
        self._plan(session, now)

    def _on_lost_data(self, size: int, remote: Remote, now: float) -> None:
        """Data of a session we do not have: after a restart we ask anew.

        Only if there is no live session, so that a forged datagram disturbs nothing;
        and however many there are, there is one handshake at a time, and not a long
        one.
        """
        self.counters.drop(Drop.UNKNOWN_ID)
        session = self._peer_at(remote) if size >= DATA_SIZE else None
        if session is not None:
            session.connect(now, hinted=True)
            self._plan(session, now)

    def _peer_at(self, remote: Remote) -> Session | None:
        """The peer configured for this address; behind NAT its port may differ."""
        host, port = _host_of(remote), remote[1]
        session = self._by_remote.get((host, port))
        if session is None:
            there = self._by_host.get(host, ())
            session = there[0] if len(there) == 1 else None
        return session

    def _knock(self, remote: Remote, key: bytes, now: float, out: Outbox) -> None:
        self.counters.drop(Drop.STRANGER)
        host = remote[0]
        seen = self.knocking.pop(host, None)
        if seen is None:
            if self._knocks.take(now):
                out.tell(EventKind.KNOCK, None, remote)
            if len(self.knocking) >= KNOCKING_HOSTS:
                self.knocking.popitem(last=False)
        self.knocking[host] = Knock(key, 1 if seen is None else seen.count + 1)

    # -- time ----------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When on_deadline should be called, in seconds; inf when nothing is due."""
        return self._heap[0][0] if self._heap else inf

    def _plan(self, session: Session, now: float = -inf) -> None:
        # hot path: one look-up and one comparison
        if session.wake < self._planned.get(session, inf):
            self._planned[session] = session.wake
            # Who wants its turn at once waits behind those that have been due before.
            due = max(session.wake, now)
            heappush(self._heap, (due, next(self._order), session.wake, session))
            if len(self._heap) > _STALE_PLANS + 2 * len(self._planned):
                self._forget_stale_plans()

    def _forget_stale_plans(self) -> None:
        """Each packet may move a deadline forward, and leaves the later one behind."""
        valid = {plan[-1]: plan for plan in self._heap if self._holds(plan)}
        self._heap = list(valid.values())
        heapify(self._heap)

    def _holds(self, plan: _Plan) -> bool:
        """Or else it was moved forward, or its peer removed."""
        *_, wake, session = plan
        return self._planned.get(session) == wake

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Let sessions whose time has come do what is due, once, the longest due first.

        Not all of a thousand in one go, and only one that works in slices: who is left
        is due at once, and packets come in between.
        """
        for _ in range(_DUE_AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                return
            plan = heappop(self._heap)
            if not self._holds(plan):
                continue
            *_, wake, session = plan
            del self._planned[session]
            session.on_deadline(now, out)
            self._plan(session, now)
            if wake == -inf:
                return


def _host_of(remote: Remote) -> str:
    """The host there; of a link-local address also on which link."""
    scope = remote[3] if len(remote) > 3 else 0
    return f"{remote[0]}%{scope}" if scope else str(remote[0])


def _packed(remote: Remote) -> bytes:
    host, port = remote[:2]
    return ip_address(host.partition("%")[0]).packed + int(port).to_bytes(2)


def _mark(out: Outbox, first: int, ecn: int) -> None:
    """Hand on what routers said of the datagrams from delivery ``first`` on."""
    kept = []
    for deliver in out.delivers[first:]:
        if frames.mark(deliver.parts, ecn):
            kept.append(deliver)
        else:
            deliver.counters.drop(Drop.CONGESTED, deliver.packets)
    out.delivers[first:] = kept
