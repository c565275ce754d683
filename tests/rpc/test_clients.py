"""Both clients in front of a node held in memory, over a real socket."""

import inspect
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import get_type_hints

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from alpha_trio import rpc, settings, wire
from alpha_trio.errors import (
    AlphaTrioError,
    ConfigError,
    NoDaemon,
    RemoteError,
    TimedOut,
    UnknownPeer,
    WrongUsage,
)
from alpha_trio.rpc import Client, TrioClient
from tests.control.memory_node import KEY, MemoryNode

VM2 = settings.PeerSettings("vm2", "192.168.10.61", keepalive=25.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control.sock"


@pytest.fixture
async def node(path, nursery):
    node = MemoryNode(path)
    await nursery.start(node.serve)
    return node


class Blocking:
    """The blocking client with the face of the other: each call in a thread."""

    def __init__(self, client):
        self._client = client
        self._threads = trio.CapacityLimiter(1000)

    def __getattr__(self, name):
        method = getattr(self._client, name)

        async def call(*args, **more):
            return await trio.to_thread.run_sync(
                lambda: method(*args, **more), limiter=self._threads
            )

        return call


@pytest.fixture(params=["blocking", "trio"])
def client(request, path, node):
    return Blocking(Client(path)) if request.param == "blocking" else TrioClient(path)


async def test_peers(client, node):
    assert await client.add_peer("vm2", endpoint="192.168.10.61", keepalive=25)
    assert not await client.add_peer("vm2", endpoint="192.168.10.61", keepalive=25)
    assert node.peers() == [(VM2, "state")]
    (listed,) = await client.peers()
    assert listed.items() <= (await client.peer("vm2")).items()
    await client.set_peer("vm2", keepalive=None, take_over=True)
    assert "keepalive" not in await client.peer("vm2")
    assert node.taken_over == ["vm2"]
    await client.remove_peer("vm2")
    assert await client.peers() == []


async def test_peers_are_imported_all_or_none(client, node):
    peers = {"vm2": {"endpoint": "192.168.10.61"}, "vm3": {"endpoint": "192.168.10.62"}}
    found = await client.import_peers(peers)
    assert found == {"added": ["vm2", "vm3"], "changed": [], "unchanged": []}
    peers["vm2"]["keepalive"] = 25
    with pytest.raises(RemoteError, match="--replace"):
        await client.import_peers(peers)
    found = await client.import_peers(peers, replace=True, take_over=True)
    assert found == {"added": [], "changed": ["vm2"], "unchanged": ["vm3"]}
    assert node.peers()[0] == (VM2, "state")
    assert node.taken_over == ["vm2", "vm3"]


async def test_how_it_stands(client, node):
    assert await client.status() == node.document
    await client.add_peer("vm2", endpoint="192.168.10.61")
    assert await client.doctor("vm2") == node.steps
    assert (await client.trace("vm2", seconds=0))["seconds"] == 0
    node.established["vm2"].set()
    assert (await client.wait("vm2"))["event"] == "established"


async def test_reload(client, node):
    node.reloaded = {"added": ["vm3"], "changed": [], "removed": []}
    assert await client.reload() == node.reloaded
    node.reloaded = ConfigError("alpha-trio.toml: port: 0 is no port")
    with pytest.raises(RemoteError, match="0 is no port") as caught:
        await client.reload()
    assert caught.value.exit_code == 1


async def test_stop(client, node, monkeypatch):
    def pidfd_open(process):  # this process serves, and lives on
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    await client.stop()
    with pytest.raises(NoDaemon, match="start it with 'alpha-trio run'"):
        await client.status()


@pytest.mark.parametrize(
    ("method", "kind", "text"),
    [
        ("peer", UnknownPeer, "no peer is called 'vm9'"),
        ("wait", UnknownPeer, "no peer is called 'vm9'"),
        ("trace", UnknownPeer, "no peer is called 'vm9'"),
        ("call", RemoteError, "unknown command 'vm9'"),
    ],
)
async def test_what_the_daemon_refuses(client, method, kind, text):
    with pytest.raises(kind, match=text):
        await getattr(client, method)("vm9")


@pytest.mark.parametrize(
    "values", [{"key": KEY[1:]}, {"key": object()}, {"endpoint": "\udcff"}]
)
async def test_what_can_never_be_is_wrong_usage(client, values):
    with pytest.raises(WrongUsage):
        await client.add_peer("vm2", **values)


async def test_a_client_outlives_a_restart_of_the_daemon(client, node, nursery):
    await client.status()
    node.stop()
    await wait_all_tasks_blocked()
    with pytest.raises(NoDaemon):
        await client.status()
    await nursery.start(MemoryNode(node.settings.socket).serve)
    await client.status()


@contextmanager
def answering(path, *data):
    """Something that is no daemon, and answers with these bytes, one each time."""

    with socket.create_server(str(path), family=socket.AF_UNIX) as server:

        def serve():
            for answer in data:
                with server.accept()[0] as stream:
                    stream.recv(65536)
                    stream.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


CUT = wire.encode_result("whole")[:-1]
REFUSED = wire.encode_error("64 clients are served already", 1)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"", NoDaemon, "ended before it answered"),
        (CUT, NoDaemon, "ended before it answered"),
        (b"HTTP/1.1 400 Bad Request", AlphaTrioError, "over the limit"),
        (b"\0\0\0\1\xc1", AlphaTrioError, "not valid msgpack"),
        (REFUSED, RemoteError, "served already"),
    ],
)
async def test_what_is_no_answer(path, answer, kind, text):
    for client in (Blocking(Client(path)), TrioClient(path)):
        path.unlink(missing_ok=True)
        with answering(path, answer), pytest.raises(kind, match=text):
            await client.status()


