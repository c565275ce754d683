"""What every data path of a session has to offer, whatever protects its packets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum
from math import inf

from attrs import define, field

from alpha_trio.proto.batch import Buffer, Counters, Outbox, Place, Remote
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.packets import Cut

ECN = 0x03

OwnsSource = Callable[[Buffer], bool]
"""May this peer send the inner packet that begins so?"""


class Arrival(IntEnum):
    """What datagrams of the peer told us."""

    WRONG_ADDRESS = -1  # dropped: it came from elsewhere
    NOTHING = 0  # repeated, malformed or forged: not even that the peer lives
    KEEPALIVE = 1  # the peer lives
    DATA = 2  # a packet, to which the peer expects some answer


FORMER_LIFETIME = 10.0  # s for which the peer may still be where it was


@define(eq=False)
class Way:
    """Between which addresses a session's datagrams go, and what counts them."""

    agreement: Agreement
    counters: Counters
    visible: int = field(default=ECN, kw_only=True)
    """Bits of an inner packet's traffic class that its outer header has as well."""

    remote: Remote = field(init=False)  # where the peer is
    local: bytes = field(init=False)  # our address it knows, as the socket reported it
    proven: Place | None = field(init=False, default=None)
    """Another place where the peer was seen to receive: for the session to follow."""
    _former: Place | None = field(init=False, default=None)  # where it was before
    _moved: float = field(init=False, default=-inf)  # when it left there

    def __attrs_post_init__(self) -> None:
        self.remote, self.local = self.agreement.remote, self.agreement.local

    @property
    def place(self) -> Place:
        """Where the peer is, and by which address of ours it knows us."""
        return Place(self.remote, self.local)

    def elsewhere(self, remote: Remote, local: bytes) -> Place | None:
        """The place something came from, unless that is where the peer is."""
        # hot path: once or twice a round
        if remote == self.remote and local == self.local:
            return None
        return Place(remote, local)

    def move(self, place: Place, now: float) -> None:
        """The peer is at ``place`` now, where it has proven that it receives.

        What is merely authentic proves nothing: it may have been copied on its way,
        and sent from anywhere.
        """
        self._former, self._moved = self.place, now
        self.remote, self.local = place

    def former(self, now: float) -> Place | None:
        """Where the peer was until not long ago."""
        return self._former if now < self._moved + FORMER_LIFETIME else None


class Transport(ABC):
    """An established session's way to carry packets, as a Session uses it."""

    line: Way
    heard: float  # when the last authentic datagram of this session came, seconds
    established: float

    @property
    def local_id(self) -> int:
        """The connection id the peer sends to."""
        return self.line.agreement.local_id

    @property
    def remote(self) -> Remote:
        """Where the peer is."""
        return self.line.remote

    @property
    def local(self) -> bytes:
        """Which address of ours it knows, as the socket reported it."""
        return self.line.local

    @property
    @abstractmethod
    def deadline(self) -> float:
        """When on_deadline wants to be called, seconds."""

    @property
    @abstractmethod
    def words(self) -> list[int]:
        """What the datagrams that belong to it begin with."""

    @abstractmethod
    def outgoing(self, cut: Cut, now: float, out: Outbox) -> None:
        """Send the segments of ``cut``, or queue them until ``push``."""

    @abstractmethod
    def push(self, now: float, out: Outbox) -> None:
        """No more follows at once: send what can be sent."""

    @abstractmethod
    def hasten(self, now: float) -> None:
        """The peer has the session only now: repeat what it could not understand."""

    @abstractmethod
    def incoming(
        self,
        view: memoryview,
        stride: int,
        remote: Remote,
        local: bytes,
        owns_source: OwnsSource,
        now: float,
        out: Outbox,
    ) -> tuple[int, Arrival]:
        """Take datagrams at the head of ``view``, which begins with one of ours.

        Returns how many bytes were consumed, at least one datagram, and the most
        that any of them told.
        """

    @abstractmethod
    def keepalive(self, now: float, out: Outbox) -> None:
        """Say that we are here."""

    @abstractmethod
    def on_deadline(self, now: float, out: Outbox) -> None:
        """Do what is due."""

    @abstractmethod
    def abandon(self) -> None:
        """The session ends: count what is lost with it."""
