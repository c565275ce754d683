"""How long packets take in one direction, for both ends of a lab share one clock.

Half of an echo's time is no measure: a tunnel may carry a packet that comes alone
sooner than its answer, or one direction while the other waits.

The far end is this file run as a program, for it needs a processor of its own; only
the standard library is imported, so that it starts at once.  When a packet arrived
the kernel says, not the program, or a busy processor's other programs would be
measured.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Mapping
from struct import Struct
from typing import Any, NamedTuple

PORT = 5310  # UDP for the packets, TCP to say what is to come and what has come

_SO_TIMESTAMPNS = 35
_TIMESPEC = Struct("=qq")
_QUESTION = Struct("=dI?")  # token; packets to come; whether each is to be answered
_PACKET = Struct("=dId")  # token; number; when it was sent, by CLOCK_MONOTONIC
_TIME = Struct("=Id")  # number; seconds it took
_READY = b"+"


class Flow(NamedTuple):
    """What became of some packets, one after the other: seconds by number."""

    sent: int
    there: Mapping[int, float]
    back: Mapping[int, float]  # of the answers, empty if none were asked for


def send(
    data: socket.socket,
    control: socket.socket,
    size: int,
    count: int,
    interval: float,
    *,
    is_answered: bool,
    patience: float,
) -> Flow:
    """Send packets to the far end at regular times; return how long they took.

    Args:
      data: UDP socket connected to the far end's PORT.
      control: TCP socket connected there.
      size: bytes of payload, at least 20.
      count: of packets.
      interval: seconds from one to the next.
      is_answered: whether each is answered at once by one of the same size.
      patience: seconds to wait for what is still on its way after the last one.

    Raises OSError when there is no way, or no far end.
    """
    stamp_arrivals(data)
    token = time.monotonic()
    control.sendall(_QUESTION.pack(token, count, is_answered))
    if control.recv(len(_READY)) != _READY:
        raise ConnectionError("the far end has ended")
    back: dict[int, float] = {}
    for number in range(count):
        _take(data, token, back, until=token + number * interval)
        packet = _PACKET.pack(token, number, time.monotonic())
        data.send(packet.ljust(size, b"\0"))
    end = time.monotonic() + patience
    if is_answered:
        _take(data, token, back, until=end, enough=count)
    select.select([control], [], [], max(0, end - time.monotonic()))
    control.shutdown(socket.SHUT_WR)
    return Flow(count, _read_times(control), back)


def _take(
    data: socket.socket,
    token: float,
    times: dict[int, float],
    *,
    until: float,
    enough: int | None = None,
) -> None:
    """Note how long packets took, until a time or until there are enough of them."""
    while len(times) != enough:
        left = until - time.monotonic()
        if not select.select([data], [], [], max(0, left))[0]:
            return
        receive(data, token, times)


def receive(
    data: socket.socket, token: float, times: dict[int, float]
) -> tuple[bytes, Any] | None:
    """Take one packet and note how long it took; return it and who sent it.

    None if it is of another run, or came a second time.
    """
    packet, stamps, _, sender = data.recvmsg(2048, 64)
    arrived = time.monotonic()
    for _level, _kind, stamp in stamps:
        seconds, nanoseconds = _TIMESPEC.unpack(stamp)
        arrived -= (time.time_ns() - seconds * 10**9 - nanoseconds) / 1e9
    if len(packet) < _PACKET.size:
        return None
    its_token, number, sent = _PACKET.unpack_from(packet)
    if its_token != token or number in times:
        return None
    times[number] = arrived - sent
    return packet, sender


def stamp_arrivals(data: socket.socket) -> None:
    """Have the kernel say when each packet of a socket came."""
    data.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def _read_times(control: socket.socket) -> dict[int, float]:
    with control.makefile("rb") as stream:
        told = stream.read()
    return dict(_TIME.iter_unpack(told[: len(told) // _TIME.size * _TIME.size]))


def serve() -> None:
    """Be the far end for one flow after the other, for ever."""
    data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stamp_arrivals(data)
    data.bind(("", PORT))
    listener = socket.create_server(("", PORT))
    while True:
        control, _ = listener.accept()
        with control:
            question = control.recv(_QUESTION.size, socket.MSG_WAITALL)
            if len(question) == _QUESTION.size:
                attend(data, control, *_QUESTION.unpack(question))


def attend(
    data: socket.socket,
    control: socket.socket,
    token: float,
    count: int,
    is_answered: bool,
) -> None:
    """Receive one flow, answer it if asked to, and tell how long its packets took."""
    control.sendall(_READY)
    times: dict[int, float] = {}
    while len(times) < count:
        readable, _, _ = select.select([data, control], [], [])
        if data in readable:
            taken = receive(data, token, times)
            if taken and is_answered:
                _answer(data, *taken)
        elif control in readable:
            break  # the sender waits no longer
    control.sendall(b"".join(_TIME.pack(*time) for time in times.items()))


def _answer(data: socket.socket, packet: bytes, sender: Any) -> None:
    token, number, _ = _PACKET.unpack_from(packet)
    answer = _PACKET.pack(token, number, time.monotonic())
    data.sendto(answer.ljust(len(packet), b"\0"), sender)


if __name__ == "__main__":
    try:
        serve()
    except OSError as error:
        sys.exit(f"tools/one_way.py: port {PORT}: {error.strerror}")
