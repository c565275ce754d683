"""The data path without authentication: number the bodies, send them, tell repeats.

One DATA datagram is the header word, a packet counter, a frame word, and a body
(see wire.py and frames.py); a DATA without a body is a keepalive.  The counter
gives each datagram one chance, whatever the network repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import inf
from struct import Struct
from typing import Protocol

from attrs import define, evolve, field

from alpha_trio.proto.batch import (
    MAX_DATAGRAMS,
    MAX_SEND_BYTES,
    Buffer,
    Counters,
    Drop,
    Outbox,
    Remote,
)
from alpha_trio.proto.frames import (
    FRAME_WORD_SIZE,
    GSO_NONE,
    Cut,
    join_datagrams,
    join_untrusted,
    same_flow,
)
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.replay import ReplayWindow
from alpha_trio.proto.runs import Bodies, join_frames
from alpha_trio.proto.wire import DATA, DATA_SIZE, BadPacket, data_word

OVERHEAD = DATA_SIZE + FRAME_WORD_SIZE
"""Bytes between the UDP header and the inner packet."""

_HEAD = Struct("!QQQ")  # header word, counter, frame word
_GSO_SHIFT = 56

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


@define(eq=False)
class PlainTransport:
    """One established session's way to carry packets, both directions."""

    agreement: Agreement
    counters: Counters
    heard: float  # when the last datagram of this session came, seconds
    established: float
    deadline: float = inf
    counter: int = 0
    window: ReplayWindow = field(factory=ReplayWindow)
    word_in: int = field(init=False)
    word_out: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.word_in = data_word(self.agreement.local_id)
        self.word_out = data_word(self.agreement.remote_id)

    @property
    def local_id(self) -> int:
        """The connection id the peer sends to."""
        return self.agreement.local_id

    @property
    def remote(self) -> Remote:
        """Where the peer is: where its handshake came from."""
        return self.agreement.remote

    @property
    def local(self) -> bytes:
        """Our address its handshake was sent to."""
        return self.agreement.local

    @property
    def words(self) -> list[int]:
        """What the datagrams that belong to it begin with."""
        return [self.word_in]

    def outgoing(self, cut: Cut, now: float, out: Outbox) -> None:
        """Put the segments of ``cut`` into as few sends as the kernel allows."""
        headers = bytes(cut.headers)
        run = bytearray(join_frames(DATA_SIZE, cut.word, headers, cut.segments))
        stride = _HEAD.size + len(headers) + len(cut.segments[0])
        pack_into, word, counter = DATA.pack_into, self.word_out, self.counter
        for at in range(0, len(run), stride):
            pack_into(run, at, word, counter)
            counter += 1
        self.counter = counter
        view = memoryview(run)
        out.send(
            self.remote, self.local, self.counters, view, stride, around=_HEAD.size
        )

    def push(self, now: float, out: Outbox) -> None:
        """Nothing ever waits."""

    def hasten(self, now: float) -> None:
        """Nothing is kept that could be repeated."""

    def keepalive(self, now: float, out: Outbox) -> None:
        """An empty DATA: we are here, and our address is still this."""
        message = DATA.pack(self.word_out, self.counter)
        self.counter += 1
        out.send(self.remote, self.local, self.counters, message, DATA_SIZE)

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
        """Take the datagrams at the head of ``view`` that continue one another.

        ``view`` begins with a DATA of this session; datagrams are ``stride``
        bytes apart.  Returns how many bytes were consumed, at least one datagram,
        and the most that any of them told.
        """
        size, counters = min(stride, len(view)), self.counters
        if remote != self.remote:
            # Nothing in here is authentic, so the endpoint must not follow it.
            counters.drop(Drop.WRONG_ADDRESS)
            return size, Arrival.WRONG_ADDRESS
        if size <= OVERHEAD:
            return size, self._keepalive_untrusted(view[:size])
        # hot path: heads of all datagrams with consecutive counters
        word, unpack = self.word_in, _HEAD.unpack_from
        at, end = 0, len(view)
        first = expected = DATA.unpack_from(view)[1]
        words: list[int] = []
        while end - at > OVERHEAD:
            word_in, counter, frame = unpack(view, at)
            if word_in != word or counter != expected:
                break
            expected += 1
            words.append(frame)
            at += stride
        frames = tuple(words)
        bodies = Bodies(view, OVERHEAD, stride, stride - OVERHEAD)
        fresh = self.window.accept(first, len(frames))
        if fresh + 1 == 1 << len(frames):
            deliver_untrusted(frames, bodies, owns_source, out, counters)
        else:
            counters.drop(Drop.REPLAYED, len(frames) - fresh.bit_count())
            # One by one: what stands on both sides of a repeated segment may look
            # consecutive and yet belong to different packets.
            for i in range(len(frames)):
                if fresh >> i & 1:
                    alone = evolve(bodies, start=OVERHEAD + i * stride)
                    deliver_untrusted(
                        frames[i : i + 1], alone, owns_source, out, counters
                    )
        return min(at, end), Arrival.DATA if fresh else Arrival.NOTHING

    def _keepalive_untrusted(self, datagram: memoryview) -> Arrival:
        if len(datagram) != DATA_SIZE:
            self.counters.drop(Drop.MALFORMED)
        elif not self.window.accept(DATA.unpack(datagram)[1], 1):
            self.counters.drop(Drop.REPLAYED)
        else:
            return Arrival.KEEPALIVE
        return Arrival.NOTHING

    def on_deadline(self, now: float, out: Outbox) -> None:
        """Nothing is ever due."""

    def abandon(self) -> None:
        """Nothing ever waits."""


