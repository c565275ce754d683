"""The packets' way through the daemon: the TUN reader, the UDP receiver, the timer.

Out:  TUN --read_tun--> table.outgoing, push --> Outbox --flush--> UDP
In:   UDP --receive---> table.incoming --> Outbox --flush--> TUN
Time: run_timer ------> table.on_deadline -> Outbox --flush--> UDP

Each task waits until its file is readable, takes what is there up to a cap with
non-blocking calls, and goes back to waiting, which is its checkpoint: one wake-up
costs as much as dozens of datagrams.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import NoReturn

import trio

from alpha_trio.journal import Journal, packetlog
from alpha_trio.net.host import boottime
from alpha_trio.net.suspend import ClockWatch, suspended
from alpha_trio.net.tun import Tun
from alpha_trio.net.udp import Udp, UdpSocket
from alpha_trio.proto.batch import Drop, Outbox, Send
from alpha_trio.proto.peers import PeerTable
from alpha_trio.supervision import insist

_PACKETS_PER_BATCH = 64
_BATCHES_PER_WAKE = 8
_RECEIVES_PER_WAKE = 32
SYNS_PER_WAKE = 8
"""While packets wait; each costs as much as a dozen of them."""

_SUSPENDED = 1.0
"""Seconds in suspend of which a session need not know."""

_ENOUGH = 220_000
"""Frames of so many bytes fill a round, and should go while they are in the cache."""


class DataPath:
    """Moves packets between TUN and UDP as the peer table says."""

    def __init__(
        self,
        tun: Tun,
        udp: Udp,
        table: PeerTable,
        journal: Journal,
    ) -> None:
        self._tun = tun
        self._udp = udp
        self._table = table
        self._journal = journal
        self._path_changed = trio.Event()
        self._activity: trio.Event | None = None  # of who waits for it
        self._alarm = trio.CancelScope()
        self._armed = inf  # the deadline the alarm is set to, boot time
        self._suspended = suspended()  # s, as far as the table knows
        self._steered = 0  # the bindings of the table that the sockets know
        self._failing: set[str] = set()  # hosts to which sending fails just now

    async def run(self) -> None:
        """Carry packets until cancelled.  Raises DeviceLost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.read_tun)
            for sock in self._udp:
                nursery.start_soon(self.receive, sock)
            for sock in self._udp.handshakes:
                nursery.start_soon(self.receive, sock, SYNS_PER_WAKE)
            nursery.start_soon(self.run_timer)
            nursery.start_soon(self.watch_suspend)

    # -- out -----------------------------------------------------------------

    async def read_tun(self) -> None:
        """Carry packets from the TUN to the peers, until cancelled.

        When the kernel's send buffer is full this waits, and the TUN's own queue
        pushes back on the senders.  Raises DeviceLost; what else the host refuses is
        told, and tried again.
        """
        some = partial(self._read_some, Outbox())
        await self._keep_on(some, "reading packets", "packets from here wait")

    async def _keep_on(
        self, some: Callable[[], Awaitable[None]], subject: str, meanwhile: str
    ) -> NoReturn:
        """Do it for ever; what the host refuses is told if it refuses it again."""
        while True:
            try:
                while True:
                    await some()
            except OSError:
                await insist(some, self._journal, subject, meanwhile)

    async def _read_some(self, out: Outbox) -> None:
        while out.sends:  # what was left when the host refused to let us wait
            await self._send_waiting(out)
        await self._tun.wait_readable()
        for _ in range(_BATCHES_PER_WAKE):
            drained = self._read_batch(out)
            while out.sends:
                await self._send_waiting(out)
            if drained:
                break

    def _read_batch(self, out: Outbox) -> bool:
        """Read what is there; True if that was all.  Stops early when sends block."""
        now = boottime()
        self._tun.start_batch(_PACKETS_PER_BATCH)
        in_hand = 0  # bytes
        tracing = packetlog.enabled()
        while (frame := self._tun.read_nowait()) is not None:
            if tracing:
                packetlog.from_tun(frame)
            self._table.outgoing(frame, now, out)
            in_hand += len(frame)
            if in_hand >= _ENOUGH:
                in_hand = 0
                self._table.push(now, out)
                if not self._flush(out, now):
                    return False
        self._table.push(now, out)
        self._flush(out, now)
        return self._tun.drained

    async def _send_waiting(self, out: Outbox) -> None:
        sock = self._udp.socket_for(out.sends[0].remote)
        if sock is not None:
            await sock.wait_writable()
        self._flush(out, boottime())

    # -- in ------------------------------------------------------------------

    async def receive(self, sock: UdpSocket, most: int = _RECEIVES_PER_WAKE) -> None:
        """Carry datagrams from one socket to the TUN, until cancelled.

        After ``most`` receives others have their turn.
        """
        some = partial(self._receive_some, sock, most, Outbox())
        await self._keep_on(some, "receiving datagrams", "packets of peers wait")

    async def _receive_some(self, sock: UdpSocket, most: int, out: Outbox) -> None:
        await sock.wait_readable()
        now, tracing = boottime(), packetlog.enabled()
        for _ in range(most):
            received = sock.receive_nowait()
            if received is None:
                break
            view, stride, remote, local, ecn = received
            if tracing:
                packetlog.received(view, stride, remote)
            self._table.incoming(view, stride, remote, local, now, out, ecn)
            self._flush(out, now)
            if out.sends:  # cold path
                self._drop_waiting(out)
        self._steer()

    def _steer(self) -> None:
        """Have the kernel part what belongs to sessions from everything else.

        What strangers send then takes neither room nor turns from sessions' packets.
        """
        if self._table.bindings != self._steered:
            self._steered = self._table.bindings
            self._udp.steer(self._table.bound)

    def _drop_waiting(self, out: Outbox) -> None:
        # Receiving never waits for sending: an answer that does not fit is lost,
        # and whoever asked will ask again.
        for send in out.sends:
            send.counters.drop(Drop.SEND_FAILED, send.packets)
        out.sends.clear()

    # -- time ----------------------------------------------------------------

    async def run_timer(self) -> None:
        """Do what is due when it is due, until cancelled.  One alarm for all peers."""
        out = Outbox()
        while True:
            with trio.CancelScope() as self._alarm:
                self._armed = inf
                self.rearm()
                await trio.sleep_forever()
            self._fire(boottime(), out)

    async def refresh(self, name: str | None = None) -> None:
        """Nothing to do: what is asked for is here.  No checkpoint."""

    def rearm(self) -> None:
        """Call after anything that may have brought the next deadline forward."""
        deadline = self._table.deadline
        if deadline < self._armed:
            self._armed = deadline
            self._alarm.deadline = trio.current_time() + deadline - boottime()

    async def watch_suspend(self) -> None:
        """Go on at once when the machine was suspended, until cancelled.

        The alarm would not: its clock stood still.
        """
        out, subject = Outbox(), "watching for suspend"
        meanwhile = "after suspend peers are not asked anew before packets come"
        with await insist(ClockWatch.open, self._journal, subject, meanwhile) as watch:
            while True:
                await insist(watch.wait_moved, self._journal, subject, meanwhile)
                self._fire(boottime(), out)
                self.rearm()

    def _notice_suspend(self, now: float) -> None:
        seconds = suspended() - self._suspended
        if seconds > _SUSPENDED:
            self._suspended += seconds
            self._armed = inf  # the alarm is late by as much
            self._table.woke(now)
            self._journal.woke(seconds)

    def _fire(self, now: float, out: Outbox) -> None:
        self._notice_suspend(now)
        self._table.on_deadline(now, out)
        self._steer()
        self._record_events(out)
        self._flush_sends(out)
        self._drop_waiting(out)

    # -- doing what the core said ----------------------------------------------

    def _flush(self, out: Outbox, now: float) -> bool:
        """Tell, deliver, send.  False if a send has to wait; it stays in ``out``."""
        if self._activity is not None:
            self._activity.set()
            self._activity = None
        if out.events:
            self._record_events(out)
        if out.delivers:
            self._flush_delivers(out)
        done = not out.sends or self._flush_sends(out)
        if self._table.deadline < self._armed:
            if self._table.deadline <= now and done:
                # Due at once, like a first SYN, or overdue since a suspend during
                # which the alarm's clock stood still.
                self._fire(now, out)
            self.rearm()
        return done

    def _flush_sends(self, out: Outbox) -> bool:
        tracing = packetlog.enabled()
        for done, send in enumerate(out.sends):
            sock = self._udp.socket_for(send.remote)
            try:
                if sock is None:
                    raise OSError(errno.EAFNOSUPPORT, "no socket of this family")
                if not sock.send_nowait(send):
                    del out.sends[:done]
                    return False
            except OSError as error:
                self._send_failed(send, error)
                continue
            counters = send.counters
            counters.tx_packets += send.packets
            counters.tx_bytes += send.packet_bytes
            if self._failing:
                self._send_recovered(send)
            if tracing:
                packetlog.sent(send)
        out.sends.clear()
        return True

    def _send_failed(self, send: Send, error: OSError) -> None:
        if error.errno == errno.EMSGSIZE:
            send.counters.drop(Drop.TOO_BIG, send.packets)
            self._path_changed.set()
            return
        send.counters.drop(Drop.SEND_FAILED, send.packets)
        host = send.remote[0]
        self._failing.add(host)
        line = f"Cannot send to {host} ({error.strerror}). Trying on."
        self._journal.failure(host, f"sending failed ({error.strerror})", line)

    async def wait_active(self) -> None:
        """Return when packets or timers have come after this call; for one caller."""
        self._activity = activity = trio.Event()
        await activity.wait()

    async def wait_path_changed(self) -> None:
        """Return when some path turned out to take less than was thought."""
        await self._path_changed.wait()
        self._path_changed = trio.Event()

    def _send_recovered(self, send: Send) -> None:
        host = send.remote[0]
        if host in self._failing:
            self._failing.discard(host)
            self._journal.recovered(host)

    def _flush_delivers(self, out: Outbox) -> None:
        tracing = packetlog.enabled()
        for deliver in out.delivers:
            if tracing:
                packetlog.to_tun(deliver)
            if self._tun.write_nowait(deliver.parts):
                counters = deliver.counters
                counters.rx_packets += deliver.packets
                counters.rx_bytes += deliver.packet_bytes
            else:
                deliver.counters.drop(Drop.TUN_REFUSED, deliver.packets)
        out.delivers.clear()

    def _record_events(self, out: Outbox) -> None:
        events, out.events = out.events, []
        for event in events:
            self._journal.record(event)
