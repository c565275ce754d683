"""A session as the front knows it: what its lane has told of it last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Self

from attrs import define, evolve, field, fields, frozen

from alpha_trio.proto.batch import Counters, Remote
from alpha_trio.proto.peers import PathMtu, Session, Source, State, Statistics
from alpha_trio.proto.traces import Trace
from alpha_trio.proto.transport import EarlyState

_LEAST_MTU = 1280


def _nothing_yet() -> Statistics:
    return Statistics(
        state=State.IDLE,
        reason=None,
        remote=None,
        handshake_age=None,
        receive_age=None,
        rtt=None,
        queued=0,
        counters=Counters(),
        key=None,
        offered_key=None,
        rounds={},
        associations=0,
        elements_left=0,
        mtu=_LEAST_MTU,
        mtu_source=Source.ROUTE,
        loss=None,
    )


@define(eq=False)
class FarSession:
    """What ``Session`` is in the process that carries its packets."""

    name: str
    number: int  # by which the lanes know it
    lane: int
    _call: Callable[..., None]  # what its lane has, by name
    mtu: int = _LEAST_MTU
    mtu_limit: int | None = None
    mtu_source: Source = Source.ROUTE
    path: PathMtu = field(factory=PathMtu)
    early_state: EarlyState = EarlyState.NO_SESSION
    gave_up: bool = False
    foreign_source: bytes = b""
    key: bytes | None = None
    heard: float = -inf
    attempts: int | None = None
    places: int = 0
    remote: Remote | None = None
    local: bytes = b""
    counters: Counters = field(factory=Counters)
    tracing: Trace | None = None
    at: float = -inf  # boot time of all this, seconds
    last: Statistics = field(factory=_nothing_yet)
    configured: int = 0  # how often it was; what the lane tells may be older
    resets: int = 0
    traces: int = 0
    _allowed: tuple[int, ...] = ()  # of its link, as the lane knows it

    def statistics(self, now: float) -> Statistics:
        """What the lane told last; it has grown older since then."""
        passed, last = max(0.0, now - self.at), self.last
        return evolve(
            last,
            handshake_age=_older(last.handshake_age, passed),
            receive_age=_older(last.receive_age, passed),
        )

    def state(self, now: float) -> State:
        """How the peer stands."""
        return self.last.state

    @property
    def is_there(self) -> bool:
        """Whether there is a session, as far as the lane has told."""
        return self.last.state in _WITH_SESSION

    def reset(self) -> None:
        """See Session.reset."""
        self.key, self.heard, self.local = None, -inf, b""
        self.last = evolve(self.last, state=State.IDLE)
        self.resets += 1
        self._trace_ended()
        self._call("reset", self.number)

    def allow(self, ceiling: int, fixed: int, now: float) -> None:
        """See Session.allow, for which nothing new is nothing to do.

        It is asked of all peers whenever routes are looked at.
        """
        allowed = ceiling, fixed, len(self.remote or ())
        if allowed != self._allowed:
            self._allowed = allowed
            self._call("allow", self.number, ceiling, fixed, now)

    def stop_asking(self) -> None:
        """See Session.stop_asking."""
        self._call("stop_asking", self.number)

    def end_trace(self) -> None:
        """See Session.end_trace."""
        self._trace_ended()
        self._call("end_trace", self.number)

    def _trace_ended(self) -> None:
        if self.tracing is not None:
            self.tracing.done = True
            self.tracing = None

    def configure(self, remotes: Sequence[Remote], key: bytes | None) -> None:
        """What follows at once from what is about to be done in the lane."""
        self.configured += 1
        self._allowed = ()  # the mode may be another
        self.key, self.places = key, len(remotes)
        if not self.is_there:
            self.remote = remotes[0] if remotes else None

    def update(self, told: Told, trace: Trace | None) -> bool:
        """Take what the lane tells; whether its routes have to follow.

        When it told that, it may not have done yet what was asked for meanwhile.
        """
        if told.resets < self.resets:
            return False  # of a session that is none any more
        before = self.remote, self.local, self.mtu_limit
        stale = _PLACE if told.configured < self.configured else ()
        for name, value in told.values.items():
            if name not in stale:
                setattr(self, name, value)
        self.counters = self.last.counters
        if told.traces == self.traces:
            self._follow_trace(trace)
        return before != (self.remote, self.local, self.mtu_limit)

    def _follow_trace(self, trace: Trace | None) -> None:
        if trace is not None and self.tracing is not None:
            for each in fields(Trace):  # who asked looks at this one
                setattr(self.tracing, each.name, getattr(trace, each.name))
        if trace is None or trace.done:
            self._trace_ended()


_TOLD = (
    "mtu",
    "mtu_limit",
    "mtu_source",
    "path",
    "early_state",
    "gave_up",
    "foreign_source",
    "key",
    "heard",
    "attempts",
    "places",
    "remote",
    "local",
)


_PLACE = frozenset({"places", "remote", "local"})
_WITH_SESSION = frozenset({State.ESTABLISHED, State.SILENT})


@frozen
class Told:
    """What a lane tells of a session, and how often it did what to it until then."""

    values: dict[str, Any]
    configured: int
    resets: int
    traces: int

    @classmethod
    def of(cls, session: Session, now: float, done: tuple[int, int, int]) -> Self:
        """As it stands now; ``done``: how often configured, reset, and traced."""
        values = {name: getattr(session, name) for name in _TOLD}
        values |= {"at": now, "last": session.statistics(now)}
        return cls(values, *done)


def _older(age: float | None, passed: float) -> float | None:
    return None if age is None else age + passed
