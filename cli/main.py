"""The commands.  Those that need no daemon are in local.py."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import Any

import click

import alpha_trio
from alpha_trio.errors import AlphaTrioError, NoDaemon, TimedOut

from . import files, local, transfer
from .app import (
    PATH,
    PATH_OR_NOTHING,
    Program,
    connect,
    refuse_odd_number,
    status_of,
)
from .complete import MODES, SWITCH, PeerName, Words
from .transfer import take_over
from .words import event_line, plain_warning, restart_needed, trust

LONGEST_WAIT = 1_000_000.0  # seconds; a socket's timeout has to be below 2^31 ms

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, for programs."
)
as_tab = click.option(
    "--tab",
    "as_tab",
    is_flag=True,
    help="Print a line for each peer, its columns parted by tabs, for scripts.",
)
peer_name = click.argument("name", type=PeerName())


class Seconds(click.FloatRange):
    """A time within limits; NaN is beyond none of them, but no time either."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        refuse_odd_number(self, value, param, ctx)
        seconds = float(super().convert(value, param, ctx))
        if isnan(seconds):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return seconds


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(alpha_trio.__version__, prog_name="alpha-trio")
def main() -> None:
    """An IP tunnel over UDP whose packets every hop on the way can check."""


main.add_command(local.run)
main.add_command(local.cleanup)
main.add_command(local.doctor)
main.add_command(local.keygen)
main.add_command(files.check)
main.add_command(files.import_wireguard)


# Peers


@main.group()
def peers() -> None:
    """Add, change, remove and list peers; effective at once, and durable."""


peers.add_command(transfer.export)
peers.add_command(transfer.import_)


def _switch(
    context: click.Context, option: click.Parameter, typed: str | None
) -> bool | str | None:
    """The setting behind "on" and "off"; an empty text, or none, stays as it is."""
    if not typed:
        return typed
    if typed not in SWITCH:
        raise click.BadParameter(f"{typed!r} is neither 'on' nor 'off'")
    return typed == "on"


def _mode(
    context: click.Context, option: click.Parameter, typed: str | None
) -> str | None:
    """A mode; "alpha" is another word for the default."""
    if typed and typed not in (*MODES, "alpha"):
        raise click.BadParameter(f"{typed!r} is none; use {', '.join(MODES)}")
    return typed


def _size(
    context: click.Context, option: click.Parameter, typed: str | None
) -> int | str | None:
    """The setting behind a number or "auto"; whether it can be is the daemon's word."""
    whole = typed and typed.isascii() and typed.isdecimal()
    return int(typed) if typed and whole else typed


def _secret(
    context: click.Context, option: click.Parameter, path: str | None
) -> str | None:
    """What is in the file; an empty text, or none, stays as it is.

    Read here, not by the daemon: it may not see our files, or not have our rights.
    """
    if context.resilient_parsing or not path:  # the shell asks what could come next
        return path
    if path != "-" and path.isprintable():  # remembered for an export
        context.params["psk_file"] = os.path.abspath(path)
    return local.pre_shared(path)


def peer_options(function: Callable[..., None]) -> Callable[..., None]:
    """The settings of a peer.  An option not given is None or ()."""
    for option in (
        click.option(
            "--keepalive",
            type=Seconds(),
            metavar="SECONDS",
            help="Send a keepalive so often, to hold a way through NAT open; 0, the "
            "default, sends none.",
        ),
        click.option(
            "--only",
            multiple=True,
            metavar="PROTO[/PORT[-PORT]]",
            help="Lead only this traffic into the tunnel; may be repeated.",
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="PREFIX",
            help="Send what goes to these addresses to the peer, and accept it from "
            "there; may be repeated.  Without it, the peer's own address.",
        ),
        click.option(
            "--mode",
            type=Words(*MODES),
            callback=_mode,
            metavar="MODE",
            help="Protect packets so: adaptive, the default, in the way that suits "
            "each round; n, c, m or cm, all in one way, for measuring; plain, not at "
            "all, if both sides ask for it.",
        ),
        click.option(
            "--reliable",
            type=Words(*SWITCH),
            callback=_switch,
            metavar="on|off",
            help="Repeat packets until the peer acknowledges them; off by default.",
        ),
        click.option(
            "--early",
            type=Words(*SWITCH),
            callback=_switch,
            metavar="on|off",
            help="Let small packets travel before the peer has agreed to them, so that "
            "they arrive half a round trip after they were sent; on by default.",
        ),
        click.option(
            "--mtu",
            type=Words("auto"),
            callback=_size,
            metavar="N|auto",
            help="Send inner packets of so many bytes at most; auto, the default, "
            "finds out by probes what the path takes.",
        ),
        click.option(
            "--psk-file",
            "psk",
            type=PATH_OR_NOTHING,
            callback=_secret,
            metavar="PATH",
            help="Read the pre-shared key of both hosts from this file; '-' is "
            "standard input.",
        ),
        click.option(
            "--key",
            metavar="KEY",
            help="Demand this public key of the peer; without it, the one it shows at "
            "the first contact.",
        ),
        click.argument("endpoint", required=False, metavar="[ENDPOINT[:PORT]]"),
    ):
        function = option(function)
    return function


