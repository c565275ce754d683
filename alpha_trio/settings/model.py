"""Settings: what the user asked for, checked, in the form the daemon works with."""

from __future__ import annotations

from enum import Enum, StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from os.path import splitext
from pathlib import Path

from attrs import field, frozen

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

DEFAULT_PORT = 1234
MOST_CORES = 64
DEFAULT_CONFIG = Path("/etc/alpha-trio/alpha-trio.toml")
DEFAULT_STATE_DIR = Path("/var/lib/alpha-trio")
DEFAULT_SOCKET = Path("/run/alpha-trio/control.sock")


class Backend(StrEnum):
    """How packets are led into the tunnel."""

    RULES = "rules"
    MARKS = "marks"
    NONE = "none"


class Mode(StrEnum):
    """How a peer's packets are protected.  All but plain encrypt them, too.

    One way for all rounds is meant for measuring; adaptive chooses for each round.
    """

    ADAPTIVE = "adaptive"
    N = "n"  # base: one packet, one MAC
    C = "c"  # cumulative: the MACs of many packets in one S1
    M = "m"  # Merkle tree over many packets, its root in S1
    CM = "cm"  # several trees in one S1
    PLAIN = "plain"  # not at all; only if both sides ask for it


class Copy(Enum):
    """The DSCP that stands for that of each inner packet."""

    COPY = "copy"


COPY = Copy.COPY


class Offload(StrEnum):
    """A kernel batch facility that can be switched off; names as in ``status``."""

    VNET_HDR = "vnet-hdr"  # off: no virtio header on the TUN, so no TSO and USO either
    TSO = "tso"  # TCP super-packets from the TUN, IPv4 and IPv6
    USO = "uso"  # UDP super-packets from the TUN
    SEGMENT = "segment"  # UDP_SEGMENT: many datagrams in one send
    GRO = "gro"  # UDP_GRO: many datagrams in one receive


class Engine(StrEnum):
    """What does the work on each packet; see proto/engine."""

    AUTO = "auto"  # native where it is there and passes its self-test
    NATIVE = "native"
    PYTHON = "python"


@frozen
class Selection:
    """``--only PROTO[/PORT[-PORT]]``: which of a peer's traffic takes the tunnel.

    A port range matches either end, so that it works on client and server alike.
    """

    protocol: int  # IP protocol number
    ports: tuple[int, int] | None = None  # first and last, both included


@frozen
class HookSettings:
    """Programs to run when something happens to a peer, each with its arguments."""

    on_up: tuple[str, ...] = ()
    on_down: tuple[str, ...] = ()
    on_moved: tuple[str, ...] = ()


@frozen
class PeerSettings:
    """One configured peer.  Equal settings mean: adding it again changes nothing."""

    name: str
    endpoint: str | None = None  # address or host name; None: resolve the peer's name
    port: int = DEFAULT_PORT
    key: str | None = None  # in base64; None: the key of the first contact is pinned
    allow: tuple[IPNetwork, ...] = ()  # empty: the endpoint's own address
    only: tuple[Selection, ...] = ()  # empty: everything
    keepalive: float = 0.0  # seconds between keepalives; 0: none
    mode: Mode = Mode.ADAPTIVE
    reliable: bool = False  # repeat packets until the peer acknowledges them
    early: bool = True  # small packets travel inside S1, in both directions
    mtu: int = 0  # largest inner packet, bytes; 0: found out by probes
    psk: str | None = field(default=None, repr=False)  # a secret, in base64
    psk_file: str | None = field(default=None, eq=False)  # where that was read
    hooks: HookSettings | None = None  # from the config file, and from nowhere else

    @property
    def host(self) -> str:
        """What is looked up to find the peer: an address or a host name."""
        return self.endpoint or self.name

    @property
    def waits(self) -> bool:
        """Whether the peer is never asked, but waited for until it calls.

        That is who has a key to be known by and prefixes of its own, and nothing to be
        looked up: no endpoint, and a name without a dot, so of no host elsewhere.
        """
        named = self.endpoint is not None or "." in self.name
        return not named and self.key is not None and bool(self.allow)


