"""Somebody hostile on a link: within it, as its carrier, or beside it on a switch.

    r1 (TAP) ---- InLine ---- (TAP) r2       sees, holds back, alters, adds

    r1 ---------- switch ---------- r2       adds; sees, if the switch is a hub
                    |
                  Beside

Neither holds a key, but both know all that they ever saw on the link, and what they
add bears the addresses of the hosts they pretend to be.  ``forgeries.py`` has what can
be made of it, and ``Flood`` puts it on the link.

What was added can be told from what it is a copy of by its mark, a number in the DSCP
field: routers and relays hand it on, and the daemons leave it zero.  All of it is IPv4
and bounded in number.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fcntl import ioctl
from functools import lru_cache, partial
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import count, cycle
from random import Random
from typing import NamedTuple, Protocol, Self

from alpha_trio.proto.messages import (
    CONTROL,
    HEADER_SIZE,
    RELIABLE,
    ROUND_HEAD_SIZE,
    Kind,
)
from alpha_trio.proto.packets import frames
from tools.lab import Host, Lab, join

PORT = 1234
MOST_MARK = 63
OUTER = 14 + 20 + 8  # Ethernet, IPv4 and UDP header, bytes
LONGEST_FRAME = 2048  # without offloads
REMEMBERED = 256  # datagrams of a kind, in either direction

_IPV4, _UDP = 0x0800, 17
_TUNSETIFF, _TAP_NO_PI = 0x400454CA, 0x0002 | 0x1000
_RCVBUFFORCE, _BUFFER = 33, 64 << 20
_ALL_FRAMES = 3  # ETH_P_ALL
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_VNET_HDR = 263, 6, 15
_VNET_HDR = struct.Struct("=BBHHHH")
_BATCH = 64  # frames carried before anything else is looked at
_PATIENCE = 0.1  # s between two looks at whether it is over


class Sight:
    """What somebody on a link remembers of a tunnel's datagrams in one direction."""

    def __init__(self) -> None:
        self.header = b""  # Ethernet to UDP header of the newest
        self.count = 0
        self._seen: dict[int, deque[bytes]] = {}

    def add(self, header: bytes, datagram: bytes) -> None:
        """Remember a datagram that was on the link."""
        self.header = header
        self.count += 1
        kept = self._seen.setdefault(slot(datagram), deque(maxlen=REMEMBERED))
        kept.append(datagram)

    def all(self, kind: int) -> Sequence[bytes]:
        """Those of a ``slot``, the newest last."""
        return list(self._seen.get(kind, ()))

    def latest(self, kind: int) -> bytes:
        """The newest of a ``slot``.  Raises LookupError if there is none."""
        return self._seen[kind][-1]

    def any(self, kind: int, dice: Random) -> bytes:
        """One of a ``slot``.  Raises LookupError if there is none."""
        return dice.choice(self._seen[kind])


def slot(datagram: bytes) -> int:
    """Its kind; CONTROL is added to those of rounds that are answered by A2."""
    kind = datagram[0]
    if Kind.S1 <= kind <= Kind.S2 and len(datagram) > ROUND_HEAD_SIZE:
        return kind | CONTROL * bool(datagram[HEADER_SIZE + 2] & (CONTROL | RELIABLE))
    return kind


class Attacker(Protocol):
    """Who can put datagrams on a link; direction 0 is from its first end."""

    @property
    def sights(self) -> tuple[Sight, Sight]:
        """What he saw, in either direction."""

    def send(self, direction: int, datagram: bytes, mark: int = 0) -> None:
        """Put one on the link, from and to the hosts that speak there."""


# -- within the link ------------------------------------------------------------------

Mischief = Callable[[int, bytes], Sequence[bytes]]
"""Called with a direction and a datagram; returns what goes on in its place."""


