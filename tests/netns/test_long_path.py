"""Paths as long and lossy as people have them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tools.daemons import Daemon
from tools.lab import Host, wait_until

from .test_delay import counter, receive_all
from .traffic import introduce

pytestmark = pytest.mark.netns

REQUESTS, REQUEST, MEGABYTE = 3, b"put a file\n", bytes(1 << 20)
HYSTART_LOW_WINDOW = 16  # segments, of <net/ipv4/tcp_cubic.c>


@contextmanager
def tunnel(*hosts: Host) -> Iterator[list[Daemon]]:
    """A session between two hosts."""
    with ExitStack() as stack:
        daemons = [stack.enter_context(Daemon(host)) for host in hosts]
        introduce(*daemons)
        yield daemons


@contextmanager
def connected(vm1: Host, vm2: Host, algorithm: bytes) -> Iterator[tuple]:
    """A TCP connection, and what will have arrived by it."""
    with (
        vm2.socket(kind=socket.SOCK_STREAM) as server,
        vm1.socket(kind=socket.SOCK_STREAM) as client,
        ThreadPoolExecutor() as pool,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(20)
        server.bind((vm2.address, 8080))
        server.listen()
        arrived = pool.submit(receive_all, server)
        client.connect(server.getsockname())
        yield client, arrived
        client.shutdown(socket.SHUT_WR)
        arrived.result(timeout=20)


def test_a_transfer_behind_requests_keeps_its_slow_start(lab):
    """CUBIC leaves it where round trips grow; those of early packets are shorter."""
    vm1, vm2 = lab.lan(2, delay_ms=30)
    with tunnel(vm1, vm2), connected(vm1, vm2, b"cubic") as (client, arrived):
        for _ in range(REQUESTS):
            client.sendall(REQUEST)
            wait_until(lambda: unacknowledged(client) == 0, "an acknowledgment")
        client.sendall(MEGABYTE)
    assert len(arrived.result()) == REQUESTS * len(REQUEST) + len(MEGABYTE)
    # Segments; it begins to look with 16 of them, and then leaves with 36 if early
    # packets misled it.  A busy machine has real delays, later.
    left_with = counter(vm1, "TcpExtTCPHystartDelayCwnd")
    assert not left_with or left_with > 3 * HYSTART_LOW_WINDOW


def unacknowledged(client: socket.socket) -> int:
    """Segments of a connection: tcpi_unacked of <linux/tcp.h>."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], "little")


def test_a_way_that_loses_much_is_told_with_what_helps(lab):
    vm1, vm2 = lab.lan(2, delay_ms=1, loss=0.05)
    with tunnel(vm1, vm2) as (one, two):
        vm1.run("ping", "-q", "-c", "500", "-i", "0.002", vm2.address, check=False)
        (told,) = [line for line in one.status()["health"] if "reliable" in line]
        assert "peer vm2" in told
        assert "alpha-trio peers set vm2 --reliable on" in told
        one.cli("peers", "set", "vm2", "--reliable", "on")
        assert not [line for line in one.status()["health"] if "reliable" in line]
        assert [line for line in two.status()["health"] if "peer vm1" in line]