@frozen
class RoutingSettings:
    """Where in the kernel's tables our rules and routes go."""

    backend: Backend = Backend.RULES
    table: int = 5182  # and the two after it
    priority: int = 5182  # of the first rule; 28 from there on are ours, 3 before it
    # And the number after it, and four times it.  None of their bits is kube-proxy's
    # (14, 15), Tailscale's or Calico's (16 on), nor a value of Cilium's (8 to 11).
    mark: int = 0x182
    protocol: int = 161  # tag on our rules and routes; tells leftovers apart
    mss: bool = False  # lower the segment size in forwarded TCP SYNs

    @property
    def relay_table(self) -> int:
        """The table that hands others' tunnel traffic to the relay."""
        return self.table + 2

    @property
    def relay_priority(self) -> int:
        """The first of the three priorities of the relay's rules."""
        return self.priority - 3

    @property
    def relay_mark(self) -> int:
        """The mark of others' tunnel traffic on its way to the relay."""
        return self.mark + 1

    @property
    def inner_mark(self) -> int:
        """What came out of the tunnel bears it while the packet filter checks sources.

        It never has all bits of ``mark``.
        """
        return self.mark << 2 & 0xFFFF_FFFF or 4


class Fail(StrEnum):
    """What becomes of others' tunnel traffic while the relay does not run."""

    OPEN = "open"  # it is forwarded as if there were no relay
    CLOSED = "closed"  # it is dropped, until the relay runs again or ``cleanup``


class Unseen(StrEnum):
    """What a relay does with sessions whose handshake did not pass it."""

    PASS = "pass"
    DROP = "drop"
    UNTIL_HANDSHAKE = "until-handshake"  # pass while they can be older than we run


class Consent(StrEnum):
    """From where a relay takes the answers to what passed it."""

    LINK = "link"  # from the address asked, by another link than the question
    ADDRESS = "address"  # from the address asked
    ANY = "any"


class RelayEarly(StrEnum):
    """What a relay does with packets inside an S1, which it can only check later."""

    LIMITED = "limited"  # as many pass as a rate for what is not proven yet allows
    OFF = "off"  # the ends are told not to send any


@frozen
class RelaySettings:
    """Whether and how others' tunnel traffic that crosses this host is checked."""

    enabled: bool = False
    fail: Fail = Fail.OPEN
    ports: tuple[int, ...] = ()  # the tunnels' UDP ports; empty: our own
    unseen: Unseen = Unseen.UNTIL_HANDSHAKE
    require_a1: bool = True  # False: the answers may take another way
    consent: Consent = Consent.LINK
    keys: tuple[str, ...] = ()  # in base64; both ends must have one; empty: any
    s1_rate: float = 20_000.0  # new rounds a second, of a session and direction
    sessions: int = 4096  # remembered at most
    memory: int = 64 << 20  # bytes for all of them
    roots: int = 0  # the most that an S1 may hold, told to both ends; 0: any number
    trace: bool = False  # answer to traces of the ends
    early: RelayEarly = RelayEarly.LIMITED


class LogFormat(StrEnum):
    """What a log line looks like."""

    TEXT = "text"
    JSON = "json"  # one document a line


@frozen
class Listen:
    """A TCP address to listen at."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@frozen
class MetricsSettings:
    """Whether and where metrics are served by HTTP."""

    listen: Listen | None = None


@frozen
class Settings:
    """Everything ``alpha-trio run`` needs to know."""

    interface: str = "alpha0"
    port: int = DEFAULT_PORT
    addresses: tuple[IPInterface, ...] = ()
    dscp: int | Copy = 0  # of our datagrams, 0 to 63
    state_dir: Path = DEFAULT_STATE_DIR
    socket: Path = DEFAULT_SOCKET
    socket_group: str | None = None  # may use it
    status_group: str | None = None  # may only ask, by a socket beside it
    config_file: Path | None = None
    routing: RoutingSettings = field(factory=RoutingSettings)
    relay: RelaySettings = field(factory=RelaySettings)
    metrics: MetricsSettings = field(factory=MetricsSettings)
    disabled_offloads: frozenset[Offload] = frozenset()
    log_format: LogFormat = LogFormat.TEXT
    engine: Engine = Engine.AUTO
    cores: int = 1  # processes that carry packets; from two on besides the first one
    verbosity: int = 0  # 0: events, 1: more, 2: every packet
    peers: tuple[PeerSettings, ...] = ()  # those of the config file

    @property
    def status_socket(self) -> Path:
        """Where the second control socket is, if there is one.

        The same as wire.status_socket, by which clients find it.
        """
        return Path("-status".join(splitext(self.socket)))
