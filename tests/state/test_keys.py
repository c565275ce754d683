"""The key of this host: made once, kept to its owner, never lost silently."""

import os
import stat
import subprocess
import sys
from base64 import b64decode

import pytest

from alpha_trio.errors import StartError, StateError
from alpha_trio.state import PeerStore, read_identity
from alpha_trio.state.directory import StateDirectory
from alpha_trio.state.keys import load_identity


@pytest.fixture
def directory(tmp_path):
    directory = StateDirectory(tmp_path)
    yield directory
    directory.close()


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "host.key"


def refusal(kind, function, *args):
    with pytest.raises(kind) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return content


def test_the_first_start_makes_the_key_and_the_next_finds_it(tmp_path):
    with PeerStore(tmp_path) as store:
        first = store.identity()
    with PeerStore(tmp_path) as store:
        assert store.identity().public == first.public
    assert read_identity(tmp_path).public == first.public


def test_every_host_makes_a_key_of_its_own(tmp_path):
    keys = set()
    for host in ("vm1", "vm2", "vm3"):
        with PeerStore(tmp_path / host) as store:
            keys.add(store.identity().public)
    assert len(keys) == 3


def test_only_the_owner_may_read_the_key(directory, tmp_path, key_file):
    identity = load_identity(directory)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert b64decode(key_file.read_bytes()) == identity.seed
    assert os.listdir(tmp_path) == ["host.key"]


@pytest.mark.root
def test_a_key_of_another_user_is_refused(directory, key_file):
    load_identity(directory)
    os.chown(key_file, 65534, -1)
    text = refusal(StartError, load_identity, directory)
    assert text.startswith(f"{key_file}: ")
    assert f"'chown root {key_file}'" in text


def test_looking_makes_no_key(tmp_path):
    assert read_identity(tmp_path) is None
    assert read_identity(tmp_path / "absent") is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o644])
def test_a_key_that_others_may_touch_is_refused(directory, key_file, mode):
    load_identity(directory)
    key_file.chmod(mode)
    content = key_file.read_bytes()
    text = refusal(StartError, load_identity, directory)
    assert text.startswith(f"{key_file}: ")
    assert f"'chmod 600 {key_file}'" in text
    assert key_file.read_bytes() == content
    key_file.chmod(0o600)
    load_identity(directory)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 45,
        b"AA==",
        b"A" * 43,
        b"\xff" * 44,
        b"A" * 44 + b"\nA",
        b"A" * 4000,
    ],
)
def test_a_damaged_key_is_reported_and_kept(directory, key_file, content):
    written(key_file, content)
    text = refusal(StartError, load_identity, directory)
    assert text.startswith(f"{key_file}: damaged: ")
    assert "move it away" in text
    assert key_file.read_bytes() == content


def test_a_refused_key_is_not_repeated(directory, key_file):
    written(key_file, b"hunter2")
    assert "hunter2" not in refusal(StartError, load_identity, directory)


def test_a_key_that_cannot_be_read_is_not_replaced(directory, key_file):
    key_file.mkdir()
    text = refusal(StartError, load_identity, directory)
    assert text.startswith(f"{key_file}: cannot be read: Is a directory")


def test_a_link_to_where_the_key_is_not_now_is_not_replaced(directory, key_file):
    """As on an encrypted disk that was not mounted."""
    key_file.symlink_to("/nowhere/host.key")
    text = refusal(StateError, load_identity, directory)
    assert text.startswith(f"{key_file}: cannot be saved: File exists")
    assert key_file.is_symlink()
    assert os.listdir(key_file.parent) == ["host.key"]


def test_a_pipe_in_its_place_is_not_waited_for(directory, key_file):
    os.mkfifo(key_file)
    text = refusal(StartError, load_identity, directory)
    assert text.startswith(f"{key_file}: cannot be read: it is no ordinary file; ")
    assert "run this as root" not in text


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from alpha_trio.errors import StartError
from alpha_trio.state import read_identity

os.seteuid(65534)
try:
    read_identity(Path(sys.argv[1]))
except StartError as error:
    print(error)
"""


@pytest.mark.root
def test_without_the_right_to_read(directory, tmp_path, key_file):
    load_identity(directory)
    tmp_path.chmod(0o700)
    command = [sys.executable, "-c", READ_AS_NOBODY, tmp_path]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert said.startswith(f"{key_file}: cannot be read: Permission denied; ")
    assert "root" in said
