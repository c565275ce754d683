"""What the benchmark makes of what it measures."""

from __future__ import annotations

import json
import os

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tools import bench, bench_report, measure
from tools.bench_links import Link
from tools.bench_report import ROWS, Comparison, Row, Run, Verdict, verdict
from tools.contenders import AlphaTrio, PlainLink, Relayed
from tools.measure import Delivery, highest_rate, parse_ping, percentile
from tools.others import OTHERS, OtherTunnel

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


@given(capacity=st.floats(1_000, 200_000), factor=st.floats(1.02, 100))
def test_search_finds_the_capacity_of_a_path(capacity, factor):
    probe, rates = path(capacity, capacity * factor)
    found = highest_rate(probe)
    # To the precision of the search, and it may count on one percent of loss.
    assert capacity / 1.06 <= found <= capacity
    assert len(rates) <= 1 + 2 * 8


def test_search_ends_at_once_where_the_sender_is_the_limit():
    probe, rates = path(capacity=300_000, sender=200_000)
    assert highest_rate(probe) == 200_000
    assert rates == [0]


@given(unlucky=st.sets(st.integers(1, 8).map(lambda step: 2 * step)))
def test_one_unlucky_run_does_not_decide(unlucky):
    probe, _ = path(capacity=100_000, sender=200_000)
    runs = []

    def disturbed(rate: float) -> Delivery:
        runs.append(rate)
        delivery = probe(rate)
        # Runs at a new rate, never the second try.
        is_lost = rate and runs.count(rate) == 1 and len(set(runs)) in unlucky
        return Delivery(delivery.sent, delivery.sent / 2) if is_lost else delivery

    assert highest_rate(disturbed) == pytest.approx(100_000, rel=0.06)


def test_search_finds_what_a_path_can_do_that_breaks_down_in_overload():
    def probe(rate: float) -> Delivery:
        sent = rate or 240_000
        return Delivery(sent, sent if sent <= 100_000 else 5_000)

    assert highest_rate(probe) == pytest.approx(100_000, rel=0.05)


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
    figures = bench_report.medians(RUNS)
    assert figures == {
        "plain link": {"tcp_1_gbits": 11.0},
        "alpha-trio": {"tcp_1_gbits": 4.0, "rss_idle_mb": 41.0},
    }
    assert bench_report.ratios(figures, [Comparison("alpha-trio", "plain link")]) == {
        "alpha-trio : plain link": {"tcp_1_gbits": pytest.approx(4 / 11)}
    }


def test_a_base_of_zero_has_no_ratio():
    assert bench_report.ratio({"ping": 1.0}, {"ping": 0.0}) == {}


def printed(tables):
    """Lines of the tables at the width of a terminal, runs of blanks as one."""
    console = Console(width=80)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_table_shows_each_figure_once_with_its_ratio():
    figures = bench_report.medians(RUNS)
    compared = bench_report.ratios(figures, [Comparison("alpha-trio", "plain link")])
    assert printed(bench_report.tables(figures, compared, others=0)) == [
        "alpha-trio :",
        "unit plain link alpha-trio plain link",
        "TCP, 1 stream Gbit/s 11.00 4.00 0.36",
        "memory, idle MB 41.0",
    ]


@pytest.mark.parametrize("more", ["--peers=60000", "--relays=2"])
def test_tables_of_everybody_fit_a_terminal(more):
    options = bench.parse_arguments([more, "--against", ",".join(OTHERS)])
    every_figure = dict.fromkeys((row.figure for row in ROWS), 9_999.0)
    figures = dict.fromkeys(
        (contender.name for contender in bench.contenders_for(options)), every_figure
    )
    compared = bench_report.ratios(figures, bench.comparisons_for(options))
    judged = {
        pair: {figure: Verdict("behind", 999_999) for figure in every_figure}
        for pair in compared
    }
    lines = printed(
        bench_report.tables(figures, compared, len(options.against))
        + bench_report.verdict_tables(judged)
    )
    assert lines.count("UDP, 64 bytes packets/s 9,999 9,999 9,999 9,999") == 1
    assert lines.count("UDP, 64 bytes 1.00 1.00 1.00 1.00") == 1
    assert any(line.startswith("alpha-trio : ") for line in lines)
    assert "plain link alpha-trio" in lines
    assert lines.count("UDP, 64 bytes" + 3 * " behind 10,001x") == 2
    assert not [line for line in lines if "…" in line]