@peers.command("add")
@click.argument("name")
@peer_options
@take_over
def add(name: str, take_over: bool, **settings: Any) -> None:
    """Add the peer NAME at ENDPOINT; without ENDPOINT the NAME is looked up."""
    args = {"name": name, "settings": given(settings), "take_over": take_over}
    with connect() as client:
        answer = client.call("peers.add", args)
    if answer["added"]:
        click.echo(f"Peer {name} added. {trust(settings['key'], 'first')}")
    else:
        click.echo(f"Peer {name} was there already, with the same settings.")
    transfer.say_notes(answer)
    warn_of_plain(name, settings["mode"])


@peers.command("set")
@peer_name
@peer_options
@take_over
def change(name: str, take_over: bool, **settings: Any) -> None:
    """Change the named settings of the peer NAME; an empty text ('') empties one.

    An empty key forgets the pinned one, too: the next contact is trusted.
    A new pre-shared key, or none (--psk-file ''), ends the session.
    """
    values = given(settings)
    if not values:
        raise click.UsageError("name at least one setting to change")
    args = {"name": name, "settings": values, "take_over": take_over}
    with connect() as client:
        answer = client.call("peers.set", args)
    trusted = f" {trust(values['key'], 'next')}" if "key" in values else ""
    click.echo(f"Peer {name} changed.{trusted}")
    transfer.say_notes(answer)
    warn_of_plain(name, settings["mode"])


def warn_of_plain(name: str, mode: str | None) -> None:
    if mode == "plain":
        click.echo(plain_warning(name), err=True)


@peers.command()
@peer_name
def remove(name: str) -> None:
    """Remove the peer NAME."""
    with connect() as client:
        client.call("peers.remove", {"name": name})
    click.echo(f"Peer {name} removed.")


peers.add_command(remove, "del")


@peers.command("list")
@as_json
@as_tab
def list_peers(as_json: bool, as_tab: bool) -> None:
    """List the peers, their settings, and the fingerprints of their keys."""
    one_form(json=as_json, tab=as_tab)
    with connect() as client:
        listed = client.call("peers.list")
    if as_json:
        print_json({"schema": 1, "peers": listed})
        return
    if as_tab:
        from .tab import list_lines

        print_lines(list_lines(listed))
        return
    from . import render
    from .screen import show

    show(*render.peers_table(listed))


