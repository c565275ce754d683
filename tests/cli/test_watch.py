"""The live view: rates, curves, and pages that keep what is wrong in sight."""

import os
import re
import signal

import pytest
from alpha_trio_cli import screen, watch
from alpha_trio_cli.watch import ASCII, BLOCKS, Meter, Rates, curve

from alpha_trio.settings import PeerSettings
from tests.cli.test_cli import Served, Watched
from tests.control.memory_node import status_of

VM2 = PeerSettings("vm2", "192.168.10.61")
REASON = "answers come from 10.0.0.9, not from its endpoint"


def document(uptime, *peers, **more):
    return {
        "version": "1",
        "uptime_seconds": uptime,
        "interface": {"name": "alpha0"},
        "port": 1234,
        "peers": [*peers],
        "knocking": [],
        "relay": None,
        "drops": {},
        "health": [],
    } | more


def counted(sent, received=0, rounds=0, drops=0, name="vm2"):
    return status_of(
        PeerSettings(name, "192.168.10.61"),
        tx_bytes=sent,
        rx_bytes=received,
        rounds={"n": 0, "c": rounds, "m": 0, "cm": 0},
        drops={"queue-full": drops},
    )


def meter_of(*documents):
    meter = Meter()
    for each in documents:
        meter.take(each)
    return meter


# Rates


def test_rates_are_differences_over_the_daemons_time():
    meter = meter_of(
        document(10, counted(1000, 50, 3)), document(12, counted(5000, 150, 13, 1))
    )
    assert meter.now("vm2") == Rates(2000, 50, 5, 0.5)
    assert meter.total() == Rates(2000, 50, 5, 0.5)


def test_nothing_is_said_before_there_are_two_documents():
    meter = meter_of(document(10, counted(1000)))
    assert meter.now("vm2") is None
    assert meter.total() is None
    meter.take(document(11, counted(1000), counted(7, name="new")))
    assert meter.now("new") is None


@pytest.mark.parametrize(
    "after",
    [
        document(1, counted(90_000)),  # another daemon, which was quicker
        document(20, counted(10)),  # or one that runs for longer already
        document(20, counted(2000, rounds=0)),  # or one counter begins anew
    ],
)
def test_no_rate_goes_over_a_restart(after):
    meter = meter_of(document(10, counted(1000, rounds=5)), after)
    assert meter.now("vm2") is None
    counts = counted(after["peers"][0]["tx_bytes"] + 5, rounds=9)
    meter.take(document(after["uptime_seconds"] + 1, counts))
    assert meter.now("vm2").sent == 5


def test_a_second_without_an_answer_is_a_gap():
    meter = meter_of(document(1, counted(0)), document(2, counted(5)))
    meter.miss()
    meter.take(document(4, counted(9)))
    sent = [rates and rates.sent for rates in meter.past("vm2")]
    assert sent == [None, 5, None, 2]


def test_a_peer_that_is_gone_is_forgotten_and_so_is_what_was_long_ago():
    meter = meter_of(*(document(n, counted(n)) for n in range(200)))
    assert len(meter.past("vm2")) == watch.HISTORY
    meter.take(document(200))
    assert meter.past("vm2") == ()


# Curves


@pytest.mark.parametrize("glyphs", [BLOCKS, ASCII])
def test_a_curve(glyphs):
    low, high = glyphs[0], glyphs[-1]
    assert curve([None, 0, 8], 5, 1, glyphs) == [f"   {low}{high}"]
    (line,) = curve([0, 1, 10_000], 3, 1, glyphs)
    assert line[1] == glyphs[1]  # little is not nothing
    assert curve(range(100), 4, 1, glyphs)[0][-1] == high
    assert curve([], 3, 2, glyphs) == ["   ", "   "]


def test_a_curve_of_several_lines_grows_from_below():
    assert curve([0, 1, 2], 3, 2, BLOCKS) == [" ▁█", "▁██"]


# Pages


def page(status, meter, width, height, *, one=False, glyphs=BLOCKS):
    made = watch._Page(status, meter, glyphs, width, height)
    lines = made.one([]) if one else made.all([])
    return ["".join(text for text, _ in line).rstrip() for line in lines]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("one", [False, True])
def test_no_width_drops_what_is_wrong(width, one):
    bad = counted(0) | {"state": "unreachable", "reason": REASON}
    peers = [bad] if one else [counted(9, name="a-fine-one"), bad]
    status = document(2, *peers, health=["something is not as it should be"])
    lines = page(status, meter_of(status | {"uptime_seconds": 1}, status), width, 24)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for sentence in (REASON, "Health: something is not as it should be"):
        assert [word for word in sentence.split() if word not in " ".join(words)] == []


