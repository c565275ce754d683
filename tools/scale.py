"""Many sessions in one daemon: how long they take, and the memory of each.

    vm1: the daemon --- link --- vm2: an address for each peer, and in this process
                                      a peer table behind each address

With ``--relay`` the sessions cross a relay on the link, and it is measured instead.

``docs/benchmark.md`` says what the figures mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from ipaddress import IPv4Address, ip_address, ip_network
from os import urandom
from random import Random
from threading import Thread
from typing import Self

import trio
from attrs import define, field
from rich.console import Console

from alpha_trio.net.host import boottime
from alpha_trio.net.udp import UdpSocket
from alpha_trio.proto.batch import Crossing, Outbox
from alpha_trio.proto.handshake.exchange import HalfOpen, Initiation
from alpha_trio.proto.messages import SUITE_ALPHA
from alpha_trio.proto.peers import PeerTable
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.relay import Relay, RelayPolicy
from tools import measure
from tools.bench import number
from tools.contenders import next_hop
from tools.daemons import Daemon, peers_config
from tools.fuzz_world import World, packet
from tools.lab import Host, Lab, LabError, run_tool, wait_until
from tools.measure import Figures

PORT = 1234
NETWORK = "10.0.0.0/8"  # where the addresses of the peers are
FIRST = IPv4Address("10.0.0.1")
TIMEOUT = 60.0  # s for all sessions
_APART = 0.02  # s between two handshakes: a relay checks so many of one address
_LATER = 30.0  # s after which nothing of a handshake is kept
IDLE_SECONDS = 10
_LOOK_EVERY = 0.02  # s between two looks at the deadlines of all tables
_ASK_AGAIN = 1.0  # s after which a program repeats what was not answered
_IDLE_PAIRS = 50
_RELAYED = 300  # sessions
_INITIATOR, _RESPONDER = ("10.0.0.1", 1234), ("10.0.0.2", 1234)
_LOAD = 150  # super-packets, more than a session holds
_SMALL_LOAD = 30_000  # small packets, likewise
_LOADED_ROUNDS = 15  # until all associations are there
_ROUND_LOAD = 10  # super-packets, more than fit into the rounds at once
_MTU = 1_400  # bytes
_SMALL_PACKET = [bytes(64)]
_SUPER_PACKET = [bytes(1_360)] * 44


@define(eq=False)
class Crowd:
    """Peers on one host, each with its own address, key and peer table.

    They share a socket, which tells to which of them a datagram goes, and a thread.
    """

    host: Host
    count: int
    of: str  # address of the daemon they are peers of
    _tables: dict[bytes, PeerTable] = field(init=False)  # by address as UDP tells it
    _thread: Thread = field(init=False)
    _socket: UdpSocket = field(init=False)
    _token: trio.lowlevel.TrioToken | None = None
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self._tables = {
            _pktinfo(address): self._table(address) for address in self.addresses
        }
        self._thread = Thread(target=trio.run, args=(self._serve,))

    @property
    def addresses(self) -> list[str]:
        """Of all of them."""
        return [str(FIRST + number) for number in range(self.count)]

    @property
    def without(self) -> dict[str, PeerTable]:
        """Those that have no session with the daemon yet, by address."""
        return {
            str(ip_address(local[4:8])): table
            for local, table in self._tables.items()
            if table.sessions["hub"].current is None
        }

    def __enter__(self) -> Self:
        batch = "".join(f"addr add {a}/32 dev lo\n" for a in self.addresses)
        self.host.run("ip", "-batch", "-", stdin=batch)
        self._socket = self.host.call(lambda: UdpSocket.open(socket.AF_INET, PORT))
        self._thread.start()
        wait_until(lambda: self._token, "the crowd")
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._scope.cancel)
        self._thread.join()
        self._socket.close()
        self.host.run("ip", "addr", "flush", "dev", "lo", "to", NETWORK)

    def speak(self) -> None:
        """Each without a session has a packet for the daemon's host, and asks."""
        self._call(self._speak)

    def _call(self, function: Callable[[], object]) -> None:
        trio.from_thread.run_sync(function, trio_token=self._token)

    def _table(self, address: str) -> PeerTable:
        # The same key each time: the daemon has pinned it.
        identity = Identity(sha256(address.encode()).digest())
        table = PeerTable(PORT, identity, urandom)
        table.add("hub", [(self.of, PORT)], [ip_network(self.of)])
        return table

    def _speak(self) -> None:
        for address, table in self.without.items():
            frame = memoryview(packet(address, self.of, [b"one packet"]))
            out = Outbox()
            table.outgoing(frame, boottime(), out)
            table.push(boottime(), out)
            self._send(_pktinfo(address), out)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive)
                nursery.start_soon(self._look_at_deadlines)

    async def _receive(self) -> None:
        while True:
            await self._socket.wait_readable()
            while (received := self._socket.receive_nowait()) is not None:
                view, stride, remote, local, _ = received
                table, out = self._tables.get(local), Outbox()
                if table is not None:
                    table.incoming(view, stride, remote, local, boottime(), out)
                    self._send(local, out)

    async def _look_at_deadlines(self) -> None:
        while True:
            await trio.sleep(_LOOK_EVERY)
            now = boottime()
            for local, table in self._tables.items():
                if table.deadline <= now:
                    out = Outbox()
                    table.on_deadline(now, out)
                    self._send(local, out)

    def _send(self, local: bytes, out: Outbox) -> None:
        for send in out.sends:
            send.local = local
            self._socket.send_nowait(send)  # what does not fit is lost, as on a link


