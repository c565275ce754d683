"""TRACEs that passed a relay, and the REPORTs that may follow them."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.messages import BadPacket
from alpha_trio.proto.traces import MAX_HOPS, TRACE_LIFETIME, parse_report_untrusted

TRACES_KEPT = 4096  # by a relay, of all sessions

TRACE_COST = 300  # bytes of memory for each, estimated


@define(eq=False)
class PassingTraces:
    """The TRACEs that passed a relay lately, and how many answers may still pass."""

    _left: dict[tuple[int, bytes], list[float]] = field(factory=dict)
    """Until when, and how many, by the asking end's connection id and nonce."""

    def add(self, receiver_id: int, nonce: bytes, now: float) -> None:
        """One has passed; the answers go to ``receiver_id``."""
        self.forget_old(now)
        if len(self._left) >= TRACES_KEPT:
            del self._left[next(iter(self._left))]
        self._left[receiver_id, nonce] = [now + TRACE_LIFETIME, MAX_HOPS]

    def take_untrusted(self, datagram: Buffer, now: float) -> None:
        """Let a REPORT pass.  Raises BadPacket if nobody waits for it, or for more.

        Its signature is for who asked: a relay knows no better whose key it may be.
        """
        report = parse_report_untrusted(datagram)
        entry = self._left.get((report.receiver_id, report.nonce))
        if entry is None or now > entry[0] or not entry[1]:
            raise BadPacket
        entry[1] -= 1

    def forget_old(self, now: float) -> None:
        """Forget those for which nothing may pass any more."""
        while self._left and next(iter(self._left.values()))[0] < now:
            del self._left[next(iter(self._left))]

    def __len__(self) -> int:
        return len(self._left)
