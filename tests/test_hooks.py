"""Hooks: real programs, run for events that a test makes up."""

import os
import sys
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from alpha_trio import hooks
from alpha_trio.hooks import WAITING, Hooks
from alpha_trio.journal import Journal
from alpha_trio.proto.batch import Event, EventKind
from alpha_trio.settings import HookSettings

WHERE = ("192.168.10.61", 1234)
ENDLESS = "import time\nwhile True: time.sleep(1)"


def program(code, *arguments):
    return (sys.executable, "-c", code, *arguments)


def writes(path):
    """A hook that adds its arguments and its environment to a file."""
    code = f"""
import os, sys
with open({str(path)!r}, "a") as file:
    print(sys.argv[1:], sorted(os.environ.items()), os.getcwd(), file=file)
"""
    return lambda *arguments: program(code, *arguments)


@asynccontextmanager
async def running(settings):
    """Hooks of the peers vm2 and vm3, and their journal."""
    journal = Journal()
    peers = dict.fromkeys(("vm2", "vm3"), settings)
    async with trio.open_nursery() as nursery:
        found = Hooks("alpha0", peers.get, journal)
        await nursery.start(found.run)
        yield found, journal, peers
        nursery.cancel_scope.cancel()


def happen(found, *kinds, peer="vm2"):
    for kind in kinds:
        found.on_event(Event(kind, peer, WHERE))


async def counted(found, **counts):
    while True:
        if all(found.counts[result] >= count for result, count in counts.items()):
            return
        await trio.sleep(0.01)


async def written(path):
    """What stands in a file, once something does."""
    while True:
        with suppress(FileNotFoundError):
            if found := await trio.Path(path).read_text():
                return found
        await trio.sleep(0.01)


async def gone(pid):
    """Wait until a process has ended, whether somebody has asked for it or not."""
    while True:
        try:
            status = await trio.Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if status.rpartition(")")[2].split()[0] == "Z":
            return
        await trio.sleep(0.01)


async def test_a_peer_comes_moves_and_goes(tmp_path):
    path = tmp_path / "told"
    hook = writes(path)
    settings = HookSettings(hook("up", "$HOME;"), hook("down"), hook("moved"))
    async with running(settings) as (found, journal, _):
        happen(found, EventKind.SYN_SENT, EventKind.SILENT, EventKind.MOVED)
        happen(found, EventKind.ACK_RECEIVED, EventKind.ESTABLISHED, EventKind.MOVED)
        happen(found, EventKind.SILENT, EventKind.GAVE_UP, EventKind.ESTABLISHED)
        happen(found, EventKind.ESTABLISHED, peer="another")
        await counted(found, done=4)
        assert journal.troubles == {}
    told = path.read_text().splitlines()
    assert [line.partition("]")[0] for line in told] == [
        "['up', '$HOME;'",
        "['moved'",
        "['down'",
        "['up', '$HOME;'",
    ]
    environment = {
        "ALPHA_TRIO_ENDPOINT": "192.168.10.61:1234",
        "ALPHA_TRIO_EVENT": "moved",
        "ALPHA_TRIO_INTERFACE": "alpha0",
        "ALPHA_TRIO_PEER": "vm2",
        "LC_ALL": "C.UTF-8",
        "PATH": hooks.PATH,
    }
    assert told[1] == f"['moved'] {sorted(environment.items())} /"


async def test_a_removed_peer_is_down(tmp_path):
    path = tmp_path / "told"
    async with running(HookSettings(on_down=writes(path)())) as (found, _, peers):
        happen(found, EventKind.ESTABLISHED)
        del peers["vm2"]
        found.removed("vm2")
        found.removed("vm3")
        await counted(found, done=1)
    assert "'down'" in path.read_text()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/no/such/program",), "No such file or directory"),
        (("/",), "Permission denied"),
        (program("print('a reason\\n\\x1b[0m'); raise SystemExit(3)"), "3 (a reason)"),
        (program("print('\\x1b[31m'); raise SystemExit(3)"), "3 (?[31m)"),
    ],
)
async def test_a_hook_that_fails_is_told_until_it_succeeds(command, why, caplog):
    async with running(HookSettings(on_up=command)) as (found, journal, peers):
        happen(found, EventKind.ESTABLISHED)
        await counted(found, failed=1)
        told = journal.troubles["hook on_up of vm2"]
        assert told.startswith("hook on_up of vm2: failed: ")
        assert why in told
        happen(found, EventKind.GAVE_UP, EventKind.ESTABLISHED)
        await counted(found, failed=2)
        assert caplog.text.count("failed") == 1
        peers["vm2"] = HookSettings(on_up=program(""))
        happen(found, EventKind.GAVE_UP, EventKind.ESTABLISHED)
        await counted(found, done=1)
        assert journal.troubles == {}


async def test_other_settings_end_the_complaint():
    async with running(HookSettings(on_up=("/no/such",))) as (found, journal, peers):
        happen(found, EventKind.ESTABLISHED)
        await counted(found, failed=1)
        peers["vm2"] = None
        found.changed("vm2")
        assert journal.troubles == {}


async def test_one_that_hangs_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "SECONDS", 1.5)
    pid = tmp_path / "pid"
    code = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    open({str(pid)!r}, "w").write(str(os.getpid()))
{ENDLESS}
"""
    hook = HookSettings(on_up=program(code), on_down=program(""))
    async with running(hook) as (found, journal, _):
        happen(found, EventKind.ESTABLISHED, EventKind.GAVE_UP)
        child = await written(pid)
        await counted(found, killed=1, done=1)
        assert "did not end within 1.5 s" in journal.troubles["hook on_up of vm2"]
        await gone(child)


async def test_one_that_floods_its_output_ends(tmp_path):
    flood = program("while True: print('x' * 1000)")
    async with running(HookSettings(on_up=flood)) as (found, journal, _):
        happen(found, EventKind.ESTABLISHED)
        await counted(found, failed=1)
        assert len(journal.troubles["hook on_up of vm2"]) < 500


async def test_what_it_leaves_behind_holds_nobody_up(tmp_path):
    pid = tmp_path / "pid"
    code = f"""
import os
if os.fork() == 0:
    open({str(pid)!r}, "w").write(str(os.getpid()))
    import time
    time.sleep(5)
"""
    async with running(HookSettings(on_up=program(code))) as (found, _, _):
        happen(found, EventKind.ESTABLISHED)
        await counted(found, done=1)
        os.kill(int(await written(pid)), 9)


async def test_one_at_a_time_and_so_many_wait(tmp_path):
    path, gate = tmp_path / "told", tmp_path / "gate"
    code = f"""
import os, sys, time
path = {str(path)!r}
open(path, "a").write("(")
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
open(path, "a").write(")")
"""
    hook = HookSettings(on_up=program(code), on_moved=program(code))
    async with running(hook) as (found, journal, _):
        happen(found, EventKind.ESTABLISHED)
        await written(path)
        happen(found, *[EventKind.MOVED] * (WAITING + 3))
        assert found.counts["skipped"] == 3
        assert "too many are due" in journal.troubles["hook on_moved of vm2"]
        gate.touch()
        await counted(found, done=WAITING + 1)
    assert path.read_text() == "()" * (WAITING + 1)


async def test_at_the_end_what_runs_is_killed(tmp_path):
    pid = tmp_path / "pid"
    code = f"import os\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n{ENDLESS}"
    async with running(HookSettings(on_up=program(code))) as (found, _, _):
        happen(found, EventKind.ESTABLISHED)
        child = await written(pid)
    await gone(child)
