"""Which peer owns an inner address."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from attrs import define, field

from alpha_trio.proto.peers.session import Session

_CACHED_LOOKUPS = 4096

IPNetwork = IPv4Network | IPv6Network


@define(eq=False)
class Prefixes:
    """Longest prefix match from packed addresses (4 or 16 bytes) to sessions."""

    levels: list[tuple[int, int, dict[int, Session]]] = field(factory=list)
    """(address bytes, prefix length, network number -> session), longest first."""
    cache: dict[bytes, Session | None] = field(factory=dict)

    def rebuild(self, owners: Iterable[tuple[Session, Iterable[IPNetwork]]]) -> None:
        """Replace the whole content."""
        levels: dict[tuple[int, int], dict[int, Session]] = {}
        for session, prefixes in owners:
            for prefix in prefixes:
                size = prefix.max_prefixlen // 8
                numbers = levels.setdefault((size, prefix.prefixlen), {})
                shift = prefix.max_prefixlen - prefix.prefixlen
                numbers[int(prefix.network_address) >> shift] = session
        self.levels = [
            (*key, levels[key]) for key in sorted(levels, key=lambda k: -k[1])
        ]
        self.cache.clear()

    def owner(self, address: bytes) -> Session | None:
        """The session with the longest prefix that holds ``address``."""
        try:
            return self.cache[address]  # hot path
        except KeyError:
            pass
        session = self._search(address)
        if len(self.cache) >= _CACHED_LOOKUPS:
            self.cache.clear()
        self.cache[address] = session
        return session

    def _search(self, address: bytes) -> Session | None:
        number, bits = int.from_bytes(address), 8 * len(address)
        for size, length, numbers in self.levels:
            if size == len(address):
                session = numbers.get(number >> (bits - length))
                if session is not None:
                    return session
        return None
