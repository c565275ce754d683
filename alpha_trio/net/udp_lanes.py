"""The UDP sockets of several processes that share one port.

Each process has one of either family, by which it sends, and receives what has one of
its connection ids.  All else, which anybody can send, comes to one more: that of the
first process.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from attrs import define, field

from alpha_trio.errors import StartError
from alpha_trio.net.udp import (
    HANDSHAKE_BYTES,
    MOST_STEERED,
    NO_FAMILY,
    UdpSocket,
    no_family,
)
from alpha_trio.settings import Offload


@define(eq=False)
class UdpLanes:
    """What ``Udp`` is for one process, for ``lanes`` of them."""

    lanes: int
    sockets: dict[int, list[UdpSocket]] = field(factory=dict)
    """By length of an address tuple, 2 or 4: one for each lane, and the last one."""
    _first_byte: int = 0  # of what goes to the last one in any case

    @classmethod
    def open(
        cls,
        lanes: int,
        port: int,
        disabled: Collection[Offload],
        mark: int,
        dscp: int,
        handshake: int,
    ) -> UdpLanes:
        """Bind IPv4 and IPv6, as far as the host has them; see ``Udp.open``.

        Raises StartError if we may not have the port, or the kernel cannot tell what is
        for which process.
        """
        opened = cls(lanes, first_byte=handshake)
        try:
            for family, length in ((socket.AF_INET, 2), (socket.AF_INET6, 4)):
                bind = partial(UdpSocket.open, family, port, disabled, mark, dscp=dscp)
                try:
                    bind().close()  # nobody else has the port, even one who shares it
                except OSError as error:
                    if error.errno not in NO_FAMILY:
                        raise
                    no_family(family, error)
                    continue
                for _ in range(lanes + 1):
                    opened.sockets.setdefault(length, []).append(bind(shared=True))
                opened.sockets[length][-1].keep(HANDSHAKE_BYTES)
            opened._refuse_unparted()
        except BaseException:
            opened.close()
            raise
        return opened

    def _refuse_unparted(self) -> None:
        if not self.sockets:
            raise StartError("this host has neither IPv4 nor IPv6 sockets")
        if not self.steer({}):
            raise StartError(
                "this kernel cannot part datagrams between processes: set cores = 1"
            )

    def steer(self, lane_of: Mapping[int, int]) -> bool:
        """Part what has these connection ids among the lanes; False: impossible.

        If there are more than MOST_STEERED, all but SYNs, by the ids' remainders.
        """
        known = lane_of if len(lane_of) <= MOST_STEERED else None
        every = [s[0].part(self._first_byte, known, self.lanes) for s in self.by_family]
        return all(every)

    @property
    def by_family(self) -> Collection[list[UdpSocket]]:
        """The sockets of each family: one for each lane, and the last one."""
        return self.sockets.values()

    def has_family(self, version: int) -> bool:
        """Whether the host has IPv4 (4) or IPv6 (6)."""
        return (2 if version == 4 else 4) in self.sockets

    @property
    def offloads(self) -> tuple[str, ...]:
        """The batch facilities in use, for ``status``."""
        return next(iter(self)).offloads

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel dropped instead of having us receive them."""
        return sum(sock.dropped for sock in self)

    def __iter__(self) -> Iterator[UdpSocket]:
        return (sock for sockets in self.by_family for sock in sockets)

    def close(self) -> None:
        """Close all sockets.  May be called twice."""
        for sock in self:
            sock.close()
