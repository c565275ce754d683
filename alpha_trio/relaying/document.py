"""The relay's part of the document of ``status --json``."""

from __future__ import annotations

from typing import Any

from alpha_trio.journal import address
from alpha_trio.proto.primitives import fingerprint, key_text
from alpha_trio.proto.relay import (
    RelayEnd,
    RelaySession,
)
from alpha_trio.settings import RelaySettings


def policy_document(settings: RelaySettings) -> dict[str, Any]:
    return {
        "fail": str(settings.fail),
        "unseen": str(settings.unseen),
        "require_a1": settings.require_a1,
        "consent": str(settings.consent),
        "keys": list(settings.keys),
        "s1_rate": settings.s1_rate,
        "sessions": settings.sessions,
        "memory_bytes": settings.memory,
        "roots": settings.roots,
        "trace": settings.trace,
        "early": str(settings.early),
    }


def session_document(session: RelaySession) -> dict[str, Any]:
    return {
        "initiator": _end_document(session.initiator),
        "responder": _end_document(session.responder),
        "state": "verified" if session.verified else "unverified",
        "age_seconds": round(session.age, 3),
        "idle_seconds": round(session.idle, 3),
        "memory_bytes": session.memory,
    }


def _end_document(end: RelayEnd) -> dict[str, Any]:
    """One end, with what was sent towards it."""
    return {
        "address": None if end.address is None else address(end.address),
        "key": None if end.key is None else key_text(end.key),
        "fingerprint": None if end.key is None else fingerprint(end.key),
        "forwarded_packets": end.forwarded,
        "forwarded_bytes": end.forwarded_bytes,
        "associations": end.associations,
        "drops": {str(why): count for why, count in end.drops.items() if count},
    }
