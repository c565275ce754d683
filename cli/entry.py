"""Where the program begins: until the commands are there, Ctrl-C just ends it.

Importing them takes longer than some commands run, and an interrupt meanwhile would
print where in somebody's module it came.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
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


def _have_standard_files() -> None:
    """Open what our starter closed: else a socket would be what errors are written to.

    Standard input stays closed to who asks for it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def main() -> None:
    _have_standard_files()
    ours = signal.getsignal(signal.SIGINT)
    if ours is not signal.SIG_IGN:  # it is in what a script runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with importing():
        from .main import main as program

    signal.signal(signal.SIGINT, ours)
    program()
