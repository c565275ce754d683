"""The UDP sockets: many datagrams in one receive, many in one send.

``UDP_GRO`` lets the kernel hand over a run of equal-sized datagrams of one sender
as one buffer with a stride; ``UDP_SEGMENT`` takes such a run.  Either can be
missing, in the kernel or on the way to one destination; then datagrams go one by
one, and ``status`` says so.

Handshakes, which anybody can send, are received by sockets of their own: when there
is a flood of them their small buffer is full, and the kernel drops the rest without
any of our time, while what belongs to sessions arrives as before.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from functools import cached_property, lru_cache, partial
from struct import Struct
from typing import NamedTuple

import trio
from attrs import define, field

from alpha_trio import holders
from alpha_trio.errors import StartError
from alpha_trio.net.host import receive_buffer
from alpha_trio.net.source import prefer_stable
from alpha_trio.proto.batch import Remote, Send
from alpha_trio.settings import Offload

_log = logging.getLogger(__name__)

_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_PROBE, _PMTUDISC_INTERFACE = 3, 4
_IP_PKTINFO, _IP_RECVTOS = 8, 13
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
# By IP version.
_PACKET_INFO = {
    4: (socket.IPPROTO_IP, _IP_PKTINFO),
    6: (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
}
_CLASS_OPTION = {
    4: (socket.IPPROTO_IP, socket.IP_TOS),
    6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_ATTACH_REUSEPORT_CBPF, _SO_MEMINFO = 51, 55
_BUFFER_BYTES = 8 << 20
"""Kernel buffer per direction: what arrives in a millisecond must find room."""

HANDSHAKE_BYTES = 2 << 20
"""Kernel buffer for SYNs: some 1,600, as when a thousand peers come at once."""

_DATAGRAM_ROOM = 1 << 16
_ANCILLARY_ROOM = 128
_UNSEGMENTED_KEPT = 1024
_STRIDE = Struct("=H")
_INT = Struct("=i")
_MEMINFO = Struct("=9I")  # the last: datagrams dropped, for want of room or a checksum
_BPF = Struct("=HBBI")  # struct sock_filter: code, jump if true, if false, operand
_BPF_PROGRAM = Struct("@HP")  # struct sock_fprog: how many, where
_BPF_LOAD_BYTE, _BPF_LOAD_WORD, _BPF_LOAD_SIZE = 0x30, 0x20, 0x80
_BPF_JUMP_IF_EQUAL, _BPF_JUMP_IF_AT_LEAST = 0x15, 0x35
_BPF_MODULO, _BPF_RETURN, _BPF_RETURN_LOADED = 0x94, 0x06, 0x16
_STEERED_SIZE, _STEERED_AT = 8, 4  # bytes that have to be there; where the number is
MOST_STEERED = 256
"""Numbers the kernel compares, one after the other: a nanosecond each."""
_ECN = 0x03  # of a traffic class
_LINK_LOCAL = b"\xfe\x80"

# What a kernel says that cannot segment, or cannot on the way to this destination.
_BAD_SOURCE = frozenset({errno.EINVAL, errno.ENETUNREACH})  # IPv6 and IPv4 say so
_CANNOT_SEGMENT = frozenset({errno.EIO, errno.EINVAL, errno.ENOPROTOOPT})

# What a host says that does not have an address family, or has switched it off.
NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_REFUSALS = {
    errno.EADDRINUSE: (
        "UDP port {port} is taken by {who}: choose another one with --port, or {stop}"
    ),
    errno.EACCES: (
        "no permission for UDP port {port}: choose another one with --port, or grant "
        "CAP_NET_BIND_SERVICE"
    ),
}


def _refusal(code: int, port: int) -> str:
    holder = holders.of_udp_port(port) if code == errno.EADDRINUSE else None
    who = str(holder or "another process")
    stop = f"stop it by '{holder.stop}'" if holder else "see 'ss -lunp'"
    return _REFUSALS[code].format(port=port, who=who, stop=stop)


# What is said of the receive itself, and not of something sent before.
_NOT_OF_SENDS = frozenset({errno.EBADF, errno.ENOMEM, errno.ENOBUFS})

Message = tuple[int, int, bytes]
Ancillary = list[Message]
UdpTraits = tuple[bool, bool, int]


class Received(NamedTuple):
    """Datagrams of one sender, ``stride`` bytes apart; borrowed until the next."""

    view: memoryview
    stride: int
    remote: Remote
    local: bytes
    ecn: int  # RFC 3168: what routers say of congestion


@define(eq=False)
class UdpSocket:
    """A bound UDP socket of one address family."""

    _socket: socket.socket
    segments: bool  # whether UDP_SEGMENT is used
    groups: bool  # whether UDP_GRO is used
    _traffic_class: int = 0  # of what says nothing else
    _unsegmented: set[Remote] = field(factory=set)

    @cached_property
    def _buffer(self) -> memoryview:
        # Not before something is received: those of a relay's many senders only send.
        return receive_buffer(_DATAGRAM_ROOM)

    @cached_property
    def _version(self) -> int:
        return _version(self._socket.family)

    @classmethod
    def open(
        cls,
        family: socket.AddressFamily,
        port: int,
        disabled: Collection[Offload] = (),
        mark: int = 0,
        *,
        dscp: int = 0,
        host: str = "",
        transparent: bool = False,
        shared: bool = False,
    ) -> UdpSocket:
        """Bind to ``port`` on all addresses.  Raises StartError if we may not have it.

        ``mark`` (0: none) is set on what we send, so that the kernel notes a path's
        MTU where our datagrams find it; see docs/routing.md.  ``dscp`` is that of what
        we send, beside what each ``Send`` has.  ``transparent``: it can
        send from addresses that are not ours, and be bound to one as ``host``.
        ``shared``: others that are may be bound to the same port.

        Raises OSError EAFNOSUPPORT or EADDRNOTAVAIL if the host has no such family.
        """
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            _configure(sock)
            if dscp:
                sock.setsockopt(*_CLASS_OPTION[_version(family)], dscp << 2)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if transparent:
                set_transparent(sock)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if error.errno in _REFUSALS:
                raise StartError(_refusal(error.errno, port)) from None
            raise
        segments = Offload.SEGMENT not in disabled and _has(sock, _UDP_SEGMENT, 0)
        groups = Offload.GRO not in disabled and _has(sock, _UDP_GRO, 1)
        return cls(sock, segments, groups, dscp << 2)

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AddressFamily(self._socket.family)

    @property
    def offloads(self) -> tuple[str, ...]:
        """The batch facilities in use, for ``status``."""
        used = (("segment", self.segments), ("gro", self.groups))
        return tuple(name for name, on in used if on)

    @property
    def unsegmented(self) -> frozenset[Remote]:
        """Destinations to which datagrams go one by one."""
        return frozenset(self._unsegmented)

    def note_unsegmented(self, remotes: Iterable[Remote]) -> None:
        """Take what another process, which sends by the same socket, says of them."""
        self._unsegmented = set(remotes)

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel dropped: there was no room, or a checksum wrong."""
        try:
            told = self._socket.getsockopt(
                socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size
            )
            return int(_MEMINFO.unpack(told)[-1])
        except OSError:  # a kernel before 4.12
            return 0

    async def wait_readable(self) -> None:
        """Wait until a datagram is there.  A checkpoint; cancelling loses nothing."""
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Wait until the kernel takes datagrams again.  A checkpoint."""
        await trio.lowlevel.wait_writable(self._socket)

    def receive_nowait(self) -> Received | None:
        """The next run of datagrams, or None; the view holds until the next call.

        Errors that belong to earlier sends are skipped: they say nothing about
        what arrives.  Raises OSError if the host has no memory for it.
        """
        try:
            size, ancillary, _, remote = self._socket.recvmsg_into(
                [self._buffer], _ANCILLARY_ROOM
            )
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _NOT_OF_SENDS:
                raise
            return Received(self._buffer[:0], 1, ("", 0), b"", 0)
        stride, local, ecn = _told_by(tuple(ancillary))
        return Received(self._buffer[:size], stride or size, remote, local, ecn)

    def send_nowait(self, send: Send) -> bool:
        """Send a run; False if the kernel's buffer is full and nothing was sent.

        Raises OSError if the kernel refuses it.
        """
        try:
            return self._send(send)
        except OSError as error:
            if error.errno not in _BAD_SOURCE or not send.local:
                raise
        # The address to send from may be ours no more: from any other then.  The
        # peer follows authentic packets, and its answers tell us the new one.
        send.local = b""
        return self._send(send)

    def _send(self, send: Send) -> bool:
        if send.count > 1 and (not self.segments or send.remote in self._unsegmented):
            return self._send_singly(send)
        ancillary = self._headers(send, send.stride if send.count > 1 else 0)
        try:
            self._socket.sendmsg(send.parts, ancillary, 0, send.remote)
        except BlockingIOError:
            return False
        except OSError as error:
            if send.count == 1 or error.errno not in _CANNOT_SEGMENT:
                raise
            # Older kernels say EINVAL also where the datagrams are too big; then
            # this raises EMSGSIZE, and batches are not to blame.
            done = self._send_singly(send)
            self._stop_segmenting(send.remote, error)
            return done
        return True

    def _send_singly(self, send: Send) -> bool:
        ancillary = self._headers(send)
        datagrams = send.datagrams()
        for i, datagram in enumerate(datagrams):
            try:
                self._socket.sendmsg([datagram], ancillary, 0, send.remote)
            except BlockingIOError:
                if i == 0:
                    return False
                # The rest goes later: what is left becomes the run to send.
                send.parts = datagrams[i:]
                send.count -= i
                return False
        return True

    def forward_nowait(
        self, view: memoryview, stride: int, ancillary: Ancillary, remote: Remote
    ) -> int:
        """Send datagrams of others, ``stride`` bytes apart, with these messages.

        Return how many bytes of ``view`` the kernel took: all, or, if its buffer is
        full, whole datagrams only.  Raises OSError if it refuses.
        """
        size, headers = len(view), ancillary
        if size > stride:
            if not self.segments or remote in self._unsegmented:
                return self._forward_singly(view, stride, ancillary, remote)
            headers = [*ancillary, (_SOL_UDP, _UDP_SEGMENT, _STRIDE.pack(stride))]
        try:
            self._socket.sendmsg((view,), headers, 0, remote)  # hot path
        except BlockingIOError:
            return 0
        except OSError as error:
            if headers is ancillary or error.errno not in _CANNOT_SEGMENT:
                raise
            # See _send: if they are too big, then this tells.
            done = self._forward_singly(view, stride, ancillary, remote)
            self._stop_segmenting(remote, error)
            return done
        return size

    def _forward_singly(
        self, view: memoryview, stride: int, ancillary: Ancillary, remote: Remote
    ) -> int:
        for at in range(0, len(view), stride):
            try:
                datagram = view[at : at + stride]
                self._socket.sendmsg([datagram], ancillary, 0, remote)
            except BlockingIOError:
                return at
        return len(view)

    def _headers(self, send: Send, stride: int = 0) -> Sequence[Message]:
        own = self._traffic_class if send.traffic_class else 0
        return _telling(self._version, send.local, own | send.traffic_class, stride)

    def _stop_segmenting(self, remote: Remote, error: OSError) -> None:
        if len(self._unsegmented) >= _UNSEGMENTED_KEPT:
            self._unsegmented.clear()
        self._unsegmented.add(remote)
        _log.info(
            "Sending datagrams to %s one by one: the way there takes no batches (%s).",
            remote[0],
            error.strerror,
        )

    def part(
        self, first_byte: int, known: Mapping[int, int] | None = None, lanes: int = 1
    ) -> bool:
        """Say which socket of this port receives what, by the order of their binding.

        What has one of the numbers ``known`` in its bytes 4 to 7 goes to the socket
        that is said there, or, without ``known``, to the one of the remainder by
        ``lanes``; all else, and what begins with ``first_byte``, to the one behind
        those of the lanes.  False if the kernel cannot; then it chooses as it likes.
        """
        apart = (_BPF_RETURN, 0, 0, lanes)
        by_number = _by_remainder(lanes) if known is None else _among(known)
        program = b"".join(
            _BPF.pack(*instruction)
            for instruction in (
                (_BPF_LOAD_SIZE, 0, 0, 0),
                (_BPF_JUMP_IF_AT_LEAST, 1, 0, _STEERED_SIZE),
                apart,
                (_BPF_LOAD_BYTE, 0, 0, 0),
                (_BPF_JUMP_IF_EQUAL, 0, 1, first_byte),
                apart,
                (_BPF_LOAD_WORD, 0, 0, _STEERED_AT),
                *by_number,
                apart,
            )
        )
        kept = create_string_buffer(program, len(program))
        where = _BPF_PROGRAM.pack(len(program) // _BPF.size, addressof(kept))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, where)
        except OSError:
            return False
        return True

    def keep(self, size: int) -> None:
        """Have the kernel keep ``size`` bytes at most of what arrives."""
        # It takes twice what it is told, to have room for what it adds.
        _set_buffer(self._socket, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size // 2)

    def fileno(self) -> int:
        """Its descriptor, to be sent to another process."""
        return self._socket.fileno()

    @property
    def traits(self) -> UdpTraits:
        """What another process has to know of it, beside its descriptor."""
        return self.segments, self.groups, self._traffic_class

    @classmethod
    def adopt(cls, descriptor: int, traits: UdpTraits) -> UdpSocket:
        """One that another process has opened, by a descriptor that it has sent."""
        return cls(socket.socket(fileno=descriptor), *traits)

    def close(self) -> None:
        """Close the socket.  May be called twice."""
        if self._socket.fileno() >= 0:
            with suppress(RuntimeError):  # outside of trio nobody can be waiting
                trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


@define(eq=False)
class Udp:
    """The sockets of both families, as far as the host has them."""

    sockets: dict[int, UdpSocket]  # by length of an address tuple: 2 or 4
    handshakes: tuple[UdpSocket, ...] = ()  # for what belongs to no session
    _first_byte: int = 0  # of what goes there in any case

    @classmethod
    def open(
        cls,
        port: int,
        disabled: Collection[Offload] = (),
        mark: int = 0,
        *,
        dscp: int = 0,
        handshake: int | None = None,
        transparent: bool = False,
    ) -> Udp:
        """Bind IPv4 and IPv6.  A host without one of them is served by the other.

        ``handshake``: the first byte of the datagrams that are to be received apart.
        Where tproxy hands over what it redirects, so with ``transparent``, there is
        no telling which of two sockets it takes, and all arrives at one.
        """
        udp = cls({}, (), handshake or 0)
        try:
            for family, length in ((socket.AF_INET, 2), (socket.AF_INET6, 4)):
                bind = partial(UdpSocket.open, family, port, disabled, mark, dscp=dscp)
                try:
                    udp.sockets[length] = bind(transparent=transparent)
                except OSError as error:
                    if error.errno not in NO_FAMILY:
                        raise
                    no_family(family, error)
                    continue
                if handshake is not None and not transparent:
                    udp._part(length, handshake, partial(bind, shared=True))
        except BaseException:
            udp.close()
            raise
        if not udp.sockets:
            raise StartError("this host has neither IPv4 nor IPv6 sockets")
        return udp

    def _part(self, length: int, handshake: int, bind: Callable[[], UdpSocket]) -> None:
        """Two sockets in place of one, if the kernel can tell what is for which.

        The one was not ``shared``: so nobody else has the port, even one who shares.
        """
        self.sockets[length].close()
        self.sockets[length] = bind()
        apart = bind()
        if self.sockets[length].part(handshake):
            apart.keep(HANDSHAKE_BYTES)
            self.handshakes += (apart,)
        else:
            apart.close()

    def steer(self, numbers: Collection[int]) -> None:
        """Receive apart all that has none of these numbers in its bytes 4 to 7.

        If there are more than MOST_STEERED, only handshakes.
        """
        known = dict.fromkeys(numbers, 0) if len(numbers) <= MOST_STEERED else None
        for sock in self.sockets.values() if self.handshakes else ():
            sock.part(self._first_byte, known)

    def socket_for(self, remote: Remote) -> UdpSocket | None:
        """The socket of the family of ``remote``; None if the host has none."""
        return self.sockets.get(len(remote))

    def has_family(self, version: int) -> bool:
        """Whether the host has IPv4 (4) or IPv6 (6)."""
        return (2 if version == 4 else 4) in self.sockets

    @property
    def offloads(self) -> tuple[str, ...]:
        """The batch facilities in use, for ``status``."""
        return next(iter(self.sockets.values())).offloads

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel dropped instead of having us receive them."""
        return sum(sock.dropped for sock in (*self, *self.handshakes))

    def __iter__(self) -> Iterator[UdpSocket]:
        return iter(self.sockets.values())

    def close(self) -> None:
        """Close all sockets.  May be called twice."""
        for sock in (*self, *self.handshakes):
            sock.close()


