"""Where the program begins: until the commands are there, Ctrl-C just ends it.

Importing them takes longer than some commands run, and an interrupt meanwhile would
print where in somebody's module it came.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage: modules leave none, but very much to look at.

    A tenth of the time to the daemon's first packet; later none of it is looked at.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main() -> None:
    ours = signal.getsignal(signal.SIGINT)
    if ours is not signal.SIG_IGN:  # it is in what a script runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with importing():
        from .main import main as program

    signal.signal(signal.SIGINT, ours)
    program()
