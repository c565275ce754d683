"""Single values: from what a user typed to what the daemon works with.

Every parser takes whatever TOML, JSON or the control socket delivered.  What it
cannot use it answers with a `ConfigError` that names the value and the remedy; the
caller, who knows it, puts the place in front.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from ipaddress import (
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import NoReturn, TypeVar

from alpha_trio.errors import ConfigError
from alpha_trio.settings.model import (
    COPY,
    Copy,
    IPAddress,
    IPInterface,
    IPNetwork,
    Listen,
    Mode,
    Selection,
)

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "eigrp": 88,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_WITH_PORTS = ("tcp", "udp", "sctp", "dccp", "udplite")

# Tables and protocol numbers that belong to others (linux/rtnetlink.h, and the
# numbers FRR adds to it).  Cleaning up by such a number would remove their routes.
_KERNEL_TABLES = {253: "default", 254: "main", 255: "local"}
_ROUTING_DAEMONS = {
    8: "gated",
    9: "router advertisements",
    10: "mrt",
    11: "zebra",
    12: "bird",
    13: "dnrouted",
    14: "xorp",
    15: "ntk",
    16: "dhcp",
    17: "mrouted",
    18: "keepalived",
    42: "babel",
    84: "ovn",
    99: "openr",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    190: "ripng",
    191: "nhrp",
    192: "eigrp",
    193: "ldp",
    194: "sharp",
    195: "pbr",
    196: "frr static",
    197: "openfabric",
    198: "srte",
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENDPOINT = re.compile(r"(\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]]+))(:(?P<port>[0-9]+))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]{1,3}")
_PORTS = re.compile(r"(?P<first>[0-9]{1,5})(-(?P<last>[0-9]{1,5}))?")

_SIZE = re.compile(r"(?P<number>[0-9]{1,9}) ?(?P<unit>[KMG]iB)")
_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30}  # powers of two
_LEAST_MTU, _MOST_MTU = 256, 65_535  # bytes of an inner packet
_LEAST_MEMORY, _MOST_MEMORY = 1 << 20, 64 << 30

KEY_BYTES = 32
_LONGEST_INTERFACE_NAME = 15  # bytes: IFNAMSIZ without its NUL
_LONGEST_SOCKET_PATH = 107  # bytes: sun_path without its NUL


class Mistakes:
    """Goes on after a mistake, so that all of them are named at once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self._lines |= dict.fromkeys(error.lines)

    def refuse(self) -> None:
        """Raises ConfigError if there were any."""
        if self._lines:
            raise ConfigError(*self._lines)


def shown(value: object) -> str:
    """``value`` as error texts quote it: on one line, and not without end."""
    try:
        quoted = repr(value)
    except ValueError:  # an integer beyond what Python writes in decimal
        return "a huge number"
    return quoted if len(quoted) <= 80 else f"{quoted[:76]} ..."


# Plain values


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{shown(value)} is not a text; write it in quotes")
    if not value:
        raise ConfigError("the text is empty; fill it in or leave the key out")
    return value


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{shown(value)} is neither true nor false; use one of them")
    return value


def table(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)} is not a table; write [NAME] and keys below")
    return value


