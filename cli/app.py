"""What all commands share: the socket option, and errors as one line and a code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NoReturn

import click

from alpha_trio.errors import AlphaTrioError
from alpha_trio.rpc import DEFAULT_SOCKET

from .client import Client

INTERRUPTED = 130  # what a shell makes of a command that Ctrl-C ended

# What writing fails with, and hardly anything else that a command does.  EPIPE is not
# among them: whoever reads has had enough, as head has, and click ends us quietly.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_SOCKET = f"{__name__}.socket"


class Command(click.Command):
    """A command that takes --socket, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(socket_option())


class Group(click.Group):
    """Commands that take --socket, before or after the command's name."""

    command_class = Command
    group_class: type[click.Group] | type[type] = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(socket_option())


class Program(Group):
    """The outermost group: reads the environment and turns errors into exit codes."""

    group_class = Group

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Only here: as an option of each command the environment would win over
        # a --socket before the command's name.
        self.params[-1].envvar = "ALPHA_TRIO_SOCKET"

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except AlphaTrioError as error:
            _fail(error)
        except OSError as error:  # here and not in invoke: --help writes, too
            if error.errno not in _UNWRITABLE:
                raise
            _discard_output()
            _fail(AlphaTrioError(f"cannot write the output: {error.strerror}"))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def _fail(error: AlphaTrioError) -> NoReturn:
    click.echo(f"alpha-trio: {' '.join(str(error).splitlines())}", err=True)
    sys.exit(error.exit_code)


def _discard_output() -> None:
    """Let what could not be written go nowhere; Python would try again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def socket_option() -> click.Option:
    return click.Option(
        ["--socket"],
        metavar="PATH",
        help=f"Control socket of the daemon [{DEFAULT_SOCKET}].",
        expose_value=False,
        callback=_remember_socket,
    )


def _remember_socket(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    if path:
        ctx.meta[_SOCKET] = path


def given_socket() -> str | None:
    """The socket that was named by option or environment, if any."""
    path: str | None = click.get_current_context().meta.get(_SOCKET)
    return path


def connect() -> Client:
    return Client(given_socket() or DEFAULT_SOCKET)
