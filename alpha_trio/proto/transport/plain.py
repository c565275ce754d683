"""The data path without authentication: number the bodies, send them, tell repeats.

One DATA datagram is the header word, a packet counter, a frame word, and a body (see
messages/data.py and packets/frames.py); a DATA without a body is a keepalive.  The
counter gives each datagram one chance, whatever the network repeats.
"""

from __future__ import annotations

from math import inf
from struct import Struct

from attrs import define, evolve, field

from alpha_trio.proto.batch import (
    Counters,
    Drop,
    Outbox,
    Remote,
)
from alpha_trio.proto.handshake import Agreement
from alpha_trio.proto.messages import (
    DATA,
    DATA_SIZE,
    Bodies,
    data_word,
    join_frames,
)
from alpha_trio.proto.packets import Cut, traffic_class_of
from alpha_trio.proto.transport.delivery import deliver_bodies_untrusted
from alpha_trio.proto.transport.modes import PLAIN_OVERHEAD
from alpha_trio.proto.transport.replay import ReplayWindow
from alpha_trio.proto.transport.transport import (
    ECN,
    Arrival,
    OwnsSource,
    Transport,
    Way,
)

_HEAD = Struct("!QQQ")  # header word, counter, frame word


@define(eq=False)
class PlainTransport(Transport):
    """One established session's way to carry packets, both directions."""

    agreement: Agreement
    counters: Counters
    heard: float  # when the last datagram of this session came, seconds
    established: float
    visible: int = ECN
    counter: int = 0
    window: ReplayWindow = field(factory=ReplayWindow)
    line: Way = field(init=False)
    word_in: int = field(init=False)
    word_out: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.line = Way(self.agreement, self.counters, visible=self.visible)
        self.word_in = data_word(self.agreement.local_id)
        self.word_out = data_word(self.agreement.remote_id)

    @property
    def deadline(self) -> float:
        """Nothing is ever due."""
        return inf

    @property
    def words(self) -> list[int]:
        """What the datagrams that belong to it begin with."""
        return [self.word_in]

    def outgoing(self, cut: Cut, now: float, out: Outbox) -> None:
        """Put the segments of ``cut`` into as few sends as the kernel allows."""
        headers, segments = cut.headers, cut.segments
        run = bytearray(join_frames(DATA_SIZE, cut.word, headers, segments))
        stride = _HEAD.size + len(headers) + len(segments[0])
        pack_into, word, counter = DATA.pack_into, self.word_out, self.counter
        for at in range(0, len(run), stride):
            pack_into(run, at, word, counter)
            counter += 1
        self.counter = counter
        view = memoryview(run)
        out.send(
            self.remote,
            self.local,
            self.counters,
            view,
            stride,
            _HEAD.size,
            traffic_class_of(headers or cut.payload) & self.line.visible,
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
        if remote != self.line.remote:
            # Nothing in here is authentic, so the endpoint must not follow it.
            counters.drop(Drop.WRONG_ADDRESS)
            return size, Arrival.WRONG_ADDRESS
        if size <= PLAIN_OVERHEAD:
            return size, self._keepalive_untrusted(view[:size])
        # hot path: heads of all datagrams with consecutive counters
        word, unpack = self.word_in, _HEAD.unpack_from
        at, end = 0, len(view)
        first = expected = DATA.unpack_from(view)[1]
        words: list[int] = []
        while end - at > PLAIN_OVERHEAD:
            word_in, counter, frame = unpack(view, at)
            if word_in != word or counter != expected:
                break
            expected += 1
            words.append(frame)
            at += stride
        frames = tuple(words)
        bodies = Bodies(view, PLAIN_OVERHEAD, stride, stride - PLAIN_OVERHEAD)
        fresh = self.window.accept(first, len(frames))
        if fresh + 1 == 1 << len(frames):
            deliver_bodies_untrusted(frames, bodies, owns_source, out, counters)
        else:
            counters.drop(Drop.REPLAYED, len(frames) - fresh.bit_count())
            # One by one: what stands on both sides of a repeated segment may look
            # consecutive and yet belong to different packets.
            for i in range(len(frames)):
                if fresh >> i & 1:
                    alone = evolve(bodies, start=PLAIN_OVERHEAD + i * stride)
                    deliver_bodies_untrusted(
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
