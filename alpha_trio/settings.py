"""Settings: what the user asked for, checked, in the form the daemon works with."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path

from attrs import field, frozen

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

DEFAULT_PORT = 1234
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


class Offload(StrEnum):
    """A kernel batch facility that can be switched off; names as in ``status``."""

    VNET_HDR = "vnet-hdr"  # off: no virtio header on the TUN, so no TSO and USO either
    TSO = "tso"  # TCP super-packets from the TUN, IPv4 and IPv6
    USO = "uso"  # UDP super-packets from the TUN
    SEGMENT = "segment"  # UDP_SEGMENT: many datagrams in one send
    GRO = "gro"  # UDP_GRO: many datagrams in one receive


@frozen
class Selection:
    """``--only PROTO[/PORT[-PORT]]``: which of a peer's traffic takes the tunnel.

    A port range matches either end, so that it works on client and server alike.
    """

    protocol: int  # IP protocol number
    ports: tuple[int, int] | None = None  # first and last, both included


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

    @property
    def host(self) -> str:
        """What is looked up to find the peer: an address or a host name."""
        return self.endpoint or self.name


@frozen
class RoutingSettings:
    """Where in the kernel's tables our rules and routes go."""

    backend: Backend = Backend.RULES
    table: int = 5182  # and the one after it
    priority: int = 5182  # of the first rule; 28 from there on are ours
    mark: int = 0x5182  # marks backend only
    protocol: int = 161  # tag on our rules and routes; tells leftovers apart


@frozen
class Settings:
    """Everything ``alpha-trio run`` needs to know."""

    interface: str = "alpha0"
    port: int = DEFAULT_PORT
    addresses: tuple[IPInterface, ...] = ()
    relay: bool = False
    state_dir: Path = DEFAULT_STATE_DIR
    socket: Path = DEFAULT_SOCKET
    socket_group: str | None = None
    config_file: Path | None = None
    routing: RoutingSettings = field(factory=RoutingSettings)
    disabled_offloads: frozenset[Offload] = frozenset()
    verbosity: int = 0  # 0: events, 1: more, 2: every packet
    peers: tuple[PeerSettings, ...] = ()  # those of the config file
