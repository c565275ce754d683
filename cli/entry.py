"""Where the program begins: until the commands are there, Ctrl-C just ends it.

Importing them takes longer than some commands run, and an interrupt meanwhile would
print where in somebody's module it came.
"""

from __future__ import annotations

import signal


def main() -> None:
    ours = signal.getsignal(signal.SIGINT)
    if ours is not signal.SIG_IGN:  # it is in what a script runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import main as program

    signal.signal(signal.SIGINT, ours)
    program()
