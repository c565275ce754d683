"""Where a peer has been: whether to follow it, and whether it is two.

A peer moves as it likes, and is followed when it has proven where it is.  Two cases are
not that: one whose datagrams take turns on two ways, which is followed to and fro ever
more seldom; and two hosts with the same key, as after a disk was copied, of which each
takes the session from the other.
"""

from __future__ import annotations

from collections import deque
from math import inf

from attrs import define, field

from alpha_trio.proto.batch import Place, Remote

# In seconds.
HOLD_FIRST = 0.2  # for which a peer is not followed back to where it has just been
HOLD_MAX = 5.0  # grown to when it comes and goes
CALM = 10.0  # without that, after which the next one counts as the first again
TWINS_WITHIN = 600.0  # they take turns at this, and are told of for so long
TURNS = 4  # handshakes from two places in turn, by which two hosts are told


@define(eq=False)
class Whereabouts:
    """The places of one peer.  ``now`` is in seconds."""

    twins: tuple[Remote, Remote] | None = None  # where the two hosts are
    _left: Place | None = None
    _left_at: float = -inf
    _hold: float = HOLD_FIRST
    _twins_at: float = -inf
    _callers: deque[tuple[float, Remote]] = field(factory=lambda: deque(maxlen=TURNS))

    def follow(self, was: Place, place: Place, now: float) -> bool:
        """Whether to go along to ``place``, where the peer has proven to be."""
        since = now - self._left_at
        if place == self._left and since < self._hold:
            return False
        returns = place == self._left and since < CALM
        self._hold = min(2 * self._hold, HOLD_MAX) if returns else HOLD_FIRST
        self._left, self._left_at = was, now
        return True

    def called(self, remote: Remote, now: float) -> bool:
        """The peer has begun a session from there; whether that shows that it is two.

        Who moves needs no handshake for that, nor does one host come from two places
        in turn, again and again.
        """
        self._callers.append((now, remote))
        (first, _), *_ = self._callers
        hosts = [caller[0] for _, caller in self._callers]
        one, other = hosts[0::2], hosts[1::2]
        turns = len(hosts) == TURNS and len({*one}) == len({*other}) == 1
        if not turns or one[0] == other[0] or now - first > TWINS_WITHIN:
            return False
        return self.doubled(self._callers[-2][1], remote, now)

    def doubled(self, one: Remote, other: Remote, now: float) -> bool:
        """Two hosts with its key are there; whether that is news."""
        news = self.twins_at(now) is None
        self.twins, self._twins_at = (one, other), now
        return news

    def twins_at(self, now: float) -> tuple[Remote, Remote] | None:
        """Where two hosts with its key were seen not long ago."""
        return self.twins if now - self._twins_at < TWINS_WITHIN else None
