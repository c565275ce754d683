"""What both halves of an ALPHA session share: keys, message heads, tags."""

from __future__ import annotations

from struct import Struct
from typing import Any

from attrs import define, field

from alpha_trio.proto.batch import Drop, Outbox, Place
from alpha_trio.proto.engine import Kernel, chosen
from alpha_trio.proto.messages import (
    LEAST_ROOTS,
    MAX_ROOTS,
    ROUND,
    TAG_SIZE,
    BadPacket,
    Kind,
    Syn,
    first_word,
)
from alpha_trio.proto.primitives import Identity, Keystream, RandomBytes, Tagger
from alpha_trio.proto.transport.transport import Way

ROUND_KINDS = (Kind.S1, Kind.A1, Kind.S2, Kind.A2)

_WORD = Struct("!Q")
_RENEWAL = b"renewal"  # no message begins so: what it is part of is no tag


@define(eq=False)
class Line(Way):
    """One session's way to the peer, used by its Sender and its Receiver."""

    random: RandomBytes
    datagram_size: int  # largest UDP payload the path takes, bytes
    identity: Identity  # ours
    drops: dict[Drop, int] = field(factory=dict)  # of this session alone
    kernel: Kernel = field(factory=lambda: chosen().kernel)
    sealing: Any = field(init=False)  # the kernel's cipher for what we send
    opening: Any = field(init=False)  # and for what comes
    encrypt: Keystream = field(init=False)
    decrypt: Keystream = field(init=False)
    _tag_out: Tagger = field(init=False)
    _tag_in: Tagger = field(init=False)
    _words: dict[Kind, bytes] = field(init=False)
    incoming_words: dict[Kind, bytes] = field(init=False)
    most_roots: int = field(init=False)  # of our S1s, as relays on the way want it

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        agreement, keys = self.agreement, self.agreement.keys
        self.sealing = self.kernel.cipher(keys.send_cipher)
        self.opening = self.kernel.cipher(keys.receive_cipher)
        self.encrypt = Keystream(keys.send_cipher)
        self.decrypt = Keystream(keys.receive_cipher)
        self._tag_out = Tagger(keys.send_tag)
        self._tag_in = Tagger(keys.receive_tag)
        self._words = _first_words(agreement.remote_id)
        self.incoming_words = _first_words(agreement.local_id)
        limit = agreement.theirs.limit
        self.most_roots = max(limit, LEAST_ROOTS) if limit else MAX_ROOTS

    def drop(self, reason: Drop, datagrams: int = 1) -> None:
        """Count datagrams of the peer's as dropped, for it and for the session."""
        self.counters.drop(reason, datagrams)
        self.drops[reason] = self.drops.get(reason, 0) + datagrams

    def head(
        self, kind: Kind, association: int, shape: int, number: int, element: bytes
    ) -> bytes:
        """The first ROUND_HEAD_SIZE bytes of a round's message to the peer."""
        return self._words[kind] + ROUND.pack(association, shape, 0, number, element)

    def tagged(self, message: bytes) -> bytes:
        """``message`` with the tag only the two ends can make and check."""
        return message + self._tag_out.tag(message)

    def untagged_untrusted(self, datagram: bytes) -> bytes:
        """``datagram`` without its tag.  Raises BadPacket if the tag is wrong."""
        message, tag = datagram[:-TAG_SIZE], datagram[-TAG_SIZE:]
        if not self._tag_in.fits(message, tag):
            raise BadPacket
        return message

    def renewal(self, said: bytes) -> bytes:
        """MAC_SIZE bytes that show, in our SYN that says ``said``, who asks.

        Only the two ends can make them, so a SYN that renews a session needs no cookie,
        and is not kept out by a flood of SYNs in our name.
        """
        return self._tag_out.tag(_RENEWAL + said)

    def is_renewal(self, syn: Syn) -> bool:
        """Whether the peer made ``syn``, to renew this session."""
        return self._tag_in.fits(_RENEWAL + syn.said(), syn.renewal)

    def send(
        self,
        message: bytes,
        out: Outbox,
        place: Place | None = None,
        traffic_class: int = 0,
    ) -> None:
        """Send one message other than an S2, to ``place`` if given."""
        remote, local = place or (self.remote, self.local)
        shown = traffic_class & self.visible
        out.send(
            remote, local, self.counters, message, len(message), traffic_class=shown
        )


def _first_words(receiver_id: int) -> dict[Kind, bytes]:
    return {kind: _WORD.pack(first_word(kind, receiver_id)) for kind in ROUND_KINDS}
