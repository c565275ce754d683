"""How long a round waits for an answer: measured round trips, and what follows."""

from __future__ import annotations

from math import inf

from attrs import define

from alpha_trio.proto.messages import MIN_RTO

FIRST_RTO, MAX_RTO = 0.5, 3.0  # s

RTO_MARGIN = 0.25  # of the round-trip time, at least: a steady one may still change

# A link that loses every n-th datagram can lose the same message again and again, if
# the ends repeat in step with it; who repeats soon, and unevenly, gets through.
RTO_GROWTH = 1.5  # from one repetition to the next

RTO_JITTER = 0.25  # share of the time that chance decides, half of it either way

BACKED_OFF_RTO = 1.0  # s it grows to; longer only where the way itself is

LOSS_OVER = 256  # exchanges over which their loss is reckoned

MOST_DOUBTS = 8  # times a timeout is doubled before the first try: MIN to MAX_RTO


@define(eq=False)
class RoundTrip:
    """Smoothed round-trip time and what follows from it (RFC 6298)."""

    smoothed: float | None = None  # s
    variation: float = 0.0  # s
    least: float = inf  # s
    measured: int = 0  # times
    doubts: int = 0  # how often to double the timeout, until there is a measurement
    unsure: bool = False  # a repeated S1 was answered since there was one
    _doubted: float = -inf  # when ``doubts`` grew
    _exchanges: int = 0  # up to LOSS_OVER
    _lost: float = 0.0  # of these

    def doubt(self, now: float) -> None:
        """An S1 was answered twice, so it was repeated before its answer could come.

        Which one an answer belongs to nobody knows, so it cannot be measured; without
        patience a way that has become longer would never be measured again.
        """
        if self.unsure and now - self._doubted >= (self.smoothed or FIRST_RTO):
            self.doubts = min(self.doubts + 1, MOST_DOUBTS)
            self._doubted = now

    def answered(self, *, repeated: bool) -> None:
        """An exchange is over; ``repeated``: its question or its answer was lost."""
        if self._exchanges < LOSS_OVER:
            self._exchanges += 1
        else:
            self._lost -= self._lost / LOSS_OVER
        self._lost += repeated

    @property
    def loss(self) -> float | None:
        """Share of the last exchanges in which something was lost; None: too few."""
        return self._lost / LOSS_OVER if self._exchanges >= LOSS_OVER else None

    def sample(self, rtt: float) -> None:
        """Take one measurement, of an exchange that was not repeated.

        An answer may have waited while the host was suspended.
        """
        rtt = min(rtt, MAX_RTO)
        self.doubts, self.unsure = 0, False
        self.least = min(self.least, rtt)
        self.measured += 1
        if self.smoothed is None:
            self.smoothed, self.variation = rtt, rtt / 2
            return
        self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
        self.smoothed += (rtt - self.smoothed) / 8

    def begin(self, rtt: float) -> None:
        """Expect what was seen elsewhere, until there is a measurement of our own."""
        self.smoothed, self.variation = rtt, rtt / 2
        self.least, self.measured = rtt, 1

    def timeout(self, attempts: int) -> float:
        """How long, in seconds, to wait for an answer after the ``attempts``-th try.

        RFC 6298, but that it grows less, and less far: a round repeats a few small
        messages, of which a lossy way may well take several.
        """
        base = FIRST_RTO
        if self.smoothed is not None:
            margin = max(4 * self.variation, RTO_MARGIN * self.smoothed)
            base = max(MIN_RTO, self.smoothed + margin)
        base *= 2.0**self.doubts
        if attempts == 1:  # hot path
            return min(base, MAX_RTO)
        backed_off = min(base * RTO_GROWTH ** (attempts - 1), BACKED_OFF_RTO)
        return min(max(base, backed_off), MAX_RTO)
