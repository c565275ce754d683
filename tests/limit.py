"""The time a test may take, and what is seen of one that takes longer.

pytest-timeout looks after the time.  Its own way to end a test is to raise where the
signal arrives, which in a test of Trio is mostly within Trio: that is then broken, and
what the test has started lives on.  So Trio is asked for what it does at Ctrl-C: the
test's own code is interrupted, or the task that waits for it, and all is closed in
order.  What does not even end so is ended with its process, which xdist replaces.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from functools import partial
from types import FrameType

import pytest
import pytest_timeout
import trio

_CLOSING = 30  # seconds for the fixtures of a test that failed
_MARGIN = 30  # seconds; to arm the last resort takes a thread, so not each test does it

_exceeded = pytest.StashKey[float]()
_stderr = os.dup(2)  # what pytest puts in its place ends with the process
_last_resort = 0.0  # when it ends this process
_within = False  # a part of a test, and not what pytest does between them


def begin(item: pytest.Item, seconds: float) -> None:
    """Give a test so many seconds from now on."""
    global _last_resort
    signal.signal(signal.SIGALRM, partial(_interrupt, item, seconds))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    latest = time.monotonic() + seconds + _CLOSING
    if _last_resort < latest:
        _last_resort = latest + _MARGIN
        wait = _last_resort - time.monotonic()
        faulthandler.dump_traceback_later(wait, exit=True, file=_stderr)


def end() -> None:
    """Let it take its time."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def closed(item: pytest.Item) -> Generator[None, object, object]:
    """Run what closes a test.

    After a failure it has a limit of its own: pytest then drops all for debuggers.
    """
    global _last_resort
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        _last_resort = 0.0
        begin(item, _CLOSING)
    try:
        return (yield from judged(item))
    finally:
        end()


def judged(item: pytest.Item) -> Generator[None, object, object]:
    """Run a part of a test; whatever a test that was interrupted raises says so."""
    global _within
    try:
        _within = True
        return (yield)
    except BaseException as error:
        if (seconds := item.stash.get(_exceeded, None)) is None:
            raise
        del item.stash[_exceeded]
        text = f"{item.nodeid}: not done within {seconds:g} s"
        raise pytest.fail.Exception(text) from error
    finally:
        _within = False


def _interrupt(
    item: pytest.Item, seconds: float, _number: int, frame: FrameType | None
) -> None:
    if pytest_timeout.is_debugging():
        return
    if not _within:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # it would be pytest that ends
        return
    item.stash[_exceeded] = seconds
    item.add_report_section("call", "stacks", "\n".join(_stacks(frame)))
    if trio.lowlevel.in_trio_run():
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt


def _stacks(here: FrameType | None) -> Iterator[str]:
    """What all threads, and all tasks of Trio in this one, are doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        own = ident == threading.get_ident()
        yield f"Thread {names.get(ident, ident)}:"
        yield from traceback.format_stack(here if own else frame)
    if trio.lowlevel.in_trio_run():
        tasks = [trio.lowlevel.current_root_task()]
        for task in tasks:
            tasks += [t for n in task.child_nurseries for t in n.child_tasks]
            yield f"Task {task.name}:"
            frames = traceback.StackSummary.extract(task.iter_await_frames())
            yield from frames.format()
