"""One finding of the doctor."""

from __future__ import annotations

from attrs import frozen


@frozen
class Check:
    """One fact about this host."""

    ok: bool | None  # None: could not be seen, or does not matter as things are
    what: str  # the fact
    remedy: str = ""  # what to do about it; empty if there is nothing to do
