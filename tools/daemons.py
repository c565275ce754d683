"""Daemons on hosts of the lab: ours, and other programs for as long as a block.

with Daemon(vm1) as one, Daemon(vm2) as two:
    one.cli("peers", "add", "vm2", vm2.address)
    two.cli("peers", "add", "vm1", vm1.address)
    vm1.run("ping", "-c", "1", vm2.address)
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from alpha_trio import wire
from tools.lab import Host, LabError, wait_until
from tools.warm import Warm, Warmed

PROGRAM = Path(sys.executable).with_name("alpha-trio")
_PATIENCE = 10  # seconds that a program may take to end


class Daemon:
    """``alpha-trio run`` on a host, with its own socket, state, config file and log.

    As a context manager it starts, and at the end stops and insists on exit code 0.
    """

    warm: ClassVar[Warm | None] = None  # whose forks all daemons of ours are, if any
    cores: ClassVar[int] = 1  # for those of which nothing else is said, and no relays

    def __init__(
        self, host: Host, *arguments: str, config: str = "", program: Path = PROGRAM
    ) -> None:
        """Prepare it; ``arguments`` go to ``run``, ``config`` is the config file.

        ``program``: ``alpha-trio`` of another environment, to compare with.
        """
        self.host = host
        self.program = program
        self.arguments = arguments
        self.config_file = host.directory / "alpha-trio.toml"
        self.config_file.write_text(config)
        self.log_file = host.directory / "log"
        self.environment = {
            "ALPHA_TRIO_SOCKET": str(host.directory / "run" / "control.sock"),
            "ALPHA_TRIO_STATE": str(host.directory / "state"),
        }
        if program != PROGRAM:
            # It names this checkout, whose modules would be found before its own.
            self.environment["PYTHONPATH"] = ""
        self._process: subprocess.Popen[str] | Warmed | None = None
        self._log_start = 0  # where the log of the present run begins

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        return self._running().pid

    @property
    def log(self) -> str:
        """All it has written to stderr, restarts included."""
        return self.log_file.read_text(errors="replace")

    def start(self, timeout: float = 10) -> Self:
        """Start it, again if need be, wait until it answers commands; return it."""
        with self.log_file.open("a") as log:
            self._log_start = log.tell()
            self._process = self._launch(log)
        wait_until(self._has_answered, f"{self.host.name}: daemon's answer", timeout)
        return self

    def _launch(self, log: IO[str]) -> subprocess.Popen[str] | Warmed:
        arguments = ("run", "--config", str(self.config_file), *self.arguments)
        relay = "--relay" in self.arguments or "[relay]" in self.config_file.read_text()
        if self.cores > 1 and self.program == PROGRAM and not relay:
            arguments = (*arguments, "--cores", str(self.cores))
        # A host of another kind may have a way of its own into itself.
        if self.warm is None or self.program != PROGRAM or type(self.host) is not Host:
            return self.host.popen(
                str(self.program),
                *arguments,
                stdout=log,
                stderr=log,
                env=self.environment,
                detached=True,
            )
        host, environment = self.host, self.environment
        process = self.warm.run(host.namespace, arguments, environment, log.fileno())
        host.end_with(process)
        return process

    __enter__ = start

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if self._process is None:
            return
        code = self.stop()
        if code != 0 and error is None:
            raise self._error(f"ended with {code}")

    def _has_answered(self) -> bool:
        if self._running().poll() is not None:
            raise self._error("did not start")
        try:
            self.status()
        except (OSError, wire.BadFrame):
            return False  # no socket yet, that of one killed before, or it just ended
        return True

    def stop(self, timeout: float = 10) -> int:
        """End it by SIGTERM and return its exit code; LabError after ``timeout`` s."""
        self._running().terminate()
        return self.wait(timeout)

    def wait(self, timeout: float = 10) -> int:
        """Wait for its end and return its exit code; kill it after ``timeout`` s."""
        process = self._running()
        try:
            if not _has_ended(process, timeout):
                process.kill()
                process.wait()
                raise self._error(f"did not stop in {timeout:g} s")
            return process.wait()
        finally:
            self._process = None

    def kill9(self) -> None:
        """End it without any chance to tidy up."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def reload(self, config: str) -> None:
        """Replace its config file and send SIGHUP."""
        self.config_file.write_text(config)
        self._running().send_signal(signal.SIGHUP)

    def cli(
        self, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run ``alpha-trio ARGUMENTS`` on its host against this daemon."""
        return self.host.run(
            str(self.program),
            *arguments,
            check=check,
            timeout=timeout,
            env=self.environment,
        )

    def request(self, command: str, timeout: float = 10, **values: object) -> Any:
        """Send a request to the control socket and return the first reply.

        What the command line does, without the time a program takes to start.
        Raises the daemon's error as it came, OSError when nobody answers.
        """
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(timeout)
            control.connect(self.environment["ALPHA_TRIO_SOCKET"])
            control.sendall(wire.encode_request(command, values))
            with control.makefile("rb") as replies:
                header = replies.read(wire.HEADER.size)
                length = wire.body_length_untrusted(header, wire.MAX_REPLY)
                return wire.decode_reply_untrusted(replies.read(length)).value

    def status(self) -> dict[str, Any]:
        """Return the document of ``status --json``."""
        answer: dict[str, Any] = self.request("status")
        return answer

    def wait_log(self, text: str, *, since: int = 0, timeout: float = 10) -> None:
        """Wait until ``text`` is in the log, from character ``since`` on."""
        what = f"{self.host.name}: {text!r} in the log"
        wait_until(lambda: text in self.log[since:], what, timeout)

    def _running(self) -> subprocess.Popen[str] | Warmed:
        if self._process is None:
            raise LabError(f"{self.host.name}: daemon does not run")
        return self._process

    def _error(self, what: str) -> LabError:
        with self.log_file.open(errors="replace") as log:
            log.seek(self._log_start)
            tail = "".join(log.readlines()[-20:]).rstrip()
        return LabError(f"{self.host.name}: daemon {what}\n{tail}")


def _has_ended(process: subprocess.Popen[str] | Warmed, timeout: float) -> bool:
    """Wait for the end of a process, at most ``timeout`` s.

    ``Popen.wait`` with a timeout looks every 50 ms; a daemon ends in 100, and tests and
    demos wait for hundreds of them.
    """
    if process.poll() is not None:
        return True
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(ended)


def peers_config(endpoints: Mapping[str, str]) -> str:
    """Return what a config file says of peers, name to address, that only have one."""
    return "".join(
        f'[peers.{name}]\nendpoint = "{address}"\n'
        for name, address in endpoints.items()
    )


# -- other programs -------------------------------------------------------------------


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process with the block: by SIGTERM, and kill it if that takes too long."""
    try:
        yield
    finally:
        process.terminate()
        if not _has_ended(process, _PATIENCE):
            process.kill()
        process.wait()


@contextmanager
def serving(
    host: Host,
    kind: str,
    port: int,
    *command: str,
    stdout: int | IO[Any] = subprocess.DEVNULL,
) -> Iterator[None]:
    """Let a program serve a port, of ``tcp`` or ``udp``, within the block."""
    bound = ("ss", "-Hln", f"--{kind}", "sport", "=", f":{port}")
    with ending(host.popen(*command, stdout=stdout)):
        wait_until(lambda: host.run(*bound).stdout, f"{host.name}: {kind} port {port}")
        yield
