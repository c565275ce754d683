"""The commands over a real socket, in front of a node held in memory."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alpha_trio.control import commands_for, questions_for
from alpha_trio.control.commands import QUESTIONS
from alpha_trio.errors import AlphaTrioError, ConfigError
from alpha_trio.settings import HookSettings, PeerSettings, parse_peer
from tests.control.memory_node import KEY, MemoryNode, status_of
from tests.control.test_control import Client

PSK = "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs="


@pytest.fixture
async def node(tmp_path, nursery):
    node = MemoryNode(tmp_path / "control.sock")
    await nursery.start(node.serve)
    return node


@asynccontextmanager
async def connected(node):
    async with await trio.open_unix_socket(node.settings.socket) as stream:
        yield Client(stream)


@pytest.fixture
async def client(node):
    async with connected(node) as client:
        yield client


def only_peer(node) -> PeerSettings:
    ((peer, _),) = node.peers()
    return peer


async def fails(client, command, **args) -> AlphaTrioError:
    with pytest.raises(AlphaTrioError) as caught:
        await client.call(command, **args)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_status(client, node):
    assert await client.call("status") == node.document


async def test_status_of_one_peer(client, node):
    peers = [status_of(PeerSettings(name, "192.168.10.61")) for name in ("vm2", "vm3")]
    node.document["peers"] = peers
    assert (await client.call("status", name="vm3"))["peers"] == peers[1:]
    assert (await fails(client, "status", name="vm4")).exit_code == 4
    assert "must be text" in str(await fails(client, "status", name=4))


async def test_add(client, node):
    settings = {"endpoint": "192.168.10.61:5555", "allow": ["10.1.0.0/16"]}
    answer = await client.call("peers.add", name="vm2", settings=settings)
    assert answer == {"added": True}
    assert only_peer(node) == parse_peer("vm2", settings, "test")
    assert node.taken_over == []


async def test_add_again_changes_nothing(client):
    args = {"name": "vm2", "settings": {"endpoint": "192.168.10.61"}}
    await client.call("peers.add", **args)
    assert await client.call("peers.add", **args) == {"added": False}


async def test_add_with_other_settings_names_the_remedy(client):
    await client.call("peers.add", name="vm2", settings={"endpoint": "192.168.10.61"})
    other = {"endpoint": "192.168.10.62"}
    error = await fails(client, "peers.add", name="vm2", settings=other)
    assert "peers set vm2" in str(error)
    assert error.exit_code == 1


async def test_take_over_is_passed_on(client, node):
    await client.call("peers.add", name="vm2", take_over=True)
    assert node.taken_over == ["vm2"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({}, "name of a peer must be text, not None"),
        ({"name": 5}, "name of a peer must be text, not 5"),
        ({"name": "vm2", "settings": ["x"]}, "must be a map, not list"),
        ({"name": "vm2", "settings": {"endpoint": 5}}, "peers add: endpoint"),
        ({"name": "vm2", "settings": {"colour": "red"}}, "colour"),
        ({"name": "a\nb", "settings": {}}, r"peers add: 'a\\nb' is no peer name"),
        ({"name": "x" * 60_000, "settings": {}}, "name"),
    ],
)
async def test_bad_arguments_change_nothing(client, node, args, complaint):
    for command in ("peers.add", "peers.set"):
        error = await fails(client, command, **args)
        assert error.exit_code in (1, 2, 4)
    with pytest.raises(AlphaTrioError, match=complaint):
        await client.call("peers.add", **args)
    assert node.peers() == []


async def test_unknown_fields_are_ignored(client, node):
    await client.call("peers.add", name="vm2", settings={}, colour="red")
    assert only_peer(node).name == "vm2"


async def test_set_changes_only_what_is_named(client, node):
    settings = {
        "endpoint": "192.168.10.61",
        "port": 5555,
        "allow": ["10.1.0.0/16"],
        "keepalive": 25,
    }
    await client.call("peers.add", name="vm2", settings=settings)
    await client.call("peers.set", name="vm2", settings={"allow": ["10.2.0.0/16"]})
    expected = settings | {"allow": ["10.2.0.0/16"]}
    assert only_peer(node) == parse_peer("vm2", expected, "test")


async def test_set_can_empty_a_setting(client, node):
    settings = {"endpoint": "192.168.10.61", "allow": ["10.1.0.0/16"]}
    await client.call("peers.add", name="vm2", settings=settings)
    emptied = {"allow": [], "endpoint": None}
    await client.call("peers.set", name="vm2", settings=emptied)
    assert only_peer(node) == PeerSettings("vm2")


async def test_new_endpoint_does_not_inherit_the_old_port(client, node):
    old = {"endpoint": "192.168.10.61:5555"}
    await client.call("peers.add", name="vm2", settings=old)
    new = {"endpoint": "192.168.10.62"}
    await client.call("peers.set", name="vm2", settings=new)
    assert only_peer(node) == parse_peer("vm2", new, "test")


async def test_a_pin_goes_when_the_key_is_emptied_and_only_then(client, node):
    await client.call("peers.add", name="vm2", settings={"key": KEY})
    for settings in ({"keepalive": 25}, {"key": KEY}):
        await client.call("peers.set", name="vm2", settings=settings)
    assert node.forgotten == []
    await client.call("peers.set", name="vm2", settings={"key": None})
    assert only_peer(node).key is None
    assert node.forgotten == ["vm2"]


async def test_no_pin_goes_when_the_change_is_refused(client, node):
    await client.call("peers.add", name="vm2")
    await fails(client, "peers.set", name="vm2", settings={"key": None, "port": 0})
    assert node.forgotten == []


async def test_a_psk_is_taken_and_never_told(client, node):
    await client.call("peers.add", name="vm2", settings={"psk": PSK})
    assert only_peer(node).psk == PSK
    (listed,) = await client.call("peers.list")
    shown = await client.call("peers.show", name="vm2")
    (told,) = (await client.call("status"))["peers"]
    assert listed["psk"] is shown["psk"] is told["psk"] is True
    await client.call("peers.set", name="vm2", settings={"keepalive": 5})
    assert only_peer(node).psk == PSK
    await client.call("peers.set", name="vm2", settings={"psk": None})
    assert only_peer(node).psk is None
    assert "psk" not in (await client.call("peers.list"))[0]


@pytest.mark.parametrize(
    "settings", [{"psk": PSK + "!"}, {"psk": [PSK]}, [PSK], {"endpoint": 1, "psk": PSK}]
)
async def test_a_refusal_tells_no_psk(client, settings):
    error = await fails(client, "peers.add", name="vm2", settings=settings)
    assert PSK not in str(error)


ASKING = {
    "status": {},
    "peers.list": {},
    "peers.show": {"name": "vm2"},
    "doctor": {"name": "vm2"},
}


async def test_who_may_only_ask_gets_the_same_answers(node):
    await node.add_peer(PeerSettings("vm2"), False)
    for command, args in ASKING.items():
        answer = await commands_for(node)[command](args)
        assert await questions_for(node)[command](args) == answer
    assert {*ASKING, "monitor"} == QUESTIONS
    assert questions_for(node).keys() == commands_for(node).keys()


async def test_what_changes_something_is_refused_to_who_may_only_ask(node):
    await node.add_peer(PeerSettings("vm2"), False)
    before = node.peers()
    for command in commands_for(node).keys() - QUESTIONS:
        with pytest.raises(AlphaTrioError, match=f"'{command}' is not for those"):
            await questions_for(node)[command]({"name": "vm2"})
    assert node.peers() == before


async def test_peer_that_is_not_there(client):
    for command in ("peers.set", "peers.remove", "peers.show", "wait", "trace"):
        error = await fails(client, command, name="vm9")
        assert error.exit_code == 4
        assert "'vm9'" in str(error)


async def test_remove(client, node):
    await client.call("peers.add", name="vm2")
    await client.call("peers.remove", name="vm2")
    assert node.peers() == []


async def test_list_and_show(client):
    await client.call("peers.add", name="vm2", settings={"endpoint": "192.168.10.61"})
    expected = {"name": "vm2", "origin": "state", "endpoint": "192.168.10.61"}
    assert await client.call("peers.list") == [expected | {"key_source": "none"}]
    shown = await client.call("peers.show", name="vm2")
    assert shown == expected | {"key": None, "key_source": "none"}


async def test_show_tells_the_key_that_was_pinned(client, node):
    await client.call("peers.add", name="vm2")
    pinned = status_of(only_peer(node), key=KEY, key_source="pinned")
    node.document["peers"] = [pinned]
    shown = await client.call("peers.show", name="vm2")
    assert (shown["key"], shown["key_source"]) == (KEY, "pinned")
    (listed,) = await client.call("peers.list")
    assert (listed["key"], listed["key_source"]) == (KEY, "pinned")


async def test_an_import_of_many(client, node):
    peers = {"vm2": {"endpoint": "192.168.10.61"}, "vm3": {"key": KEY, "psk": PSK}}
    answer = await client.call("peers.import", peers=peers)
    assert answer == {"added": ["vm2", "vm3"], "changed": [], "unchanged": []}
    node.noted = ["a sentence"]
    peers["vm2"] = {}
    error = await fails(client, "peers.import", peers=peers)
    assert "--replace" in str(error)
    answer = await client.call(
        "peers.import", peers=peers, replace=True, take_over=True
    )
    assert (answer["changed"], answer["unchanged"]) == (["vm2"], ["vm3"])
    assert answer["notes"] == ["a sentence"]
    assert node.taken_over == ["vm2", "vm3"]


@pytest.mark.parametrize("peers", [None, [], {"vm2": None}, {"vm2": []}, {"": {}}])
async def test_an_import_of_what_are_no_peers(client, node, peers):
    error = await fails(client, "peers.import", peers=peers)
    assert error.exit_code in (1, 2)
    assert node.peers() == []


async def test_an_import_with_one_bad_peer_is_wrong_usage(client, node):
    peers = {"vm2": {}, "vm3": {"port": 0}}
    error = await fails(client, "peers.import", peers=peers)
    assert str(error).startswith("peers import: vm3: port: 0 is out of range")
    assert error.exit_code == 2
    assert node.peers() == []


async def test_where_a_psk_was_read_is_remembered_beside_it(client, node):
    settings = {"psk": PSK, "psk_file": "/etc/x.psk"}
    await client.call("peers.add", name="vm2", settings=settings)
    (listed,) = await client.call("peers.list")
    assert (listed["psk"], listed["psk_file"]) == (True, "/etc/x.psk")
    await client.call("peers.set", name="vm2", settings={"psk": PSK})
    assert only_peer(node).psk_file is None
    alone = {"psk_file": "/etc/x.psk"}
    assert "psk_file" in str(await fails(client, "peers.add", name="v", settings=alone))


async def test_what_the_config_file_has_run_for_a_peer_is_only_named(client, node):
    hooks = HookSettings(on_up=("/bin/up", "secret"))
    await node.add_peer(PeerSettings("vm2", hooks=hooks), False)
    (listed,) = await client.call("peers.list")
    assert listed["hooks"] == ["on_up"]


async def test_notes_are_told_to_who_configures_a_peer(client, node):
    assert await client.call("peers.add", name="vm2") == {"added": True}
    assert await client.call("peers.set", name="vm2", settings={"port": 5}) is None
    node.noted = ["a sentence"]
    answer = await client.call("peers.set", name="vm2", settings={"port": 6})
    assert answer == {"notes": ["a sentence"]}


async def test_reload(client, node):
    node.reloaded = {"added": ["vm2"], "changed": [], "removed": []}
    assert await client.call("reload") == node.reloaded


async def test_reload_of_a_bad_file(client, node):
    node.reloaded = ConfigError("alpha-trio.toml: line 3: port: 0 is not a port")
    assert "line 3" in str(await fails(client, "reload"))


async def test_trace(client, node):
    await client.call("peers.add", name="vm2")
    for given, seconds in ({"seconds": 0}, 0.0), ({}, 2.0):
        await client.send("trace", name="vm2", **given)
        expected = node.traced | {"peer": "vm2", "seconds": seconds}
        assert await client.receive() == expected
        assert await client.receive() is None


@pytest.mark.parametrize("seconds", [-1, 3601, "long", None, float("nan")])
async def test_a_trace_takes_seconds_that_make_sense(client, seconds):
    await client.call("peers.add", name="vm2")
    error = await fails(client, "trace", name="vm2", seconds=seconds)
    assert "seconds of a trace must be a number from 0 to 3600" in str(error)


async def test_wait(client, node):
    await client.call("peers.add", name="vm2")
    await client.send("wait", name="vm2")
    await wait_all_tasks_blocked()
    node.established["vm2"].set()
    assert await client.receive() == {"event": "established", "peer": "vm2"}
    assert await client.receive() is None


async def test_monitor(client, node):
    await client.send("monitor")
    await wait_all_tasks_blocked()
    async with connected(node) as other:
        await other.call("peers.add", name="vm2")
    event = await client.receive()
    assert event == {"event": "peer-added", "peer": "vm2", "time": 1.0}


async def test_stop_is_not_held_up_by_who_does_not_read(client, node):
    await client.send("monitor")
    await wait_all_tasks_blocked()
    for time in range(1000):
        node.hub.publish({"event": "x" * 1000, "peer": None, "time": float(time)})
        await trio.lowlevel.checkpoint()
    async with connected(node) as other:
        assert await other.call("stop") == {"event": "stopping"}
        assert await other.closed() == 0
    assert await client.closed() < 1_000_000
    assert not node.settings.socket.exists()


async def test_stop_answers_first(client, node):
    assert await client.call("stop") == {"event": "stopping"}
    assert await client.closed() == 0
    assert not node.settings.socket.exists()


@pytest.fixture
def named():
    """This process has a name of two lines, of which none is to be one of the log's."""
    name = Path("/proc/self/comm")
    before = name.read_text()
    name.write_text("a\nline")
    yield
    name.write_text(before)


async def test_stop_says_who_asked(client, node, named):
    await client.call("stop")
    await client.closed()
    who = f"(process {os.getpid()}, user {os.getuid()})"
    assert node.stopped_by == f"'stop' from a?line {who}"
