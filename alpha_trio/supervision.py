"""Tasks beside the packets, which what the host refuses does not end.

Descriptors, buffers, memory and threads run out, and come back; a packet filter or a
sandbox may forbid for a while what it allowed before.  What carries packets needs none
of them once it runs.  So what is refused to anybody else is told, stands in ``health``
while it lasts, and is tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from alpha_trio.errors import refusal
from alpha_trio.journal import Journal

T = TypeVar("T")

RETRY_FIRST, RETRY_MAX = 0.1, 5.0
"""Seconds from a refusal to the next attempt: at first, and after many."""


def delays() -> Iterator[float]:
    """Seconds to wait before each further attempt, without end."""
    delay = RETRY_FIRST
    while True:
        yield delay
        delay = min(2 * delay, RETRY_MAX)


async def insist(
    step: Callable[[], Awaitable[T]], journal: Journal, subject: str, meanwhile: str
) -> T:
    """Await ``step()``, again and again while the host refuses it, for its value.

    ``subject`` is what the refusals are about, and ``meanwhile`` what is not done as
    long as they last, both for people.  What no host says is raised, as are the errors
    of cancellation.
    """
    for delay in delays():
        try:
            value = await step()
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            journal.trouble(subject, f"{meanwhile}: {reason}")
        else:
            if subject in journal.troubles:
                journal.recovered(subject)
            return value
        await trio.sleep(delay)
    raise AssertionError
