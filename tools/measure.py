"""Measurements between two hosts: each returns figures by name, bounded in time."""

from __future__ import annotations

import json
import math
import os
import re
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from tools import one_way, packets
from tools.daemons import serving
from tools.lab import Host, LabError

Figures = dict[str, float]

MAX_LOSS = 0.01  # share of UDP packets that may be lost at the highest rate
_PRECISION = 1.04  # of the rate found: the failing one is at most so many times it
_MAX_STEPS = 8  # of the search, each with one or two probes
_PROBE_SECONDS = 1
_ANSWER_TIMEOUT = 10  # seconds; a connection through an overloaded tunnel may take some
_GRACE = 0.02  # seconds beyond the idle round trip that a UDP packet may be late
_PING_INTERVAL = 0.005  # seconds
_ONE_WAY_INTERVAL, _ONE_WAY_SIZE = 0.005, 64  # seconds, bytes of payload
# What somebody who types in a session is to the network: a key stroke and its echo,
# each an IPv4 packet of 60 bytes.
_SSH_INTERVAL, _SSH_SIZE = 0.05, 32
_LATENESS = 1  # seconds after the last one until a packet on its way counts as lost
_WARM_UP_ROUND_TRIPS, _MAX_WARM_UP = 20, 2  # of a TCP stream; seconds
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_IPERF_PORT = 5201
_ROLES = ("sender", "receiver", "relay1", "relay2")
MOST_RELAYS = 2


@frozen
class Delivery:
    """How a UDP run ended, in packets per second."""

    sent: float
    received: float

    @property
    def loss(self) -> float:
        """Share of the packets that did not arrive, 0 to 1."""
        return 1 - self.received / self.sent if self.sent else 1.0


@contextmanager
def iperf_server(host: Host) -> Iterator[None]:
    """Let iperf3 answer on ``host`` within the block."""
    with serving(host, "tcp", _IPERF_PORT, "iperf3", "--server"):
        yield


@contextmanager
def far_end(host: Host) -> Iterator[None]:
    """Let packets that are timed one way arrive on ``host`` within the block."""
    with serving(host, "tcp", one_way.PORT, sys.executable, one_way.__file__):
        yield


@contextmanager
def packet_counter(host: Host) -> Iterator[None]:
    """Let UDP packets be counted on ``host`` within the block."""
    with serving(host, "tcp", packets.PORT, sys.executable, packets.__file__):
        yield


def iperf(host: Host, address: str, seconds: float, *arguments: str) -> dict[str, Any]:
    """Run an iperf3 client on ``host`` and return the end of its JSON report."""
    whole_seconds = str(math.ceil(seconds))  # it takes 0.5 for 0, and that for ever
    command = ("iperf3", "--json", "--client", address, "--time", whole_seconds)
    report = _report(host, seconds, *command, *arguments)
    if "error" in report and not report.get("intervals"):
        # The server opens its port anew after each test, and resets who was waiting.
        report = _report(host, seconds, *command, *arguments)
    if "error" in report:
        raise LabError(f"iperf3 from {host.name} to {address}: {report['error']}")
    end: dict[str, Any] = report["end"]
    return end


