"""What the two ends tell each other in reliable rounds that bring no packet.

Control messages, traces and size probes take the associations of the packets: messages
before any packet that waits, a probe when nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

from attrs import define, field

from alpha_trio.proto.batch import Drop, Outbox, Place
from alpha_trio.proto.messages import (
    CONTROL,
    CONTROL_MESSAGE,
    RELIABLE,
    Control,
)
from alpha_trio.proto.traces import Probe
from alpha_trio.proto.transport.layout import Datagrams
from alpha_trio.proto.transport.round import OutAssociation, Round
from alpha_trio.proto.transport.sized import (
    COPIES,
    LAST_WAIT,
    PROBE_PATIENCE,
    STUCK_AFTER,
    Outcome,
    SizeProbe,
)

if TYPE_CHECKING:
    from alpha_trio.proto.transport.sender import Sender

CHALLENGE_INTERVAL = 0.5  # s between questions whether the peer is elsewhere now

PROBE_TRIPS = 6  # round trips that a size probe waits for a second association

_AT_ONCE = 32  # control messages in one datagram, 20 bytes each


@define(eq=False)
class Controls:
    """Those that wait for an association of a Sender, and what they ask the path."""

    sender: Sender
    waiting: list[bytes] = field(factory=list)  # messages, first in turn
    trace: tuple[bytes, Probe] | None = None  # next in turn
    sized: SizeProbe | None = None  # waits until nothing else does
    _since: float = -inf  # when the first of the messages that wait came
    _challenged: float = -inf  # when the peer was last asked elsewhere

    def start(self, now: float, out: Outbox) -> None:
        """Start rounds for what waits, on associations that are idle."""
        self._start_messages(now, out)
        if self.sized is not None:
            self._start_sized(self.sized, now, out)

    # -- messages ------------------------------------------------------------------

    def send(self, messages: Iterable[bytes], now: float, out: Outbox) -> None:
        """Send control messages in reliable rounds, before any packet that waits."""
        if not self.waiting:
            self._since = now
        self.waiting += messages
        self._start_messages(now, out)

    def send_trace(self, message: bytes, probe: Probe, now: float, out: Outbox) -> None:
        """Send a TRACE, and tell ``probe`` what had been sent when it left.

        It goes once: counters that other nodes note at its repetition would not belong
        to ours.  A newer one replaces one that has to wait.
        """
        if self.trace is None and not self.waiting:
            self._since = now
        self.trace = message, probe
        self._start_messages(now, out)

    def challenge(self, place: Place, now: float, out: Outbox) -> None:
        """The peer answers from there, or it is a copy: see whether it receives there.

        By a message that nobody waits for, so that a copy costs no packet its time.
        """
        idle = [a for a in self.sender.associations.values() if a.idle]
        if idle and now >= self._challenged + CHALLENGE_INTERVAL:
            self._challenged = now
            nothing = CONTROL_MESSAGE.pack(Control.PADDING, 0, b"")
            self._start_round(idle[0], nothing, now, out, place)

    def _start_messages(self, now: float, out: Outbox) -> None:
        """Let control messages go, behind a key stroke if they come with it.

        On a long way the only association may be theirs for long.
        """
        if not self.waiting and self.trace is None:
            return
        if now < self._since + (self.sender.rtt.smoothed or 0.0):
            self.sender.start_early(now, out)
        self._start_control(now, out)

    def _start_control(self, now: float, out: Outbox) -> None:
        for association in self.sender.associations.values():
            if not association.idle:
                continue
            if self.waiting:
                body = b"".join(self.waiting[:_AT_ONCE])
                del self.waiting[:_AT_ONCE]
                self._start_round(association, body, now, out)
            elif self.trace is not None:
                (body, probe), self.trace = self.trace, None
                round_ = self._start_round(association, body, now, out)
                round_.probe = probe

    # -- size probes ---------------------------------------------------------------

    def ask_size(self, probe: SizeProbe, now: float, out: Outbox) -> None:
        """Find out whether datagrams of a size arrive, when nothing else waits."""
        self.sized = probe
        self._start_sized(probe, now, out)

    def _start_sized(self, probe: SizeProbe, now: float, out: Outbox) -> None:
        patient = now < probe.since + PROBE_PATIENCE
        if patient and (self.sender.queue or self.waiting):
            return
        if self._probe_would_block(probe, now):
            return
        idle = next((a for a in self.sender.associations.values() if a.idle), None)
        if idle is None and not patient:
            idle = self._make_way(probe, now, out)
        if idle is not None:
            self.sized = None
            round_ = self._start_round(idle, probe.body, now, out)
            round_.sized = probe

    def _probe_would_block(self, probe: SizeProbe, now: float) -> bool:
        """Whether it would have the only association, for long, right at the start."""
        until = probe.since + PROBE_TRIPS * (self.sender.rtt.smoothed or 0.0)
        if len(self.sender.associations) > 1 or now >= until:
            return False
        self.sender.deadline = min(self.sender.deadline, until)
        return True

    def _make_way(
        self, probe: SizeProbe, now: float, out: Outbox
    ) -> OutAssociation | None:
        """An association whose round may be stuck for the very reason we ask about.

        An S1 without an answer makes way.  A reliable round does not, but tells as much
        as a probe could: its A1 came, and of its packets no verdict ever does.
        """
        for association in self.sender.associations.values():
            round_ = association.round
            if round_ is None or round_.shape & CONTROL:
                continue
            if round_.attempts < STUCK_AFTER:
                continue
            if not round_.agreed and len(round_.s1) > self.sender.doubted_size:
                self.sender.give_up(round_, Drop.NO_AGREEMENT, now)
                return association
            largest = round_.datagrams.largest
            if round_.unanswered and largest > self.sender.doubted_size:
                self.sized = None
                probe.told(probe, Outcome.STUCK, now, out)
                return None
        return None

    def put_off_sized(self, now: float, out: Outbox) -> bool:
        """Packets wait: a probe that looks lost gives its association back to them.

        Tells whether there is one whose answer is still to be expected.
        """
        for association in self.sender.associations.values():
            round_ = association.round
            if round_ is None or round_.sized is None:
                continue
            probe = round_.sized
            if not round_.agreed or now < probe.due:
                self.sender.deadline = min(self.sender.deadline, probe.due)
                return True
            if probe.sent >= COPIES:
                self.end_sized(round_, Outcome.LOST, now, out)
            else:
                self.sender.finish(round_)
                self.sized, probe.since = probe, now
            self.sender.deadline = min(self.sender.deadline, now)
        return False

    def end_sized(
        self, round_: Round, outcome: Outcome, now: float, out: Outbox
    ) -> None:
        self.sender.finish(round_)
        if round_.sized is not None:
            round_.sized.told(round_.sized, outcome, now, out)

    def repeat_sized(self, round_: Round, now: float, out: Outbox) -> None:
        probe = round_.sized
        assert probe is not None
        if probe.sent >= COPIES:
            self.end_sized(round_, Outcome.LOST, now, out)
            return
        round_.attempts += 1
        self.sender.repeat_s2(round_, now, out)
        self.count_copy(round_, now)

    def count_copy(self, round_: Round, now: float) -> None:
        """A datagram of a probe's size went out."""
        probe = round_.sized
        assert probe is not None
        probe.sent, probe.due = probe.sent + 1, round_.resend_at
        if probe.sent >= COPIES:
            round_.resend_at = max(round_.resend_at, now + LAST_WAIT)

    def _start_round(
        self,
        association: OutAssociation,
        body: bytes,
        now: float,
        out: Outbox,
        place: Place | None = None,
    ) -> Round:
        opening = association.open(RELIABLE | CONTROL, self.sender.line)
        datagrams = Datagrams.bare(body, opening)
        return self.sender.announce(association, opening, datagrams, now, out, place)