def _pktinfo(address: str) -> bytes:
    """An address of ours as the UDP socket tells and takes it."""
    return bytes(4) + ip_address(address).packed + bytes(4)


@contextmanager
def meeting(vm1: Host, vm2: Host, count: int) -> Iterator[tuple[Daemon, Crowd]]:
    """A daemon on vm1 with so many peers on vm2, of which none has a session yet.

    Routers between the two must know the way to NETWORK.
    """
    peers = Crowd(vm2, count, vm1.address)
    config = peers_config({f"p{n}": at for n, at in enumerate(peers.addresses)})
    with ExitStack() as stack:
        via = next_hop(vm1, vm2.address)
        vm1.run("ip", "route", "replace", NETWORK, "via", via)
        crowd = stack.enter_context(peers)
        yield stack.enter_context(Daemon(vm1, config=config)), crowd


def call_all(daemon: Daemon, crowd: Crowd) -> None:
    """Let the daemon's host send a packet to each peer that has no session."""
    with daemon.host.socket() as sock:
        for address in crowd.without:
            sock.sendto(b"one packet", (address, 9))


def establish(daemon: Daemon, crowd: Crowd, begin: Callable[[], None]) -> float:
    """Seconds until all have a session, both ends say; ``begin`` is tried again."""
    start = again = time.monotonic()

    def done() -> bool:
        nonlocal again
        if time.monotonic() >= again:
            begin()
            again = time.monotonic() + _ASK_AGAIN
        return not crowd.without

    wait_until(done, f"{crowd.count} sessions", TIMEOUT)
    wait_until(lambda: established(daemon) == crowd.count, "the daemon's view", TIMEOUT)
    return time.monotonic() - start


def established(daemon: Daemon) -> int:
    """How many sessions the daemon has."""
    states = [peer["state"] for peer in daemon.status()["peers"]]
    return states.count("established")


def measure_daemon(vm1: Host, vm2: Host, count: int) -> Figures:
    """Figures of a daemon that gets so many sessions, called by either end."""
    figures: Figures = {}
    with meeting(vm1, vm2, count) as (daemon, crowd):
        pids = [daemon.pid]
        before = measure.resident_mb(pids)
        begin = lambda: call_all(daemon, crowd)  # noqa: E731
        figures["called_by_daemon_s"] = establish(daemon, crowd, begin)
        after = measure.resident_mb(pids)
        figures |= {"rss_before_mb": before, "rss_after_mb": after}
        figures["rss_session_kb"] = (after - before) * 1e3 / count
    with meeting(vm1, vm2, count) as (daemon, crowd):
        figures["called_by_peers_s"] = establish(daemon, crowd, crowd.speak)
    return figures