def _report(host: Host, seconds: float, *command: str) -> dict[str, Any]:
    done = host.run(*command, timeout=seconds + 20, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": done.stdout + done.stderr}
    return report


def tcp(
    host: Host, address: str, seconds: float, streams: int, pids: Sequence[int] = ()
) -> Figures:
    """Return Gbit/s of payload received, and CPU seconds per GB of each of ``pids``.

    The first of the pids is taken for the sender's daemon, the second for the
    receiver's, others for those of relays from the sender on.
    """
    before = [cpu_seconds(pid) for pid in pids]
    end = iperf(host, address, seconds, "--parallel", str(streams))
    used = [cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    received = end["sum_received"]
    gigabytes = received["bytes"] / 1e9
    figures = {f"tcp_{streams}_gbits": received["bits_per_second"] / 1e9}
    for name, seconds_used in zip(_ROLES, used, strict=False):
        figures[f"cpu_{name}_s_per_gb_{streams}"] = seconds_used / gigabytes
    return figures


def udp(
    host: Host, address: str, size: int, way: float = 0, loss: float = 0
) -> Figures:
    """Return the highest rate of ``size``-byte payloads lost to less than 1 %.

    ``way``: how many seconds a packet may take on an idle path.  ``loss``: share of
    the packets that the link loses, beside which the one percent is.
    """

    def probe(rate: float) -> Delivery:
        return deliver(host, address, size, rate, grace=way + _GRACE)

    return {f"udp_{size}_pps": highest_rate(probe, MAX_LOSS + loss)}


def deliver(
    host: Host,
    address: str,
    size: int,
    rate: float,
    *,
    seconds: float = _PROBE_SECONDS,
    grace: float = _GRACE,
) -> Delivery:
    """Send UDP packets, see ``packets.send``; LabError when there is no answer."""
    stream = host.socket(kind=socket.SOCK_STREAM)
    with stream as control, host.socket() as data:
        # Not on data: that would cost a poll(2) per packet.
        control.settimeout(_ANSWER_TIMEOUT)
        try:
            for end in (control, data):
                end.connect((address, packets.PORT))
            sent, received = packets.send(data, control, size, rate, seconds, grace)
        except OSError as error:
            raise LabError(
                f"UDP packets from {host.name} to {address}: {error}"
            ) from error
    return Delivery(sent / seconds, received / seconds)


def highest_rate(
    probe: Callable[[float], Delivery], max_loss: float = MAX_LOSS
) -> float:
    """Return the most packets/s received at a sending rate that loses less than that.

    ``probe(rate)`` sends at a rate in packets/s, 0 meaning as fast as it can.  A rate
    that passes is proof of what the path can carry; one that fails may have met a busy
    moment of the machine, so it is tried once more.
    """
    last = probe(0)
    if last.loss < max_loss:
        return last.received
    passing, failing, best = 0.0, last.sent, 0.0
    for _ in range(_MAX_STEPS):
        if failing < passing * _PRECISION:
            break
        rate = math.sqrt(passing * failing) or _first_guess(last, failing)
        last = probe(rate)
        if last.loss >= max_loss:
            last = probe(rate)
        if last.loss < max_loss:
            passing, best = rate, max(best, last.received)
        else:
            failing = rate
    return best


def _first_guess(overload: Delivery, rate: float) -> float:
    """Return a rate likely to pass, after an overload at ``rate``.

    Mostly the path can carry about what got through, but some break down in overload.
    """
    return max(0.95 * overload.received, rate / 4)


def ping(host: Host, address: str, seconds: float, load: str) -> Figures:
    """Return percentiles of the round trip in ms, named after ``load``.

    200 echo requests per second; those without a reply do not count.
    """
    count = max(1, round(seconds / _PING_INTERVAL))
    command = f"ping -n -i {_PING_INTERVAL} -c {count} -W 1"
    output = host.run(*command.split(), address, check=False, timeout=2 * seconds + 10)
    times = parse_ping(output.stdout)
    if not times:
        raise LabError(f"{host.name}: no reply to ping from {address}")
    return {
        f"ping_{load}_median_ms": statistics.median(times),
        f"ping_{load}_p90_ms": percentile(times, 0.90),
        f"ping_{load}_p99_ms": percentile(times, 0.99),
    }


def one_direction(host: Host, address: str, seconds: float, load: str) -> Figures:
    """Return percentiles in ms of the way there, and the percentage lost on it.

    200 packets per second that nobody answers.
    """
    flow = _flow(host, address, seconds, _ONE_WAY_INTERVAL, _ONE_WAY_SIZE)
    lost = 1 - len(flow.there) / flow.sent
    return _flow_figures(f"one_way_{load}", [*flow.there.values()], lost)


def ssh(host: Host, address: str, seconds: float, load: str) -> Figures:
    """Return percentiles in ms of one way, there or back, of what SSH sends.

    And the percentage of key strokes whose echo never came.
    """
    flow = _flow(host, address, seconds, _SSH_INTERVAL, _SSH_SIZE, is_answered=True)
    lost = 1 - len(flow.back) / flow.sent
    ways = [*flow.there.values(), *flow.back.values()]
    return _flow_figures(f"ssh_{load}", ways, lost)


def _flow_figures(name: str, times: Sequence[float], lost: float) -> Figures:
    figures = {
        f"{name}_p{share}_ms": percentile(times, share / 100) * 1e3
        for share in (50, 90, 99)
    }
    return {**figures, f"{name}_lost_percent": lost * 100}


def _flow(
    host: Host,
    address: str,
    seconds: float,
    interval: float,
    size: int,
    *,
    is_answered: bool = False,
) -> one_way.Flow:
    """Send packets to ``far_end``; LabError when there is none or none arrives."""
    count = max(1, round(seconds / interval))
    what = f"one way from {host.name} to {address}"
    stream = host.socket(kind=socket.SOCK_STREAM)
    with stream as control, host.socket() as data:
        control.settimeout(_ANSWER_TIMEOUT)
        try:
            for end in (control, data):
                end.connect((address, one_way.PORT))
            flow = one_way.send(
                data,
                control,
                size,
                count,
                interval,
                is_answered=is_answered,
                patience=_LATENESS,
            )
        except OSError as error:
            raise LabError(f"{what}: {error}") from error
    if not flow.there:
        raise LabError(f"{what}: no packet arrived")
    return flow


def beside_stream(
    host: Host,
    address: str,
    seconds: float,
    measurements: Sequence[Callable[[], Figures]],
    round_trip: float = 0,
) -> Figures:
    """Return what measurements of ``seconds`` find one after the other, under load.

    The load is a TCP stream, which before the first of them has 20 of the idle path's
    round trips, in seconds, to reach its speed, but two seconds at most.
    """
    warm_up = min(_WARM_UP_ROUND_TRIPS * round_trip, _MAX_WARM_UP)
    duration = warm_up + len(measurements) * (seconds + _LATENESS)
    figures: Figures = {}
    with ThreadPoolExecutor(max_workers=1) as pool:
        load = pool.submit(iperf, host, address, duration)
        time.sleep(warm_up)
        for take in measurements:
            figures |= take()
        load.result()
    return figures


def parse_ping(output: str) -> list[float]:
    """Return the round-trip times in ms from what ping printed."""
    return [float(text) for text in re.findall(r"\btime=([0-9.]+) ms", output)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def time_to_first_reply(
    host: Host,
    address: str,
    timeout: float = 5,
    *,
    every: float = 1,
    meanwhile: Callable[[], None] = lambda: None,
) -> float:
    """Send echo requests, so many seconds apart; return seconds until a reply.

    ``meanwhile`` is called before each request, and raises if there is no hope.
    """
    start = time.monotonic()
    with host.socket(kind=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP) as echo:
        while (now := time.monotonic()) < start + timeout:
            meanwhile()
            # Refused while a device has no address yet, or a daemon no peer: not there
            # yet, as without an answer.
            with suppress(OSError):
                echo.sendto(_echo_request(), (address, 0))
            if _is_answered(echo, address, now + min(every, timeout)):
                return time.monotonic() - start
    raise LabError(f"{host.name}: no echo reply from {address} in {timeout:g} s")


def _is_answered(echo: socket.socket, address: str, until: float) -> bool:
    # A peer on this machine answers by its kernel, so any reply of its is ours.
    while (left := until - time.monotonic()) > 0:
        if not select.select([echo], [], [], left)[0]:
            return False
        packet, (sender, _) = echo.recvfrom(2048)
        if sender == address and _is_echo_reply(packet):
            return True
    return False


def _echo_request() -> bytes:
    # Type 8, code 0, checksum, identifier 1, sequence number 1, no data.
    return struct.pack("!BBHHH", 8, 0, 0xFFFF - (0x0800 + 1 + 1), 1, 1)


def _is_echo_reply(packet: bytes) -> bool:
    header_length = (packet[0] & 0x0F) * 4
    return packet[header_length] == 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used so far, user and system, all threads."""
    # The command in parentheses may hold spaces: fields are counted after it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime = int(fields[11]), int(fields[12])
    return (utime + stime) / _TICKS_PER_SECOND


def wake_ups(pid: int) -> int:
    """Return how often the process went to sleep so far, that is, how often it woke."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def resident_mb(pids: Sequence[int]) -> float:
    """Return the resident memory of the largest of these processes, in MB (10**6)."""
    return max(_resident_kib(pid) for pid in pids) * 1024 / 1e6


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise LabError(f"process {pid} has ended")
    return int(found[1])
