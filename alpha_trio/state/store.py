"""What a daemon has to know again after a restart: its key, added peers, pinned keys.

It lives apart from the config file: that one belongs to the user's editor, this to
the daemon.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from alpha_trio.errors import ConfigError, StateError
from alpha_trio.proto.primitives import Identity, key_text
from alpha_trio.settings import PeerSettings, check_peers, parse_peer, peer_values
from alpha_trio.settings import values as v
from alpha_trio.state.directory import StateDirectory
from alpha_trio.state.keys import load_identity

SCHEMA = 1

T = TypeVar("T")


class PeerStore:
    """The peers and keys of one daemon in its state directory.

    No second store can be opened there meanwhile.  Everything that loads or saves
    waits for the disk: call it in a worker thread.

    Args:
      state_dir: created with mode 0700 if absent.

    Raises:
      StartError: the directory cannot be used, or another daemon uses it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._directory = StateDirectory(state_dir)
        self._peers = _Document(self._directory, "peers", [], _parse_peers)
        self._pins = _Document(self._directory, "pins", {}, _parse_pins)

    def identity(self) -> Identity:
        """Who this host is; made and saved at the first start, never replaced.

        Raises:
          StartError: the key file cannot be read or trusted.
          StateError: there was none, and a new one cannot be saved.
        """
        return load_identity(self._directory)

    @property
    def peers_file(self) -> Path:
        """Where the peers are saved."""
        return self._peers.path

    def load(self) -> list[PeerSettings]:
        """The saved peers; none if nothing was saved yet.

        Raises:
          StateError: the file cannot be read or understood, or others may read the
            pre-shared keys in it.  It stays as it is.
        """
        peers = self._peers.load()
        if any(peer.psk is not None for peer in peers):
            self._directory.refuse_readers(self._peers.path.name)
        return peers

    def save(self, peers: Iterable[PeerSettings]) -> None:
        """Replace the saved peers; on return they survive a loss of power.

        Raises:
          StateError: nothing was saved, what was saved before is still there.
        """
        self._peers.save([_entry(peer) for peer in peers])

    def pins(self) -> dict[str, bytes]:
        """The keys that peers showed at the first contact, by the peer's name.

        Raises:
          StateError: the file cannot be read or understood.  It stays as it is.
        """
        return self._pins.load()

    def save_pins(self, pins: Mapping[str, bytes]) -> None:
        """Replace the pinned keys; on return they survive a loss of power.

        Raises:
          StateError: nothing was saved, what was saved before is still there.
        """
        self._pins.save({name: key_text(key) for name, key in pins.items()})

    @property
    def complaint(self) -> str | None:
        """What is wrong with the directory, and what to do; None if nothing is."""
        if not self._directory.is_gone:
            return None
        return (
            f"the state directory {self._directory.path} was removed: a restart would "
            "forget this host's key and peers; 'alpha-trio reload' saves them again"
        )

    def restore(self) -> None:
        """Make the directory anew if somebody has removed it.  Raises StateError."""
        self._directory.restore()

    def close(self) -> None:
        """Give the directory free for another daemon; may be called twice."""
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Document(Generic[T]):
    """One JSON file: a schema number, and one member that has the file's name.

    ``empty`` is the member where there is no file yet.  ``parse`` raises ConfigError
    for what it cannot understand; such a file is never replaced.
    """

    def __init__(
        self,
        directory: StateDirectory,
        member: str,
        empty: object,
        parse: Callable[[object], T],
    ) -> None:
        self._directory = directory
        self._member = member
        self._empty = empty
        self._parse = parse
        self._file = f"{member}.json"
        self._understood = False

    def load(self) -> T:
        raw = self._directory.read(self._file)
        try:
            content = self._parse(self._empty if raw is None else self._read(raw))
        except ConfigError as error:
            raise StateError(
                f"{self.path}: damaged: {error}; mend the file, or move it away to "
                "start without what it holds"
            ) from None
        self._understood = True
        return content

    def save(self, value: object) -> None:
        if not self._understood:
            self.load()
        document = {"schema": SCHEMA, self._member: value}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        self._directory.replace(self._file, text.encode())

    @property
    def path(self) -> Path:
        return self._directory.path / self._file

    def _read(self, raw: bytes) -> object:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ConfigError(str(error)) from None
        if not isinstance(document, dict):
            raise ConfigError("it holds no JSON object")
        schema = document.get("schema")
        if not isinstance(schema, int) or schema < 1:
            raise ConfigError("it has no schema number")
        if schema > SCHEMA:
            raise StateError(
                f"{self.path}: has schema {v.shown(schema)}, this version knows "
                f"{SCHEMA}: a newer one wrote it; install that or move the file away"
            )
        return document.get(self._member)


def _parse_peers(entries: object) -> list[PeerSettings]:
    """Peers from the file's content.

    Unknown keys are refused rather than carried along: they can only be typing
    errors, since a version that adds a key also raises the schema, and dropping
    one silently could drop what protects a peer.
    """
    if not isinstance(entries, list):
        raise ConfigError("it has no list of peers")
    peers = [_parse_entry(*entry) for entry in enumerate(entries, 1)]
    check_peers(peers)
    return peers


def _parse_entry(number: int, entry: object) -> PeerSettings:
    place = f"peer {number} of the list"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"{place} has no name")
    values = {key: value for key, value in entry.items() if key != "name"}
    return parse_peer(entry["name"], values, place)


def _entry(peer: PeerSettings) -> dict[str, Any]:
    return {"name": peer.name, **peer_values(peer)}


def _parse_pins(entries: object) -> dict[str, bytes]:
    if not isinstance(entries, Mapping):
        raise ConfigError("it has no table of pins")
    return {v.peer_name(name): _parse_pin(name, key) for name, key in entries.items()}


def _parse_pin(name: str, key: object) -> bytes:
    try:
        return b64decode(v.key(key))
    except ConfigError as error:
        raise ConfigError(f"pin of {v.shown(name)}: {error}") from None
