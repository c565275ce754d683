"""What blocks, done in threads beside the one that carries packets."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

T = TypeVar("T")

_LOOK_AGAIN = 1.0  # s


async def in_thread(work: Callable[..., T], *args: object, abandon: bool = False) -> T:
    """``work(*args)`` in a thread.  Cancelling waits until it is done.

    ``abandon``: it does not, and the thread is left to itself.  Raises what ``work``
    raises, and OSError EAGAIN if the host has no more threads for us.
    """
    looking = trio.CancelScope()
    trio.lowlevel.spawn_system_task(_look_for_results, looking)
    try:
        return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=abandon)
    except RuntimeError as error:
        if "new thread" not in str(error):  # in the words of the interpreter
            raise
        raise OSError(errno.EAGAIN, "No thread can be started") from None
    finally:
        looking.cancel()


async def _look_for_results(scope: trio.CancelScope) -> None:
    """Have trio look what threads have left for it, now and then, while one works.

    A thread that is done tells so by one byte through a socket.  If the kernel has no
    buffer for it just then, nobody would ever look, nor the next thread begin.
    """
    token = trio.lowlevel.current_trio_token()
    with scope:
        while True:
            await trio.sleep(_LOOK_AGAIN)
            with suppress(OSError):
                token.run_sync_soon(int)
