"""Frames that wait for a session."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from alpha_trio.proto.packets import frames

QUEUE_PACKETS = 128
"""Packets of one peer that wait for a handshake; the oldest is dropped first."""


@define(eq=False)
class WaitingFrames:
    """TUN frames that wait for a session, at most QUEUE_PACKETS packets of them.

    Packets, not frames: a super-packet is 64 KiB, and a thousand silent peers must
    not keep gigabytes.  Only a single larger frame may exceed the limit.
    """

    packets: int = 0
    frames: deque[tuple[bytes, int]] = field(factory=deque)

    def put(self, frame: memoryview) -> int:
        """Keep a copy of ``frame``; returns how many packets it pushed out."""
        packets, before = frames.packets(frame), self.packets
        self.frames.append((bytes(frame), packets))
        self.packets += packets
        while self.packets > QUEUE_PACKETS and len(self.frames) > 1:
            self.packets -= self.frames.popleft()[1]
        return before + packets - self.packets

    def take(self) -> list[bytes]:
        """All frames, oldest first; none wait afterwards."""
        taken = [frame for frame, _ in self.frames]
        self.clear()
        return taken

    def clear(self) -> int:
        """Forget all; returns how many packets that were."""
        packets, self.packets = self.packets, 0
        self.frames.clear()
        return packets
