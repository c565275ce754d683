"""How often something may happen: token buckets, for all or one for each source."""

from __future__ import annotations

from ipaddress import IPv6Address

from attrs import define, field

from alpha_trio.proto.batch import Remote

ADDRESSES_KEPT = 4096


@define(eq=False)
class TokenBucket:
    """``rate`` events a second on average, ``burst`` at once."""

    rate: float
    burst: float
    _tokens: float = field(init=False)
    _filled: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst

    def take(self, now: float, events: float = 1) -> bool:
        """Whether one more event, or so many, are within the rate."""
        tokens = self._tokens
        if now > self._filled:
            tokens += (now - self._filled) * self.rate
            if tokens > self.burst:
                tokens = self.burst
        self._filled = now
        enough = tokens >= events
        self._tokens = tokens - events if enough else tokens
        return enough

    def give_back(self, events: float) -> None:
        """They were not what the rate is for."""
        self._tokens = min(self.burst, self._tokens + events)


def bucket_of(
    buckets: dict[str, TokenBucket], remote: Remote, rate: float, burst: float
) -> TokenBucket:
    """The bucket of an address."""
    return bucket_named(buckets, network_of(remote[0]), rate, burst)


def bucket_named(
    buckets: dict[str, TokenBucket], name: str, rate: float, burst: float
) -> TokenBucket:
    """The bucket of a name, made if there is none; all go when there are many."""
    bucket = buckets.get(name)
    if bucket is None:
        if len(buckets) >= ADDRESSES_KEPT:
            buckets.clear()
        bucket = buckets[name] = TokenBucket(rate, burst)
    return bucket


def network_of(host: str) -> str:
    """IPv4: the address.  IPv6: its /64, which is what one customer has."""
    if ":" not in host:
        return host
    return IPv6Address(host).packed[:8].hex()
