"""TRACEs that passed a relay, and the REPORTs that may follow them."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.batch import Buffer, Crossing
from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.primitives import RandomBytes
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay.consent import Sides
from alpha_trio.proto.relay.verdict import Consent
from alpha_trio.proto.traces import (
    MAX_HOPS,
    TRACE_LIFETIME,
    Report,
    parse_report_untrusted,
)

TRACES_KEPT = 4096  # by a relay, of all sessions
CHECK_RATE, CHECK_BURST = 10.0, 8.0  # signatures of that end, a second, for one TRACE
CHECKS_RATE, CHECKS_BURST = 100.0, 50.0  # for all

TRACE_COST = 700  # bytes of memory for each, estimated


@define(eq=False)
class _Passed:
    """One TRACE, and how many answers to it may still pass."""

    until: float
    key: bytes | None  # of the end it is for
    sides: Sides
    own: int = 1  # of that end
    others: int = MAX_HOPS - 1
    checks: TokenBucket = field(factory=lambda: TokenBucket(CHECK_RATE, CHECK_BURST))


@define(eq=False)
class PassingTraces:
    """The TRACEs that passed a relay lately."""

    consent: Consent
    random: RandomBytes
    _passed: dict[tuple[int, bytes], _Passed] = field(factory=dict)
    """By the asking end's connection id, and the nonce."""
    _checks: TokenBucket = field(factory=lambda: TokenBucket(CHECKS_RATE, CHECKS_BURST))

    def add(
        self,
        receiver_id: int,
        nonce: bytes,
        key: bytes | None,
        crossing: Crossing,
        now: float,
    ) -> None:
        """One has passed; the answers go to ``receiver_id``, ``key`` is the other."""
        self.forget_old(now)
        if len(self._passed) >= TRACES_KEPT:
            del self._passed[next(iter(self._passed))]
        passed = _Passed(now + TRACE_LIFETIME, key, Sides())
        passed.sides.add(crossing, self.random)
        self._passed[receiver_id, nonce] = passed

    def take_untrusted(self, datagram: Buffer, crossing: Crossing, now: float) -> None:
        """Let a REPORT pass.  Raises BadPacket if nobody waits for it, or for more.

        Whose key it may be, and so its signature, is for who asked; but that of the
        other end a relay knows, and keeps a place for it which others cannot take.
        """
        report = parse_report_untrusted(datagram)
        passed = self._passed.get((report.receiver_id, report.nonce))
        if passed is None or now > passed.until:
            raise BadPacket
        passed.sides.check_untrusted(crossing, self.consent)
        if report.key == passed.key:
            self._take_own_untrusted(passed, report, now)
        elif passed.others:
            passed.others -= 1
        else:
            raise BadPacket

    def _take_own_untrusted(self, passed: _Passed, report: Report, now: float) -> None:
        if not passed.own or not passed.checks.take(now) or not self._checks.take(now):
            raise BadPacket
        report.verify_untrusted()
        passed.own -= 1

    def forget_old(self, now: float) -> None:
        """Forget those for which nothing may pass any more."""
        while self._passed and next(iter(self._passed.values())).until < now:
            del self._passed[next(iter(self._passed))]

    def __len__(self) -> int:
        return len(self._passed)
