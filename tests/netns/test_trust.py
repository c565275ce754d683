"""Whose key a host trusts, and how an operator has another one accepted.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61
"""

from __future__ import annotations

import json
import os
import stat
from base64 import b64decode
from functools import partial
from select import select
from subprocess import PIPE

import pytest

from alpha_trio.proto.messages import Kind
from alpha_trio.proto.primitives import fingerprint, key_text
from tests.netns.traffic import (
    Stream,
    Tap,
    add,
    datagrams,
    introduce,
    peer,
    ping,
    send_udp,
)
from tools.daemons import PROGRAM, Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

STRANGERS_KEY = key_text(bytes(range(32)))


@pytest.fixture
def strangers(pair):
    """Daemons that met and stopped; then vm2 got a new key."""
    one, two = map(Daemon, pair)
    with one, two:
        introduce(one, two)
        ping(one.host, two.host.address)
        old = two.status()["key"]
    (two.host.directory / "state/host.key").unlink()
    with one, two:
        assert two.status()["key"] != old
        assert ping(one.host, two.host.address, "-W", "0.2", check=False) is None
        wait_until(lambda: peer(one, "vm2")["state"] == "key-mismatch", "a mismatch")
        yield one, two


def line_of(daemon, beginning):
    """The line of the status page that begins so."""
    lines = daemon.cli("status").stdout.splitlines()
    (found,) = [line for line in lines if line.startswith(beginning)]
    return found


def follow(daemon, line, **names):
    """Do what a line of the status page tells an operator to do."""
    _, _, command = line.rpartition(": alpha-trio ")
    daemon.cli(*(names.get(word, word) for word in command.split()))


def pins_of(daemon):
    path = daemon.host.directory / "state/pins.json"
    return json.loads(path.read_text())["pins"] if path.exists() else {}


def test_the_key_of_the_first_contact_is_pinned_for_good(pair):
    one, two = map(Daemon, pair)
    with one, two:
        introduce(one, two)
        assert peer(one, "vm2")["key_source"] == "none"
        ping(one.host, two.host.address)
        key = two.cli("key", "show").stdout.strip()
        for daemon, name in ((one, "vm2"), (two, "vm1")):
            assert peer(daemon, name)["key_source"] == "pinned"
        wait_until(lambda: pins_of(one) == {"vm2": key}, "a saved pin")
    with one, two:
        assert peer(one, "vm2")["key"] == key
        assert peer(one, "vm2")["key_source"] == "pinned"
        ping(one.host, two.host.address)


def test_the_key_is_shown_while_no_daemon_runs(pair):
    daemon = Daemon(pair[0])
    with daemon:
        key = daemon.cli("key", "show").stdout
    assert daemon.cli("key", "show").stdout == key


def test_a_configured_key_lets_no_other_in(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address, key=STRANGERS_KEY)
        add(two, "vm1", vm1.address)
        assert ping(vm1, vm2.address, "-W", "0.2", check=False) is None
        wait_until(lambda: peer(one, "vm2")["state"] == "key-mismatch", "a mismatch")
        assert peer(one, "vm2")["rx_packets"] == 0
        one.cli("peers", "set", "vm2", "--key", two.status()["key"])
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["key_source"] == "configured"


# Pre-shared keys


@pytest.fixture
def psk_files(tmp_path):
    """Two files with different keys, each with what is in it."""
    files = {tmp_path / name: key_text(os.urandom(32)) for name in ("first", "second")}
    for path, psk in files.items():
        path.write_text(psk)
        path.chmod(0o600)
    return files


def hears(monitor, daemon):
    """Whether it listens already: something happens, and it tells of it."""
    daemon.cli("reload")
    return select([monitor.stdout], [], [], 0)[0]


