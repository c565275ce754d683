"""A link with a delay, as the lab makes it.

vm1 eth0 (TAP) --- tools/delay.py --- (TAP) eth0 vm2
"""

from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools import measure
from tools.lab import Host, wait_until

from .test_lab import is_running

pytestmark = pytest.mark.netns

MEGABYTES = bytes(range(256)) * 4096 * 8


def test_a_packet_takes_its_time_in_either_direction(lab):
    vm1, vm2 = lab.lan(2, delay_ms=20)
    for here, there in ((vm1, vm2), (vm2, vm1)):
        figures = measure.ping(here, there.address, 0.05, "idle")
        assert figures["ping_idle_median_ms"] >= 40


def test_hosts_behind_a_switch_are_as_far_from_each_other(lab):
    first, _, third = lab.lan(3, delay_ms=20)
    assert measure.ping(first, third.address, 0.01, "idle")["ping_idle_p99_ms"] >= 40


def test_every_link_of_a_chain_takes_its_time(lab):
    vm1, *_, vm2 = lab.chain(1, delay_ms=20)
    assert measure.ping(vm1, vm2.address, 0.01, "idle")["ping_idle_p99_ms"] >= 80


def test_a_tcp_stream_crosses_whole(lab):
    vm1, vm2 = lab.lan(2, delay_ms=2)
    with vm2.socket(kind=socket.SOCK_STREAM) as server, ThreadPoolExecutor() as pool:
        server.bind((vm2.address, 8080))
        server.listen()
        with vm1.socket(kind=socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect(server.getsockname())
            arrived = pool.submit(receive_all, server)
            client.sendall(MEGABYTES)
        assert arrived.result(timeout=10) == MEGABYTES


def receive_all(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(10)
        return stream.read()


def test_a_large_link_carries_large_packets(lab):
    vm1, vm2 = lab.lan(2, mtu=9000, delay_ms=1)
    vm1.run("ping", "-c", "1", "-W", "2", "-M", "do", "-s", "8972", vm2.address)


def test_the_process_between_goes_with_the_lab(lab):
    vm1, _ = lab.lan(2, delay_ms=1)
    (pid,) = pids_on(vm1)
    assert is_running(pid)
    lab.close()
    wait_until(lambda: not is_running(pid), "end of the process")


def pids_on(host: Host) -> list[str]:
    command = ("ip", "netns", "pids", host.namespace)
    return subprocess.run(command, capture_output=True, text=True).stdout.split()
