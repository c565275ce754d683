"""Random bytes, as they are handed to the core, and choices made by them."""

from __future__ import annotations

from collections.abc import Callable

RandomBytes = Callable[[int], bytes]
"""So many bytes that nobody can foretell."""


def any_of(count: int, random: RandomBytes) -> int:
    """A number below ``count``, by chance."""
    return int.from_bytes(random(4)) % count
