"""The document of ``trace --json``: the nodes on a path, and what each counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpha_trio.proto.primitives import fingerprint, key_text
from alpha_trio.proto.traces import Counts, Hop, Role, Segment, Trace

SCHEMA = 1


def trace_document(
    trace: Trace, peer: str, endpoint: str, names: Mapping[bytes, str]
) -> dict[str, Any]:
    """Everything in it is text, numbers, lists and maps.

    ``endpoint``: the peer's address; ``names``: those of known keys.
    """
    hops, segments = trace.hops(), trace.segments()
    return {
        "schema": SCHEMA,
        "peer": peer,
        "seconds": trace.seconds,
        "hops": [_hop(hop, endpoint, names) for hop in hops],
        "segments": [segment and _segment(segment) for segment in segments],
    }


def _hop(hop: Hop, endpoint: str, names: Mapping[bytes, str]) -> dict[str, Any]:
    report = hop.report
    role, address, hop_limit = "here", None, None
    if report is not None:
        role = "peer" if report.role is Role.END else "relay"
        address = str(report.place) if report.place else endpoint
        hop_limit = report.hops or None
    return {
        "role": role,
        "name": names.get(hop.key),
        "address": address,
        "key": key_text(hop.key),
        "fingerprint": fingerprint(hop.key),
        "hop_limit": hop_limit,
        "forth": _counts(hop.forth),
        "back": _counts(hop.back),
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return {"passed": counts.passed, "drops": counts.drops}


def _segment(segment: Segment) -> dict[str, Any]:
    seconds = segment.seconds
    return {
        "seconds": None if seconds is None else round(seconds, 3),
        "packets": segment.packets,
        "lost": segment.lost,
        "altered": segment.altered,
        "injected": segment.injected,
        "repeated": segment.repeated,
    }
