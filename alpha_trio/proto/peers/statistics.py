"""How a peer stands, as the control plane is told."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen

from alpha_trio.proto.batch import Counters, Remote
from alpha_trio.proto.peers.pathmtu import Source


class State(StrEnum):
    """How a peer stands, as ``status`` shows it."""

    IDLE = "idle"
    RESOLVING = "resolving"
    HANDSHAKING = "handshaking"
    ESTABLISHED = "established"
    SILENT = "silent"  # there is a session, we send, and hear nothing
    UNREACHABLE = "unreachable"
    KEY_MISMATCH = "key-mismatch"


@frozen
class Statistics:
    """A snapshot for the control plane.  Ages are in seconds."""

    state: State
    reason: str | None
    remote: Remote | None
    handshake_age: float | None
    receive_age: float | None
    rtt: float | None
    queued: int
    counters: Counters
    key: bytes | None
    offered_key: bytes | None
    rounds: dict[str, int]
    associations: int
    elements_left: int
    mtu: int  # inner, bytes
    mtu_source: Source
    loss: float | None  # share of S1 and A1 exchanges of late; None: too few to tell
    twins: tuple[Remote, Remote] | None = None  # where two hosts have its key
