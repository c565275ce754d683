"""What a relay tells people: one log line and one monitor event for each."""

from __future__ import annotations

import logging

from attrs import define

from alpha_trio.journal import Journal, address
from alpha_trio.proto.primitives import fingerprint
from alpha_trio.proto.relay import RelayEvent, RelayEventKind

_log = logging.getLogger("alpha_trio")

_ASIDE = 10  # answers that came by their question's link, until that is told
_ASIDE_FOR = 60.0  # s it stays in ``health`` after the last
_ANSWERS = "answers at the relay"

_LINES = {
    RelayEventKind.VERIFIED: (
        "Relaying between {initiator} and {responder}: their handshake is genuine."
    ),
    RelayEventKind.DROPPED: (
        "Not relaying packets between {initiator} and {responder} ({reason})."
    ),
    RelayEventKind.EVICTED: (
        "Forgetting the relayed session of {initiator} and {responder} to make room: "
        "raise sessions or memory under [relay] if it was in use."
    ),
}

_DROPPED_LINES = {
    "wrong-side": (
        "Not relaying packets between {initiator} and {responder} (wrong-side): who "
        "answers was not asked there; if the links here are so, see consent under "
        "[relay]."
    ),
    "early-false": (
        "Not relaying packets between {initiator} and {responder} (early-false): what "
        "passed inside an S1 was not signed; no more of it passes in this session."
    ),
}
"""Where the reason alone would not say what follows from it."""


@define(eq=False)
class Aside:
    """Tells of answers that come from the right address, but with their questions."""

    journal: Journal
    told: bool = False
    _count: int = 0  # when it was last quiet
    _latest: int = 0
    _since: float = 0.0  # s; when the latest came

    def look(self, count: int, now: float) -> None:
        """``count`` is that of all there ever were."""
        if count != self._latest:
            self._latest, self._since = count, now
        if now - self._since > _ASIDE_FOR:
            self._count = count
            if self.told:
                self.told = False
                self.journal.recovered(_ANSWERS)
        elif count - self._count >= _ASIDE and not self.told:
            self.told = True
            self.journal.trouble(
                _ANSWERS,
                "relayed answers come by the link of their questions and are dropped: "
                'set consent = "address" under [relay] if both directions use one link '
                "here, else somebody plays both ends of a session",
            )


def record(journal: Journal, event: RelayEvent) -> None:
    """Log and publish one event of the relay."""
    ends = {
        name: address(remote) if remote else "an unknown address"
        for name, remote in (
            ("initiator", event.initiator),
            ("responder", event.responder),
        )
    }
    reason = None if event.reason is None else str(event.reason)
    text = _DROPPED_LINES.get(reason or "", _LINES[event.kind])
    line = text.format(**ends, reason=reason)
    subject = " - ".join(ends.values())
    if event.kind is RelayEventKind.VERIFIED:
        journal.recovered(subject)
        _log.info("%s", line, extra={"event": str(event.kind), "subject": subject})
    else:
        journal.failure(subject, reason or event.kind, line, str(event.kind))
    keys = [key and fingerprint(key) for key in event.keys]
    more = {"keys": keys, "reason": reason, "count": event.count}
    journal.publish(event.kind, None, **ends, **more)
