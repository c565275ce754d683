"""The status document as metrics: names, help texts, and the text of a scrape.

The one home of both, for the command and for the daemon's listener.  A page is made
piece by piece, a document at a time, so that who has packets to carry can do so in
between.  The library says what stands above the samples and which format an Accept
header asks for; the samples themselves, which are the same in both formats, are written
here: it takes 200 us of a peer for them, and this a quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf, nan
from operator import itemgetter
from typing import Any

from attrs import define, field, frozen
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = [
    "DAEMON",
    "HEALTH",
    "PEER",
    "RELAY",
    "Document",
    "Family",
    "Page",
    "metrics_text",
]

Document = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]  # label values, value
Encoder = Callable[[Collector], bytes]

PREFIX = "alpha_trio_"
_OPENMETRICS = "application/openmetrics-text"
_END = b"# EOF\n"  # of a whole page in the OpenMetrics format
_SUFFIXES = {"gauge": "", "counter": "_total", "info": "_info"}


@frozen
class Family:
    """One metric: what it is called and means, and where in a document it stands."""

    name: str  # without the prefix, and without the suffix of its kind
    kind: str
    text: str
    labels: tuple[str, ...]  # in the order of the alphabet, as the library has them
    read: Callable[[Document], Iterable[Sample]] = field(repr=False)
    free_text: bool = False  # label values may hold anything
    figure: Callable[[Document], float] | None = field(default=None, repr=False)
    """The one value of each peer, for who has no other label: much faster to write."""
    sample_name: str = field(init=False)
    _line: str = field(init=False, repr=False)  # with a place for each value

    def __attrs_post_init__(self) -> None:
        name = f"{PREFIX}{self.name}".rstrip("_") + _SUFFIXES[self.kind]
        labels = ",".join(f'{label}="%s"' for label in self.labels)
        line = f"{name}{{{labels}}} %s\n" if labels else f"{name} %s\n"
        object.__setattr__(self, "sample_name", name)
        object.__setattr__(self, "_line", line)

    def lines(self, document: Document) -> str:
        """Its samples in ``document``, a line each."""
        if self.figure is not None:
            return self._line % (document["name"], _number(self.figure(document)))
        line, samples = self._line, self.read(document)
        if self.free_text:
            samples = [(tuple(map(_escaped, values)), n) for values, n in samples]
        return "".join([line % (*values, _number(value)) for values, value in samples])


def _number(value: float) -> str:
    """As the library writes it, which takes its time."""
    if type(value) is int and 0 <= value < 1_000_000:
        return f"{value}.0"
    written: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return written


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value


# What there is


def _gauge(name: str, text: str, read: Callable[[Document], float]) -> Family:
    return Family(name, "gauge", text, (), lambda document: [((), read(document))])


def _peer_gauge(name: str, text: str, read: Callable[[Document], float]) -> Family:
    return _peer_figure("gauge", name, text, read)


def _peer_figure(
    kind: str, name: str, text: str, figure: Callable[[Document], float]
) -> Family:
    def read(peer: Document) -> Iterable[Sample]:
        return [((peer["name"],), figure(peer))]

    return Family(f"peer_{name}", kind, text, ("peer",), read, figure=figure)


def _reading(name: str, text: str, key: str, factor: float, never: float) -> Family:
    """A figure that a peer never seen has none of.

    It has a value all the same: "longer ago than" must hold for it.
    """

    def read(peer: Document) -> float:
        value = peer[key]
        return never if value is None else value if factor == 1 else value * factor

    return _peer_gauge(name, text, read)


def _peer_counter(name: str, text: str, key: str) -> Family:
    return _peer_figure("counter", name, text, itemgetter(key))


def _relay_counter(name: str, text: str) -> Family:
    return Family(
        f"relay_{name}", "counter", text, (), lambda relay: [((), relay[name])]
    )


def _reasons(document: Document) -> Iterable[Sample]:
    return [((why,), count) for why, count in document["drops"].items()]


def _info(status: Document) -> Iterable[Sample]:
    return [((status["interface"]["name"], status["version"]), 1)]


DAEMON = (
    Family("", "info", "The daemon.", ("interface", "version"), _info, True),
    _gauge(
        "uptime_seconds", "Time since the start.", lambda s: float(s["uptime_seconds"])
    ),
    _gauge(
        "knocking_hosts",
        "Hosts that try to reach this one and are not configured.",
        lambda status: len(status["knocking"]),
    ),
    Family(
        "dropped_packets",
        "counter",
        "Packets lost that belong to no peer.",
        ("reason",),
        _reasons,
    ),
    Family(
        "hooks",
        "counter",
        "Hooks of peers, by what became of them.",
        ("result",),
        lambda status: [((r,), n) for r, n in status.get("hooks", {}).items()],
    ),
)
"""Read from the status document."""

HEALTH = _gauge(
    "health_complaints", "Lines of health.", lambda status: len(status["health"])
)
"""Read from the status document, too, once all of ``health`` is known."""

PEER = (
    _peer_gauge(
        "established",
        "1: there is a session with the peer.",
        lambda peer: int(peer["state"] == "established"),
    ),
    Family(
        "peer_state",
        "gauge",
        "1: the peer is in this state.",
        ("peer", "state"),
        lambda peer: [((peer["name"], peer["state"]), 1)],
    ),
    _peer_gauge(
        "routed",
        "1: the kernel leads all packets for the peer into the tunnel.",
        lambda peer: int(peer["routed"]),
    ),
    _peer_gauge(
        "early",
        "1: small packets to the peer go early.",
        lambda peer: int(peer["early_state"] == "on"),
    ),
    _peer_counter(
        "transmitted_packets", "Inner packets sent to the peer.", "tx_packets"
    ),
    _peer_counter(
        "transmitted_bytes", "Bytes of inner packets sent to the peer.", "tx_bytes"
    ),
    _peer_counter(
        "received_packets", "Inner packets received from the peer.", "rx_packets"
    ),
    _peer_counter(
        "received_bytes", "Bytes of inner packets received from the peer.", "rx_bytes"
    ),
    _peer_counter(
        "split_packets", "Packets sent to the peer in fragments.", "split_packets"
    ),
    _peer_counter("reliable_rounds", "Reliable rounds to the peer.", "reliable_rounds"),
    _peer_counter(
        "early_transmitted_packets",
        "Packets that went to the peer early.",
        "early_sent",
    ),
    _peer_counter(
        "early_received_packets",
        "Packets of the peer that came early.",
        "early_received",
    ),
    _reading(
        "handshake_age_seconds",
        "Time since the latest handshake; +Inf: never.",
        *("latest_handshake_seconds", 1, inf),
    ),
    _reading(
        "receive_age_seconds",
        "Time since the latest authentic packet from the peer; +Inf: never.",
        *("latest_receive_seconds", 1, inf),
    ),
    _reading(
        "round_trip_seconds",
        "Round-trip time to the peer; NaN: not known.",
        *("rtt_ms", 0.001, nan),
    ),
    _reading(
        "associations",
        "Chains that rounds can run on.",
        *("associations", 1, nan),
    ),
    _reading(
        "elements_left",
        "Elements that the chains to the peer still have.",
        *("elements_left", 1, nan),
    ),
    _reading("queued_packets", "Packets that wait to be sent.", "queued", 1, nan),
    _reading(
        "mtu_bytes",
        "Largest inner packet to the peer; NaN: not known.",
        *("mtu", 1, nan),
    ),
    Family(
        "peer_rounds",
        "counter",
        "Rounds to the peer by mode.",
        ("mode", "peer"),
        lambda peer: [((mode, peer["name"]), n) for mode, n in peer["rounds"].items()],
    ),
    Family(
        "peer_dropped_packets",
        "counter",
        "Packets lost to or from the peer.",
        ("peer", "reason"),
        lambda peer: [
            ((peer["name"], why), count) for why, count in peer["drops"].items()
        ],
    ),
)
"""Read from what the status document has of one peer."""

RELAY = (
    Family(
        "relay_sessions",
        "gauge",
        "Sessions this relay knows.",
        (),
        lambda relay: [((), relay["sessions"])],
    ),
    Family(
        "relay_memory_bytes",
        "gauge",
        "What they need.",
        (),
        lambda relay: [((), relay["memory_bytes"])],
    ),
    _relay_counter("forwarded_packets", "Datagrams relayed for others."),
    _relay_counter("forwarded_bytes", "Bytes of datagrams relayed for others."),
    _relay_counter(
        "unverified_packets", "Of these, datagrams that passed unchecked, by policy."
    ),
    _relay_counter("evicted", "Sessions forgotten to make room."),
    Family(
        "relay_dropped_packets",
        "counter",
        "Packets of others not relayed.",
        ("reason",),
        _reasons,
    ),
)
"""Read from what the status document has of the relay."""


# The text


def metrics_text(status: Document) -> str:
    """All metrics of one status document, in the text format."""
    page = Page()
    page.add_daemon(status)
    for peer in status["peers"]:
        page.add(PEER, peer)
    page.add([HEALTH], status)
    return b"".join(page.parts()).decode()


@define(eq=False)
class Page:
    """One scrape in the format that an Accept header asks for, made in pieces."""

    accept: str = ""
    content_type: str = field(init=False)
    _encode: Encoder = field(init=False)
    _lines: dict[str, list[str]] = field(factory=dict)  # by the family's name
    _families: dict[str, Family] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._encode, self.content_type = choose_encoder(_asked_for(self.accept))

    def add_daemon(self, status: Document) -> None:
        """What a status document has of the daemon and its relay."""
        self.add(DAEMON, status)
        self.declare(PEER)
        if (relay := status["relay"]) is not None:
            self.add(RELAY, relay)

    def declare(self, families: Iterable[Family]) -> None:
        """Say what there is, even if nothing of it can be told."""
        for family in families:
            self._families[family.name] = family
            self._lines.setdefault(family.name, [])

    def add(self, families: Iterable[Family], document: Document) -> None:
        """Samples of each of ``families``, below those that it has already."""
        for family in families:
            if (lines := self._lines.get(family.name)) is None:
                self.declare([family])
                lines = self._lines[family.name]
            lines.append(family.lines(document))

    def parts(self) -> Iterator[bytes]:
        """The page, a family at a time, whose lines then are no more.

        To let go of all of them at once would take as long as several slices.
        """
        for name, family in self._families.items():
            yield self._head(family)
            yield "".join(self._lines.pop(name)).encode()
        if self.content_type.startswith(_OPENMETRICS):
            yield _END

    def _head(self, family: Family) -> bytes:
        """What the library writes above the samples of a family."""
        name = f"{PREFIX}{family.name}".rstrip("_")
        metric = Metric(name, family.text, family.kind)
        return self._encode(_Only(metric)).removesuffix(_END)


def _asked_for(accept: str) -> str:
    """The format that is named first, without a version that somebody made up."""
    for element in accept.split(","):
        media_type = element.partition(";")[0].strip().lower()
        if media_type == "text/plain":
            break
        if media_type == _OPENMETRICS:
            return f"{_OPENMETRICS}; version=1.0.0"
    return ""


@frozen
class _Only(Collector):
    """A registry of one metric."""

    metric: Metric

    def collect(self) -> Iterable[Metric]:
        return [self.metric]
