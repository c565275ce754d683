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

_NEVER = 1_000_000


@contextmanager
def importing(young: int = 0) -> Iterator[None]:
    """Import without looking for garbage: modules leave little, but much to look at.

    That would be a tenth of the time to the daemon's first packet; later none of it is
    looked at.  ``young``: whenever so many things were made these are looked at, once.
    For the daemon's modules that takes no time to speak of, and saves 1.7 MB: a class
    with slots is made twice.
    """
    usual = gc.get_threshold()
    gc.set_threshold(young, _NEVER)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


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
