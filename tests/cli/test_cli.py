"""The command line in front of a node held in memory, over a real socket."""

import fcntl
import gc
import grp
import inspect
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tomllib
from contextlib import ExitStack, suppress
from math import inf, isnan
from pathlib import Path
from weakref import ref

import alpha_trio_cli.main
import attrs
import click
import pytest
import trio
from alpha_trio_cli import complete, entry, local, words
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from alpha_trio.control import listener, server
from alpha_trio.errors import ConfigError
from alpha_trio.proto.primitives import identity
from alpha_trio.rpc import asking
from alpha_trio.settings import Mode, Offload, PeerSettings, Settings
from alpha_trio.state import PeerStore
from tests.control.memory_node import KEY, MemoryNode, status_of

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULE, FUNCTION = SCRIPTS["alpha-trio"].split(":")
BEGIN = f"from {MODULE} import {FUNCTION} as main; sys.exit(main())"
PYTHON = [sys.executable, "-W", "error", "-c"]
PROGRAM = [*PYTHON, f"import sys; sys.argv[0] = 'alpha-trio'; {BEGIN}"]
VM2 = PeerSettings("vm2", "192.168.10.61")
PSK = "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs="
NEW_KEY = identity.key_text(bytes(range(32, 64)))


class Served:
    """A node that is served by a thread, as another process would."""

    def __init__(self, path, status_group=None):
        self.path = path
        self.node = MemoryNode(path, status_group)
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    async def _main(self):
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.node.serve)
            self._started.set()

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exc_info):
        with suppress(trio.RunFinishedError):
            self.do(self.node.stop)
        self._thread.join()

    def do(self, function, *args):
        """Call ``function`` where the node lives."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def publish(self, event):
        """Publish ``event`` as soon as somebody listens."""
        while not self.do(lambda: len(self.node.hub._subscribers)):
            time.sleep(0.001)
        self.do(self.node.hub.publish, event)


def call(*args, code=0):
    """The output of a command that must end with ``code``; an error is one line."""
    result = CliRunner().invoke(alpha_trio_cli.main.main, args, prog_name="alpha-trio")
    assert result.exit_code == code, result.output
    if code == 0:
        assert result.stderr == ""
        return result.stdout
    assert result.stdout == ""
    assert result.stderr.startswith("alpha-trio: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


class Started(subprocess.Popen):
    """A process that is not waited for when a test has failed already."""

    def __exit__(self, kind, error, traceback):
        if error is not None:
            self.kill()
        super().__exit__(kind, error, traceback)


def start(*args, **options):
    """A command as a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return Started([*PROGRAM, *args], text=True, **pipes)


# Peers


def test_add_and_list(node):
    output = call("peers", "add", "vm2", "192.168.10.61")
    assert output == "Peer vm2 added. Its key will be pinned at the first contact.\n"
    assert node.peers() == [(VM2, "state")]
    header, line = call("peers", "list").splitlines()
    assert header.split()[:2] == ["NAME", "ENDPOINT"]
    assert line.split() == ["vm2", "192.168.10.61", "state"]


def test_list_shows_all_settings_and_fits_a_terminal(served):
    call("peers", "add", "vm2", "192.168.100.161", "--allow", "10.1.0.0/16")
    call("peers", "add", "vm3", "192.168.10.62", "--key", KEY)
    call("peers", "set", "vm2", "--reliable", "on")
    call("peers", "add", "vm4", "[fd00::1]:5555", "--mode", "cm")
    served.node.document["peers"] = [
        status_of(PeerSettings("vm4"), key=NEW_KEY, key_source="pinned")
    ]
    given, pinned = map(words.fingerprint, (KEY, NEW_KEY))
    page = on_terminal("peers", "list", TERM="dumb", COLUMNS="80").decode()
    assert [line.split() for line in page.splitlines()] == [
        ["NAME", "ENDPOINT", "ALLOW", "MODE", "RELIABLE", "KEY", "ORIGIN"],
        ["vm2", "192.168.100.161", "10.1.0.0/16", "on", "state"],
        ["vm3", "192.168.10.62", given, "state"],
        ["vm4", "[fd00::1]:5555", "cm", pinned, "(pinned)", "state"],
    ]


def test_list_loses_nothing_on_a_narrow_terminal(served):
    call("peers", "add", "vm2", "192.168.100.161", "--allow", "10.1.0.0/16")
    call("peers", "set", "vm2", "--key", KEY, "--keepalive", "25")
    page = on_terminal("peers", "list", TERM="dumb", COLUMNS="40").decode()
    assert all(len(line) <= 40 for line in page.splitlines())
    assert " ".join(page.split()) == (
        "vm2 192.168.100.161 allow 10.1.0.0/16, keepalive 25, "
        f"key {words.fingerprint(KEY)}, origin state"
    )


def test_add_with_everything(node):
    call(
        *("peers", "add", "vm2", "192.168.10.61:5555", "--keepalive", "25"),
        *("--allow", "10.1.0.0/16", "--allow", "10.2.0.0/16", "--only", "tcp/80-90"),
        "--take-over",
    )
    ((peer, _),) = node.peers()
    assert (peer.endpoint, peer.port, peer.keepalive) == ("192.168.10.61", 5555, 25.0)
    assert [str(prefix) for prefix in peer.allow] == ["10.1.0.0/16", "10.2.0.0/16"]
    assert [only.ports for only in peer.only] == [(80, 90)]
    assert node.taken_over == ["vm2"]


def test_add_without_endpoint(node):
    call("peers", "add", "vm2")
    assert node.peers() == [(PeerSettings("vm2"), "state")]


def test_add_again(node):
    call("peers", "add", "vm2", "192.168.10.61")
    assert "was there already" in call("peers", "add", "vm2", "192.168.10.61")
    assert "peers set vm2" in call("peers", "add", "vm2", "192.168.10.62", code=1)
    assert node.peers() == [(VM2, "state")]


def test_what_the_daemon_has_to_say_of_a_peer_is_said(node):
    node.noted = ["vm2: a sentence"]
    for command in ("add", "set"):
        said = call("peers", command, "vm2", "--keepalive", "5")
        assert said.endswith("Note: vm2: a sentence.\n")


def test_status_says_where_an_endpoint_lies(node):
    node.document["peers"] = [status_of(VM2, nested="its endpoint is in a prefix")]
    for command in (["status"], ["status", "vm2"]):
        page = " ".join(call(*command).split())
        assert "once there is a packet for it; its endpoint is in a prefix" in page


def test_add_with_a_key(node):
    output = call("peers", "add", "vm2", "192.168.10.61", "--key", KEY)
    assert output == f"Peer vm2 added. It must have key {KEY}.\n"
    ((peer, _),) = node.peers()
    assert peer.key == KEY


def test_set_the_key(node):
    call("peers", "add", "vm2")
    output = call("peers", "set", "vm2", "--key", KEY)
    assert output == f"Peer vm2 changed. It must have key {KEY}.\n"
    output = call("peers", "set", "vm2", "--key", "")
    assert output == "Peer vm2 changed. Its key will be pinned at the next contact.\n"
    assert node.peers() == [(PeerSettings("vm2"), "state")]
    assert node.forgotten == ["vm2"]
    assert call("peers", "set", "vm2", "--keepalive", "5") == "Peer vm2 changed.\n"


@pytest.fixture
def psk_file(tmp_path):
    path = tmp_path / "psk"
    path.write_text(f"{PSK}\n")
    path.chmod(0o600)
    return str(path)