def measure_idle(vm1: Host, vm2: Host) -> Figures:
    """Memory and wake-ups of a daemon without peers, and with two idle sessions."""
    figures: Figures = {}
    for count in (0, 2):
        with meeting(vm1, vm2, count) as (daemon, crowd):
            establish(daemon, crowd, crowd.speak)
            time.sleep(2)  # what the last packets leave to be done
            wakeups = measure.wake_ups(daemon.pid)
            time.sleep(IDLE_SECONDS)
            figures[f"wakeups_{count}_peers"] = measure.wake_ups(daemon.pid) - wakeups
            figures[f"rss_{count}_peers_mb"] = measure.resident_mb([daemon.pid])
    return figures


# -- memory of the core alone ---------------------------------------------------------


def measure_core() -> Figures:
    """Traced memory of one end of a session, idle and with all it may hold, in kB."""
    idle = _growth(lambda: [_idle(seed) for seed in range(_IDLE_PAIRS)])
    loaded = _growth(lambda: _loaded(_idle(0), _SUPER_PACKET, _LOAD))
    return {
        "core_idle_kb": idle / 1e3 / (2 * _IDLE_PAIRS),
        "core_loaded_kb": loaded / 1e3 / 2,
    }


def measure_small_packets() -> Figures:
    """The same of a session that holds as many small packets as it may."""
    loaded = _growth(lambda: _loaded(_idle(0), _SMALL_PACKET, _SMALL_LOAD))
    return {"core_small_kb": loaded / 1e3 / 2}


