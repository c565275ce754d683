"""The native engine, compiled so that it tells of what C lets pass in silence.

A copy of the program is made in build/sanitized, and in it kernel.c is compiled with
AddressSanitizer (bytes outside of a buffer, or of one that is gone) and
UndefinedBehaviorSanitizer.  There run the tests that compare the two kernels, and then
for as long as one likes ``tools/fuzz kernels``.  The first finding ends it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINE = Path("alpha_trio/proto/engine")
LIBRARY = "_kernel.abi3.so"

CHECKED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_COPIED = ("alpha_trio", "cli", "tests", "tools")
_TESTS = "tests/proto/engine/test_kernels.py"


class CompileError(Exception):
    """What a compiler says, or that there is none."""


def main(arguments: Sequence[str]) -> int:
    """Test and fuzz a copy of the program; returns an exit code."""
    parser = argparse.ArgumentParser(prog="tools/sanitize", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=60, help="of fuzzing (default: 60)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build/sanitized",
        help="for the copy, which replaces what is there (default: build/sanitized)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer")
    options = parser.parse_args(arguments)
    try:
        copy(ROOT, options.folder)
        environment = checked_environment(options.folder)
    except CompileError as error:
        print(f"tools/sanitize: {error}", file=sys.stderr)
        return 1
    fuzz = ("tools.fuzz", "kernels", f"--seconds={options.seconds}")
    for module in (
        ("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", _TESTS),
        (*fuzz, f"--seed={options.seed}"),
    ):
        command = [sys.executable, "-m", *module]
        done = subprocess.run(command, cwd=options.folder, env=environment)
        if done.returncode:
            return 1
    return 0


def copy(source: Path, folder: Path) -> None:
    """Copy what the tests need, and compile its kernel."""
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in _COPIED:
        shutil.copytree(source / name, folder / name, ignore=ignored)
    shutil.copy(source / "pyproject.toml", folder)
    place = folder / ENGINE
    compile_kernel(place / "kernel.c", place / LIBRARY, *CHECKED)


def compile_kernel(source: Path, library: Path, *options: str) -> None:
    """Compile it as it stands there; see pyproject.toml for how it is otherwise."""
    command = [*_compiler(), "-std=c11", "-O1", "-g", "-shared", "-fPIC", *options]
    headers = (sysconfig.get_path("include"), str(ROOT / ENGINE))
    command += [f"-I{folder}" for folder in headers]
    command += [str(source), "-lcrypto"]
    _said_by([*command, "-o", str(library)])


def checked_environment(folder: Path) -> Mapping[str, str]:
    """What a Python needs that loads what was compiled with CHECKED."""
    runtime = _said_by([*_compiler(), "-print-file-name=libasan.so"])
    return os.environ | {
        "LD_PRELOAD": runtime.strip(),
        # Python itself frees nothing at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Every object is an allocation of its own: nothing lies close behind it.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(folder),
    }


def _compiler() -> Sequence[str]:
    return shlex.split(os.environ.get("CC", "gcc"))


def _said_by(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CompileError(f"no compiler {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
