"""The UDP sockets: what is received where, and what the kernel drops."""

import socket

import pytest

from alpha_trio.errors import StartError
from alpha_trio.net import udp
from alpha_trio.net.udp import Udp

HANDSHAKE, OTHER = 1, 7
LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
MANY = 10_000  # more than the kernel keeps of handshakes

pytestmark = pytest.mark.skipif(
    not socket.has_dualstack_ipv6(), reason="needs IPv4 and IPv6"
)


@pytest.fixture
def port():
    """A port that nobody has."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def opened(port):
    sockets = Udp.open(port, handshake=HANDSHAKE)
    yield sockets
    sockets.close()


def send(family, port, *kinds):
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for kind in kinds:
            sender.sendto(bytes([kind]) + bytes(199), (LOCALHOST[family], port))


def received(sock):
    """The first byte of each datagram that is there."""
    found = []
    while (run := sock.receive_nowait()) is not None:
        found += run.view[:: run.stride]
    return found


@pytest.mark.parametrize("family", LOCALHOST)
def test_handshakes_are_received_apart(opened, port, family):
    send(family, port, HANDSHAKE, OTHER, HANDSHAKE, 0, OTHER)
    at = list(LOCALHOST).index(family)
    assert received(opened.handshakes[at]) == [HANDSHAKE] * 2
    assert received(list(opened)[at]) == [OTHER, 0, OTHER]
    assert opened.dropped == 0


def test_too_many_handshakes_take_no_room_from_the_rest(opened, port):
    send(socket.AF_INET, port, *[HANDSHAKE] * MANY)
    send(socket.AF_INET, port, *[OTHER] * 100)
    kept = len(received(opened.handshakes[0]))
    assert 100 < kept < MANY
    assert opened.dropped == MANY - kept
    assert received(next(iter(opened))) == [OTHER] * 100


@pytest.mark.parametrize("family", LOCALHOST)
def test_what_belongs_to_no_session_is_received_apart(opened, port, family):
    at = list(LOCALHOST).index(family)
    known = range(1, udp.MOST_STEERED + 1)
    opened.steer(known)

    def send_numbers(*numbers):
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            for number in numbers:
                datagram = bytes([OTHER, 0, 0, 0]) + number.to_bytes(4) + b"rest"
                sender.sendto(datagram, (LOCALHOST[family], port))

    send_numbers(0, 1, 999, udp.MOST_STEERED, 2, 1 << 24)
    send(family, port, HANDSHAKE)
    assert len(received(opened.handshakes[at])) == 4
    assert len(received(list(opened)[at])) == 3
    opened.steer(range(udp.MOST_STEERED + 1))  # too many: all goes on as it was
    send_numbers(0, 999, 1 << 24)
    send(family, port, HANDSHAKE)
    assert len(received(opened.handshakes[at])) == 1
    assert len(received(list(opened)[at])) == 3


def test_all_arrives_at_one_socket_where_the_kernel_cannot_tell(monkeypatch, port):
    monkeypatch.setattr(udp, "_SO_ATTACH_REUSEPORT_CBPF", 9999)
    opened = Udp.open(port, handshake=HANDSHAKE)
    send(socket.AF_INET, port, HANDSHAKE, OTHER)
    assert opened.handshakes == ()
    assert received(next(iter(opened))) == [HANDSHAKE, OTHER]
    opened.close()


def test_nobody_else_may_have_the_port_even_one_who_shares_it(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("", port))
        with pytest.raises(StartError, match=f"port {port} is taken"):
            Udp.open(port, handshake=HANDSHAKE)
