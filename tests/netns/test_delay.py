"""A link with delay and loss, as the lab makes it.

vm1 eth0 (TAP) --- tools/delay.py --- (TAP) eth0 vm2
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tools import measure, packets
from tools.lab import Host, wait_until

from .test_lab import is_running

pytestmark = pytest.mark.netns

UDP_SEGMENT = 103  # of <linux/udp.h>
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


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_tcp_stream_crosses_whole_a_link_that_loses(lab, family):
    vm1, vm2 = lab.lan(2, loss=0.05)
    address = vm2.address if family == socket.AF_INET else vm2.address6
    with (
        vm2.socket(family, socket.SOCK_STREAM) as server,
        ThreadPoolExecutor() as pool,
        vm1.socket(family, socket.SOCK_STREAM) as client,
    ):
        server.bind((address, 8080))
        server.listen()
        arrived = pool.submit(receive_all, server)
        client.settimeout(20)
        client.connect(server.getsockname())
        client.sendall(MEGABYTES[: 1 << 20])
        client.shutdown(socket.SHUT_WR)
        assert arrived.result(timeout=20) == MEGABYTES[: 1 << 20]
    assert counter(vm1, "TcpRetransSegs") > 10
    # A part with wrong lengths would be dropped, and hidden by being sent again.
    for host in (vm1, vm2):
        assert counter(host, "TcpInErrs") == 0
        assert counter(host, "IpInHdrErrors") == 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_of_super_packets_single_packets_are_lost(lab, family):
    vm1, vm2 = lab.lan(2, loss=0.1)
    address = vm2.address if family == socket.AF_INET else vm2.address6
    # Few packets may wait for the neighbour's address to be known.
    vm1.run("ping", "-c", "5", "-i", "0.01", address, check=False)
    sent = [struct.pack("!I", number) * 250 for number in range(2000)]
    with vm2.socket(family) as behind, vm1.socket(family) as before:
        behind.setsockopt(socket.SOL_SOCKET, packets.SO_RCVBUFFORCE, 8 << 20)
        behind.bind((address, 0))
        before.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        for first in range(0, len(sent), 50):
            before.sendto(b"".join(sent[first : first + 50]), behind.getsockname())
        behind.settimeout(1)
        arrived = list(datagrams(behind))
    assert 1700 < len(arrived) < 1900
    assert arrived == sorted(arrived)
    assert set(arrived) < set(sent)


def datagrams(receiving: socket.socket) -> Iterator[bytes]:
    with suppress(TimeoutError):
        while True:
            yield receiving.recv(2000)


def counter(host: Host, name: str) -> int:
    output = host.run("nstat", "--ignore", "--noupdate", "--zeros", name).stdout
    return int(output.split()[-2])


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
