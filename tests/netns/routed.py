"""The least daemon that routes: a TUN, a UDP socket, and a Router under test.

Every line on stdin is a JSON list of peers, applied and answered with one line;
the end of stdin ends it.  Started by tests/netns/test_routes.py on a lab host.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from ipaddress import ip_address, ip_interface, ip_network

import trio

from alpha_trio.errors import RoutingError
from alpha_trio.net.routing import PeerRoute, Router
from alpha_trio.settings import Backend, Selection, Settings
from alpha_trio.settings.model import RoutingSettings

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2
OVERHEADS = {4: 28 + 24, 6: 48 + 24}


def parse_settings(text):
    fields = json.loads(text)
    routing = fields.pop("routing", {})
    if "backend" in routing:
        routing["backend"] = Backend(routing["backend"])
    addresses = tuple(map(ip_interface, fields.pop("addresses", ())))
    return Settings(addresses=addresses, routing=RoutingSettings(**routing), **fields)


def parse_peer(name, endpoint, prefixes, only=()):
    address = ip_address(endpoint)
    return PeerRoute(
        name,
        address,
        tuple(map(ip_network, prefixes)),
        tuple(Selection(p, tuple(ports) if ports else None) for p, ports in only),
        OVERHEADS[address.version],
    )


class Forwarder:
    """Carries packets between TUN and peers, each in one datagram."""

    def __init__(self, settings):
        self.port = settings.port
        self.peers = []
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        name = settings.interface.encode()
        request = struct.pack("16sH22x", name, IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(self.tun, TUNSETIFF, request)
        self.udp = {4: socket.socket(type=socket.SOCK_DGRAM)}
        self.udp[4].setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        self.udp[6] = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.udp[6].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.udp[6].setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
        for wildcard, udp in zip(("", "::"), self.udp.values(), strict=True):
            if settings.routing.backend is Backend.RULES:
                mark = settings.routing.mark
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            udp.setblocking(False)
            udp.bind((wildcard, self.port))

    def close(self):
        os.close(self.tun)
        for udp in self.udp.values():
            udp.close()

    def endpoint(self, packet):
        where = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        destination = ip_address(where)
        matches = [
            (prefix.prefixlen, peer.endpoint)
            for peer in self.peers
            for prefix in peer.prefixes
            if destination in prefix
        ]
        return max(matches)[1] if matches else None

    async def out(self):
        while True:
            await trio.lowlevel.wait_readable(self.tun)
            packet = os.read(self.tun, 65536)
            endpoint = self.endpoint(packet)
            if endpoint is not None:
                to = (str(endpoint), self.port)
                self.udp[endpoint.version].sendto(packet, to)

    async def back(self, udp):
        while True:
            await trio.lowlevel.wait_readable(udp)
            os.write(self.tun, udp.recv(65536))


async def follow(router, forwarder):
    while True:
        await router.wait_changed()
        await router.apply(forwarder.peers)
        print("again", flush=True)


async def serve(settings):
    forwarder = Forwarder(settings)
    router = Router(settings)
    try:
        await router.open()
        print("open", flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarder.out)
            for udp in forwarder.udp.values():
                nursery.start_soon(forwarder.back, udp)
            nursery.start_soon(follow, router, forwarder)
            # A FileStream reads in a thread, which must not be waited for at the end.
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                if line.strip() == "stale":
                    router.mark_stale()
                    continue
                forwarder.peers = [parse_peer(*peer) for peer in json.loads(line)]
                print(await answer(router, forwarder.peers), flush=True)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await router.close()
        forwarder.close()


async def answer(router, peers):
    try:
        underlays = await router.apply(peers)
    except RoutingError as error:
        return f"refused {error}"
    facts = {
        name: [u.mtu, str(u.source), u.device, u.error] for name, u in underlays.items()
    }
    return "applied " + json.dumps(facts)


if __name__ == "__main__":
    try:
        trio.run(serve, parse_settings(sys.argv[1]))
    except RoutingError as error:
        sys.exit(f"refused {error}")
