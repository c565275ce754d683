"""One peer: its handshakes, its transport, the packets that wait, its timers.

Timers are timestamps, not alarms.  Events only write down when they happened;
``wake`` says when somebody should look again, and :meth:`Session.on_deadline`
then compares.  So a busy session costs no timer work per packet, and an idle one
wakes nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import inf

from attrs import define, field, frozen

from alpha_trio.proto import frames, icmp
from alpha_trio.proto.batch import (
    Buffer,
    Counters,
    Drop,
    EventKind,
    Outbox,
    Remote,
)
from alpha_trio.proto.handshake import (
    GIVE_UP_AFTER,
    HALF_OPEN_LIFETIME,
    HalfOpen,
    Initiation,
    RandomBytes,
)
from alpha_trio.proto.plain import Arrival, PlainTransport
from alpha_trio.proto.wire import Ack, AckAck, BadPacket, Syn

QUEUE_PACKETS = 128
"""Packets of one peer that wait for a handshake; the oldest is dropped first."""

# All in seconds.
KEEPALIVE_AFTER = 10.0  # data came and nothing went back: say that it arrived
SILENCE_AFTER = 15.0  # data went and nothing came back: the peer may have restarted
REFUSE_AFTER = 180.0  # nothing heard for so long: new traffic asks again first
WIPE_AFTER = 540.0  # nothing heard for so long: forget the session
OWN_SYN_AFTER = 1.0  # the peer's SYN was answered, its ACKACK is missing: ask ourselves
HINT_INTERVAL = 5.0  # between SYNs because of data for a session we do not have


class State(StrEnum):
    """How a peer stands, as ``status`` shows it."""

    IDLE = "idle"
    RESOLVING = "resolving"
    HANDSHAKING = "handshaking"
    ESTABLISHED = "established"
    UNREACHABLE = "unreachable"


@frozen
class Statistics:
    """A snapshot for the control plane.  Ages are in seconds."""

    state: State
    reason: str | None
    remote: Remote | None
    handshake_age: float | None
    receive_age: float | None
    rtt: float | None
    queued: int
    counters: Counters


@define(eq=False)
class WaitingFrames:
    """TUN frames that wait for a session, at most QUEUE_PACKETS packets of them.

    Packets, not frames: a super-packet is 64 KiB, and a thousand silent peers must
    not keep gigabytes.  Only a single larger frame may exceed the limit.
    """

    packets: int = 0
    frames: deque[tuple[bytes, int]] = field(factory=deque)

    def put(self, frame: memoryview) -> int:
        """Keep a copy of ``frame``; returns how many packets it pushed out."""
        packets, before = frames.packets(frame), self.packets
        self.frames.append((bytes(frame), packets))
        self.packets += packets
        while self.packets > QUEUE_PACKETS and len(self.frames) > 1:
            self.packets -= self.frames.popleft()[1]
        return before + packets - self.packets

    def take(self) -> list[bytes]:
        """All frames, oldest first; none wait afterwards."""
        taken = [frame for frame, _ in self.frames]
        self.clear()
        return taken

    def clear(self) -> int:
        """Forget all; returns how many packets that were."""
        packets, self.packets = self.packets, 0
        self.frames.clear()
        return packets


@define(eq=False)
class ConnectionIds:
    """Where a session gets the ids by which datagrams find it."""

    take: Callable[[Session], int]
    free: Callable[[int], None]
    bind: Callable[[Session, PlainTransport], None]
    """From now on DATA with the transport's local id goes to it."""


