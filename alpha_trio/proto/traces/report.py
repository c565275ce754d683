"""REPORT: what a node counted of a session, signed by it, for the end that asked.

An end asks by TRACE, a control message: authentic, and readable by every relay.  Each
relay that is allowed to, and the peer, answer with one datagram::

    end                  relay                   relay                    peer
     | S2 with TRACE       |                       |                       |
     |-------------------->|---------------------->|---------------------->|
     |              REPORT |                REPORT |                REPORT |
     |<--------------------|<----------------------|<----------------------|

All counters are in datagrams of kind S2, and hold for everything up to the TRACE.
Where datagrams do not overtake each other, what was sent before the TRACE has passed a
node before it or never will; so the counters of two nodes can be compared to the unit.

Who answers is bounded: by the end's authentic TRACE, by its size, which is at least
that of a REPORT, and by REPORT_RATE.  The answer goes to where the session's end is.
Relays let REPORTs pass only for a TRACE they have just seen, and few of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct

from attrs import evolve, field, frozen

from alpha_trio.proto.batch import Buffer, Drop
from alpha_trio.proto.messages import (
    CONTROL_MESSAGE,
    S2_SIZE,
    SIGNATURE_SIZE,
    VERSION,
    BadPacket,
    Control,
    Kind,
)
from alpha_trio.proto.primitives import Identity, verify_untrusted
from alpha_trio.proto.rates import TokenBucket

# Of a node for one session and direction: a second, and at once.
REPORT_RATE, REPORT_BURST = 2.0, 4.0
TRACE_LIFETIME = 5.0  # s in which REPORTs for a TRACE are let pass and taken
MAX_HOPS = 32  # REPORTs for one TRACE


_LABEL = b"REPORT"
_MOST = 0xFFFF_FFFF
_NO_ADDRESS = bytes(16)

# header | nonce of the TRACE | identity | address | hop limit, role, zero
# | two times: passed, forged, replayed, unsolicited, other | signature
_REPORT = Struct("!BBHI 16s 32s 16s BB2x QIIII QIIII 64s")
REPORT_SIZE = _REPORT.size


class Role(IntEnum):
    """What a node is to the session it reports of."""

    RELAY = 1
    END = 2


@frozen
class Counts:
    """What a node saw of one direction of a session: datagrams, mostly S2s."""

    passed: int = 0  # S2s sent, passed on, or taken
    forged: int = 0  # S2s that are not what their sender signed
    replayed: int = 0  # S2s seen before
    unsolicited: int = 0  # S2s nobody agreed to, or too late
    other: int = 0  # S1, A1 and A2 that did not fit

    @classmethod
    def of(cls, passed: int, drops: Mapping[Drop, int]) -> Counts:
        """From an end's drops by reason."""
        forged, replayed, unsolicited = (drops.get(reason, 0) for reason in _NAMED)
        other = sum(drops.values()) - forged - replayed - unsolicited
        return cls(passed, forged, replayed, unsolicited, other)

    @property
    def drops(self) -> dict[str, int]:
        """The drops by reason, without those that did not occur."""
        named = zip((*_NAMED, "other"), self._fields[1:], strict=True)
        return {str(reason): count for reason, count in named if count}

    def since(self, before: Counts) -> Counts:
        """What has come to it; a counter that fell counts as one that stands still."""
        pairs = zip(self._fields, before._fields, strict=True)
        return Counts(*(max(0, now - then) for now, then in pairs))

    @property
    def _fields(self) -> tuple[int, int, int, int, int]:
        return self.passed, self.forged, self.replayed, self.unsolicited, self.other

    def packed(self) -> tuple[int, ...]:
        """As REPORT has it: a counter of drops that would not fit stays at its end."""
        return self.passed, *(min(count, _MOST) for count in self._fields[1:])


_NAMED = (Drop.FORGED, Drop.REPLAYED, Drop.UNSOLICITED)


@frozen
class Report:
    """What one node says of a session."""

    receiver_id: int
    nonce: bytes  # of the TRACE it answers
    key: bytes  # Ed25519 public key of the node
    role: Role
    forth: Counts  # the way the TRACE went
    back: Counts
    address: bytes = _NO_ADDRESS  # IPv6 or IPv4-mapped; zero: the session's endpoint
    hops: int = 0  # hop limit of the TRACE's datagram as it arrived; zero: not known
    signature: bytes = bytes(SIGNATURE_SIZE)
    arrived: bytes = field(default=b"", eq=False)  # the datagram it was in

    def pack(self) -> bytes:
        """REPORT_SIZE bytes."""
        return _REPORT.pack(
            Kind.REPORT,
            VERSION,
            0,
            self.receiver_id,
            self.nonce,
            self.key,
            self.address,
            self.hops,
            self.role,
            *self.forth.packed(),
            *self.back.packed(),
            self.signature,
        )

    def signed(self, identity: Identity) -> bytes:
        """The same, with the signature of ``identity``, whose key this bears."""
        signature = identity.sign(_LABEL, self.pack()[:-SIGNATURE_SIZE])
        return evolve(self, signature=signature).pack()

    def verify_untrusted(self) -> None:
        """Raises BadPacket unless the node with this key signed it as it arrived."""
        text = self.arrived[:-SIGNATURE_SIZE]
        verify_untrusted(self.key, self.signature, _LABEL, text)

    @property
    def place(self) -> IPv4Address | IPv6Address | None:
        """The node's own address; None if it is that of the session's endpoint."""
        if self.address == _NO_ADDRESS:
            return None
        address = IPv6Address(self.address)
        return address.ipv4_mapped or address


def parse_report_untrusted(datagram: Buffer) -> Report:
    """Raises BadPacket if ``datagram`` is not exactly a REPORT; proves nothing yet."""
    if len(datagram) != REPORT_SIZE:
        raise BadPacket
    kind, version, suite, receiver_id, *rest = _REPORT.unpack(datagram)
    if (kind, version, suite) != (Kind.REPORT, VERSION, 0):
        raise BadPacket
    nonce, key, address, hops, role, *counts, signature = rest
    if role not in tuple(Role):
        raise BadPacket
    forth, back = Counts(*counts[:5]), Counts(*counts[5:])
    fields = nonce, key, Role(role), forth, back, address, hops, signature
    return Report(receiver_id, *fields, bytes(datagram))


def packed_address(host: str) -> bytes:
    """An address as REPORT has it: 16 bytes, IPv4 mapped into IPv6 (RFC 4291)."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def report_rate() -> TokenBucket:
    """How many TRACEs of one session and direction are answered."""
    return TokenBucket(REPORT_RATE, REPORT_BURST)


def trace_message(nonce: bytes) -> bytes:
    """A TRACE that makes an S2 no shorter than a REPORT."""
    trace = CONTROL_MESSAGE.pack(Control.TRACE, 0, nonce)
    padding = CONTROL_MESSAGE.pack(Control.PADDING, 0, b"")
    room = REPORT_SIZE - S2_SIZE - len(trace)
    return trace + padding * -(-room // len(padding))
