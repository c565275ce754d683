"""Sessions by the network that began them: who has the most makes room.

If the session that is idle longest went, whoever makes many would drive out those of
others, which are quiet for a while.  So the network of the initiator that has the most
loses its idlest one; who fills a relay fills his own share.
"""

from __future__ import annotations

from attrs import define, field

from alpha_trio.proto.relay.session import Session


@define(eq=False)
class Network:
    """The sessions that one network began, in about the order they were heard of."""

    name: str
    placed: float  # when its idlest was heard of, when it last got its place in a row
    held: int = 0  # bytes, when that was last looked at
    row: dict[Session, None] = field(factory=dict)

    def idlest(self, least: float) -> Session:
        """The session idle longest, of those with more than ``least`` bytes if any.

        Who was heard of since he got his place in the row gets one at its end.
        """
        row = self.row
        for session in (*row, *row):
            if session.heard != session.placed:
                del row[session]
                session.placed = session.heard
                row[session] = None
            elif session.memory > least:
                return session
        return next(iter(row))

    def weigh(self) -> int:
        """Bytes of all its sessions."""
        self.held = sum(session.memory for session in self.row)
        return self.held


@define(eq=False)
class Crowd:
    """All sessions of a kind."""

    networks: dict[str, Network] = field(factory=dict)
    _sizes: list[dict[Network, None]] = field(factory=lambda: [{}])
    """Networks by how many sessions they have, so that the largest is at hand."""
    count: int = 0

    def add(self, session: Session) -> None:
        """It is new."""
        name = session.network
        network = self.networks.get(name)
        if network is None:
            network = self.networks[name] = Network(name, session.heard)
        self._move(network, 1)
        network.row[session] = None

    def remove(self, session: Session) -> None:
        """It is over."""
        network = self.networks[session.network]
        self._move(network, -1)
        del network.row[session]
        if not network.row:
            del self.networks[session.network]

    def _move(self, network: Network, by: int) -> None:
        size = len(network.row)
        self.count += by
        self._sizes[size].pop(network, None)
        while len(self._sizes) <= size + by:
            self._sizes.append({})
        if size + by:
            self._sizes[size + by][network] = None
        while len(self._sizes) > 1 and not self._sizes[-1]:
            self._sizes.pop()

    def largest(self) -> Network:
        """Of those with the most sessions one whose idlest is idle longest.

        There must be one.
        """
        row = self._sizes[-1]
        for network in (*row, *row):
            heard = network.idlest(0.0).heard
            if heard == network.placed:
                return network
            del row[network]
            network.placed = heard
            row[network] = None
        return next(iter(row))