def _growth(make: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        made = make()
        gc.collect()  # while what was made is still there
        after, _ = tracemalloc.get_traced_memory()
        del made
    finally:
        tracemalloc.stop()
    return after - before


def _idle(seed: int) -> World:
    world = World("adaptive", Random(seed))
    for end in world.ends:
        end.session.mtu = _MTU
    world.meet(8)
    _forget_mail(world)
    return world


def _loaded(world: World, payloads: Sequence[bytes], times: int) -> World:
    """Both ends have used their associations, and now hear no answers any more."""
    here, there = (end.address for end in world.ends)
    full = [
        memoryview(packet(*addresses, payloads))
        for addresses in ((here, there), (there, here))
    ]
    world.authentic = False  # nobody keeps account of these packets
    for _ in range(_LOADED_ROUNDS):
        _hand_in(world, full, _ROUND_LOAD)
        for end in (*world.ends, *world.ends):
            world.carry(end)
        world.wait(0.01)
    _hand_in(world, full, times)
    _forget_mail(world)
    return world


def _hand_in(world: World, full: Sequence[memoryview], times: int) -> None:
    for _ in range(times):
        for end, frame in zip(world.ends, full, strict=True):
            # Each is read into bytes of its own, which are kept as long as it waits.
            own = memoryview(bytes(frame))
            end.table.outgoing(own, world.now, end.out)
            end.table.push(world.now, end.out)
            world.wait(0.0)


def _forget_mail(world: World) -> None:
    world.old.clear()
    for end in world.ends:
        end.mail.clear()
        end.out = Outbox()


# -- a relay on the way ---------------------------------------------------------------


def measure_relay(vm1: Host, r1: Host, vm2: Host, count: int) -> Figures:
    """Figures of a relay that so many sessions of one daemon cross."""
    r1.run("ip", "route", "replace", NETWORK, "via", vm2.address)
    with Daemon(r1, "--relay") as relay, meeting(vm1, vm2, count) as (daemon, crowd):
        before = measure.resident_mb([relay.pid])
        took = establish(daemon, crowd, crowd.speak)
        wait_until(lambda: _sessions(relay) >= count, "the relay's view", TIMEOUT)
        after = measure.resident_mb([relay.pid])
        document = relay.status()["relay"]
    return {
        "relay_sessions_s": took,
        "relay_rss_before_mb": before,
        "relay_rss_after_mb": after,
        "relay_rss_session_kb": (after - before) * 1e3 / count,
        "relay_own_session_kb": document["memory_bytes"] / 1e3 / document["sessions"],
    }


def _sessions(relay: Daemon) -> int:
    count: int = relay.status()["relay"]["sessions"]
    return count


def measure_relay_core() -> Figures:
    """Traced memory of an idle session in the verdict engine, in kB."""
    handshakes = [_handshake(Random(seed)) for seed in range(_RELAYED)]
    grown = _growth(lambda: _seen_by_relay(handshakes))
    return {"relay_core_idle_kb": grown / 1e3 / _RELAYED}


def _handshake(random: Random) -> tuple[bytes, bytes, bytes]:
    one, other = Identity(random.randbytes(32)), Identity(random.randbytes(32))
    ids = [random.randrange(1, 1 << 32) for _ in range(2)]
    asking = Initiation.begin(one, SUITE_ALPHA, ids[0], random.randbytes, 0.0)
    there = ids[1], random.randbytes, _INITIATOR, b"", 0.0
    ack = HalfOpen.answer(asking.syn, other, *there).ack
    ackack = asking.finish_untrusted(ack, one)
    return asking.variant(), ack.pack(), ackack.pack()


def _seen_by_relay(handshakes: list[tuple[bytes, bytes, bytes]]) -> Relay:
    relay, now = Relay(RelayPolicy(), 0.0, urandom), 0.0
    for syn, ack, ackack in handshakes:
        now += _APART
        for message, back in ((syn, False), (ack, True), (ackack, False)):
            ends = (_RESPONDER, _INITIATOR) if back else (_INITIATOR, _RESPONDER)
            view = memoryview(bytearray(message))
            if not relay.transit(view, len(message), Crossing(*ends), now):
                raise LabError(f"the relay refuses it: {relay.counters.drops}")
    relay.forget_idle(now + _LATER)
    if len(relay.sessions(now)) != len(handshakes):
        raise LabError("the relay has lost a session")
    relay.events.clear()  # the daemon takes them at once
    return relay


ROWS = {
    "called_by_daemon_s": "all sessions, asked for by the daemon, s",
    "called_by_peers_s": "all sessions, asked for by the peers, s",
    "rss_before_mb": "daemon with the peers, no session, MB",
    "rss_after_mb": "daemon with the sessions, MB",
    "rss_session_kb": "daemon's memory for each session, kB",
    "core_idle_kb": "core alone, an idle session, kB",
    "core_loaded_kb": "core alone, a fully loaded session, kB",
    "core_small_kb": "the same with packets of 64 bytes, kB",
    "rss_0_peers_mb": "daemon without peers, MB",
    "rss_2_peers_mb": "daemon with two idle sessions, MB",
    "wakeups_0_peers": f"wake-ups in {IDLE_SECONDS} s, no peers",
    "wakeups_2_peers": f"wake-ups in {IDLE_SECONDS} s, two idle sessions",
}


RELAY_ROWS = {
    "relay_sessions_s": "all sessions through the relay, asked for by the peers, s",
    "relay_rss_before_mb": "relay without a session, MB",
    "relay_rss_after_mb": "relay with the sessions, MB",
    "relay_rss_session_kb": "relay's memory for each session, kB",
    "relay_own_session_kb": "the same by its own estimate, kB",
    "relay_core_idle_kb": "verdict engine alone, an idle session, kB",
}


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="tools/scale", description=__doc__)
    add = parser.add_argument
    add("--sessions", type=number, default=1_000, help="how many (default: 1000)")
    add("--json", action="store_true", help="print one JSON document")
    add("--relay", action="store_true", help="measure a relay that they cross instead")
    options = parser.parse_args(arguments)
    rows, measure_them = (RELAY_ROWS, _of_relay) if options.relay else (ROWS, _of_ends)
    figures = measure_them(options.sessions)
    if options.json:
        print(json.dumps({"sessions": options.sessions, **figures}, indent=2))
        return 0
    console = Console(highlight=False)
    console.print(f"{options.sessions} sessions")
    for key, title in rows.items():
        console.print(f"{figures[key]:10,.1f}  {title}")
    return 0


def _of_ends(count: int) -> Figures:
    with Lab() as lab:
        vm1, vm2 = lab.lan(2)
        figures = measure_daemon(vm1, vm2, count)
        figures |= measure_idle(vm1, vm2) | measure_core()
    return figures | measure_small_packets()


def _of_relay(count: int) -> Figures:
    with Lab() as lab:
        vm1, r1, vm2 = lab.chain(1)
        return measure_relay(vm1, r1, vm2, count) | measure_relay_core()


if __name__ == "__main__":
    run_tool("tools/scale", main)
