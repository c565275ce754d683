"""What the demos have in common: commands and their output as a user sees them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools.daemons import Daemon
from tools.lab import Host, LabError


def heading(text: str) -> None:
    """Begin a part of the demo."""
    line = f"== {text}"
    print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)


def show_command(host: Host, command: str) -> None:
    """Print a command as typed on a host."""
    print(f"{host.name}# {command}", flush=True)


def show(output: str) -> None:
    """Print what a command said, set apart from the command."""
    for line in output.strip().splitlines():
        print(f"    {line}".rstrip(), flush=True)


def alpha_trio(daemon: Daemon, *arguments: str) -> None:
    """Run a command of ours and show both it and its output."""
    show_command(daemon.host, f"alpha-trio {' '.join(arguments)}")
    show(daemon.cli(*arguments).stdout)


def start(daemons: Sequence[Daemon], *options: str) -> None:
    """Start ``alpha-trio run`` on each host."""
    for daemon in daemons:
        daemon.arguments = options
        show_command(daemon.host, " ".join(("alpha-trio run", *options, "&")))
        daemon.start()


def stop(daemons: Sequence[Daemon], before: Sequence[str]) -> None:
    """Stop all and see that the hosts are as they were before."""
    heading("All stop; addresses, rules, routes and settings are as before")
    for daemon, snapshot in zip(daemons, before, strict=True):
        alpha_trio(daemon, "stop")
        code = daemon.wait()
        if code != 0 or daemon.host.snapshot() != snapshot:
            raise LabError(
                f"{daemon.host.name}: exit code {code}, or something is left"
            )