@peers.command("show")
@peer_name
@as_json
def show_peer(name: str, as_json: bool) -> None:
    """Show the settings of the peer NAME and its key."""
    with connect() as client:
        peer = client.call("peers.show", {"name": name})
    if as_json:
        print_json({"schema": 1, **peer})
        return
    from . import render
    from .screen import show

    show(*render.settings_page(peer))


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were named; an empty text stands for an empty setting."""
    return {
        key: _emptied(value)
        for key, value in settings.items()
        if value is not None and value != ()
    }


def _emptied(value: Any) -> Any:
    if isinstance(value, tuple):
        return [item for item in value if item]
    return None if value == "" else value


# What happens


@main.command()
@click.argument("name", required=False, type=PeerName())
@as_json
@as_tab
@click.option(
    "--watch",
    is_flag=True,
    help="Refresh in place until Ctrl-C, also while the daemon starts again.",
)
def status(name: str | None, as_json: bool, as_tab: bool, watch: bool) -> None:
    """Show the daemon and its peers, or the peer NAME in detail."""
    one_form(json=as_json, tab=as_tab, watch=watch)
    if watch:
        watch_status(name)
        return
    with connect() as client:
        document = status_of(client, name)
    if as_json:
        print_json(document if name is None else document["peers"][0])
        return
    if as_tab:
        from .tab import status_lines

        print_lines(status_lines(document["peers"]))
        return
    from . import render
    from .screen import show

    if name is None:
        show(*render.status_page(document))
    else:
        show(*render.peer_page(document, document["peers"][0]))


def watch_status(name: str | None) -> None:
    if not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal; use --json, or monitor")
    from .watch import watch

    with suppress(KeyboardInterrupt):
        watch(name)


@main.command()
@as_json
def monitor(as_json: bool) -> None:
    """Print events as they happen, one per line, until Ctrl-C."""
    with connect() as client, suppress(KeyboardInterrupt):
        for event in client.events("monitor"):
            click.echo(json.dumps(event) if as_json else event_line(event))


@main.command()
@peer_name
@click.option(
    "--timeout",
    type=Seconds(0, LONGEST_WAIT, min_open=True),
    metavar="SECONDS",
    help="Give up after so long; without it, never.",
)
def wait(name: str, timeout: float | None) -> None:
    """Ask the peer NAME for a session, unless there is one, and wait for it."""
    with connect() as client:
        try:
            next(client.events("wait", {"name": name}, timeout=timeout), None)
        except TimedOut:
            raise TimedOut(
                f"no session with {name} within {timeout:g} s: "
                f"'alpha-trio status {name}' says why"
            ) from None


@main.command()
@peer_name
@as_json
@click.option(
    "--seconds",
    type=Seconds(0, 3600),
    default=2.0,
    metavar="SECONDS",
    help="Compare for so long, by default 2; 0 compares all since the session began.",
)
@click.option(
    "--svg",
    type=PATH,
    metavar="FILE",
    help="Draw it into this file, as SVG; '-' is standard output.",
)
def trace(name: str, as_json: bool, seconds: float, svg: str | None) -> None:
    """Show the relays on the way to the peer NAME, and where packets get lost."""
    one_form(json=as_json, svg=svg is not None)
    with connect() as client:
        (document,) = client.events("trace", {"name": name, "seconds": seconds})
    if as_json:
        print_json(document)
        return
    if svg is not None:
        from . import picture

        write(svg, picture.svg(document))
        return
    from . import render
    from .screen import show

    show(*render.trace_page(document))


@main.command()
def metrics() -> None:
    """Print the state as Prometheus text."""
    with connect() as client:
        document = status_of(client)
    from .metrics import metrics_text

    click.echo(metrics_text(document), nl=False)


# The daemon itself


@main.command()
def reload() -> None:
    """Apply what has changed in the configuration file."""
    with connect() as client:
        changes = client.call("reload")
    later = changes.pop("restart", ())
    lines = [f"{how}: {', '.join(names)}" for how, names in changes.items() if names]
    if lines or not later:
        click.echo("; ".join(lines) or "Nothing has changed.")
    if later:
        click.echo(restart_needed(later))


@main.command()
def stop() -> None:
    """Stop the daemon and wait until it has ended."""
    with connect() as client:
        client.stop()


@main.group()
def key() -> None:
    """Show the key of this host, or make one to share with another."""


@key.command("show")
@local.settings_options
@as_json
def show_key(config: str | None, state_dir: str | None, as_json: bool) -> None:
    """Show the public key of this host.

    If no daemon answers, it is read from the state directory.
    """
    try:
        with connect() as client:
            key = client.call("status")["key"]
    except NoDaemon as error:
        key = local.saved_key(config, state_dir)
        if key is None:
            raise NoDaemon(
                f"{error}; to make the key of this host before the first start, use "
                "'alpha-trio keygen'"
            ) from None
    if as_json:
        print_json({"key": key})
    else:
        click.echo(key)


@key.command("psk")
def new_psk() -> None:
    """Print a new pre-shared key, for this host and one other."""
    click.echo(b64encode(os.urandom(32)))


def one_form(**asked: bool) -> None:
    """Raise UsageError if more than one form of the output was asked for."""
    forms = [f"--{form}" for form, wanted in asked.items() if wanted]
    if len(forms) > 1:
        raise click.UsageError(f"{' and '.join(forms)} do not go together: use one")


def print_lines(lines: Iterable[str]) -> None:
    click.echo("".join(f"{line}\n" for line in lines), nl=False)


def write(path: str, text: str) -> None:
    """Into a file, or to standard output."""
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise AlphaTrioError(
            f"cannot write {path}: {reason}; name a file in a folder that you may "
            "write to, or '-'"
        ) from None


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))
