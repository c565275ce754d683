"""The lanes' processes: forked from the front before it runs anything.

They share its memory as far as nobody writes to it, need no interpreter of their own,
and end when it does: then nobody has the other end of their channel.  One that is stuck
would not notice; but the kernel does.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

import trio
from attrs import define

from alpha_trio.errors import StartError
from alpha_trio.lanes import lane
from alpha_trio.lanes.channel import Channel
from alpha_trio.lanes.inbox import Inbox
from alpha_trio.net.host import end_with_parent
from alpha_trio.settings import Settings

_LEAVE = 1.0  # s a lane may take to end when the front has left it

_OF_THE_FRONT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A service manager and a terminal send these to all; the front tells the lanes."""


@define(eq=False)
class Crew:
    """The processes, and the front's ends of their channels, by number."""

    channels: list[socket.socket]
    pids: list[int]

    @classmethod
    def fork(cls, settings: Settings) -> Crew:
        """Make the processes.  Only the front returns from this.

        Call it with one thread and outside of trio.  Raises StartError.
        """
        crew = cls([], [])
        try:
            crew._fork(settings)
        except OSError as error:
            crew.end()
            raise StartError(
                f"cannot make {settings.cores} processes ({error.strerror}): set cores "
                "to less"
            ) from None
        return crew

    def _fork(self, settings: Settings) -> None:
        channels, inboxes = [], []
        for _ in range(settings.cores):
            channels.append(Channel.pair())
            self.channels.append(channels[-1][0])
            inboxes.append(Inbox.pair())
        gc.freeze()  # what all of them have is not to be copied by being looked at
        for number in range(settings.cores):
            pid = os.fork()
            if pid == 0:
                for each, (here, there) in enumerate(channels):
                    here.close()  # or nobody would see that the front is gone
                    if each != number:
                        there.close()
                others = [write for _, write in inboxes]
                inbox = Inbox(inboxes[number][0], others)
                _be(number, settings, channels[number][1], inbox)
            self.pids.append(pid)
        for _, there in channels:
            there.close()
        for ends in inboxes:
            for end in ends:
                end.close()

    def end(self) -> None:
        """Leave the lanes, and see that they end; after this they are gone."""
        for channel in self.channels:
            channel.close()
        until = monotonic() + _LEAVE
        for pid in self.pids:
            _reap(pid, until)
        self.pids.clear()


def _be(number: int, settings: Settings, sock: socket.socket, inbox: Inbox) -> None:
    """Be a lane until the front is gone; never returns."""
    code = 1
    try:
        end_with_parent()
        for each in _OF_THE_FRONT:
            signal.signal(each, signal.SIG_IGN)
        with suppress(OSError):  # for who looks at the processes
            Path("/proc/self/comm").write_text(f"alpha-trio:{number}")
        trio.run(lane.run, number, settings, sock, inbox)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _reap(pid: int, until: float) -> None:
    """Wait until our child has ended, and end it if it does not in time."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, until - monotonic()) * 1000):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
