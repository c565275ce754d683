"""The config file and the command line, read into `Settings`.

Also the one place that knows a peer as a mapping of plain values: the config file,
the state file and the control commands all use `parse_peer` and `peer_values`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from ipaddress import IPv6Address, get_mixed_type_key, ip_address
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve, field, fields, frozen

from alpha_trio.errors import ConfigError, WrongUsage
from alpha_trio.settings import files
from alpha_trio.settings import values as v
from alpha_trio.settings.model import (
    DEFAULT_CONFIG,
    Backend,
    Consent,
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
_FILE_PEER: Parsers = {
    **_PEER,
    **_HOOKS,
    "psk_file": lambda value: files.read_psk(v.absolute_path(value)),
}
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
    "verbosity": v.whole(0, 9),
}


def load_settings(path: Path | None, options: Mapping[str, object]) -> Settings:
    """Settings from the config file and the command-line options; options win.

    Args:
      path: the config file; None: the default one, if there is one.
      options: values by option name with ``_`` for ``-``.  What is absent, None or
        an empty list was not given.

    Raises:
      ConfigError: one line with file, line, key, value and remedy.
      WrongUsage: the same of an option.
    """
    document = _read_document(path)
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
    return settings


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
    fields = _read(_FILE, document.values, document.place)
    routing = fields.pop("routing", {})
    fields["routing"] = RoutingSettings(
        **_read(_ROUTING, routing, partial(document.place, "routing"))
    )
    relay = fields.pop("relay", {})
    fields["relay"] = RelaySettings(
        **_read(_RELAY, relay, partial(document.place, "relay"))
    )
    metrics = fields.pop("metrics", {})
    fields["metrics"] = MetricsSettings(
        **_read(_METRICS, metrics, partial(document.place, "metrics"))
    )
    switches = _read(
        _OFFLOADS, fields.pop("offloads", {}), partial(document.place, "offloads")
    )
    fields["disabled_offloads"] = frozenset(
        Offload(name) for name, on in switches.items() if not on
    )
    fields["peers"] = _file_peers(fields.pop("peers", {}), document)
    return fields


def _file_peers(
    tables: Mapping[str, object], document: _Document
) -> tuple[PeerSettings, ...]:
    peers = []
    for name, values in tables.items():
        place = partial(document.place, "peers", name)
        table = _at(place, v.table, values)
        peers.append(_parse_peer(name, table, place, _FILE_PEER))
        if peers[-1].hooks is not None:
            _refuse_open_file(document, "run what they like", secret=False)
        if peers[-1].psk is not None:
            what = "replace the psk of a peer"
            _refuse_open_file(document, what, secret="psk" in table)
    _at(lambda: str(document.path), check_peers, peers)
    return tuple(peers)


# Peers


def parse_peer(name: str, values: Mapping[str, object], where: str) -> PeerSettings:
    """Check the values of one peer, as typed by a user or saved by `peer_values`.

    Args:
      name: the peer's name.
      values: any of endpoint, port, key, allow, only, keepalive, mode, reliable, early,
        mtu and psk; None means not given.
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
    parsers: Parsers = _PEER,
) -> PeerSettings:
    _at(place, v.peer_name, name)
    _hint_at_unquoted_dots(values, place)
    fields = _read(parsers, values, place)
    if "psk_file" in fields:
        if "psk" in fields:
            raise ConfigError(f"{place('psk')}: there is a psk_file, too; give one")
        fields["psk"] = fields.pop("psk_file")
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
      ConfigError: one line that names both peers.
    """
    names: set[str] = set()
    endpoints: dict[tuple[str, int], str] = {}
    owners: dict[IPNetwork, str] = {}
    for peer in peers:
        if peer.name in names:
            raise ConfigError(f"two peers are called {peer.name}; rename one of them")
        names.add(peer.name)
        where = (peer.host, peer.port)
        _claim(endpoints, where, peer, _endpoint_text, called, GIVE_WAY)
        for prefix in allowed_prefixes(peer):
            _claim(owners, prefix, peer, "prefix {}".format, called, remedy)


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
    for key in values:
        if key not in parsers:
            raise ConfigError(f"{place(key)}: unknown key; {_suggestion(key, parsers)}")
    return {key: _at(partial(place, key), parsers[key], values[key]) for key in values}


def _suggestion(key: str, known: Iterable[str]) -> str:
    names = [str(name) for name in known]
    close = get_close_matches(str(key), names, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def _at(place: Place, parse: Callable[[Any], T], value: object) -> T:
    """``parse(value)``, with its place in front of what it complains about."""
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"{place()}: {error}") from None


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_STATEMENT = re.compile(
    rf"\s*(?:\[\s*(?P<table>{_KEYS})\s*\]|(?P<assigned>{_KEYS})\s*=)"
)


@frozen
class _Document:
    """A config file as read; without a path, the absence of one."""

    path: Path | None = None
    status: os.stat_result | None = None
    text: str = field(default="", repr=False)
    values: Mapping[str, object] = field(factory=dict, repr=False)

    def place(self, *keys: str) -> str:
        """Where ``keys`` stand, as ``FILE:LINE: TABLE.KEY``."""
        line = self._line(keys)
        return f"{self.path}{f':{line}' if line else ''}: {_dotted(keys)}"

    def _line(self, keys: tuple[str, ...]) -> int | None:
        """The line of ``keys`` or of the innermost table around them.

        tomllib keeps no positions, so statements are recognised by their form.  One
        that only looks like one (inside a text of several lines) can mislead here,
        nowhere else.
        """
        best, deepest = None, 0
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.split("\n"), 1):
            match = _STATEMENT.match(line)
            if match is None:
                continue
            if match["table"]:
                found = table = _split_keys(match["table"])
            else:
                found = table + _split_keys(match["assigned"])
            if len(found) > deepest and found == keys[: len(found)]:
                best, deepest = number, len(found)
        return best


def _dotted(keys: Iterable[str]) -> str:
    return ".".join(key if re.fullmatch(_KEY, key) else v.shown(key) for key in keys)


def _split_keys(dotted: str) -> tuple[str, ...]:
    return tuple(key.strip("\"'") for key in re.findall(_KEY, dotted))


def _read_document(path: Path | None) -> _Document:
    wanted = path or DEFAULT_CONFIG
    try:
        with wanted.open("rb") as file:
            status, raw = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        if path is None:
            return _Document()
        raise ConfigError(f"{path}: there is no such file; check --config") from None
    except OSError as error:
        raise ConfigError(
            f"{wanted}: cannot be read: {error.strerror}; "
            "give a file you may read by --config"
        ) from None
    return _parse_document(wanted, status, raw)


def _parse_document(path: Path, status: os.stat_result, raw: bytes) -> _Document:
    try:
        text = raw.decode()
        return _Document(path, status, text, tomllib.loads(text))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {raw[error.start]:#x} is not UTF-8; "
            "save the file in that encoding"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}{_syntax_error(str(error))}; mend it there") from None


def _refuse_open_file(document: _Document, what: str, *, secret: bool) -> None:
    """What says which secret protects a peer, or what is run, others must not write.

    ``what``: they could do.
    ``secret``: it holds one itself, and so is nobody else's to read either.
    """
    path, status = document.path, document.status
    assert path is not None
    assert status is not None
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


def _syntax_error(message: str) -> str:
    """tomllib's words in the form of all other places, ``:LINE:COLUMN: what``."""
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    return f":{match[2]}:{match[3]}: {match[1]}" if match else f": {message}"