def no_family(family: socket.AddressFamily, error: OSError) -> None:
    """Tell that the host has none of these sockets, and why."""
    _log.info("No %s here (%s).", family.name, error.strerror)


def _version(family: int) -> int:
    return 4 if family == socket.AF_INET else 6


# The same few messages come and go again and again: made once, and read once.
@lru_cache(maxsize=256)
def _told_by(ancillary: tuple[Message, ...]) -> tuple[int, bytes, int]:
    """What came with datagrams: their stride, 0 if it is one; our address; ECN."""
    stride, local, ecn = 0, b"", 0
    for level, kind, data in ancillary:
        if level == _SOL_UDP:
            stride = _INT.unpack_from(data)[0]
        elif kind == _IP_PKTINFO and level == socket.IPPROTO_IP:
            local = bytes(4) + data[8:12] + bytes(4)
        elif kind == socket.IP_TOS:
            ecn = data[0] & _ECN
        elif kind == socket.IPV6_TCLASS:
            ecn = _INT.unpack_from(data)[0] & _ECN
        else:
            scope = data[16:20] if data[:2] == _LINK_LOCAL else bytes(4)
            local = data[:16] + scope
    return stride, local, ecn


@lru_cache(maxsize=256)
def _telling(
    version: int, local: bytes, traffic_class: int, stride: int
) -> tuple[Message, ...]:
    """What goes with datagrams; of what is empty or 0, nothing."""
    messages: list[Message] = []
    if local:
        messages.append((*_PACKET_INFO[version], local))
    if traffic_class:
        messages.append((*_CLASS_OPTION[version], _INT.pack(traffic_class)))
    if stride:
        messages.append((_SOL_UDP, _UDP_SEGMENT, _STRIDE.pack(stride)))
    return tuple(messages)