@pytest.mark.parametrize("width", [40, 80, 140])
def test_rates_have_their_columns(width):
    before, after = document(1, counted(0)), document(2, counted(1_500_000, 0, 20, 3))
    text = "\n".join(page(after, meter_of(before, after), width, 24))
    assert "1.5 MB" in text
    assert text.count(BLOCKS[-1]) == 1
    assert "ROUNDS/s" in text if width == 140 else True
    assert "sent 1.5 MB/s" in " ".join(text.split())


def test_a_thousand_peers_fit_and_the_troubled_come_first():
    peers = [counted(0, name=f"p{n}") for n in range(1000)]
    peers[700] |= {"state": "silent"}
    lines = page(document(2, *peers), Meter(), 80, 24)
    assert len(lines) <= 24
    (first,) = [line for line in lines if "silent" in line and line.startswith("p700")]
    assert lines.index(first) == 3
    assert re.fullmatch(r"and 9\d\d more: see 'alpha-trio status'", lines[-1])


@pytest.mark.parametrize("height", [10, 24, 60])
def test_one_peer_has_curves_of_both_directions(height):
    before, after = document(1, counted(0)), document(2, counted(1000, 50))
    lines = page(after, meter_of(before, after), 80, height, one=True)
    assert len(lines) <= height
    assert "sent 1.0 kB/s, at most 1.0 kB/s in the last 60 s" in lines
    assert "received 50 B/s, at most 50 B/s in the last 60 s" in " ".join(lines)


# Texts


def test_folding_keeps_every_character_and_the_width():
    text = "a few words, " + "x" * 30 + " and \u65e5\u672c\u8a9e wide ones"
    for width in range(2, 60):
        lines = screen.folded(text, width)
        assert all(screen.columns(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_what_would_move_the_cursor_is_shown_and_not_done():
    assert screen.folded("a\x1b[2Jb\nc\td", 80) == ["a\\x1b[2Jb c d"]


@pytest.mark.parametrize(
    ("locale", "has"),
    [
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # as Python makes of it
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, True),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "de_DE.utf8", "TERM": "linux"}, False),
        ({}, False),
    ],
)
def test_curves_are_drawn_with_what_the_terminal_has(locale, has, monkeypatch, capfd):
    for name in ("LANG", "LC_ALL", "LC_CTYPE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    assert screen.has_blocks() is has


# In a terminal


def rising(node, step):
    """Let the node's counters rise with each look at them."""
    state = {"uptime_seconds": 1.0, "sent": 0}

    def everything():
        state["uptime_seconds"] += 1
        state["sent"] += step
        peer = status_of(VM2, tx_bytes=state["sent"])
        uptime = state["uptime_seconds"]
        return node.document | {"uptime_seconds": uptime, "peers": [peer]}

    node.everything = everything


def test_rates_outlive_a_restart_of_the_daemon(tmp_path, monkeypatch):
    path = tmp_path / "control.sock"
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", str(path))
    with Served(path) as served:
        rising(served.node, 5000)
        with Watched(24, 100) as watched:
            watched.frame_with("sent 5.0 kB/s")
            served.do(served.node.stop)
            watched.frame_with("Asking again")
            with Served(path) as again:
                rising(again.node, 20)
                watched.frame_with("sent 20 B/s", "\N{FULL BLOCK}")
    assert b"-" not in re.findall(rb"sent (\S+)", watched.seen)


def test_whatever_ends_it_the_terminal_is_as_before(served):
    with Watched(24, 80) as watched:
        watched.frame_with("up 12.3 s")
        watched.process.terminate()
        assert watched.process.wait(timeout=60) == 128 + signal.SIGTERM
        watched.seen += os.read(watched._controller, 65536)
        assert watched.seen.endswith(b"\x1b[?25h\x1b[?1049l")
        watched.process.returncode = 0  # as it is by Ctrl-C, for which Watched looks


def test_without_unicode_curves_are_plain(tmp_path, monkeypatch):
    path = tmp_path / "control.sock"
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", str(path))
    for name, value in {"LC_ALL": "C", "LANG": "C"}.items():
        monkeypatch.setenv(name, value)
    with Served(path) as served:
        rising(served.node, 5000)
        with Watched(24, 100, "vm2") as watched:
            watched.frame_with("sent 5.0 kB/s", "##")
        assert watched.seen.isascii()
