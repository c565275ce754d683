"""The control server over a real Unix socket, its clients ordinary and hostile."""

import fcntl
import grp
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alpha_trio import wire
from alpha_trio.control import ControlServer, listener
from alpha_trio.control import server as serving
from alpha_trio.control.server import MAX_ASKING, MAX_CLIENTS
from alpha_trio.errors import AlphaTrioError, PeerError, StartError, UnknownPeer
from alpha_trio.journal import Journal
from alpha_trio.journal.hub import EVENT_QUEUE, EventHub
from alpha_trio.settings import Settings
from alpha_trio.state.directory import StateDirectory


class Commands(dict):
    """A few commands of every shape, and what became of them."""

    def __init__(self):
        super().__init__(
            echo=self.echo,
            refuse=self.refuse,
            fail=self.fail,
            slow=self.slow,
            huge=self.huge,
            big=self.big,
            count=self.count,
            flood=self.flood,
            hang=self.hang,
            monitor=self.monitor,
        )
        self.hub = EventHub()
        self.release = trio.Event()
        self.finished = False
        self.hanging = 0

    async def echo(self, args):
        return args

    async def refuse(self, args):
        raise UnknownPeer("no peer is called 'vm9'")

    async def fail(self, args):
        raise ZeroDivisionError

    async def slow(self, args):
        await self.release.wait()
        self.finished = True

    async def huge(self, args):
        return "x" * wire.MAX_REPLY

    async def big(self, args):
        return "x" * 1_000_000

    async def count(self, args) -> AsyncGenerator:
        for number in range(args["to"]):
            yield {"event": "number", "number": number}
        if args.get("bad"):
            raise PeerError("counted too far")

    async def flood(self, args) -> AsyncGenerator:
        while True:
            yield {"event": "flood", "filling": "x" * 10_000}

    async def hang(self, args) -> AsyncGenerator:
        self.hanging += 1
        try:
            await trio.sleep_forever()
            yield {}
        finally:
            self.hanging -= 1

    async def monitor(self, args) -> AsyncGenerator:
        async with self.hub.subscribe() as events:
            async for event in events:
                yield event


class Client:
    def __init__(self, stream):
        self.stream = stream

    async def send(self, command, **args):
        await self.stream.send_all(wire.encode_request(command, args))

    async def receive(self):
        header = await self._exactly(wire.HEADER.size)
        length = wire.body_length_untrusted(header, wire.MAX_REPLY)
        return wire.decode_reply_untrusted(await self._exactly(length)).value

    async def call(self, command, **args):
        await self.send(command, **args)
        return await self.receive()

    async def closed(self):
        """What still comes until the server hangs up, as a number of bytes."""
        count = 0
        while data := await self._some(65536):
            count += len(data)
        return count

    async def _exactly(self, size):
        data = b""
        while len(data) < size:
            more = await self.stream.receive_some(size - len(data))
            assert more, "the server hung up"
            data += more
        return data

    async def _some(self, size):
        try:
            return await self.stream.receive_some(size)
        except trio.BrokenResourceError:  # it did not read all that we sent
            return b""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "control.sock"


@pytest.fixture
def commands():
    return Commands()


@pytest.fixture
async def server(path, commands, nursery):
    server = ControlServer(Settings(socket=path), commands, Journal())
    await nursery.start(server.run)
    return server


@pytest.fixture
async def connect(path):
    streams = []

    async def connect():
        streams.append(await trio.open_unix_socket(path))
        return Client(streams[-1])

    yield connect
    for stream in streams:
        await trio.aclose_forcefully(stream)


# Ordinary clients


async def test_result(server, connect):
    client = await connect()
    assert await client.call("echo", name="vm2") == {"name": "vm2"}


async def test_several_requests_on_one_connection(server, connect):
    client = await connect()
    await client.send("echo", number=1)
    await client.send("echo", number=2)
    assert await client.receive() == {"number": 1}
    assert await client.receive() == {"number": 2}


async def test_request_byte_by_byte(server, connect):
    client = await connect()
    for byte in wire.encode_request("echo", {"name": "vm2"}):
        await client.stream.send_all(bytes([byte]))
        await wait_all_tasks_blocked()
    assert await client.receive() == {"name": "vm2"}


