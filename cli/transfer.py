"""Peers from one daemon to another, by way of a file: export and import.

What is exported could stand in a config file as it is, and the same peers are always
the same bytes.  Secrets are not in it, nor what only a config file may say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from alpha_trio.errors import UnknownPeer

from . import files, toml
from .app import PATH, Command, connect
from .complete import PeerName
from .words import plain_warning

Document = Mapping[str, Any]

_WRITTEN = (
    *("endpoint", "port", "key", "allow", "only", "keepalive", "mode", "reliable"),
    *("early", "mtu", "psk_file"),
)

_PATIENCE = 120.0  # seconds; thousands of peers take their time

_PSK = (
    "It has a psk, which is not printed and has no file: write it into one, on each "
    "host,\nand name that here as psk_file."
)
_HOOKS = "It has {}, which the config file alone can say: copy them by hand."

take_over = click.option(
    "--take-over",
    is_flag=True,
    help="Take the prefixes over from peers that have them.",
)


@click.command("export", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAMES]", type=PeerName())
@click.option(
    "--pinned",
    is_flag=True,
    help="Print the keys of the first contact, too, as if they had been configured.",
)
def export(names: tuple[str, ...], pinned: bool) -> None:
    """Print the peers, or those of these NAMES, as TOML.

    It is for 'peers import', and could stand in a config file as it is.

    No secret is in it: of a psk only the name of the file that it came from.
    """
    with connect() as client:
        peers = {peer["name"]: peer for peer in client.call("peers.list")}
    for name in names:
        if name not in peers:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )
    wanted = sorted(set(names or peers))
    click.echo("\n".join(_table(peers[name], pinned) for name in wanted), nl=False)


def _table(peer: Document, pinned: bool) -> str:
    values = {key: peer[key] for key in _WRITTEN if key in peer}
    if peer["key_source"] == "pinned" and not pinned:
        values.pop("key", None)
    return toml.table(["peers", peer["name"]], values, "\n".join(_remarks(peer)))


def _remarks(peer: Document) -> Iterable[str]:
    if "psk" in peer and "psk_file" not in peer:
        yield _PSK
    if hooks := peer.get("hooks"):
        yield _HOOKS.format(" and ".join(hooks))


@click.command("import", cls=Command)
@click.argument("file", type=PATH)
@click.option(
    "--replace",
    is_flag=True,
    help="Give peers that are there with other settings those of the file.",
)
@take_over
def import_(file: str, replace: bool, take_over: bool) -> None:
    """Add the peers of FILE, as 'peers export' prints them: all of them, or none.

    FILE is '-' for standard input.  A peer that is there keeps the psk it has, unless
    the file names another one.
    """
    peers = files.peers_in(file)
    args = {"peers": peers, "take_over": take_over, "replace": replace}
    with connect(_PATIENCE) as client:
        summary = client.call("peers.import", args)
    how = ("added", "changed", "unchanged")
    lines = [f"{word}: {', '.join(summary[word])}" for word in how if summary[word]]
    click.echo("; ".join(lines) or "There are no peers in it.")
    say_notes(summary)
    for name in (*summary["added"], *summary["changed"]):
        if peers[name].get("mode") == "plain":
            click.echo(plain_warning(name), err=True)


def say_notes(answer: Document | None) -> None:
    """What the daemon has to say about peers that it has just taken."""
    for note in (answer or {}).get("notes", ()):
        click.echo(f"Note: {note}.")
