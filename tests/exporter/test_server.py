"""The listener, asked by real connections, with a source that holds what it is told."""

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alpha_trio import slices
from alpha_trio.exporter import server
from alpha_trio.exporter.request import MOST
from alpha_trio.exporter.server import CLIENTS, Exporter
from alpha_trio.journal import Journal
from alpha_trio.settings import Listen, PeerSettings
from tests.control.memory_node import status_of
from tests.test_metrics import document

ASK = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


class Source:
    def __init__(self, count=2, broken=False):
        self.count = count
        self.broken = broken
        self.read = 0
        self.fresh = False

    async def refresh(self):
        self.fresh = True

    def status_of_daemon(self):
        assert self.fresh
        if self.broken:
            raise ValueError("a bug")
        return document(())

    def status_of_peers(self):
        for number in range(self.count):
            self.read += 1
            yield status_of(PeerSettings(f"vm{number}", "192.168.10.61")), 2


async def free_port():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return listener.socket.getsockname()[1]


@asynccontextmanager
async def served(source=None, port=None):
    """The address and the journal of an exporter that runs meanwhile."""
    listen = Listen("127.0.0.1", port or await free_port())
    journal = Journal()
    async with trio.open_nursery() as nursery:
        exporter = Exporter(listen, source or Source(), journal)
        nursery.start_soon(exporter.run)
        if port is None:
            await opened(listen)
        yield listen, journal
        nursery.cancel_scope.cancel()


async def opened(listen):
    while True:
        try:
            stream = await trio.open_tcp_stream(listen.host, listen.port)
        except OSError:
            await trio.sleep(0.01)
        else:
            await stream.aclose()
            return


async def ask(listen, request=ASK):
    """All that is answered."""
    stream = await trio.open_tcp_stream(listen.host, listen.port)
    async with stream:
        await stream.send_all(request)
        return await rest(stream)


async def rest(stream):
    try:
        return b"".join([part async for part in stream])
    except trio.BrokenResourceError:
        return b""


async def until(condition):
    while True:
        if condition():
            return
        await trio.sleep(0.01)


def parts(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in fields), body.decode()


async def test_a_scrape_has_everything_and_ends_the_connection():
    async with served() as (listen, _):
        status, fields, body = parts(await ask(listen))
    assert status == "HTTP/1.1 200 OK"
    assert fields["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(fields["Content-Length"]) == len(body)
    assert 'alpha_trio_peer_established{peer="vm1"} 0.0\n' in body
    assert "alpha_trio_health_complaints 5.0\n" in body  # one, and two for each peer


async def test_openmetrics_if_asked_for():
    request = ASK[:-2] + b"Accept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    async with served() as (listen, _):
        _, fields, body = parts(await ask(listen, request))
    assert fields["Content-Type"].startswith("application/openmetrics-text; version=1")
    assert body.endswith("\n# EOF\n")


async def test_the_head_alone():
    async with served() as (listen, _):
        status, fields, body = parts(await ask(listen, ASK.replace(b"GET", b"HEAD")))
    assert (status, body) == ("HTTP/1.1 200 OK", "")
    assert int(fields["Content-Length"]) > 1000


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\x16\x03\x01\r\n\r\n", "400 Bad Request"),
        (b"x" * MOST, "431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_refused_is_told(request_, status):
    async with served() as (listen, _):
        first, _, body = parts(await ask(listen, request_))
        assert first == f"HTTP/1.1 {status}"
        assert body == f"{status}; see /metrics\n"
        assert b"200 OK" in await ask(listen)


async def test_other_tasks_have_their_turn_while_a_page_is_made(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 0.0)
    source = Source(count=50)
    turns = set()

    async def look():
        while True:
            turns.add(source.read)
            await trio.lowlevel.checkpoint()

    async with served(source) as (listen, _), trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await ask(listen)
        nursery.cancel_scope.cancel()
    assert len(turns) > 10  # in each round of tasks the order is another one


async def test_who_asks_nothing_gives_way():
    async with served() as (listen, _):
        idle = [
            await trio.open_tcp_stream(listen.host, listen.port)
            for _ in range(CLIENTS + 3)
        ]
        await wait_all_tasks_blocked(0.01)
        assert b"200 OK" in await ask(listen)
        for stream in idle[:4]:  # the longest idle had to go
            assert await rest(stream) == b""
        for stream in idle[4:]:
            await stream.send_all(ASK)
        assert all([b"200 OK" in await rest(stream) for stream in idle[4:]])
        for stream in idle:
            await stream.aclose()


async def test_who_is_slow_or_takes_nothing_is_left(monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.05)
    monkeypatch.setattr(server, "SECONDS", 0.3)
    async with served(Source(count=3000)) as (listen, _):
        slow = await trio.open_tcp_stream(listen.host, listen.port)
        await slow.send_all(ASK[:10])
        assert await rest(slow) == b""
        deaf = await trio.open_tcp_stream(listen.host, listen.port)
        await deaf.send_all(ASK)
        await trio.sleep(1)
        assert len(await rest(deaf)) < 3_000_000
        await slow.aclose()
        await deaf.aclose()


async def test_a_bug_is_logged_and_ends_nothing(caplog):
    source = Source(broken=True)
    async with served(source) as (listen, _):
        assert await ask(listen) == b""
        source.broken = False
        assert b"200 OK" in await ask(listen)
    assert "A scrape of the metrics failed." in caplog.text


async def test_a_port_in_use_is_told_until_it_is_free():
    (other,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = other.socket.getsockname()[1]
    async with served(port=port) as (listen, journal):
        await until(lambda: journal.troubles)
        (told,) = journal.troubles.values()
        assert told.startswith(f"no metrics at 127.0.0.1:{port}: Address already in")
        await other.aclose()
        await until(lambda: not journal.troubles)
        assert b"200 OK" in await ask(listen)
