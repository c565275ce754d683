"""Events as they happen, for whoever listens: ``monitor``, ``wait`` and ``trace``."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Mapping,
)
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define

EVENT_QUEUE = 256  # events waiting for one subscriber

Event = Mapping[str, Any]


class EventHub:
    """Hands each event to all subscribers; a slow one loses events, and is told."""

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()

    def publish(self, event: Event) -> None:
        """Queue ``event`` (with at least event, peer and time); never blocks."""
        for subscriber in self._subscribers:
            subscriber.offer(event)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """All events from here on.  In the place of those that found none comes one
        event ``lost`` with their ``count``."""
        send, receive = trio.open_memory_channel[Event](EVENT_QUEUE + 1)
        subscriber = _Subscriber(send)
        self._subscribers.add(subscriber)
        try:
            with send, receive:
                yield receive
        finally:
            self._subscribers.remove(subscriber)


@define(eq=False)
class _Subscriber:
    queue: trio.MemorySendChannel[Event]
    _lost: dict[str, Any] | None = None  # the event that is last in the queue, if any

    def offer(self, event: Event) -> None:
        """Queue it, or count it; the queue's last place is for telling of the loss."""
        if self.queue.statistics().current_buffer_used < EVENT_QUEUE:
            self._lost = None  # on its way now
            self.queue.send_nowait(event)
        elif self._lost is None:
            self._lost = {
                "event": "lost",
                "peer": None,
                "time": event["time"],
                "count": 1,
            }
            self.queue.send_nowait(self._lost)
        else:
            self._lost["count"] += 1
