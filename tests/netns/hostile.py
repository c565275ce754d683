"""A link whose carrier is the enemy, and traffic that shows what came of it.

    vm1 192.168.10.60 --- TAP [Mallory] TAP --- vm2 192.168.10.61

The ends of the link are TAP devices without offloads, so that Mallory has each
datagram in hand, alone.  He holds no key, but knows all that was ever on the link.
"""

from __future__ import annotations

import hmac
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from fcntl import ioctl
from functools import partial
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

from alpha_trio.proto import frames
from alpha_trio.proto.wire import (
    ANCHOR_SIZE,
    CONTROL,
    HEADER_SIZE,
    KEY_SIZE,
    NONCE_SIZE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    Kind,
    Syn,
)
from tests.netns.traffic import IPV4, PORT, RCVBUFFORCE, UDP

TUNSETIFF = 0x400454CA
TAP_NO_PI = 0x0002 | 0x1000
LONGEST_FRAME = 2048
OUTER = 14 + 20 + 8  # Ethernet, IPv4 and UDP header, bytes
OLD_KEPT = 512  # datagrams Mallory remembers
LONGEST_DELAY = 0.05  # s
FLOOD = 20  # datagrams


def open_tap(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_NO_PI))
    return tap


class Mallory:
    """Carries frames between two hosts, in a thread, as ``mischief`` decides.

    ``mischief(mallory, direction, datagram)`` returns the datagrams to be sent on in
    its place; ``mallory.later`` sends others in a moment.  Direction 0 is from the
    first host to the second.
    """

    def __init__(self, lab, mischief=None):
        self.hosts = [lab.host("vm1"), lab.host("vm2")]
        self.mischief = mischief
        self.dice = random.Random(7)
        self.carried = 0
        self.deeds = Counter()
        self.spoiled = Counter()  # S2s that did not go on at once and unchanged
        self.old = deque(maxlen=OLD_KEPT)
        self._later = []
        self._order = count()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._carry)

    def __enter__(self):
        self._taps = [host.call(partial(open_tap, "eth0")) for host in self.hosts]
        for number, host in enumerate(self.hosts, 60):
            host.address = f"192.168.10.{number}"
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "txqueuelen", "10000", "up")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        for tap in self._taps:
            os.close(tap)

    @property
    def is_idle(self):
        """Nothing waits for its time."""
        return not self._later

    def later(self, direction, datagram, delay):
        due = time.monotonic() + delay, next(self._order)
        heappush(self._later, (*due, direction, self._frames[direction], datagram))

    def _carry(self):
        self._frames = [b"", b""]  # the last one each way, to forge others after it
        while not self._done.is_set():
            patience = 0.1
            if self._later:
                patience = max(0, min(patience, self._later[0][0] - time.monotonic()))
            readable, _, _ = select.select(self._taps, [], [], patience)
            for tap in readable:
                self._drain(self._taps.index(tap))
            while self._later and self._later[0][0] <= time.monotonic():
                _, _, direction, frame, datagram = heappop(self._later)
                self._write(direction, with_payload(frame, datagram))

    def _drain(self, direction):
        for _ in range(64):
            try:
                frame = os.read(self._taps[direction], LONGEST_FRAME)
            except BlockingIOError:
                return
            if self.mischief is None or not is_tunnel(frame):
                self._write(direction, frame)
            else:
                self._tamper(direction, frame)

    def _tamper(self, direction, frame):
        self.carried += 1
        self._frames[direction] = frame
        datagram = frame[OUTER:]
        put_out = self.mischief(self, direction, datagram)
        if carries_packet(datagram) and not any(d is datagram for d in put_out):
            self.spoiled[direction] += 1
        self.old.append(datagram)
        for other in put_out:
            same = other is datagram
            self._write(direction, frame if same else with_payload(frame, other))

    def _write(self, direction, frame):
        os.write(self._taps[1 - direction], frame)


def is_tunnel(frame):
    return (
        len(frame) > OUTER
        and frame[12:14] == IPV4.to_bytes(2)
        and frame[23] == UDP
        and frame[36:38] == PORT.to_bytes(2)
    )