def whole(first: int, last: int) -> Callable[[object], int]:
    """A parser for whole numbers from ``first`` to ``last``."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(
                f"{shown(value)} is not a whole number; use {first} to {last}"
            )
        if not first <= value <= last:
            raise ConfigError(f"{shown(value)} is out of range; use {first} to {last}")
        return value

    return parse


def many(parse: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """A parser for lists of what ``parse`` accepts; repetitions are dropped."""

    def parse_each(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{shown(value)} is not a list; write [{shown(value)}]")
        mistakes, found = Mistakes(), dict[T, None]()
        for item in value:
            with mistakes.noted():
                found[parse(item)] = None
        mistakes.refuse()
        return tuple(found)

    return parse_each


def choice(choices: type[Choice]) -> Callable[[object], Choice]:
    """A parser for the members of an enumeration, by their text."""

    def parse(value: object) -> Choice:
        try:
            return choices(text(value))
        except ValueError:
            raise ConfigError(
                f"{shown(value)} is not known; use {' or '.join(choices)}"
            ) from None

    return parse


# Host and kernel

port = whole(1, 65535)
priority = whole(4, 32700)  # below main (32766), with room for all our rules
mark = whole(1, 0xFFFF_FFFE)  # the next one is the relay's


def dscp(value: object) -> int | Copy:
    """The DSCP of our datagrams; the command line has it as a text."""
    if value == COPY.value:
        return COPY
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    try:
        return whole(0, 63)(value)
    except ConfigError:
        raise ConfigError(
            f'{shown(value)} is no DSCP; use 0 to 63, such as 46 for EF, or "copy"'
        ) from None


def path(value: object) -> Path:
    typed = text(value)
    if "\0" in typed:
        raise ConfigError(f"{shown(value)} contains a NUL; no path can")
    return Path(typed)


def absolute_path(value: object) -> Path:
    """A path from a file, where "relative" would depend on who starts the daemon."""
    if not path(value).is_absolute():
        raise ConfigError(f"{shown(value)} is a relative path; begin it with /")
    return path(value)


def check_socket_path(path: Path) -> None:
    """Refuse what a Unix socket address cannot hold."""
    if len(bytes(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"socket path {shown(str(path))} is longer than {_LONGEST_SOCKET_PATH} "
            "bytes, which no Unix socket can have; choose a shorter one"
        )


def interface_name(value: object) -> str:
    """An interface name by the kernel's rules.

    Also refused: ``%``, which makes the kernel choose a number, and the two names
    that stand for something else under ``/proc/sys/net``.
    """
    name = text(value)
    if len(name.encode(errors="replace")) > _LONGEST_INTERFACE_NAME:
        raise ConfigError(
            f"interface name {shown(name)} is too long; "
            f"use at most {_LONGEST_INTERFACE_NAME} bytes"
        )
    if not name.isprintable() or any(char in " /:%" for char in name):
        raise ConfigError(
            f"interface name {shown(name)} cannot be used; "
            "leave out blanks, control characters, '/', ':' and '%'"
        )
    if name in (".", "..", "all", "default"):
        raise ConfigError(f"interface name {shown(name)} is reserved; use another")
    return name


def routing_table(value: object) -> int:
    """The first of three tables in a row."""
    number = whole(1, 0xFFFF_FFFD)(value)
    for used in range(number, number + 3):
        if used in _KERNEL_TABLES:
            raise ConfigError(
                f"{number} and the two after it are to be ours, but {used} is the "
                f"kernel's table {_KERNEL_TABLES[used]!r}; use another, such as 5182"
            )
    return number


def routing_protocol(value: object) -> int:
    number = whole(5, 255)(value)
    if number in _ROUTING_DAEMONS:
        raise ConfigError(
            f"{number} is the routing protocol number of {_ROUTING_DAEMONS[number]}; "
            "use one that nobody else uses, such as 161"
        )
    return number


# The relay


def mtu(value: object) -> int:
    """The largest inner packet in bytes; 0 for "auto", which finds it out."""
    if value == "auto" or (value == 0 and not isinstance(value, bool)):
        return 0
    return whole(_LEAST_MTU, _MOST_MTU)(value)


def byte_count(value: object) -> int:
    """Bytes by NUMBER UNIT, with a unit of KiB, MiB or GiB."""
    match = _SIZE.fullmatch(text(value))
    size = int(match["number"]) << _UNITS[match["unit"]] if match else 0
    if not _LEAST_MEMORY <= size <= _MOST_MEMORY:
        raise ConfigError(
            f'{shown(value)} is no size that can be used; write "64 MiB" or the like, '
            "from 1 MiB to 64 GiB"
        )
    return size


def rate(value: object) -> float:
    """How often something may happen in a second."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{shown(value)} is not a number; use 1 or more a second")
    if not 1 <= value <= 1e9:
        raise ConfigError(f"{shown(value)} is out of range; use 1 to 1000000000")
    return float(value)


# Addresses


def address(value: object) -> IPInterface:
    """An address of the tunnel interface with the length of its network."""
    try:
        interface = ip_interface(text(value))
    except ValueError:
        raise ConfigError(
            f"{shown(value)} is no address; write ADDRESS/LENGTH, such as 10.9.0.1/24"
        ) from None
    _refuse_unusable(interface, value)
    return interface


