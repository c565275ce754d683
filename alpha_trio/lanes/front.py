"""What the front has in the place of a peer table and a data path: the lanes.

The registry does here what it does to a PeerTable; it is done to that of the peer's
lane.  What comes of it is known a moment later, when the lane has told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import trio

from alpha_trio.errors import AlphaTrioError, DeviceLost
from alpha_trio.journal import Journal
from alpha_trio.lanes.channel import Channel
from alpha_trio.lanes.crew import Crew
from alpha_trio.lanes.lane import Equipment
from alpha_trio.lanes.seen import FarSession, Told
from alpha_trio.net.tun import Tun
from alpha_trio.net.udp_lanes import UdpLanes
from alpha_trio.proto.batch import Counters, Event, EventKind, Remote
from alpha_trio.proto.peers import IPNetwork, Knock
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.traces import Trace
from alpha_trio.proto.transport import ECN

_ANSWER = 2.0  # s in which a lane tells how its sessions stand
_LOOK_EVERY, _SILENT_AFTER = 10.0, 30.0  # s


class Lanes:
    """All lanes: a peer table and a data path, as the rest of the front sees them."""

    def __init__(
        self,
        crew: Crew,
        tuns: Sequence[Tun],
        udp: UdpLanes,
        port: int,
        identity: Identity,
        journal: Journal,
        visible: int = ECN,
    ) -> None:
        """``tuns``: the queues of the device, one for each lane."""
        self.identity = identity
        self.moved: Callable[[], object] = bool  # called when routes have to follow
        self._tuns = tuns
        self._udp = udp
        self._port = port
        self._visible = visible
        self._journal = journal
        self._sockets = crew.channels
        self._channels = [Channel(sock) for sock in crew.channels]
        self._sessions: dict[str, FarSession] = {}
        self._numbered: dict[int, FarSession] = {}
        self._numbers = count()
        self._how: dict[str, list[Any]] = {}  # how each is configured
        self._bound: dict[int, list[int]] = {}  # connection ids, by lane
        self._figures: dict[int, tuple[Counters, list[tuple[str, Knock]]]] = {}
        self._tokens = count()
        self._awaited: dict[int, tuple[set[int], trio.Event]] = {}
        self._active = trio.Event()
        self._path_changed = trio.Event()

    # -- running -----------------------------------------------------------------

    async def run(self) -> None:
        """Have the lanes carry packets, until cancelled.

        Raises DeviceLost if a lane says so, or is gone.
        """
        async with trio.open_nursery() as nursery:
            for lane in range(len(self._channels)):
                nursery.start_soon(self._attend, lane)
            nursery.start_soon(self._watch)

    async def _attend(self, lane: int) -> None:
        with suppress(ConnectionError):  # it is gone already
            self._equip(lane)
        await self._channels[lane].run(
            {
                "seen": self._on_seen,
                "event": self._on_event,
                "figures": self._on_figures,
                "refreshed": partial(self._on_refreshed, lane),
                "bound": partial(self._on_bound, lane),
                "journal": self._on_journal,
                "path_changed": self._on_path_changed,
                "failed": _fail,
            }
        )
        raise DeviceLost(
            f"process {lane} of those that carry packets has ended unexpectedly: its "
            "last words are in the log; start alpha-trio again"
        )

    async def _watch(self) -> None:
        """See that every lane does its work."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            silent = await self._ask({}, _SILENT_AFTER)
            # Nor can one go on that has not heard of something.
            silent |= {n for n, channel in enumerate(self._channels) if channel.lost}
            if silent:
                raise DeviceLost(
                    f"process {min(silent)} of those that carry packets has done "
                    f"nothing for {_SILENT_AFTER:.0f} s: start alpha-trio again"
                )

    def _equip(self, lane: int) -> None:
        sockets = {n: each[lane] for n, each in self._udp.sockets.items()}
        apart = [each[-1] for each in self._udp.by_family] if lane == 0 else []
        opened = [self._tuns[lane].fileno()]
        opened += [sock.fileno() for sock in (*sockets.values(), *apart)]
        equipment = Equipment(
            self._port,
            self.identity.seed,
            self._visible,
            self._tuns[lane].traits,
            {length: sock.traits for length, sock in sockets.items()},
            tuple(sock.traits for sock in apart),
        )
        equipment.send(self._sockets[lane], opened)

    # -- what the lanes tell -------------------------------------------------------

    def _on_seen(self, number: int, told: Told, trace: Trace | None) -> None:
        session = self._numbered.get(number)
        if session is not None and session.update(told, trace):
            self.moved()

    def _on_event(self, event: Event) -> None:
        if event.kind is EventKind.PINNED and event.peer in self._sessions:
            session = self._sessions[event.peer]
            self._how[session.name][_KEY] = session.key
            self._configure(session)  # whoever shows the key elsewhere is this peer
        self._journal.record(event)

    def _on_figures(
        self,
        lane: int,
        counters: Counters,
        knocking: list[tuple[str, Knock]],
        unsegmented: dict[int, frozenset[Remote]],
    ) -> None:
        self._figures[lane] = counters, knocking
        for length, remotes in unsegmented.items():
            self._udp.sockets[length][lane].note_unsegmented(remotes)
        self._active.set()
        self._active = trio.Event()

    def _on_refreshed(self, lane: int, token: int) -> None:
        if token in self._awaited:
            waiting, done = self._awaited[token]
            waiting.discard(lane)
            if not waiting:
                done.set()

    def _on_bound(self, lane: int, numbers: list[int]) -> None:
        self._bound[lane] = numbers
        self._udp.steer({n: lane for lane, some in self._bound.items() for n in some})

    def _on_journal(self, method: str, *args: Any) -> None:
        getattr(self._journal, method)(*args)

    def _on_path_changed(self) -> None:
        self._path_changed.set()

    # -- what status asks ------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """What belongs to no peer, in all lanes."""
        total = Counters()
        drops: Counter[Any] = Counter()
        for counters, _ in self._figures.values():
            drops.update(counters.drops)
        total.drops.update(drops)
        return total

    @property
    def knocking(self) -> Mapping[str, Knock]:
        """Strangers, by host."""
        return dict(knock for _, some in self._figures.values() for knock in some)

    async def refresh(self, name: str | None = None) -> None:
        """Have the lanes tell how their sessions stand, or one of them; a checkpoint.

        What a lane does not tell in time stays as it was told last.
        """
        asked: dict[int, list[int]] = {}
        for session in self._sessions.values():
            if name in (None, session.name):
                asked.setdefault(session.lane, []).append(session.number)
        await self._ask(asked, _ANSWER)

    async def _ask(
        self, numbers: Mapping[int, Collection[int]], seconds: float
    ) -> set[int]:
        """Have each lane tell of some of its sessions; the lanes that did not."""
        token, done = next(self._tokens), trio.Event()
        silent = set(range(len(self._channels)))
        self._awaited[token] = silent, done
        for lane, channel in enumerate(self._channels):
            channel.call("refresh", token, numbers.get(lane, ()))
        try:
            with trio.move_on_after(seconds):
                await done.wait()
        finally:
            del self._awaited[token]
        return silent

    # -- what DataPath has for the registry --------------------------------------------

    def rearm(self) -> None:
        """Nothing to do: lanes look after their alarms."""

    async def wait_active(self) -> None:
        """Return when packets have moved after this call."""
        await self._active.wait()

    async def wait_path_changed(self) -> None:
        """See DataPath."""
        await self._path_changed.wait()
        self._path_changed = trio.Event()

    # -- what PeerTable has for the registry -------------------------------------------

    def add(
        self, name: str, remotes: Sequence[Remote], prefixes: Iterable[IPNetwork]
    ) -> FarSession:
        """See PeerTable.add; its lane is the one with the fewest peers."""
        load = Counter(session.lane for session in self._sessions.values())
        lane = min(range(len(self._channels)), key=load.__getitem__)
        number = next(self._numbers)
        session = FarSession(name, number, lane, self._call)
        self._sessions[name] = self._numbered[number] = session
        for channel in self._channels:
            channel.call("add", number, lane, name, remotes, tuple(prefixes))
        return session

    def configure(self, session: FarSession, *how: Any) -> None:
        """See PeerTable.configure."""
        self._how[session.name] = [*how]
        self._configure(session)

    def _configure(self, session: FarSession) -> None:
        how = self._how[session.name]
        session.configure(how[_REMOTES], how[_KEY])
        for lane, channel in enumerate(self._channels):
            args = how if lane == session.lane else _inert(how)
            channel.call("configure", session.number, *args)

    def remove(self, name: str) -> None:
        """See PeerTable.remove."""
        session = self._sessions.pop(name)
        session.end_trace()
        number = session.number
        del self._numbered[number]
        self._how.pop(name, None)
        for channel in self._channels:
            channel.call("remove", number)

    def connect(self, session: FarSession, now: float) -> None:
        """See PeerTable.connect."""
        self._call("connect", session.number, now)

    def ask(self, session: FarSession, now: float) -> None:
        """See PeerTable.ask."""
        self._call("ask", session.number, now)

    def readdress(self, session: FarSession, now: float, *, lost: bool) -> None:
        """See PeerTable.readdress."""
        self._call("readdress", session.number, now, lost=lost)

    def route_changed(self, session: FarSession, now: float) -> None:
        """See PeerTable.route_changed."""
        self._call("route_changed", session.number, now)

    def allow(self, session: FarSession, ceiling: int, fixed: int, now: float) -> None:
        """See PeerTable.allow."""
        session.allow(ceiling, fixed, now)

    def trace(self, session: FarSession, seconds: float, now: float) -> Trace | None:
        """See PeerTable.trace."""
        if not session.is_there or session.key is None:
            return None
        # The lane has the true one, of which this becomes a copy with all that it told.
        trace = Trace(
            self.identity.public, session.key, 0, now, seconds, 0.0, os.urandom
        )
        session.tracing = trace
        session.traces += 1
        self._call("trace", session.number, seconds, now)
        return trace

    def _call(self, method: str, number: int, *args: Any, **more: Any) -> None:
        session = self._numbered.get(number)
        if session is not None:  # or it was removed, and somebody still has it
            self._channels[session.lane].call(method, number, *args, **more)


_REMOTES, _, _KEEPALIVE, _KEY = range(4)


def _inert(how: Sequence[Any]) -> list[Any]:
    """The same in a lane that does not carry the peer: nothing is ever due there."""
    return [*how[:_KEEPALIVE], 0.0, *how[_KEEPALIVE + 1 :]]


def _fail(error: AlphaTrioError) -> None:
    raise error
