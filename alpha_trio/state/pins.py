"""The keys that peers showed at the first contact, in memory and on disk."""

from __future__ import annotations

import trio

from alpha_trio.errors import StateError
from alpha_trio.journal import Journal
from alpha_trio.state.store import PeerStore
from alpha_trio.supervision import insist
from alpha_trio.threads import in_thread


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
        self._unsaved = trio.Event()

    async def load(self) -> None:
        """Take what was saved.  Raises StateError."""
        self.keys = await in_thread(self._store.pins)
        self._saved = dict(self.keys)

    def note(self) -> None:
        """Something has changed in ``keys``: it will be saved soon."""
        self._unsaved.set()

    async def keep_saved(self) -> None:
        """Save what was noted, until it succeeds each time, until cancelled."""
        meanwhile = "keys pinned now are forgotten at a restart"
        while True:
            await self._unsaved.wait()
            self._unsaved = trio.Event()
            await insist(self._save, self._journal, "pinned keys", meanwhile)

    async def save(self) -> None:
        """Keep all pins; what fails is tried again by ``keep_saved``."""
        try:
            await self._save()
        except (OSError, StateError):
            self.note()

    async def _save(self) -> None:
        async with self._saving:
            if self.keys != self._saved:  # a thousand first contacts may be one save
                await self._write(dict(self.keys))

    async def forget(self, name: str) -> bool:
        """Whether there was a pin.  Raises StateError; then it holds on."""
        async with self._saving:
            if name not in self.keys:
                return False
            await self._write({n: key for n, key in self.keys.items() if n != name})
            self.keys.pop(name, None)  # others may have been pinned meanwhile
            return True

    async def _write(self, keys: dict[str, bytes]) -> None:
        await in_thread(self._store.save_pins, keys)
        self._saved = keys