def _refuse_unusable(interface: IPInterface, value: object) -> None:
    ip, network = interface.ip, interface.network
    if ip.is_unspecified or ip.is_multicast or ip.is_loopback or _has_zone(interface):
        raise ConfigError(
            f"{shown(value)} cannot be given to an interface; "
            "use a unicast address of your own, such as 10.9.0.1/24"
        )
    if network.prefixlen < network.max_prefixlen - 1 and ip == network.network_address:
        raise ConfigError(
            f"{shown(value)} is the network itself; "
            f"give the host's address, such as {ip + 1}/{network.prefixlen}"
        )
    if ip.version == 4 and network.prefixlen < 31 and ip == network.broadcast_address:
        raise ConfigError(
            f"{shown(value)} is the broadcast address of {network}; "
            "give the host's own address"
        )


def _has_zone(value: IPAddress | IPNetwork | IPInterface) -> bool:
    if isinstance(value, IPv6Network):
        value = value.network_address
    return isinstance(value, IPv6Address | IPv6Interface) and bool(value.scope_id)


def prefix(value: object) -> IPNetwork:
    typed = text(value)
    try:
        meant = ip_network(typed, strict=False)
    except ValueError:
        raise ConfigError(
            f"{shown(value)} is no prefix; write NETWORK/LENGTH, such as 10.9.0.0/24"
        ) from None
    if _has_zone(meant):
        raise ConfigError(f"{shown(value)} has a zone; leave out the % and the rest")
    try:
        return ip_network(typed)
    except ValueError:
        raise ConfigError(
            f"{shown(value)} has bits set beyond its length; the network is {meant}"
        ) from None


def prefix_of(address: IPAddress) -> IPNetwork:
    """The prefix that holds this one address."""
    return ip_network(address)


def listen(value: object) -> Listen:
    """A TCP address: a literal one, since looking it up would depend on others."""
    match = _ENDPOINT.fullmatch(text(value))
    if match is not None and match["port"]:
        with suppress(ValueError):  # not an address, but a name
            found = ip_address(match["v6"] or match["host"])
            if not found.is_multicast and not _has_zone(found):
                return Listen(str(found), port(int(match["port"][:9])))
    raise ConfigError(
        f"{shown(value)} is nothing to listen at; write ADDRESS:PORT, such as "
        "127.0.0.1:9124"
    )


# Peers


def peer_name(value: object) -> str:
    name = text(value)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{shown(name)} is no peer name; use 1 to 64 letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit"
        )
    return name


def endpoint(value: object) -> tuple[str, int | None]:
    """Host and port of HOST, HOST:PORT, [IPV6]:PORT or a bare IPv6 address."""
    typed = text(value)
    if typed.count(":") > 1 and not typed.startswith("["):
        return host(typed), None
    match = _ENDPOINT.fullmatch(typed)
    if match is None or (match["v6"] is not None and ":" not in match["v6"]):
        raise ConfigError(
            f"{shown(value)} is no endpoint; write HOST, HOST:PORT or [IPV6]:PORT"
        )
    given = match["port"]
    return host(match["v6"] or match["host"]), port(int(given[:9])) if given else None


def host(value: object) -> str:
    """An address in its shortest form, or a host name in small letters."""
    typed = text(value)
    try:
        found = ip_address(typed)
    except ValueError:
        return _host_name(typed)
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    _refuse_unreachable(found)
    if isinstance(found, IPv6Address) and found.scope_id:
        interface_name(found.scope_id)
    return str(found)


def _refuse_unreachable(found: IPAddress) -> None:
    if found.is_multicast or found.is_unspecified or str(found) == "255.255.255.255":
        raise ConfigError(f"{found} is not the address of one host; give a unicast one")
    # Without its zone it could be behind any interface.
    if found.version == 6 and found.is_link_local and not _has_zone(found):
        raise ConfigError(
            f"{found} is valid on one link only; name the link, as in {found}%eth0, or "
            "give a global or unique local address"
        )
    if not found.is_link_local and _has_zone(found):
        raise ConfigError(f"{found} needs no zone; leave out the % and the rest")


