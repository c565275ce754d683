"""Peers kept on disk, and what a bad disk or a bad file does to them."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading

import pytest

from alpha_trio.errors import StartError, StateError
from alpha_trio.settings import PeerSettings, parse_peer
from alpha_trio.state import PeerStore

KEY = bytes(range(32))
VM2 = PeerSettings("vm2", endpoint="192.168.10.61")
VM3 = parse_peer(
    "vm3",
    {
        "endpoint": "vm3.example:99",
        "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "allow": ["10.9.0.0/24", "fd00::/64"],
        "only": ["tcp/80-90", "icmp"],
        "keepalive": 25,
        "psk": "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs=",
    },
    "test",
)


@pytest.fixture
def store(tmp_path):
    with PeerStore(tmp_path / "state") as store:
        yield store


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 KB, to be filled or made read-only."""
    path = tmp_path / "disk"
    path.mkdir()
    options = "size=8k,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def names(directory):
    return sorted(os.listdir(directory))


def refusal(kind, function, *args):
    with pytest.raises(kind) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nothing_saved_yet(store):
    assert store.load() == []


def test_what_was_saved_is_loaded(store):
    store.save([VM2, VM3])
    assert store.load() == [VM2, VM3]
    store.save([VM3])
    assert store.load() == [VM3]


def test_peers_outlive_the_store(tmp_path):
    with PeerStore(tmp_path) as store:
        store.save([VM2, VM3])
    with PeerStore(tmp_path) as store:
        assert store.load() == [VM2, VM3]


def test_the_file_can_be_read_by_people(store, tmp_path):
    store.save([VM2])
    assert (tmp_path / "state/peers.json").read_text() == (
        '{\n  "schema": 1,\n  "peers": [\n    {\n      "name": "vm2",\n'
        '      "endpoint": "192.168.10.61"\n    }\n  ]\n}\n'
    )


def test_only_the_owner_may_read(store, tmp_path):
    store.save([VM2])
    directory = tmp_path / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "peers.json").stat().st_mode) == 0o600
    assert names(directory) == ["peers.json"]


def test_threads_save_one_after_the_other(store, tmp_path):
    threads = [
        threading.Thread(target=store.save, args=([VM2, VM3][:count],))
        for count in (0, 1, 2, 0, 1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load() in ([], [VM2], [VM2, VM3])
    assert names(tmp_path / "state") == ["peers.json"]


# Pinned keys


def test_nothing_pinned_yet(store):
    assert store.pins() == {}


def test_pins_outlive_the_store_and_leave_the_peers_alone(tmp_path):
    with PeerStore(tmp_path) as store:
        store.save([VM2])
        store.save_pins({"vm2": KEY, "vm.x": KEY[::-1]})
    with PeerStore(tmp_path) as store:
        assert store.pins() == {"vm2": KEY, "vm.x": KEY[::-1]}
        assert store.load() == [VM2]
        store.save_pins({})
        assert store.pins() == {}
    assert names(tmp_path) == ["peers.json", "pins.json"]


def test_pins_can_be_read_by_people_but_by_the_owner_only(store, tmp_path):
    store.save_pins({"vm2": KEY})
    path = tmp_path / "state/pins.json"
    assert path.read_text() == (
        '{\n  "schema": 1,\n  "pins": {\n'
        '    "vm2": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="\n  }\n}\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b"{}", "no schema number"),
        (b'{"schema": 1}', "no table of pins"),
        (b'{"schema": 1, "pins": []}', "no table of pins"),
        (b'{"schema": 1, "pins": {"a b": ""}}', "'a b' is no peer name"),
        (b'{"schema": 1, "pins": {"vm2": 5}}', "pin of 'vm2': 5 is not a text"),
        (b'{"schema": 1, "pins": {"vm2": "AA"}}', "pin of 'vm2': this is no key"),
        (b'{"schema": 2}', "has schema 2, this version knows 1: a newer one wrote it"),
    ],
)
def test_damaged_pins_are_reported_and_kept(tmp_path, content, said):
    """An unreadable pin must not turn into trust of whoever comes first."""
    path = tmp_path / "pins.json"
    path.write_bytes(content)
    with PeerStore(tmp_path) as store:
        for attempt in (store.pins, lambda: store.save_pins({"vm2": KEY})):
            text = refusal(StateError, attempt)
            assert text.startswith(f"{path}: ")
            assert said in text
            assert "move " in text
        store.save([VM2])  # the other file is none of its business
    assert path.read_bytes() == content


@pytest.mark.root
def test_a_full_disk_loses_no_pin(small_disk):
    with PeerStore(small_disk) as store:
        store.save_pins({"vm2": KEY})
        fill(small_disk)
        text = refusal(StateError, store.save_pins, {"vm2": KEY, "vm3": KEY})
        assert text.startswith(f"{small_disk}/pins.json: cannot be saved: ")
        assert store.pins() == {"vm2": KEY}


# The directory


def test_two_daemons_never_share_a_directory(tmp_path):
    with PeerStore(tmp_path):
        text = refusal(StartError, PeerStore, tmp_path)
    assert text.startswith(f"state directory {tmp_path} is in use by another daemon")
    assert "--state-dir" in text
    PeerStore(tmp_path).close()


def test_a_store_is_closed_once(tmp_path):
    store = PeerStore(tmp_path)
    store.close()
    with PeerStore(tmp_path):
        store.close()  # must not close a descriptor that is another's by now
        refusal(StartError, PeerStore, tmp_path)


def of_another_group(path):
    """Not of root's, which is trusted."""
    if os.geteuid() == 0:
        os.chown(path, -1, 65534)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_directory_that_others_may_write_is_refused(tmp_path, mode):
    of_another_group(tmp_path)
    tmp_path.chmod(mode)
    text = refusal(StartError, PeerStore, tmp_path)
    assert f"state directory {tmp_path} can be written by others" in text
    assert f"'chmod go-w {tmp_path}'" in text
    assert os.listdir(tmp_path) == []
    tmp_path.chmod(0o755)
    PeerStore(tmp_path).close()


@pytest.mark.root
def test_whose_a_directory_is_may_write_it(tmp_path):
    os.chown(tmp_path, 65534, 0)
    assert f"'chown root {tmp_path}'" in refusal(StartError, PeerStore, tmp_path)


@pytest.mark.parametrize("load", [PeerStore.load, PeerStore.pins])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path, load, mode):
    name = {PeerStore.load: "peers", PeerStore.pins: "pins"}[load]
    path = tmp_path / f"{name}.json"
    with PeerStore(tmp_path) as store:
        store.save([VM2])
        store.save_pins({"vm2": KEY})
        of_another_group(path)
        path.chmod(mode)
        text = refusal(StateError, load, store)
    assert text == f"{path}: others may change it; forbid it by 'chmod go-w {path}'"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_saved_secrets_are_nobody_elses_to_read(tmp_path, mode):
    path = tmp_path / "peers.json"
    with PeerStore(tmp_path) as store:
        for peers, refused in (([VM2], False), ([VM2, VM3], True)):
            store.save(peers)
            of_another_group(path)
            path.chmod(mode)
            if refused:
                assert f"'chmod go-rwx {path}'" in refusal(StateError, store.load)
            else:
                assert store.load() == peers


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    assert "File exists" in refusal(StartError, PeerStore, tmp_path / "file")
    assert "Not a directory" in refusal(StartError, PeerStore, tmp_path / "file/sub")