def test_a_psk_comes_from_a_file_and_goes_again(node, psk_file):
    call("peers", "add", "vm2", "192.168.10.61", "--psk-file", psk_file)
    assert node.peers() == [(attrs.evolve(VM2, psk=PSK), "state")]
    for command in (["peers", "list"], ["peers", "show", "vm2"], ["status", "vm2"]):
        for form in ([], ["--json"]):
            assert PSK not in call(*command, *form)
    assert pairs(call("peers", "show", "vm2"))["pre-shared key"] == "yes"
    assert pairs(call("status", "vm2"))["pre-shared key"] == "yes"
    assert json.loads(call("status", "vm2", "--json"))["psk"] is True
    call("peers", "set", "vm2", "--keepalive", "5")
    call("peers", "set", "vm2", "--psk-file", "")
    assert node.peers() == [(attrs.evolve(VM2, keepalive=5.0), "state")]
    assert pairs(call("status", "vm2"))["pre-shared key"] == "none"
    assert json.loads(call("status", "vm2", "--json"))["psk"] is False


@pytest.mark.parametrize("typed", [PSK, f"{PSK}\n"])
def test_a_psk_comes_from_standard_input(node, typed):
    with start(
        "peers", "add", "vm2", "192.168.10.61", "--psk-file", "-", stdin=subprocess.PIPE
    ) as process:
        process.communicate(typed, timeout=60)
    assert process.returncode == 0
    assert node.peers() == [(attrs.evolve(VM2, psk=PSK), "state")]


@pytest.mark.parametrize("content", ["", "short", PSK + PSK, "\xff", "A" * 43 + "="])
def test_what_is_no_psk_is_refused_and_not_repeated(node, tmp_path, content):
    path = tmp_path / "psk"
    path.write_text(content, encoding="latin-1")
    path.chmod(0o600)
    for word in ("add", "set"):
        text = call("peers", word, "vm2", "--psk-file", str(path), code=1)
        assert str(path) in text
        assert not content or content not in text
    assert node.peers() == []


def test_a_psk_file_that_all_may_read_is_refused(node, psk_file):
    os.chmod(psk_file, 0o644)
    text = call("peers", "add", "vm2", "--psk-file", psk_file, code=1)
    assert f"'chmod go-rwx {psk_file}'" in text
    assert node.peers() == []


def test_new_psks_can_be_used_and_are_all_different(node, tmp_path):
    made = [call("key", "psk") for _ in range(3)]
    assert len({*made}) == 3
    for number, psk in enumerate(made):
        path = tmp_path / "new"
        path.write_text(psk)
        path.chmod(0o600)
        call("peers", "add", f"vm{number}", "--psk-file", str(path))
    assert [f"{peer.psk}\n" for peer, _ in node.peers()] == made


@pytest.mark.parametrize("command", ["add", "set"])
def test_plain_is_warned_of(node, command):
    if command == "set":
        call("peers", "add", "vm2")
    arguments = ("peers", command, "vm2", "--mode", "plain")
    result = CliRunner().invoke(alpha_trio_cli.main.main, arguments)
    assert result.exit_code == 0
    assert "vm2 are neither authenticated nor encrypted" in result.stderr
    assert "both sides must ask for it" in result.stderr
    assert result.stderr.count("\n") == 1
    assert node.peers() == [(PeerSettings("vm2", mode=Mode.PLAIN), "state")]


@pytest.mark.parametrize("mode", ["adaptive", "n", "c", "m", "cm", "alpha"])
def test_no_other_mode_is_warned_of(node, mode):
    call("peers", "add", "vm2", "--mode", mode)
    call("peers", "set", "vm2", "--mode", mode)
    ((peer, _),) = node.peers()
    assert peer.mode == mode.replace("alpha", "adaptive")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b", "192.168.10.61"],
        ["vm\n2", "192.168.10.61"],
        ["vm2", "192.168.10.999"],
        ["vm2", "192.168.10.61:99999"],
        ["vm2", "192.168.10.61", "--allow", "10.1.2.3/16"],
        ["vm2", "192.168.10.61", "--only", "tcp/0"],
        ["vm2", "192.168.10.61", "--key", "short"],
        ["vm2", "192.168.10.61", "--key", "A" * 43],
        ["vm2", "192.168.10.61", "--mode", "secret"],
        ["vm2", "192.168.10.61", "--keepalive", "-1"],
        ["vm2", "192.168.10.61", "--keepalive", "nan"],
        ["vm2", "\udcff"],
        ["vm2", "x" * 70_000],
    ],
)
def test_add_with_bad_values(node, arguments):
    call("peers", "add", *arguments, code=2)
    assert node.peers() == []


def test_set(node):
    call("peers", "add", "vm2", "192.168.10.61", "--allow", "10.1.0.0/16")
    call("peers", "set", "vm2", "--keepalive", "25", "--allow", "")
    assert node.peers() == [(attrs.evolve(VM2, keepalive=25.0), "state")]


def test_set_can_empty_the_endpoint(node):
    call("peers", "add", "vm2", "192.168.10.61")
    call("peers", "set", "vm2", "")
    assert node.peers() == [(PeerSettings("vm2"), "state")]


def test_set_of_nothing_is_wrong_usage(node):
    assert "at least one setting" in call("peers", "set", "vm2", code=2)


@pytest.mark.parametrize("word", ["remove", "del"])
def test_remove(node, word):
    call("peers", "add", "vm2", "192.168.10.61")
    call("peers", word, "vm2")
    assert node.peers() == []


def test_show(node):
    call("peers", "add", "vm2", "192.168.10.61")
    document = json.loads(call("peers", "show", "vm2", "--json"))
    expected = {"name": "vm2", "origin": "state", "endpoint": "192.168.10.61"}
    assert document == {"schema": 1, **expected, "key": None, "key_source": "none"}
    assert pairs(call("peers", "show", "vm2")) == {
        **expected,
        "key": "-",
        "key source": "none",
    }


def pairs(page):
    """What a page of names and values holds; headings have no value."""
    lines = (line.rstrip().partition("  ") for line in page.splitlines())
    return {name: value.strip() for name, gap, value in lines if gap}


def test_show_tells_the_key_that_was_pinned(node):
    call("peers", "add", "vm2")
    node.document["peers"] = [status_of(VM2, key=KEY, key_source="pinned")]
    shown = pairs(call("peers", "show", "vm2"))
    assert (shown["key"], shown["key source"]) == (KEY, "pinned")
    assert shown["fingerprint"] == words.fingerprint(KEY)


def test_list_as_json(node):
    call("peers", "add", "vm2")
    document = json.loads(call("peers", "list", "--json"))
    listed = {"name": "vm2", "origin": "state", "key_source": "none"}
    assert document == {"schema": 1, "peers": [listed]}
    node.document["peers"] = [status_of(VM2, key=KEY, key_source="pinned")]
    document = json.loads(call("peers", "list", "--json"))
    assert document["peers"] == [listed | {"key": KEY, "key_source": "pinned"}]


@pytest.mark.parametrize(
    "arguments",
    [
        ["peers", "remove", "vm9"],
        ["peers", "set", "vm9", "--keepalive", "1"],
        ["peers", "show", "vm9"],
        ["status", "vm9"],
        ["wait", "vm9"],
    ],
)
def test_unknown_peer(node, arguments):
    assert "'vm9'" in call(*arguments, code=4)


# Status


