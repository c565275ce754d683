"""Imports point downward only, and the protocol core knows no system.

The rules are those of docs/architecture.md.  Imports are read from the source, so
that one within a function or for types only counts as well; what a fresh
interpreter has loaded afterwards tells what they drag in.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "alpha_trio"

# What the core may import: nothing that can read a clock, sleep, or reach a file, a
# socket or another thread.
PURE = {
    "__future__",
    "attrs",
    "base64",
    "bisect",
    "collections",
    "contextlib",
    "cryptography",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "struct",
    "typing",
}
# What must not even be loaded by it.  (os, time and threading are there as soon as
# Python and attrs are.)
IMPURE = {
    "asyncio",
    "click",
    "fcntl",
    "msgpack",
    "multiprocessing",
    "pyroute2",
    "random",
    "rich",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "_socket",
    "ssl",
    "subprocess",
    "tempfile",
    "trio",
}
# Layers below the daemon, and all that each may know of the others.
MAY_IMPORT = {
    "proto": {"proto"},
    "net": {"net", "proto.batch", "proto.frames", "config", "settings", "errors"},
    "rpc": {"errors"},
    "control": {"rpc", "config", "settings", "errors"},
    "config": {"settings", "values", "errors"},
    "values": {"settings", "errors"},
    "settings": set(),
    "errors": set(),
    "clock": set(),
}


def imports(path: Path) -> set[str]:
    """Every module a file imports, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {_module(node.module or "", alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    """``from package import name`` imports a module of that name, if there is one."""
    if package.split(".")[0] != PACKAGE.name:
        return package
    path = ROOT.joinpath(*package.split("."), name)
    is_module = path.is_dir() or path.with_suffix(".py").exists()
    return f"{package}.{name}" if is_module else package


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports, without the package's name."""
    prefix = PACKAGE.name + "."
    return {name.removeprefix(prefix) for name in imports(path) if prefix in name}


def modules() -> dict[str, Path]:
    """All modules of the package by name, without the package's name."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    names = (path.relative_to(PACKAGE).with_suffix("").parts for path in files)
    return {".".join(name): path for name, path in zip(names, files, strict=True)}


def loaded_by(*names: str) -> set[str]:
    """The modules in a fresh interpreter that imported ``names``."""
    return loaded_after(f"import {', '.join(names)}")


def loaded_after(code: str) -> set[str]:
    """The modules in a fresh interpreter that has run ``code``."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == other or name.startswith(other + ".") for other in allowed)


@pytest.mark.parametrize("name", sorted(n for n in modules() if n.startswith("proto.")))
def test_the_core_imports_only_what_is_pure(name):
    roots = {module.split(".")[0] for module in imports(modules()[name])}
    assert roots <= PURE | {PACKAGE.name}


def test_the_core_loads_no_system():
    core = [f"alpha_trio.{name}" for name in modules() if name.startswith("proto.")]
    loaded = loaded_by(*core)
    assert not loaded & IMPURE
    assert {name for name in loaded if name.startswith("alpha_trio.")} == {
        "alpha_trio.proto",
        *core,
    }


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downward(name):
    layer = name.split(".")[0]
    if layer in MAY_IMPORT:
        wrong = {n for n in ours(modules()[name]) if not _within(n, MAY_IMPORT[layer])}
        assert not wrong
    roots = {module.split(".")[0] for module in imports(modules()[name])}
    assert "alpha_trio_cli" not in roots


def test_no_modules_import_each_other():
    graph = {name: ours(path) for name, path in modules().items()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_command_line_talks_to_the_daemon_and_does_not_load_it():
    loaded = loaded_by("alpha_trio_cli.main")
    assert {name for name in loaded if name.startswith("alpha_trio.")} <= {
        "alpha_trio.errors",
        "alpha_trio.rpc",
    }
    assert not loaded & {"trio", "pyroute2", "rich", "prometheus_client", "attrs"}


def test_a_daemon_that_is_no_relay_does_not_hold_one():
    loaded = loaded_by("alpha_trio.daemon")
    assert not loaded & {"alpha_trio.relaypath", "alpha_trio.proto.relay"}


LOOKING_UP = """
from ipaddress import ip_address
from alpha_trio.net import kernel
with kernel.connect(99) as routing:
    assert routing.look_up(ip_address("127.0.0.1"), 1234).local
"""


def test_of_pyroute2_only_what_is_used_is_loaded():
    databases = "pyroute2.ndb.main"
    assert databases not in loaded_by("alpha_trio.daemon")
    assert databases not in loaded_after(LOOKING_UP)
    assert databases in loaded_after(f"{LOOKING_UP}\nfrom pyroute2 import NDB")


def test_only_the_commands_without_a_daemon_reach_beyond_rpc():
    for path in (ROOT / "cli").glob("*.py"):
        if path.name != "local.py":
            assert ours(path) <= {"errors", "rpc"}, path.name