@pytest.fixture
def public_folder():
    """One that others may enter, as they may not those of the tests."""
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.mark.root
async def test_who_may_only_ask_asks_at_the_other_socket(nursery, public_folder):
    group, path = "nogroup", public_folder / "control.sock"
    await nursery.start(MemoryNode(path, status_group=group).serve)
    code = f"""if True:
        import grp, os, trio
        from alpha_trio.rpc import Client, TrioClient
        os.setgroups([])
        os.setgid(grp.getgrnam({group!r}).gr_gid)
        os.setuid(65534)
        print(Client().status()["schema"])
        print(trio.run(TrioClient().status)["schema"])
        try:
            Client().remove_peer("vm2")
        except Exception as error:
            print(error)
    """
    done = await trio.run_process(
        [sys.executable, "-c", code],
        env=os.environ | {"ALPHA_TRIO_SOCKET": str(path)},
        capture_stdout=True,
    )
    assert done.stdout.decode().startswith("1\n1\n'peers.remove' is not for those who")


# Many at once, and giving up


async def test_one_client_serves_many_tasks_or_threads(client, node):
    told = Counter()

    async def ask(name):
        await client.add_peer(name, endpoint="192.168.10.61")
        told[(await client.peer(name))["name"]] += 1

    names = [f"vm{number}" for number in range(200)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    assert told == Counter(names)


async def test_a_cancelled_call_takes_nothing_but_itself_along(path, node):
    client = TrioClient(path)
    await client.add_peer("vm2", endpoint="192.168.10.61")
    sessions = []

    async def other():
        sessions.append(await client.wait("vm2"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(client.wait, "vm2")
                await wait_all_tasks_blocked()
                waiting = node.established["vm2"].statistics().tasks_waiting
                scope.cancel()
        assert waiting == 2
        await wait_all_tasks_blocked()
        # The daemon has given it up, too, and asks the peer for the other one only.
        assert node.established["vm2"].statistics().tasks_waiting == 1
        assert (await client.peer("vm2"))["name"] == "vm2"
        node.established["vm2"].set()
    assert [event["event"] for event in sessions] == ["established"]


async def test_a_call_cancelled_at_any_checkpoint_leaves_the_client_usable(path, node):
    client, finished = TrioClient(path), False
    patience = 0
    while not finished:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def ask():
                    nonlocal finished
                    await client.peers()
                    finished = True

                nursery.start_soon(ask)
                for _ in range(patience):
                    await trio.lowlevel.checkpoint()
                if not finished:
                    scope.cancel()
        patience += 1
        assert await client.peers() == []
    assert patience > 3


async def test_events_while_calls_go_on(path, node):
    client, seen = TrioClient(path), []
    async with client.monitor() as events:
        await client.add_peer("vm2", endpoint="192.168.10.61")
        node.hub.publish({"event": "established", "peer": "vm2", "time": 2.0})
        async for event in events:
            seen.append(event["event"])
            if event["event"] == "established":
                break
    assert seen == ["peer-added", "established"]
    await wait_all_tasks_blocked()
    assert len(node.hub._subscribers) == 0


async def test_events_end_with_the_daemon(path, node):
    async with TrioClient(path).monitor() as events:
        await wait_all_tasks_blocked()
        node.stop()
        with pytest.raises(NoDaemon, match="has closed the connection"):
            await anext(events)


async def test_any_command_has_its_events(path, node):
    client = TrioClient(path)
    await client.add_peer("vm2", endpoint="192.168.10.61")
    args = {"name": "vm2", "seconds": 1}
    async with client.events("trace", args) as events:
        assert [event["peer"] async for event in events] == ["vm2"]


async def test_a_blocking_stream_is_left_like_any_iterator(path, node):
    client = Client(path)
    told = []

    def watch():
        for event in client.monitor():
            told.append(event["event"])
            told.append(client.status()["schema"])  # with a connection of its own
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, watch)
        while not node.hub._subscribers:
            await trio.lowlevel.checkpoint()
        node.hub.publish({"event": "woke", "peer": None, "time": 1.0})
    assert told == ["woke", 1]
    await wait_all_tasks_blocked()
    assert len(node.hub._subscribers) == 0


async def test_a_blocking_client_waits_for_so_long(path, node):
    client = Client(path)
    await trio.to_thread.run_sync(lambda: client.add_peer("vm2", endpoint="1.2.3.4"))
    with pytest.raises(TimedOut, match=r"no session with vm2 within 0\.01 s"):
        await trio.to_thread.run_sync(lambda: client.wait("vm2", timeout=0.01))
    # Given up for good: the daemon asks the peer no more.
    await wait_all_tasks_blocked()
    assert node.established["vm2"].statistics().tasks_waiting == 0


def test_a_blocking_client_waits_as_long_as_it_is_told(path, monkeypatch):
    monkeypatch.setattr(rpc.asking, "ANSWER_SECONDS", inf)  # no socket takes that
    client = Client(path, timeout=0.01)
    with (
        socket.create_server(str(path), family=socket.AF_UNIX),
        pytest.raises(TimedOut, match="did not answer in time"),
    ):
        client.status()


# What programs may rely on


def test_both_clients_have_the_same_methods():
    def methods(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(TrioClient)


@pytest.mark.parametrize("client", [Client, TrioClient])
def test_every_method_says_what_it_does_and_has_types(client):
    for name, method in inspect.getmembers(client, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
            assert "return" in get_type_hints(method), name


def test_every_setting_of_a_peer_can_be_given():
    fields = {field.name for field in attrs.fields(settings.PeerSettings)}
    assert get_type_hints(rpc.PeerSettings).keys() == fields - {"name", "hooks"}


def test_the_socket_is_the_one_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ALPHA_TRIO_SOCKET", str(tmp_path / "other.sock"))
    with pytest.raises(NoDaemon, match=r"other\.sock"):
        Client().status()
    monkeypatch.delenv("ALPHA_TRIO_SOCKET")
    assert rpc.asking.socket_path(None) == wire.DEFAULT_SOCKET


@pytest.mark.parametrize(("name", "loads"), [("Client", False), ("TrioClient", True)])
def test_trio_is_loaded_by_those_who_use_it(name, loads):
    code = (
        f"import sys; from alpha_trio.rpc import {name}; print('trio' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{loads}\n"


def test_what_is_not_there_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="no attribute 'AsyncioClient'"):
        _ = rpc.AsyncioClient