def test_every_measured_figure_has_a_row():
    rows = {row.figure for row in ROWS}
    assert {f"udp_{size}_pps" for size in bench.UDP_SIZES} <= rows
    assert len(rows) == len(ROWS)


def test_options_choose_the_contenders_and_what_is_compared():
    line = "--peers 1000 --no-offload gro --mode plain --against tinc,nebula,tinc"
    options = bench.parse_arguments(line.split())
    assert bench.contenders_for(options) == [
        PlainLink(),
        AlphaTrio("alpha-trio", 1, ("gro",), "plain"),
        AlphaTrio("1000 peers", 1000, ("gro",), "plain"),
        OTHERS["tinc"],
        OTHERS["nebula"],
    ]
    assert [str(pair) for pair in bench.comparisons_for(options)] == [
        "alpha-trio : plain link",
        "1000 peers : alpha-trio",
        "alpha-trio : tinc",
        "alpha-trio : nebula",
    ]


def test_relays_are_compared_with_the_same_path_without():
    options = bench.parse_arguments(["--relays", "2", "--no-offload", "gro"])
    alpha_trio = AlphaTrio(disabled_offloads=("gro",))
    assert bench.contenders_for(options) == [
        PlainLink(),
        alpha_trio,
        Relayed("2 relays", alpha_trio),
    ]
    assert [str(pair) for pair in bench.comparisons_for(options)] == [
        "alpha-trio : plain link",
        "2 relays : alpha-trio",
    ]


def test_relays_of_another_version_are_put_between_the_same_ends(tmp_path):
    old = tmp_path / "alpha-trio"
    options = bench.parse_arguments(["--relays=1", f"--against=alpha-trio={old}"])
    ends = AlphaTrio()
    assert bench.contenders_for(options) == [
        PlainLink(),
        ends,
        Relayed("1 relay", ends),
        AlphaTrio("alpha-trio 2", program=old),
        Relayed("1 relay, alpha-trio 2", ends, old),
    ]
    assert [str(pair) for pair in bench.comparisons_for(options)] == [
        "alpha-trio : plain link",
        "1 relay : alpha-trio",
        "1 relay : 1 relay, alpha-trio 2",
        "alpha-trio : alpha-trio 2",
    ]


def test_each_relay_adds_its_share_to_the_round_trip():
    options = bench.parse_arguments(["--relays", "2"])
    figures = {
        "alpha-trio": {"ping_idle_median_ms": 1.0},
        "2 relays": {"ping_idle_median_ms": 1.5},
    }
    added = bench.with_relay_ping(figures, options)["2 relays"]["ping_relay_ms"]
    assert added == pytest.approx(0.25)


def test_a_tunnel_that_is_not_installed_is_left_out_in_one_line():
    absent = OtherTunnel("other", "other-vpn", ("no-such-program",), lambda *_: [])
    told = []
    assert bench.installed([absent], told.append) == []
    assert told == [
        "other is left out, no-such-program not found: apt-get install other-vpn"
    ]


def test_the_binary_of_a_contender_may_be_named(tmp_path):
    binary = tmp_path / "wireguard"
    line = f"wireguard-go,wireguard-go={binary},alpha-trio={binary},openvpn={binary}"
    options = bench.parse_arguments(["--against", line, "--mode", "plain"])
    *_, packaged, ours, old, openvpn = bench.contenders_for(options)
    assert packaged == OTHERS["wireguard-go"]
    assert (ours.name, ours.programs) == ("wireguard-go 2", [str(binary), "wg"])
    assert old == AlphaTrio("alpha-trio 2", mode="plain", program=binary)
    assert openvpn.name == "openvpn"
    assert [str(pair) for pair in bench.comparisons_for(options)] == [
        "alpha-trio : plain link",
        "alpha-trio : wireguard-go",
        "alpha-trio : wireguard-go 2",
        "alpha-trio : alpha-trio 2",
        "alpha-trio : openvpn",
    ]
    assert old.missing == [str(binary)]
    assert str(binary) in ours.missing
    told = []
    assert bench.installed([old], told.append) == []
    assert told == [f"alpha-trio 2 is left out, {binary} not found"]
    binary.write_text("#!/bin/sh\necho $0 version 7; exit 1\n")
    binary.chmod(0o700)
    assert old.missing == []
    for contender in (ours, old):
        assert contender.version == f"{binary} ({binary} version 7)"


