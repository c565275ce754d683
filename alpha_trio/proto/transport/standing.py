"""Whether a queue stands, and which packet tells its senders so (RFC 8289, CoDel).

A queue that empties within a round trip takes up a burst, and that is what it is for.
One that does not only makes all wait, and a sender that looks for losses lets it grow
until there is one.  So when for a whole interval nothing waited less than a target, the
packet whose turn it is is lost, or marked where its ends understand marks; and if that
does not help further ones follow, at a distance that shrinks with the square root of
their number, as that is how the rate of TCP answers.
"""

from __future__ import annotations

from math import inf, sqrt

from attrs import define

TARGET = 0.005  # s that packets may wait, beyond what rounds keep for a distance
INTERVAL = 0.1  # s for which they may wait longer, or ...
INTERVAL_TRIPS = 3  # round trips: what a sender inside needs to hear of a loss

_RECENT = 16  # intervals after which it begins anew


@define(eq=False)
class StandingQueue:
    """Is asked, as each round starts, about what has waited longest."""

    _due: float = inf  # when waiting will have been long for an interval, or next one
    _dropping: bool = False
    _count: int = 0  # since it began
    _ended: float = -inf

    def tells(self, waited: float, target: float, interval: float, now: float) -> bool:
        """Whether a packet is to be lost now, when one has ``waited`` s."""
        if waited < target:
            self.rest(now)
            return False
        if self._due == inf:
            self._due = now + interval
        if now < self._due:
            return False
        if not self._dropping:
            self._dropping = True
            recent = now - self._ended < _RECENT * interval
            self._count = max(self._count - 2, 0) if recent else 0
            self._due = now
        self._count += 1
        self._due = max(self._due, now - interval) + interval / sqrt(self._count)
        return True

    def rest(self, now: float) -> None:
        """Something did not wait long, or nothing waits any more."""
        if self._dropping:
            self._ended = now
        self._due, self._dropping = inf, False
