"""What all commands share: the socket option, and errors as one line and a code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import cleandoc
from io import TextIOWrapper
from typing import Any, NoReturn

import click

import alpha_trio
from alpha_trio.errors import AlphaTrioError, UnknownPeer, WrongUsage
from alpha_trio.rpc import DEFAULT_SOCKET, Client

INTERRUPTED = 130  # what a shell makes of a command that Ctrl-C ended

# What writing fails with, and hardly anything else that a command does.  EPIPE is not
# among them: whoever reads has had enough, as head has.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class _Path(click.Path):
    """Completed by the shell.  Whether a path can be used, only its user can tell.

    An empty one comes from a variable that is not set; what then was used instead
    would be another file than the one that was meant.
    """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if value == "":
            self.fail("the text is empty; fill it in or leave it out", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(readable=False)
PATH_OR_NOTHING = click.Path(readable=False)


class Whole(click.types.IntParamType):
    """A whole number; not with the signs and digits that only Python knows as well."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        refuse_odd_number(self, value, param, ctx)
        return super().convert(value, param, ctx)


def refuse_odd_number(
    kind: click.ParamType[Any],
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> None:
    """Raise BadParameter for 1_000 and for digits of other scripts."""
    if isinstance(value, str) and not (value.isascii() and "_" not in value):
        kind.fail(f"{value!r} is not a number", param, ctx)


_SOCKET = f"{__name__}.socket"
_VERSION = f"{__name__}.version"


class Command(click.Command):
    """A command that takes --socket, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(socket_option())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:  # an option without its value knows none
            error.ctx = error.ctx or ctx
            raise

    def get_short_help_str(self, limit: int = 0) -> str:
        return _first_sentence(self)


class Group(click.Group):
    """Commands that take --socket, before or after the command's name."""

    command_class = Command
    group_class: type[click.Group] | type[type] = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(socket_option())

    def get_short_help_str(self, limit: int = 0) -> str:
        return _first_sentence(self)


def _first_sentence(command: click.Command) -> str:
    """What a list of commands says of one: all of it, click would cut it off."""
    return " ".join(cleandoc(command.help or "").split("\n\n")[0].split())


class Program(Group):
    """The outermost group: reads the environment and turns errors into exit codes."""

    group_class = Group

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Only here: as an option of each command the environment would win over
        # a --socket before the command's name.
        self.params[-1].envvar = "ALPHA_TRIO_SOCKET"

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        _write_anything()
        try:
            code = super().main(*args, **kwargs | {"standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _fail(_wrong_usage(error))
        except click.Abort:
            sys.exit(INTERRUPTED)
        except AlphaTrioError as error:
            _fail(error)
        except PermissionError as error:
            _fail(_forbidden(error))
        except OSError as error:  # here and not in invoke: --help writes, too
            if error.errno not in _UNWRITABLE:
                raise
            _discard_output()
            _fail(AlphaTrioError(f"cannot write the output: {error.strerror}"))
        sys.exit(code)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _reader_may_leave():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _reader_may_leave():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (KeyError, TypeError) as error:
            if (other := ctx.meta.get(_VERSION)) in (None, alpha_trio.__version__):
                raise
            raise AlphaTrioError(
                f"the daemon is version {other}, this program {alpha_trio.__version__},"
                f" and misses {error} in what it says: restart the daemon"
            ) from error


def _write_anything() -> None:
    """Let what a terminal has no characters for be written as escapes, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Who reads the first lines only, as head does, had what he wanted."""
    try:
        yield
    except BrokenPipeError:
        _discard_output()
        sys.exit(0)


def _wrong_usage(error: click.ClickException) -> AlphaTrioError:
    """What click says in several lines, as one."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "alpha-trio"
    see = " See" if text.endswith("?") else "; see"
    return WrongUsage(f"{text[:1].lower()}{text[1:]}{see} '{name} --help'")


def _forbidden(error: PermissionError) -> AlphaTrioError:
    what = f" for {error.filename}" if error.filename else ""
    return AlphaTrioError(f"no permission{what}: run this as root")


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
        type=PATH,
        help="Talk to the daemon at this control socket; without it, the one that "
        f"ALPHA_TRIO_SOCKET names, or {DEFAULT_SOCKET}.",
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


def socket_of(context: click.Context) -> str:
    """The daemon's socket, as far as the command line was read."""
    return str(context.meta.get(_SOCKET) or DEFAULT_SOCKET)


def connect(patience: float | None = None) -> AbstractContextManager[Client]:
    """A client for a block of code: each of its calls makes a connection of its own.

    ``patience``: seconds that an answer may take, if it may take long.
    """
    return nullcontext(Client(socket_of(click.get_current_context()), patience))


def status_of(client: Client, name: str | None = None) -> dict[str, Any]:
    """The status document; with a name, that of this peer alone, or UnknownPeer."""
    args = {} if name is None else {"name": name}
    status: dict[str, Any] = client.call("status", args)
    # An upgraded program may meet the daemon of before, and that one lack something.
    click.get_current_context().meta[_VERSION] = status["version"]
    if name is not None:  # an older daemon tells of all
        named = [peer for peer in status["peers"] if peer["name"] == name]
        status["peers"] = named
        if not named:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )
    return status
