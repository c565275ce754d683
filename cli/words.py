"""Sentences, sizes and times for people."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


SENTENCES = {
    "idle": "at {endpoint}, once there is a packet for it",
    "resolving": "looking up the address of {endpoint}",
    "handshaking": "asking {endpoint}, no answer yet",
    "established": "at {endpoint}, last heard {heard}",
    "unreachable": "no answer from {endpoint}; new traffic tries again",
    "key-mismatch": "{endpoint} shows another key than the one known: not trusted",
}


def reached(peer: Document) -> str:
    """One sentence: how the peer is reached, or why it is not."""
    sentence = SENTENCES.get(peer["state"], "at {endpoint}").format(
        endpoint=peer["endpoint"] or peer["configured_endpoint"] or peer["name"],
        heard=ago(peer["latest_receive_seconds"]),
    )
    return f"{sentence} ({peer['reason']})" if peer["reason"] else sentence


def event_line(event: Document) -> str:
    """One event, as one line without colour."""
    known = ("event", "peer", "time")
    more = [f"{key}={value}" for key, value in event.items() if key not in known]
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    return " ".join([clock, event["event"], *filter(None, [event["peer"]]), *more])


def duration(seconds: float) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    if minutes:
        return f"{minutes:.0f} min {seconds % 60 // 1:.0f} s"
    return f"{seconds:.1f} s"


def ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def amount(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    if count < 1000:
        return f"{count} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # what rounds to 1000.0 belongs to the next unit
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