_Instruction = tuple[int, int, int, int]


def _among(known: Mapping[int, int]) -> Iterator[_Instruction]:
    for number, where in known.items():
        yield (_BPF_JUMP_IF_EQUAL, 0, 1, number)
        yield (_BPF_RETURN, 0, 0, where)


def _by_remainder(lanes: int) -> Iterator[_Instruction]:
    yield (_BPF_MODULO, 0, 0, lanes)
    yield (_BPF_RETURN_LOADED, 0, 0, 0)


def set_transparent(sock: socket.socket) -> None:
    """Let a socket send from, and be given packets to, addresses of others."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)


def grow_buffers(sock: socket.socket) -> None:
    """Have the kernel keep what arrives, or is to be sent, for some milliseconds."""
    _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _BUFFER_BYTES)
    _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _BUFFER_BYTES)


def _set_buffer(sock: socket.socket, forced: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except OSError:  # without CAP_NET_ADMIN the host's limit applies
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def _configure(sock: socket.socket) -> None:
    grow_buffers(sock)
    if sock.family == socket.AF_INET:
        # Never fragment, and never believe ICMP, which anybody can forge: EMSGSIZE then
        # tells of our own link only.  INTERFACE would not set DF.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The same; here INTERFACE does not fragment either, and the kernel does not
        # even note for others what was forged about our datagrams.
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_INTERFACE)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        prefer_stable(sock)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)


def _has(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(_SOL_UDP, option, value)
    except OSError:
        return False
    return True
