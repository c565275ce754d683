"""Rooms: who may use whom, and by which face; and the core knows no system.

MAY_USE is the order of docs/architecture.md.  What a fresh interpreter has loaded
afterwards tells what imports drag in.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent

import pytest

from tools.rooms import PICTURE, ROOT, Room, imports, picture, rooms

PACKAGE = ROOT / "alpha_trio"

_CORE = ("proto.batch", "proto.messages", "proto.rates", "proto.primitives")
# Each room and all that it may use, which stands above it.  Who needs more is in the
# wrong room, or asks for something that belongs further up.
MAY_USE = {
    # words that everybody shares
    "errors": (),
    "wire": ("errors",),
    "rpc": ("errors", "wire"),
    # the protocol core: time and bytes in, verdicts out
    "proto.batch": (),
    "proto.messages": ("proto.batch",),
    "proto.rates": ("proto.batch",),
    "proto.primitives": ("proto.batch", "proto.messages"),
    "proto.packets": ("proto.batch", "proto.messages"),
    "proto.engine": (
        "proto.batch",
        "proto.messages",
        "proto.primitives",
        "proto.packets",
    ),
    "proto.traces": _CORE,
    "proto.relay": (*_CORE, "proto.engine", "proto.traces"),
    "proto.handshake": _CORE,
    "proto.transport": (
        *_CORE,
        "proto.packets",
        "proto.engine",
        "proto.traces",
        "proto.handshake",
    ),
    "proto.peers": (
        *_CORE,
        "proto.packets",
        "proto.traces",
        "proto.handshake",
        "proto.transport",
    ),
    # what the user wants, what people are told, what is kept
    "settings": ("errors",),
    "wireguard": ("errors", "settings"),
    "threads": (),
    "slices": (),
    "service": (),
    "holders": (),
    "journal": ("proto.batch", "proto.messages", "proto.packets"),
    "supervision": ("errors", "journal"),
    "hooks": ("errors", "settings", "journal", "proto.batch"),
    "state": (
        "errors",
        "holders",
        "settings",
        "journal",
        "supervision",
        "threads",
        "proto.messages",
        "proto.primitives",
    ),
    # the edge to Linux
    "net.host": (),
    "net.source": ("settings",),
    "net.suspend": (),
    "net.removals": (),
    "net.netfilter": ("errors",),
    "net.tun": ("errors", "settings", "net.host", "proto.batch", "proto.packets"),
    "net.udp": (
        "errors",
        "holders",
        "settings",
        "net.host",
        "net.source",
        "proto.batch",
    ),
    "net.udp_lanes": ("errors", "settings", "net.udp"),
    "net.routing": ("errors", "settings", "threads", "net.netfilter", "net.source"),
    "net.tproxy": ("errors", "settings", "net.netfilter"),
    "net.transit": ("errors", "settings", "net.host", "proto.batch", "net.udp"),
    # the daemon
    "datapath": (
        "journal",
        "supervision",
        "net.host",
        "net.suspend",
        "net.tun",
        "net.udp",
        "proto.batch",
        "proto.peers",
    ),
    "registry": (
        "errors",
        "settings",
        "journal",
        "state",
        "supervision",
        "threads",
        "net.host",
        "net.routing",
        "net.source",
        "proto.batch",
        "proto.peers",
        "proto.primitives",
        "proto.traces",
        "proto.transport",
    ),
    "control": (
        "errors",
        "holders",
        "wire",
        "settings",
        "journal",
        "supervision",
        "registry",
        "net.host",
        "net.removals",
        "net.tun",
        "net.udp",
        "net.udp_lanes",
        "proto.batch",
        "proto.packets",
        "proto.peers",
        "proto.primitives",
        "proto.traces",
        "proto.engine",
    ),
    "lanes": (
        "errors",
        "settings",
        "slices",
        "journal",
        "datapath",
        "net.host",
        "net.tun",
        "net.udp",
        "net.udp_lanes",
        "proto.batch",
        "proto.messages",
        "proto.packets",
        "proto.peers",
        "proto.primitives",
        "proto.traces",
        "proto.transport",
    ),
    "relaying": (
        "proto.batch",
        "proto.rates",
        "proto.primitives",
        "proto.packets",
        "proto.traces",
        "proto.relay",
        "settings",
        "journal",
        "supervision",
        "threads",
        "net.host",
        "net.netfilter",
        "net.tproxy",
        "net.transit",
        "net.udp",
    ),
    "metrics": (),
    "exporter": (
        "errors",
        "settings",
        "journal",
        "metrics",
        "slices",
        "supervision",
    ),
    "doctor": (
        "errors",
        "settings",
        "state",
        "net.host",
        "net.netfilter",
        "net.routing",
        "proto.primitives",
        "net.tproxy",
        "net.udp",
        "proto.engine",
    ),
    "daemon": (
        "errors",
        "settings",
        "journal",
        "state",
        "slices",
        "threads",
        "datapath",
        "registry",
        "control",
        "exporter",
        "hooks",
        "lanes",
        "relaying",
        "service",
        "net.host",
        "net.routing",
        "net.tproxy",
        "net.tun",
        "net.udp",
        "net.udp_lanes",
        "proto.messages",
        "proto.peers",
        "proto.primitives",
        "proto.transport",
        "proto.engine",
    ),
}

# What the core may import: nothing that can read a clock, sleep, or reach a file, a
# socket or another thread.
PURE = {
    "__future__",
    "abc",
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
HOUSE = rooms()
CORE = sorted(name for name in HOUSE if name.startswith("proto."))


def broken_rules(house: dict[str, Room]) -> Iterator[str]:
    """A line for each import that goes upward, or past a face."""
    for name, room in house.items():
        allowed = MAY_USE.get(name, ())
        for found in room.imports:
            place = f"{found.path}:{found.line}"
            other = house[found.room]
            if found.room not in allowed:
                may = ", ".join(allowed) or "no other room"
                yield f"{place}: {name} must not use {found.room}; it may use {may}"
            elif found.module != f"alpha_trio.{found.room}":
                yield (
                    f"{place}: {found.module} is inside of {found.room}; other rooms "
                    f"use only its face, alpha_trio.{found.room}"
                )
            elif other.face is not None and found.name not in {"*", *other.face}:
                yield (
                    f"{place}: {found.name} is not in __all__ of {found.room}, which "
                    "is all that other rooms may use of it"
                )


def imported(path) -> set[str]:
    """The top-level names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


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