async def test_error_of_a_command_keeps_its_exit_code(server, connect):
    client = await connect()
    with pytest.raises(AlphaTrioError, match="no peer is called 'vm9'") as caught:
        await client.call("refuse")
    assert caught.value.exit_code == 4
    assert await client.call("echo") == {}


async def test_unknown_command_names_the_known(server, connect):
    client = await connect()
    with pytest.raises(AlphaTrioError, match="'flyy': this daemon knows big, count"):
        await client.call("flyy")
    assert await client.call("echo") == {}


async def test_failing_command_is_logged_and_the_server_lives(server, connect, caplog):
    client = await connect()
    with pytest.raises(AlphaTrioError, match="its log says why"):
        await client.call("fail")
    assert await client.call("echo") == {}
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info[0] is ZeroDivisionError


async def test_result_over_the_limit_is_an_error(server, connect):
    client = await connect()
    with pytest.raises(AlphaTrioError, match="over the limit"):
        await client.call("huge")


async def test_stream_ends_with_a_result(server, connect):
    client = await connect()
    await client.send("count", to=2)
    received = [await client.receive() for _ in range(3)]
    assert [event and event["number"] for event in received] == [0, 1, None]
    assert await client.call("echo") == {}


async def test_stream_can_end_with_an_error(server, connect):
    client = await connect()
    await client.send("count", to=1, bad=True)
    assert (await client.receive())["number"] == 0
    with pytest.raises(AlphaTrioError, match="counted too far"):
        await client.receive()


async def test_stream_is_cancelled_when_the_client_leaves(server, connect, commands):
    client = await connect()
    await client.send("hang")
    await wait_all_tasks_blocked()
    assert commands.hanging == 1
    await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert commands.hanging == 0


async def test_command_runs_to_its_end_when_the_client_leaves(
    server, connect, commands
):
    client = await connect()
    await client.send("slow")
    await wait_all_tasks_blocked()
    await client.stream.aclose()
    commands.release.set()
    await wait_all_tasks_blocked()
    assert commands.finished


# Hostile clients


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ((100_000_000).to_bytes(4, "big") + b"x" * 1000, "100000000 bytes is over"),
        (b"GET / HTTP/1.1\r\n\r\n", "1195725856 bytes is over the limit of 4194304"),
        ((5).to_bytes(4, "big") + b"\xc1abcd", "not valid msgpack"),
        (bytes(4), "not valid msgpack"),
    ],
)
async def test_garbage_is_answered_and_ends_the_connection(
    server, connect, data, complaint
):
    client = await connect()
    await client.stream.send_all(data)
    with pytest.raises(AlphaTrioError, match=complaint):
        await client.receive()
    assert await client.closed() == 0
    assert await (await connect()).call("echo") == {}


async def test_half_a_frame_then_gone(server, connect):
    whole = wire.encode_request("echo", {"name": "vm2"})
    for cut in range(len(whole)):
        client = await connect()
        await client.stream.send_all(whole[:cut])
        await client.stream.aclose()
    await wait_all_tasks_blocked()
    assert await (await connect()).call("echo") == {}


async def test_half_a_frame_then_silence_is_cut_off(
    server, connect, monkeypatch, autojump_clock
):
    autojump_clock.autojump_threshold = 0.01
    client = await connect()
    await client.stream.send_all(wire.encode_request("echo", {})[:-1])
    assert await client.closed() == 0
    assert trio.current_time() == pytest.approx(serving.READ_SECONDS)


async def test_client_that_does_not_take_its_answer_is_cut_off(
    server, connect, autojump_clock
):
    autojump_clock.autojump_threshold = 0.01
    client = await connect()
    await client.send("big")
    await trio.sleep(serving.WRITE_SECONDS + 1)
    assert await (await connect()).call("echo") == {}
    # What the kernel had buffered is all that ever comes.
    assert 0 < await client.closed() < 1_000_000


async def test_listener_may_stop_reading_for_as_long_as_it_likes(
    server, connect, autojump_clock
):
    autojump_clock.autojump_threshold = 0.01
    client = await connect()
    await client.send("count", to=20_000)
    await trio.sleep(100 * serving.WRITE_SECONDS)
    assert await (await connect()).call("echo") == {}
    for number in range(20_000):
        assert (await client.receive())["number"] == number
    assert await client.receive() is None
    assert await client.call("echo") == {}


