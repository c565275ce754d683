"""The text of a scrape, compared with what the library would write of the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from alpha_trio.metrics import DAEMON, HEALTH, PEER, RELAY, Page, metrics_text
from alpha_trio.settings import PeerSettings
from tests.control.memory_node import status_of

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
RELAY_DOCUMENT = {
    "sessions": 1,
    "memory_bytes": 4000,
    "forwarded_packets": 7,
    "forwarded_bytes": 3 * 10**12,
    "unverified_packets": 0,
    "evicted": 0,
    "drops": {"forged": 5},
}


def document(names=("vm2", "vm3"), interface="alpha0"):
    peers = [status_of(PeerSettings(n, "192.168.10.61"), rtt_ms=0.4) for n in names]
    if peers:
        peers[0] |= {"drops": {"queue-full": 2}, "tx_bytes": 2**60, "rtt_ms": None}
    return {
        "version": "1.2.3",
        "interface": {"name": interface},
        "uptime_seconds": 1e-7,
        "knocking": [],
        "peers": peers,
        "relay": RELAY_DOCUMENT,
        "drops": {"no-peer": 4},
        "health": ["a line"],
    }


class Collected:
    """The same metrics, as the library wants to have them."""

    def __init__(self, status):
        self.status = status

    def collect(self):
        sources = (
            (DAEMON, [self.status]),
            (PEER, self.status["peers"]),
            (RELAY, [self.status["relay"]]),
            ([HEALTH], [self.status]),
        )
        for families, documents in sources:
            for family in families:
                name = f"alpha_trio_{family.name}".rstrip("_")
                metric = Metric(name, family.text, family.kind)
                for found in documents:
                    for values, value in family.read(found):
                        labels = dict(zip(family.labels, values, strict=True))
                        metric.add_sample(family.sample_name, labels, value)
                yield metric


def page(status, accept=""):
    page = Page(accept)
    page.add_daemon(status)
    for peer in status["peers"]:
        page.add(PEER, peer)
    page.add([HEALTH], status)
    return b"".join(page.parts())


@pytest.mark.parametrize("names", [(), ("vm2",), ("vm2", "a.b-c_d")])
def test_it_is_what_the_library_would_write(names):
    status = document(names)
    assert page(status) == generate_latest(Collected(status))
    assert page(status, OPENMETRICS) == openmetrics.generate_latest(Collected(status))
    assert metrics_text(status).encode() == page(status)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_name_breaks_a_line(interface):
    status = document((), interface)
    assert page(status) == generate_latest(Collected(status))


def test_both_formats_can_be_read():
    status = document()
    plain = list(text_string_to_metric_families(page(status).decode()))
    strict = list(parse_openmetrics(page(status, OPENMETRICS).decode()))
    assert len(plain) == len(strict) == len([*DAEMON, *PEER, *RELAY, HEALTH])


def test_names_keep_to_the_conventions():
    """What ``promtool check metrics`` looks at."""
    for family in (*DAEMON, *PEER, *RELAY, HEALTH):
        name = family.sample_name
        assert name.startswith("alpha_trio_")
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert list(family.labels) == sorted(family.labels)
        assert family.text.endswith(".")
        assert not any(word in name for word in ("gauge", "counter", "__")), name
        assert not any(unit in name for unit in ("milli", "_ms", "kilo", "mbit")), name


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=x.y", OPENMETRICS),
        (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.1", OPENMETRICS),
        (
            f"text/plain;version=0.0.4;q=0.5,{OPENMETRICS};q=0.1",
            "text/plain; version=0",
        ),
    ],
)
def test_the_format_is_the_one_asked_for(accept, content_type):
    assert Page(accept).content_type.startswith(content_type)
