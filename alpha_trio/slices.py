"""Long work beside the packets, made in slices between which they have their turn.

For what tells of the state: in another thread it would be read while it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TypeVar

import trio
from attrs import define

T = TypeVar("T")

SLICE = 0.0005  # s after which others have their turn


@define(eq=False)
class Slices:
    """Work that is done in slices, and what it took without the pauses."""

    spent: float = 0.0  # s

    async def take(self, steps: Iterable[T], keep: Callable[[T], object]) -> None:
        """Hand what each step makes to ``keep``."""
        begun = perf_counter()
        try:
            for made in steps:
                keep(made)
                if (took := perf_counter() - begun) >= SLICE:
                    self.spent += took
                    await trio.lowlevel.checkpoint()
                    begun = perf_counter()
        finally:
            self.spent += perf_counter() - begun


async def in_slices(steps: Iterable[T]) -> list[T]:
    """What all steps make."""
    made: list[T] = []
    await Slices().take(steps, made.append)
    return made
