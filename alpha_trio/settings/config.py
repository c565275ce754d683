"""The config file and the command line, read into `Settings`.

Also the one place that knows a peer as a mapping of plain values: the config file,
the state file and the control commands all use `parse_peer` and `peer_values`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from ipaddress import IPv6Address, get_mixed_type_key, ip_address
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve, field, fields, frozen

from alpha_trio.errors import ConfigError, WrongUsage
from alpha_trio.settings import files
from alpha_trio.settings import values as v
from alpha_trio.settings.model import (
    DEFAULT_CONFIG,
    MOST_CORES,
    Backend,
    Consent,
    Engine,
    Fail,
    HookSettings,
    IPAddress,
    IPNetwork,
    LogFormat,
    MetricsSettings,
    Mode,
    Offload,
    PeerSettings,
    RelayEarly,
    RelaySettings,
    RoutingSettings,
    Selection,
    Settings,
    Unseen,
)

T = TypeVar("T")
Parsers = Mapping[str, Callable[[object], Any]]
Place = Callable[..., str]  # keys, outermost first -> where they stand, for errors

_FILE: Parsers = {
    "interface": v.interface_name,
    "port": v.port,
    "addresses": v.many(v.address),
    "dscp": v.dscp,
    "state_dir": v.absolute_path,
    "socket": v.absolute_path,
    "socket_group": v.text,
    "status_group": v.text,
    "log_format": v.choice(LogFormat),
    "engine": v.choice(Engine),
    "cores": v.whole(1, MOST_CORES),
    "routing": v.table,
    "relay": v.table,
    "metrics": v.table,
    "offloads": v.table,
    "peers": v.table,
}
_ROUTING: Parsers = {
    "backend": v.choice(Backend),
    "table": v.routing_table,
    "priority": v.priority,
    "mark": v.mark,
    "protocol": v.routing_protocol,
    "mss": v.boolean,
}
_RELAY: Parsers = {
    "enabled": v.boolean,
    "fail": v.choice(Fail),
    "ports": v.many(v.port),
    "unseen": v.choice(Unseen),
    "require_a1": v.boolean,
    "consent": v.choice(Consent),
    "keys": v.many(v.key),
    "s1_rate": v.rate,
    "sessions": v.whole(1, 1_000_000),
    "memory": v.byte_count,
    "roots": v.whole(0, 512),
    "trace": v.boolean,
    "early": v.choice(RelayEarly),
}
_METRICS: Parsers = {"listen": v.listen}
_OFFLOADS: Parsers = dict.fromkeys(Offload, v.boolean)
_PEER: Parsers = {
    "endpoint": v.endpoint,
    "port": v.port,
    "key": v.key,
    "allow": v.many(v.prefix),
    "only": v.many(v.selection),
    "keepalive": v.keepalive,
    "mode": v.mode,
    "reliable": v.boolean,
    "early": v.boolean,
    "mtu": v.mtu,
    "psk": v.psk,
}
_HOOKS: Parsers = {
    "on_up": v.command,
    "on_down": v.command,
    "on_moved": v.command,
}
_TABLES = {
    "routing": _ROUTING,
    "relay": _RELAY,
    "metrics": _METRICS,
    "offloads": _OFFLOADS,
}
_KNOWN_PEER: Parsers = {
    **_PEER,
    "psk_file": lambda value: _PskFile(v.absolute_path(value)),
}
_FILE_PEER: Parsers = {
    **_PEER,
    **_HOOKS,
    "psk_file": lambda value: _PskFile.read(v.absolute_path(value)),
}
_IMPORTED_PEER: Parsers = {**_FILE_PEER, **dict.fromkeys(_HOOKS, v.hook_elsewhere)}
_OPTIONS: Parsers = {
    "interface": v.interface_name,
    "port": v.port,
    "address": v.many(v.address),
    "dscp": v.dscp,
    "relay": v.boolean,
    "mss": v.boolean,
    "state_dir": lambda value: v.path(value).absolute(),
    "socket": lambda value: v.path(value).absolute(),
    "no_offload": v.many(v.choice(Offload)),
    "log_format": v.choice(LogFormat),
    "engine": v.choice(Engine),
    "cores": v.whole(1, MOST_CORES),
    "verbosity": v.whole(0, 9),
}


def load_settings(
    path: Path | None,
    options: Mapping[str, object],
    *,
    given_by: str = "--config",
    pipe: bool = False,
) -> Settings:
    """Settings from the config file and the command-line options; options win.

    Args:
      path: the config file; None: the default one, if there is one.
      options: values by option name with ``_`` for ``-``.  What is absent, None or
        an empty list was not given.
      given_by: what the path was given by, for who mistyped it.
      pipe: the file may be one; a daemon's may not, which reads it again.

    Raises:
      ConfigError: a line for each mistake with file, line, key, value and remedy.
      WrongUsage: the same of an option.
    """
    document = _read_document(path, given_by, pipe)
    found = _file_fields(document)
    given = _option_fields(options)
    disabled = found.pop("disabled_offloads") | given.pop("disabled_offloads")
    if (enabled := given.pop("relay", None)) is not None:
        found["relay"] = evolve(found["relay"], enabled=enabled)
    if (mss := given.pop("mss", None)) is not None:
        found["routing"] = evolve(found["routing"], mss=mss)
    settings = Settings(
        config_file=document.path, disabled_offloads=disabled, **(found | given)
    )
    v.check_socket_path(settings.socket)
    if settings.status_group is not None:
        v.check_socket_path(settings.status_socket)
    if settings.cores > 1 and settings.relay.enabled:
        raise ConfigError(
            f"cores = {settings.cores}, and this host is a relay, which works on one "
            "core only: set cores = 1, or run the relay as a daemon of its own"
        )
    return settings


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """The keys of a file, but for its peers, by which two settings differ."""
    changed = []
    for setting in fields(Settings):
        was, now = getattr(before, setting.name), getattr(after, setting.name)
        if was == now or setting.name == "peers":
            continue
        if setting.name == "disabled_offloads":
            changed += [f"offloads.{name}" for name in sorted(was ^ now)]
        elif setting.name in _TABLES:
            changed += [
                f"{setting.name}.{key.name}"
                for key in fields(type(now))
                if getattr(was, key.name) != getattr(now, key.name)
            ]
        else:
            changed.append(setting.name)
    return changed


def load_peers(path: Path) -> tuple[PeerSettings, ...]:
    """The peers of a file that has nothing else, or of standard input, for ``-``.

    Raises:
      ConfigError: a line for each mistake, with file, line, key, value and remedy.
    """
    document = _parse_document(files.read_text(path, pipe=True))
    mistakes = v.Mistakes()
    with mistakes.noted():
        _read({"peers": v.table}, document.values, document.place)
    with mistakes.noted():
        peers = _file_peers(document, _IMPORTED_PEER)
    mistakes.refuse()
    return peers


def _option_fields(options: Mapping[str, object]) -> dict[str, Any]:
    given = {
        key: value for key, value in options.items() if value not in (None, (), [])
    }
    try:
        fields = _read(_OPTIONS, given, lambda key: f"--{key.replace('_', '-')}")
    except ConfigError as error:
        raise WrongUsage(str(error)) from None
    if addresses := fields.pop("address", ()):
        fields["addresses"] = addresses
    fields["disabled_offloads"] = frozenset(fields.pop("no_offload", ()))
    return fields


def _file_fields(document: _Document) -> dict[str, Any]:
    """All that a file says; all that is wrong with it is in one ConfigError."""
    mistakes = v.Mistakes()
    found: dict[str, Any] = {}
    for name, parsers in {"": _FILE, **_TABLES}.items():
        place = partial(document.place, name) if name else document.place
        with mistakes.noted():
            found[name] = _read(parsers, document.table(name), place)
    with mistakes.noted():
        found["peers"] = _file_peers(document, _FILE_PEER)
    mistakes.refuse()
    top = {key: value for key, value in found.pop("").items() if key not in _TABLES}
    off = (Offload(name) for name, on in found.pop("offloads").items() if not on)
    return top | {
        "routing": RoutingSettings(**found["routing"]),
        "relay": RelaySettings(**found["relay"]),
        "metrics": MetricsSettings(**found["metrics"]),
        "disabled_offloads": frozenset(off),
        "peers": found["peers"],
    }


def _file_peers(document: _Document, parsers: Parsers) -> tuple[PeerSettings, ...]:
    mistakes, peers = v.Mistakes(), []
    for name, values in document.table("peers").items():
        with mistakes.noted():
            peers.append(_file_peer(name, values, document, parsers))
    with mistakes.noted():
        _at(lambda: str(document.path), check_peers, peers)
    mistakes.refuse()
    return tuple(peers)


def _file_peer(
    name: str, values: object, document: _Document, parsers: Parsers
) -> PeerSettings:
    place = partial(document.place, "peers", name)
    table = _at(place, v.table, values)
    peer = _parse_peer(name, table, place, parsers)
    if peer.hooks is not None:
        _refuse_open_file(document, "run what they like", secret=False)
    if peer.psk is not None:
        what = "replace the psk of a peer"
        _refuse_open_file(document, what, secret="psk" in table)
    return peer


# Peers


def parse_peer(name: str, values: Mapping[str, object], where: str) -> PeerSettings:
    """Check the values of one peer, as typed by a user or saved by `peer_values`.

    Args:
      name: the peer's name.
      values: any of endpoint, port, key, allow, only, keepalive, mode, reliable, early,
        mtu, psk and psk_file; None means not given.
      where: begins every error text, for example the name of a file or a command.

    Raises:
      ConfigError: one line with place, key, value and remedy.
    """
    given = {key: value for key, value in values.items() if value is not None}
    return _parse_peer(
        name, given, lambda *keys: ": ".join((where, _dotted(keys))) if keys else where
    )


def _parse_peer(
    name: str,
    values: Mapping[str, object],
    place: Place,
    parsers: Parsers = _KNOWN_PEER,
) -> PeerSettings:
    mistakes = v.Mistakes()
    with mistakes.noted():
        _at(place, v.peer_name, name)
    with mistakes.noted():
        _hint_at_unquoted_dots(values, place)
        fields = _read(parsers, values, place)
    mistakes.refuse()
    if (file := fields.pop("psk_file", None)) is not None:
        fields |= file.beside(fields.get("psk"), place)
    hooks = {key: fields.pop(key) for key in _HOOKS if key in fields}
    fields["hooks"] = HookSettings(**hooks) if hooks else None
    host, port = fields.pop("endpoint", (None, None))
    if port is not None and fields.setdefault("port", port) != port:
        raise ConfigError(
            f"{place('port')}: {fields['port']} differs from the port {port} of the "
            "endpoint; give the port once"
        )
    fields["allow"] = tuple(sorted(fields.get("allow", ()), key=get_mixed_type_key))
    fields["only"] = tuple(sorted(fields.get("only", ()), key=_selection_order))
    peer = PeerSettings(name, endpoint=host, **fields)
    if host is None and not peer.waits:  # then the name is what will be looked up
        _at(place, v.host, name)
    _refuse_bare_loopback(peer, place)
    _refuse_bare_link_local(peer, place)
    _refuse_reliable_plain(peer, place)
    return peer


def _selection_order(selection: Selection) -> tuple[int, tuple[int, int]]:
    return selection.protocol, selection.ports or (0, 0)


def _hint_at_unquoted_dots(values: Mapping[str, object], place: Place) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            raise ConfigError(
                f"{place(key)}: a peer holds no tables; "
                'quote a name with dots, as in [peers."vm.example"]'
            )


def _refuse_bare_loopback(peer: PeerSettings, place: Place) -> None:
    """A loopback endpoint serves two daemons on one host, with prefixes to carry.

    Packets to the address itself never leave the kernel's local table, so without
    prefixes such a peer would look configured and carry nothing.
    """
    address = _literal(peer.host)
    if address is not None and address.is_loopback and not peer.allow:
        raise ConfigError(
            f"{place('endpoint')}: packets to {address} never leave this host; give "
            "the peer's own address, or the prefixes to allow through it"
        )


def _refuse_bare_link_local(peer: PeerSettings, place: Place) -> None:
    """The rules that lead packets into the tunnel know prefixes, but no links."""
    address = _literal(peer.host)
    if isinstance(address, IPv6Address) and address.is_link_local and not peer.allow:
        raise ConfigError(
            f"{place('endpoint')}: packets to {address} itself cannot be led into the "
            "tunnel; give the prefixes to allow through it"
        )


def _refuse_reliable_plain(peer: PeerSettings, place: Place) -> None:
    if peer.reliable and peer.mode is Mode.PLAIN:
        raise ConfigError(
            f"{place('reliable')}: in mode plain nothing is acknowledged; switch "
            "reliable off, or choose another mode"
        )


def peer_values(peer: PeerSettings) -> dict[str, object]:
    """The inverse of `parse_peer`: what differs from the defaults, as typed.

    The pre-shared key is among them: not to be shown to anybody as it is.
    """
    values: dict[str, object] = {
        "endpoint": peer.endpoint,
        "port": peer.port,
        "key": peer.key,
        "allow": [str(prefix) for prefix in peer.allow],
        "only": [v.selection_text(selection) for selection in peer.only],
        "keepalive": _plain_number(peer.keepalive),
        "mode": str(peer.mode),
        "reliable": peer.reliable,
        "early": peer.early,
        "mtu": peer.mtu,
        "psk": peer.psk,
        "psk_file": peer.psk_file,
    }
    for setting in fields(PeerSettings):
        if getattr(peer, setting.name) == setting.default:
            values.pop(setting.name, None)
    return values


def _plain_number(value: float) -> float:
    return int(value) if value.is_integer() else value


def allowed_prefixes(peer: PeerSettings) -> tuple[IPNetwork, ...]:
    """What the peer is known to own before any name is resolved."""
    if peer.allow:
        return peer.allow
    address = _literal(peer.host)
    return () if address is None else (v.prefix_of(address),)


GIVE_WAY = "take it from one of them"


def check_peers(
    peers: Iterable[PeerSettings],
    called: Callable[[str], str] = str,
    remedy: str = GIVE_WAY,
) -> None:
    """Refuse peers that cannot exist side by side.

    The same prefix at two peers is an error, one within another is not: the longest
    match decides, as everywhere in IP.  ``called`` turns a name into what the refusal
    calls the peer, for those that do not all come from the same place; ``remedy`` is
    what can be done about a prefix.

    Raises:
      ConfigError: a line for each clash that names both peers.
    """
    mistakes = v.Mistakes()
    names: set[str] = set()
    endpoints: dict[tuple[str, int], str] = {}
    owners: dict[IPNetwork, str] = {}
    for peer in peers:
        where = (peer.host, peer.port)
        with mistakes.noted():
            if peer.name in names:
                raise ConfigError(
                    f"two peers are called {peer.name}; rename one of them"
                )
            names.add(peer.name)
            _claim(endpoints, where, peer, _endpoint_text, called, GIVE_WAY)
        for prefix in allowed_prefixes(peer):
            with mistakes.noted():
                _claim(owners, prefix, peer, "prefix {}".format, called, remedy)
    mistakes.refuse()


def _claim(
    owners: dict[T, str],
    thing: T,
    peer: PeerSettings,
    describe: Callable[[T], str],
    called: Callable[[str], str],
    remedy: str,
) -> None:
    if (owner := owners.setdefault(thing, peer.name)) != peer.name:
        raise ConfigError(
            f"peers {called(owner)} and {called(peer.name)} both have "
            f"{describe(thing)}; {remedy}"
        )


def _endpoint_text(endpoint: tuple[str, int]) -> str:
    host, port = endpoint
    return f"endpoint [{host}]:{port}" if ":" in host else f"endpoint {host}:{port}"


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


# Tables and places


def _read(
    parsers: Parsers, values: Mapping[str, object], place: Place
) -> dict[str, Any]:
    """Parse one table; a key without a parser is an error."""
    mistakes, found = v.Mistakes(), {}
    for key, value in values.items():
        with mistakes.noted():
            if key not in parsers:
                hint = _suggestion(key, parsers)
                raise ConfigError(f"{place(key)}: unknown key; {hint}")
            found[key] = _at(partial(place, key), parsers[key], value)
    mistakes.refuse()
    return found


def _suggestion(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # only who typed something wrong needs it

    names = [str(name) for name in known]
    close = get_close_matches(str(key), names, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def _at(place: Place, parse: Callable[[Any], T], value: object) -> T:
    """``parse(value)``, with its place in front of what it complains about."""
    try:
        return parse(value)
    except ConfigError as error:
        where = place()
        raise ConfigError(*(f"{where}: {line}" for line in error.lines)) from None


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_STATEMENT = re.compile(
    rf"\s*(?:\[\s*(?P<table>{_KEYS})\s*\]|(?P<assigned>{_KEYS})\s*=)"
)


@frozen
class _PskFile:
    """Where a pre-shared key comes from; and what it is, if it was read right now."""

    path: Path
    psk: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, path: Path) -> _PskFile:
        return cls(path, files.read_psk(path))

    def beside(self, given: str | None, place: Place) -> dict[str, str]:
        """The settings of a peer for which a psk may be ``given`` as well."""
        if given is not None and self.psk is not None:
            raise ConfigError(f"{place('psk')}: there is a psk_file, too; give one")
        psk = given or self.psk
        if psk is None:
            raise ConfigError(
                f"{place('psk_file')}: unknown key where there is no psk, as it only "
                "tells where that is from; give the psk, too"
            )
        return {"psk": psk, "psk_file": str(self.path)}


@frozen
class _Document:
    """A config file as read; without a path, the absence of one."""

    path: Path | None = None
    status: os.stat_result | None = None  # None: it is standard input
    text: str = field(default="", repr=False)
    values: Mapping[str, object] = field(factory=dict, repr=False)

    def table(self, name: str) -> Mapping[str, object]:
        """One of the tables, or all there is; empty if it is none, or not there."""
        found = self.values.get(name, {}) if name else self.values
        return found if isinstance(found, Mapping) else {}

    def place(self, *keys: str) -> str:
        """Where ``keys`` stand, as ``FILE:LINE: TABLE.KEY``."""
        line = self._line(keys)
        return f"{self.path}{f':{line}' if line else ''}: {_dotted(keys)}"

    def _line(self, keys: tuple[str, ...]) -> int | None:
        """The line of ``keys`` or of the innermost table around them."""
        depths = range(len(keys), 0, -1)
        found = (self._lines.get(keys[:depth]) for depth in depths)
        return next((line for line in found if line), None)

    @cached_property
    def _lines(self) -> Mapping[tuple[str, ...], int]:
        """The line at which each table or key first stands.

        tomllib keeps no positions, so statements are recognised by their form.  One
        that only looks like one (inside a text of several lines) can mislead here,
        nowhere else.
        """
        lines: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.split("\n"), 1):
            match = _STATEMENT.match(line)
            if match is None:
                continue
            if match["table"]:
                found = table = _split_keys(match["table"])
            else:
                found = table + _split_keys(match["assigned"])
            lines.setdefault(found, number)
        return lines


def _dotted(keys: Iterable[str]) -> str:
    return ".".join(key if re.fullmatch(_KEY, key) else v.shown(key) for key in keys)


def _split_keys(dotted: str) -> tuple[str, ...]:
    return tuple(key.strip("\"'") for key in re.findall(_KEY, dotted))


def _read_document(path: Path | None, given_by: str, pipe: bool) -> _Document:
    try:
        file = files.read_text(path or DEFAULT_CONFIG, given_by, pipe=pipe)
    except files.Absent:
        if path is None:
            return _Document()
        raise
    return _parse_document(file)


def _parse_document(file: files.File) -> _Document:
    try:
        values = tomllib.loads(file.text)
        return _Document(file.path, file.status, file.text, values)
    except (ValueError, RecursionError) as error:
        where = f"{file.path}{_syntax_error(str(error), file.text)}"
        raise ConfigError(f"{where}; mend it there") from None


def _refuse_open_file(document: _Document, what: str, *, secret: bool) -> None:
    """What says which secret protects a peer, or what is run, others must not write.

    ``what``: they could do.
    ``secret``: it holds one itself, and so is nobody else's to read either.
    """
    path, status = document.path, document.status
    assert path is not None
    if status is None:
        return
    if (command := files.remedy(path, status, files.WRITE)) is not None:
        raise ConfigError(
            f"{path}: others may write this file, and so {what}; forbid it by "
            f"'{command}'"
        )
    if secret and (command := files.remedy(path, status, files.READ)) is not None:
        raise ConfigError(
            f"{path}: others may read this file, and it holds a psk; forbid it by "
            f"'{command}', or keep the psk in a psk_file"
        )


def _syntax_error(message: str, text: str) -> str:
    """tomllib's words in the form of all other places, ``:LINE:COLUMN: what``."""
    if match := re.fullmatch(
        r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL
    ):
        return f":{match[2]}:{match[3]}: {match[1]}"
    what, end, _ = message.partition(" (at end of document)")
    return f":{text.rstrip().count(chr(10)) + 1}: {what}" if end else f": {message}"
