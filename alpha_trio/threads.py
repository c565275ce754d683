"""What blocks, done in threads beside the one that carries packets."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: object, abandon: bool = False) -> T:
    """``work(*args)`` in a thread.  Cancelling waits until it is done.

    ``abandon``: it does not, and the thread is left to itself.  Raises what ``work``
    raises, and OSError EAGAIN if the host has no more threads for us.
    """
    try:
        return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=abandon)
    except RuntimeError as error:
        if "new thread" not in str(error):  # in the words of the interpreter
            raise
        raise OSError(errno.EAGAIN, "No thread can be started") from None
