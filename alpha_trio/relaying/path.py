"""Others' packets' way through the daemon, if it is a relay.

In:   net/tproxy.py leads them to a TransitSocket
Ask:  relay.transit says which of them may go on
Out:  the Forwarder sends these in the name of who sent them

They never meet the TUN or the peers.  What a router would answer by ICMP because of the
next link is answered here, as the kernel takes what we send for our own.
"""

from __future__ import annotations

import errno
import logging
import os
from base64 import b64decode
from enum import StrEnum
from functools import partial
from ipaddress import ip_address
from typing import Any

import trio

from alpha_trio.journal import Journal
from alpha_trio.net import netfilter, tproxy
from alpha_trio.net.host import boottime
from alpha_trio.net.transit import Flow, Forwarder, Transit, TransitSocket
from alpha_trio.net.udp import Udp
from alpha_trio.proto.batch import Crossing, Remote
from alpha_trio.proto.packets import icmp
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay import (
    Consent,
    Relay,
    RelayEarly,
    RelayPolicy,
    Traced,
    Unseen,
)
from alpha_trio.proto.traces import Report, Role, packed_address
from alpha_trio.relaying.document import policy_document, session_document
from alpha_trio.relaying.journal import Aside, record
from alpha_trio.settings import RelaySettings, Settings
from alpha_trio.supervision import insist
from alpha_trio.threads import in_thread

_log = logging.getLogger("alpha_trio")

_RUNS_PER_WAKE = 32
_TIDY_SECONDS = 1.0
_ERRORS_RATE, _ERRORS_BURST = 100.0, 50.0  # ICMP a second: a flood asks for them, too
_SESSIONS_TOLD = 1000  # in status; more than anybody reads
_HOPS = 64  # hop limit of what the relay itself says
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH})


class Loss(StrEnum):
    """Why a datagram that might go on was not sent."""

    TOO_BIG = "too-big"  # larger than the next link takes; its sender was told
    NO_ROUTE = "no-route"  # nothing leads there; its sender was told
    QUEUE_FULL = "queue-full"  # the kernel takes no more just now
    SEND_FAILED = "send-failed"  # the kernel refused it


