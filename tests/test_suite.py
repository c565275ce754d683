"""The suite itself, shown by small suites that are run as a user runs this one."""

import os
import re
import subprocess
import sys

import pytest

from tests.ground import ROOT
from tools.lab import NAMESPACES

PYTEST = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
RULES = """
[pytest]
trio_mode = true
timeout = 60
markers = netns: builds hosts
"""


def run_suite(folder, text, *options):
    """Run a suite of one file under the rules of this one; return what it prints."""
    (folder / "pytest.ini").write_text(RULES)
    (folder / "test_made_up.py").write_text(text)
    command = [*PYTEST, "-p", "tests.conftest", "--rootdir", folder, *options, folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr


# What a test leaves behind

LEAKS = """
import os, subprocess, tempfile
from pathlib import Path
import pytest
from tests import leftovers

leftovers._GRACE = 0

def test_puts_things_where_they_belong(tmp_path):
    (tmp_path / "here").touch()

def test_leaves_an_orphan():
    # Until it is what it is going to be.
    become = "until grep -q sleep /proc/$!/comm; do :; done"
    subprocess.run(["sh", "-c", f"sleep 600 >/dev/null 2>&1 & {become}"])

def test_leaves_a_folder():
    Path(tempfile.mkdtemp(), "x").touch()

def test_leaves_a_file_at_home():
    Path(os.environ["HOME"], "history").touch()

@pytest.fixture(scope="module")
def shared():
    process = subprocess.Popen(["sleep", "500"])
    yield process
    process.returncode = 0  # so that Python has no word of it

def test_shares_what_lives_on(shared):
    pass

def test_needs_that(shared):
    assert shared.poll() is None
"""


def test_who_leaves_something_fails_and_no_other(tmp_path):
    said = run_suite(tmp_path, LEAKS)
    left = re.findall(r"Failed: test_made_up.py(.*) left behind: (.*)", said)
    assert [who.removeprefix("::test_leaves_") for who, _ in left] == [
        "an_orphan",
        "a_folder",
        "a_file_at_home",
        "",  # the module, with what its tests shared
    ]
    orphan, folder, file, shared = [what for _, what in left]
    assert re.fullmatch(r"process \d+ \(sleep 600\)", orphan)
    assert re.fullmatch(r"file \S+/tmp\w+", folder)
    assert re.fullmatch(r"file \S+/history", file)
    assert re.fullmatch(r"process \d+ \(sleep 500\)", shared)
    assert "6 passed, 4 errors in" in said


HOSTS = """
import pytest
from tools.lab import Lab

pytestmark = pytest.mark.netns

@pytest.fixture(scope="module")
def shared():
    with Lab() as lab:
        yield lab.host("vm1")

def test_leaves_a_process_where_it_ends_with_the_host(shared):
    shared.popen("sleep", "600")

def test_leaves_a_host():
    Lab().host("vm1").popen("sleep", "600").returncode = 0

def test_leaves_none():
    with Lab() as lab:
        lab.host("vm1")
"""


@pytest.mark.netns
def test_hosts_that_are_left_are_named_and_removed(tmp_path):
    said = run_suite(tmp_path, HOSTS)
    found = re.search(
        r"Failed: test_made_up.py::test_leaves_a_host left behind: "
        r"folder (at-\d+-\w+), namespace \1-vm1, process \d+ \(.*sleep 600\)",
        said,
    )
    assert found, said
    assert "3 passed, 1 error in" in said
    assert not (NAMESPACES / f"{found[1]}-vm1").exists()


# How long it takes

SLOW = """
import subprocess, threading
import pytest, trio

@pytest.fixture(autouse=True)
def other():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield
        process.kill()

def test_hangs_in_a_process():
    subprocess.run(["sleep", "600"])

def test_hangs_in_a_thread():
    threading.Event().wait()

async def test_hangs_in_a_task():
    await trio.sleep_forever()

async def test_hangs_without_a_checkpoint():
    while True:
        pass

async def test_hangs_in_a_process_of_a_task():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, ["sleep", "600"])

@pytest.mark.timeout(60)
def test_does_not_hang():
    pass
"""


def test_who_takes_too_long_is_named_and_shown_and_ended(tmp_path):
    said = run_suite(tmp_path, SLOW, "--timeout", "0.2", "-n1")
    reason = r"Failed: test_made_up.py::test_(hangs_.*): not done within 0.2 s"
    assert re.findall(rf"^E +{reason}", said, re.MULTILINE) == re.findall(
        r"def test_(hangs_\w+)", SLOW
    )
    assert said.count("Thread MainThread:") == 5
    assert said.count("Task <test 'test_hangs_in_a_task'>:") == 1
    # Had anything been left, there would be errors.
    assert "5 failed, 1 passed in" in said


# Who starts it

# What nohup, cron, service managers and scripts do to what they start.
STARTER = """
trap '' INT QUIT PIPE HUP TERM CHLD
umask 077
unset HOME LANG
export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 COLUMNS=20
export ALPHA_TRIO_SOCKET=/nowhere ALPHA_TRIO_STATE=/nowhere NO_COLOR=1
exec "$@" <&-
"""
# They start processes of ours, end them by a signal, and read more than ASCII.
CHOSEN = [
    "tests/cli/test_cli.py::test_ctrl_c_is_silent",
    "tests/cli/test_cli.py::test_stop_returns_when_the_process_has_ended",
    "tests/cli/test_cli.py::test_output_into_a_pipe_nobody_reads_is_no_error",
    "tests/cli/test_cli.py::test_list_shows_all_settings_and_fits_a_terminal",
    "tests/test_docs.py::test_every_reason_for_a_drop_is_explained",
]


def test_nothing_depends_on_who_started_it(tmp_path):
    place = tmp_path / ("another place for temporary files " * 3)
    place.mkdir()
    done = subprocess.run(
        ["sh", "-c", STARTER, "sh", *PYTEST, "-n1", *CHOSEN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(place)},
    )
    assert f"{len(CHOSEN)} passed in" in done.stdout, done.stdout + done.stderr