def _host_name(typed: str) -> str:
    name = typed.lower()
    labels = name.removesuffix(".").split(".")
    # A last label of digits is a mistyped IPv4 address, which resolvers would
    # otherwise complete in surprising ways ("10.1" is 10.0.0.1).
    if (
        len(name) > 253
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise ConfigError(
            f"{shown(typed)} is neither an IP address nor a host name; "
            "give one of them (a name beyond ASCII in its xn-- form)"
        )
    return name


def key(value: object) -> str:
    """A public key: 32 bytes in base64.

    Error texts leave the value out, it may be a secret pasted into the wrong place.
    """
    typed = text(value)
    raw = _key_bytes(typed)
    if raw is None:
        raise ConfigError(
            f"this is no key ({len(typed)} characters); give the {KEY_BYTES} bytes "
            "in base64 (43 or 44 characters) that 'key show' prints on the peer"
        )
    if not any(raw):
        raise ConfigError(
            "this key is all zeros, which anybody can sign for; give the one that "
            "'key show' prints on the peer"
        )
    return b64encode(raw).decode()


def psk(value: object) -> str:
    """A pre-shared key: 32 random bytes in base64.  No error text has any of it."""
    if not isinstance(value, str):
        raise ConfigError("a pre-shared key is a text; write it in quotes")
    raw = _key_bytes(value)
    if raw is None:
        raise ConfigError(
            f"this is no pre-shared key ({len(value)} characters); give {KEY_BYTES} "
            "random bytes in base64 (44 characters), which 'key psk' makes"
        )
    if not any(raw):
        raise ConfigError(
            "this pre-shared key is all zeros, which anybody can guess; make one by "
            "'key psk'"
        )
    return b64encode(raw).decode()


def _key_bytes(typed: str) -> bytes | None:
    """The bytes of a key in base64, whose padding may be left out."""
    try:
        raw = b64decode(typed + "=" if len(typed) == 43 else typed, validate=True)
    except ValueError:
        return None
    canonical = b64encode(raw).decode()
    same = typed.rstrip("=") == canonical.rstrip("=")
    return raw if same and len(raw) == KEY_BYTES else None


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments, which no shell reads."""
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(
            f'{shown(value)} is no command; write ["/PATH/TO/PROGRAM", "ARGUMENT"]'
        )
    words = tuple(map(_word, value))
    absolute_path(words[0])
    return words


def hook_elsewhere(value: object) -> NoReturn:
    """What runs as root is nobody's to give but that file's owner."""
    raise ConfigError(
        "programs are run for peers of the config file only; add it there"
    )


def _word(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{shown(value)} is no word of a command; write it in quotes")
    return value


def selection(value: object) -> Selection:
    """Traffic by ``PROTO[/PORT[-PORT]]``."""
    name, slash, ports = text(value).partition("/")
    protocol = _protocol(name)
    if not slash:
        return Selection(protocol)
    if _PROTOCOL_NAMES.get(protocol) not in _WITH_PORTS:
        raise ConfigError(
            f"{shown(value)} has ports, but {name} knows none; "
            f"only {', '.join(_WITH_PORTS)} do"
        )
    return Selection(protocol, _port_range(ports, value))


def _protocol(name: str) -> int:
    if name.lower() in PROTOCOLS:
        return PROTOCOLS[name.lower()]
    if _NUMBER.fullmatch(name) and 1 <= int(name) <= 255:
        return int(name)
    raise ConfigError(
        f"{shown(name)} is no IP protocol known here; "
        f"use a number from 1 to 255 or one of {', '.join(PROTOCOLS)}"
    )


def _port_range(typed: str, value: object) -> tuple[int, int]:
    match = _PORTS.fullmatch(typed)
    if match:
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if 1 <= first <= last <= 65535:
            return first, last
    raise ConfigError(
        f"{shown(value)} has no valid ports; write PROTO/PORT or PROTO/FIRST-LAST "
        "with ports from 1 to 65535"
    )


def selection_text(selection: Selection) -> str:
    """The inverse of `selection`."""
    name = _PROTOCOL_NAMES.get(selection.protocol, str(selection.protocol))
    if selection.ports is None:
        return name
    first, last = selection.ports
    return f"{name}/{first}" if first == last else f"{name}/{first}-{last}"


def keepalive(value: object) -> float:
    """Seconds between keepalives; 0 sends none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{shown(value)} is not a number of seconds; use 0 or more")
    if value != 0 and not 1 <= value <= 65535:
        raise ConfigError(
            f"{shown(value)} is out of range; use 1 to 65535 seconds, or 0 for none"
        )
    return float(value)


def mode(value: object) -> Mode:
    """A mode by its text; the protocol's own name stands for the default."""
    return Mode.ADAPTIVE if value == "alpha" else choice(Mode)(value)
