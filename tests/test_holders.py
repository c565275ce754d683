"""Who holds what we want; tests/netns/test_lifecycle.py has the errors that say so."""

import fcntl
import os
import socket
import subprocess

import pytest

from alpha_trio import holders

UNIT = "0::/system.slice/alpha-trio.service"
STARTED = "Name:\talpha-trio\nPPid:\t{}\n"


@pytest.mark.parametrize(
    ("cgroups", "parent", "unit"),
    [
        (UNIT, 1, "alpha-trio"),
        (f"2:pids:/system.slice\n1:name=systemd:{UNIT[3:]}\n", 1, "alpha-trio"),
        ("0::/system.slice/system-vpn.slice/vpn@a.service\n", 1, "vpn@a"),
        ("0::/system.slice/cron.service", 812, ""),  # started by it, not as it
        ("0::/user.slice/user-0.slice/session-3.scope", 812, ""),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/x.service", 1, ""),
        ("0::/", 1, ""),
    ],
)
def test_the_unit_of_a_process(cgroups, parent, unit):
    assert holders.unit_of(cgroups, STARTED.format(parent)) == unit


def test_what_is_told_to_end_it():
    assert holders.Holder(7, "a").stop == "kill 7"
    assert holders.Holder(7, "a", "alpha-trio").stop == "systemctl stop alpha-trio"
    assert str(holders.Holder(7, "a\nb")) == "a?b (process 7)"


def test_who_has_a_lock(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert holders.of_lock(fd) is None
        with subprocess.Popen(
            ["flock", str(tmp_path), "cat"], stdin=subprocess.PIPE
        ) as other:
            while holders.of_lock(fd) is None:
                pass
            assert str(holders.of_lock(fd)) == f"flock (process {other.pid})"
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.stdin.close()
    finally:
        os.close(fd)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_has_a_port(family):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.bind(("", 0))
        port = one.getsockname()[1]
        assert holders.of_udp_port(port).pid == os.getpid()
    assert holders.of_udp_port(port) is None


def test_who_listens(tmp_path):
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as one:
        server.bind(path)
        server.listen()
        one.connect(path)
        assert holders.of_listener(one).pid == os.getpid()
