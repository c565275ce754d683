"""Hooks of a real daemon's peers.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61
"""

from __future__ import annotations

import json

import pytest

from tests.netns.traffic import add, ping
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns


def config_of(vm2, told):
    """A peer whose hooks tell a file, and one of them hangs and floods as well."""
    script = told.with_name("hook")
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$ALPHA_TRIO_EVENT $ALPHA_TRIO_PEER $ALPHA_TRIO_ENDPOINT $*" >>{told}\n'
        '[ "$1" = flood ] && exec yes\n'
        '[ "$1" = hang ] && exec sleep 60\n'
        "exit 0\n"
    )
    script.chmod(0o700)
    return (
        f'[peers.vm2]\nendpoint = "{vm2.address}"\n'
        f'on_up = ["{script}", "hang"]\non_down = ["{script}", "a b"]\n'
    )


def test_hooks_run_and_harm_nobody(pair, tmp_path):
    vm1, vm2 = pair
    told = tmp_path / "told"
    config = config_of(vm2, told)
    with Daemon(vm1, "--log-format", "json", config=config) as one, Daemon(vm2) as two:
        one.config_file.chmod(0o600)
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        wait_until(told.exists, "the first hook")
        ping(vm1, vm2.address, "-i", "0.01", count=50)  # while it hangs
        one.reload(config.replace("hang", "flood"))
        wait_until(lambda: one.status()["hooks"]["killed"], "its end", 15)
        (line,) = [x for x in one.status()["health"] if "hook" in x]
        assert line.startswith("hook on_up of vm2: killed: it did not end within 10 s")
        logged = [json.loads(x) for x in one.log.splitlines()]
        assert [x["event"] for x in logged].count("hook-killed") == 1
        one.reload("")
        wait_until(lambda: one.status()["hooks"]["done"], "the last hook")
        assert not [x for x in one.status()["health"] if "hook" in x]
    where = f"vm2 {vm2.address}:1234"
    assert told.read_text() == f"up {where} hang\ndown {where} a b\n"


def test_a_hook_that_runs_is_ended_with_the_daemon(pair, tmp_path):
    vm1, vm2 = pair
    told = tmp_path / "told"
    with Daemon(vm1, config=config_of(vm2, told)) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        wait_until(told.exists, "the first hook")
        assert one.stop(timeout=5) == 0
        one.start()
