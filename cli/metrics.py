"""The status document as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf, nan
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Document = Mapping[str, Any]
Samples = Iterable[tuple[tuple[str, ...], float]]  # label values, value

# Metric: field of the status document, description.
PEER_COUNTERS = {
    "transmitted_packets": ("tx_packets", "Inner packets sent to the peer."),
    "transmitted_bytes": ("tx_bytes", "Bytes of inner packets sent to the peer."),
    "received_packets": ("rx_packets", "Inner packets received from the peer."),
    "received_bytes": ("rx_bytes", "Bytes of inner packets received from the peer."),
    "split_packets": ("split_packets", "Packets sent to the peer in fragments."),
    "reliable_rounds": ("reliable_rounds", "Reliable rounds to the peer."),
    "early_transmitted_packets": ("early_sent", "Packets that went to the peer early."),
    "early_received_packets": (
        "early_received",
        "Packets of the peer that came early.",
    ),
}

# Metric: field, factor to the base unit, value for a peer never seen, description.
# A peer never seen has a value as well: "longer ago than" must hold for it.
PEER_GAUGES = {
    "handshake_age_seconds": (
        *("latest_handshake_seconds", 1.0, inf),
        "Time since the latest handshake; +Inf: never.",
    ),
    "receive_age_seconds": (
        *("latest_receive_seconds", 1.0, inf),
        "Time since the latest authentic packet from the peer; +Inf: never.",
    ),
    "round_trip_seconds": (
        *("rtt_ms", 0.001, nan),
        "Round-trip time to the peer; NaN: not known.",
    ),
    "associations": (*("associations", 1.0, nan), "Chains that rounds can run on."),
    "elements_left": (
        *("elements_left", 1.0, nan),
        "Elements that the chains to the peer still have.",
    ),
    "queued_packets": (*("queued", 1.0, nan), "Packets that wait to be sent."),
    "mtu_bytes": (
        *("mtu", 1.0, nan),
        "Largest inner packet to the peer; NaN: not known.",
    ),
}


RELAY_COUNTERS = {
    "forwarded_packets": "Datagrams relayed for others.",
    "forwarded_bytes": "Bytes of datagrams relayed for others.",
    "unverified_packets": "Of these, datagrams that passed unchecked, by policy.",
    "evicted": "Sessions forgotten to make room.",
}


def metrics_text(status: Document) -> str:
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    return generate_latest(registry).decode()


class StatusCollector(Collector):
    """The metrics of one status document."""

    def __init__(self, status: Document) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from _daemon_metrics(self._status)
        yield from _peer_metrics(self._status["peers"])
        if (relay := self._status["relay"]) is not None:
            yield from _relay_metrics(relay)


def _daemon_metrics(status: Document) -> Iterator[Metric]:
    labels = {"version": status["version"], "interface": status["interface"]["name"]}
    yield InfoMetricFamily("alpha_trio", "The daemon.", labels)
    yield _gauge("uptime_seconds", "Time since the start.", status["uptime_seconds"])
    yield _gauge("health_complaints", "Lines of health.", len(status["health"]))
    yield _gauge(
        "knocking_hosts",
        "Hosts that try to reach this one and are not configured.",
        len(status["knocking"]),
    )
    yield _counter(
        "dropped_packets",
        "Packets lost that belong to no peer.",
        ["reason"],
        _reasons(status),
    )


def _peer_metrics(peers: Iterable[Document]) -> Iterator[Metric]:
    yield _gauges(
        "peer_established",
        "1: there is a session with the peer.",
        ["peer"],
        [((peer["name"],), peer["state"] == "established") for peer in peers],
    )
    yield _gauges(
        "peer_routed",
        "1: the kernel leads all packets for the peer into the tunnel.",
        ["peer"],
        [((peer["name"],), peer["routed"]) for peer in peers],
    )
    yield _gauges(
        "peer_early",
        "1: small packets to the peer go early.",
        ["peer"],
        [((peer["name"],), peer["early_state"] == "on") for peer in peers],
    )
    for name, (key, text) in PEER_COUNTERS.items():
        samples = [((peer["name"],), peer[key]) for peer in peers]
        yield _counter(f"peer_{name}", text, ["peer"], samples)
    for name, (key, factor, never, text) in PEER_GAUGES.items():
        readings = [((p["name"],), _scaled(p[key], factor, never)) for p in peers]
        yield _gauges(f"peer_{name}", text, ["peer"], readings)
    yield _counter(
        "peer_rounds",
        "Rounds to the peer by mode.",
        ["peer", "mode"],
        [((p["name"], mode), n) for p in peers for mode, n in p["rounds"].items()],
    )
    yield _counter(
        "peer_dropped_packets",
        "Packets lost to or from the peer.",
        ["peer", "reason"],
        [sample for peer in peers for sample in _reasons(peer, peer["name"])],
    )


def _relay_metrics(relay: Document) -> Iterator[Metric]:
    yield _gauge("relay_sessions", "Sessions this relay knows.", relay["sessions"])
    yield _gauge("relay_memory_bytes", "What they need.", relay["memory_bytes"])
    for name, text in RELAY_COUNTERS.items():
        yield _counter(f"relay_{name}", text, [], [((), relay[name])])
    text = "Packets of others not relayed."
    yield _counter("relay_dropped_packets", text, ["reason"], _reasons(relay))


def _scaled(value: float | None, factor: float, never: float) -> float:
    return never if value is None else value * factor


def _reasons(document: Document, *labels: str) -> Samples:
    return [((*labels, why), count) for why, count in document["drops"].items()]


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, [], [((), value)])


def _gauges(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"alpha_trio_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"alpha_trio_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
