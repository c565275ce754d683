"""What runs in a lane: a peer table, the packets' way through it, and word of both.

The front calls what ``Lane.calls`` has, and hears of what happens, and, as long as
packets move, how the sessions stand.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import trio
from attrs import define, field

from alpha_trio.datapath import DataPath
from alpha_trio.errors import AlphaTrioError
from alpha_trio.journal import Journal
from alpha_trio.lanes.channel import Channel
from alpha_trio.lanes.inbox import Handed, Inbox, What
from alpha_trio.lanes.seen import Told
from alpha_trio.lanes.table import LaneTable
from alpha_trio.net.host import boottime
from alpha_trio.net.tun import Tun, TunTraits
from alpha_trio.net.udp import Udp, UdpSocket, UdpTraits
from alpha_trio.proto.batch import Event, EventKind, Outbox
from alpha_trio.proto.peers import Session
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.traces import Trace
from alpha_trio.settings import Settings
from alpha_trio.slices import in_slices

REPORT_EVERY = 1.0  # s from one word of how the sessions stand to the next
_HANDED_AT_ONCE = 32
_MOST_DESCRIPTORS = 8

_OF_TABLE = ("connect", "ask", "readdress", "route_changed", "allow")
_OF_SESSION = ("stop_asking", "end_trace")


@define(frozen=True)
class Equipment:
    """What the front has opened for a lane; the descriptors come in this order."""

    port: int  # our own UDP port
    seed: bytes = field(repr=False)  # of the host's key
    visible: int  # see PeerTable
    tun: TunTraits
    udp: dict[int, UdpTraits]  # by length of an address tuple
    handshakes: tuple[UdpTraits, ...]  # the first lane's

    def send(self, sock: socket.socket, descriptors: list[int]) -> None:
        """The first message of a channel, to the lane."""
        socket.send_fds(sock, [pickle.dumps(self)], descriptors)


async def run(
    number: int, settings: Settings, sock: socket.socket, inbox: Inbox
) -> None:
    """Carry packets until the front is gone; tell it if that goes no longer."""
    channel = Channel(sock)
    await trio.lowlevel.wait_readable(sock)
    data, descriptors, *_ = socket.recv_fds(sock, 1 << 16, _MOST_DESCRIPTORS)
    if not data:
        return  # the front could not start
    equipment = pickle.loads(data)
    lane = Lane(number, settings.cores, channel, inbox, equipment, descriptors)
    try:
        await lane.run()
    except* AlphaTrioError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        channel.call_last("failed", error)


class Lane:
    """One lane's tasks, and what the front may call."""

    def __init__(
        self,
        number: int,
        lanes: int,
        channel: Channel,
        inbox: Inbox,
        equipment: Equipment,
        descriptors: list[int],
    ) -> None:
        left = iter(descriptors)
        tun = Tun.adopt(next(left), equipment.tun)
        self._udp = _LaneUdp(
            {n: UdpSocket.adopt(next(left), t) for n, t in equipment.udp.items()},
            tuple(UdpSocket.adopt(next(left), t) for t in equipment.handshakes),
            tell=channel.call,
        )
        self._number = number
        self._channel = channel
        self._table = LaneTable(
            equipment.port,
            Identity(equipment.seed),
            os.urandom,
            equipment.visible,
            lane=number,
            lanes=lanes,
            inbox=inbox,
        )
        self._journal = _FarJournal(number, channel.call, self._tell_of)
        self._path = _LanePath(tun, self._udp, self._table, self._journal, inbox)
        self._nursery: trio.Nursery
        self._held: dict[int, _Held] = {}  # by the front's numbers
        self._numbers: dict[str, int] = {}  # by name

    async def run(self) -> None:
        """Do everything until the front is gone.  Raises DeviceLost."""
        calls = self._calls()
        async with trio.open_nursery() as self._nursery:
            nursery = self._nursery
            nursery.start_soon(self._path.run)
            nursery.start_soon(self._path.read_inbox)
            nursery.start_soon(self._report)
            nursery.start_soon(self._watch_paths)
            await self._channel.run(calls)
            nursery.cancel_scope.cancel()

    def _calls(self) -> dict[str, Callable[..., None]]:
        of_table = {name: partial(self._do, name) for name in _OF_TABLE}
        of_session = {name: partial(self._have, name) for name in _OF_SESSION}
        others = (self.add, self.configure, self.reset, self.remove, self.trace)
        by_name = {each.__name__: each for each in others}
        return {**of_table, **of_session, **by_name, "refresh": self.refresh}

    # -- what the front calls --------------------------------------------------

    def add(self, number: int, lane: int, name: str, *how: Any) -> None:
        """See PeerTable.add; the peer is that lane's, and called by this number."""
        session = self._table.add(name, *how)
        if lane != self._number:
            self._table.elsewhere[session] = lane
        self._held[number], self._numbers[name] = _Held(session), number

    def configure(self, number: int, *how: Any) -> None:
        """See PeerTable.configure."""
        self._held[number].configured += 1
        self._do("configure", number, *how)

    def reset(self, number: int) -> None:
        """See Session.reset."""
        self._held[number].resets += 1
        self._have("reset", number)

    def remove(self, number: int) -> None:
        """See PeerTable.remove."""
        session = self._held.pop(number).session
        del self._numbers[session.name]
        self._table.elsewhere.pop(session, None)
        self._table.remove(session.name)

    def trace(self, number: int, seconds: float, now: float) -> None:
        """See PeerTable.trace."""
        held = self._held[number]
        held.traces += 1
        held.trace = self._table.trace(held.session, seconds, now)
        self._path.rearm()
        if held.trace is None:  # the session has ended meanwhile, and so this has
            self._journal.record(Event(EventKind.TRACED, held.session.name))

    def refresh(self, token: int, numbers: Collection[int]) -> None:
        """Tell how these sessions stand, and then that this was all."""
        self._nursery.start_soon(self._refresh, token, numbers)

    async def _refresh(self, token: int, numbers: Collection[int]) -> None:
        await in_slices(map(self._tell, numbers))
        self._tell_figures()
        self._channel.call("refreshed", token)

    def _do(self, method: str, number: int, *args: Any, **more: Any) -> None:
        getattr(self._table, method)(self._held[number].session, *args, **more)
        self._path.rearm()
        self._tell(number)

    def _have(self, method: str, number: int) -> None:
        getattr(self._held[number].session, method)()
        self._tell(number)

    # -- what the front hears ----------------------------------------------------

    def _tell_of(self, name: str) -> None:
        if name in self._numbers:
            self._tell(self._numbers[name])

    def _tell(self, number: int) -> None:
        held = self._held.get(number)
        if held is None or held.session in self._table.elsewhere:
            return
        session, trace = held.session, held.trace
        told = Told.of(session, boottime(), held.done)
        self._channel.call("seen", number, told, trace)
        if trace is not None and trace.done:
            held.trace = None

    def _tell_figures(self) -> None:
        table = self._table
        alone = {length: sock.unsegmented for length, sock in self._udp.sockets.items()}
        figures = table.counters, list(table.knocking.items()), alone
        self._channel.call("figures", self._number, *figures)

    async def _report(self) -> None:
        """Tell how sessions stand in which something moves."""
        while True:
            await self._path.wait_active()
            await trio.sleep(REPORT_EVERY)
            moved = [n for n, held in self._held.items() if held.has_moved()]
            await in_slices(map(self._tell, moved))
            self._tell_figures()

    async def _watch_paths(self) -> None:
        while True:
            await self._path.wait_path_changed()
            self._channel.call("path_changed")