async def test_listeners_that_never_read_lose_their_places_when_they_go(
    server, connect, autojump_clock
):
    autojump_clock.autojump_threshold = 0.01
    deaf = [await connect() for _ in range(MAX_CLIENTS)]
    for client in deaf:
        await client.send("flood")
    await trio.sleep(serving.WRITE_SECONDS + 1)
    with pytest.raises(AlphaTrioError, match="64 clients are served already"):
        await (await connect()).call("echo")
    await deaf[0].stream.aclose()
    await wait_all_tasks_blocked()
    assert await (await connect()).call("echo") == {}


async def test_idle_connections_cannot_lock_out_the_operator(server, connect):
    idle = [await connect() for _ in range(200)]
    assert await (await connect()).call("echo", name="vm2") == {"name": "vm2"}
    # The oldest lost their places.
    assert await idle[0].closed() == 0
    assert await idle[-1].call("echo") == {}


async def test_newcomer_is_refused_when_all_places_are_busy(server, connect, commands):
    busy = [await connect() for _ in range(MAX_CLIENTS)]
    for client in busy:
        await client.send("hang")
    await wait_all_tasks_blocked()
    newcomer = await connect()
    with pytest.raises(AlphaTrioError, match="64 clients are served already"):
        await newcomer.call("echo")
    await busy[0].stream.aclose()
    await wait_all_tasks_blocked()
    assert await (await connect()).call("echo") == {}


async def test_two_hundred_connections_of_garbage(server, connect):
    for number in range(200):
        client = await connect()
        await client.stream.send_all(os.urandom(number))
    assert await (await connect()).call("echo") == {}


# Events


async def test_events_reach_all_subscribers():
    hub = EventHub()
    async with hub.subscribe() as first, hub.subscribe() as second:
        hub.publish({"event": "established", "peer": "vm2", "time": 1.0})
        assert await first.receive() == await second.receive()
    hub.publish({"event": "nobody listens", "peer": None, "time": 2.0})


def number(time):
    return {"event": "number", "peer": None, "time": float(time)}


async def test_slow_subscriber_is_told_how_many_events_it_lost():
    hub = EventHub()
    queued = EVENT_QUEUE
    async with hub.subscribe() as events:
        for _ in range(2):  # it may fall behind again
            for time in range(queued + 5):
                hub.publish(number(time))
            assert events.statistics().current_buffer_used == queued + 1
            for time in range(queued):
                assert await events.receive() == number(time)
            lost = {"event": "lost", "peer": None, "time": float(queued), "count": 5}
            assert await events.receive() == lost
        hub.publish(number(999))
        assert await events.receive() == number(999)


async def test_each_gap_is_told_in_its_place():
    hub = EventHub()
    queued = EVENT_QUEUE
    async with hub.subscribe() as events:
        for time in range(queued + 3):
            hub.publish(number(time))
        assert await events.receive() == number(0)
        hub.publish(number(queued + 3))  # no place yet: the loss itself has one
        assert await events.receive() == number(1)
        hub.publish(number(queued + 4))
        hub.publish(number(queued + 5))
        for time in range(2, queued):
            assert await events.receive() == number(time)
        assert (await events.receive())["count"] == 4
        assert await events.receive() == number(queued + 4)
        assert (await events.receive())["count"] == 1


async def test_listener_that_reads_on_is_told_what_it_lost(
    server, connect, commands, autojump_clock
):
    autojump_clock.autojump_threshold = 0.01
    client = await connect()
    await client.send("monitor")
    await wait_all_tasks_blocked()
    published = 5000
    for time in range(published):
        commands.hub.publish(number(time) | {"filling": "x" * 1000})
        await trio.lowlevel.checkpoint()
    await trio.sleep(serving.WRITE_SECONDS + 1)
    seen = 0
    while (event := await client.receive())["event"] == "number":
        assert event["time"] == seen
        seen += 1
    assert event["event"] == "lost"
    assert seen + event["count"] == published
    commands.hub.publish(number(published))
    assert await client.receive() == number(published)


# The socket and its file


