"""The metrics listener of a real daemon; and that alerts and dashboard ask it only for
what it has.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61
"""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection
from pathlib import Path
from socket import SOCK_STREAM

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from alpha_trio.hooks import Result
from alpha_trio.proto.batch import Drop
from alpha_trio.proto.peers import State
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.relaying.path import Loss
from tests.netns.traffic import introduce, ping, wait_drop
from tools.daemons import Daemon
from tools.lab import Lab, wait_until

pytestmark = pytest.mark.netns

PACKAGING = Path(__file__).parents[2] / "packaging"
PORT = 9124
LISTEN = f'[metrics]\nlisten = "127.0.0.1:{PORT}"\n'
OPENMETRICS = "application/openmetrics-text;version=1.0.0"

OF_PROMETHEUS = {"instance", "job"}  # labels that it gives to what it scrapes
VALUES = {
    "reason": {*map(str, Drop), *map(str, RelayDrop), *map(str, Loss)},
    "state": set(map(str, State)),
    "result": set(map(str, Result)),
    "mode": {"n", "c", "m", "cm"},
}

METRIC = re.compile(r"\balpha_trio_\w+")
SELECTION = re.compile(r"\b(alpha_trio_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
TEMPLATE = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def scrape(host, accept="*/*"):
    """The answer to a scrape on ``host``: its type and its text."""

    def ask():
        connection = HTTPConnection("127.0.0.1", PORT, timeout=10)
        try:
            connection.request("GET", "/metrics", headers={"Accept": accept})
            answer = connection.getresponse()
            return answer.getheader("Content-Type"), answer.read().decode()
        finally:
            connection.close()

    return host.call(ask)


def alerts():
    """Of each alert its expression, and the texts that go with it."""
    rules = (PACKAGING / "prometheus-rules.yml").read_text()
    for rule in rules.split("- alert: ")[1:]:
        (expression,) = re.findall(r"^ +expr: (.+)$", rule, re.M)
        yield expression, rule


def panels():
    """Of each query of the dashboard its expression, and its legend."""
    board = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def variables():
    """Of each variable of the dashboard the series, and the label that is listed."""
    board = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            yield query[1], f"{{{{{query[2]}}}}}"


def served(text):
    """The labels of each sample's name; of a family without samples there are none."""
    found = {}
    for family in text_string_to_metric_families(text):
        suffix = "_total" if family.type == "counter" else ""
        found.setdefault(family.name.removesuffix("_total") + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def metrics():
    """What a daemon serves that has a peer, is a relay, and has lost packets."""
    with Lab() as lab:
        vm1, vm2 = lab.lan(2)
        with Daemon(vm1, "--relay", config=LISTEN) as one, Daemon(vm2) as two:
            introduce(one, two)
            ping(vm1, vm2.address)
            vm1.run("ping", "-c1", "-W1", "-Ialpha0", "10.99.0.1", check=False)
            wait_drop(one, "no-peer")
            yield served(scrape(vm1)[1])


# Without a lost packet of a peer, and of a relay, there is no sample to show these.
WITHOUT_SAMPLES = {
    "alpha_trio_peer_dropped_packets_total": {"peer", "reason"},
    "alpha_trio_relay_dropped_packets_total": {"reason"},
}


@pytest.mark.parametrize(
    ("expression", "texts"), [*alerts(), *panels(), *variables()], ids=lambda _: ""
)
def test_alerts_and_dashboard_ask_for_what_is_served(metrics, expression, texts):
    names = METRIC.findall(expression)
    assert names
    known = set(OF_PROMETHEUS)
    for name, matchers in SELECTION.findall(expression):
        assert name in metrics
        labels = metrics[name] or WITHOUT_SAMPLES.get(name, set())
        known |= labels
        for label, _, value in MATCHER.findall(matchers):
            assert label in labels | OF_PROMETHEUS, (name, label)
            if label in VALUES:
                assert set(value.split("|")) <= VALUES[label], (label, value)
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",")} <= known
    named = set(TEMPLATE.findall(texts)) - {"value"}
    assert named <= known, (expression, named)


def test_there_are_alerts_and_panels():
    assert len([*alerts()]) > 10
    assert len([*panels()]) > 15
    assert len([*variables()]) == 2


def test_the_listener_says_what_the_command_says(pair):
    vm1, vm2 = pair
    with Daemon(vm1, config=LISTEN) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        kind, text = scrape(vm1)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert 'alpha_trio_peer_established{peer="vm2"} 1.0\n' in text
        assert 'alpha_trio_peer_state{peer="vm2",state="established"} 1.0\n' in text
        assert served(text) == served(one.cli("metrics").stdout)
        kind, text = scrape(vm1, OPENMETRICS)
        assert kind.startswith(OPENMETRICS.replace(";", "; "))
        assert len(list(parse_openmetrics(text))) > 20
        complaints = len(one.status()["health"])
        assert f"alpha_trio_health_complaints {float(complaints)}\n" in text


def test_a_port_in_use_harms_nothing_else_and_is_told(pair):
    vm1, vm2 = pair
    with vm1.socket(kind=SOCK_STREAM) as other:
        other.bind(("127.0.0.1", PORT))
        other.listen()
        with Daemon(vm1, config=LISTEN) as one, Daemon(vm2) as two:
            introduce(one, two)
            ping(vm1, vm2.address)

            def told():
                return [line for line in one.status()["health"] if str(PORT) in line]

            wait_until(told, "a line of health")
            assert "Address already in use; end what listens there" in told()[0]
            assert one.log.count("No metrics at 127.0.0.1:9124") == 1
            other.close()
            wait_until(lambda: not told(), "the port to be taken")
            assert "alpha_trio_info" in scrape(vm1)[1]