def deliver_untrusted(
    frames: tuple[int, ...],
    bodies: Bodies,
    owns_source: OwnsSource,
    out: Outbox,
    counters: Counters,
) -> list[int]:
    """Join segments of a super-packet, or datagrams of a flow, for the TUN.

    ``frames`` are the frame words of the ``bodies``.  Returns the positions of those
    that were not delivered, but counted as dropped.
    """
    refused: list[int] = []
    at, count = 0, len(frames)
    while at < count:
        frame, body = frames[at], bodies[at]
        until = at + 1
        if not owns_source(body):
            counters.drop(Drop.WRONG_SOURCE)
            refused.append(at)
            at = until
            continue
        if frame >> _GSO_SHIFT != GSO_NONE:
            length = frame >> 48 & 0xFF
            until += _segments_after(frames, at)
            segments = [body, *bodies.tails(at + 1, until, length)]
            size = sum(map(len, segments)) + (until - at - 1) * length
        else:
            until = _end_of_flow(frames, bodies, at)
            segments = bodies.tails(at, until, 0)
            size = sum(map(len, segments))
        try:
            if len(segments) > 1 and frame >> _GSO_SHIFT == GSO_NONE:
                parts = join_datagrams(frame, segments)
            else:
                parts = join_untrusted(frame, segments)
        except BadPacket:
            counters.drop(Drop.MALFORMED, until - at)
            refused += range(at, until)
        else:
            out.deliver(parts, counters, until - at, size)
        at = until
    return refused


def _segments_after(frames: tuple[int, ...], at: int) -> int:
    """How many segments of the same super-packet follow ``at`` without a gap."""
    following = frames[at + 1 :]
    expected = range(frames[at] + 1, frames[at] + 1 + len(following))
    if following == tuple(expected):
        return len(following)  # hot path
    pairs = zip(following, expected, strict=True)
    return next(i for i, (frame, due) in enumerate(pairs) if frame != due)


def _end_of_flow(frames: tuple[int, ...], bodies: Bodies, at: int) -> int:
    """One past the last whole packet that can share a super-packet with ``at``'s."""
    frame, first, size = frames[at], bodies[at], len(bodies[at])
    until, room = at + 1, min(len(frames), at + MAX_DATAGRAMS)
    total = size
    while until < room and frames[until] == frame:
        body = bodies[until]
        total += len(body)
        if total > MAX_SEND_BYTES or not same_flow(frame, first, body):
            break
        until += 1
        if len(body) < size:
            break
    return until
