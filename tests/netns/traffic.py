"""Traffic between hosts of the lab, and what a tap on the link sees of it."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address

from alpha_trio.proto.packets import frames
from tools.lab import Host, wait_until

PORT = 1234
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
IGMP, UDP, ICMPV6 = 2, 17, 58
ALL_FRAMES = 3  # ETH_P_ALL
RCVBUFFORCE = 33
OVERHEAD = 20 + 8 + 64  # IPv4, UDP, and what S2 adds at most, bytes
LINK_ONLY_ICMPV6 = frozenset({133, 134, 135, 136, 143})  # neighbours and groups
PATIENCE = 10  # seconds until a test gives a packet up


class PreparedHost(Host):
    """A host on which every program runs after a shell command, as its own pid."""

    preparation = "true"

    def inside(self, *command):
        shell = f'{self.preparation} && exec "$@"'
        return Host.inside(self, "sh", "-ec", shell, "sh", *command)


def prepared(host, preparation):
    """The host with mounts of its own, ``preparation``, for each program."""
    place = host.name, host.namespace, host.directory, host.address, host.address6
    there = PreparedHost(*place)
    there.preparation = preparation
    return there


# Peers


def introduce(one, two, **settings):
    """Make two daemons peers of each other, by their IPv4 addresses."""
    add(one, two.host.name, two.host.address, **settings)
    add(two, one.host.name, one.host.address, **settings)


def add(daemon, name, endpoint, **settings):
    """What ``peers add`` asks of the daemon."""
    settings["endpoint"] = endpoint
    return daemon.request("peers.add", name=name, settings=settings)


def peer(daemon, name):
    """The entry of one peer in the status document."""
    (found,) = [peer for peer in daemon.status()["peers"] if peer["name"] == name]
    return found


def drops(daemon, name=None):
    """What was dropped of a peer, or of nobody's: reason to count."""
    return (peer(daemon, name) if name else daemon.status())["drops"]


def wait_drop(daemon, reason, name=None, count=1):
    """Wait until so many packets were dropped for a reason, and no more."""
    wait_until(lambda: drops(daemon, name).get(reason, 0) >= count, f"{reason} counted")
    assert drops(daemon, name)[reason] == count


def assert_none_lost(one, two):
    """What either side sent into the tunnel came out at the other."""

    def counts():
        (there,), (back,) = one.status()["peers"], two.status()["peers"]
        return [
            [there["tx_packets"], there["tx_bytes"], back["tx_packets"]],
            [back["rx_packets"], back["rx_bytes"], there["rx_packets"]],
        ]

    wait_until(lambda: len({*map(tuple, counts())}) == 1, f"equal counts: {counts()}")
    for here, there in ((one, two), (two, one)):
        # A queue that stands behind a stream tells its sender so.
        assert {**drops(here, there.host.name), "queue-full": 0} == {"queue-full": 0}


# Traffic


def ping(host, address, *options, check=True, count=1):
    """Echo requests; what ping printed, or None if it failed and may."""
    command = ("ping", "-n", "-c", str(count), "-i", "0.01", "-W", "3", *options)
    done = host.run(*command, address, check=check)
    return done.stdout if done.returncode == 0 else None


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def send_udp(source, target, address, *payloads):
    """Send datagrams; what arrives, in order of arrival."""
    with target.socket(family_of(address)) as inbound:
        inbound.bind((address, 0))
        inbound.settimeout(PATIENCE)
        with source.socket(family_of(address)) as outbound:
            for payload in payloads:
                outbound.sendto(payload, inbound.getsockname())
            return [inbound.recv(1 << 16) for _ in payloads]


class Stream:
    """A TCP connection whose receiving end reads, in a thread, until the end."""

    def __init__(self, source, target, address):
        self.received = 0
        family = family_of(address)
        with target.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            listener.settimeout(PATIENCE)
            self.client = source.socket(family, socket.SOCK_STREAM)
            self.client.settimeout(PATIENCE)
            self.client.connect(listener.getsockname()[:2])
            self.server, _ = listener.accept()
        self.server.settimeout(PATIENCE)
        self.pieces = []
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._reading = self._pool.submit(self._read)

    def _read(self):
        with self.server:
            while piece := self.server.recv(1 << 20):
                self.received += len(piece)
                self.pieces.append(piece)

    def finish(self):
        """End it; all that was received."""
        self.client.shutdown(socket.SHUT_WR)
        self._reading.result(timeout=2 * PATIENCE)
        self.client.close()
        self._pool.shutdown()
        return b"".join(self.pieces)


