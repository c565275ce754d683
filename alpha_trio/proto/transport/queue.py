"""Packets that wait for a round."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from struct import Struct

from attrs import define, evolve, field

from alpha_trio.proto.engine import Frame
from alpha_trio.proto.messages import EARLY_LENGTH, split
from alpha_trio.proto.packets import (
    FRAME_WORD_SIZE,
    flow_of,
    frames,
    traffic_class_of,
)

_WORD = Struct("!Q")
_EARLY_HEADS = EARLY_LENGTH.size + FRAME_WORD_SIZE
_OBJECTS = 260  # bytes of the objects that hold a frame


MOST_LOOKED_AT = 32
"""Frames among which early data is sought: more are a load, and fill rounds.

Some times as many on a long way, where more of what goes early gathers meanwhile."""


@define(eq=False)
class Waiting:
    """Packets of one frame in the queue, copied: the TUN's buffer was borrowed."""

    word: int  # frame word of the first
    headers: bytes  # in front of each segment
    payload: bytes  # the segments, and what was parted from them
    segment: int  # bytes of each but the last
    since: float
    flow: bytes = b""  # addresses, ports and protocol; only equality matters
    marked: bool = False  # as having met congestion, outside; the receiver passes it on
    may_go_early: bool = True  # by itself, whatever else there is
    begin: int = 0  # where in the payload the first segment begins
    end: int = -1  # and the last one ends; -1: with the payload
    count: int = field(init=False)  # packets, keepalives among them

    def __attrs_post_init__(self) -> None:
        if self.end < 0:
            self.end = len(self.payload)
        self.count = -((self.begin - self.end) // (self.segment or 1)) or 1

    @property
    def packets(self) -> int:
        """Inner packets; a keepalive is none."""
        return self.count if self.headers or self.payload else 0

    @property
    def size(self) -> int:
        """Bytes of the first packet."""
        return len(self.headers) + min(self.segment, self.end - self.begin)

    @property
    def held(self) -> int:
        """Bytes of memory, about: small packets are mostly the objects around them.

        A part of a payload keeps all of it.
        """
        return len(self.payload) + len(self.headers) + _OBJECTS

    @property
    def head(self) -> bytes:
        """What the first packet begins with."""
        return self.headers or self.payload

    @property
    def traffic_class(self) -> int:
        """Of all its packets."""
        head = self.headers or self.payload
        mark = frames.CE if self.marked else 0
        # hot path: IPv4, where it is one byte
        if head and head[0] >> 4 == 4:
            return head[1] | mark
        return traffic_class_of(head) | mark

    @property
    def early_size(self) -> int:
        """Bytes of it as early data."""
        around = _EARLY_HEADS + len(self.headers)
        return self.end - self.begin + self.count * around

    @property
    def frame(self) -> Frame:
        """As a kernel takes it."""
        place = self.begin, self.end, self.segment
        return self.word, self.headers, self.payload, *place, self.traffic_class

    def bodies(self) -> list[bytes]:
        """Each packet with its frame word in front; not of a keepalive."""
        segments = split(self.payload[: self.end], self.begin, self.segment)
        if not self.headers:  # hot path
            head = _WORD.pack(self.word)
            return [head + segment for segment in segments]
        words = map(_WORD.pack, range(self.word, self.word + self.count))
        return [
            word + self.headers + segment
            for word, segment in zip(words, segments, strict=True)
        ]

    def split(self, count: int) -> tuple[Waiting, Waiting]:
        """The first ``count`` packets, and the rest."""
        at = self.begin + count * self.segment
        first = evolve(self, end=at)
        return first, evolve(self, word=self._word_of(count), begin=at)

    def lose_first(self) -> bool:
        """Forget the first packet; False if nothing is left."""
        self.word = self._word_of(1)
        self.begin += self.segment
        self.count -= 1
        return self.count > 0

    def _word_of(self, number: int) -> int:
        """Segments are numbered; packets that stay whole are not."""
        return self.word + number if self.headers else self.word


def waiting_again(bodies: Iterable[bytes], now: float) -> Iterator[Waiting]:
    """Bodies of packets as they wait in a queue.

    Each knows its flow again, or what follows could overtake it by going early.
    """
    for body in bodies:
        (word,) = _WORD.unpack_from(body)
        packet = body[FRAME_WORD_SIZE:]
        yield Waiting(word, b"", packet, len(packet), now, flow_of(packet))


@define(eq=False)
class FlowQueue:
    """What waits, the packets of flows that have nothing else waiting first.

    So an echo or a keystroke does not stand behind the megabytes of a download.
    Inside a flow the order stays: a packet only goes to the front when none of its
    flow waits behind.
    """

    _front: deque[Waiting] = field(factory=deque)
    _back: deque[Waiting] = field(factory=deque)
    _flows: dict[bytes, int] = field(factory=dict)  # frames that wait

    def append(self, waiting: Waiting) -> None:
        """Add a frame in its turn."""
        others = self._flows.get(waiting.flow, 0)
        (self._back if others else self._front).append(waiting)
        self._flows[waiting.flow] = others + 1

    def append_in_order(self, waiting: Waiting) -> None:
        """Add a frame behind all that were added so far, whatever its flow."""
        self._front.append(waiting)
        self._flows[waiting.flow] = self._flows.get(waiting.flow, 0) + 1

    def appendleft(self, waiting: Waiting) -> None:
        """Put back what was taken last."""
        self._front.appendleft(waiting)
        self._flows[waiting.flow] = self._flows.get(waiting.flow, 0) + 1

    def popleft(self) -> Waiting:
        """Take the frame whose turn it is.  Raises IndexError if none waits."""
        return self._taken((self._front or self._back).popleft())

    def take_early(
        self,
        room: int,
        most: int,
        held: Collection[bytes],
        looked_at: int = MOST_LOOKED_AT,
        *,
        whole: bool = True,
    ) -> list[list[Waiting]]:
        """Take what may go ahead of all else, in up to ``most`` times ``room`` bytes.

        These are flows of which nothing remains behind, and that overtake nothing of
        their own, which are those ``held``: who comes alone, not who fills rounds.
        What goes together has one traffic class, which its datagram bears as well.
        Among more than ``looked_at`` frames nothing is sought.  Not ``whole``: all that
        waits is small, so the rest of a flow may follow with the next S1.
        """
        packed: list[list[Waiting]] = []
        free = 0
        counts: dict[bytes, int] = {}
        blocked = set(held)
        for waiting in self._looked_at(looked_at):
            may = waiting.may_go_early and waiting.packets
            size = waiting.early_size if may else room + 1
            if size > room or waiting.flow in blocked:
                blocked.add(waiting.flow)
                continue
            fresh = size > free or waiting.traffic_class != packed[-1][0].traffic_class
            if fresh and len(packed) == most:
                break
            if fresh:
                packed.append([])
                free = room
            packed[-1].append(waiting)
            free -= size
            counts[waiting.flow] = counts.get(waiting.flow, 0) + 1
        if whole:
            alone = {f for f, count in counts.items() if count == self._flows[f]}
            packed = [[w for w in some if w.flow in alone] for some in packed]
        taken = {id(w): self._taken(w) for some in packed for w in some}
        if taken:
            for row in (self._front, self._back):
                left = [waiting for waiting in row if id(waiting) not in taken]
                row.clear()
                row.extend(left)
        return [some for some in packed if some]

    def has_single(self, room: int) -> bool:
        """Whether a packet that came alone, and fits, may be among those in front.

        Or some acknowledgments, which came one by one.
        """
        return any(
            not waiting.headers and len(waiting.payload) < room and waiting.may_go_early
            for waiting in islice(self._front, MOST_LOOKED_AT)
        )

    def _looked_at(self, most: int) -> Iterator[Waiting]:
        yield from islice(self._front, most)
        if len(self._back) <= most:
            yield from self._back

    def is_small(self, room: int, most: int = MOST_LOOKED_AT) -> bool:
        """Whether all of it may go early: ``most`` frames, and ``room`` bytes."""
        if len(self) > most:
            return False
        for waiting in self:
            room -= waiting.early_size
            if room < 0 or not waiting.packets or not waiting.may_go_early:
                return False
        return True

    def has_more(self, flow: bytes) -> bool:
        """Whether anything of this flow waits."""
        return flow in self._flows

    def pop_oldest(self) -> Waiting:
        """Take the frame that has waited longest."""
        return self._taken(self._longest().popleft())

    @property
    def oldest(self) -> Waiting:
        """The frame that has waited longest.  Raises IndexError if none waits."""
        return self._longest()[0]

    def _longest(self) -> deque[Waiting]:
        if not self._front or not self._back:
            return self._front or self._back
        # Of what came in one batch a flow that has more goes before one that is new.
        behind = self._back[0].since <= self._front[0].since
        return self._back if behind else self._front

    def _taken(self, waiting: Waiting) -> Waiting:
        left = self._flows[waiting.flow] - 1
        if left:
            self._flows[waiting.flow] = left
        else:
            del self._flows[waiting.flow]
        return waiting

    def clear(self) -> None:
        """Forget all."""
        self._front.clear()
        self._back.clear()
        self._flows.clear()

    def __len__(self) -> int:
        return len(self._front) + len(self._back)

    def __iter__(self) -> Iterator[Waiting]:
        """In the order of turns."""
        return chain(self._front, self._back)