def carries_packet(datagram):
    """Whether it is an S2, and not one of a control message."""
    return datagram[0] == Kind.S2 and not datagram[HEADER_SIZE + 2] & CONTROL


def with_payload(frame, payload):
    """The frame of a UDP datagram, with something else in it."""
    ip = struct.pack("!H", 20 + 8 + len(payload)).join((frame[14:16], frame[18:24]))
    ip += bytes(2) + frame[26:34]
    ip = ip[:10] + frames.checksum(ip).to_bytes(2) + ip[12:]
    udp = frame[34:38] + struct.pack("!HH", 8 + len(payload), 0)
    return frame[:14] + ip + udp + payload


# What Mallory does


def every_nth(n):
    """Lose every n-th datagram of either direction."""
    passed = [0, 0]

    def lose(_mallory, direction, datagram):
        passed[direction] += 1
        return [datagram] if passed[direction] % n else []

    return lose


def losing(share):
    """Lose so large a share of the datagrams, by chance."""

    def lose(mallory, _direction, datagram):
        return [] if mallory.dice.random() < share else [datagram]

    return lose


def everything(share):
    """Do something hostile to so large a share of the datagrams."""
    names = list(DEEDS)

    def tamper(mallory, direction, datagram):
        if mallory.dice.random() >= share:
            return [datagram]
        name = mallory.dice.choice(names)
        mallory.deeds[name] += 1
        return DEEDS[name](mallory, direction, datagram)

    return tamper


def drop(_mallory, _direction, _datagram):
    return []


def delay(mallory, direction, datagram):
    mallory.later(direction, datagram, mallory.dice.uniform(0, LONGEST_DELAY))
    return []


def duplicate(_mallory, _direction, datagram):
    return [datagram, datagram]


def reorder(mallory, direction, datagram):
    mallory.later(direction, datagram, 0.001)
    return []


def truncate(mallory, _direction, datagram):
    return [datagram[: mallory.dice.randrange(1, len(datagram))]]


def flip(mallory, _direction, datagram):
    flipped = bytearray(datagram)
    flipped[mallory.dice.randrange(len(datagram))] ^= 1 << mallory.dice.randrange(8)
    return [bytes(flipped)]


def replay(mallory, _direction, datagram):
    return [datagram, *mallory.dice.choices(mallory.old, k=3)] if mallory.old else []


def swap_s1(mallory, _direction, datagram):
    """Another S1's roots, or random ones, behind this one's head; sooner or later."""
    if datagram[0] != Kind.S1:
        return [datagram]
    others = [d for d in mallory.old if d[0] == Kind.S1 and len(d) == len(datagram)]
    tail = (
        mallory.dice.choice(others)[ROUND_HEAD_SIZE:]
        if others
        else mallory.dice.randbytes(len(datagram) - ROUND_HEAD_SIZE)
    )
    swapped = datagram[:ROUND_HEAD_SIZE] + tail
    orders = [swapped, datagram], [datagram, swapped], [swapped]
    return mallory.dice.choice(orders)


def forge_s2(mallory, _direction, datagram):
    """The key is known now: other packets in its name, and another S1 for them."""
    if datagram[0] != Kind.S2:
        return [datagram]
    head, body = datagram[:ROUND_HEAD_SIZE], datagram[ROUND_HEAD_SIZE:]
    forged = head + body[:8] + mallory.dice.randbytes(len(body) - 8)
    moved = head + mallory.dice.randbytes(2) + body[2:]
    s1s = [d for d in mallory.old if d[0] == Kind.S1 and d[8:16] == head[8:16]]
    late_s1 = [
        d[:S1_FIXED_SIZE] + mallory.dice.randbytes(len(d) - S1_FIXED_SIZE) for d in s1s
    ]
    return [forged, moved, *late_s1, forged, datagram]