async def serve(path, nursery, group=None):
    server = ControlServer(
        Settings(socket=path, socket_group=group), Commands(), Journal()
    )
    await nursery.start(server.run)


async def refused(path, group=None, status_group=None):
    """The text of the StartError that a server at ``path`` ends with."""
    server = ControlServer(
        Settings(socket=path, socket_group=group, status_group=status_group),
        Commands(),
        Journal(),
    )
    with pytest.raises(StartError) as caught:
        await server.run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


async def test_only_the_owner_may_connect(path, server):
    assert mode(path.parent) == 0o700
    assert mode(path) == 0o600


async def test_group_may_connect(path, nursery):
    group = grp.getgrgid(os.getgroups()[-1] if os.getgroups() else os.getgid())
    await serve(path, nursery, group.gr_name)
    assert mode(path.parent) == 0o750
    assert mode(path) == 0o660
    assert path.stat().st_gid == path.parent.stat().st_gid == group.gr_gid


async def test_unknown_group(path):
    text = await refused(path, group="no-such-group")
    assert "'no-such-group'" in text
    assert "correct socket_group" in text
    assert not path.parent.exists()
    text = await refused(path, status_group="no-such-group")
    assert "correct status_group" in text
    assert not path.parent.exists()


class Questions(Commands):
    """Those of the second socket."""

    async def echo(self, args):
        return "asked"


def own_group():
    return grp.getgrgid(os.getgroups()[-1] if os.getgroups() else os.getgid()).gr_name


async def serve_both(path, nursery, group=None):
    """A server with two sockets, and the path of the second."""
    settings = Settings(socket=path, socket_group=group, status_group=own_group())
    server = ControlServer(settings, Commands(), Journal(), Questions())
    await nursery.start(server.run)
    return settings.status_socket


@pytest.mark.parametrize(("group", "directory"), [(False, 0o711), (True, 0o751)])
async def test_another_group_may_ask_by_a_socket_of_its_own(
    path, nursery, group, directory
):
    status = await serve_both(path, nursery, own_group() if group else None)
    assert status.name == "control-status.sock"
    assert mode(path) == (0o660 if group else 0o600)
    assert mode(status) == 0o660
    assert mode(path.parent) == directory
    for socket_path, answer in ((path, {}), (status, "asked")):
        async with await trio.open_unix_socket(socket_path) as stream:
            assert await Client(stream).call("echo") == answer


async def test_a_question_is_shorter_than_a_command_may_be(path, nursery):
    status = await serve_both(path, nursery)
    for socket_path, length in ((path, 1_000_000), (status, 60_000)):
        async with await trio.open_unix_socket(socket_path) as stream:
            await Client(stream).call("echo", text="x" * length)
    async with await trio.open_unix_socket(status) as stream:
        with pytest.raises(AlphaTrioError, match="is over the limit of 65536"):
            await Client(stream).call("echo", text="x" * 66_000)


async def test_both_sockets_are_removed_at_the_end(path):
    async with trio.open_nursery() as nursery:
        status = await serve_both(path, nursery)
        assert status.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.parent.exists()


async def test_who_asks_takes_no_place_of_who_commands(path, nursery):
    status = await serve_both(path, nursery)
    async with AsyncExitStack() as streams:
        for _ in range(MAX_ASKING):
            stream = await streams.enter_async_context(
                await trio.open_unix_socket(status)
            )
            await Client(stream).send("hang")
        await wait_all_tasks_blocked()
        one_more = await streams.enter_async_context(
            await trio.open_unix_socket(status)
        )
        with pytest.raises(AlphaTrioError, match="served already"):
            await Client(one_more).call("echo")
        stream = await streams.enter_async_context(await trio.open_unix_socket(path))
        assert await Client(stream).call("echo") == {}


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_a_killed_one_left_of_the_second_socket_goes(
    path, nursery, connect, wanted
):
    path.parent.mkdir()
    status = Settings(socket=path).status_socket
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(status))
    if wanted:
        await serve_both(path, nursery)
        async with await trio.open_unix_socket(status) as stream:
            assert await Client(stream).call("echo") == "asked"
    else:
        await serve(path, nursery)
        assert not status.exists()


