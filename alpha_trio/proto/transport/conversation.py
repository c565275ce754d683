"""Which packets of TCP may go early: those of a conversation, not those of a transfer.

TCP takes the shortest round trip that a connection ever had for that of the path.  If
its first request took half a round trip, and the bulk behind it takes one and a half,
as rounds do, then CUBIC sees a queue where there is none and ends its slow start with
the first 16 packets (HyStart), and BBR reckons with half of what the path holds.  On a
path of 100 ms a stream of CUBIC that began with one early packet got 4 Mbit/s in its
first eight seconds, and 320 without.

So a connection keeps one round trip as long as it may become a transfer: data goes in
rounds, bare acknowledgments go early, which together are two; and so that it begins
with the same one, the SYN goes early, but its answer in a round.  A connection that has
long sent small packets one at a time, or has a traffic class for those who wait for
each packet, is a conversation, and its packets go early.
"""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.packets import TCP, Role, role_of
from alpha_trio.proto.transport.queue import Waiting

PROVEN = 16
"""Small packets in a row, each alone, that make a conversation: an SSH client sends
some twelve until it has a shell, or a file to copy."""

NOTICED = 0.004
"""Round-trip time, s, below which TCP does not mind: HyStart lets so much pass."""

MOST_CONNECTIONS = 256  # that are remembered; of more, those heard of last

# Differentiated services (RFC 4594) of those who wait for each packet: CS2 and above.
# Below are bulk (CS1, AF1x) and the rest, but for "low delay" of the TOS before (RFC
# 1349), which older SSH clients set.
_LEAST_PROMPT, _LOW_DELAY = 16, 4


@define(eq=False)
class Conversations:
    """What the TCP connections of one direction have sent of late."""

    _alone: dict[bytes, int] = field(factory=dict)  # packets in a row, by flow

    def may_go_early(self, waiting: Waiting, room: int, *, queued: bool) -> bool:
        """Whether this frame may go so; to be asked once for each.

        On a way where the least round trip there was is NOTICED.  ``room`` is that of
        an S1, bytes; ``queued``: more of its flow waits.
        """
        if not waiting.flow or waiting.flow[0] != TCP:
            return True
        if waiting.headers:
            return self._is_bulk(waiting.flow)
        role = role_of(waiting.head, waiting.size)
        if role is not Role.DATA:
            return role is not Role.SYN_ACK
        if waiting.early_size > room:
            return self._is_bulk(waiting.flow)
        dscp = waiting.traffic_class >> 2
        prompt = dscp >= _LEAST_PROMPT or dscp == _LOW_DELAY
        return self._count(waiting.flow, not queued) > PROVEN or prompt

    def _count(self, flow: bytes, more: int) -> int:
        count = self._alone.pop(flow, 0) + more
        if len(self._alone) >= MOST_CONNECTIONS:
            del self._alone[next(iter(self._alone))]
        self._alone[flow] = count
        return count

    def _is_bulk(self, flow: bytes) -> bool:
        self._alone.pop(flow, None)
        return False
