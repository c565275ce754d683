"""UDP packets that show of each whether it is genuine, and the first of its number."""

from __future__ import annotations

import hmac
import os
import socket
import time
from struct import Struct
from threading import Thread

from tools.lab import Host

_SECRET = os.urandom(32)
_NUMBER = Struct("!Q")
_PROOF_SIZE = 32
_MOST_AT_ONCE = 32
_LONGEST = 2048
_SIZES = (40, 41, 100, 400, 1000, 1300)  # of payloads, bytes
MEAN_SIZE = sum(_SIZES) / len(_SIZES)
_RCVBUFFORCE = 33


class Numbered:
    """A flow of such packets one way, sent and received in threads of their own."""

    def __init__(self, source: Host, target: Host, rate: float) -> None:
        """``rate``: packets a second, if the machine can."""
        self.sent = 0
        self.received: set[int] = set()
        self.wrong: list[bytes] = []  # payloads that were never sent
        self.twice: list[int] = []  # numbers
        self._outbound = source.socket()
        self._inbound = target.socket()
        self._inbound.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
        self._inbound.bind((target.address, 0))
        self._inbound.settimeout(0.1)
        self._outbound.connect(self._inbound.getsockname())
        self._rate = rate
        self._reading = Thread(target=self._receive)
        self._writing = Thread(target=self._send)
        self._sending = self._receiving = True

    def start(self) -> None:
        """Begin to send and to receive."""
        self._reading.start()
        self._writing.start()

    def close(self) -> None:
        """Receive no more."""
        self._receiving = False
        self._reading.join()
        self._outbound.close()
        self._inbound.close()

    def pause(self) -> None:
        """Send no more; what is under way is still received."""
        self._sending = False
        self._writing.join()

    @property
    def arrived(self) -> int:
        """Packets that were received, of whatever kind."""
        return len(self.received) + len(self.twice) + len(self.wrong)

    def _send(self) -> None:
        begun = time.monotonic()
        while self._sending:
            due = int((time.monotonic() - begun) * self._rate)
            for _ in range(min(due - self.sent, _MOST_AT_ONCE)):
                self._outbound.send(self._payload(self.sent))
                self.sent += 1
            if self.sent >= due:
                time.sleep(0.002)

    def _payload(self, number: int) -> bytes:
        size = _SIZES[number % len(_SIZES)]
        text = _NUMBER.pack(number).ljust(size - _PROOF_SIZE, b"\xa5")
        return text + hmac.digest(_SECRET, text, "sha256")

    def _receive(self) -> None:
        while self._receiving:
            try:
                payload = self._inbound.recv(_LONGEST)
            except TimeoutError:
                continue
            self._check(payload)

    def _check(self, payload: bytes) -> None:
        text, proof = payload[:-_PROOF_SIZE], payload[-_PROOF_SIZE:]
        if not hmac.compare_digest(hmac.digest(_SECRET, text, "sha256"), proof):
            self.wrong.append(payload)
            return
        (number,) = _NUMBER.unpack_from(text)
        if number in self.received:
            self.twice.append(number)
            return
        self.received.add(number)
