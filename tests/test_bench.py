"""What the benchmark makes of what it measures."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tools import bench, measure
from tools.bench import Run
from tools.contenders import AlphaTrio, PlainLink
from tools.measure import Delivery, highest_rate, parse_ping, percentile

PING = """\
PING 192.168.10.61 (192.168.10.61) 56(84) bytes of data.
64 bytes from 192.168.10.61: icmp_seq=1 ttl=64 time=0.187 ms
64 bytes from 192.168.10.61: icmp_seq=2 ttl=64 time=12 ms

--- 192.168.10.61 ping statistics ---
3 packets transmitted, 2 received, 33.3333% packet loss, time 30ms
rtt min/avg/max/mdev = 0.187/6.093/12.000/0.070 ms
"""


def path(capacity: float, sender: float):
    """A path that carries ``capacity`` packets/s, from a sender able to ``sender``."""
    rates = []

    def probe(rate: float) -> Delivery:
        rates.append(rate)
        sent = min(rate or sender, sender)
        return Delivery(sent, min(sent, capacity))

    return probe, rates


@given(capacity=st.floats(10_000, 200_000), factor=st.floats(1.02, 10))
def test_search_finds_the_capacity_of_a_path(capacity, factor):
    sender = capacity * factor
    probe, rates = path(capacity, sender)
    found = highest_rate(probe)
    # To the step of the search, and it may count on one percent of loss.
    assert capacity - sender / 64 <= found <= capacity
    assert len(rates) <= 15


def test_search_ends_at_once_where_the_sender_is_the_limit():
    probe, rates = path(capacity=300_000, sender=200_000)
    assert highest_rate(probe) == 200_000
    assert rates == [0]


def test_one_unlucky_run_does_not_decide():
    probe, rates = path(capacity=100_000, sender=200_000)

    def unlucky(rate: float) -> Delivery:
        lost = len(rates) == 1  # the first run after the flood
        delivery = probe(rate)
        return Delivery(delivery.sent, 0) if lost else delivery

    assert highest_rate(unlucky) == pytest.approx(100_000, rel=0.02)


def test_search_on_a_dead_path_finds_nothing():
    probe, _ = path(capacity=0, sender=200_000)
    assert highest_rate(probe) == 0


def test_no_packet_sent_counts_as_loss():
    assert Delivery(0, 0).loss == 1


def test_ping_output():
    assert parse_ping(PING) == [0.187, 12]


def test_ping_output_without_replies():
    assert parse_ping(PING.replace("time=", "")) == []


def test_percentile_is_one_of_the_values():
    values = list(range(1, 201))
    assert percentile(values, 0.99) == 198
    assert percentile(values, 0.5) == 100
    assert percentile([7.0], 0.99) == 7


def test_process_figures_of_this_process():
    before = measure.cpu_seconds(os.getpid())
    while os.times().user + os.times().system < before + 0.05:
        pass
    assert measure.cpu_seconds(os.getpid()) > before
    assert 1 < measure.resident_mb([os.getpid()]) < 10_000


RUNS = [
    Run("plain link", {"tcp_1_gbits": 10.0}),
    Run("alpha-trio", {"tcp_1_gbits": 3.0, "rss_idle_mb": 40.0}),
    Run("plain link", {"tcp_1_gbits": 14.0}),
    Run("alpha-trio", {"tcp_1_gbits": 4.0, "rss_idle_mb": 42.0}),
    Run("plain link", {"tcp_1_gbits": 11.0}),
    Run("alpha-trio", {"tcp_1_gbits": 5.5, "rss_idle_mb": 41.0}),
]


def test_medians_and_ratios():
    figures = bench.medians(RUNS)
    assert figures == {
        "plain link": {"tcp_1_gbits": 11.0},
        "alpha-trio": {"tcp_1_gbits": 4.0, "rss_idle_mb": 41.0},
    }
    assert bench.ratios(figures) == {
        "alpha-trio": {"tcp_1_gbits": pytest.approx(4 / 11)}
    }


def test_a_base_of_zero_has_no_ratio():
    figures = {"plain link": {"ping": 0.0}, "alpha-trio": {"ping": 1.0}}
    assert bench.ratios(figures) == {"alpha-trio": {}}


def test_table_shows_each_figure_once_with_its_ratio():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(bench.table(bench.medians(RUNS)))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines == [
        "unit plain link alpha-trio ratio",
        "TCP, 1 stream Gbit/s 11.00 4.00 0.36",
        "memory, idle MB - 41.0",
    ]


def test_every_measured_figure_has_a_row():
    rows = {row.figure for row in bench.ROWS}
    assert {f"udp_{size}_pps" for size in bench.UDP_SIZES} <= rows
    assert len(rows) == len(bench.ROWS)


def test_options_choose_the_contenders():
    options = bench.parse_arguments(["--peers", "1000", "--no-offload", "gro"])
    assert bench.contenders_for(options) == [
        PlainLink(),
        AlphaTrio(disabled_offloads=("gro",)),
        AlphaTrio("1000 peers", 1000, ("gro",)),
    ]


@pytest.mark.parametrize("value", ["0", "-1", "60001", "many"])
def test_a_number_out_of_range_is_wrong_usage(value, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.parse_arguments(["--peers", value])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err
