"""Programs of the operator, run when a peer comes, goes or moves.

They run with all rights of the daemon, so only the config file can name them, and they
are started as they stand there, without a shell, in an environment of their own.
Whatever they do, packets go on:

- one at a time for each peer, and AT_ONCE for all of them together;
- what happens meanwhile waits, WAITING events of a peer at most; of more the oldest are
  left out, and counted;
- one that has not ended after SECONDS is killed with all it has started;
- of what it writes the first OUTPUT bytes are read, for the log; then nobody listens
  any more, which ends who goes on writing.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import NoReturn

import trio
from attrs import define, field, frozen

from alpha_trio.errors import refusal
from alpha_trio.journal import Journal, address
from alpha_trio.proto.batch import Event, EventKind
from alpha_trio.settings import HookSettings

__all__ = ["Happening", "Hooks", "Result"]

SECONDS = 10.0
REST_SECONDS = 0.1  # for what it wrote last
REAP_SECONDS = 1.0  # for the kernel to end what was killed
AT_ONCE = 4
WAITING = 8
OUTPUT = 4096
SHOWN = 200  # characters of it in the log

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_log = logging.getLogger("alpha_trio")


class Happening(StrEnum):
    """What a hook is run for."""

    UP = "up"  # there is a session, and was none
    DOWN = "down"  # nothing is heard any more, or the session or the peer has gone
    MOVED = "moved"  # it has another address


class Result(StrEnum):
    """What became of a hook that was to be run; as in ``status`` and the metrics."""

    DONE = "done"
    FAILED = "failed"  # it could not be started, or ended with another code than 0
    KILLED = "killed"  # it took too long
    SKIPPED = "skipped"  # too much happened before it


_UP = frozenset({EventKind.ACK_RECEIVED, EventKind.ESTABLISHED})
_DOWN = frozenset({EventKind.SILENT, EventKind.GAVE_UP, EventKind.EXPIRED})


@frozen
class _Run:
    """One run of a hook that is due."""

    peer: str
    happening: Happening
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def subject(self) -> str:
        return _subject(self.happening, self.peer)


def _subject(happening: Happening, peer: str) -> str:
    return f"hook on_{happening} of {peer}"


@define(eq=False)
class _Followed:
    """A peer with hooks."""

    hooks: HookSettings
    up: bool = False
    endpoint: str = ""
    waiting: deque[_Run] = field(factory=deque)
    working: bool = False  # a task runs what waits


class Hooks:
    """Runs the hooks of the peers that have some.

    Args:
      interface: that of the tunnel.
      hooks_of: the hooks of a peer by its name; None if it has none, or is none.
      journal: told what goes wrong.
    """

    def __init__(
        self,
        interface: str,
        hooks_of: Callable[[str], HookSettings | None],
        journal: Journal,
    ) -> None:
        self.counts = dict.fromkeys(map(str, Result), 0)
        self._interface = interface
        self._hooks_of = hooks_of
        self._journal = journal
        self._followed: dict[str, _Followed] = {}
        self._places = trio.CapacityLimiter(AT_ONCE)
        self._nursery: trio.Nursery | None = None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Run hooks until cancelled; those that run then are killed."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError

    def on_event(self, event: Event) -> None:
        """See whether a hook is due because of what happened to a peer."""
        name = event.peer
        hooks = None if name is None else self._hooks_of(name)
        if name is None or hooks is None:
            return
        peer = self._followed.setdefault(name, _Followed(hooks))
        peer.hooks = hooks
        if event.remote is not None:
            peer.endpoint = address(event.remote)
        if event.kind in _UP and not peer.up:
            peer.up = True
            self._due(name, peer, Happening.UP)
        elif event.kind in _DOWN and peer.up:
            peer.up = False
            self._due(name, peer, Happening.DOWN)
        elif event.kind is EventKind.MOVED and peer.up:
            self._due(name, peer, Happening.MOVED)

    def changed(self, name: str) -> None:
        """A peer has other settings: what is wrong with its hooks may be mended."""
        for happening in Happening:
            self._journal.troubles.pop(_subject(happening, name), None)
        if self._hooks_of(name) is None:
            self._followed.pop(name, None)

    def removed(self, name: str) -> None:
        """A peer is none any more: its last hook undoes what the others did."""
        peer = self._followed.get(name)
        self.changed(name)
        if peer is not None and peer.up:
            self._due(name, peer, Happening.DOWN)

    def _due(self, name: str, peer: _Followed, happening: Happening) -> None:
        command = getattr(peer.hooks, f"on_{happening}")
        if not command or self._nursery is None:
            return
        environment = {
            "PATH": PATH,
            "LC_ALL": "C.UTF-8",
            "ALPHA_TRIO_PEER": name,
            "ALPHA_TRIO_EVENT": str(happening),
            "ALPHA_TRIO_ENDPOINT": peer.endpoint,
            "ALPHA_TRIO_INTERFACE": self._interface,
        }
        run = _Run(name, happening, command, environment)
        if len(peer.waiting) >= WAITING:
            self._tell(peer.waiting.popleft(), Result.SKIPPED, "too many are due")
        peer.waiting.append(run)
        if not peer.working:
            peer.working = True
            self._nursery.start_soon(self._work, peer)

    async def _work(self, peer: _Followed) -> None:
        """Run what waits for one peer, one after the other."""
        try:
            while peer.waiting:
                async with self._places:
                    run = peer.waiting.popleft()
                    result, why = await _carry_out(run)
                self._tell(run, result, why)
        finally:
            peer.working = False

    def _tell(self, run: _Run, result: Result, why: str) -> None:
        self.counts[result] += 1
        if result is Result.DONE:
            if run.subject in self._journal.troubles:
                self._journal.recovered(run.subject)
            return
        sentence = (
            f"{run.subject}: {result}: {why}; look at {run.command[0]}, and at its "
            "rights"
        )
        self._journal.complain(run.subject, sentence, f"hook-{result}")
        if run.peer not in self._followed:  # there is nobody any more to mend it for
            self._journal.troubles.pop(run.subject, None)


async def _carry_out(run: _Run) -> tuple[Result, str]:
    """Run a hook to its end; what came of it, and why."""
    try:
        process = await trio.lowlevel.open_process(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=run.environment,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        return Result.FAILED, _refused(error)
    written = bytearray()
    try:
        with trio.move_on_after(SECONDS) as patience:
            await _follow(process, written)
    finally:
        _kill(process)
        with trio.move_on_after(REAP_SECONDS, shield=True):
            if process.stdout is not None:
                await process.stdout.aclose()
            await process.wait()
    said = _shown(written)
    if patience.cancelled_caught:
        return Result.KILLED, f"it did not end within {SECONDS:g} s{said}"
    if process.returncode:
        return Result.FAILED, f"it ended with {process.returncode}{said}"
    return Result.DONE, ""


async def _follow(process: trio.Process, written: bytearray) -> None:
    """Return when it has ended, with the first of what it wrote."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen, process, written)
        await process.wait()
        # What it wrote last may still be in the pipe, and others may hold that open.
        nursery.cancel_scope.deadline = trio.current_time() + REST_SECONDS


async def _listen(process: trio.Process, written: bytearray) -> None:
    assert process.stdout is not None
    with suppress(trio.ClosedResourceError):
        async with process.stdout as pipe:
            while (room := OUTPUT - len(written)) > 0:
                more = await pipe.receive_some(room)
                if not more:
                    return
                written += more


def _kill(process: trio.Process) -> None:
    """End it, and all it has started, unless it has ended by itself."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _refused(error: Exception) -> str:
    return refusal(error) or str(error)


def _shown(written: bytearray) -> str:
    """Its first line as far as it can be shown, after what is said of it."""
    first, *_ = written.decode(errors="replace").strip().splitlines() or [""]
    shown = "".join(char if char.isprintable() else "?" for char in first[:SHOWN])
    return f" ({shown})" if shown else ""
