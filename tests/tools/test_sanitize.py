"""What tools/sanitize would find, where there is a compiler with sanitizers."""

import subprocess
import sys

import pytest

from tests.ground import ROOT
from tools import sanitize

CHECK = "length < shortest || memcmp"  # before a datagram is looked at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sanitized")
    try:
        sanitize.copy(ROOT, path)
    except sanitize.CompileError as error:
        pytest.skip(f"nothing can be compiled with sanitizers: {error}"[:200])
    return path


def fuzz(folder, seconds, place):
    return subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "kernels", f"--seconds={seconds}"],
        cwd=folder,
        env=sanitize.checked_environment(folder) | {"TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_byte_too_far_is_noticed(folder, tmp_path):
    done = fuzz(folder, 1, tmp_path)
    assert "nothing found" in done.stdout
    assert done.returncode == 0

    place = folder / sanitize.ENGINE
    text = (place / "kernel.c").read_text()
    assert CHECK in text
    (place / "other.c").write_text(text.replace(CHECK, "memcmp"))
    library = place / sanitize.LIBRARY
    sanitize.compile_kernel(place / "other.c", library, *sanitize.CHECKED)
    done = fuzz(folder, 60, tmp_path)
    assert "AddressSanitizer: heap-buffer-overflow" in done.stdout
    assert done.returncode != 0


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert sanitize.main(["--folder", str(tmp_path)]) == 1
    assert "no compiler /nowhere/cc: No such file" in capsys.readouterr().err
