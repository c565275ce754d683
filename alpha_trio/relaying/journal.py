"""What a relay tells people: one log line and one monitor event for each."""

from __future__ import annotations

import logging

from alpha_trio.journal import Journal, address
from alpha_trio.proto.primitives import fingerprint
from alpha_trio.proto.relay import RelayEvent, RelayEventKind

_log = logging.getLogger("alpha_trio")

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
    line = _LINES[event.kind].format(**ends, reason=reason)
    subject = " - ".join(ends.values())
    if event.kind is RelayEventKind.VERIFIED:
        journal.recovered(subject)
        _log.info("%s", line)
    else:
        journal.failure(subject, reason or event.kind, line)
    keys = [key and fingerprint(key) for key in event.keys]
    more = {"keys": keys, "reason": reason, "count": event.count}
    journal.publish(event.kind, None, **ends, **more)
