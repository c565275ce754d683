"""``--tab``: a line for each peer, for scripts that have no JSON.

What the columns are stands in docs/control.md; new ones come at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

Document = Mapping[str, Any]

NOTHING = "-"

_STATUS = (
    "name",
    "state",
    "endpoint",
    "key",
    "mode",
    "configured_mode",
    "mtu",
    "rtt_ms",
    "latest_handshake_seconds",
    "latest_receive_seconds",
    "tx_packets",
    "tx_bytes",
    "rx_packets",
    "rx_bytes",
)

STATUS: Mapping[str, Callable[[Document], object]] = {
    **{column: itemgetter(column) for column in _STATUS},
    "rounds": lambda peer: sum(peer["rounds"].values()),
    "drops": lambda peer: sum(peer["drops"].values()),
    "allowed": itemgetter("allowed"),
    "reason": itemgetter("reason"),
}
"""The columns of ``status --tab``, and what they hold of a peer."""

LIST = (
    "name",
    "origin",
    "endpoint",
    "port",
    "key",
    "key_source",
    "allow",
    "only",
    "keepalive",
    "mode",
    "reliable",
    "early",
    "mtu",
    "psk",
)
"""Those of ``peers list --tab``; a setting that is not there has its default."""


def status_lines(peers: Iterable[Document]) -> Iterator[str]:
    for peer in _sorted(peers):
        yield _line(read(peer) for read in STATUS.values())


def list_lines(peers: Iterable[Document]) -> Iterator[str]:
    for peer in _sorted(peers):
        yield _line(peer.get(column) for column in LIST)


def _sorted(peers: Iterable[Document]) -> list[Document]:
    """In an order that does not depend on who was added when."""
    return sorted(peers, key=itemgetter("name"))


def _line(values: Iterable[object]) -> str:
    return "\t".join(map(_cell, values))


def _cell(value: object) -> str:
    """A value without tabs and line ends: they are written as escapes."""
    if isinstance(value, bool):
        value = "on" if value else "off"
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    text = "" if value is None else str(value).replace("\\", "\\\\")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escaped(char) for char in text)
    return text or NOTHING


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