def test_every_room_has_its_rule_and_stands_below_all_it_uses():
    assert set(MAY_USE) == set(HOUSE)
    order = list(MAY_USE)
    for name, used in MAY_USE.items():
        assert all(order.index(other) < order.index(name) for other in used), name


def test_no_rule_allows_what_nobody_does():
    unused = {
        name: set(allowed) - HOUSE[name].uses for name, allowed in MAY_USE.items()
    }
    assert not {name: rooms for name, rooms in unused.items() if rooms}


def test_imports_go_downward_and_through_faces():
    assert list(broken_rules(HOUSE)) == []


def test_every_room_says_what_it_is_for_and_every_package_has_a_face():
    for name, room in HOUSE.items():
        assert room.purpose, name
        if len(room.modules) > 1:
            assert room.face, name


WRONG = [
    ("from alpha_trio.proto.transport import Line", "must not use proto.transport"),
    ("from alpha_trio.proto.primitives.chain import HashChain", "is inside of"),
    ("from alpha_trio.proto.primitives import _cut", "is not in __all__"),
    ("def late():\n    from alpha_trio import daemon", "must not use daemon"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_a_wrong_import_is_named_with_its_rule(tmp_path, line, said):
    for name in ("daemon", "proto.transport", "proto.primitives", "proto.relay"):
        path = tmp_path.joinpath("alpha_trio", *name.split("."), "__init__.py")
        path.parent.mkdir(parents=True)
        path.write_text(
            dedent('''\
            """A room."""
            __all__ = ["HashChain"]
            ''')
        )
    (tmp_path / "alpha_trio/proto/relay/witness.py").write_text(line + "\n")
    (told,) = broken_rules(rooms(tmp_path))
    assert "alpha_trio/proto/relay/witness.py:" in told
    assert said in told


def test_the_picture_is_current():
    assert PICTURE.read_text() == picture(HOUSE), "draw it anew: tools/rooms"


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_what_is_pure(name):
    for path in HOUSE[name].modules.values():
        assert imported(path) <= PURE | {PACKAGE.name}, path


def test_the_core_loads_no_system():
    core = {module for name in CORE for module in HOUSE[name].modules}
    loaded = loaded_by(*core)
    assert not loaded & IMPURE
    ours = {name for name in loaded if name.startswith("alpha_trio.")}
    assert ours == {"alpha_trio.proto", *core}


def test_nothing_imports_the_command_line():
    for room in HOUSE.values():
        for path in room.modules.values():
            assert "alpha_trio_cli" not in imported(path), path


def test_the_command_line_talks_to_the_daemon_and_does_not_load_it():
    loaded = loaded_by("alpha_trio_cli.main")
    ours = {name for name in loaded if name.startswith("alpha_trio.")}
    assert {".".join(name.split(".")[1:2]) for name in ours} == {
        "errors",
        "rpc",
        "wire",
    }
    assert not loaded & {"trio", "pyroute2", "rich", "prometheus_client", "attrs"}


def test_a_daemon_does_not_hold_what_most_do_not_use():
    loaded = loaded_by("alpha_trio.daemon")
    unused = ("alpha_trio.relaying", "alpha_trio.proto.relay", "alpha_trio.exporter")
    of_sockets_of_pyroute2 = ("asyncio", "unittest", "multiprocessing")
    for room in (*unused, *of_sockets_of_pyroute2, "prometheus_client"):
        assert not {name for name in loaded if name.startswith(room)}


LOOKING_UP = """
from ipaddress import ip_address
from alpha_trio.net.routing import kernel
with kernel.connect(99) as routing:
    assert routing.look_up(ip_address("127.0.0.1"), 1234).local
"""


def test_of_pyroute2_only_what_is_used_is_loaded():
    databases = "pyroute2.ndb.main"
    assert databases not in loaded_by("alpha_trio.daemon")
    assert databases not in loaded_after(LOOKING_UP)
    assert databases in loaded_after(f"{LOOKING_UP}\nfrom pyroute2 import NDB")


def test_a_pyroute2_whose_parts_need_the_whole_is_loaded_as_a_whole():
    empty = "import importlib.util as u; u.module_from_spec = lambda s: type(u)(s.name)"
    assert "pyroute2.ndb.main" in loaded_after(f"{empty}\n{LOOKING_UP}")


def test_only_the_commands_without_a_daemon_reach_beyond_rpc():
    words = {"errors", "rpc", "metrics"}  # the last loads no other room
    for path in (ROOT / "cli").glob("*.py"):
        if path.name not in ("files.py", "local.py"):
            used = {found.room for found in imports("alpha_trio_cli", path, ROOT)}
            assert used <= words, path