@pytest.mark.parametrize(
    ("more", "ours", "theirs", "judged"),
    [
        # Beyond the spread of the rounds, and beyond 5 %.
        (True, [12, 13, 14], [9, 10, 11], Verdict("ahead", 30)),
        (True, [9, 10, 11], [19, 20, 21], Verdict("behind", -50)),
        (False, [9, 10, 11], [19, 20, 21], Verdict("ahead", -50)),
        (False, [40, 40, 50], [9, 10, 11], Verdict("behind", 300)),
        # Within one of them.
        (True, [12, 13, 30], [9, 10, 12], Verdict("level", 30)),
        (True, [104, 105, 106], [100, 100, 100], Verdict("level", 5)),
        # A single round knows no spread.
        (True, [119], [100], Verdict("level", 19)),
        (True, [121], [100], Verdict("ahead", 21)),
        (False, [0.0], [0.0], Verdict("level", None)),
        (False, [2.0], [0.0], Verdict("behind", None)),
    ],
)
def test_verdicts(more, ours, theirs, judged):
    row = Row("figure", "title", "unit", is_gain=more)
    found = verdict(row, ours, theirs)
    assert found.word == judged.word
    assert found.percent == (judged.percent and pytest.approx(judged.percent))


def test_a_row_may_have_a_noise_of_its_own():
    lost = Row("lost_percent", "lost", "%", least=1)
    assert verdict(lost, [1.5, 1.5], [0.6, 0.6]).word == "level"
    assert verdict(lost, [1.7, 1.7], [0.6, 0.6]).word == "behind"
    assert str(verdict(lost, [0.0], [11.3])) == "ahead 100 %"


def test_words_of_a_verdict():
    assert str(Verdict("ahead", 12.4)) == "ahead 12 %"
    assert str(Verdict("ahead", -12.4)) == "ahead 12 %"
    assert str(Verdict("behind", 14_067)) == "behind 142x"
    assert str(Verdict("behind", -99.5)) == "behind 200x"
    assert str(Verdict("behind", -100)) == "behind 100 %"
    assert str(Verdict("behind", None)) == "behind"
    assert str(Verdict("level", 0.2)) == "level"


def test_more_is_better_of_rates_only():
    gains = {row.figure for row in ROWS if row.is_gain}
    assert gains == {"tcp_1_gbits", "tcp_4_gbits", "udp_64_pps", "udp_1200_pps"}


def test_small_figures_have_two_digits_that_say_something():
    runs = [Run("alpha-trio", {"tcp_1_gbits": 0.00432, "tcp_4_gbits": 0.0})]
    columns = [
        bench_report.Column(name, figures)
        for name, figures in bench_report.medians(runs).items()
    ]
    assert printed([bench_report.table(columns)])[1:] == [
        "TCP, 1 stream Gbit/s 0.0043",
        "TCP, 4 streams Gbit/s 0.00",
    ]


def test_document_can_be_written_down_and_shown(tmp_path, capsys):
    file = tmp_path / "result.json"
    options = bench.parse_arguments(["--against", "tinc", "--json", str(file)])
    runs = [evolve(run, link="0 ms") for run in RUNS]
    runs.append(Run("tinc", {"tcp_1_gbits": 0.5}, "0 ms"))
    written = json.loads(json.dumps(bench.document(options, runs)))
    assert written["settings"]["against"] == ["tinc"]
    assert written["ratios"]["alpha-trio : tinc"] == {"tcp_1_gbits": 8}
    assert written["verdicts"]["alpha-trio : tinc"] == {
        "tcp_1_gbits": {"word": "ahead", "percent": 700}
    }
    assert "tinc" in written["machine"]
    assert len(written["runs"]) == len(runs)
    bench_report.show(written)
    shown = capsys.readouterr().out
    assert "medians of 3 rounds, 3 s each, TCP with " in shown
    assert "ahead 700 %" in shown


