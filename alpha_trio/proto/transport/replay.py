"""A sliding window over packet counters: each counter passes once.

The window is one Python integer, so that a run of consecutive counters, which is
what a batch nearly always is, costs a few big-integer operations and not a loop.
"""

from __future__ import annotations

from attrs import define

WINDOW = 8192
"""Counters behind the newest one that are still told apart.  Reordering beyond it
is taken for replay (WireGuard keeps 8,128)."""

_MASK = (1 << WINDOW) - 1


@define(eq=False)
class ReplayWindow:
    """Bit i of ``seen`` stands for counter ``newest - i``."""

    newest: int = -1
    seen: int = 0

    def accept(self, first: int, count: int) -> int:
        """Mark counters first .. first+count-1; bit i of the result: i was fresh.

        ``count`` is at least 1 and at most WINDOW.
        """
        last = first + count - 1
        ahead = last - self.newest
        if ahead >= count:  # hot path: all of it lies ahead of the window
            self._advance(ahead, (1 << count) - 1)
            return (1 << count) - 1
        fresh = 0
        for i in range(count):  # cold path: reordered, repeated or too old
            fresh |= self._accept_one(first + i) << i
        return fresh

    def _accept_one(self, counter: int) -> bool:
        behind = self.newest - counter
        if behind < 0:
            self._advance(-behind, 1)
            return True
        if behind >= WINDOW or self.seen >> behind & 1:
            return False
        self.seen |= 1 << behind
        return True

    def _advance(self, by: int, fresh: int) -> None:
        # The sender chooses ``by``: an unbounded shift would be its memory bomb.
        kept = self.seen << by if by < WINDOW else 0
        self.seen = (kept | fresh) & _MASK
        self.newest += by
