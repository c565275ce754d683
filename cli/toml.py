"""Settings as TOML, in the form in which a person would write them.

Only what settings are made of: texts, numbers, switches, lists of texts.  The same
settings always give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def table(name: Iterable[str], values: Mapping[str, Any], comment: str = "") -> str:
    """A table with its head; a comment, of any number of lines, comes below that."""
    lines = [f"[{'.'.join(map(_key, name))}]", *pairs(values)]
    remarks = [f"# {line}" for line in comment.splitlines()]
    return "".join(f"{line}\n" for line in (lines[0], *remarks, *lines[1:]))


def pairs(values: Mapping[str, Any]) -> list[str]:
    """A line for each value."""
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items()]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    """JSON's texts are TOML's, but for one character that it does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
