"""What the shell is told to complete: names of peers, modes, switches.

Nothing here refuses what was typed: which peers there are, the daemon knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from alpha_trio.errors import AlphaTrioError
from alpha_trio.rpc import Client

from .app import socket_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

MODES = ("adaptive", "n", "c", "m", "cm", "plain")
SWITCH = ("on", "off")

PATIENCE = 1.0  # seconds; somebody waits at a prompt


class Words(click.types.StringParamType):
    """A text that is most often one of a few."""

    name = "text"

    def __init__(self, *words: str) -> None:
        self._words = words

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _beginning(incomplete, self._words)


class PeerName(click.types.StringParamType):
    """The name of a peer that the daemon has."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            peers = Client(socket_of(ctx), PATIENCE).peers()
        except AlphaTrioError:  # an error text would end up in the line being typed
            return []
        return _beginning(incomplete, [peer["name"] for peer in peers])


def _beginning(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
