"""What the benchmark has between its hosts: links with a delay, and with loss."""

from __future__ import annotations

from attrs import frozen

from tools.lab import Host, Lab

# A TCP stream takes some tens of round trips to reach its speed.
_ROUND_TRIPS = 100
_LEAST_SECONDS = 3


@frozen
class Link:
    """All that is between the hosts, routers included."""

    round_trip_ms: float = 0
    loss_percent: float = 0  # of the packets in either direction

    def __str__(self) -> str:
        """Name it as in the tables and in the JSON."""
        lost = f", {self.loss_percent:g} % lost" if self.loss_percent else ""
        return f"{self.round_trip_ms:g} ms{lost}"

    @property
    def loss(self) -> float:
        """Share of the packets that get lost, 0 to 1."""
        return self.loss_percent / 100

    @property
    def seconds(self) -> int:
        """How long a TCP run takes that shows what the link can carry."""
        return max(_LEAST_SECONDS, round(_ROUND_TRIPS * self.round_trip_ms / 1000))

    def lay(self, lab: Lab, routers: int) -> list[Host]:
        """Add two hosts to a lab, and so many routers between them."""
        hops = routers + 1
        delay_ms = self.round_trip_ms / 2 / hops
        loss = 1 - (1 - self.loss) ** (1 / hops)
        if routers:
            return lab.chain(routers, delay_ms=delay_ms, loss=loss)
        return lab.lan(2, delay_ms=delay_ms, loss=loss)


PROFILES = {
    "lan": [Link()],
    "metro": [Link(10)],
    "wan": [Link(100)],
    "lossy": [Link(delay, loss) for delay in (10, 100) for loss in (0, 0.1, 1)],
}


def describe(profile: str) -> str:
    """Say what a profile has, for those who choose one by ``--help``."""
    return f"{profile} ({'; '.join(map(str, PROFILES[profile]))})"
