"""A session whose two ends are one: he has both keys, and says what both would say.

Everything in it is signed as it should be.  Sent one way, all of it, it would make a
relay that looks at signatures alone let packets go on to whom nobody asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tools.fuzz_world import World

_PACKETS, _SIZE = 8, 1000  # of a round
_APART = 0.05  # s between two rounds, by the ends' own clock


def both_ends(dice: Random, rounds: int) -> Iterator[tuple[int, bytes]]:
    """All datagrams of a session in order, each with the number of who says it.

    ``rounds`` is how often the one has packets for the other.
    """
    world = World("c", dice)
    one, two = world.ends
    for _ in range(rounds):
        world.speak(one, [dice.randbytes(_SIZE) for _ in range(_PACKETS)])
        world.wait(0.0)
        while one.mail or two.mail:
            for number, end in ((0, two), (1, one)):
                while end.mail:
                    datagram = end.mail.popleft()
                    yield number, datagram
                    world.arrive(end, datagram)
        world.wait(_APART)
