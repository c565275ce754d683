"""Several processes' UDP sockets: which of them receives what."""

import os
import socket

import pytest

from alpha_trio.errors import StartError
from alpha_trio.net import udp
from alpha_trio.net.udp_lanes import UdpLanes
from tests.net.test_udp import HANDSHAKE, LOCALHOST, OTHER, port, received, send

__all__ = ["port"]

LANES = 3

pytestmark = pytest.mark.skipif(
    not socket.has_dualstack_ipv6(), reason="needs IPv4 and IPv6"
)


def opened_at(port):
    return UdpLanes.open(LANES, port, (), mark=0, dscp=0, handshake=HANDSHAKE)


@pytest.fixture
def opened(port):
    sockets = opened_at(port)
    yield sockets
    sockets.close()


def send_numbers(family, port, *numbers):
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for number in numbers:
            datagram = bytes([OTHER, 0, 0, 0]) + number.to_bytes(4) + b"rest"
            sender.sendto(datagram, (LOCALHOST[family], port))


def counts(sockets):
    return [len(received(sock)) for sock in sockets]


@pytest.mark.parametrize("family", LOCALHOST)
def test_each_connection_id_comes_to_its_lane_and_all_else_apart(opened, port, family):
    sockets = opened.sockets[2 if family == socket.AF_INET else 4]
    assert opened.steer({7: 0, 8: 2, 9: 1, 10: 2})
    send_numbers(family, port, 7, 8, 9, 10, 7, 11, 0)
    send(family, port, HANDSHAKE)
    assert counts(sockets) == [2, 1, 2, 3]


@pytest.mark.parametrize("family", LOCALHOST)
def test_of_too_many_the_remainder_tells(opened, port, family):
    sockets = opened.sockets[2 if family == socket.AF_INET else 4]
    assert opened.steer(dict.fromkeys(range(udp.MOST_STEERED + 1), 0))
    send_numbers(family, port, 3_000_000_000, 3_000_000_001, 3_000_000_002, 1, 2, 4)
    send(family, port, HANDSHAKE)
    assert counts(sockets) == [1, 3, 2, 1]


def test_before_anything_is_known_all_comes_apart(opened, port):
    send_numbers(socket.AF_INET, port, 1, 2, 3)
    assert counts(opened.sockets[2]) == [0, 0, 0, 3]


def test_a_descriptor_of_one_serves_another_process_as_well(opened, port):
    sock = opened.sockets[2][1]
    twin = udp.UdpSocket.adopt(os.dup(sock.fileno()), sock.traits)
    assert opened.steer({5: 1})
    send_numbers(socket.AF_INET, port, 5)
    assert len(received(twin)) == 1
    assert (twin.offloads, twin.family) == (sock.offloads, sock.family)
    twin.close()


def test_a_kernel_that_cannot_tell_is_told_at_once(monkeypatch, port):
    monkeypatch.setattr(udp, "_SO_ATTACH_REUSEPORT_CBPF", 9999)
    with pytest.raises(StartError, match="set cores = 1"):
        opened_at(port)


def test_nobody_else_may_have_the_port_even_one_who_shares_it(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("", port))
        with pytest.raises(StartError, match=f"port {port} is taken"):
            opened_at(port)
