"""Hosts in memory: a peer table each, virtual time, and a link that may be hostile.

Every test that runs here also proves, at every single step, that

* packets are conserved: what the TUN hands in is sent, waits, or is counted as
  dropped once; what arrives is delivered or counted as dropped once (the latter
  exactly so in plain mode only: of a message of ALPHA that is refused nobody can say
  whether it had a packet in it);
* connection ids neither leak nor vanish;
* a deadline that was served lies in the future afterwards, at the latest after the
  slices of some longer work.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from heapq import heappop, heappush
from ipaddress import ip_address, ip_network
from itertools import count
from math import inf
from random import Random

from attrs import Factory, define, evolve, field, frozen

from alpha_trio.proto.batch import Deliver, Drop, Event, EventKind, Outbox
from alpha_trio.proto.messages import SUITE_PLAIN, Kind, Syn
from alpha_trio.proto.packets import frames
from alpha_trio.proto.peers import PeerTable, Session, State
from alpha_trio.proto.primitives import Guard, Identity
from alpha_trio.proto.transport.modes import PLAIN_OVERHEAD
from tests.proto.inner import ICMP, Packet, Parsed, parse

PORT = 1234
DELAY = 0.01  # seconds a datagram takes
OUTGOING_DROPS = frozenset(
    {
        Drop.NO_PEER,
        Drop.MULTICAST,
        Drop.NOT_IP,
        Drop.LOOP,
        Drop.TOO_BIG,
        Drop.QUEUE_FULL,
        Drop.NO_AGREEMENT,
        Drop.NO_SESSION,
        Drop.SEND_FAILED,
    }
)
ECHO_REQUEST = 8
MOST_SLICES = 600  # four make a chain, and both ends may have 64 in the making


class Link:
    """A good link: everything arrives, once, in order."""

    def carry(self, datagram: bytes) -> Iterable[tuple[float, bytes]]:
        """What arrives of ``datagram``, each after how many seconds."""
        yield DELAY, datagram


@define
class LosesOne(Link):
    """Loses one datagram, the ``number``-th it sees, counted from 0."""

    number: int
    seen: int = 0

    def carry(self, datagram: bytes) -> Iterable[tuple[float, bytes]]:
        self.seen += 1
        if self.seen - 1 != self.number:
            yield DELAY, datagram


@define
class Hostile(Link):
    """Does everything a network may do, each with the given probability."""

    random: Random
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0  # by up to ``delay`` seconds, so that others overtake it
    delay: float = 2.0
    replay: float = 0.0  # something older comes once more
    truncate: float = 0.0
    flip: float = 0.0  # one bit
    kept: list[bytes] = field(factory=list)

    def carry(self, datagram: bytes) -> Iterable[tuple[float, bytes]]:
        chance, random = self._chance, self.random
        self.kept.append(datagram)
        if chance(self.replay):
            yield DELAY, random.choice(self.kept)
        if chance(self.loss):
            return
        for _ in range(2 if chance(self.duplicate) else 1):
            arriving = datagram
            if chance(self.truncate):
                arriving = arriving[: random.randrange(len(arriving))]
            if chance(self.flip) and arriving:
                arriving = _flipped(arriving, random)
            late = random.uniform(0, self.delay) if chance(self.late) else 0.0
            yield DELAY + late, arriving

    def _chance(self, probability: float) -> bool:
        return self.random.random() < probability


def _flipped(data: bytes, random: Random) -> bytes:
    bit = random.randrange(8 * len(data))
    mangled = bytearray(data)
    mangled[bit // 8] ^= 1 << bit % 8
    return bytes(mangled)


@frozen
class Sent:
    """A datagram as it was put on the link."""

    time: float
    source: str  # host name
    data: bytes

    @property
    def kind(self) -> int:
        return self.data[0]


@define(eq=False)
class Host:
    """One daemon's core, and the kernel around it."""

    name: str
    address: str
    random: Random
    exact: bool  # whether it can be told of a datagram if it has a packet in it
    aliases: list[str] = Factory(list)  # further addresses of it
    inner: str = field(init=False)  # its first address, inside the tunnel as well
    identity: Identity = field(init=False)
    table: PeerTable = field(init=False)
    out: Outbox = Factory(Outbox)
    received: list[Parsed] = Factory(list)  # from the TUN, checksums verified
    garbage: int = 0  # packets from the TUN that the kernel would throw away
    events: list[Event] = Factory(list)
    wakeups: int = 0
    slices: int = 0  # deadlines in a row that were due again at once

    def __attrs_post_init__(self) -> None:
        self.identity = Identity(self.random.randbytes(32))
        self.inner = self.address
        self.restart()

    def restart(self) -> None:
        """Forget everything but the own key, peers too."""
        self.table = PeerTable(PORT, self.identity, self.random.randbytes)

    def source_of(self, local: bytes) -> str:
        """The address that a datagram leaves from."""
        return next((a for a in self.aliases if a.encode() == local), self.address)

    def local_of(self, address: str) -> bytes:
        """How its socket reports what was sent to that address."""
        return address.encode() if address in self.aliases else b"local"

    def syn(self, nonce: bytes = bytes(16), sender_id: int = 7) -> Syn:
        """What the host, or who pretends to be it, could ask for a session with."""
        rest = bytes(32), bytes(16), bytes(16)
        syn = Syn(sender_id, nonce, self.identity.public, *rest, suite=SUITE_PLAIN)
        return guarded(syn)

    def told(self, kind: EventKind) -> int:
        """How often an event happened."""
        return sum(event.kind is kind for event in self.events)

    def payloads(self) -> list[bytes]:
        """What the packets received brought, in order."""
        return [packet.payload for packet in self.received]

    def drops(self) -> Counter[Drop]:
        """All drops, of the table and its peers, by reason."""
        total: Counter[Drop] = Counter()
        for drops in self.all_drops():
            total.update(drops)
        return total

    # -- the invariants

    def check(self, put_in: int, arrived: int, before: tuple[int, int]) -> None:
        """Nothing was lost without a trace, and nothing counted twice."""
        outward, inward = self.ledger()
        assert outward - before[0] == put_in
        if self.exact:
            assert inward - before[1] == arrived
        self.check_ids()

    def check_ids(self) -> None:
        """What a datagram is found by is there, once, and nothing else."""
        ids, bound = [], set()
        for session in self.table.sessions.values():
            binding = _bound(session)
            bound.update(binding)
            ids += binding + _asking(session)
        assert sorted(self.table._by_id) == sorted(ids)
        assert {word & 0xFFFFFFFF for word in self.table._by_word} == bound

    def ledger(self) -> tuple[int, int]:
        """Packets that came from the TUN, and from the link, by where they went."""
        outward = inward = 0
        for drops in self.all_drops():
            for reason, number in drops.items():
                if reason in OUTGOING_DROPS:
                    outward += number
                elif reason not in SENT_IN_VAIN:
                    inward += number
        for session in self.table.sessions.values():
            counters = session.counters
            outward += session.queued + counters.tx_packets
            inward += counters.rx_packets
        for send in self.out.sends:
            outward += send.packets
        for deliver in self.out.delivers:
            if self._from_peer(deliver):
                inward += deliver.packets
        return outward, inward

    def all_drops(self) -> Iterator[dict[Drop, int]]:
        """Those of the table and of each of its peers, by reason."""
        yield self.table.counters.drops
        for session in self.table.sessions.values():
            yield session.counters.drops

    def _from_peer(self, deliver: Deliver) -> bool:
        sessions = self.table.sessions.values()
        return any(deliver.counters is s.counters for s in sessions)


