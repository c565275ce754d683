"""The house as its imports show it: rooms, what each of them uses, and a picture.

A room is a package with a face, its ``__init__`` with ``__all__``, or a module that
stands alone.  ``alpha_trio/proto`` and ``alpha_trio/net`` are no rooms: they only hold
some.  ``tools/rooms`` writes docs/rooms.svg; tests/test_layers.py holds the rules.

Imports are read from the source, so that one within a function, or for types only,
counts as well.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap

from attrs import define, field, frozen

ROOT = Path(__file__).parents[1]
PACKAGE = "alpha_trio"
PICTURE = ROOT / "docs" / "rooms.svg"
HOLDERS = frozenset({PACKAGE, f"{PACKAGE}.proto", f"{PACKAGE}.net"})
"""Packages without a face of their own."""


@frozen
class Import:
    """One name that a module imports from another room."""

    path: Path  # of the module, from the root
    line: int
    room: str  # whose name it is
    module: str  # from where it is imported
    name: str  # "*": the module itself


@define(eq=False)
class Room:
    """A package with a face, or a module that stands alone."""

    name: str  # without the name of the package
    modules: dict[str, Path] = field(factory=dict)
    face: frozenset[str] | None = None  # None: a module, all of which is its face
    purpose: str = ""
    imports: list[Import] = field(factory=list)

    @property
    def uses(self) -> set[str]:
        """The rooms it imports from."""
        return {found.room for found in self.imports}


@cache
def rooms(root: Path = ROOT) -> Mapping[str, Room]:
    """All rooms of the package below ``root``, by name; read once, in half a second."""
    found: dict[str, Room] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        module = _module(path, root)
        if module in HOLDERS:
            continue
        room = found.setdefault(_room(module), Room(_room(module)))
        tree = _tree(path)
        room.modules[module] = path
        room.imports += imports(module, path, root)
        if path.name == "__init__.py" or len(module.split(".")) == _depth(room.name):
            room.purpose = (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
        if path.name == "__init__.py":
            room.face = _face(tree)
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _depth(room: str) -> int:
    return 1 + len(room.split("."))


def _room(module: str) -> str:
    """The name of the room that a module belongs to."""
    parts = module.split(".")
    until = 2
    while ".".join(parts[:until]) in HOLDERS:
        until += 1
    return ".".join(parts[1:until])


def _face(tree: ast.Module) -> frozenset[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def imports(module: str, path: Path, root: Path) -> Iterator[Import]:
    """What a module imports from rooms other than its own."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            named = [(alias.name, "*") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            named = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for source, name in named:
            if source in HOLDERS and _exists(f"{source}.{name}", root):
                source, name = f"{source}.{name}", "*"
            if source.startswith(PACKAGE + ".") and source not in HOLDERS:
                room = _room(source)
                if room != _room(module):
                    yield Import(
                        path.relative_to(root), node.lineno, room, source, name
                    )


def _exists(module: str, root: Path) -> bool:
    path = root.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


# -- the picture -------------------------------------------------------------

_WIDTH, _HEIGHT, _GAP, _RISE, _EDGE = 150, 74, 22, 42, 16
_LETTERS = 27  # of the names of modules in a line of a box
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" '
    'viewBox="0 0 {0} {1}" font-family="sans-serif">\n'
    "<title>The rooms of alpha_trio, and which of them uses which</title>\n"
    "<style>.box{{fill:#f6f4ee;stroke:#55524a}}.core{{fill:#e3edf3}}"
    ".use{{fill:none;stroke:#8d877a;marker-end:url(#tip)}}.name{{font-size:13px;font-weight:bold}}"
    ".what{{font-size:10px;fill:#55524a}}</style>\n"
    '<defs><marker id="tip" markerWidth="7" markerHeight="6" refX="6" refY="3" '
    'orient="auto"><path d="M0 0 L7 3 L0 6 z" fill="#8d877a"/></marker></defs>\n'
    '<rect width="{0}" height="{1}" fill="#ffffff"/>\n'
)


def levels(used: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms from the top down: each stands above all that it uses."""
    height: dict[str, int] = {}

    def rise(name: str) -> int:
        if name not in height:
            height[name] = 1 + max(map(rise, used[name]), default=-1)
        return height[name]

    top = max(map(rise, used))
    rows = [sorted(n for n in used if height[n] == h) for h in range(top, -1, -1)]
    return [row for row in rows if row]


def reduced(used: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Only the uses that no other use implies: all arrows would be a carpet."""

    def below(name: str) -> set[str]:
        return used[name].union(*map(below, used[name]))

    return {
        name: direct - set().union(*map(below, direct)) for name, direct in used.items()
    }


def picture(found: Mapping[str, Room]) -> str:
    """The rooms as an SVG: users above, arrows to what they use."""
    used = {name: room.uses for name, room in found.items()}
    rows = levels(used)
    width = 2 * _EDGE + max(len(row) for row in rows) * (_WIDTH + _GAP) - _GAP
    height = 2 * _EDGE + len(rows) * (_HEIGHT + _RISE) - _RISE
    places: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP) + _GAP) / 2
        for at, name in enumerate(_ordered(row, used, places)):
            place = left + at * (_WIDTH + _GAP), _EDGE + number * (_HEIGHT + _RISE)
            places[name] = place
    arrows = [
        _arrow(places[name], places[other])
        for name, others in sorted(reduced(used).items())
        for other in sorted(others)
    ]
    boxes = [_box(found[name], *places[name]) for name in sorted(places)]
    return _HEAD.format(width, height) + "".join([*arrows, *boxes]) + "</svg>\n"


def _ordered(
    row: list[str],
    used: Mapping[str, set[str]],
    places: Mapping[str, tuple[float, float]],
) -> list[str]:
    """A row in the order of who uses it, so that fewer arrows cross."""

    def middle(name: str) -> tuple[float, str]:
        users = [places[user][0] for user in places if name in used[user]]
        return (sum(users) / len(users) if users else 0.0), name

    return sorted(row, key=middle)


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    x, y = above[0] + _WIDTH / 2, above[1] + _HEIGHT
    to_x, to_y = below[0] + _WIDTH / 2, below[1]
    bend = _RISE / 2
    return (
        f'<path class="use" d="M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} '
        f'{to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"/>\n'
    )


def _box(room: Room, x: float, y: float) -> str:
    core = " core" if room.name.startswith("proto.") else ""
    inside = (name.rpartition(".")[2] for name in room.modules if _inside(name, room))
    rows = enumerate(wrap(" ".join(inside), _LETTERS))
    lines = [
        f'<text class="what" x="{x + 8:.0f}" y="{y + 32 + 12 * at:.0f}">{text}</text>'
        for at, text in rows
    ]
    return (
        f"<g><title>{escape(room.purpose)}</title>"
        f'<rect class="box{core}" x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="4"/>'
        f'<text class="name" x="{x + 8:.0f}" y="{y + 18:.0f}">{room.name}</text>'
        f"{''.join(lines)}</g>\n"
    )


def _inside(module: str, room: Room) -> bool:
    return module != f"{PACKAGE}.{room.name}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools/rooms", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="only say if it is current"
    )
    arguments = parser.parse_args()
    drawn = picture(rooms())
    if arguments.check:
        return int(not PICTURE.exists() or PICTURE.read_text() != drawn)
    PICTURE.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