@define(eq=False)
class Session:
    """One configured peer.  All methods are synchronous; ``now`` is in seconds."""

    name: str
    ids: ConnectionIds
    random: RandomBytes
    owner: Callable[[bytes], Session | None]  # who owns an inner address
    remotes: Sequence[Remote] = ()  # where the peer may be, first choice first
    keepalive: float = 0.0  # seconds between keepalives; 0: none
    mtu: int = 1280  # largest inner packet, bytes
    counters: Counters = field(factory=Counters)
    wake: float = inf  # when on_deadline wants to be called

    initiation: Initiation | None = None
    half_open: tuple[HalfOpen, PlainTransport] | None = None
    current: PlainTransport | None = None
    previous: PlainTransport | None = None
    waiting: WaitingFrames = field(factory=WaitingFrames)

    unanswered_since: float = inf  # first data sent after the last was heard
    owed_since: float = inf  # first data heard after the last was sent
    last_sent: float = -inf
    last_hint: float = -inf
    gave_up: bool = False
    wrong_address: Remote | None = None
    rtt: float | None = None
    answered: tuple[bytes, bytes] | None = None  # last ACK and our ACKACK to it

    # -- the way out ---------------------------------------------------------

    def outgoing(self, frame: memoryview, now: float, out: Outbox) -> None:
        """Send the TUN frame, or let it wait for the handshake it starts."""
        transport = self.current
        if transport is None or now - transport.heard > REFUSE_AFTER:
            self._wait(frame)
            self._want_session(now)
            return
        cut = frames.cut(frame, self.mtu)
        if cut is None:
            self._refuse_too_big(frame, out)
            return
        transport.outgoing(cut, out, self.counters)
        self._sent(now)
        if self.unanswered_since == inf and self.initiation is None:
            self.unanswered_since = now
            self._wake_by(now + SILENCE_AFTER)

    def _refuse_too_big(self, frame: memoryview, out: Outbox) -> None:
        self.counters.drop(Drop.TOO_BIG, frames.packets(frame))
        packet = frame[frames.VIRTIO_SIZE :]
        answer = icmp.error(packet, icmp.Problem.TOO_BIG, self.mtu)
        if answer is not None:
            out.deliver([bytes(frames.VIRTIO_SIZE), answer], Counters(), 1, len(answer))

    def _sent(self, now: float) -> None:
        self.last_sent = now
        self.owed_since = inf

    def _wait(self, frame: memoryview) -> None:
        if pushed_out := self.waiting.put(frame):
            self.counters.drop(Drop.QUEUE_FULL, pushed_out)

    def _want_session(self, now: float) -> None:
        if self.initiation is None:
            self.initiation = Initiation.begin(self.ids.take(self), self.random, now)
            if self.half_open is not None:
                # The peer was faster; its ACKACK should be on its way.
                self.initiation.resend_at = now + OWN_SYN_AFTER
            self._wake_by(self.initiation.resend_at)

    def hint(self, now: float) -> None:
        """Data came for a session we do not have: after a restart we ask anew.

        Only if we have no live session, so that a forged datagram disturbs
        nothing, and seldom, so that it triggers next to nothing.
        """
        if self._usable(now) is None and now - self.last_hint >= HINT_INTERVAL:
            self.last_hint = now
            self._want_session(now)

    # -- handshake -----------------------------------------------------------

    def on_syn(
        self, syn: Syn, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """Answer the peer's SYN, unless ours goes on."""
        if self.half_open is not None and self.half_open[0].syn == syn:
            half_open = self.half_open[0]  # its ACK was lost
        elif self.initiation is not None and self.initiation.wins_against(syn):
            self.initiation.hurry(now)
            self._wake_by(self.initiation.resend_at)
            return
        else:
            half_open = self._answer(syn, remote, local, now, out)
        _send_control(out, remote, local, self.counters, half_open.ack.pack())

    def _answer(
        self, syn: Syn, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> HalfOpen:
        first = self.half_open is None
        self._forget_half_open()
        local_id = self.ids.take(self)
        half_open = HalfOpen.answer(syn, local_id, self.random, remote, local, now)
        transport = PlainTransport(local_id, syn.sender_id, remote, local, now, now)
        self.half_open = half_open, transport
        self.ids.bind(self, transport)
        if self.initiation is not None and first:
            # Ours lost the tie.  It stays valid, should the peer's break off.  Only
            # the first SYN puts it off, lest a stream of forged ones does for ever.
            self.initiation.resend_at = now + OWN_SYN_AFTER
            self._wake_by(self.initiation.resend_at)
        self._wake_by(now + HALF_OPEN_LIFETIME)
        out.tell(EventKind.SYN_RECEIVED, self.name, remote)
        return half_open

    def on_ack_untrusted(
        self, ack: Ack, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """Finish our handshake.  Raises BadPacket if ``ack`` does not belong to it."""
        packed = ack.pack()
        if self.answered is not None and self.answered[0] == packed:
            _send_control(out, remote, local, self.counters, self.answered[1])
            return
        if self.initiation is None:
            raise BadPacket
        ackack = self.initiation.finish_untrusted(ack).pack()
        self.answered = packed, ackack
        if self.initiation.attempts == 1:
            self.rtt = now - self.initiation.started
        out.tell(EventKind.ACK_RECEIVED, self.name, remote)
        _send_control(out, remote, local, self.counters, ackack)
        transport = PlainTransport(
            ack.receiver_id, ack.sender_id, remote, local, now, now
        )
        self.initiation = None
        self.ids.bind(self, transport)
        if not self.waiting.packets:
            # Nothing follows that would prove the same, should the ACKACK be lost.
            transport.keepalive(out, self.counters)
            self.last_sent = now
        # A half-open answer stays: the peer may hold it for the session.
        self._establish(transport, now, out)

    def on_ackack_untrusted(self, ackack: AckAck, now: float, out: Outbox) -> None:
        """The peer holds our ACK.  Raises BadPacket if that is not what it says."""
        if self.half_open is None:
            raise BadPacket
        half_open, transport = self.half_open
        half_open.verify_untrusted(ackack)
        out.tell(EventKind.ESTABLISHED, self.name, half_open.remote)
        self._confirm(transport, now, out)

    def _confirm(self, transport: PlainTransport, now: float, out: Outbox) -> None:
        self.half_open = None
        self._forget_initiation()
        transport.heard = now
        self._establish(transport, now, out)

    def _establish(self, transport: PlainTransport, now: float, out: Outbox) -> None:
        if self.previous is not None:
            self.ids.free(self.previous.local_id)
        # The peer may still be sending on the old one: it is kept for receiving.
        self.previous, self.current = self.current, transport
        self.gave_up = False
        self.wrong_address = None
        self.unanswered_since = self.owed_since = inf
        self._wake_by(now + WIPE_AFTER)
        if self.keepalive:
            self._wake_by(now + self.keepalive)
        self._send_waiting(now, out)

    def _send_waiting(self, now: float, out: Outbox) -> None:
        for frame in self.waiting.take():
            self.outgoing(memoryview(frame), now, out)

    def _forget_initiation(self) -> None:
        if self.initiation is not None:
            self.ids.free(self.initiation.syn.sender_id)
            self.initiation = None

    def _forget_half_open(self) -> None:
        if self.half_open is not None:
            self.ids.free(self.half_open[1].local_id)
            self.half_open = None

    # -- the way in ----------------------------------------------------------

    def incoming(
        self,
        transport: PlainTransport,
        view: memoryview,
        stride: int,
        remote: Remote,
        now: float,
        out: Outbox,
    ) -> int:
        """Take DATA for ``transport``; returns the bytes consumed from ``view``."""
        if remote != transport.remote:
            # Nothing is authenticated yet, so an endpoint must not follow.
            self.note_wrong_address(remote, out)
            return min(stride, len(view))
        consumed, arrival = transport.incoming(
            view, stride, self.owns_source, out, self.counters
        )
        if arrival:
            if self.half_open is not None and transport is self.half_open[1]:
                # The ACKACK was lost, but only who has our ACK can send this.
                out.tell(EventKind.CONFIRMED, self.name, remote)
                self._confirm(transport, now, out)
            transport.heard = now
            self.unanswered_since = inf
        if arrival is Arrival.DATA and self.owed_since == inf:
            self.owed_since = now
            self._wake_by(now + KEEPALIVE_AFTER)
        return consumed

    def note_wrong_address(self, remote: Remote, out: Outbox) -> None:
        """A message of ours, but not from where the peer is: dropped, told once."""
        self.counters.drop(Drop.WRONG_ADDRESS)
        if self.wrong_address != remote:
            self.wrong_address = remote
            out.tell(EventKind.WRONG_ADDRESS, self.name, remote)

    def owns_source(self, packet: Buffer) -> bool:
        """Whether the inner packet that begins so may come from this peer.

        Its source must lie in the peer's own prefixes, as its destination must on
        the way out.
        """
        size = len(packet)
        version = packet[0] >> 4 if size else 0
        if version == 4 and size >= 20:
            return self.owner(bytes(packet[12:16])) is self
        if version == 6 and size >= 40:
            return self.owner(bytes(packet[8:24])) is self
        return False

    # -- time ----------------------------------------------------------------

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Do what is due, and set ``wake`` to when the next thing is.

        What is due is found by the very sums that ``next_wake`` makes.  Differences
        are rounded otherwise: a deadline could have come and nothing yet be due.
        """
        self._retry(now, out)
        if self.half_open and now >= self.half_open[0].created + HALF_OPEN_LIFETIME:
            self._forget_half_open()
        if now >= self.unanswered_since + SILENCE_AFTER:
            out.tell(EventKind.SILENT, self.name, self.remote)
            self.unanswered_since = inf
            self._want_session(now)
            self._retry(now, out)
        self._keep_alive(now, out)
        self._wipe(now, out)
        self.wake = self.next_wake()

    def _retry(self, now: float, out: Outbox) -> None:
        initiation = self.initiation
        if initiation is None or now < initiation.resend_at:
            return
        if initiation.expired(now):
            self._give_up(initiation, now, out)
            return
        if not self.remotes:  # its name is still being resolved
            initiation.sent(now, self.random)
            return
        remote = self.remotes[initiation.attempts % len(self.remotes)]
        initiation.sent(now, self.random)
        _send_control(out, remote, b"", self.counters, initiation.syn.pack())
        out.tell(EventKind.SYN_SENT, self.name, remote, initiation.attempts)

    def _give_up(self, initiation: Initiation, now: float, out: Outbox) -> None:
        if self.current is not None and self.current.heard > initiation.started:
            self._forget_initiation()  # the session came back to life meanwhile
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
        elif owed or due:
            transport.keepalive(out, self.counters)
            self._sent(now)

    def _wipe(self, now: float, out: Outbox) -> None:
        if self.current is not None and now >= self.current.heard + WIPE_AFTER:
            remote = self.remote
            self._forget_transports()
            out.tell(EventKind.EXPIRED, self.name, remote)

    def next_wake(self) -> float:
        """When the next thing will be due, if nothing happens until then."""
        times = [
            self.unanswered_since + SILENCE_AFTER,
            self.owed_since + KEEPALIVE_AFTER,
        ]
        if self.initiation is not None:
            times.append(self.initiation.resend_at)
        elif self.keepalive:
            times.append(self.last_sent + self.keepalive)
        if self.half_open is not None:
            times.append(self.half_open[0].created + HALF_OPEN_LIFETIME)
        if self.current is not None:
            times.append(self.current.heard + WIPE_AFTER)
        return min(times)

    def _wake_by(self, when: float) -> None:
        self.wake = min(self.wake, when)

    # -- the rest ------------------------------------------------------------

    @property
    def remote(self) -> Remote | None:
        """Where the peer is: where it was last heard from, else where to ask."""
        if self.current is not None:
            return self.current.remote
        return self.remotes[0] if self.remotes else None

    def reset(self) -> None:
        """Forget every session and handshake; what waits is dropped and counted."""
        self._forget_half_open()
        self._abandon()

    def move(self, remotes: Sequence[Remote]) -> None:
        """From now on the peer is to be asked at ``remotes``; its session lives on."""
        if remotes != self.remotes and self.initiation is not None:
            self.initiation.restart()
        self.remotes = remotes

    def _abandon(self) -> None:
        self._forget_initiation()
        self._forget_transports()
        if packets := self.waiting.clear():
            self.counters.drop(Drop.NO_SESSION, packets)

    def _forget_transports(self) -> None:
        for transport in (self.current, self.previous):
            if transport is not None:
                self.ids.free(transport.local_id)
        self.current = self.previous = None
        self.unanswered_since = self.owed_since = inf

    def _usable(self, now: float) -> PlainTransport | None:
        if self.current is None or now - self.current.heard > REFUSE_AFTER:
            return None
        return self.current

    def state(self, now: float) -> State:
        """How the peer stands."""
        if self._usable(now) is not None:
            return State.ESTABLISHED
        if not self.remotes:
            return State.RESOLVING
        if self.initiation is not None or self.half_open is not None:
            return State.HANDSHAKING
        return State.UNREACHABLE if self.gave_up else State.IDLE

    def _reason(self, now: float) -> str | None:
        if self.wrong_address is not None:
            return f"answers come from {self.wrong_address[0]}, not from its endpoint"
        if self.state(now) is State.UNREACHABLE:
            return f"no answer to handshakes for {GIVE_UP_AFTER:.0f} s"
        return None

    def statistics(self, now: float) -> Statistics:
        """A snapshot for the control plane."""
        current = self.current
        return Statistics(
            state=self.state(now),
            reason=self._reason(now),
            remote=self.remote,
            handshake_age=None if current is None else now - current.established,
            receive_age=None if current is None else now - current.heard,
            rtt=self.rtt,
            queued=self.waiting.packets,
            counters=self.counters,
        )


def _send_control(
    out: Outbox, remote: Remote, local: bytes, counters: Counters, message: bytes
) -> None:
    size = len(message)
    out.send(remote, local, counters, [message], width=1, stride=size, last=size)