def flood_s1(mallory, _direction, datagram):
    """S1s of rounds to come, with elements nobody made, and an old tag."""
    if datagram[0] != Kind.S1:
        return [datagram]
    association, shape, zero, number, _ = ROUND.unpack_from(datagram, HEADER_SIZE)
    flood = [
        datagram[:HEADER_SIZE]
        + ROUND.pack(association, shape, zero, number + ahead, os.urandom(16))
        + datagram[ROUND_HEAD_SIZE:]
        for ahead in range(FLOOD)
    ]
    return [*flood, datagram]


def flood_syn(mallory, _direction, datagram):
    """Old SYNs again, and new ones in the name of who sent them."""
    syns = [d for d in mallory.old if d[0] == Kind.SYN]
    forged = [forged_syn(syn[32:64]) for syn in syns for _ in range(3)]
    return [*syns, *forged, forged_syn(os.urandom(KEY_SIZE)), datagram]


def forged_syn(identity):
    """Well formed, from somebody who does not have the key of ``identity``."""
    anchors = os.urandom(ANCHOR_SIZE), os.urandom(ANCHOR_SIZE)
    number = int.from_bytes(os.urandom(4)) or 1
    nonce, share = os.urandom(NONCE_SIZE), os.urandom(KEY_SIZE)
    return Syn(number, nonce, identity, share, *anchors).pack()


DEEDS = {
    deed.__name__: deed
    for deed in (
        *(drop, delay, duplicate, reorder, truncate, flip, replay),
        *(swap_s1, forge_s2, flood_s1, flood_syn),
    )
}


# Traffic that shows whether each packet is genuine, and the first of its number


SECRET = os.urandom(32)
NUMBER = struct.Struct("!Q")
PROOF_SIZE = 32
MOST_AT_ONCE = 32
SIZES = (40, 41, 100, 400, 1000, 1300)  # of payloads, bytes


class Numbered:
    """A flow of UDP datagrams one way, sent and received in threads of their own."""

    def __init__(self, source, target, rate):
        """``rate``: datagrams a second, if the machine can."""
        self.sent = 0
        self.received = set()
        self.wrong = []  # payloads that were never sent
        self.twice = []  # numbers
        self._outbound = source.socket()
        self._inbound = target.socket()
        self._inbound.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 64 << 20)
        self._inbound.bind((target.address, 0))
        self._inbound.settimeout(0.1)
        self._outbound.connect(self._inbound.getsockname())
        self._rate = rate
        self._reading = threading.Thread(target=self._receive)
        self._writing = threading.Thread(target=self._send)
        self._sending = self._receiving = True

    def start(self):
        self._reading.start()
        self._writing.start()

    def close(self):
        """Receive no more."""
        self._receiving = False
        self._reading.join()
        self._outbound.close()
        self._inbound.close()

    def pause(self):
        """Send no more; what is under way is still received."""
        self._sending = False
        self._writing.join()

    @property
    def arrived(self):
        """Packets that were received, of whatever kind."""
        return len(self.received) + len(self.twice) + len(self.wrong)

    def _send(self):
        begun = time.monotonic()
        while self._sending:
            due = int((time.monotonic() - begun) * self._rate)
            for _ in range(min(due - self.sent, MOST_AT_ONCE)):
                self._outbound.send(self._payload(self.sent))
                self.sent += 1
            if self.sent >= due:
                time.sleep(0.002)

    def _payload(self, number):
        size = SIZES[number % len(SIZES)]
        text = NUMBER.pack(number).ljust(size - PROOF_SIZE, b"\xa5")
        return text + hmac.digest(SECRET, text, "sha256")

    def _receive(self):
        while self._receiving:
            try:
                payload = self._inbound.recv(LONGEST_FRAME)
            except TimeoutError:
                continue
            self._check(payload)

    def _check(self, payload):
        text, proof = payload[:-PROOF_SIZE], payload[-PROOF_SIZE:]
        if not hmac.compare_digest(hmac.digest(SECRET, text, "sha256"), proof):
            self.wrong.append(payload)
            return
        (number,) = NUMBER.unpack_from(text)
        if number in self.received:
            self.twice.append(number)
            return
        self.received.add(number)


def memory(daemon):
    """Resident memory of a daemon, bytes."""
    pages = Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
