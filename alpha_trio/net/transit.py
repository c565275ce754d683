"""The sockets of a relay: others' datagrams in, and on with the addresses they had.

They arrive at a transparent socket on the loopback, to which only net/tproxy.py leads
anything, in runs as the kernel keeps them.  Those from the tunnel's own port leave by
the daemon's UDP socket, which then names their sender as its own address; a sender
behind NAT has another port, and gets a transparent socket that is bound to it.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Collection, Hashable
from contextlib import suppress
from functools import cached_property
from struct import Struct
from typing import NamedTuple

import trio
from attrs import define, field

from alpha_trio.errors import StartError
from alpha_trio.net.host import receive_buffer
from alpha_trio.net.udp import Ancillary, Udp, UdpSocket, grow_buffers, set_transparent
from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.settings import Backend, Offload, Settings

_SOL_UDP, _UDP_GRO = 17, 104
_IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS, _IP_MTU, _IP_ORIGDSTADDR = 8, 12, 13, 14, 20
_IPV6_MTU, _IPV6_ORIGDSTADDR = 24, 74
_HOPS = frozenset({(0, 2), (41, 52)})  # IP_TTL, IPV6_HOPLIMIT
_CLASS = frozenset({(0, 1), (41, 67)})  # IP_TOS, IPV6_TCLASS
_DESTINATION = frozenset({(0, _IP_ORIGDSTADDR), (41, _IPV6_ORIGDSTADDR)})

_DATAGRAM_ROOM = 1 << 16
_ANCILLARY_ROOM = 256
_FLOWS_KEPT = 1024  # what is known of them; all go when there are more
_OTHER_PORTS = 256  # senders with another port that have a socket at a time
_INT = Struct("=i")
_PKTINFO = Struct("=i4s4s")  # in_pktinfo: interface, source, destination
_PKTINFO6 = Struct("=16si")  # in6_pktinfo: address, interface
_SOCKADDR = Struct("!2xH4s")  # sockaddr_in: family, port, address
_SOCKADDR6 = Struct("!2xH4x16sI")  # sockaddr_in6: family, port, flow, address, scope


@define(eq=False)
class Flow:
    """What datagrams of one sender to one destination, both others, have alike."""

    crossing: Crossing
    hops: int  # as they arrived
    traffic_class: int  # TOS, with the bits of ECN

    @cached_property
    def headers(self) -> Ancillary:
        """To send them on with, one hop nearer to their end."""
        # Not before something goes on: most flows of a flood never do.
        return _headers(self.crossing.source, self.hops - 1, self.traffic_class)


class Transit(NamedTuple):
    """Datagrams of a flow.

    ``stride`` bytes apart; the writable view is borrowed until the next.
    """

    view: memoryview
    stride: int
    flow: Flow


@define(eq=False)
class TransitSocket:
    """Where one address family's transit arrives."""

    _socket: socket.socket
    _flows: dict[Hashable, Flow] = field(factory=dict)  # by what the kernel says of it
    _buffer: memoryview = field(factory=lambda: receive_buffer(_DATAGRAM_ROOM))

    @classmethod
    def open(
        cls, family: socket.AddressFamily, disabled: Collection[Offload] = ()
    ) -> TransitSocket:
        """Open it at any free port of the loopback.

        Raises StartError if we may not, OSError if the host has no such family.
        """
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            grow_buffers(sock)
            _ask_for_everything(sock)
            if Offload.GRO not in disabled:
                _group(sock)
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except PermissionError as error:
            sock.close()
            raise StartError(
                f"cannot relay ({error.strerror}): run as root or with CAP_NET_ADMIN"
            ) from None
        except OSError:
            sock.close()
            raise
        return cls(sock)

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self._socket.family == socket.AF_INET else 6

    @property
    def port(self) -> int:
        """Where the packet filter has to lead packets."""
        port: int = self._socket.getsockname()[1]
        return port

    async def wait_readable(self) -> None:
        """Wait until a datagram is there.  A checkpoint; cancelling loses nothing."""
        await trio.lowlevel.wait_readable(self._socket)

    def receive_nowait(self) -> Transit | None:
        """The next run of datagrams, or None; the view holds until the next call."""
        try:
            size, ancillary, _, source = self._socket.recvmsg_into(
                [self._buffer], _ANCILLARY_ROOM
            )
        except BlockingIOError:
            return None
        stride = size or 1
        for at, (level, _, data) in enumerate(ancillary):
            if level == _SOL_UDP:  # the first, if there is one
                stride = _INT.unpack_from(data)[0]
                del ancillary[at]
                break
        told = source, *ancillary
        flow = self._flows.get(told)
        if flow is None:
            if len(self._flows) >= _FLOWS_KEPT:
                self._flows.clear()
            flow = self._flows[told] = _flow(source, ancillary)
        return Transit(self._buffer[:size], stride, flow)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def _ask_for_everything(sock: socket.socket) -> None:
    set_transparent(sock)
    if sock.family == socket.AF_INET:
        for option in (_IP_ORIGDSTADDR, _IP_RECVTTL, _IP_RECVTOS, _IP_PKTINFO):
            sock.setsockopt(socket.IPPROTO_IP, option, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def _group(sock: socket.socket) -> None:
    with suppress(OSError):  # an old kernel: datagrams come one by one
        sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)


