"""What every data path of a session has to offer, whatever protects its packets."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from alpha_trio.proto.batch import (
    Buffer,
    Outbox,
    Remote,
)
from alpha_trio.proto.packets import (
    Cut,
)

OwnsSource = Callable[[Buffer], bool]
"""May this peer send the inner packet that begins so?"""


class Arrival(IntEnum):
    """What datagrams of the peer told us."""

    WRONG_ADDRESS = -1  # dropped: it came from elsewhere
    NOTHING = 0  # repeated, malformed or forged: not even that the peer lives
    KEEPALIVE = 1  # the peer lives
    DATA = 2  # a packet, to which the peer expects some answer


class Transport(Protocol):
    """An established session's way to carry packets, as a Session uses it."""

    heard: float  # when the last authentic datagram of this session came, seconds
    established: float

    @property
    def deadline(self) -> float:
        """When on_deadline wants to be called."""

    @property
    def local_id(self) -> int:
        """The connection id the peer sends to."""

    @property
    def words(self) -> list[int]:
        """What the datagrams that belong to it begin with."""

    @property
    def remote(self) -> Remote:
        """Where the peer is."""

    @property
    def local(self) -> bytes:
        """Which address of ours it knows, as the socket reported it."""

    def outgoing(self, cut: Cut, now: float, out: Outbox) -> None:
        """Send the segments of ``cut``, or queue them until ``push``."""

    def push(self, now: float, out: Outbox) -> None:
        """No more follows at once: send what can be sent."""

    def hasten(self, now: float) -> None:
        """The peer has the session only now: repeat what it could not understand."""

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

    def keepalive(self, now: float, out: Outbox) -> None:
        """Say that we are here."""

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Do what is due."""

    def abandon(self) -> None:
        """The session ends: count what is lost with it."""
