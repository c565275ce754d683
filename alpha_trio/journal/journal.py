"""What happened, for people: one log line and one monitor event for each.

The wording of the handshake lines is relied on by scripts.  A failure that repeats
is logged once; when it ends, a line says how often it happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from alpha_trio.journal.hub import EventHub
from alpha_trio.journal.lines import About
from alpha_trio.proto.batch import Event, EventKind

_log = logging.getLogger("alpha_trio")

_FAILURES_KEPT = 4096

_LINES = {
    EventKind.SYN_SENT: "Initiating handshake with {host}, sending SYN.",
    EventKind.ACK_RECEIVED: (
        "Got ACK packet. Handshake with {host} is done! Sending ACKACK."
    ),
    EventKind.ESTABLISHED: "Got ACKACK packet. Handshake with {host} is done!",
    EventKind.PINNED: "Pinned the key of {peer} ({host}): from now on it must have it.",
    EventKind.PATH_MTU: (
        "The path to {peer} ({host}) takes inner packets of {count} bytes now."
    ),
    EventKind.TRACED: "Traced the way to {peer} ({host}).",
    EventKind.EXPIRED: "Forgetting the session with {peer}: it is too old.",
}

_FAILURES = {
    # None if the handshake comes to its end; but anyone can begin one as the peer.
    EventKind.SYN_RECEIVED: (
        "Got SYN packet. {host} has initiated a handshake! Sending ACK."
    ),
    EventKind.GAVE_UP: "No answer from {peer} ({host}). New traffic will try again.",
    EventKind.SILENT: (
        "Nothing heard from {peer} ({host}) although we send. Asking it anew."
    ),
    EventKind.KNOCK: (
        "Unknown host {host} asks for a handshake and gets no answer. "
        "'alpha-trio status' tells its key and how to accept it."
    ),
    EventKind.WRONG_KEY: (
        "REFUSED: {host} shows another key than {peer} must have. "
        "'alpha-trio status {peer}' tells both keys and how to accept the new one."
    ),
    EventKind.WRONG_MODE: (
        "{peer} ({host}) wants another mode than we do: set the same on both sides."
    ),
    EventKind.MOVED: "{peer} is at {host} now.",
    EventKind.TWINS: (
        "Two hosts have the key of {peer}, one of them at {host}: each needs one of "
        "its own. 'alpha-trio status' says where they are."
    ),
    EventKind.LOOP: (
        "Our own datagrams are led back into the tunnel to {peer} ({host}): look at "
        "rules before ours ('ip rule') and at routes set by hand."
    ),
    EventKind.WRONG_ADDRESS: (
        "Dropping packets of {peer}: they come from {host}, which is not its endpoint."
    ),
}

_ORDINARY = frozenset({EventKind.SYN_RECEIVED, EventKind.MOVED})
"""Told once like failures, since anybody can make them come often, and are none."""

_SUCCESSES = frozenset({EventKind.ACK_RECEIVED, EventKind.ESTABLISHED})


class Journal:
    """Turns events of the core and of the daemon into log lines and monitor events."""

    def __init__(self) -> None:
        self.hub = EventHub()
        self.listeners: list[Callable[[Event], None]] = []  # told before all others
        self.troubles: dict[str, str] = {}  # of the host, by subject, while they last
        self._failures: dict[tuple[str, str], int] = {}  # (subject, what) -> times

    def record(self, event: Event) -> None:
        """Log and publish one event of the protocol core."""
        for listener in self.listeners:
            listener(event)
        host = event.remote[0] if event.remote else "unknown address"
        text = {"peer": event.peer, "host": host, "count": event.count}
        about = About(str(event.kind), event.peer, host, event.count)
        if event.kind in _FAILURES:
            line = _FAILURES[event.kind].format(**text)
            level = logging.INFO if event.kind in _ORDINARY else logging.WARNING
            self._fail(event.peer or host, event.kind, line, about, level)
        elif event.kind is EventKind.SYN_SENT and event.count > 1:
            extra = about.extra
            _log.debug(
                "Repeating SYN to %s (attempt %d).", host, event.count, extra=extra
            )
        else:
            _log.info("%s", _LINES[event.kind].format(**text), extra=about.extra)
        if event.kind in _SUCCESSES and event.peer:
            self.recovered(event.peer)
        self.publish(event.kind, event.peer, address=host, count=event.count)

    def failure(
        self, subject: str, what: str, line: str, event: str | None = None
    ) -> None:
        """Log ``line`` the first time ``what`` befalls ``subject``, then only count.

        ``event`` is the name of the line; without it, ``what`` up to a bracket.
        """
        name = event or what.partition(" (")[0].replace(" ", "-")
        about = About(name, subject=subject)
        self._fail(subject, what, line, about, logging.WARNING)

    def _fail(
        self, subject: str, what: str, line: str, about: About, level: int
    ) -> None:
        times = self._failures.get((subject, what), 0)
        if not times:
            _log.log(level, "%s", line, extra=about.extra)
            if len(self._failures) >= _FAILURES_KEPT:
                self._failures.clear()  # strangers choose their addresses freely
        self._failures[subject, what] = times + 1

    def trouble(self, subject: str, sentence: str) -> None:
        """Log once what is wrong with the host; ``health`` has it until it recovers."""
        self.troubles[subject] = sentence
        line = f"{_capital(sentence)}. Trying on."
        self.failure(subject, "a refusal", line, "refused")

    def complain(self, subject: str, sentence: str, event: str) -> None:
        """The same about what is not tried again by itself."""
        self.troubles[subject] = sentence
        self.failure(subject, event, f"{_capital(sentence)}.", event)

    def recovered(self, subject: str) -> None:
        """Close the failures of ``subject``: from now on they are news again."""
        if self.troubles.pop(subject, None) is not None:
            extra = About("recovered", subject=subject).extra
            _log.info("%s: works again.", _capital(subject), extra=extra)
        for key in [key for key in self._failures if key[0] == subject]:
            times = self._failures.pop(key)
            if times > 1:
                _log.info("%s: %s happened %d times until now.", *key, times)

    def woke(self, seconds: float) -> None:
        """The machine was suspended for so long."""
        _log.info(
            "This host was suspended for %d s. Asking peers anew.", round(seconds)
        )
        self.publish("woke", None, seconds=round(seconds, 3))

    def publish(self, event: str, peer: str | None, **details: object) -> None:
        """Tell ``monitor``; times are seconds since the epoch."""
        self.hub.publish(
            {"event": str(event), "peer": peer, "time": time.time(), **details}
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
