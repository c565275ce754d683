"""What works on a file alone, without a daemon: check, import-wg, peers to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpha_trio.errors import ConfigError

from . import toml
from .app import PATH, Command
from .words import counted


@click.command(cls=Command)
@click.argument("file", required=False, type=PATH)
def check(file: str | None) -> None:
    """Check the configuration in FILE, or the one the daemon would read, and no more.

    FILE is '-' for standard input.  Every mistake is named, each in a line of its own;
    where the file is no TOML, only the first.
    """
    from alpha_trio.settings import DEFAULT_CONFIG, load_settings

    try:
        settings = load_settings(
            Path(file) if file else None, {}, given_by="the name", pipe=True
        )
    except ConfigError as error:
        raise _but_the_last_told(error) from None
    if settings.config_file is None:
        click.echo(f"There is no {DEFAULT_CONFIG}, and none is needed.")
        return
    peers = counted(len(settings.peers), "peer")
    click.echo(f"The configuration is good; it has {peers}.")


def _but_the_last_told(error: ConfigError) -> ConfigError:
    """The last line, which is yet to be printed, as the one of other commands is."""
    for line in error.lines[:-1]:
        click.echo(f"alpha-trio: {line}", err=True)
    return ConfigError(error.lines[-1])


def peers_in(file: str) -> dict[str, dict[str, Any]]:
    """The settings, by name, of the peers in a file.  Raises ConfigError."""
    from alpha_trio.settings import load_peers, peer_values

    try:
        return {peer.name: peer_values(peer) for peer in load_peers(Path(file))}
    except ConfigError as error:
        raise _but_the_last_told(error) from None


@click.command("import-wg", cls=Command)
@click.argument("file", type=PATH)
def import_wireguard(file: str) -> None:
    """Print the WireGuard configuration in FILE as one of ours, as far as it can be.

    FILE is as wg-quick reads it, or '-' for standard input.  What means nothing here,
    or something else, is left out; a line for each such thing says why.  No secret is
    printed.
    """
    from alpha_trio import wireguard

    found = wireguard.convert(Path(file))
    tables = [
        "".join(f"{line}\n" for line in toml.pairs(found.values)),
        *(toml.table([name], values) for name, values in found.tables.items()),
        *(
            toml.table(["peers", peer.name], peer.values, peer.comment)
            for peer in found.peers
        ),
    ]
    click.echo("\n".join(filter(None, tables)), nl=False)
    for remark in found.remarks:
        click.echo(remark, err=True)