def test_status_as_json_is_the_document(node):
    assert json.loads(call("status", "--json")) == node.document


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"state": "idle"}, "at 192.168.10.61:1234, once there is a packet for it"),
        (
            {"state": "resolving", "endpoint": None, "reason": "name not found"},
            "looking up the address of 192.168.10.61 (name not found)",
        ),
        ({"state": "handshaking"}, "asking 192.168.10.61:1234, no answer yet"),
        (
            {"state": "established", "latest_receive_seconds": 0.14},
            "at 192.168.10.61:1234, last heard 0.1 s ago",
        ),
        (
            {"state": "unreachable"},
            "no answer from 192.168.10.61:1234; new traffic tries again",
        ),
        ({"state": "invented later"}, "at 192.168.10.61:1234"),
    ],
)
def test_status_says_how_a_peer_is_reached(node, values, sentence):
    node.document["peers"] = [status_of(VM2, tx_bytes=1_234_567, **values)]
    (line,) = [line for line in call("status").splitlines() if "vm2" in line]
    assert line.rstrip().endswith(sentence)
    assert line.removeprefix("vm2").strip().startswith(values["state"])
    assert "1.2 MB" in line


def test_status_of_everything_else(node):
    node.document |= {
        "peers": [status_of(VM2)],
        "drops": {"no-peer": 3, "never": 0},
        "health": ["TUN has no USO"],
    }
    page = call("status")
    assert "alpha-trio 0.1.0 on alpha0, UDP port 1234, up 12.3 s" in page
    assert "Offloads of udp: segment, gro" in page
    assert f"Key: {KEY} ({words.fingerprint(KEY)})\n" in page
    assert "Dropped: no-peer 3\n" in page
    assert "Health: TUN has no USO\n" in page
    assert "\x1b" not in page


def test_status_of_knocking_hosts(node):
    fingerprint = words.fingerprint(NEW_KEY)
    known = {"address": "10.9.9.9", "fingerprint": fingerprint, "count": 2}
    node.document["knocking"] = [known | {"key": NEW_KEY}]
    (line,) = [line for line in call("status").splitlines() if "Knocking" in line]
    assert f"10.9.9.9 with the key {fingerprint}, 2 times; " in line
    assert line.endswith(f": alpha-trio peers add NAME 10.9.9.9 --key {NEW_KEY}")


def test_the_mtu_is_set_and_found_out_again(node):
    call("peers", "add", "vm2", "192.168.10.61", "--mtu", "1200")
    assert node.peers()[0][0].mtu == 1200
    assert json.loads(call("peers", "list", "--json"))["peers"][0]["mtu"] == 1200
    for nothing in ("auto", ""):
        call("peers", "set", "vm2", "--mtu", "1200")
        call("peers", "set", "vm2", "--mtu", nothing)
        assert node.peers()[0][0].mtu == 0
    assert "out of range" in call("peers", "set", "vm2", "--mtu", "66000", code=2)
    assert "not a whole number" in call("peers", "set", "vm2", "--mtu", "big", code=2)


def test_the_doctor_of_a_peer(node):
    call("peers", "add", "vm2", "192.168.10.61")
    assert call("doctor", "vm2") == "good  a fact\n"
    node.steps = [{"ok": False, "what": "no way", "remedy": "walk"}]
    result = CliRunner().invoke(alpha_trio_cli.main.main, ["doctor", "vm2"])
    assert (result.exit_code, result.stdout) == (1, "BAD   no way; walk\n")
    call("doctor", "vm9", code=4)


def test_reliable_is_switched_on_and_off(node):
    call("peers", "add", "vm2", "192.168.10.61", "--reliable", "on")
    assert node.peers()[0][0].reliable is True
    assert json.loads(call("peers", "list", "--json"))["peers"][0]["reliable"] is True
    assert pairs(call("peers", "show", "vm2"))["reliable"] == "on"
    said = call("peers", "set", "vm2", "--mode", "plain", code=2)
    assert "reliable: in mode plain nothing is acknowledged" in said
    call("peers", "set", "vm2", "--reliable", "off")
    assert node.peers()[0][0].reliable is False
    call("peers", "set", "vm2", "--reliable", "on")
    call("peers", "set", "vm2", "--reliable", "")
    assert node.peers()[0][0].reliable is False
    assert "'yes' is neither" in call(
        "peers", "set", "vm2", "--reliable", "yes", code=2
    )


def test_early_data_is_switched_off_and_on(node):
    call("peers", "add", "vm2", "192.168.10.61", "--early", "off")
    assert node.peers()[0][0].early is False
    assert json.loads(call("peers", "list", "--json"))["peers"][0]["early"] is False
    header, line = call("peers", "list").splitlines()
    assert "EARLY" in header
    assert line[header.index("EARLY") :].split()[0] == "off"
    assert pairs(call("peers", "show", "vm2"))["early"] == "off"
    for again in ("on", ""):
        call("peers", "set", "vm2", "--early", again)
        assert node.peers()[0][0].early is True
        assert "EARLY" not in call("peers", "list")
        call("peers", "set", "vm2", "--early", "off", "--mode", "cm")
        assert node.peers()[0][0].early is False
    said = call("peers", "set", "vm2", "--early", "yes", code=2)
    assert "'yes' is neither 'on' nor 'off'" in said
    assert node.peers()[0][0].early is False


def test_status_says_whether_small_packets_go_early(node):
    for state in ("on", "trying", "no-session", "off-here", "no-use"):
        node.document["peers"] = [status_of(VM2, early_state=state, early_sent=7)]
        page = pairs(call("status", "vm2"))
        assert page["early data"] == f"{state}: a reason"
        assert page["early packets"] == "7 sent, 0 received"
        assert "Early data" not in call("status")


def test_status_tells_once_why_others_let_nothing_go_early(node):
    why = {"off-peer": "the peer", "off-relay": "a relay", "lost": "the path"}
    states = ["off-relay", "on", "lost", "off-relay", "off-here", "off-peer"]
    node.document["peers"] = [
        status_of(
            PeerSettings(f"vm{number}", "192.168.10.9"),
            early_state=state,
            early_text=why.get(state, "nobody"),
        )
        for number, state in enumerate(states)
    ]
    page = call("status").splitlines()
    assert [line for line in page if line.startswith("Early data")] == [
        "Early data to vm0, vm3 is off: a relay",
        "Early data to vm2 is off: the path",
        "Early data to vm5 is off: the peer",
    ]


def test_status_of_one_peer(node):
    node.document["peers"] = [
        status_of(
            VM2,
            key=KEY,
            key_source="pinned",
            rounds={"n": 1, "c": 0, "m": 19, "cm": 0},
            associations=8,
            elements_left=12345,
            queued=3,
            rx_packets=1,
            rx_bytes=84,
            reliable=True,
            reliable_rounds=17,
            rtt_ms=0.456,
            drops={"queue-full": 7},
        ),
        status_of(VM2),
    ]
    page = pairs(call("status", "vm2"))
    assert page["rounds"] == "n 5% m 95%"
    assert page["reliable"] == "on"
    assert page["reliable rounds"] == "17"
    assert page["associations"] == "8"
    assert page["elements left"] == "12345"
    assert page["waiting"] == "3 packets"
    assert page["sent"] == "0 B in 0 packets"
    assert page["received"] == "84 B in 1 packet"
    assert page["round trip"] == "0.46 ms"
    assert page["key"] == KEY
    assert page["key source"] == "pinned"
    assert page["fingerprint"] == words.fingerprint(KEY)
    assert page["dropped"] == "queue-full 7"
    assert page["allowed"] == "192.168.10.61/32"
    assert json.loads(call("status", "vm2", "--json")) == node.document["peers"][0]


