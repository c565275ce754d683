"""A WireGuard configuration as one of ours, as far as it means the same.

In comes a file as wg-quick(8) reads it; out go settings as plain values, and a line for
each thing that is left out, with the reason.  Nothing is guessed: what would do
something else here is left out, too, and no secret comes out again.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from alpha_trio.errors import ConfigError
from alpha_trio.settings import (
    IPNetwork,
    PeerSettings,
    check_peers,
    files,
    parse_peer,
    peer_values,
    values,
)

_INTERFACE = {
    "PrivateKey": "the key of a host is of another kind here; 'alpha-trio keygen' "
    "makes it",
    "ListenPort": "",
    "FwMark": "ours is 0x182; where rules of your own go by it, set mark under "
    "[routing]",
    "Address": "",
    "DNS": "name servers are not the tunnel's; set them as for any other interface",
    "MTU": "how much a path takes is found out; a peer can have an mtu",
    "Table": "the routes of the peers are in tables of our own",
    "PreUp": "",
    "PostUp": "",
    "PreDown": "",
    "PostDown": "",
    "SaveConfig": "the peers of a file are never written; those of 'alpha-trio peers "
    "add' are always kept",
    # of its applications for telephones
    "IncludedApplications": "which program sends is not looked at",
    "ExcludedApplications": "which program sends is not looked at",
}
_PEER = {
    "PublicKey": "the key of a host is of another kind here; key is what 'alpha-trio "
    "key show' prints on the peer, and without it that of the first contact is trusted",
    "PresharedKey": "a secret is not printed; make one by 'alpha-trio key psk', and "
    "name its file as psk_file on both hosts",
    "AllowedIPs": "",
    "Endpoint": "",
    "PersistentKeepalive": "",
}
"""The keys, each with the reason why it is left out, if it always is."""

_SHELL = "no shell is run; on_up and on_down of a peer name a program"
_KNOWN = {"interface": _INTERFACE, "peer": _PEER}
_KEYS = ("PrivateKey", "PublicKey", "PresharedKey")
_HEAD = re.compile(r"\[\s*(\w+)\s*\]")
_NAMED = re.compile(r"(?:(?:friendly_)?name|client|peer)\s*[:=]\s*", re.IGNORECASE)
_OFF = ("0", "off")

_COMMENT = "key = what 'alpha-trio key show' prints on this peer"


@frozen
class Peer:
    """One peer, as the config file has it."""

    name: str
    values: Mapping[str, object]
    comment: str


@define
class Converted:
    """What became of a file."""

    values: dict[str, Any] = field(factory=dict)  # of the top level
    tables: dict[str, dict[str, Any]] = field(factory=dict)
    peers: list[Peer] = field(factory=list)
    remarks: list[str] = field(factory=list)


@frozen
class _Entry:
    where: str  # FILE:LINE
    key: str
    value: str


@define
class _Section:
    where: str
    kind: str
    comments: list[str]
    entries: list[_Entry] = field(factory=list)

    def last(self, key: str) -> _Entry | None:
        """What counts of a key that takes one value."""
        found = [entry for entry in self.entries if entry.key == key]
        return found[-1] if found else None

    def all(self, key: str) -> Iterator[tuple[_Entry, str]]:
        """Each value of a key that takes a list, and may come again."""
        for entry in self.entries:
            if entry.key == key:
                for item in filter(None, map(str.strip, entry.value.split(","))):
                    yield entry, item


def convert(path: Path) -> Converted:
    """Convert a file, or standard input, for ``-``.

    Raises:
      ConfigError: one line with file and line.
    """
    file = files.read_text(path, pipe=True)
    sections = _sections(file)
    if not sections:
        raise ConfigError(
            f"{file.path}: there is neither [Interface] nor [Peer] in it; give a "
            "configuration of WireGuard"
        )
    conversion = _Conversion()
    for section in sections:
        if section.kind == "interface":
            conversion.interface(section)
    conversion.take_peers([section for section in sections if section.kind == "peer"])
    with _placed(str(file.path)):
        check_peers(conversion.settings)
    return conversion.result


# Reading


def _sections(file: files.File) -> list[_Section]:
    sections: list[_Section] = []
    above: list[str] = []  # comments right before this line
    for number, line in enumerate(file.text.split("\n"), 1):
        where = f"{file.path}:{number}"
        text, _, comment = (part.strip() for part in line.partition("#"))
        if head := _HEAD.fullmatch(text):
            kind = head[1].lower()
            if kind not in _KNOWN:
                raise ConfigError(
                    f"{where}: [{head[1]}] is not known; there are [Interface] and "
                    "[Peer]"
                )
            sections.append(_Section(where, kind, [*above, comment]))
        elif text and not sections:
            raise ConfigError(f"{where}: this is in no section; begin with [Interface]")
        elif text:
            sections[-1].entries.append(_entry(where, sections[-1].kind, text))
        elif comment and sections and not sections[-1].entries:
            sections[-1].comments.append(comment)
        above = [*above, comment] if comment and not text else []
    return sections


def _entry(where: str, kind: str, text: str) -> _Entry:
    typed, equals, value = (part.strip() for part in text.partition("="))
    known = {key.lower(): key for key in _KNOWN[kind]}
    key = known.get(typed.lower())
    if not equals:
        raise ConfigError(f"{where}: this is no KEY = VALUE; write it so")
    if key is None:
        close = get_close_matches(typed.lower(), known, 1)
        hint = f"did you mean {known[close[0]]}?" if close else "take it out"
        raise ConfigError(f"{where}: {values.shown(typed)}: unknown key; {hint}")
    if key in _KEYS and not _is_key(value):
        raise ConfigError(
            f"{where}: {key}: this is no key; give 44 characters of base64"
        )
    return _Entry(where, key, value)


def _is_key(typed: str) -> bool:
    with suppress(ValueError):
        return len(typed) == 44 and len(b64decode(typed, validate=True)) == 32
    return False


@contextmanager
def _placed(where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _number(entry: _Entry, most: int) -> int:
    if entry.value.isdecimal() and int(entry.value[:9]) <= most:
        return int(entry.value)
    raise ConfigError(
        f"{entry.where}: {entry.key}: {values.shown(entry.value)} is out of range; use "
        f"0 to {most}"
    )


# Converting


@define
class _Conversion:
    result: Converted = field(factory=Converted)
    settings: list[PeerSettings] = field(factory=list)

    def _leave(self, entry: _Entry, why: str) -> None:
        self.result.remarks.append(f"{entry.where}: {entry.key} is left out: {why}.")

    def _say(self, where: str, what: str) -> None:
        self.result.remarks.append(f"{where}: {what}.")

    def interface(self, section: _Section) -> None:
        special: dict[str, Callable[[_Entry], None]] = {
            "ListenPort": self._port,
            "Address": self._addresses,
            "Table": self._table,
        }
        for entry in section.entries:
            if not entry.value:  # as wg-easy writes hooks that it has not
                continue
            if entry.key in special:
                special[entry.key](entry)
            else:
                self._leave(entry, _INTERFACE[entry.key] or _SHELL)

    def _port(self, entry: _Entry) -> None:
        if number := _number(entry, 65535):
            self.result.values["port"] = number
            self._say(
                entry.where,
                "ListenPort is kept as port: the peers have to ask there, and "
                "WireGuard has to be stopped, as it has the port",
            )
        else:
            self._leave(entry, "0 is any port; ours is 1234 where port says no other")

    def _addresses(self, entry: _Entry) -> None:
        kept = self.result.values.setdefault("addresses", [])
        for item in filter(None, map(str.strip, entry.value.split(","))):
            try:
                ip_interface(item)
            except ValueError:
                with _placed(f"{entry.where}: Address"):
                    values.address(item)
            try:
                kept.append(str(values.address(item)))
            except ConfigError as error:
                self._leave(entry, str(error))
        if not kept:
            del self.result.values["addresses"]

    def _table(self, entry: _Entry) -> None:
        if entry.value.lower() == "off":
            self.result.tables["routing"] = {"backend": "none"}
        elif entry.value.lower() != "auto":
            self._leave(entry, _INTERFACE["Table"])

    # -- peers ---------------------------------------------------------------

    def take_peers(self, sections: list[_Section]) -> None:
        owners = _owners(sections)
        names: set[str] = set()
        for number, section in enumerate(sections, 1):
            public = section.last("PublicKey")
            if public is None:
                raise ConfigError(
                    f"{section.where}: this peer has no PublicKey; add it"
                )
            name = _name(section, number, names)
            names.add(name)
            self._peer(name, section, owners)

    def _peer(
        self, name: str, section: _Section, owners: Mapping[IPNetwork, _Section]
    ) -> None:
        allow = self._allow(section, owners)
        for entry in section.entries:
            if why := _PEER[entry.key]:
                self._leave(entry, why)
        if not allow:
            self._say(
                section.where,
                f"peer {name} is left out: it has no AllowedIPs that are its own, so "
                "no packet goes to it; without allow one of ours would have its own "
                "address",
            )
            return
        found = {"allow": allow} | _endpoint(section) | _keepalive(section)
        if "endpoint" not in found:
            self._say(
                section.where,
                f"peer {name} has no Endpoint: once it has a key here it is waited for "
                "until it calls",
            )
        with _placed(section.where):
            settings = parse_peer(name, found, name)
        self.settings.append(settings)
        self.result.peers.append(Peer(name, peer_values(settings), _COMMENT))

    def _allow(
        self, section: _Section, owners: Mapping[IPNetwork, _Section]
    ) -> list[str]:
        allow = []
        for entry, item in section.all("AllowedIPs"):
            prefix = _prefix(entry, item)
            if owners[prefix] is section:
                allow.append(str(prefix))
            else:
                self._leave(entry, f"{prefix} is a later peer's, as with WireGuard")
        return allow


def _owners(sections: list[_Section]) -> dict[IPNetwork, _Section]:
    """Whose each prefix is: with WireGuard, it is moved to who has it last."""
    return {
        _prefix(entry, item): section
        for section in sections
        for entry, item in section.all("AllowedIPs")
    }


def _prefix(entry: _Entry, item: str) -> IPNetwork:
    """With the bits beyond its length taken away, as WireGuard does."""
    with suppress(ValueError):
        item = str(ip_network(item.removeprefix("+"), strict=False))
    with _placed(f"{entry.where}: AllowedIPs"):
        return values.prefix(item)


def _endpoint(section: _Section) -> dict[str, object]:
    entry = section.last("Endpoint")
    if entry is None:
        return {}
    with _placed(f"{entry.where}: Endpoint"):
        host, port = values.endpoint(entry.value)
        if port is None:
            raise ConfigError(
                f"{values.shown(entry.value)} has no port; write HOST:PORT"
            )
    return {"endpoint": host, "port": values.port(port)}


def _keepalive(section: _Section) -> dict[str, object]:
    entry = section.last("PersistentKeepalive")
    if entry is None or entry.value.lower() in _OFF:
        return {}
    return {"keepalive": _number(entry, 65535)}


def _name(section: _Section, number: int, taken: set[str]) -> str:
    """What a comment calls the peer, if it is a name and nothing else."""
    for comment in section.comments:
        name = _NAMED.sub("", comment, count=1).strip("# ")
        if section.last("Endpoint") is None:
            name = name.replace(".", "-")  # with a dot it would be looked up
        with suppress(ConfigError):
            parse_peer(name, {}, "")
            if name not in taken:
                return name
    name = f"peer{number}"
    while name in taken:
        name += "x"
    return name