def test_a_psk_is_kept_and_told_nobody(pair, psk_files):
    file, psk = next(iter(psk_files.items()))
    one, two = map(Daemon, pair)
    told = ""
    with one, two:
        events = one.host.popen(
            str(PROGRAM), "monitor", "--json", env=one.environment, stdout=PIPE
        )
        wait_until(partial(hears, events, one), "what the monitor hears")
        for daemon, other in ((one, two), (two, one)):
            address = other.host.address
            daemon.cli(
                *("peers", "add", other.host.name, address, "--psk-file", str(file))
            )
        ping(one.host, two.host.address)
        told += json.dumps(one.status()) + one.cli("status", "vm2").stdout
        told += one.cli("peers", "show", "vm2").stdout + one.cli("peers", "list").stdout
        assert peer(one, "vm2")["psk"] is True
    told += events.communicate(timeout=10)[0]
    with one, two:
        assert peer(one, "vm2")["psk"] is True
        ping(one.host, two.host.address)
        one.cli("peers", "set", "vm2", "--psk-file", "")
        assert peer(one, "vm2")["psk"] is False
    assert "peer-added" in told
    assert psk not in told + one.log
    saved = two.host.directory / "state/peers.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert psk in saved.read_text()
    assert psk not in (one.host.directory / "state/peers.json").read_text()


def test_another_psk_ends_the_session_and_the_same_one_does_not(pair, psk_files):
    first, second = map(str, psk_files)
    with Daemon(pair[0]) as one, Daemon(pair[1]) as two:
        introduce(one, two)
        for file, ends in ((first, True), (first, False), (second, True), ("", True)):
            before = one.log.count("is done!")
            two.cli("peers", "set", "vm1", "--psk-file", file)
            if ends:  # and until the other side has it as well nothing passes
                assert not ping(one.host, two.host.address, "-W", "1", check=False)
            one.cli("peers", "set", "vm2", "--psk-file", file)
            ping(one.host, two.host.address, "-W", "10")
            assert (one.log.count("is done!") > before) == ends


def test_a_psk_in_a_file_is_read_again_by_a_reload(pair, psk_files):
    first, second = psk_files
    config = f'[peers.vm2]\nendpoint = "{pair[1].address}"\npsk_file = "{first}"\n'
    with Daemon(pair[0], config=config) as one:
        assert peer(one, "vm2")["psk"] is True
        assert one.cli("reload").stdout == "Nothing has changed.\n"
        first.write_text(psk_files[second])
        assert one.cli("reload").stdout == "changed: vm2\n"
        first.chmod(0o644)
        refusal = one.cli("reload", check=False)
        assert f"{first}: others may read this secret" in refusal.stderr
        assert peer(one, "vm2")["psk"] is True


@pytest.mark.parametrize("shared", [True, False])
def test_a_wrong_psk_is_named_where_there_is_no_answer(pair, psk_files, shared):
    """Nobody is at the other end, which looks the same."""
    vm1, vm2 = pair
    file = str(next(iter(psk_files))) if shared else ""
    with Daemon(vm1) as one:
        one.cli("peers", "add", "vm2", vm2.address, "--psk-file", file)
        one.cli("wait", "vm2", "--timeout", "0.1", check=False)
        wait_until(lambda: unanswered(one), "an unanswered handshake")
        reason = peer(one, "vm2")["reason"] or ""
        assert ("the same psk" in reason) == shared
        diagnosis = one.cli("doctor", "vm2", check=False)
        ours = "there is one here" if shared else "there is none here"
        assert f"is the psk the same ({ours})" in diagnosis.stdout
        assert diagnosis.returncode == 1


def unanswered(daemon):
    done = daemon.cli("doctor", "vm2", check=False)
    return "does not answer handshakes" in done.stdout


# Changed keys


def test_a_changed_key_is_accepted_by_the_command_in_the_warning(strangers):
    one, two = strangers
    warning = line_of(one, "KEY MISMATCH: ")
    assert warning.endswith(f" --key {two.status()['key']}")
    follow(one, warning)
    ping(one.host, two.host.address)
    assert peer(one, "vm2")["key"] == two.status()["key"]


def test_an_emptied_key_trusts_the_next_contact(strangers):
    one, two = strangers
    one.cli("peers", "set", "vm2", "--key", "")
    ping(one.host, two.host.address)
    assert peer(one, "vm2")["key"] == two.status()["key"]
    assert peer(one, "vm2")["key_source"] == "pinned"
    wait_until(lambda: pins_of(one) == {"vm2": two.status()["key"]}, "a saved pin")


def test_a_removed_peer_leaves_no_pin(pair):
    with Daemon(pair[0]) as one, Daemon(pair[1]) as two:
        introduce(one, two)
        ping(one.host, two.host.address)
        wait_until(lambda: pins_of(one), "a saved pin")
        one.cli("peers", "remove", "vm2")
        wait_until(lambda: pins_of(one) == {}, "no pin")