@define(eq=False)
class _Held:
    """A session, and what of it the front knows."""

    session: Session
    configured: int = 0  # how often it was
    resets: int = 0
    traces: int = 0
    trace: Trace | None = None  # under way, or not told of to its end
    _mark: tuple[float, ...] = ()

    @property
    def done(self) -> tuple[int, int, int]:
        """What was done to it, as ``Told`` has it."""
        return self.configured, self.resets, self.traces

    def has_moved(self) -> bool:
        """Whether anything was sent, received or dropped since the last call."""
        counters, before = self.session.counters, self._mark
        self._mark = (
            counters.tx_packets,
            counters.rx_packets,
            sum(counters.drops.values()),
            self.session.heard,
        )
        return self._mark != before or self.trace is not None


class _LanePath(DataPath):
    """The packets' way through a lane, with what other lanes hand over."""

    def __init__(
        self,
        tun: Tun,
        udp: Udp,
        table: LaneTable,
        journal: Journal,
        inbox: Inbox,
    ) -> None:
        super().__init__(tun, udp, table, journal)
        self._lane_table = table
        self._inbox = inbox

    async def read_inbox(self) -> None:
        """Carry what other lanes hand over, until cancelled."""
        some = partial(self._take_some, Outbox())
        await self._keep_on(some, "what other processes hand over", "it waits")

    async def _take_some(self, out: Outbox) -> None:
        await trio.lowlevel.wait_readable(self._inbox.own)
        now = boottime()
        for handed in self._inbox.take(_HANDED_AT_ONCE):
            self._take(handed, now, out)
        self._table.push(now, out)
        self._flush(out, now)
        while out.sends:
            await self._send_waiting(out)

    def _take(self, handed: Handed, now: float, out: Outbox) -> None:
        if handed.what is What.FRAME:
            # Until it is pushed there must be no other in its place.
            self._lane_table.take_frame(memoryview(bytearray(handed.data)), now, out)
        else:
            self._lane_table.take_datagram(handed, now, out)


@define(eq=False)
class _LaneUdp(Udp):
    """A lane's sockets; what comes to which of them the front says."""

    tell: Callable[..., None] = field(kw_only=True)

    def steer(self, numbers: Collection[int]) -> None:
        """Have the front say that these are ours."""
        self.tell("bound", list(numbers))


class _FarJournal(Journal):
    """What happens in a lane is told by the front; here is only what is going on."""

    def __init__(
        self,
        lane: int,
        call: Callable[..., None],
        tell_session: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._lane = lane
        self._call = call
        self._tell_session = tell_session

    def record(self, event: Event) -> None:
        """Tell of an event, and first how the session stands after it."""
        if event.peer is not None:
            self._tell_session(event.peer)
        self._call("event", event)

    def failure(
        self, subject: str, what: str, line: str, event: str | None = None
    ) -> None:
        """See Journal."""
        self._call("journal", "failure", subject, what, line, event)

    def trouble(self, subject: str, sentence: str) -> None:
        """See Journal."""
        self.troubles[subject] = sentence
        self._call("journal", "trouble", subject, sentence)

    def recovered(self, subject: str) -> None:
        """See Journal."""
        self.troubles.pop(subject, None)
        self._call("journal", "recovered", subject)

    def woke(self, seconds: float) -> None:
        """See Journal; all lanes hear of it, and one tells."""
        if self._lane == 0:
            self._call("journal", "woke", seconds)