def _flow(source: Remote, ancillary: Ancillary) -> Flow:
    hops = traffic_class = interface = 0
    destination: Remote = ("", 0)
    for level, kind, data in ancillary:
        if (level, kind) in _DESTINATION:
            destination = _address(data)
        elif (level, kind) in _HOPS:
            hops = _INT.unpack_from(data)[0]
        elif (level, kind) in _CLASS:
            traffic_class = data[0]
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            interface = _PKTINFO.unpack_from(data)[0]
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            interface = _PKTINFO6.unpack_from(data)[1]
    return Flow(Crossing(source, destination, interface), hops, traffic_class)


def _address(data: bytes) -> Remote:
    if len(data) < _SOCKADDR6.size:
        port, packed = _SOCKADDR.unpack_from(data)
        return socket.inet_ntop(socket.AF_INET, packed), port
    port, packed, _ = _SOCKADDR6.unpack_from(data)
    return socket.inet_ntop(socket.AF_INET6, packed), port, 0, 0


@define(eq=False)
class Forwarder:
    """Sends datagrams on in the name of who sent them."""

    _udp: Udp
    _port: int  # that of the daemon's own sockets
    _disabled: Collection[Offload]
    _mark: int  # for what the tunnel's rules are to let pass by; 0: none
    _others: OrderedDict[Remote, UdpSocket] = field(factory=OrderedDict)

    @classmethod
    def open(cls, settings: Settings, udp: Udp) -> Forwarder:
        """``udp``: the daemon's sockets, which have to be transparent."""
        by_rules = settings.routing.backend is Backend.RULES
        mark = settings.routing.mark if by_rules else 0
        return cls(udp, settings.port, settings.disabled_offloads, mark)

    def send_nowait(self, run: Transit, start: int, end: int) -> int:
        """Send bytes ``start`` to ``end`` of a run, one hop nearer to their end.

        Return how many of them the kernel took: if its buffer is full, fewer.  Raises
        OSError if it refuses.
        """
        view, stride, flow = run
        crossing = flow.crossing
        return self._socket_for(crossing.source).forward_nowait(
            view[start:end], stride, flow.headers, crossing.destination
        )

    def _socket_for(self, source: Remote) -> UdpSocket:
        own = self._udp.socket_for(source)
        if own is not None and source[1] == self._port:
            return own
        known = self._others.get(source)
        if known is None:
            known = self._others[source] = self._open(source)
            if len(self._others) > _OTHER_PORTS:
                self._others.popitem(last=False)[1].close()
        self._others.move_to_end(source)
        return known

    def _open(self, source: Remote) -> UdpSocket:
        host, port = source[:2]
        try:
            return UdpSocket.open(
                _family(source),
                port,
                self._disabled,
                self._mark,
                host=host,
                transparent=True,
            )
        except StartError as error:
            raise OSError(str(error)) from error

    def path_mtu(self, destination: Remote) -> int:
        """The largest packet that the next link towards there takes; OSError: none."""
        with self._probe(destination, socket.SOCK_DGRAM) as probe:
            probe.connect(destination)
            if probe.family == socket.AF_INET:
                return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)

    def own_address(self, destination: Remote) -> str:
        """Our address towards there.  Raises OSError if nothing leads there."""
        with self._probe(destination, socket.SOCK_DGRAM) as probe:
            probe.connect(destination)
            address: str = probe.getsockname()[0]
            return address

    def send_error(self, message: bytes, remote: Remote) -> None:
        """Send an ICMP message, without its IP header, from an address of our own.

        Raises OSError if it cannot be sent, as without CAP_NET_RAW.
        """
        protocol = socket.IPPROTO_ICMP if len(remote) == 2 else socket.IPPROTO_ICMPV6
        # Kept open it would be given a copy of all ICMP that arrives.
        with self._probe(remote, socket.SOCK_RAW, protocol) as raw:
            raw.setblocking(False)
            raw.sendto(message, (remote[0], 0, *remote[2:]))

    def _probe(
        self, remote: Remote, kind: socket.SocketKind, protocol: int = 0
    ) -> socket.socket:
        """A socket for once, whose packets pass by the tunnel."""
        sock = socket.socket(_family(remote), kind, protocol)
        if self._mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        return sock

    def close(self) -> None:
        """Close the sockets that are not the daemon's own."""
        while self._others:
            self._others.popitem()[1].close()


def _headers(source: Remote, hops: int, traffic_class: int) -> Ancillary:
    left, marks = _INT.pack(hops), _INT.pack(traffic_class)
    host = source[0].partition("%")[0]
    if len(source) == 2:
        sender = _PKTINFO.pack(0, socket.inet_pton(socket.AF_INET, host), bytes(4))
        return [
            (socket.IPPROTO_IP, _IP_PKTINFO, sender),
            (socket.IPPROTO_IP, socket.IP_TTL, left),
            (socket.IPPROTO_IP, socket.IP_TOS, marks),
        ]
    sender = _PKTINFO6.pack(socket.inet_pton(socket.AF_INET6, host), 0)
    return [
        (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, sender),
        (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, left),
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, marks),
    ]


def _family(remote: Remote) -> socket.AddressFamily:
    return socket.AF_INET if len(remote) == 2 else socket.AF_INET6
