"""Daemons from a process that has imported the program already.

Four fifths of the time a daemon takes to start go into imports, and tests start more
than a thousand.  So one process imports once, and each daemon is a fork of it: the same
program, in a host's namespace, with its own arguments, environment and files.  What is
about the start itself, or about memory, starts as a user does.

    this process   Warm --- requests, files ---> the warm one --- fork ---> daemons
                        <--- pids ---
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

from attrs import define

from tools.lab import NAMESPACES

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_MOST = 1 << 16  # bytes of a request
_FILES = 64  # more than the warm process has open
# Installed under a name that is not that of its folder.
_ENTRY = "alpha_trio_cli.entry"
_ROOT = Path(__file__).parents[1]
_libc = ctypes.CDLL(None, use_errno=True)


@define(eq=False)
class Warmed:
    """A daemon that was forked, with what of ``subprocess.Popen`` is used of one."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.  Raises subprocess.TimeoutExpired after ``timeout`` s."""
        if timeout is not None and self.poll() is None:
            with open(os.pidfd_open(self.pid)) as ended:
                poll = select.poll()
                poll.register(ended, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    raise subprocess.TimeoutExpired("a warm daemon", timeout)
        code = self._reap(0)
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """End it by SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@define(eq=False)
class Warm:
    """The process that has imported the program, from outside.

    Whoever starts it has to adopt orphans (PR_SET_CHILD_SUBREAPER), as daemons are its
    grandchildren, and then ours.
    """

    _socket: socket.socket
    _process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> Self:
        """Start it; it ends with this process at the latest."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (sys.executable, "-m", "tools.warm", str(theirs.fileno()))
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_ROOT)
        return cls(ours, process)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()

    def run(
        self,
        namespace: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: int,
    ) -> Warmed:
        """``alpha-trio ARGUMENTS`` in a namespace, writing to an open file."""
        request = {
            "namespace": namespace,
            "arguments": [*arguments],
            "environment": {**os.environ, **environment},
            "directory": os.getcwd(),
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [log])
        return Warmed(int(self._socket.recv(_MOST)))


# -- in the warm process --------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Start daemons until nobody asks any more."""
    while True:
        data, files, _, _ = socket.recv_fds(control, _MOST, 1)
        if not data:
            return
        # A grandchild has no parent once its own has ended, and is adopted.
        told, tells = os.pipe()
        child = os.fork()
        if not child:
            daemon = os.fork()
            if not daemon:
                control.close()
                _become(json.loads(data), files[0])
            os.write(tells, str(daemon).encode())
            os._exit(0)
        os.waitpid(child, 0)
        control.send(os.read(told, _MOST))
        for file in (told, tells, files[0]):
            os.close(file)


def _become(request: Mapping[str, Any], log: int) -> NoReturn:
    """Be the program, as ``ip netns exec NAMESPACE alpha-trio ARGUMENTS``."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["directory"])
        _enter(request["namespace"])
        nothing = os.open(os.devnull, os.O_RDWR)
        for target, source in enumerate((nothing, log, log)):
            os.dup2(source, target)
        os.closerange(3, _FILES)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["alpha-trio", *request["arguments"]]
        code = _main()
    finally:
        os._exit(code)


def _main() -> int:
    try:
        import_module(_ENTRY).main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _enter(namespace: str) -> None:
    """As ip-netns does, with a /sys that shows the namespace's own devices."""
    with (NAMESPACES / namespace).open() as file:
        _check(_libc.setns(file.fileno(), _CLONE_NEWNET))
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(b"", b"/", b"none", _MS_SLAVE | _MS_REC, None))
    _check(_libc.umount2(b"/sys", _MNT_DETACH))
    _check(_libc.mount(namespace.encode(), b"/sys", b"sysfs", 0, None))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _import_all() -> None:
    with import_module(_ENTRY).importing():
        for name in ("alpha_trio_cli.main", "alpha_trio.daemon"):
            import_module(name)


if __name__ == "__main__":
    # An interrupt is for who started us, and daemons have sessions of their own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)
