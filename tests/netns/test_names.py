"""Names of peers, and a resolver that does what resolvers do.

vm1 192.168.10.60, vm2 192.168.10.61, and vm3 192.168.10.62, where the name server runs.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from tests.netns.traffic import add, peer, ping, prepared
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

A, AAAA = 1, 28


class NameServer:
    """Answers for the names it knows, as late as it is told, and none of the others."""

    def __init__(self, host, addresses, delay=0.0):
        self.addresses, self.delay = addresses, delay
        self.asked, self.most = [], 0
        self._waiting = []  # names under way
        self._socket = host.socket()
        self._socket.bind((host.address, 53))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            threading.Thread(target=self._answer, args=(query, client)).start()

    def _answer(self, query, client):
        name, kind, end = question(query)
        self.asked.append(name)
        self._waiting.append(name)
        self.most = max(self.most, len(set(self._waiting)))
        time.sleep(self.delay)
        self._waiting.remove(name)
        found = [
            ip.packed
            for ip in map(ip_address, self.addresses.get(name, ()))
            if (A if ip.version == 4 else AAAA) == kind
        ]
        head = query[:2] + b"\x81\x80\0\1" + len(found).to_bytes(2) + bytes(4)
        records = b"".join(
            b"\xc0\x0c"
            + kind.to_bytes(2)
            + b"\0\1"
            + bytes(4)
            + len(ip).to_bytes(2)
            + ip
            for ip in found
        )
        self._socket.sendto(head + query[12:end] + records, client)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        wait_until(lambda: not self._waiting, "the last answer")
        self._socket.close()


def question(query):
    """The name that is asked for, of which kind, and where the question ends."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3]), at + 5


@contextmanager
def resolving(vm1, vm2, vm3, config=""):
    """A daemon on vm1, which asks vm3 for names, and one on vm2."""
    settings = vm1.directory / "resolv.conf"
    settings.write_text(f"nameserver {vm3.address}\noptions timeout:1 attempts:1\n")
    vm1 = prepared(vm1, f"mount --bind {settings} /etc/resolv.conf")
    with Daemon(vm1, config=config) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        yield one, two


def test_what_could_not_be_resolved_at_the_start_heals_when_the_resolver_is_back(lab):
    vm1, vm2, vm3 = lab.lan(3)
    config = "".join(f'[peers."p{n}.example"]\n' for n in range(5))
    with resolving(vm1, vm2, vm3, config) as (one, _):
        wait_until(lambda: peer(one, "p4.example")["reason"], "a reason")
        assert peer(one, "p4.example")["state"] == "resolving"
        names = {f"p{n}.example": [f"192.168.10.{100 + n}"] for n in range(4)}
        with NameServer(vm3, names | {"p4.example": [vm2.address]}):
            one.wait_log(f"p4.example is {vm2.address}.", timeout=25)
            ping(vm1, vm2.address)
            wait_until(
                lambda: not any(peer(one, name)["reason"] for name in names), "all"
            )


def test_many_names_are_asked_for_a_few_at_a_time(lab):
    vm1, vm2, vm3 = lab.lan(3)
    names = [f"p{number}.example" for number in range(40)]
    config = "".join(f'[peers."{name}"]\n' for name in names)
    known = {n: [f"192.168.10.{100 + i}"] for i, n in enumerate(names)}
    with (
        NameServer(vm3, known, delay=0.2) as server,
        resolving(vm1, vm2, vm3, config) as (one, _),
    ):
        for name in names:
            one.wait_log(f"{name} is ")
        assert 2 <= server.most <= 8
        assert len(server.asked) <= 2 * len(names)  # each for both families


def test_a_slow_resolver_holds_up_nobody(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with NameServer(vm3, {}, delay=3), resolving(vm1, vm2, vm3) as (one, _):
        for number in range(12):
            one.cli("peers", "add", f"p{number}.example")
        add(one, "vm2", vm2.address)
        ping(vm1, vm2.address)
        assert one.stop() == 0
        one.start()


@pytest.mark.parametrize("cores", [1, 2])
def test_an_answer_that_comes_late_changes_nothing(lab, cores):
    vm1, vm2, vm3 = lab.lan(3)
    config = f"cores = {cores}\n"
    names = {"p1.example": ["192.168.10.101"], "p2.example": ["192.168.10.102"]}
    with (
        NameServer(vm3, names, delay=0.7) as server,
        resolving(vm1, vm2, vm3, config) as (one, _),
    ):
        for name in names:
            add(one, name, name)
        wait_until(lambda: len(server.asked) == 4, "all questions, for both families")
        one.request("peers.remove", name="p1.example")
        settings = {"endpoint": vm2.address}
        one.request("peers.set", name="p2.example", settings=settings)
        add(one, "p3.example", "p3.example")
        wait_until(lambda: "p3.example" in server.asked, "the next question")
        one.wait_log("Cannot resolve p3.example")
        ping(vm1, vm2.address)
        assert peer(one, "p2.example")["endpoint"] == f"{vm2.address}:1234"
        assert " is 192.168.10." not in one.log