class InLine:
    """Carries every frame of a link, in a thread, and the tunnel's as it likes.

    ``wire`` is for ``Lab.connect`` and ``Lab.chain``.  The ends are TAP devices
    without offloads, so that each datagram comes alone.  ``mischief`` is not asked
    about other traffic; None lets everything pass.
    """

    def __init__(self, mischief: Mischief | None = None) -> None:
        self.mischief = mischief
        self.carried = 0  # the tunnel's datagrams that came by
        self.dice = Random(7)
        self.sights = Sight(), Sight()
        self._taps: list[int] = []
        self._later: list[tuple[float, int, int, bytes]] = []
        self._order = count()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._carry)

    def wire(self, ends: Sequence[Host], ports: Sequence[str]) -> None:
        """Make both ends, and begin to carry."""
        for host, port in zip(ends, ports, strict=True):
            self._taps.append(host.call(partial(_open_tap, port)))
            # Or a burst of segments would be lost before it is read.
            host.run("ip", "link", "set", port, "txqueuelen", "10000")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._taps:
            self._thread.join()
        for tap in self._taps:
            os.close(tap)

    @property
    def is_idle(self) -> bool:
        """Nothing waits for its time."""
        return not self._later

    def send(self, direction: int, datagram: bytes, mark: int = 0) -> None:
        """Put a datagram on the link after those that came by."""
        header = self.sights[direction].header
        self._write(direction, enclose(header, datagram, mark))

    def later(self, direction: int, datagram: bytes, delay: float) -> None:
        """Put it there in ``delay`` seconds; only for ``mischief`` to call."""
        due = time.monotonic() + delay
        heappush(self._later, (due, next(self._order), direction, datagram))

    def _carry(self) -> None:
        while not self._done.is_set():
            patience = _PATIENCE
            if self._later:
                patience = max(0, min(patience, self._later[0][0] - time.monotonic()))
            readable, _, _ = select.select(self._taps, [], [], patience)
            for tap in readable:
                self._drain(self._taps.index(tap))
            while self._later and self._later[0][0] <= time.monotonic():
                _, _, direction, datagram = heappop(self._later)
                self.send(direction, datagram)

    def _drain(self, direction: int) -> None:
        for _ in range(_BATCH):
            try:
                frame = os.read(self._taps[direction], LONGEST_FRAME)
            except BlockingIOError:
                return
            if _is_tunnel(frame):
                self._pass_on(direction, frame)
            else:
                self._write(direction, frame)

    def _pass_on(self, direction: int, frame: bytes) -> None:
        header, datagram = frame[:OUTER], frame[OUTER:]
        self.carried += 1
        instead: Sequence[bytes] = [datagram]
        if self.mischief is not None:
            self.sights[direction].header = header
            instead = self.mischief(direction, datagram)
        for other in instead:
            same = other is datagram
            self._write(direction, frame if same else enclose(header, other))
            if same:
                # Not before, nor what was held back: a copy of that would be the
                # original, only late.
                self.sights[direction].add(header, datagram)

    def _write(self, direction: int, frame: bytes) -> None:
        with suppress(OSError):  # the other end is down: lost, as on any link
            os.write(self._taps[1 - direction], frame)


def _open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_NO_PI))
    return tap


def _is_tunnel(frame: bytes) -> bool:
    return (
        len(frame) > OUTER
        and frame[12:14] == _IPV4.to_bytes(2)
        and frame[23] == _UDP
        and frame[36:38] == PORT.to_bytes(2)
    )


def enclose(header: bytes, datagram: bytes, mark: int = 0) -> bytes:
    """A frame from and to where one with these headers went; no UDP checksum."""
    return _outer(header, len(datagram), mark) + datagram


@lru_cache(maxsize=8192)
def _outer(header: bytes, size: int, mark: int) -> bytes:
    traffic_class, ends = mark << 2, header[26:34]
    fields = (0x45, traffic_class, 28 + size, 0, 0x4000, 64, _UDP)
    check = frames.checksum(struct.pack("!BBHHHBBH8s", *fields, 0, ends))
    ip = struct.pack("!BBHHHBBH8s", *fields, check, ends)
    return header[:14] + ip + header[34:38] + struct.pack("!HH", 8 + size, 0)


# -- beside it ------------------------------------------------------------------------


class Beside:
    """A host on a switch with the link, which sees its traffic if that is a hub.

    ``wire`` is for ``Lab.connect`` and ``Lab.chain``.
    """

    def __init__(self, lab: Lab, *, hub: bool = True) -> None:
        self.sights = Sight(), Sight()
        self._lab = lab
        self._hub = hub
        self._macs: list[bytes] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._watch: Watch
        self._socket: socket.socket

    def wire(self, ends: Sequence[Host], ports: Sequence[str]) -> None:
        """Plug the two hosts and the attacker into a switch of their own."""
        switch, mallory = self._lab.host("tap"), self._lab.host("mallory")
        # A bridge that forgets at once where everybody is sends everything to all.
        ageing = ("ageing_time", "0") if self._hub else ()
        switch.run("ip", "link", "add", "br0", "up", "type", "bridge", *ageing)
        for number, (host, port) in enumerate(
            [*zip(ends, ports, strict=True), (mallory, "eth0")]
        ):
            plug = f"eth{number}"
            join((host, switch), (port, plug))
            switch.run("ip", "link", "set", plug, "master", "br0", "up")
            self._macs.append(_mac(host, port))
        mallory.run("ip", "link", "set", "eth0", "up")
        self._watch = Watch(mallory, "eth0", Way.OTHERS)
        self._socket = mallory.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        mallory.call(lambda: self._socket.bind(("eth0", 0)))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._macs:
            self._thread.join()
            self._watch.close()
            self._socket.close()

    def aim(self, direction: int, source: str, destination: str) -> None:
        """Send as one host to another, without having seen anything of them."""
        ends = ip_address(source).packed + ip_address(destination).packed
        macs = self._macs[1 - direction] + self._macs[2]
        ports = PORT.to_bytes(2) * 2
        header = macs + _IPV4.to_bytes(2) + bytes(12) + ends + ports + bytes(4)
        self.sights[direction].header = header

    def send(self, direction: int, datagram: bytes, mark: int = 0) -> None:
        """Put a datagram on the link."""
        self._socket.send(enclose(self.sights[direction].header, datagram, mark))

    def _look(self) -> None:
        directions = {self._macs[1]: 0, self._macs[0]: 1}
        while not self._done.is_set():
            self._watch.wait(_PATIENCE)
            for seen in self._watch.datagrams():
                direction = directions.get(seen.header[:6])
                if direction is not None:
                    self.sights[direction].add(seen.header, seen.datagram)


