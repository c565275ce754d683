"""When rounds start: what does not fill one waits for more, but not for long.

A round costs as much as twenty packets do in it.  How long it is worth to wait depends
on the way:

* On a short way, for an A1: under load rounds grow until they are worth it, and what
  waits does so for a round trip at most.
* On a long way that would be long, and a burst would be torn: its first packets take
  all associations in rounds of two or three, and the rest stands still until the first
  A1.  So rounds start at even distances, however many are under way, and it takes one
  association for each distance in a round trip.

Small packets that go early need less, but are paced for the same reason: what TCP hears
in bursts it sends in bursts.
"""

from __future__ import annotations

from math import inf

from attrs import define

# On a short way: so many rounds are under way, and do not yet wait ...
ROUNDS_AT_ONCE = 1  # and one more for each ...
ROUNDS_EVERY = 0.004  # s of round-trip time

LONG_WAY = 2 * ROUNDS_EVERY
"""Round-trip time, s, from which distances count instead: of ROUNDS_EVERY, or ..."""
MOST_DISTANCES = 25  # in a round trip, as each costs an association

EARLY_AT_ONCE = 4  # rounds of early data that keep no distance: a request has few
MOST_EARLY_WAITING = 8  # times what one S1 takes, until it goes in a round


def is_long(round_trip: float | None) -> bool:
    """Whether rounds keep a distance on such a way; not if nothing is known of it."""
    return round_trip is not None and round_trip >= LONG_WAY


def distance(round_trip: float) -> float:
    """Seconds between the starts of two rounds that are not full, on a long way."""
    return max(ROUNDS_EVERY, round_trip / MOST_DISTANCES)


def useful_rounds(round_trip: float) -> int:
    """How many rounds are under way at once when there is always something to send."""
    return int(round_trip / distance(round_trip)) if is_long(round_trip) else 1


def early_waiting(round_trip: float | None) -> int:
    """How many S1s full of early data may wait together for rounds before them.

    What waits for a round under way arrives half a round trip after that is out, so no
    later than in a round of its own; but a large round is cheaper than many S1s.
    """
    if not is_long(round_trip) or round_trip is None:
        return 1
    return min(MOST_EARLY_WAITING, useful_rounds(round_trip))


@define(eq=False)
class Pace:
    """When a Sender's last rounds started, and when the next one may."""

    started: float = -inf
    early_started: float = -inf
    resume: float = inf  # when what keeps its distance may go

    def must_wait(self, under_way: int, round_trip: float, now: float) -> bool:
        """Whether a round that is not full would better start later."""
        if not is_long(round_trip):
            return under_way >= ROUNDS_AT_ONCE + int(round_trip / ROUNDS_EVERY)
        return self._is_close(self.started, round_trip, now)

    def must_wait_early(
        self, under_way: int, round_trip: float | None, now: float
    ) -> bool:
        """Whether small packets would better gather for the next S1."""
        if not is_long(round_trip) or round_trip is None or under_way < EARLY_AT_ONCE:
            return False
        return self._is_close(self.early_started, round_trip, now)

    def early_at_once(self, under_way: int) -> int:
        """How many rounds of early data may start together."""
        return max(1, EARLY_AT_ONCE - under_way)

    def _is_close(self, started: float, round_trip: float, now: float) -> bool:
        due = started + distance(round_trip)
        if now < due:
            self.resume = min(self.resume, due)
        return now < due