def send_tcp(source, target, address, size=1 << 20):
    """Send random bytes by TCP and see the same ones arrive."""
    stream, data = Stream(source, target, address), os.urandom(size)
    stream.client.sendall(data)
    assert stream.finish() == data


@contextmanager
def flowing(source, target, address):
    """A TCP connection that is kept full within the block."""
    stream, done = Stream(source, target, address), threading.Event()
    data = bytes(1 << 18)

    def send():
        while not done.is_set():
            stream.client.sendall(data)

    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(send)
        try:
            yield stream
        finally:
            done.set()
            sending.result()
            stream.finish()


def tcp_timeouts(host):
    """How often a host's TCP waited for an acknowledgment in vain."""
    stats = json.loads(host.run("nstat", "-asz", "--json", "TcpExtTCPTimeouts").stdout)
    return stats["kernel"]["TcpExtTCPTimeouts"]


# The link


class Tap:
    """Sees every frame that crosses a link of a host, both ways."""

    def __init__(self, host, link="eth0"):
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 64 << 20)
        host.call(lambda: self._socket.bind((link, ALL_FRAMES)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def packets(self):
        """The IP packets and ARP messages seen since the last call."""
        found = []
        while True:
            try:
                found.append(Packet(self._socket.recv(1 << 17)))
            except BlockingIOError:
                return found


class Packet:
    """An Ethernet frame, as far as the tests look into it."""

    def __init__(self, frame):
        self.kind = int.from_bytes(frame[12:14])
        self.bytes = frame[14:]
        self.protocol, self.payload = 0, b""
        self.source = self.destination = None
        if self.kind == IPV4:
            self._set(9, slice(12, 16), slice(16, 20), (self.bytes[0] & 15) * 4)
        elif self.kind == IPV6:
            self._set(6, slice(8, 24), slice(24, 40), 40)

    def _set(self, protocol, source, destination, header):
        self.protocol = self.bytes[protocol]
        self.source = str(ip_address(self.bytes[source]))
        self.destination = str(ip_address(self.bytes[destination]))
        self.payload = self.bytes[header:]

    @property
    def traffic_class(self):
        """DSCP and ECN."""
        if self.kind == IPV4:
            return self.bytes[1]
        return int.from_bytes(self.bytes[:2]) >> 4 & 0xFF

    @property
    def ports(self):
        return int.from_bytes(self.payload[:2]), int.from_bytes(self.payload[2:4])

    @property
    def is_tunnel(self):
        return self.protocol == UDP and self.ports == (PORT, PORT)

    @property
    def is_of_the_link(self):
        """ARP, and what IPv6 has in its place, and who listens to which groups."""
        if self.kind == IPV6 and self.protocol == 0:
            return True  # a hop-by-hop header: multicast listener reports
        if self.kind == IPV4 and self.protocol == IGMP:
            return True
        return self.kind == ARP or (
            self.protocol == ICMPV6 and self.payload[0] in LINK_ONLY_ICMPV6
        )

    def __repr__(self):
        return f"{self.source} > {self.destination} {self.protocol} {self.ports}"


def assert_only_tunnel(packets):
    """Nothing but the tunnel's datagrams and neighbour discovery; some of the first."""
    bare = [p for p in packets if not (p.is_tunnel or p.is_of_the_link)]
    assert bare == []
    assert any(packet.is_tunnel for packet in packets)


def datagrams(packets, source):
    """The payloads of the tunnel's datagrams from an address."""
    return [p.payload[8:] for p in packets if p.is_tunnel and p.source == source]


class Forger:
    """Puts UDP datagrams on the link, with whatever source address."""

    def __init__(self, host, target, router=None):
        self._target = target.address
        macs = mac_of(router or target) + mac_of(host)
        self._macs = bytes.fromhex(macs.replace(":", ""))
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        host.call(lambda: self._socket.bind(("eth0", 0)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, payload, source, port=PORT):
        """Send a datagram to the target's port 1234 as if ``source`` did."""
        udp = struct.pack("!HHHH", port, PORT, 8 + len(payload), 0) + payload
        fields = (0x45, 0, 20 + len(udp), 0, 0x4000, 64, UDP)
        ends = ip_address(source).packed, ip_address(self._target).packed
        check = frames.checksum(struct.pack("!BBHHHBBH4s4s", *fields, 0, *ends))
        header = struct.pack("!BBHHHBBH4s4s", *fields, check, *ends)
        self._socket.send(self._macs + IPV4.to_bytes(2) + header + udp)


def mac_of(host):
    return json.loads(host.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
