"""The ground every test stands on: the same whoever started the suite, and from where.

What a process has from its starter, its children have from it.  A shell that starts
something in the background lets it ignore SIGINT, nohup adds SIGHUP, a service manager
has a umask and a locale of its own, and cron has no HOME.  All of this is put right
once, here, before the first test; what a test wants otherwise it says itself.
"""

from __future__ import annotations

import locale
import os
import signal
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Python ignores these two itself and gives them back to its children; who ignores
# SIGHUP wants the run to outlive a terminal, and our daemon asks for it anyway.
_LEFT_ALONE = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP}
# How programs are found and loaded, and what _speak_utf8 sets.
_KEPT = {"PATH", "PYTHONPATH", "LC_ALL", "LD_LIBRARY_PATH"}
# The path of a Unix socket has at most 107 characters.  Of these pytest's folders take
# 36 or more, as the user's name is long, a test's folder 32, "/run/control.sock" 17.
_LONGEST_TEMPORARY = 16


def of_this_process() -> None:
    """Put right what has to be before this process starts another one."""
    for number in signal.valid_signals() - _LEFT_ALONE:
        if signal.getsignal(number) is signal.SIG_IGN:
            interrupt = number == signal.SIGINT
            signal.signal(
                number, signal.default_int_handler if interrupt else signal.SIG_DFL
            )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    _have_standard_files()
    _speak_utf8()
    if len(tempfile.gettempdir()) > _LONGEST_TEMPORARY:
        tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"


def _have_standard_files() -> None:
    """Open what was closed of 0 to 2, or the next file opened would be one of them."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)


def _speak_utf8() -> None:
    """Let this process read files as UTF-8, and its children speak nothing else."""
    for name in [name for name in os.environ if name.startswith(("PYTHON", "LC_"))]:
        if name not in _KEPT:
            del os.environ[name]
    os.environ["LC_ALL"] = "C.UTF-8"
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def of_its_tests(folder: Path) -> None:
    """Give tests an environment without the starter's, and folders of their own.

    ``folder`` is where they keep what they do not put elsewhere.
    """
    for name in [name for name in os.environ if not name.startswith("PYTEST_")]:
        if name not in _KEPT:
            del os.environ[name]
    # Modules of ours are found from any working directory, also by their children.
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