def test_a_peer_removed_after_a_restart_leaves_no_pin(pair):
    one, two = map(Daemon, pair)
    with one, two:
        introduce(one, two)
        one.cli("wait", "vm2", "--timeout", "10")
        wait_until(lambda: pins_of(one), "a saved pin")
    with one:
        one.cli("peers", "remove", "vm2")
        wait_until(lambda: pins_of(one) == {}, "no pin")


def test_a_new_peer_has_nothing_to_do_with_a_former_one_of_its_name(pair):
    """Which left the files while nobody ran; but a file may come back with its pins."""
    one, two = map(Daemon, pair)
    by_file = f'[peers.vm2]\nendpoint = "{two.host.address}"\n'
    one.config_file.write_text(by_file)
    with one, two:
        add(two, "vm1", one.host.address)
        one.cli("wait", "vm2", "--timeout", "10")
        wait_until(lambda: pins_of(one) and pins_of(two), "saved pins")
    pins = pins_of(one)
    with one:
        assert pins_of(one) == pins
    one.config_file.write_text("")
    (two.host.directory / "state/peers.json").unlink()
    with one, two:
        assert pins_of(one) == pins
        introduce(one, two)
        assert pins_of(one) == pins_of(two) == {}
        assert peer(one, "vm2")["key_source"] == "none"


def test_a_pin_outlives_the_peer_that_hid_its_owner(pair):
    with Daemon(pair[0]) as one, Daemon(pair[1]) as two:
        introduce(one, two)
        one.cli("wait", "vm2", "--timeout", "10")
        wait_until(lambda: pins_of(one), "a saved pin")
        pins = pins_of(one)
        hiding = f'[peers.vm2]\nendpoint = "{two.host.address}"\nkeepalive = 20\n'
        for config in (hiding, ""):
            one.config_file.write_text(config)
            assert one.request("reload")["changed"] == ["vm2"]
            entry = peer(one, "vm2")
            assert (entry["state"], entry["key_source"]) == ("established", "pinned")
        assert one.stop() == 0
        assert pins_of(one) == pins
        one.config_file.write_text(hiding)
        one.start()
        assert one.stop() == 0
        one.config_file.write_text("")
        one.start()
        assert peer(one, "vm2")["key"] == pins["vm2"]


def test_a_pin_that_comes_back_after_it_was_forgotten_is_saved_again(pair):
    with Daemon(pair[0]) as one, Daemon(pair[1]) as two:
        introduce(one, two)
        one.cli("wait", "vm2", "--timeout", "10")
        wait_until(lambda: pins_of(one), "a saved pin")
        # Or it would be there again before anybody has looked.
        two.cli("peers", "remove", "vm1")
        one.cli("peers", "set", "vm2", "--key", "")
        assert pins_of(one) == {}
        add(two, "vm1", one.host.address)
        one.cli("wait", "vm2", "--timeout", "10")
        wait_until(lambda: pins_of(one) == {"vm2": two.status()["key"]}, "a saved pin")


