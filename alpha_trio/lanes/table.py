"""A lane's peer table: it has all peers, and carries the packets of its own."""

from __future__ import annotations

from attrs import define, field

from alpha_trio.lanes.inbox import By, Handed, Inbox
from alpha_trio.proto.batch import Drop, Outbox, Remote
from alpha_trio.proto.messages import ID_SIZE, BadPacket, Kind, parse_syn_untrusted
from alpha_trio.proto.packets import frames
from alpha_trio.proto.peers import PeerTable, Session

_SESSION_KINDS = frozenset({Kind.DATA, Kind.S1, Kind.A1, Kind.S2, Kind.A2})


@define(eq=False, kw_only=True)
class LaneTable(PeerTable):
    """The peer table of lane ``lane`` of ``lanes``.

    Its connection ids leave this remainder, so that each shows whose it is.  Sessions
    of peers ``elsewhere`` are there to be found by key, address and prefix; nothing is
    ever sent in them.
    """

    lane: int
    lanes: int
    inbox: Inbox
    elsewhere: dict[Session, int] = field(factory=dict)  # their lanes
    _handed_by: By = By.NOBODY  # what is being taken

    def _some_id(self) -> int:
        chosen = super()._some_id()
        chosen -= chosen % self.lanes - self.lane
        return chosen if chosen < 1 << 8 * ID_SIZE else 0

    def outgoing(self, frame: memoryview, now: float, out: Outbox) -> None:
        """Take a frame, or hand it over to the lane of its peer."""
        lane = self._lane_of_frame(frame)
        if lane is None:
            super().outgoing(frame, now, out)
        elif not self.inbox.hand_frame(lane, frame):
            self.counters.drop(Drop.QUEUE_FULL, frames.packets(frame))

    def _lane_of_frame(self, frame: memoryview) -> int | None:
        packet = frame[frames.VIRTIO_SIZE :]
        if len(packet) < 20:
            return None
        destination = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        session = self.owner(bytes(destination))
        return None if session is None else self.elsewhere.get(session)

    def take_frame(self, frame: memoryview, now: float, out: Outbox) -> None:
        """Take a frame that another lane has handed over."""
        if self._lane_of_frame(frame) is None:
            super().outgoing(frame, now, out)
        else:  # the peer has just been removed, and is there again
            self.counters.drop(Drop.NO_PEER, frames.packets(frame))

    def _control_untrusted(
        self, datagram: bytes, remote: Remote, local: bytes, now: float, out: Outbox
    ) -> None:
        """Take what belongs to no session here, or hand it over.

        First to the lane of its connection id, as the kernel may not know of a session
        that has just begun.  What is of none there either shows that the peer has one
        that we have lost: it goes to the lane of the peer, as a SYN does at once.
        """
        by, lane = self._lane_of_untrusted(datagram, remote)
        if lane is None:
            super()._control_untrusted(datagram, remote, local, now, out)
        elif by <= self._handed_by or not self.inbox.hand_datagram(
            lane, by, datagram, remote, local
        ):
            self.counters.drop(Drop.RATE)  # no room, or the peers are being changed

    def take_datagram(self, handed: Handed, now: float, out: Outbox) -> None:
        """Take a datagram that another lane has handed over."""
        self._handed_by, data = handed.by, handed.data
        self.incoming(data, len(data), handed.remote, handed.local, now, out)
        self._handed_by = By.NOBODY

    def _lane_of_untrusted(
        self, datagram: bytes, remote: Remote
    ) -> tuple[By, int | None]:
        """Which other lane it is for, as far as it says, and why; None: for none."""
        if datagram[0] == Kind.SYN:
            try:
                session = self._peer_of(parse_syn_untrusted(datagram), remote)
            except BadPacket:
                return By.PEER, None
        else:
            lane = int.from_bytes(datagram[4:8]) % self.lanes
            if lane != self.lane and self._handed_by < By.PEER:
                return By.ID, lane
            of_session = datagram[0] in _SESSION_KINDS
            session = self._peer_at(remote) if of_session else None
        return By.PEER, None if session is None else self.elsewhere.get(session)