SENT_IN_VAIN = frozenset({Drop.REFUSED, Drop.UNACKNOWLEDGED})
"""Of what was sent, and counted as sent."""


def _asking(session: Session) -> list[int]:
    """Ids of handshakes that are not done yet."""
    negotiation = session.negotiation
    ids = [answer.ack.sender_id for answer in negotiation.answers]
    if negotiation.initiation is not None:
        ids.append(negotiation.initiation.syn.sender_id)
    return ids


def _bound(session: Session) -> list[int]:
    transports = (session.next, session.current, session.previous)
    return [t.local_id for t in transports if t is not None]


def guarded(syn: Syn, key: bytes = bytes(32), psk: bytes | None = None) -> Syn:
    """``syn`` with the MAC of somebody who knows that much of who is asked."""
    return evolve(syn, mac=Guard(key, psk).mac(syn.guarded()))


class Simulation:
    """Hosts and the link between them."""

    def __init__(
        self,
        seed: int = 0,
        link: Link | None = None,
        mode: str = "plain",
        reliable: bool = False,
        early: bool = True,
    ) -> None:
        self.mode, self.reliable, self.early = mode, reliable, early
        self.now = 0.0
        self.random = Random(seed)
        self.link = link or Link()
        self.hosts: dict[str, Host] = {}
        self.sent: list[Sent] = []
        self.classes: list[tuple[int, int]] = []  # kind and traffic class of each send
        self.ecn = 0  # what routers have made of all that arrives
        self._by_address: dict[str, Host] = {}
        self._peers: dict[str, list[tuple[str, float]]] = {}
        self._blocked: set[tuple[str, str]] = set()
        self._arrivals: list[tuple[float, int, tuple[Host, str, str], bytes]] = []
        self._order = count()
        self._numbers = count(1)

    # -- building

    def host(self, name: str, address: str | None = None) -> Host:
        """A new host, without peers."""
        address = address or f"192.168.10.{60 + len(self.hosts)}"
        random = Random(self.random.random())
        host = Host(name, address, random, exact=self.mode == "plain")
        self.hosts[name] = self._by_address[address] = host
        self._peers[name] = []
        return host

    def peer(self, at: str, of: str, keepalive: float = 0.0) -> Session:
        """Tell host ``at`` about host ``of``."""
        self._peers[at].append((of, keepalive))
        return self._add(at, of, keepalive)

    def alias(self, name: str, address: str) -> None:
        """A host has this address, too; what the kernel chooses stays the first."""
        self.hosts[name].aliases.append(address)
        self._by_address[address] = self.hosts[name]

    def renumber(self, name: str, address: str) -> None:
        """A host has this address from now on, and not its first one any more."""
        host = self.hosts[name]
        del self._by_address[host.address]
        host.address = address
        self._by_address[address] = host

    def pair(self, one: str = "vm1", other: str = "vm2") -> tuple[Host, Host]:
        """Two hosts that know each other."""
        hosts = self.host(one), self.host(other)
        self.peer(one, other)
        self.peer(other, one)
        return hosts

    def _add(self, at: str, of: str, keepalive: float) -> Session:
        address = self.hosts[of].inner
        remotes, prefixes = [remote_of(address)], [ip_network(address)]
        return self.hosts[at].table.add(
            of,
            remotes,
            prefixes,
            keepalive,
            mode=self.mode,
            reliable=self.reliable,
            early=self.early,
        )

    def locate(self, at: str, of: str, *addresses: str) -> None:
        """Host ``at`` learns that ``of`` is to be found there."""
        table, session = self.hosts[at].table, self.session(at, of)
        remotes, prefixes = map(remote_of, addresses), table._prefixes_of[of]
        known = session.keepalive, session.negotiation.key, session.mode
        how = {"reliable": session.reliable, "early": session.early}
        table.configure(session, list(remotes), prefixes, *known, **how)

    # -- acting

    def restart(self, name: str) -> None:
        """Kill the daemon and start it again: it knows its peers and nothing else."""
        self.hosts[name].restart()
        for of, keepalive in self._peers[name]:
            self._add(name, of, keepalive)

    def block(self, source: str, destination: str) -> None:
        """From now on nothing of ``source`` reaches ``destination``."""
        self._blocked.add((source, destination))

    def unblock(self) -> None:
        """Let everything through again."""
        self._blocked.clear()

    def send(self, source: str, destination: str, number: int = 1) -> list[bytes]:
        """Hand in ``number`` UDP packets at once; returns their payloads."""
        payloads = [b"packet %d" % next(self._numbers) for _ in range(number)]
        for payload in payloads:
            self.emit(source, self.packet(source, destination, payload=payload).frame())
        return payloads

    def packet(self, source: str, destination: str, **fields) -> Packet:
        """A packet from one host to the other."""
        ends = self.hosts[source].inner, self.hosts[destination].inner
        return Packet(*ends, **fields)

    def emit(self, source: str, frame: memoryview) -> None:
        """The TUN of ``source`` hands a frame in."""
        host = self.hosts[source]
        before = host.ledger()
        host.table.outgoing(frame, self.now, host.out)
        host.table.push(self.now, host.out)
        host.check(frames.packets(frame), 0, before)
        self._execute(host)

    def inject(
        self,
        target: str,
        sender: tuple,
        data: bytes,
        stride: int = 0,
        local: bytes = b"local",
    ) -> None:
        """Somebody's datagrams arrive at ``target``."""
        host = self.hosts[target]
        view = memoryview(bytearray(data))
        stride = stride or len(data)
        before = host.ledger()
        about = sender, local, self.now
        host.table.incoming(view, stride, *about, host.out, self.ecn)
        outward, inward = host.ledger()
        assert outward == before[0]
        if host.exact:
            # Messages without a packet in them may be dropped and counted, too.
            messages = [data[i : i + stride] for i in range(0, len(data), stride)]
            carrying = sum(
                m[0] == Kind.DATA and len(m) > PLAIN_OVERHEAD for m in messages
            )
            assert carrying <= inward - before[1] <= len(messages), host.drops()
        host.check_ids()
        self._execute(host)

    def ping(self, source: str, destination: str, timeout: float = 3.0) -> bool:
        """Whether an echo request is answered, at the latest after ``timeout`` s."""
        number, host = next(self._numbers), self.hosts[source]
        payload = b"ping %d" % number
        echo = self.packet(source, destination, protocol=ICMP, payload=payload)
        self.emit(source, echo.frame())
        end = self.now + timeout
        while self.now < end:
            self.run(min(0.1, end - self.now))
            if payload in host.payloads():
                return True
        return False

    def established(self, *names: str) -> bool:
        """Whether every one of these hosts has a session with every other."""
        return all(
            self.session(one, other).state(self.now) is State.ESTABLISHED
            for one in names
            for other in names
            if one != other
        )

    def session(self, at: str, of: str) -> Session:
        """What host ``at`` has for its peer ``of``."""
        return self.hosts[at].table.sessions[of]

    def messages(self, kind: Kind, source: str | None = None) -> list[Sent]:
        """What was put on the link, by kind and sender."""
        return [
            sent
            for sent in self.sent
            if sent.kind == kind and source in (None, sent.source)
        ]

    # -- time

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (due := self._due()) <= end:
            self.now = max(self.now, due)
            if self._arrivals and self._arrivals[0][0] <= self.now:
                self._arrive()
            else:
                self._serve_deadline()
        self.now = end

    def run_until_idle(self) -> float:
        """Let time pass until nothing is scheduled any more; returns when that was."""
        while (due := self._due()) < inf:
            assert due < self.now + 1000, "it will never be idle"
            self.run(max(due - self.now, 0.0))
        return self.now

    def _due(self) -> float:
        arrival = self._arrivals[0][0] if self._arrivals else inf
        return min(arrival, *(host.table.deadline for host in self.hosts.values()))

    def _serve_deadline(self) -> None:
        host = min(self.hosts.values(), key=lambda h: h.table.deadline)
        host.wakeups += 1
        before = host.ledger()
        host.table.on_deadline(self.now, host.out)
        host.check(0, 0, before)
        if host.table.deadline <= self.now:
            host.slices += 1
            assert host.slices < MOST_SLICES, "a deadline recurs for ever"
        else:
            host.slices = 0
        self._execute(host)

    def _arrive(self) -> None:
        """Hand over the next datagram, with all that the kernel would join to it."""
        now, _, way, data = heappop(self._arrivals)
        stride, last = len(data), len(data)
        while self._arrivals and last == stride:
            when, _, other, more = self._arrivals[0]
            if (when, other) != (now, way) or len(more) > stride:
                break
            heappop(self._arrivals)
            data, last = data + more, len(more)
        if data:
            host, sender, address = way
            local = host.local_of(address)
            self.inject(host.name, remote_of(sender), data, stride, local)

    # -- what the kernel does

    def _execute(self, host: Host) -> None:
        out, host.out = host.out, Outbox()
        for send in out.sends:
            send.counters.tx_packets += send.packets
            send.counters.tx_bytes += send.packet_bytes
            assert sum(map(len, send.parts)) == send.size
            self.classes.append((send.parts[0][0], send.traffic_class))
            for datagram in send.datagrams():
                source = host.source_of(send.local)
                self._carry(host, source, send.remote[0], bytes(datagram))
        for deliver in out.delivers:
            deliver.counters.rx_packets += deliver.packets
            deliver.counters.rx_bytes += deliver.packet_bytes
            packets = frames.finished(deliver.parts)
            assert len(packets) == deliver.packets
            assert sum(map(len, packets)) == deliver.packet_bytes
            for packet in packets:
                self._receive(host, bytes(packet))
        host.events += out.events

    def _carry(self, host: Host, source: str, address: str, data: bytes) -> None:
        self.sent.append(Sent(self.now, host.name, data))
        target = self._by_address.get(address)
        if target is None or (host.name, target.name) in self._blocked:
            return
        for delay, arriving in self.link.carry(data):
            way = target, source, address
            arrival = self.now + delay, next(self._order), way, arriving
            heappush(self._arrivals, arrival)

    def _receive(self, host: Host, packet: bytes) -> None:
        try:
            parsed = parse(packet)
        except ValueError:
            host.garbage += 1
            return
        host.received.append(parsed)
        if parsed.protocol == ICMP and parsed.transport[0] == ECHO_REQUEST:
            ends = parsed.destination, parsed.source
            ports = tuple(int.from_bytes(parsed.transport[i : i + 2]) for i in (4, 6))
            reply = Packet(*ends, ICMP, parsed.payload, ports=ports, echo_type=0)
            self.emit(host.name, reply.frame())


@cache
def remote_of(address: str) -> tuple:
    """The UDP address of the daemon there, as a socket reports it."""
    if ip_address(address).version == 4:
        return address, PORT
    return address, PORT, 0, 0
