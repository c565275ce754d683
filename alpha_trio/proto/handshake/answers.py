"""Our answers to SYNs in a peer's name, until an ACKACK proves one of them.

A SYN proves nothing: whoever knows the peer's public key can send one, and from an
address of its own it gets our cookies, too; who reads what we send gets even those
for the peer's address.  So answers are kept apart by what was shown (``Shown``), a SYN
displaces only those to its own place that were shown no more, and which of them,
chance decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from math import inf

from attrs import define, field

from alpha_trio.proto.handshake.exchange import HalfOpen
from alpha_trio.proto.messages import HALF_OPEN_LIFETIME, Syn
from alpha_trio.proto.primitives import RandomBytes, any_of
from alpha_trio.proto.rates import network_of

MOST_ANSWERS = 8  # of each kind of Shown
MOST_OF_A_PLACE = 3

_Place = tuple["Shown", str]


class Shown(IntEnum):
    """What a SYN shows of who sent it."""

    NOTHING = 0  # it came from anywhere
    PLACE = 1  # it came from where the peer is known to be, or so it seems
    SECRET = 2  # only the peer can have made it, at some time
    SESSION = 3  # the same, since our present session with it began


@define(eq=False)
class Answers:
    """All half-open answers of one peer, one for each place."""

    random: RandomBytes
    free_id: Callable[[int], None]
    _kept: dict[HalfOpen, _Place] = field(factory=dict)

    def __len__(self) -> int:
        """How many wait for an ACKACK."""
        return len(self._kept)

    def __iter__(self) -> Iterator[HalfOpen]:
        """Each of them; the one looked at may be forgotten meanwhile."""
        return iter(list(self._kept))

    @property
    def deadline(self) -> float:
        """When the oldest is to be forgotten."""
        oldest = min((kept.created for kept in self), default=inf)
        return oldest + HALF_OPEN_LIFETIME

    def to(self, syn: Syn) -> HalfOpen | None:
        """The answer to exactly this SYN."""
        return next((kept for kept in self if kept.syn == syn), None)

    def with_id(self, connection_id: int) -> HalfOpen | None:
        """The answer that gave the peer this id of ours."""
        for kept in self:
            if kept.ack.sender_id == connection_id:
                return kept
        return None

    def is_other(self, syn: Syn) -> bool:
        """Whether another SYN than this one was answered and waits for its ACKACK.

        Then this one has to show a cookie: who cannot receive what we send must not
        displace the answer to somebody who can.
        """
        for kept in self._kept:  # a loop: it is asked for each SYN of a flood
            if kept.syn.nonce == syn.nonce and kept.syn == syn:
                return False
        return len(self._kept) > 0

    def put(self, half_open: HalfOpen, shown: Shown) -> None:
        """Keep one more, in the place of another if there is need."""
        place = shown, network_of(half_open.remote[0])
        alike = [kept for kept, at in self._kept.items() if at[0] is shown]
        there = [kept for kept in alike if self._kept[kept] == place]
        if len(there) >= MOST_OF_A_PLACE:
            self.forget(self._any(there))
        elif len(alike) >= MOST_ANSWERS:
            self.forget(self._any(alike))
        self._kept[half_open] = place

    def _any(self, some: list[HalfOpen]) -> HalfOpen:
        return some[any_of(len(some), self.random)]

    def take(self, half_open: HalfOpen) -> None:
        """It became a session, which has its id now."""
        del self._kept[half_open]

    def yield_to(self, nonce: bytes) -> None:
        """Our own SYN has led to a session: what lost the tie must not replace it."""
        for kept in self:
            kept.lost |= kept.syn.nonce < nonce

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        for kept in self:
            if now >= kept.created + HALF_OPEN_LIFETIME:
                self.forget(kept)

    def clear(self) -> None:
        """Forget all."""
        for kept in self:
            self.forget(kept)

    def forget(self, half_open: HalfOpen) -> None:
        """Forget one, and free its id."""
        self.take(half_open)
        self.free_id(half_open.ack.sender_id)
