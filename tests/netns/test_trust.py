"""Whose key a host trusts, and how an operator has another one accepted.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61
"""

from __future__ import annotations

import json

import pytest

from alpha_trio.proto.identity import key_text
from tests.netns.traffic import add, introduce, peer, ping
from tools.lab import Daemon, wait_until

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


def test_a_knocking_host_is_accepted_by_the_command_in_status(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        assert ping(vm2, vm1.address, "-W", "0.2", check=False) is None
        wait_until(lambda: one.status()["knocking"], "a knocking host")
        knocking = line_of(one, "Knocking: ")
        assert f" --key {two.status()['key']}" in knocking
        follow(one, knocking, NAME="vm2")
        ping(vm1, vm2.address)
        assert peer(one, "vm2")["key_source"] == "configured"
