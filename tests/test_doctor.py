"""What the doctor says of the daemon's own files; tests/netns has the host's part."""

import os
import socket

import pytest
from attrs import evolve

from alpha_trio.doctor import checks
from alpha_trio.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(state_dir=tmp_path / "state", socket=tmp_path / "sock")


def found(settings, part):
    """The one check that mentions ``part``."""
    (check,) = [check for check in checks(settings) if part in check.what]
    return check


def test_every_check_is_one_line_and_trouble_has_a_remedy(settings):
    for check in checks(settings):
        assert check.what.isprintable()
        assert check.remedy.isprintable()
        assert check.ok is not False or check.remedy


def test_nothing_is_left_behind(settings, tmp_path):
    before = socket.if_nameindex(), os.listdir(tmp_path)
    checks(settings)
    assert (socket.if_nameindex(), os.listdir(tmp_path)) == before


# The config file


def test_no_config_file(settings):
    assert found(settings, "config file").ok


def test_a_valid_config_file(settings, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("port = 5")
    assert found(evolve(settings, config_file=path), str(path)).ok


def test_a_bad_config_file(settings, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("\nport = 0")
    check = found(evolve(settings, config_file=path), str(path))
    assert check.ok is False
    assert check.what.startswith(f"{path}:2: port: 0 is out of range")


# The state directory


def test_a_state_directory_to_be_created(settings):
    check = found(settings, "state directory")
    assert check.ok
    assert check.what.endswith("will be created")


def test_a_state_directory_that_is_there(settings):
    settings.state_dir.mkdir()
    check = found(settings, "state directory")
    assert check.ok
    assert check.what == f"state directory {settings.state_dir} can be written"


def test_a_state_directory_that_others_may_write(settings):
    settings.state_dir.mkdir()
    settings.state_dir.chmod(0o707)
    check = found(settings, "state directory")
    assert check.ok is False
    assert check.remedy == f"forbid it: chmod go-w {settings.state_dir}"


@pytest.mark.parametrize("below", [".", "sub/sub"])
def test_a_state_directory_that_cannot_be(settings, tmp_path, below):
    (tmp_path / "file").touch()
    check = found(evolve(settings, state_dir=tmp_path / "file" / below), "state dir")
    assert check.ok is False
    assert f"{tmp_path}/file is not a directory" in check.what


# The key


def test_no_key_yet(settings):
    assert found(settings, "key: none yet").ok


def test_a_damaged_key(settings):
    settings.state_dir.mkdir(mode=0o700)
    (settings.state_dir / "host.key").write_text("AAAA")
    (settings.state_dir / "host.key").chmod(0o600)
    check = found(settings, "key: ")
    assert check.ok is False
    assert "damaged" in check.what


# The control socket


def test_no_daemon(settings):
    check = found(settings, str(settings.socket))
    assert (check.ok, check.remedy) == (None, "start: alpha-trio run")


def test_a_dead_daemon(settings):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(settings.socket))
    assert found(settings, str(settings.socket)).ok is None


def test_a_living_daemon(settings):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(settings.socket))
        server.listen()
        assert found(settings, str(settings.socket)).ok


def test_a_hanging_daemon(settings):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as one:
        server.bind(str(settings.socket))
        server.listen(0)
        one.connect(str(settings.socket))  # fills the queue, nobody accepts
        check = found(settings, str(settings.socket))
    assert check.ok is False
    assert "takes no connections" in check.what


def test_a_path_no_socket_can_have(settings, tmp_path):
    check = found(evolve(settings, socket=tmp_path / ("x" * 108)), "xxx")
    assert check.ok is False
    assert check.remedy == "choose another path by --socket"
