"""Others' datagrams as a relay is given them: their flow, whatever came before."""

import socket
from collections.abc import Iterator
from itertools import product
from struct import pack

import pytest

from alpha_trio.net.transit import _FLOWS_KEPT, Transit, TransitSocket

pytestmark = pytest.mark.root

_UDP_SEGMENT = 103
_LOOPBACK = "127.0.0.1"


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((_LOOPBACK, 0))
        yield sock


@pytest.fixture
def relay() -> Iterator[TransitSocket]:
    sock = TransitSocket.open(socket.AF_INET)
    yield sock
    sock.close()


def through(sender: socket.socket, relay: TransitSocket, *headers) -> Transit:
    sender.sendmsg([b"datagram" * 3], headers, 0, (_LOOPBACK, relay.port))
    run = relay.receive_nowait()
    assert run is not None
    return run


def with_hops(hops: int, traffic_class: int) -> list[tuple[int, int, bytes]]:
    return [
        (socket.IPPROTO_IP, socket.IP_TTL, pack("=i", hops)),
        (socket.IPPROTO_IP, socket.IP_TOS, pack("=i", traffic_class)),
    ]


def test_a_flow_says_where_its_datagrams_come_from_and_go_to(sender, relay):
    crossing = through(sender, relay).flow.crossing
    assert crossing.source == crossing.origin == sender.getsockname()
    assert crossing.destination == crossing.goal == (_LOOPBACK, relay.port)
    assert crossing.interface == socket.if_nametoindex("lo")


def test_a_run_and_a_datagram_are_of_one_flow(sender, relay):
    one = through(sender, relay)
    assert (len(one.view), one.stride) == (24, 24)
    run = through(sender, relay, (socket.IPPROTO_UDP, _UDP_SEGMENT, pack("=H", 8)))
    assert (len(run.view), run.stride) == (24, 8)
    assert run.flow is one.flow


def test_more_flows_than_are_kept_are_told_apart_and_fill_no_more(sender, relay):
    kinds = [*product(range(2, 256), range(0, 24, 4))]
    assert len(kinds) > _FLOWS_KEPT
    for hops, traffic_class in (*kinds, *kinds[:3]):
        flow = through(sender, relay, *with_hops(hops, traffic_class)).flow
        assert (flow.hops, flow.traffic_class) == (hops, traffic_class)
        assert len(relay._flows) <= _FLOWS_KEPT


def test_it_goes_on_one_hop_nearer_to_its_end(sender, relay):
    headers = through(sender, relay, *with_hops(9, 0xB9)).flow.headers
    assert (socket.IPPROTO_IP, socket.IP_TTL, pack("=i", 8)) in headers
    assert (socket.IPPROTO_IP, socket.IP_TOS, pack("=i", 0xB9)) in headers