def test_status_tells_the_mix_of_modes(node):
    rounds = {"n": 50, "c": 0, "m": 947, "cm": 3}
    node.document["peers"] = [
        status_of(VM2, rounds=rounds),
        status_of(PeerSettings("vm3", mode=Mode.CM)),
        status_of(PeerSettings("vm4", mode=Mode.PLAIN), rounds=rounds),
    ]
    header, vm2, vm3, vm4 = call("status").splitlines()[-4:]
    column = header.index("MODE")
    assert vm2[column:].startswith("alpha: n 5% m 95%  ")
    assert vm3[column:].startswith("alpha: cm  ")
    assert vm4[column:].startswith("plain  ")  # and not what was before
    assert pairs(call("status", "vm4"))["rounds"] == "none"
    assert pairs(call("status", "vm2"))["mode"] == "alpha: adaptive"


@pytest.mark.parametrize("mode", Mode)
def test_the_text_has_the_words_for_the_mode_that_json_has(node, mode):
    node.document["peers"] = [status_of(PeerSettings("vm2", mode=mode))]
    told = json.loads(call("status", "vm2", "--json"))
    shown = pairs(call("status", "vm2"))["mode"]
    assert set(shown.split(": ")) == {told["mode"], told["configured_mode"]}
    assert f"  {shown}  " in call("status")


def test_a_key_mismatch_is_loud(node):
    node.document["peers"] = [
        status_of(
            VM2,
            state="key-mismatch",
            reason="the same in other words",
            key=KEY,
            key_source="pinned",
            offered_key=NEW_KEY,
        )
    ]
    for page in (call("status"), call("status", "vm2")):
        (line,) = [line for line in page.splitlines() if "KEY MISMATCH" in line]
        assert f"vm2 shows the key {words.fingerprint(NEW_KEY)}" in line
        assert f"the one pinned for it is {words.fingerprint(KEY)}" in line
        assert line.endswith(f": alpha-trio peers set vm2 --key {NEW_KEY}")
        assert "the same in other words" not in page


def test_the_command_in_a_warning_can_be_copied_from_a_narrow_terminal(served):
    mismatch = {"key": KEY, "key_source": "pinned", "offered_key": NEW_KEY}
    served.node.document["peers"] = [status_of(VM2, state="key-mismatch", **mismatch)]
    page = on_terminal("status", TERM="xterm-256color", COLUMNS="40")
    assert f"alpha-trio peers set vm2 --key {NEW_KEY}".encode() in page
    assert b"\x1b[1;31mKEY MISMATCH" in page


def on_terminal(*arguments, **environment):
    """What a command writes to a terminal."""
    controller, terminal = pty.openpty()
    environment = os.environ | environment
    environment.pop("NO_COLOR", None)
    process = start(*arguments, stdout=terminal, env=environment)
    process.communicate(timeout=60)
    os.close(terminal)
    page = os.read(controller, 65536)
    os.close(controller)
    return page


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_width_drops_the_reason_of_a_peer(served, columns):
    reason = "answers come from 10.0.0.9, not from its endpoint"
    served.node.document |= {
        "peers": [
            status_of(VM2, state="established", rtt_ms=1.25, tx_bytes=168_900_000),
            status_of(
                PeerSettings("a-peer-with-a-long-name", "192.168.10.62"),
                state="unreachable",
                reason=reason,
            ),
        ],
        "health": ["something that an operator has to know and to mend at once"],
    }
    page = on_terminal("status", TERM="dumb", COLUMNS=str(columns)).decode()
    whole = " ".join(page.split())
    # In a table its columns stand between the words; each of them is there.
    assert [word for word in reason.split() if word not in whole] == []
    assert "1.25 ms" in whole
    assert served.node.document["health"][0] in whole
    if columns == 40:
        assert f"({reason})" in whole
        table = page.partition("Offloads of udp")[2].partition("Health")[0]
        assert max(map(len, table.splitlines())) <= 40


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_drops_the_reason_of_a_peer(served, encoding):
    reason = "the link eth\u2192w\u00e4rme is down"
    served.node.document["peers"] = [status_of(VM2, state="silent", reason=reason)]
    for arguments in (["status"], ["status", "vm2"]):
        process = start(
            *arguments,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            encoding=encoding,
        )
        page, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        escaped = reason.encode(encoding, "backslashreplace").decode(encoding)
        assert f"({escaped})" in page


def test_who_was_added_by_a_name_without_address_may_be_meant_to_call(node):
    laptop = status_of(
        PeerSettings("laptop"),
        endpoint=None,
        configured_endpoint="laptop",
        state="resolving",
        reason="cannot resolve laptop",
    )
    node.document["peers"] = [laptop]
    hint = "alpha-trio peers set laptop --key KEY --allow PREFIX"
    assert hint in call("status")
    waits = {"configured_endpoint": None, "state": "idle", "reason": "it has to call"}
    node.document["peers"] = [laptop | waits]
    assert "waits to be called (it has to call)" in call("status")
    node.document["peers"] = [laptop | {"configured_endpoint": "gw.example.org"}]
    assert hint not in call("status")


def test_watch_needs_a_terminal(node):
    assert "needs a terminal" in call("status", "--watch", code=2)
    assert "--json and --watch" in call("status", "--watch", "--json", code=2)
    assert "--tab and --watch" in call("status", "--watch", "--tab", code=2)


class Watched:
    """``status --watch`` on a terminal of so many lines and columns."""

    def __init__(self, lines, columns, *arguments):
        self._controller, terminal = pty.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        environment = {"TERM": "xterm-256color", "NO_COLOR": "1"}
        self.process = start(
            *("status", "--watch", *arguments),
            stdin=terminal,
            stdout=terminal,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            | environment,
        )
        os.close(terminal)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        os.close(self._controller)
        if error is None:
            assert (self.process.returncode, errors) == (0, "")

    def frame_with(self, *texts):
        """The lines of the next frame that has all ``texts``.

        What one read gives may end within a frame.
        """
        start = len(self.seen)
        while True:
            self.seen += os.read(self._controller, 65536)
            *_, last = self.seen[start:].split(b"\x1b[H")
            page = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last.decode(errors="ignore"))
            if all(text in page for text in texts):
                return page.splitlines()


def test_watch_refreshes_in_place_and_ends_with_ctrl_c(served):
    with Watched(24, 80) as watched:
        watched.frame_with("up 12.3 s")
        # A screen of its own, so the shell's is left alone.
        assert b"\x1b[?1049h" in watched.seen


def test_watch_of_one_peer(served):
    served.node.document["peers"] = [status_of(VM2), status_of(PeerSettings("vm3"))]
    with Watched(30, 80, "vm2") as watched:
        page = "\n".join(watched.frame_with("elements left"))
    assert "vm3" not in page
    assert "no peer is called 'vm9'" in at_terminal("status", "--watch", "vm9")


def at_terminal(*arguments):
    """What a command that fails says there."""
    controller, terminal = pty.openpty()
    process = start(*arguments, stdout=terminal)
    _, errors = process.communicate(timeout=60)
    os.close(terminal)
    os.close(controller)
    assert process.returncode == 4
    return errors


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("columns", [40, 120])
def test_watch_has_health_and_trouble_above_more_peers_than_lines(
    served, columns, relay
):
    names = [f"p{number}" for number in range(50)]
    states = {"p49": "unreachable"}
    served.node.document |= {
        "peers": [
            status_of(
                PeerSettings(name, "192.168.10.9"),
                state=states.get(name, "established"),
            )
            for name in names
        ],
        "health": ["all is not well"],
    }
    if relay:
        latest = {"latest": RELAY["latest"] * 20}
        served.node.document["relay"] = RELAY | latest
    with Watched(20, columns) as watched:
        page = watched.frame_with("more: see 'alpha-trio status'")
    assert "Health: all is not well" in (line.strip() for line in page)
    shown = [line.split()[0] for line in page if re.match(r"p\d+ ", line)]
    assert shown[0] == "p49"
    assert f"and {50 - len(shown)} more" in "\n".join(page)
    assert len(page) <= 20


