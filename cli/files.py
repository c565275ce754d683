"""What works on a file alone, without a daemon: check, and peers to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alpha_trio.errors import ConfigError

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
        settings = load_settings(Path(file) if file else None, {}, given_by="the name")
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
