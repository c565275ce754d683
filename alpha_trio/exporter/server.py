"""The listener: a task for each connection, and one page at a time.

Whoever can reach the address may be slow, broken or hostile, and may not hold up
packets:

- at most CLIENTS are served.  One more takes the place of who has owed its request
  longest; if nobody owes one it is turned away;
- a request has READ_SECONDS and 8 KiB, all of a connection SECONDS;
- a page is made by slices of SLICE, between which all others have their turn, and pages
  for all clients together get SHARE of the time: a flood of scrapes makes scrapes late;
- nothing that goes wrong with a connection is raised beyond its task.

A page is made in this thread, since only here nobody changes what it tells of; in a
thread of its own all that is not the making of text would still be done here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from math import inf
from typing import NoReturn, Protocol, Self

import trio
from attrs import define, field

from alpha_trio.errors import StartError
from alpha_trio.exporter.request import (
    END,
    MOST,
    BadRequest,
    Request,
    answer_head,
    parse_request_untrusted,
)
from alpha_trio.journal import Journal
from alpha_trio.metrics import HEALTH, PEER, Document, Page
from alpha_trio.settings import Listen
from alpha_trio.slices import Slices
from alpha_trio.supervision import insist

CLIENTS = 8
READ_SECONDS = 5.0  # for a request
SECONDS = 30.0  # for all of a connection: request, page, and taking it
SHARE = 0.25  # of the time, for pages
CHUNK = 1 << 16  # bytes that are sent in one go

_SUBJECT = "metrics listener"
_TEXT = "text/plain; charset=utf-8"

_log = logging.getLogger("alpha_trio")


class Source(Protocol):
    """What a page is made of."""

    async def refresh(self) -> None:
        """Have what follows tell how things stand now."""

    def status_of_daemon(self) -> Document:
        """The status document without the peers, and what ``health`` says of them."""

    def status_of_peers(self) -> Iterable[tuple[Document, int]]:
        """For each peer its part of it, and how many lines of ``health`` it has.

        Each is read when it is asked for.
        """


class Exporter:
    """Serves ``source`` at ``listen`` to whoever asks."""

    def __init__(self, listen: Listen, source: Source, journal: Journal) -> None:
        self._listen = listen
        self._source = source
        self._journal = journal
        self._clients: dict[_Client, None] = {}
        self._turn = _Turn()

    async def run(self) -> NoReturn:
        """Listen as soon as that is possible, and serve until cancelled."""
        listeners = await insist(
            self._open, self._journal, _SUBJECT, f"no metrics at {self._listen}"
        )
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._take_clients, listener, nursery)
            await trio.sleep_forever()

    async def _open(self) -> list[trio.SocketListener]:
        host, port = self._listen.host, self._listen.port
        try:
            return list(await trio.open_tcp_listeners(port, host=host, backlog=CLIENTS))
        except OSError as error:
            raise StartError(
                f"{error.strerror or error}; end what listens there, or set another "
                "listen under [metrics]"
            ) from None

    async def _take_clients(
        self, listener: trio.SocketListener, nursery: trio.Nursery
    ) -> NoReturn:
        meanwhile = f"scrapes of {self._listen} have to wait"
        async with listener:
            while True:
                stream = await insist(
                    listener.accept, self._journal, _SUBJECT, meanwhile
                )
                nursery.start_soon(self._attend, _Client(stream))

    async def _attend(self, client: _Client) -> None:
        try:
            with trio.move_on_after(SECONDS) as client.scope, suppress(*_GONE):
                if self._make_room():
                    self._clients[client] = None
                    await self._serve(client)
        except Exception:  # a bug, which is to end no tunnel
            _log.exception("A scrape of the metrics failed.")
        finally:
            self._clients.pop(client, None)
            await trio.aclose_forcefully(client.stream)

    def _make_room(self) -> bool:
        if len(self._clients) < CLIENTS:
            return True
        for client in self._clients:  # the oldest is first
            if client.owes:
                del self._clients[client]
                client.scope.cancel()
                return True
        return False

    async def _serve(self, client: _Client) -> None:
        try:
            with trio.fail_after(READ_SECONDS):
                request = parse_request_untrusted(await client.receive_head())
        except trio.TooSlowError:
            return
        except BadRequest as error:
            text = f"{error.status.value} {error.status.phrase}; see /metrics\n"
            head = answer_head(error.status, _TEXT, len(text), *error.fields)
            await client.send([head, text.encode()])
            return
        await client.send(await self._answer(request))

    async def _answer(self, request: Request) -> list[bytes]:
        page = Page(request.accept)
        parts: list[bytes] = []
        async with self._turn as turn:
            await self._source.refresh()
            await turn.take(_fill(page, self._source, parts))
        head = answer_head(HTTPStatus.OK, page.content_type, sum(map(len, parts)))
        return [head] if request.head else [head, *parts]


def _fill(page: Page, source: Source, parts: list[bytes]) -> Iterator[None]:
    """Put all there is into ``page``, and it into ``parts``, a piece at each step."""
    status = source.status_of_daemon()
    page.add_daemon(status)
    lines = len(status["health"])
    for peer, complaints in source.status_of_peers():
        yield
        page.add(PEER, peer)
        lines += complaints
    page.add([HEALTH], {"health": range(lines)})
    for part in page.parts():
        yield
        parts.append(part)


@define(eq=False)
class _Turn:
    """Lets one page be made at a time, and none so soon that they take too much."""

    _lock: trio.Lock = field(factory=trio.Lock)
    _free: float = -inf  # trio's time from which on the next may be made

    async def __aenter__(self) -> Self:
        await self._lock.acquire()
        try:
            await trio.sleep_until(self._free)
        except BaseException:
            self._lock.release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    async def take(self, steps: Iterator[None]) -> None:
        """Make all ``steps``, in slices after which all others have their turn."""
        slices = Slices()
        try:
            await slices.take(steps, lambda _: None)
        finally:
            self._free = trio.current_time() + slices.spent * (1 / SHARE - 1)


@define(eq=False)
class _Client:
    """One connection."""

    stream: trio.SocketStream
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    owes: bool = True  # its request

    async def receive_head(self) -> bytes:
        """The head of a request.  Raises BadRequest, or what is in _GONE."""
        data = bytearray()
        while (end := data.find(END)) < 0:
            if len(data) >= MOST:
                raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            more = await self.stream.receive_some(MOST - len(data))
            if not more:
                raise trio.EndOfChannel
            data += more
        self.owes = False
        return bytes(data[:end])

    async def send(self, parts: Iterable[bytes]) -> None:
        """Send all, in pieces between which others have their turn.

        Few pieces: whoever reads wakes up for each.
        """
        piece = bytearray()
        for part in parts:
            piece += part
            while len(piece) >= CHUNK:
                await self.stream.send_all(piece[:CHUNK])
                del piece[:CHUNK]
        await self.stream.send_all(piece)


_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel)