def test_watch_goes_on_when_the_daemon_comes_again(tmp_path, monkeypatch):
    path = tmp_path / "control.sock"
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", str(path))
    with ExitStack() as stack:
        with Served(path) as served:
            served.node.document["health"] = ["the first"]
            watched = stack.enter_context(Watched(24, 100))
            watched.frame_with("Health: the first")
        watched.frame_with("Asking again", "no daemon answers", "Health: the first")
        with Served(path) as served:
            served.node.document["health"] = ["the second"]
            page = "\n".join(watched.frame_with("Health: the second"))
        assert "Asking again" not in page


def test_colour_on_a_terminal_only(served):
    served.node.document["peers"] = [status_of(VM2, state="unreachable")]
    assert b"\x1b[31munreachable" in on_terminal("status", TERM="xterm-256color")


# What happens


def test_wait(served):
    call("peers", "add", "vm2")
    process = start("wait", "vm2", "--timeout", "30")
    served.do(served.node.established["vm2"].set)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_wait_times_out(node):
    call("peers", "add", "vm2")
    text = call("wait", "vm2", "--timeout", "0.01", code=5)
    assert "no session with vm2 within 0.01 s" in text


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "1e7", "-1", "0", "soon"])
def test_a_wait_takes_a_time_that_a_socket_can_wait(node, seconds):
    call("peers", "add", "vm2")
    complaint = call("wait", "vm2", "--timeout", seconds, code=2)
    assert "invalid value for '--timeout': " in complaint
    assert complaint.endswith("; see 'alpha-trio wait --help'\n")


def test_a_wait_may_be_as_long_as_is_said(served):
    call("peers", "add", "vm2")
    served.do(served.node.established["vm2"].set)
    call("wait", "vm2", "--timeout", f"{alpha_trio_cli.main.LONGEST_WAIT}")


def hop(role, name=None, address=None, passed=100, **drops):
    counts = {"passed": passed, "drops": drops}
    return {
        "role": role,
        "name": name,
        "address": address,
        "key": KEY,
        "fingerprint": "12345678",
        "hop_limit": 63,
        "forth": counts,
        "back": {"passed": 7, "drops": {}},
    }


def segment(packets=4000, **found):
    return {"seconds": 2.0, "packets": packets} | {
        how: found.get(how, 0) for how in ("lost", "altered", "injected", "repeated")
    }


HERE, PEER = hop("here"), hop("peer", "vm2", "192.168.12.61:1234")


def traced(node, *hops, segments):
    call("peers", "add", "vm2")
    node.traced = {"schema": 1, "hops": list(hops), "segments": segments}
    return call("trace", "vm2")


def test_trace(node):
    between = hop("relay", "r1", "192.168.10.2", 48117, forged=31, other=2)
    text = traced(node, HERE, between, PEER, segments=[segment(lost=12), segment()])
    table, lines = text.split("In 2 s, on the way to vm2:")
    assert [row.split()[:3] for row in table.splitlines()] == [
        ["HOP", "NODE", "ADDRESS"],
        ["0", "here", "-"],
        ["1", "r1", "192.168.10.2"],
        ["2", "vm2", "192.168.12.61:1234"],
    ]
    assert f"{KEY}  48,117  forged 31, other 2  7" in table
    assert lines.splitlines() == [
        "",
        "  between here and r1: 12 of 4,000 lost",
        "  between r1 and vm2: nothing of 4,000 lost",
    ]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"altered": 3}, "3 of 4,000 altered"),
        ({"lost": 1, "altered": 3}, "1 of 4,000 lost, 3 of 4,000 altered"),
        ({"injected": 1500}, "nothing of 4,000 lost, 1,500 injected"),
        ({"lost": 2, "repeated": 5}, "2 of 4,000 lost, 5 repeated"),
    ],
)
def test_what_a_trace_found(node, found, text):
    shown = traced(node, HERE, PEER, segments=[segment(**found)])
    assert shown.endswith(f"  between here and vm2: {text}\n")


def test_a_trace_says_what_is_not_known(node):
    relay = hop("relay", None, "192.168.10.2")
    shown = traced(node, HERE, relay, segments=[None]).splitlines()
    assert shown[-3:] == [
        "  between here and 192.168.10.2: not known, since they did not answer "
        "together in time",
        "vm2 itself did not answer: look behind 192.168.10.2.",
        "Anybody on the way can answer as a relay with a key of its own: compare with "
        "'alpha-trio key show' there.",
    ]


def test_trace_as_json_and_of_the_whole_session(node):
    text = traced(node, HERE, PEER, segments=[segment()])
    document = json.loads(call("trace", "vm2", "--json", "--seconds", "0"))
    assert document == node.traced | {"peer": "vm2", "seconds": 0.0}
    assert "In 2 s" in text
    assert "Since the session began" in call("trace", "vm2", "--seconds", "0")


def test_trace_of_nobody(node):
    assert "no peer is called 'vm9'" in call("trace", "vm9", code=4)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "3601", "long"])
def test_a_trace_takes_seconds_that_make_sense(node, seconds):
    complaint = call("trace", "vm2", "--seconds", seconds, code=2)
    assert "invalid value for '--seconds': " in complaint


EVENT = {"event": "established", "peer": "vm2", "time": 0.0, "rtt_ms": 0.4}


def monitored(served, *options):
    """The line ``monitor`` prints for EVENT, after which Ctrl-C must end it well."""
    with start("monitor", *options) as process:
        served.publish(EVENT)
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    return line


def test_monitor_prints_a_line_per_event(served):
    assert monitored(served).split()[1:] == ["established", "vm2", "rtt_ms=0.4"]


def test_monitor_as_json(served):
    assert json.loads(monitored(served, "--json")) == EVENT


def test_monitor_that_was_stopped_for_long_says_what_it_lost(served, monkeypatch):
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.01)
    with start("monitor", "--json") as process:
        served.publish(EVENT)
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        for _ in range(5000):
            served.do(served.node.hub.publish, EVENT | {"filling": "x" * 1000})
        process.send_signal(signal.SIGCONT)
        seen = 0
        while (event := json.loads(process.stdout.readline()))["event"] != "lost":
            seen += 1
        assert seen + event["count"] == 5000
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")


def test_monitor_of_a_daemon_that_is_stopped(served):
    with start("monitor") as process:
        served.publish(EVENT)
        process.stdout.readline()
        served.do(served.node.stop)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (3, "")
    assert errors == (
        f"alpha-trio: the daemon at {served.path} has closed the connection: either it "
        "was stopped, or its log says more\n"
    )


def test_reload(node):
    assert call("reload") == "Nothing has changed.\n"
    node.reloaded = {"added": ["vm2", "vm3"], "changed": [], "removed": ["vm4"]}
    assert call("reload") == "added: vm2, vm3; removed: vm4\n"
    later = (
        "Takes effect at the next start: port, relay.enabled; restart the daemon, as"
    )
    node.reloaded = {"added": ["vm2"], "restart": ["port", "relay.enabled"]}
    assert call("reload") == f"added: vm2\n{later} by 'systemctl restart alpha-trio'.\n"
    node.reloaded = {"restart": ["port", "relay.enabled"]}
    assert call("reload") == f"{later} by 'systemctl restart alpha-trio'.\n"
    node.reloaded = ConfigError("alpha-trio.toml: line 3: port: 0 is out of range")
    assert "line 3" in call("reload", code=1)


