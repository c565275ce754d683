"""Two hosts with two relays between them, and a hand on each of the three links.

vm1 --- link 0 --- relay 0 --- link 1 --- relay 1 --- link 2 --- vm2
"""

from collections.abc import Callable
from heapq import heappush
from random import Random

from attrs import define, field

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.messages import CONTROL, HEADER_SIZE, S2_SIZE, Control, Kind
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.relay import Relay, RelayPolicy, Unseen
from alpha_trio.proto.traces import Report, Role, packed_address
from tests.proto.simulation import DELAY, Sent, Simulation, remote_of

HOPS = 64  # hop limit of what a host sends
ALLOWED = RelayPolicy(unseen=Unseen.DROP, trace=True)
SILENT = RelayPolicy(unseen=Unseen.DROP)


def carries_packet(datagram: bytes) -> bool:
    """Whether it is an S2, and not one of a control message."""
    return datagram[0] == Kind.S2 and not datagram[HEADER_SIZE + 2] & CONTROL


def is_trace(datagram: bytes) -> bool:
    """Whether it is the S2 of a TRACE."""
    control = datagram[0] == Kind.S2 and datagram[HEADER_SIZE + 2] & CONTROL
    return bool(control and datagram[S2_SIZE] == Control.TRACE)


@define(eq=False)
class Deed:
    """What is done to every ``every``-th packet on a link."""

    what: Callable[[bytes], list[bytes]]
    every: int = 5
    seen: int = 0
    done: int = 0

    def __call__(self, datagram: bytes) -> list[bytes]:
        if not carries_packet(datagram):
            return [datagram]
        self.seen += 1
        if self.seen % self.every:
            return [datagram]
        self.done += 1
        return self.what(datagram)


def lose(_datagram):
    return []


def alter(datagram):
    return [datagram[:-1] + bytes([datagram[-1] ^ 1])]


def inject(datagram):
    return [*alter(datagram), datagram]


def repeat(datagram):
    return [datagram, datagram]


@define(eq=False)
class Node:
    """A relay of the path."""

    identity: Identity
    relay: Relay
    address: str
    delivers: bool = True  # its REPORTs; False: they get lost
    reports: list[bytes] = field(factory=list)  # that it made


class TracedPath(Simulation):
    """A simulation with relays, whose every link may do something."""

    def __init__(self, mode="adaptive", policies=(ALLOWED, ALLOWED), **more) -> None:
        super().__init__(mode=mode, **more)
        self.nodes = [
            Node(
                Identity(self.random.randbytes(32)),
                Relay(policy, 0.0, Random(0).randbytes),
                f"192.168.{11 + number}.1",
            )
            for number, policy in enumerate(policies)
        ]
        self.deeds: dict[int, Callable[[bytes], list[bytes]]] = {}
        self.one, self.two = self.pair()

    @property
    def last(self) -> int:
        """The place of vm2; that of vm1 is 0."""
        return len(self.nodes) + 1

    def _carry(self, host, source, address, data):
        self.sent.append(Sent(self.now, host.name, data))
        at, step = (0, 1) if host is self.one else (self.last, -1)
        self._travel(data, source, address, at, step)

    def _travel(self, data, source, target, at, step):
        deed = self.deeds.get(min(at, at + step)) if step == 1 else None
        for datagram in [data] if deed is None else deed(data):
            if 0 < at + step < self.last:
                self._cross(datagram, source, target, at + step, step)
            else:
                host = self._by_address[target]
                when, way = self.now + DELAY, (host, source, target)
                heappush(self._arrivals, (when, next(self._order), way, datagram))

    def _cross(self, data, source, target, at, step):
        node, view = self.nodes[at - 1], memoryview(bytearray(data))
        crossing = Crossing(remote_of(source), remote_of(target))
        passes = node.relay.transit(view, len(data), crossing, self.now)
        traced, node.relay.traced = node.relay.traced, []
        if passes:
            self._travel(bytes(view), source, target, at, step)
        for trace in traced:
            report = Report(
                trace.receiver_id,
                trace.nonce,
                node.identity.public,
                Role.RELAY,
                trace.forth,
                trace.back,
                packed_address(node.address),
                HOPS - (at if step == 1 else self.last - at),
            ).signed(node.identity)
            node.reports.append(report)
            if node.delivers:
                self._travel(report, target, trace.tracer[0], at, -step)

    # -- for tests

    def connect(self) -> None:
        """A session."""
        assert self.ping("vm1", "vm2")

    def talk(self, seconds: float) -> None:
        """Packets for some time, one way and the other."""
        end = self.now + seconds
        while self.now < end:
            self.send("vm1", "vm2", 3)
            self.send("vm2", "vm1", 1)
            self.run(0.01)

    def begin_trace(self, seconds: float = 0.0):
        """A trace from vm1 to vm2; nothing has been sent yet."""
        session = self.session("vm1", "vm2")
        return self.one.table.trace(session, seconds, self.now)

    def trace(self, seconds: float = 0.0):
        """A trace until it is done, if it compares while packets go on."""
        if not seconds:
            self.run(0.5)  # what is under way arrives
        trace = self.begin_trace(seconds)
        while not trace.done:
            self.talk(0.1) if seconds else self.run(0.1)
        return trace

    @property
    def keys(self) -> list[bytes]:
        """Of all nodes, in their order."""
        relays = [node.identity.public for node in self.nodes]
        return [self.one.identity.public, *relays, self.two.identity.public]