class RelayPath:
    """Takes others' tunnel traffic, asks the relay, and sends on what may go on."""

    def __init__(
        self, settings: Settings, udp: Udp, journal: Journal, identity: Identity
    ) -> None:
        """Open the sockets; nothing comes to them yet.

        ``udp``: the daemon's own sockets, transparent.  ``identity``: ours, to answer
        traces.  Raises StartError.
        """
        self._identity = identity
        self._settings = settings
        self._journal = journal
        self._relay = Relay(_policy(settings.relay), boottime(), os.urandom)
        self._forwarder = Forwarder.open(settings, udp)
        self._sockets = [
            TransitSocket.open(sock.family, settings.disabled_offloads) for sock in udp
        ]
        listeners = {sock.version: sock.port for sock in self._sockets}
        self._capture = tproxy.of(settings, listeners)
        self._errors = TokenBucket(_ERRORS_RATE, _ERRORS_BURST)
        self._aside = Aside(journal)
        self._losses: dict[Loss, int] = {}
        self._lost_bytes = 0
        self._busy = trio.Event()  # there is something to forget

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Have the traffic led here and carry it, until cancelled.

        Raises RoutingError if the packet filter cannot lead it here.
        """
        with netfilter.Watch() as watch:
            await in_thread(tproxy.load, self._capture)
            task_status.started()
            async with trio.open_nursery() as nursery:
                for sock in self._sockets:
                    nursery.start_soon(self._carry, sock)
                nursery.start_soon(self._tidy)
                nursery.start_soon(self._keep_rules, watch)

    async def close(self) -> None:
        """Lead no more traffic here; what has arrived already is carried."""
        interface = self._settings.interface
        remove = partial(tproxy.remove, interface, closed=False)
        try:
            await in_thread(remove)
        finally:
            for sock in self._sockets:
                self._carry_waiting(sock)
                sock.close()
            self._forwarder.close()

    # -- packets -------------------------------------------------------------

    async def _carry(self, sock: TransitSocket) -> None:
        some = partial(self._carry_some, sock)
        while True:
            try:
                while True:
                    await some()
            except OSError:  # told if it happens once more
                await insist(
                    some, self._journal, "relayed traffic", "others' packets wait"
                )

    async def _carry_some(self, sock: TransitSocket) -> None:
        await sock.wait_readable()
        self._carry_waiting(sock)

    def _carry_waiting(self, sock: TransitSocket) -> None:
        now = boottime()
        transit = self._relay.transit
        for _ in range(_RUNS_PER_WAKE):
            run = sock.receive_nowait()
            if run is None:
                break
            view, stride, flow = run
            for start, end in transit(view, stride, flow.crossing, now):
                self._send_on(run, start, end, now)
            if self._relay.traced:
                self._answer_traces(run)
        if self._relay.events:
            self._tell()
        if not self._relay.idle:
            self._busy.set()

    def _send_on(self, run: Transit, start: int, end: int, now: float) -> None:
        # Never waits: like a router, a relay drops what the next link has no room for.
        try:
            sent = self._forwarder.send_nowait(run, start, end)
        except OSError as error:  # cold path
            self._refused(error, run, start, end, now)
            return
        if sent < end - start:
            self._count(Loss.QUEUE_FULL, run, end - start - sent)

    def _refused(
        self, error: OSError, run: Transit, start: int, end: int, now: float
    ) -> None:
        if error.errno == errno.EMSGSIZE:
            self._count(Loss.TOO_BIG, run, end - start)
            self._answer(icmp.Problem.TOO_BIG, run, start, now)
        elif error.errno in _NO_WAY:
            self._count(Loss.NO_ROUTE, run, end - start)
            self._answer(icmp.Problem.UNREACHABLE, run, start, now)
        else:
            self._count(Loss.SEND_FAILED, run, end - start)
            host = run.flow.crossing.destination[0]
            why = error.strerror or error
            line = f"Cannot relay to {host} ({why}). Trying on."
            self._journal.failure(host, f"relaying failed ({why})", line)

    def _count(self, loss: Loss, run: Transit, size: int) -> None:
        packets = -(-size // run.stride)
        self._losses[loss] = self._losses.get(loss, 0) + packets
        self._lost_bytes += size

    def _answer(
        self, problem: icmp.Problem, run: Transit, start: int, now: float
    ) -> None:
        """Tell the sender of a datagram why it went no further, if not too often."""
        if not self._errors.take(now):
            return
        view, stride, flow = run
        source, destination = flow.crossing.source, flow.crossing.destination
        packet = icmp.udp_packet(
            _packed(source),
            _packed(destination),
            flow.hops,
            flow.traffic_class,
            view[start : start + stride],
        )
        try:
            big = problem is icmp.Problem.TOO_BIG
            mtu = self._forwarder.path_mtu(destination) if big else 0
            message = icmp.error(memoryview(packet), problem, mtu)
            if message is not None:
                header = 20 if message[0] >> 4 == 4 else 40
                self._forwarder.send_error(message[header:], source)
        except OSError as error:
            line = (
                f"Cannot answer {source[0]} by ICMP ({error.strerror}): senders do "
                "not learn which size the next link takes. Trying on."
            )
            self._journal.failure("relay", "answering by ICMP failed", line)

    def _answer_traces(self, run: Transit) -> None:
        """Tell who asked what we have counted; the questions were in ``run``.

        With the sender address of the one they were for: so an answer passes whatever
        the session passes, NAT and firewalls too.
        """
        traced, self._relay.traced = self._relay.traced, []
        for trace in traced:
            try:
                report = memoryview(self._report(trace, run.flow.hops))
                crossing = Crossing(run.flow.crossing.destination, trace.tracer)
                flow = Flow(crossing, _HOPS + 1, 0)
                answer = Transit(report, len(report), flow)
                self._forwarder.send_nowait(answer, 0, len(report))
            except OSError as error:  # who asks will ask again
                line = f"Cannot answer a trace of {trace.tracer[0]} ({error.strerror})."
                self._journal.failure(trace.tracer[0], "answering a trace failed", line)

    def _report(self, trace: Traced, hops: int) -> bytes:
        address = self._forwarder.own_address(trace.tracer)
        report = Report(
            trace.receiver_id,
            trace.nonce,
            self._identity.public,
            Role.RELAY,
            trace.forth,
            trace.back,
            packed_address(address),
            hops,
        )
        return report.signed(self._identity)

    # -- time and news -------------------------------------------------------

    async def _tidy(self) -> None:
        """Have what is over forgotten; without sessions there are no wake-ups."""
        while True:
            await self._busy.wait()
            await trio.sleep(_TIDY_SECONDS)
            now = boottime()
            self._relay.forget_idle(now)
            self._tell()
            self._aside.look(self._relay.counters.same_link, now)
            if self._relay.idle and not self._aside.told:
                self._busy = trio.Event()

    async def _keep_rules(self, watch: netfilter.Watch) -> None:
        """Put our rules back if somebody removes them, as with all other ones."""
        stays = "rules that are removed are not put back"
        lost = "others' traffic is not relayed"
        while True:
            await insist(watch.wait_removed, self._journal, "packet filter", stays)
            await insist(self._restore_rules, self._journal, "relay", lost)

    async def _restore_rules(self) -> None:
        if not await in_thread(tproxy.is_loaded, self._capture):
            await in_thread(tproxy.load, self._capture)
            _log.warning("The packet filter rules of the relay were removed: restored.")

    def _tell(self) -> None:
        events, self._relay.events = self._relay.events, []
        for event in events:
            record(self._journal, event)

    # -- status --------------------------------------------------------------

    def document(self, now: float) -> dict[str, Any]:
        """What ``status`` has of the relay."""
        sessions = self._relay.sessions(now)
        latest = sorted(sessions, key=lambda session: session.idle)[:_SESSIONS_TOLD]
        return self.figures() | {
            "policy": policy_document(self._settings.relay),
            "latest": [session_document(session) for session in latest],
        }

    def figures(self) -> dict[str, Any]:
        """Those of it that are of all sessions.  The unit is the datagram."""
        counters = self._relay.counters
        drops = [*counters.drops.items(), *self._losses.items()]
        return {
            "sessions": self._relay.session_count,
            "forwarded_packets": counters.forwarded_packets
            - sum(self._losses.values()),
            "forwarded_bytes": counters.forwarded_bytes - self._lost_bytes,
            "unverified_packets": counters.unverified_packets,
            "drops": {str(why): count for why, count in drops if count},
            "evicted": counters.evicted,
            "memory_bytes": self._relay.memory,
        }


def _policy(settings: RelaySettings) -> RelayPolicy:
    return RelayPolicy(
        unseen=Unseen(settings.unseen),
        require_a1=settings.require_a1,
        consent=Consent(settings.consent),
        keys=frozenset(b64decode(key) for key in settings.keys),
        s1_rate=settings.s1_rate,
        sessions=settings.sessions,
        memory=settings.memory,
        roots=settings.roots,
        trace=settings.trace,
        early=RelayEarly(settings.early),
    )


def _packed(remote: Remote) -> tuple[bytes, int]:
    return ip_address(remote[0].partition("%")[0]).packed, remote[1]
