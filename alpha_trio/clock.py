"""The one clock of the daemon."""

import time


def boottime() -> float:
    """Seconds since boot, time in suspend included: a session ages while we sleep.

    Never mix it with ``trio.current_time()``, which stops in suspend and has an
    offset of its own.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
