"""Clocks that jump: suspend, and a wall clock that somebody sets.

vm1 192.168.10.60 --- vm2 192.168.10.61; the clocks of vm1's daemon are ours to move.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from tests.netns.traffic import add, introduce, peer, ping
from tools.daemons import PROGRAM, Daemon, ending
from tools.lab import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.cold]

CLOCKS = Path(__file__).with_name("clocks")
SHIFTS = struct.Struct("=dd")


class Moved(Daemon):
    """A daemon whose clocks can be moved."""

    def __init__(self, host, *arguments, wall=0.0):
        super().__init__(host, *arguments)
        self.shifts = host.directory / "clocks"
        self.shifts.write_bytes(SHIFTS.pack(0.0, wall))
        self.environment |= {"PYTHONPATH": str(CLOCKS), "CLOCKS": str(self.shifts)}

    def move(self, suspended, wall=0.0):
        """As if the machine had been suspended for so many seconds."""
        with self.shifts.open("r+b") as file:
            file.write(SHIFTS.pack(suspended, wall))


def touch_wall_clock():
    """What the kernel does on resume as well: it tells of a wall clock that moved."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns())
    except PermissionError:
        pytest.skip("the wall clock may not be set here")


def since_handshake(daemon):
    return peer(daemon, "vm2")["latest_handshake_seconds"]


def test_resume_from_suspend_asks_every_peer_at_once(pair):
    vm1, vm2 = pair
    with Moved(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        time.sleep(2)
        one.move(suspended=100)  # the session can still be used, and vm2 has it
        touch_wall_clock()
        one.wait_log("This host was suspended for 100 s. Asking peers anew.")
        wait_until(lambda: since_handshake(one) < 2, "another session")
        assert one.log.count("Got ACK packet") + one.log.count("Got ACKACK") == 2
        ping(vm1, vm2.address)
        one.move(suspended=100 + 3600)
        touch_wall_clock()
        one.wait_log("This host was suspended for 3600 s.")
        wait_until(lambda: peer(one, "vm2")["state"] == "established", "a session")
        ping(vm1, vm2.address)
        assert one.status()["health"] == []


def test_resume_is_noticed_by_what_is_overdue_as_well(pair):
    """Where the kernel tells nothing, the first packet does."""
    vm1, vm2 = pair
    with Moved(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        one.move(suspended=3600)
        ping(vm1, vm2.address)
        one.wait_log("This host was suspended for 3600 s.")


def test_setting_the_wall_clock_asks_nobody(pair):
    vm1, vm2 = pair
    with Moved(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        for wall in (-1e9, 1e9):
            one.move(suspended=0, wall=wall)
            touch_wall_clock()
            ping(vm1, vm2.address)
        assert one.log.count("Got ACK packet") == 1
        assert "suspended" not in one.log


@pytest.mark.parametrize("wall", [3.0, 2**31 - 2.0, 2**32 + 5.0])
def test_the_wall_clock_of_1970_and_of_2038_changes_nothing(pair, wall):
    vm1, vm2 = pair
    events = vm1.directory / "events"
    with Moved(vm1, wall=wall - time.time()) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address, count=3)

        def told():
            add(one, "vm3", "192.168.10.62")
            one.request("peers.remove", name="vm3")
            return "peer-removed" in events.read_text()

        with events.open("w") as file:
            command = (str(PROGRAM), "monitor", "--json")
            with ending(vm1.popen(*command, stdout=file, env=one.environment)):
                wait_until(told, "events")
        times = [json.loads(line)["time"] for line in events.read_text().splitlines()]
        assert all(wall <= when < wall + 60 for when in times)
        assert peer(one, "vm2")["latest_handshake_seconds"] < 60
        assert one.log.startswith(time.strftime("%Y-%m-%d", time.localtime(wall)))
        assert one.status()["health"] == []