# Saving on a bad disk


def fill(directory):
    disk = os.statvfs(directory)
    (directory / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize))


def test_a_removed_directory_is_made_anew_with_all_that_was_in_it(tmp_path):
    place = tmp_path / "state"
    with PeerStore(place) as store:
        key = store.identity().public
        store.save([VM2])
        store.save_pins({"vm2": KEY})
        assert store.complaint is None
        shutil.rmtree(place)
        assert "was removed" in store.complaint
        assert "alpha-trio reload" in store.complaint
        store.save([VM2, VM3])
        assert store.complaint is None
        refusal(StartError, PeerStore, place)  # it is locked as before
    with PeerStore(place) as store:
        assert store.identity().public == key
        assert store.load() == [VM2, VM3]
        assert store.pins() == {"vm2": KEY}


def test_what_somebody_puts_in_place_of_a_removed_directory_stays(tmp_path):
    place = tmp_path / "state"
    with PeerStore(place) as store:
        store.save([VM2])
        shutil.rmtree(place)
        (place / "peers.json").mkdir(parents=True)  # whatever it is
        place.chmod(0o700)
        store.restore()
        assert (place / "peers.json").is_dir()


@pytest.mark.root
def test_a_full_disk_keeps_a_removed_directory_from_being_made(small_disk):
    place = small_disk / "state"
    with PeerStore(place) as store:
        store.save([VM2])
        shutil.rmtree(place)
        fill(small_disk)
        assert os.strerror(errno.ENOSPC) in refusal(StateError, store.restore)
        assert "was removed" in store.complaint
        (small_disk / "ballast").unlink()
        store.restore()
        assert store.complaint is None
        assert store.load() == [VM2]


@pytest.mark.root
def test_a_full_disk_loses_nothing(small_disk):
    with PeerStore(small_disk) as store:
        store.save([VM2])
        fill(small_disk)
        text = refusal(StateError, store.save, [VM2, VM3])
        assert text.startswith(f"{small_disk}/peers.json: cannot be saved: ")
        assert os.strerror(errno.ENOSPC) in text
        assert "free some space" in text
        assert names(small_disk) == ["ballast", "peers.json"]
        assert store.load() == [VM2]
        (small_disk / "ballast").unlink()
        store.save([VM2, VM3])
        assert store.load() == [VM2, VM3]


@pytest.mark.root
def test_a_full_disk_at_the_first_start_makes_no_key(small_disk):
    """A key that is not saved would be another one after the next start."""
    fill(small_disk)
    with PeerStore(small_disk) as store:
        text = refusal(StateError, store.identity)
        assert "No space left on device; free some space there" in text
        assert names(small_disk) == ["ballast"]