END = {
    "address": "192.168.10.60:1234",
    "key": KEY,
    "fingerprint": "0040178a",
    "forwarded_packets": 7,
    "forwarded_bytes": 1000,
    "associations": 1,
    "drops": {},
}
RELAY = {
    "sessions": 1,
    "forwarded_packets": 21,
    "forwarded_bytes": 3000,
    "unverified_packets": 4,
    "drops": {"forged": 5},
    "evicted": 0,
    "memory_bytes": 4000,
    "policy": {"fail": "open", "unseen": "drop"},
    "latest": [
        {
            "initiator": END,
            "responder": END
            | {
                "address": "192.168.12.61:1234",
                "fingerprint": None,
                "forwarded_bytes": 2000,
            },
            "state": "verified",
            "age_seconds": 3.0,
            "idle_seconds": 0.5,
            "memory_bytes": 4000,
        }
    ],
}


def test_metrics(node):
    never = status_of(VM2)
    known = status_of(
        PeerSettings("vm3", "192.168.10.62"),
        state="established",
        latest_handshake_seconds=3.5,
        rtt_ms=0.5,
        tx_bytes=1000,
        rounds={"n": 1, "c": 0, "m": 7, "cm": 0},
        associations=4,
        elements_left=2048,
        reliable_rounds=3,
        early_state="on",
        early_sent=11,
        early_received=12,
        queued=5,
        drops={"queue-full": 2},
    )
    relay = RELAY | {"forwarded_bytes": 3}
    node.document |= {"peers": [never, known], "relay": relay, "drops": {"no-peer": 4}}
    families = text_string_to_metric_families(call("metrics"))
    samples = {
        (sample.name.removeprefix("alpha_trio_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["peer_established", "vm2"] == 0
    assert samples["peer_established", "vm3"] == 1
    assert samples["peer_handshake_age_seconds", "vm2"] == inf
    assert samples["peer_handshake_age_seconds", "vm3"] == 3.5
    assert isnan(samples["peer_round_trip_seconds", "vm2"])
    assert samples["peer_round_trip_seconds", "vm3"] == 0.0005
    assert samples["peer_transmitted_bytes_total", "vm3"] == 1000
    assert samples["peer_rounds_total", "m", "vm3"] == 7
    assert samples["peer_rounds_total", "m", "vm2"] == 0
    assert samples["peer_associations", "vm3"] == 4
    assert samples["peer_elements_left", "vm3"] == 2048
    assert samples["peer_queued_packets", "vm3"] == 5
    assert samples["peer_reliable_rounds_total", "vm3"] == 3
    assert samples["peer_early", "vm2"] == 0
    assert samples["peer_early", "vm3"] == 1
    assert samples["peer_early_transmitted_packets_total", "vm3"] == 11
    assert samples["peer_early_received_packets_total", "vm3"] == 12
    assert samples["peer_dropped_packets_total", "vm3", "queue-full"] == 2
    assert samples["dropped_packets_total", "no-peer"] == 4
    assert samples["relay_sessions",] == 1
    assert samples["relay_forwarded_bytes_total",] == 3
    assert samples["relay_unverified_packets_total",] == 4
    assert samples["relay_dropped_packets_total", "forged"] == 5


def test_status_of_a_relay(node):
    node.document |= {"relay": RELAY}
    text = call("status")
    assert (
        "Relay: 1 session, 21 packets (3.0 kB) forwarded, 4 of them unverified; "
        "without it the way is open\n"
        "Not relayed: forged 5\n"
    ) in text
    assert "192.168.10.60:1234 (0040178a)" in text
    assert "192.168.12.61:1234 (no key seen)" in text
    assert "verified" in text
    assert "2.0 kB" in text


# The key of this host


def test_key_show(node):
    assert call("key", "show") == f"{KEY}\n"
    assert json.loads(call("key", "show", "--json")) == {"key": KEY}


def test_key_show_without_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("ALPHA_TRIO_STATE", str(tmp_path / "state"))
    place = ["--socket", str(tmp_path / "control.sock")]
    text = call("key", "show", *place, code=3)
    assert "no daemon answers" in text
    assert "'alpha-trio keygen'" in text
    assert not (tmp_path / "state").exists()
    key = call("keygen")
    assert call("key", "show", *place) == key
    assert call("keygen") == key
    with PeerStore(tmp_path / "state") as store:
        assert key == f"{identity.key_text(store.identity().public)}\n"
        assert call("keygen") == key  # while a daemon has the directory
    elsewhere = ["--state-dir", str(tmp_path / "elsewhere")]
    call("key", "show", *place, *elsewhere, code=3)


def test_key_show_of_a_damaged_file(tmp_path):
    (tmp_path / "host.key").write_text("garbage")
    (tmp_path / "host.key").chmod(0o600)
    place = ["--socket", str(tmp_path / "control.sock"), "--state-dir", str(tmp_path)]
    assert "host.key: damaged" in call("key", "show", *place, code=1)
    assert "host.key: damaged" in call("keygen", *place[2:], code=1)
    assert (tmp_path / "host.key").read_text() == "garbage"


# Help and completion


def commands(group=alpha_trio_cli.main.main, *names):
    """All commands, and the words by which each is called."""
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_is_whole_sentences(columns):
    for names, command in commands():
        text = CliRunner(env={"COLUMNS": str(columns)}).invoke(
            alpha_trio_cli.main.main, [*names, "--help"]
        )
        assert text.exit_code == 0
        assert "..." not in text.output.replace("ARGS]...", ""), names
        paragraphs = inspect.cleandoc(command.help).split("\n\n")
        for said in (*paragraphs, *(p.help for p in command.params if p.help)):
            assert squeezed(said) in squeezed(text.output), names
            assert re.fullmatch(r"[A-Z].*\.", said, re.DOTALL), said
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert re.fullmatch(r"[A-Z].*\.", parameter.help), parameter
        for child in getattr(command, "commands", {}).values():
            assert child.get_short_help_str().endswith("."), child.name
            assert squeezed(child.get_short_help_str()) in squeezed(text.output)


def squeezed(text):
    """Without what a narrow terminal puts between the words."""
    return "".join(text.split())


def completed(typed, stdin=subprocess.DEVNULL, **environment):
    """What the shell is offered behind ``typed``."""
    environment = {
        "_ALPHA_TRIO_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    } | environment
    process = start(env=os.environ | environment, stdin=stdin)
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    return [line.removeprefix("plain,") for line in output.split()]


def test_the_shell_completes_names_of_peers(served):
    for name in ("vm2", "vm3", "other"):
        call("peers", "add", name)
    for command in (
        *("status", "wait", "trace", "doctor", "peers set", "peers show"),
        *("peers remove", "peers del", "status --watch"),
    ):
        assert completed(f"alpha-trio {command} vm") == ["vm2", "vm3"], command
    assert completed("alpha-trio peers add vm") == []
    place = {"ALPHA_TRIO_SOCKET": "/nowhere"}
    assert completed("alpha-trio status vm", **place) == []
    elsewhere = f"alpha-trio --socket {served.path} status o"
    assert completed(elsewhere, **place) == ["other"]


def test_the_shell_completes_modes_and_switches(tmp_path):
    typed = "alpha-trio peers add vm2"
    assert completed(f"{typed} --mode ") == [*map(str, Mode)]
    assert completed(f"{typed} --mode c") == ["c", "cm"]
    assert completed(f"{typed} --early o") == ["on", "off"]
    assert completed(f"{typed} --reliable of") == ["off"]
    assert completed("alpha-trio run --config ") == ["file,"]


def test_completion_does_not_take_what_is_typed_for_the_secret():
    read, write = os.pipe()
    os.write(write, b"typed meanwhile")
    typed = "alpha-trio peers add vm2 --psk-file - --mo"
    assert completed(typed, stdin=read) == ["--mode"]
    assert os.read(read, 100) == b"typed meanwhile"
    os.close(read)
    os.close(write)


# Where the daemon is, and whether


def test_socket_before_and_after_the_command(served, monkeypatch):
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", "/nowhere/control.sock")
    place = ["--socket", str(served.path)]
    wrong = ["--socket", "/elsewhere/control.sock"]
    call(*place, "status")
    call("status", *place)
    call(*place, "peers", "list")
    call("peers", *place, "list")
    call("peers", "list", *place)
    call(*wrong, "status", *place)
    assert "/nowhere/control.sock" in call("status", code=3)
    assert "/elsewhere/control.sock" in call(*wrong, "status", code=3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "vm2", "--json"],
        ["peers", "list"],
        ["peers", "add", "vm2"],
        ["wait", "vm2"],
        ["monitor"],
        ["metrics"],
        ["key", "show", "--state-dir", "/nowhere"],
        ["reload"],
        ["stop"],
    ],
)
def test_no_daemon(tmp_path, arguments):
    path = tmp_path / "control.sock"
    text = call("--socket", str(path), *arguments, code=3)
    assert str(path) in text
    assert "alpha-trio run" in text


def test_dead_daemon(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    call("--socket", str(path), "status", code=3)


def test_path_that_cannot_be_a_socket(tmp_path):
    call("--socket", str(tmp_path / ("x" * 120)), "status", code=1)


class Cycle:
    """Garbage that only the collector finds."""


@pytest.mark.parametrize(("young", "is_found"), [(0, False), (100, True)])
def test_importing_looks_for_garbage_only_among_what_is_young(young, is_found):
    before, old = gc.get_threshold(), Cycle()
    old.self, of_old = old, ref(old)
    gc.collect()
    del old
    with entry.importing(young):
        new = Cycle()
        new.self, of_new = new, ref(new)
        del new
        kept = [[] for _ in range(10_000)]
        assert (of_new() is None) is is_found
    assert of_old() is not None
    assert kept
    assert gc.get_threshold() == before
    gc.unfreeze()
    gc.collect()
    assert of_old() is None


def by_nobody(path, *arguments, gid=65534):
    """What became of a command of a user without rights."""
    code = (
        "import os; from alpha_trio_cli.main import main\n"
        f"os.setgroups([]); os.setresgid(*[{gid}] * 3); os.setresuid(*[65534] * 3)\n"
        f"main({['--socket', str(path), *arguments]!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.root
def test_without_permission(served):
    nobody = by_nobody(served.path, "status")
    assert nobody.returncode == 1
    assert "no permission to use" in nobody.stderr
    assert "socket_group" in nobody.stderr


@pytest.fixture
def reachable():
    """A directory that others can enter, unlike all of the tests' own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def asked(reachable):
    """Served to root, and to a group for questions."""
    with Served(reachable / "run" / "control.sock", ASKING.gr_name) as served:
        served.node.document["peers"] = [status_of(VM2)]
        yield served


ASKING = next(group for group in grp.getgrall() if group.gr_gid not in (0, 65534))


@pytest.mark.root
def test_who_may_only_ask_asks_by_the_same_commands(asked):
    for command in ("status", "status vm2 --json", "metrics", "key show", "peers list"):
        done = by_nobody(asked.path, *command.split(), gid=ASKING.gr_gid)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        "peers add vm3 192.168.10.62",
        "peers set vm2 --keepalive 5",
        "peers remove vm2",
        "reload",
        "wait vm2",
        "trace vm2",
        "stop",
    ],
)
def test_who_may_only_ask_changes_nothing(asked, command):
    done = by_nobody(asked.path, *command.split(), gid=ASKING.gr_gid)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "not for those who may only ask" in line
    assert asked.node.peers() == []
    assert asked.do(lambda: asked.node.scope.cancel_called) is False


@pytest.mark.root
def test_others_may_not_even_ask(asked):
    done = by_nobody(asked.path, "status")
    assert done.returncode == 1
    assert f"no permission to use {asked.path}" in done.stderr
    assert "status_group" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("run", 1),
        ("cleanup", 1),
        ("doctor", 1),
        ("keygen", 1),
        ("key show", 1),
        ("status", 1),
        ("peers list", 1),
        ("peers add vm3 192.168.10.62", 1),
        ("peers add vm3 192.168.10.62 --psk-file {closed}/psk", 1),
        ("run --config {closed}/file", 1),
        ("run --state-dir {closed}/state", 1),
        ("keygen --state-dir {closed}/state", 1),
        ("cleanup --config {closed}/file", 1),
        ("wait vm2", 1),
        ("trace vm2", 1),
        ("monitor", 1),
        ("metrics", 1),
        ("reload", 1),
        ("stop", 1),
        ("key psk", 0),
        ("status --nonsense", 2),
    ],
)
def test_an_ordinary_user_is_told_in_one_line(asked, tmp_path, command, code):
    tmp_path.chmod(0o700)
    arguments = command.format(closed=tmp_path).split()
    done = by_nobody(asked.path, *arguments)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == bool(code)
    assert not code or done.stderr.startswith("alpha-trio: ")


@pytest.mark.root
def test_who_may_not_look_is_not_told_that_there_is_nothing_to_clean_up(reachable):
    done = by_nobody(reachable / "control.sock", "cleanup")
    assert (done.returncode, done.stdout) == (1, "")
    assert "CAP_NET_ADMIN is missing" in done.stderr


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400\r\n\r\n", b"\0\0\0\1\xc1"])
def test_somebody_else_answers(tmp_path, reply):
    path = tmp_path / "control.sock"
    with socket.create_server(str(path), family=socket.AF_UNIX) as server:
        process = start("--socket", str(path), "status")
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(reply)
        output, errors = process.communicate(timeout=60)
    assert output == ""
    assert errors.startswith("alpha-trio: ")
    assert errors.count("\n") == 1
    assert process.returncode in (1, 3)


def test_output_into_a_pipe_nobody_reads_is_no_error(served):
    served.node.document["peers"] = [status_of(VM2)] * 1000  # more than a pipe takes
    for arguments in (["status"], ["status", "--json"], ["metrics"]):
        process = start(*arguments)
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        process.stderr.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("arguments", [["status"], ["--help"], ["peers", "--help"]])
def test_a_pipe_that_was_closed_before_is_no_error_either(served, arguments):
    read, write = os.pipe()
    os.close(read)
    process = start(*arguments, stdout=write)
    os.close(write)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_onto_a_full_disk(served, tmp_path, unbuffered):
    served.node.document["peers"] = [status_of(VM2)] * 300
    environment = {"PYTHONUNBUFFERED": unbuffered, "ALPHA_TRIO_STATE": str(tmp_path)}
    for arguments in (
        *(["status"], ["status", "--json"], ["metrics"], ["peers", "list"]),
        *(["key", "show"], ["doctor"], ["--help"], ["--version"], ["status", "--help"]),
    ):
        with open("/dev/full", "w") as full:
            process = start(*arguments, stdout=full, env=os.environ | environment)
        assert process.communicate(timeout=60)[1] == UNWRITABLE
        assert process.returncode == 1


def test_monitor_onto_a_full_disk(served):
    with open("/dev/full", "w") as full, start("monitor", stdout=full) as process:
        served.publish(EVENT)
        assert process.communicate(timeout=60)[1] == UNWRITABLE
    assert process.returncode == 1


UNWRITABLE = "alpha-trio: cannot write the output: No space left on device\n"


def test_ctrl_c_is_silent(served):
    call("peers", "add", "vm2")
    process = start("wait", "vm2")
    while (
        served.do(lambda: served.node.established["vm2"].statistics().tasks_waiting) < 1
    ):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


# Ctrl-C while the commands are being imported.
INTERRUPTED = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("click", "alpha_trio.rpc"):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
{BEGIN}
"""


def test_ctrl_c_at_the_very_beginning_is_silent():
    command = [*PYTHON, INTERRUPTED, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_is_not_for_what_a_script_runs_in_the_background():
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command += [*PYTHON, INTERRUPTED, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "version" in done.stdout


def answers(path):
    """Whether somebody listens there; the file alone comes a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_stop_returns_when_the_process_has_ended(tmp_path):
    path = tmp_path / "control.sock"
    command = [sys.executable, "-m", "tests.control.memory_node", str(path)]
    with Started(command) as daemon:
        while not answers(path):
            time.sleep(0.01)
        assert call("--socket", str(path), "stop") == ""
        assert daemon.poll() == 0
    call("--socket", str(path), "status", code=3)


def test_stop_of_a_process_that_does_not_end(served, monkeypatch):
    monkeypatch.setattr(asking, "STOP_SECONDS", 0.01)
    # The process that serves is this one, and lives on.
    assert "still runs after 0.01 s" in call("stop", code=5)


def test_stop_of_a_process_out_of_sight(served, monkeypatch):
    def pidfd_open(process):
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert call("stop") == ""
    assert not served.path.exists()


def test_daemon_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.01)
    path = str(tmp_path / "control.sock")
    with socket.create_server(path, family=socket.AF_UNIX):
        assert "did not answer in time" in call("--socket", path, "status", code=5)


# This host


def test_run_checks_the_configuration(tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[peers.vm2]\nendpoint = '192.168.10.61'\n")
    bad.write_text("port = 0\n")
    assert "has 1 peer." in call("run", "--check", "--config", str(good))
    text = call("run", "--check", "--config", str(bad), code=1)
    assert str(bad) in text
    assert str(tmp_path / "none") in call(
        "run", "--check", "--config", str(tmp_path / "none"), code=1
    )


def test_run_passes_its_options_on(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(local, "start", lambda settings: seen.append(settings) or 7)
    monkeypatch.setenv("ALPHA_TRIO_STATE", str(tmp_path))
    arguments = [
        *("run", "--interface", "tun7", "--port", "5555", "-vv", "--relay"),
        *("--address", "10.0.0.1/24", "--address", "fd00::1/64"),
        *("--no-offload", "tso", "--no-offload", "gro"),
        *("--socket", str(tmp_path / "x.sock")),
    ]
    result = CliRunner().invoke(alpha_trio_cli.main.main, arguments)
    assert result.exit_code == 7
    (settings,) = seen
    assert (settings.interface, settings.port, settings.verbosity) == ("tun7", 5555, 2)
    assert settings.relay.enabled
    assert [str(a) for a in settings.addresses] == ["10.0.0.1/24", "fd00::1/64"]
    assert settings.disabled_offloads == {Offload.TSO, Offload.GRO}
    assert settings.socket == tmp_path / "x.sock"
    assert settings.state_dir == tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--port", "0"],
        ["run", "--port", "70000"],
        ["run", "--port", "http"],
        ["run", "--interface", "a b"],
        ["run", "--address", "10.0.0.0/24"],
        ["run", "--dscp", "64"],
        ["run", "--no-offload", "all"],
        ["run", "--nonsense"],
        ["cleanup", "--interface", "x" * 20],
        ["peers", "add"],
        ["peers", "set", "vm2", "--mode", "secret"],
        ["peers", "nonsense"],
        ["nonsense"],
        ["key", "show", "more"],
        # What a variable is that nobody has set.
        ["--socket", "", "status"],
        ["run", "--config", ""],
        ["cleanup", "--config", ""],
        ["keygen", "--state-dir", ""],
        ["check", ""],
        ["import-wg", ""],
        ["peers", "import", ""],
        ["trace", "vm2", "--svg", ""],
        # Numbers that only Python knows.
        ["run", "--port", "12_34"],
        ["run", "--port", "\u0661\u0662"],
        ["peers", "add", "vm2", "--keepalive", "1_0"],
        ["peers", "add", "vm2", "--keepalive", "nan"],
        ["wait", "vm2", "--timeout", "1_0"],
    ],
)
def test_wrong_usage_needs_no_daemon_to_be_told(tmp_path, arguments):
    nowhere = str(tmp_path / "control.sock")
    call("--socket", nowhere, *arguments, code=2)


def test_a_daemon_of_before_an_upgrade_is_to_be_restarted(node):
    node.document["version"] = "0.0.9"
    call("status")
    del node.document["interface"]
    for command in ("status", "metrics"):
        said = call(command, code=1)
        assert "daemon is version 0.0.9, this program 0.1.0" in said
        assert said.endswith("restart the daemon\n")
    assert json.loads(call("status", "--json"))["version"] == "0.0.9"


def test_an_option_without_its_value_names_the_help_of_its_command():
    assert "see 'alpha-trio run --help'" in call("run", "--port", code=2)
    assert "see 'alpha-trio peers add --help'" in call("peers", "add", "--key", code=2)


def test_a_size_is_not_written_in_digits_of_other_scripts(served):
    said = call("peers", "add", "vm2", "--mtu", "\u0663\u0660\u0660", code=2)
    assert "not a whole number" in said
    assert "more than 64 bits" in call("peers", "add", "x", "--mtu", "9" * 30, code=2)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("command", ["status", "peers list", "--help", "key psk"])
def test_what_is_closed_is_only_not_written_to(served, closed, command):
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *PROGRAM, *command.split()]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (not closed.startswith(">"))


def test_a_secret_is_not_read_from_what_is_closed(served):
    words = ["peers", "add", "vm2", "--psk-file", "-"]
    shell = ["sh", "-c", '"$@" <&-', "sh", *PROGRAM, *words]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("alpha-trio: standard input is closed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("group", [[], ["peers"], ["key"]])
def test_no_command_at_all_gets_help(group):
    result = CliRunner().invoke(alpha_trio_cli.main.main, group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_modes_are_those_of_the_settings():
    assert [*complete.MODES] == [*map(str, Mode)]


def test_offload_switches_are_those_of_the_settings():
    assert set(local.OFFLOADS) == set(Offload)


def test_cleanup_refuses_while_a_daemon_answers(served):
    assert "another daemon answers" in call("cleanup", code=1)


def test_socket_of_a_killed_daemon_is_cleaned_up(tmp_path, monkeypatch):
    path = tmp_path / "run" / "control.sock"
    monkeypatch.setattr(listener, "DEFAULT_SOCKET", path)
    path.parent.mkdir()
    settings = Settings(socket=path)
    paths = path, path.with_name("control-status.sock")
    for left in paths:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(left))
    assert listener.cleanup(settings) == [f"control socket {left}" for left in paths]
    assert not path.parent.exists()
    assert listener.cleanup(settings) == []


# Words


def test_fingerprints_are_those_of_the_daemon():
    for public in (bytes(32), bytes(range(32)), os.urandom(32)):
        key = identity.key_text(public)
        assert words.fingerprint(key) == identity.fingerprint(public)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_amount(count, text):
    assert words.amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
        (3599.9, "59 min 59 s"),
        (7380, "2 h 3 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


# Weight


def test_status_as_json_loads_nothing_heavy(served):
    code = (
        "import sys; from alpha_trio_cli.main import main\n"
        "try: main(['status', '--json'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(process.stderr.split())
    assert "alpha_trio.rpc" in loaded
    heavy = {
        "trio",
        "attr",
        "pyroute2",
        "rich",
        "prometheus_client",
        "cryptography",
        "alpha_trio.settings",
    }
    assert not heavy & loaded
