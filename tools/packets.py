"""UDP packets at a given rate, and the count of those that arrived in time.

iperf3 is no good for this: its receive buffer cannot exceed ``net.core.rmem_max``,
usually 208 KiB, which holds 90 packets of 1200 bytes.  While the scheduler runs
another process for a millisecond, it loses packets that the tunnel had delivered:
up to 5 % of 100,000 packets/s over the plain link of two busy cores.

The counter is this file run as a program, for it needs a processor of its own; only
the standard library is imported, so that it starts at once.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from struct import Struct

PORT = 5300  # UDP for the packets, TCP for the question how many there were

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
_BUFFER_SIZE = 8 << 20  # bytes: 50 ms of 64-byte packets at 200,000 per second
_MAX_BURST = 64  # packets sent without a look at the clock
_DOZE = 0.0005  # seconds between looks at the clock while nothing is due
_MAX_DEBT = 0.002  # seconds of packets that may be sent late
_QUESTION = Struct("=d")  # when to stop counting; also the first bytes of each packet
_ANSWER = Struct("=Q")  # packets counted


def send(
    data: socket.socket,
    control: socket.socket,
    size: int,
    rate: float,
    seconds: float,
    grace: float,
) -> tuple[int, int]:
    """Send to the counter; return how many packets left and how many arrived in time.

    In time is what has arrived ``grace`` seconds after the last packet left: what a
    buffer on the way has swallowed until then was beyond the capacity of the path.

    Args:
      data: UDP socket connected to the counter's PORT.
      control: TCP socket connected there.
      size: bytes of payload, at least 8.
      rate: packets/s, 0 for as fast as can be.  Fewer are sent where another process
        has the processor for long: to make up for it would be a burst at a higher rate.
      seconds: for how long.
      grace: seconds.

    Raises OSError when there is no way, or no counter.
    """
    start = time.monotonic()
    end = start + seconds
    question = _QUESTION.pack(end + grace)
    control.sendall(question)
    sent = _send_until(end, data, question.ljust(size, b"\0"), rate)
    return sent, _ANSWER.unpack(_read(control, _ANSWER.size))[0]


def _send_until(end: float, data: socket.socket, packet: bytes, rate: float) -> int:
    sent, last = 0, time.monotonic()
    interval = 1 / rate if rate else 0
    while (now := time.monotonic()) < end:
        due = min(int((now - last) / interval), _MAX_BURST) if rate else _MAX_BURST
        if not due:
            time.sleep(_DOZE)
            continue
        last = max(last + due * interval, now - _MAX_DEBT)
        for _ in range(due):
            data.send(packet)
        sent += due
    return sent


def _read(control: socket.socket, size: int) -> bytes:
    answer = control.recv(size, socket.MSG_WAITALL)
    if len(answer) < size:
        raise ConnectionError("the packet counter has ended")
    return answer


def serve() -> None:
    """Count for one sender after the other, for ever."""
    data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    data.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_SIZE)
    data.bind(("", PORT))
    data.setblocking(False)
    listener = socket.create_server(("", PORT))
    while True:
        control, _ = listener.accept()
        with control:
            question = control.recv(_QUESTION.size, socket.MSG_WAITALL)
            if len(question) == _QUESTION.size:
                control.sendall(_ANSWER.pack(count(data, question)))


def count(data: socket.socket, question: bytes) -> int:
    """Count packets that begin with ``question`` until the time it names."""
    (end,) = _QUESTION.unpack(question)
    buffer = bytearray(2048)
    counted = 0
    while (left := end - time.monotonic()) > 0:
        try:
            data.recv_into(buffer)
        except BlockingIOError:
            select.select([data], [], [], left)
        else:
            counted += buffer.startswith(question)  # not left over from another run
    return counted


if __name__ == "__main__":
    try:
        serve()
    except OSError as error:
        sys.exit(f"tools/packets.py: port {PORT}: {error.strerror}")
