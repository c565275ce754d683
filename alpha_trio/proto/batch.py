"""The words between core and edge: what to send, what to deliver, what happened.

The core never does anything; it writes into an :class:`Outbox` what should be
done, and the daemon does it.  Everything the kernel hands over or takes comes in
runs of equal-sized datagrams, so a run is the unit here and no object exists per
packet.

Buffers in an Outbox are *borrowed*: they are views of the TUN or UDP receive
buffer and hold only until the daemon has flushed, which it does before it reads
again.  Whoever wants to keep bytes longer copies them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from attrs import Factory, define, field, frozen

Buffer = bytes | bytearray | memoryview
Remote = tuple[Any, ...]
"""A peer's UDP address as the socket gives it: (host, port) or, for IPv6,
(host, port, flow, scope)."""


class Place(NamedTuple):
    """Where a peer is, and which of our addresses it knows us by there."""

    remote: Remote
    local: bytes = b""  # as the socket reported it; b"": whichever the kernel chooses


@define(eq=False)
class Crossing:
    """How datagrams cross a relay: those of one flow alike."""

    source: Remote
    destination: Remote
    interface: int = 0  # index of the link they came in by; 0: not known
    origin: tuple[str, int] = field(init=False)  # address and port, of the source
    goal: tuple[str, int] = field(init=False)  # likewise, of the destination

    def __attrs_post_init__(self) -> None:
        self.origin = self.source[0], self.source[1]
        self.goal = self.destination[0], self.destination[1]


# One UDP_SEGMENT send: 64 datagrams are what every kernel with the option takes
# (128 since Linux 6.9).  IPv4 leaves 65,507 bytes in a UDP datagram, but with IP and
# Ethernet headers a batch must also stay within the 65,536 bytes a device takes as
# one: a larger one is cut up in the kernel and arrives as single datagrams.
MAX_DATAGRAMS = 64
MAX_SEND_BYTES = 65_000


class Drop(StrEnum):
    """Why a packet was not passed on.  Each lost packet counts under exactly one."""

    # From the TUN, on the way out
    NO_PEER = "no-peer"  # no peer owns the destination
    MULTICAST = "multicast"  # multicast and broadcast stay on the link
    NOT_IP = "not-ip"  # neither IPv4 nor IPv6, or cut short
    LOOP = "loop"  # our own outer datagram came back to us
    TOO_BIG = "too-big"  # larger than the path to the peer takes
    QUEUE_FULL = "queue-full"  # waited for the handshake, pushed out by newer ones
    NO_AGREEMENT = "no-agreement"  # the peer did not answer the packet's S1
    NO_SESSION = "no-session"  # waited for a handshake that was given up
    SEND_FAILED = "send-failed"  # the kernel refused the datagram
    # Of reliable rounds: sent, and counted as such
    REFUSED = "refused"  # the peer got the packet and says that it does not take it
    UNACKNOWLEDGED = "unacknowledged"  # the peer never said whether it got the packet
    # From the network, on the way in
    NO_ROOM = "no-room"  # the kernel had no more room for what we have not received yet
    MALFORMED = "malformed"  # no message of ours, or cut short
    VERSION = "version"  # another version of the protocol
    STRANGER = "stranger"  # a handshake from no configured peer
    UNKNOWN_ID = "unknown-id"  # for a connection we do not have
    WRONG_ADDRESS = "wrong-address"  # right connection, another sender address
    BAD_PROOF = "bad-proof"  # a handshake message that does not fit its handshake
    BAD_MAC = "bad-mac"  # a SYN of who does not know our key, or the pre-shared one
    WRONG_KEY = "wrong-key"  # a handshake with another key than the peer's
    WRONG_MODE = "wrong-mode"  # a handshake for a mode we do not want with this peer
    RATE = "rate"  # more handshakes than we answer
    BAD_REPORT = "bad-report"  # an answer to no trace of ours, or not signed
    BAD_ROUND = "bad-round"  # S1, A1 or A2 that fits no open round
    UNSOLICITED = "unsolicited"  # S2 without a pre-signature we agreed to
    FORGED = "forged"  # S2 that does not match its pre-signature
    REPLAYED = "replayed"  # seen before, or too old to tell
    WRONG_SOURCE = "wrong-source"  # inner source outside the peer's prefixes
    CONGESTED = "congested"  # marked by a router, but its ends do not know of marks
    TUN_REFUSED = "tun-refused"  # the kernel did not take the packet


class EventKind(StrEnum):
    """What the log and ``monitor`` tell about."""

    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ACK_RECEIVED = "ack-received"
    ESTABLISHED = "established"  # as responder, by the ACKACK
    GAVE_UP = "gave-up"
    SILENT = "silent"  # nothing heard for 15 s although we sent
    EXPIRED = "expired"
    PINNED = "pinned"  # the key of a peer that had none yet
    WRONG_KEY = "wrong-key"
    WRONG_MODE = "wrong-mode"
    KNOCK = "knock"
    WRONG_ADDRESS = "wrong-address"
    PATH_MTU = "path-mtu"  # inner packets may have ``count`` bytes now
    MOVED = "moved"  # the peer has another address now, or knows us by another one
    TWINS = "twins"  # two hosts have the peer's key
    LOOP = "loop"  # our own datagram came back to us
    TRACED = "traced"  # what a trace has found is there to be taken


@frozen
class Event:
    """Something a person may want to know, at the moment it happened."""

    kind: EventKind
    peer: str | None = None
    remote: Remote | None = None
    count: int = 1


@define(eq=False)
class Counters:
    """Inner IP packets and bytes of one peer, and what was dropped.

    A super-packet counts as its segments, so that tx here equals rx at the other
    end when nothing is lost.  Bytes are those of the inner IP packets.
    """

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    reliable_rounds: int = 0  # ours, of packets
    early_sent: int = 0  # of the packets: those that went in an S1
    early_received: int = 0  # likewise
    split_packets: int = 0  # sent in fragments, as the path takes less than IPv6 needs
    drops: dict[Drop, int] = Factory(dict)

    def drop(self, reason: Drop, packets: int = 1) -> None:
        """Count ``packets`` as lost for ``reason``."""
        self.drops[reason] = self.drops.get(reason, 0) + packets


@define(eq=False)
class Send:
    """Datagrams for one UDP_SEGMENT send: all ``stride`` bytes but the last."""

    remote: Remote
    local: bytes  # our address to send from, as the socket reported it; b"": any
    counters: Counters
    stride: int  # bytes
    traffic_class: int = 0  # of the outer header: DSCP and ECN
    parts: list[Buffer] = Factory(list)  # each of one or more whole datagrams
    count: int = 0  # datagrams
    size: int = 0  # bytes in all
    packets: int = 0  # inner packets
    packet_bytes: int = 0  # inner bytes
    closed: bool = False  # a shorter datagram ended it

    def datagrams(self) -> list[Buffer]:
        """One by one, for a kernel without UDP_SEGMENT."""
        step = self.stride
        return [
            part[i : i + step] for part in self.parts for i in range(0, len(part), step)
        ]


@define(eq=False)
class Deliver:
    """One write to the TUN: virtio header and headers, then payload pieces."""

    parts: list[Buffer]
    counters: Counters
    packets: int
    packet_bytes: int


@define(eq=False)
class Outbox:
    """What the core wants done, in order."""

    sends: list[Send] = Factory(list)
    delivers: list[Deliver] = Factory(list)
    events: list[Event] = Factory(list)

    def send(
        self,
        remote: Remote,
        local: bytes,
        counters: Counters,
        run: Buffer,
        stride: int,
        around: int | None = None,
        traffic_class: int = 0,
    ) -> None:
        """Add the datagrams in ``run``, ``stride`` bytes each but the last.

        They become as few sends as the kernel allows, joined to the one before them
        where it can take both.  ``around`` is how many bytes of each do not belong to
        its inner packet; None: they carry none that is to be counted.
        ``traffic_class`` is what their outer headers say beside what the socket does.
        """
        # At least one: a datagram no send takes is for the kernel to refuse.
        most = stride * max(1, min(MAX_DATAGRAMS, MAX_SEND_BYTES // stride))
        if len(run) <= most:
            self._join(remote, local, counters, run, stride, around, traffic_class)
            return
        for at in range(0, len(run), most):
            piece = run[at : at + most]
            self._join(remote, local, counters, piece, stride, around, traffic_class)

    def _join(
        self,
        remote: Remote,
        local: bytes,
        counters: Counters,
        piece: Buffer,
        stride: int,
        around: int | None,
        traffic_class: int,
    ) -> None:
        # hot path: once per super-packet, or per small packet
        size = len(piece)
        count = -(-size // stride)
        if count == 1:
            stride = size
        last = size - (count - 1) * stride
        send = self.sends[-1] if self.sends else None
        if (
            send is None
            or send.closed
            or send.count + count > MAX_DATAGRAMS
            or send.size + size > MAX_SEND_BYTES
            or not (send.stride == stride or (count == 1 and last < send.stride))
            or send.counters is not counters
            or send.remote != remote
            or send.local != local
            or send.traffic_class != traffic_class
        ):
            send = Send(remote, local, counters, stride, traffic_class)
            self.sends.append(send)
        send.parts.append(piece)
        send.count += count
        send.size += size
        if around is not None:
            send.packets += count
            send.packet_bytes += size - count * around
        send.closed = last < send.stride

    def deliver(
        self, parts: list[Buffer], counters: Counters, packets: int, packet_bytes: int
    ) -> None:
        """Add one packet or super-packet for the TUN."""
        self.delivers.append(Deliver(parts, counters, packets, packet_bytes))

    def tell(
        self,
        kind: EventKind,
        peer: str | None = None,
        remote: Remote | None = None,
        count: int = 1,
    ) -> None:
        """Add an event for the log and for ``monitor``."""
        self.events.append(Event(kind, peer, remote, count))
