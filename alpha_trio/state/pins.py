"""The keys that peers showed at the first contact, in memory and on disk."""

from __future__ import annotations

import trio

from alpha_trio.errors import StateError
from alpha_trio.journal import Journal
from alpha_trio.state.store import PeerStore


class Pins:
    """A pin holds from the moment it is in ``keys``; ``save`` makes it last.

    Saves follow one another, or an older state might be saved last.
    """

    def __init__(self, store: PeerStore, journal: Journal) -> None:
        self.keys: dict[str, bytes] = {}  # by the peer's name
        self._store = store
        self._journal = journal
        self._saved: dict[str, bytes] = {}
        self._saving = trio.Lock()

    async def load(self) -> None:
        """Take what was saved.  Raises StateError."""
        self.keys = await trio.to_thread.run_sync(self._store.pins)
        self._saved = dict(self.keys)

    async def save(self) -> None:
        """Keep all pins; if that fails they hold until the next start."""
        try:
            async with self._saving:
                if self.keys == self._saved:
                    return  # a thousand first contacts need no thousand saves
                await self._write(dict(self.keys))
        except StateError as error:
            self._journal.failure("pinned keys", "saving failed", str(error))
        else:
            self._journal.recovered("pinned keys")

    async def forget(self, name: str) -> bool:
        """Whether there was a pin.  Raises StateError; then it holds on."""
        async with self._saving:
            if name not in self.keys:
                return False
            await self._write({n: key for n, key in self.keys.items() if n != name})
            self.keys.pop(name, None)  # others may have been pinned meanwhile
            return True

    async def _write(self, keys: dict[str, bytes]) -> None:
        await trio.to_thread.run_sync(self._store.save_pins, keys)
        self._saved = keys
