"""What a relay spends on whom: strangers first wait for strangers.

A signature takes as long to check as a hundred hashes, and anybody can send what looks
as if it had one.  So checks are counted for each message they are about, each pair of
addresses, each source and in all; the first one for a SYN or an answer has a share of
its own, which no number of checks for the same one can use up, and so have those that
renew a session between two keys that a relay knows.
"""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.proto.rates import TokenBucket, bucket_named, bucket_of, network_of
from alpha_trio.proto.relay.verdict import Refused, RelayDrop

# A second, and at once: SYNs of strangers, in all and of one source, behind which there
# may be many; and those of one key that has a session.
SYN_RATE, SYN_BURST = 2_000.0, 2_000.0
SOURCE_SYN_RATE, SOURCE_SYN_BURST = 500.0, 500.0
KNOWN_SYN_RATE, KNOWN_SYN_BURST = 2.0, 8.0

# Signatures: the first for a SYN or an answer, all others of strangers, and renewals.
FIRST_RATE, FIRST_BURST = 1_000.0, 500.0
REST_RATE, REST_BURST = 500.0, 250.0
RENEWAL_RATE, RENEWAL_BURST = 500.0, 250.0
# Of these, for one SYN or answer, two addresses, one source, two keys with a session.
ABOUT_RATE, ABOUT_BURST = 10.0, 12.0
PAIR_RATE, PAIR_BURST = 100.0, 100.0
SOURCE_RATE, SOURCE_BURST = 300.0, 300.0
KNOWN_RATE, KNOWN_BURST = 250.0, 50.0

# Copies that differ from what passed where no signature is: of all handshakes.
SPARE_RATE, SPARE_BURST = 200.0, 100.0

Keys = tuple[bytes, bytes]


@define(eq=False)
class About:
    """What is left for one SYN, or one answer."""

    fresh: bool = True  # nothing was checked for it yet
    rest: TokenBucket = field(factory=lambda: TokenBucket(ABOUT_RATE, ABOUT_BURST))


@define(eq=False)
class _Share:
    """What is set aside for those who have sessions."""

    bucket: TokenBucket
    sessions: int = 0


@define(eq=False)
class Budgets:
    """All of it."""

    _syns: TokenBucket = field(factory=lambda: TokenBucket(SYN_RATE, SYN_BURST))
    _first: TokenBucket = field(factory=lambda: TokenBucket(FIRST_RATE, FIRST_BURST))
    _rest: TokenBucket = field(factory=lambda: TokenBucket(REST_RATE, REST_BURST))
    _renewals: TokenBucket = field(
        factory=lambda: TokenBucket(RENEWAL_RATE, RENEWAL_BURST)
    )
    spare: TokenBucket = field(factory=lambda: TokenBucket(SPARE_RATE, SPARE_BURST))
    """For other versions of what has passed."""
    _syn_sources: dict[str, TokenBucket] = field(factory=dict)
    _sources: dict[str, TokenBucket] = field(factory=dict)
    _pairs: dict[str, TokenBucket] = field(factory=dict)
    _callers: dict[bytes, _Share] = field(factory=dict)  # by key
    _partners: dict[Keys, _Share] = field(factory=dict)

    # -- who has a session -------------------------------------------------------

    def know(self, one: bytes, other: bytes) -> None:
        """They have one session more, which they will want to renew."""
        for key in (one, other):
            share = self._callers.get(key)
            if share is None:
                bucket = TokenBucket(KNOWN_SYN_RATE, KNOWN_SYN_BURST)
                share = self._callers[key] = _Share(bucket)
            share.sessions += 1
        pair = _sorted(one, other)
        if pair not in self._partners:
            self._partners[pair] = _Share(TokenBucket(KNOWN_RATE, KNOWN_BURST))
        self._partners[pair].sessions += 1

    def forget(self, one: bytes, other: bytes) -> None:
        """They have one less."""
        for key in (one, other):
            self._callers[key].sessions -= 1
            if not self._callers[key].sessions:
                del self._callers[key]
        pair = _sorted(one, other)
        self._partners[pair].sessions -= 1
        if not self._partners[pair].sessions:
            del self._partners[pair]

    def are_partners(self, one: bytes, other: bytes) -> bool:
        """Whether the two have a session."""
        return _sorted(one, other) in self._partners

    # -- spending ----------------------------------------------------------------

    def ask_untrusted(self, key: bytes, source: Remote, now: float) -> None:
        """Somebody who says to have this key asks.  Raises Refused if too often."""
        known = self._callers.get(key)
        if known is not None and known.bucket.take(now):
            return
        bucket = bucket_of(self._syn_sources, source, SOURCE_SYN_RATE, SOURCE_SYN_BURST)
        if not bucket.take(now) or not self._syns.take(now):
            raise Refused(RelayDrop.RATE)

    def may_check(
        self, about: About, one: bytes, other: bytes, crossing: Crossing, now: float
    ) -> bool:
        """Whether a signature may be checked in a handshake of these two keys."""
        partners = self._partners.get(_sorted(one, other))
        known = partners is not None and partners.bucket.take(now)
        if known and self._renewals.take(now):
            return True
        if about.fresh and self._pair(crossing).take(now) and self._first.take(now):
            about.fresh = False
            return True
        return about.rest.take(now) and self.may_look(crossing.source, now)

    def may_look(self, source: Remote, now: float) -> bool:
        """Whether something as dear may be done that belongs to nothing known."""
        bucket = bucket_of(self._sources, source, SOURCE_RATE, SOURCE_BURST)
        return bucket.take(now) and self._rest.take(now)

    def _pair(self, crossing: Crossing) -> TokenBucket:
        ends = crossing.source[0], crossing.destination[0]
        name = " ".join(map(network_of, ends))
        return bucket_named(self._pairs, name, PAIR_RATE, PAIR_BURST)


def _sorted(one: bytes, other: bytes) -> Keys:
    return (one, other) if one < other else (other, one)
