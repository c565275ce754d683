"""A link whose carrier is the enemy, and traffic that shows what came of it.

    vm1 192.168.10.60 --- TAP [Mallory] TAP --- vm2 192.168.10.61

The ends of the link are TAP devices without offloads, so that Mallory has each
datagram in hand, alone.  He holds no key, but knows all that was ever on the link.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from pathlib import Path

from alpha_trio.proto.messages import (
    HEADER_SIZE,
    KEY_SIZE,
    ROUND,
    ROUND_HEAD_SIZE,
    S1_FIXED_SIZE,
    Kind,
)
from tools.attacker import InLine, slot
from tools.forgeries import forged_syn

OLD_KEPT = 512  # datagrams Mallory remembers
LONGEST_DELAY = 0.05  # s
FLOOD = 20  # datagrams


class Mallory:
    """Carries frames between two hosts as ``mischief`` decides.

    ``mischief(mallory, direction, datagram)`` returns the datagrams to be sent on in
    its place; ``mallory.later`` sends others in a moment.  Direction 0 is from the
    first host to the second.
    """

    def __init__(self, lab, mischief=None):
        self.mischief = mischief
        self.line = InLine(self._tamper)
        self.later = self.line.later
        self.dice = random.Random(7)
        self.deeds = Counter()
        self.spoiled = Counter()  # S2s that did not go on at once and unchanged
        self.old = deque(maxlen=OLD_KEPT)
        self.hosts = lab.chain(0, wires={0: self.line.wire})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.__exit__(None, None, None)

    @property
    def carried(self):
        """Datagrams he had in his hands."""
        return self.line.carried

    @property
    def is_idle(self):
        """Nothing waits for its time."""
        return self.line.is_idle

    def _tamper(self, direction, datagram):
        put_out = [datagram]
        if self.mischief is not None:
            put_out = self.mischief(self, direction, datagram)
        if carries_packet(datagram) and not any(d is datagram for d in put_out):
            self.spoiled[direction] += 1
        self.old.append(datagram)
        return put_out


def carries_packet(datagram):
    """Whether it is an S2, and not one of a control message."""
    return slot(datagram) == Kind.S2


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
    keys = [*(syn[32:64] for syn in syns for _ in range(3)), os.urandom(KEY_SIZE)]
    return [*syns, *(forged_syn(key, mallory.dice) for key in keys), datagram]


DEEDS = {
    deed.__name__: deed
    for deed in (
        *(drop, delay, duplicate, reorder, truncate, flip, replay),
        *(swap_s1, forge_s2, flood_s1, flood_syn),
    )
}


def memory(daemon):
    """Resident memory of a daemon, bytes."""
    pages = Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