async def test_what_is_not_ours_where_the_second_socket_would_be_stays(path, nursery):
    path.parent.mkdir()
    status = Settings(socket=path).status_socket
    status.write_text("precious")
    await serve(path, nursery)
    assert status.read_text() == "precious"


async def test_our_own_directory_is_opened_to_the_groups(path, monkeypatch):
    """systemd has made it already, and nobody else has anything in it."""
    monkeypatch.setattr(listener, "DEFAULT_SOCKET", path)
    path.parent.mkdir(mode=0o700)
    async with trio.open_nursery() as nursery:
        await serve_both(path, nursery, own_group())
        assert mode(path.parent) == 0o751
        nursery.cancel_scope.cancel()


async def test_directory_that_was_there_is_left_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    async with trio.open_nursery() as nursery:
        await serve(tmp_path / "control.sock", nursery)
        assert mode(tmp_path) == 0o755
        nursery.cancel_scope.cancel()
    assert list(tmp_path.iterdir()) == []


async def test_socket_and_own_directory_are_removed_at_the_end(path):
    async with trio.open_nursery() as nursery:
        await serve(path, nursery)
        assert path.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.parent.exists()


async def test_directory_with_something_else_in_it_stays(path):
    async with trio.open_nursery() as nursery:
        await serve(path, nursery)
        (path.parent / "other.sock").touch()
        nursery.cancel_scope.cancel()
    assert [entry.name for entry in path.parent.iterdir()] == ["other.sock"]


async def test_stale_socket_is_replaced(tmp_path, nursery):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    await serve(path, nursery)
    stream = await trio.open_unix_socket(path)
    async with stream:
        assert await Client(stream).call("echo") == {}


async def test_live_daemon_is_left_alone(path, server, connect):
    text = await refused(path)
    assert str(path) in text
    assert f"alpha-trio --socket {path} stop" in text
    assert await (await connect()).call("echo") == {}


async def test_live_daemon_with_a_full_queue_is_left_alone(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        assert "another daemon answers" in await refused(path)
    assert path.is_socket()


async def test_of_two_that_start_at_once_one_wins(path, nursery):
    outcomes = []

    async def start():
        try:
            await serve(path, nursery)
            outcomes.append("started")
        except* StartError:
            outcomes.append("refused")

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with trio.open_nursery() as starters:
        for _ in range(5):
            starters.start_soon(start)
    assert sorted(outcomes) == ["refused"] * 4 + ["started"]
    async with await trio.open_unix_socket(path) as stream:
        assert await Client(stream).call("echo") == {}


async def test_waits_for_another_that_is_just_binding(path, nursery, connect):
    path.parent.mkdir()
    directory = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    nursery.start_soon(serve, path, nursery)
    await wait_all_tasks_blocked()
    assert not path.exists()
    os.close(directory)
    while not path.exists():
        await trio.lowlevel.checkpoint()
    assert await (await connect()).call("echo") == {}


async def test_lock_that_is_never_released(path, autojump_clock):
    path.parent.mkdir()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        said = await refused(path)
        assert f"(process {os.getpid()}) holds a lock on {path.parent}: stop it" in said
    finally:
        os.close(directory)


async def test_beside_what_else_this_daemon_keeps(path, nursery, connect):
    with closing(StateDirectory(path.parent)):
        settings = Settings(socket=path, state_dir=path.parent)
        await nursery.start(ControlServer(settings, Commands(), Journal()).run)
        assert await (await connect()).call("echo") == {}


async def test_socket_of_a_successor_is_not_removed(tmp_path):
    path = tmp_path / "control.sock"
    async with trio.open_nursery() as nursery:
        await serve(path, nursery)
        path.rename(tmp_path / "moved")
        path.touch()
        nursery.cancel_scope.cancel()
    assert path.exists()


async def test_ordinary_file_in_the_way(tmp_path):
    path = tmp_path / "control.sock"
    path.write_text("precious")
    assert "is not a socket: remove it" in await refused(path)
    assert path.read_text() == "precious"


async def test_path_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in await refused(tmp_path / "file" / "control.sock")
    assert "too long" in await refused(tmp_path / Path("x" * 120))
    datagrams = tmp_path / "datagrams.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(datagrams))
        assert "wrong type" in await refused(datagrams)
