"""Counters that should be quiet, and those of them that go on rising.

A few lost packets mean nothing.  What is lost again and again has a reason that an
operator can find, and ``health`` says where to look, for as long as it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise

import trio
from attrs import define, field

from alpha_trio.proto.batch import Drop

INTERVAL = 2.0  # seconds between two looks
LOOKS = 4  # that are kept
OFTEN = 2  # in how many of the intervals between them it has to rise

QUIET = (Drop.NO_AGREEMENT, Drop.WRONG_SOURCE, Drop.TOO_BIG, Drop.STRANGER)

Counter = tuple[str, Drop]  # of which peer, and what for
Counts = Mapping[Counter, int]


@define(eq=False)
class Rising:
    """What has risen between the latest looks.  Pure: counts in, names out."""

    _looks: deque[Counts] = field(factory=lambda: deque(maxlen=LOOKS))

    def look(self, counts: Counts) -> None:
        """Take the counts as they are now, ``INTERVAL`` after the ones before."""
        self._looks.append(dict(counts))

    @property
    def counters(self) -> list[Counter]:
        """Those that go on rising."""
        return [counter for counter, times in self._rises().items() if times >= OFTEN]

    @property
    def over(self) -> bool:
        """Whether nothing has risen for as long as is looked back."""
        return not self._rises()

    def _rises(self) -> dict[Counter, int]:
        rises: dict[Counter, int] = {}
        for before, after in pairwise(self._looks):
            for counter, count in after.items():
                if count > before.get(counter, 0):
                    rises[counter] = rises.get(counter, 0) + 1
        return rises


async def watch(
    rising: Rising,
    counts: Callable[[], Counts],
    wait_active: Callable[[], Awaitable[None]],
) -> None:
    """Look every ``INTERVAL`` while packets move, and sleep while none do."""
    rising.look(counts())
    while True:
        if rising.over:
            await wait_active()
        await trio.sleep(INTERVAL)
        rising.look(counts())