@pytest.mark.root
def test_a_read_only_disk_loses_nothing(small_disk):
    with PeerStore(small_disk) as store:
        public = store.identity().public
        store.save([VM2])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with PeerStore(small_disk) as store:
        assert store.identity().public == public
        assert store.load() == [VM2]
        text = refusal(StateError, store.save, [])
        assert "Read-only file system; mount it writable" in text
        assert store.load() == [VM2]
    text = refusal(StartError, PeerStore, small_disk / "sub")
    assert "Read-only file system; mount it writable" in text


@pytest.mark.root
def test_a_directory_made_read_only_under_the_daemon(small_disk):
    """As by a bind mount; the file is on another mount than the directory then."""
    bound = small_disk.with_name("bound")
    bound.mkdir()
    subprocess.run(["mount", "--bind", small_disk, bound], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", bound], check=True)
        with PeerStore(bound) as store:
            assert "Read-only" in refusal(StateError, store.save, [VM2])
        assert names(small_disk) == []
    finally:
        subprocess.run(["umount", bound], check=True)


LOSE_THE_RIGHT_TO_WRITE = """
import os, sys
from pathlib import Path
from alpha_trio.settings import PeerSettings
from alpha_trio.errors import StateError
from alpha_trio.state import PeerStore

store = PeerStore(Path(sys.argv[1]))
store.load()
os.seteuid(65534)
try:
    store.save([PeerSettings("vm2")])
except StateError as error:
    print(error)
"""


@pytest.mark.root
def test_without_the_right_to_write(tmp_path):
    said = run_python(LOSE_THE_RIGHT_TO_WRITE, tmp_path).stdout
    assert "Permission denied; run this as root, or give the daemon the" in said
    assert names(tmp_path) == []


def run_python(script, *args):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True
    )


# Killed while saving

DIE_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from alpha_trio.settings import PeerSettings
from alpha_trio.state import PeerStore

store = PeerStore(Path(sys.argv[1]))
os.rename = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
store.save([PeerSettings("vm3")])
"""


def test_killed_between_writing_and_renaming(tmp_path):
    with PeerStore(tmp_path) as store:
        store.save([VM2])
    assert run_python(DIE_BEFORE_RENAME, tmp_path).returncode == -signal.SIGKILL
    assert names(tmp_path) == [".new", "peers.json"]
    with PeerStore(tmp_path) as store:
        assert store.load() == [VM2]
        assert names(tmp_path) == ["peers.json"]


# A bad file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b"\xff\xfe\x00", "damaged: "),
        (b'{"schema": 1,\n "peers": [}', "line 2 column"),
        (b"[" * 100_000, "recursion"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "damaged: "),
        (b"[]", "no JSON object"),
        (b"{}", "no schema number"),
        (b'{"schema": "1"}', "no schema number"),
        (b'{"schema": 1}', "no list of peers"),
        (b'{"schema": 1, "peers": {}}', "no list of peers"),
        (b'{"schema": 1, "peers": [5]}', "peer 1 of the list has no name"),
        (b'{"schema": 1, "peers": [{"name": 5}]}', "peer 1 of the list has no name"),
        (
            b'{"schema": 1, "peers": [{"name": "a"}, {"name": "b", "port": 0}]}',
            "peer 2 of the list: port: 0 is out of range",
        ),
        (
            b'{"schema": 1, "peers": [{"name": "a", "endpiont": "h"}]}',
            "did you mean endpoint?",
        ),
        (
            b'{"schema": 1, "peers": [{"name": "a"}, {"name": "a"}]}',
            "two peers are called a",
        ),
        (
            b'{"schema": 2, "future": true}',
            "has schema 2, this version knows 1: a newer one wrote it",
        ),
    ],
)
def test_a_damaged_file_is_reported_and_kept(tmp_path, content, said):
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    with PeerStore(tmp_path) as store:
        for attempt in (store.load, lambda: store.save([VM2])):
            text = refusal(StateError, attempt)
            assert text.startswith(f"{path}: ")
            assert said in text
            assert "move " in text
    assert path.read_bytes() == content
    assert names(tmp_path) == ["peers.json"]


def test_a_mended_file_can_be_saved_again(tmp_path):
    path = tmp_path / "peers.json"
    path.write_text("garbage")
    with PeerStore(tmp_path) as store:
        refusal(StateError, store.load)
        path.write_text(json.dumps({"schema": 1, "peers": [{"name": "vm2"}]}))
        assert store.load() == [PeerSettings("vm2")]
        store.save([VM3])
        assert store.load() == [VM3]


@pytest.mark.parametrize("name", ["peers.json", "pins.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(store, tmp_path, name):
    os.mkfifo(tmp_path / "state" / name)
    text = refusal(StateError, store.load if name == "peers.json" else store.pins)
    assert f"{name}: cannot be read: it is no ordinary file" in text