def _mac(host: Host, port: str) -> bytes:
    links = json.loads(host.run("ip", "-j", "link", "show", port).stdout)
    return bytes.fromhex(links[0]["address"].replace(":", ""))


# -- a flood --------------------------------------------------------------------------

Forgery = Callable[[Sight, Random, int], bytes]
"""Makes a datagram of what was seen in its direction; the number counts its calls.

Raises LookupError if nothing was seen that it could be made of.
"""

_BURST = 32  # datagrams sent without a look at the clock


class Flood:
    """Puts forgeries of several kinds on a link in turn, within a block.

    Each kind bears its own mark, 1 onwards, by its place in ``kinds``.
    """

    def __init__(
        self,
        attacker: Attacker,
        kinds: Mapping[str, Forgery],
        *,
        rate: float,
        most: int,
        direction: int = 0,
    ) -> None:
        """``rate``: datagrams a second, if the machine can; ``most`` of them in all."""
        self.sent: Counter[str] = Counter()
        self.marks = dict(enumerate(kinds, 1))
        if len(kinds) > MOST_MARK:
            raise ValueError(f"{len(kinds)} kinds, but only {MOST_MARK} marks")
        self._attacker, self._kinds, self._direction = attacker, kinds, direction
        self._rate, self._most = rate, most
        self._dice = Random(7)
        self._calls: Counter[str] = Counter()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._flood)

    @property
    def is_over(self) -> bool:
        """All of them were sent."""
        return self.sent.total() >= self._most

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._thread.join()

    def _flood(self) -> None:
        start, turns = time.monotonic(), cycle(enumerate(self._kinds, 1))
        while not self.is_over:
            due = int((time.monotonic() - start) * self._rate) - self.sent.total()
            for _ in range(min(due, _BURST, self._most - self.sent.total())):
                self._send_one(*next(turns))
            if self._halt.wait(0 if due > _BURST else 0.001):
                return

    def _send_one(self, mark: int, name: str) -> None:
        sight = self._attacker.sights[self._direction]
        self._calls[name] += 1
        try:
            datagram = self._kinds[name](sight, self._dice, self._calls[name])
        except LookupError:
            return  # nothing to make it of, yet
        self._attacker.send(self._direction, datagram, mark)
        self.sent[name] += 1


# -- what was on a link ---------------------------------------------------------------


class Way:
    """Which of the frames at a port, as the kernel tells them apart."""

    ARRIVING = 0  # PACKET_HOST
    OTHERS = 3  # PACKET_OTHERHOST
    LEAVING = 4  # PACKET_OUTGOING


class Seen(NamedTuple):
    """A datagram of the tunnel that was on a link."""

    header: bytes  # Ethernet, IPv4, UDP
    datagram: bytes

    @property
    def mark(self) -> int:
        """Of whose making it is; 0: not a flood's."""
        return self.header[15] >> 2

    @property
    def source(self) -> str:
        """Address of its sender, or of who that pretends to be."""
        return str(ip_address(self.header[26:30]))


class Watch:
    """The tunnel's datagrams that come to a host by a link, or leave it there.

    Super-packets are taken apart, for which Linux 6.2 is needed.
    """

    def __init__(self, host: Host, port: str, way: int) -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        _filter_way(self._socket, way)
        host.call(lambda: self._socket.bind((port, _ALL_FRAMES)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See nothing more."""
        self._socket.close()

    def wait(self, timeout: float) -> None:
        """Until there is something, or ``timeout`` seconds have passed."""
        select.select([self._socket], [], [], timeout)

    @property
    def lost(self) -> int:
        """Frames that came while there was no room, since the last call."""
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("II", counts)[1])

    def datagrams(self) -> list[Seen]:
        """All that were seen since the last call."""
        found: list[Seen] = []
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return found
            frame = data[_VNET_HDR.size :]
            if _is_tunnel(frame):
                header, body = frame[:OUTER], frame[OUTER:]
                stride = _VNET_HDR.unpack_from(data)[3] or len(body)
                found += [
                    Seen(header, body[at : at + stride])
                    for at in range(0, len(body), stride)
                ]


def _filter_way(sock: socket.socket, way: int) -> None:
    """Let the kernel queue only frames of this way: there are others in plenty."""
    kind_of_packet = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (0x30, 0, 0, kind_of_packet),  # load a byte
            (0x15, 0, 1, way),  # unless it is this, skip one
            (0x06, 0, 0, 1 << 18),  # take all of it
            (0x06, 0, 0, 0),  # take nothing
        )
    )
    code = ctypes.create_string_buffer(program)
    argument = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    so_attach_filter = 26
    sock.setsockopt(socket.SOL_SOCKET, so_attach_filter, argument)