def test_every_link_has_its_findings_and_a_column(capsys):
    options = bench.parse_arguments(["--profile", "lossy", "--only", "tcp"])
    runs = [
        evolve(run, link=str(link), figures={"tcp_1_gbits": 9 - number})
        for number, link in enumerate(options.links)
        for run in RUNS
    ]
    written = json.loads(json.dumps(bench.document(options, runs)))
    assert [found["link"] for found in written["links"]][:2] == [
        "10 ms",
        "10 ms, 0.1 % lost",
    ]
    assert written["links"][5]["loss_percent"] == 1
    for number, found in enumerate(written["links"]):
        assert found["medians"]["alpha-trio"] == {"tcp_1_gbits": 9 - number}
    # What was there before there were links is that of the first.
    for key in ("medians", "ratios", "verdicts"):
        assert written[key] == written["links"][0][key]
    bench_report.show(written)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[shown.index("alpha-trio, by round trip and loss of the link:") :] == [
        "alpha-trio, by round trip and loss of the link:",
        "",
        "10 ms, 10 ms,",
        "unit 10 ms 0.1 % lost 1 % lost",
        "TCP, 1 stream Gbit/s 9.00 8.00 7.00",
        "",
        "100 ms, 100 ms,",
        "unit 100 ms 0.1 % lost 1 % lost",
        "TCP, 1 stream Gbit/s 6.00 5.00 4.00",
    ]


def test_what_is_measured_of_a_link():
    options = bench.parse_arguments([])
    assert bench.groups_for(Link(10), options) == {*bench.GROUPS}
    assert bench.groups_for(Link(10, 1), options) == {*bench.GROUPS} - {"udp"}
    options = bench.parse_arguments(["--only", "udp,ssh,udp"])
    assert bench.groups_for(Link(10, 1), options) == {"udp", "ssh"}
    assert [
        contender.is_start_timed
        for contender in bench.contenders_for(options)
        if isinstance(contender, AlphaTrio)
    ] == [False]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--against", "tinc,ipsec"),
        ("--against", "alpha-trio"),
        ("--mode", "fast"),
        ("--profile", "lan,moon"),
        ("--only", "tcp,sctp"),
        ("--congestion", "none"),
    ],
)
def test_an_unknown_word_is_wrong_usage(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.parse_arguments([option, value])
    assert ended.value.code == 2
    assert value.rpartition(",")[2] in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "60001", "many"])
def test_a_number_out_of_range_is_wrong_usage(value, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.parse_arguments(["--peers", value])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err


def test_help_says_what_the_profiles_have(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.parse_arguments(["--help"])
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for profile in (
        "lan (0 ms)",
        "metro (10 ms)",
        "wan (100 ms)",
        "lossy (10 ms; 10 ms, 0.1 % lost; 10 ms, 1 % lost; "
        "100 ms; 100 ms, 0.1 % lost; 100 ms, 1 % lost)",
    ):
        assert profile in words


def test_a_profile_is_a_link_or_some():
    options = bench.parse_arguments(["--profile", "metro,lossy", "--relays", "1"])
    assert options.links[:3] == [Link(10), Link(10), Link(10, 0.1)]
    assert options.seconds == 10  # for 100 round trips of the longest


def test_a_delay_is_that_of_every_link_on_the_way():
    options = bench.parse_arguments(["--delay", "5", "--loss", "0.5", "--relays", "2"])
    assert options.links == [Link(30, 0.5)]
    assert options.seconds == 3


@pytest.mark.parametrize(
    "line", ["--profile wan --delay 5", "--profile wan --loss 1", "--loss 51"]
)
def test_a_link_is_described_in_one_way_only(line):
    with pytest.raises(SystemExit) as ended:
        bench.parse_arguments(line.split())
    assert ended.value.code == 2