def test_a_knocking_host_is_accepted_by_the_command_in_status(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        assert ping(vm2, vm1.address, "-W", "0.2", check=False) is None
        wait_until(lambda: one.status()["knocking"], "a knocking host")
        knocking = line_of(one, "Knocking: ")
        assert f" --key {two.status()['key']}" in knocking
        follow(one, knocking, NAME="vm2")
        assert not one.status()["knocking"]
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["key_source"] == "configured"


def test_a_changed_key_is_refused_aloud_and_once(strangers):
    one, two = strangers
    ping(one.host, two.host.address, "-W", "0.2", check=False, count=5)
    refused = "REFUSED: 192.168.10.61 shows another key than vm2 must have."
    assert one.log.count(refused) == 1
    entry = peer(one, "vm2")
    assert entry["key"] == pins_of(one)["vm2"] != two.status()["key"]
    assert entry["rx_packets"] == 0
    reason = f"alpha-trio peers set vm2 --key {two.status()['key']}"
    assert entry["reason"].endswith(reason)


def test_the_host_key_is_for_root_only(pair):
    with Daemon(pair[0]) as one:
        key = one.host.directory / "state/host.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_a_host_that_knocks_hears_nothing(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm2) as tap:
        add(two, "vm1", vm1.address)
        assert ping(vm2, vm1.address, "-W", "0.2", check=False) is None
        wait_until(lambda: one.status()["knocking"], "a knocking host")
        packets = tap.packets()
        assert [d[0] for d in datagrams(packets, vm2.address)] == [Kind.SYN]
        assert datagrams(packets, vm1.address) == []
        (knocking,) = one.status()["knocking"]
        key = b64decode(two.status()["key"])
        assert knocking["fingerprint"] == fingerprint(key)


def test_a_peer_that_moved_is_followed_by_its_key(pair):
    vm1, vm2 = pair
    with (
        Daemon(vm1, "--address", "10.9.0.1/24") as one,
        Daemon(vm2, "--address", "10.9.0.2/24") as two,
    ):
        add(one, "vm2", vm2.address, allow=["10.9.0.2"])
        add(two, "vm1", vm1.address, allow=["10.9.0.1"])
        ping(vm2, "10.9.0.1")
        vm2.run("ip", "addr", "del", f"{vm2.address}/24", "dev", "eth0")
        vm2.run("ip", "addr", "add", "192.168.10.77/24", "dev", "eth0")

        ping(vm2, "10.9.0.1")
        assert one.log.count("Got SYN packet") == 1
        assert peer(one, "vm2")["endpoint"] == "192.168.10.77:1234"
        ping(vm1, "10.9.0.2")
        assert peer(one, "vm2")["key"] == two.status()["key"]


def test_different_modes_are_told_and_carry_nothing(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address)
        add(two, "vm1", vm1.address, mode="plain")
        for source, target in ((vm1, vm2), (vm2, vm1)):
            assert ping(source, target.address, "-W", "0.2", check=False) is None
        for daemon, name in ((one, "vm2"), (two, "vm1")):
            entry = peer(daemon, name)
            assert entry["state"] != "established"
            assert entry["rx_packets"] == 0
            assert "set the same on both sides" in entry["reason"]
            assert daemon.log.count("wants another mode") == 1
        two.cli("peers", "set", "vm1", "--mode", "adaptive")
        ping(vm2, vm1.address)
        assert peer(one, "vm2")["reason"] is None


@pytest.mark.parametrize("mode", ["adaptive", "plain"])
def test_what_an_onlooker_reads(pair, mode):
    vm1, vm2 = pair
    secret = b"attack at dawn, and bring the ladders"
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two, mode=mode)
        with Tap(vm1) as tap:
            # One packet alone, many in a round, and those of a stream.
            send_udp(vm1, vm2, vm2.address, secret)
            send_udp(vm2, vm1, vm1.address, *[secret] * 100)
            stream = Stream(vm1, vm2, vm2.address)
            stream.client.sendall(secret * 10_000)
            assert stream.finish() == secret * 10_000
            seen = b"".join(packet.bytes for packet in tap.packets())
        assert (secret in seen) == (mode == "plain")


def test_only_what_changes_is_told(pair, tmp_path):
    one, two = map(Daemon, pair)
    heard = tmp_path / "events"
    with one, heard.open("w") as events:
        monitor = str(PROGRAM), "monitor", "--json"
        one.host.popen(*monitor, stdout=events, env=one.environment)

        def told(*kinds):
            happened = [
                json.loads(line)["event"] for line in heard.read_text().splitlines()
            ]
            return [event for event in happened if event in kinds]

        def listening():
            add(one, "somebody", "192.0.2.1")
            one.request("peers.remove", name="somebody")
            return told("peer-removed")

        wait_until(listening, "the monitor to hear of peers")
        with two:
            introduce(one, two)
            ping(one.host, two.host.address)
        for settings in (
            ["--keepalive", "25"],
            ["--key", ""],
            ["--key", STRANGERS_KEY],
        ):
            for _ in range(2):
                one.cli("peers", "set", "vm2", *settings)
        one.cli("peers", "set", "vm2", "--key", "")  # none was pinned meanwhile
        one.cli("reload")
        wait_until(lambda: told("reloaded"), "the monitor to hear of all that")
        assert told("peer-changed", "key-forgotten") == [
            *("peer-changed", "key-forgotten", "peer-changed", "peer-changed")
        ]
