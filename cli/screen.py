"""What people look at: blocks of lines that fit the width, in a terminal or a pipe.

There are libraries that do much more.  Their imports took as long as all else that a
command does, and a second for a table of a thousand rows.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self
from unicodedata import category, combining, east_asian_width

Span = tuple[str, str]  # a text and its style
Line = Sequence[Span]

# Wide enough that nothing is folded when a program reads the table.
PIPE_WIDTH = 1000
UNFOLDED = 1 << 30  # columns of a sentence that only the terminal may fold

LEAST_SENTENCE = 24  # columns that a sentence in a table needs to be readable
GAP = "  "

_CODES = {
    "bold": "1",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "bold red": "1;31",
}
_COLOURLESS = {"bold": "1", "bold red": "1"}
_NO_STYLES: Mapping[str, str] = {}
_DUMB = frozenset({"", "dumb", "unknown"})


class Block(Protocol):
    """Something that can be written as lines of at most so many columns."""

    def lines(self, width: int) -> Iterator[Line]: ...


class Sentence(NamedTuple):
    """A text that may be folded between words; nothing of it is cut off."""

    text: str
    style: str = ""
    indent: int = 0

    def lines(self, width: int) -> Iterator[Line]:
        margin = (" " * self.indent, "")
        for part in folded(self.text, width - self.indent):
            yield [margin, (part, self.style)]


class Picture(NamedTuple):
    """A line that was made for its place, and is never folded."""

    spans: Line

    def lines(self, width: int) -> Iterator[Line]:
        yield self.spans


class Pairs(NamedTuple):
    """Names and what they have, below each other."""

    pairs: Sequence[tuple[str, object]]
    least: int = 0  # columns of the names, for several of them below each other

    def lines(self, width: int) -> Iterator[Line]:
        longest = max(self.least, *(columns(name) for name, _ in self.pairs))
        room = max(width - longest - len(GAP), LEAST_SENTENCE // 2)
        for name, value in self.pairs:
            text = "-" if value is None else str(value)
            for part in folded(text, room):
                margin = " " * (longest - columns(name)) + GAP
                yield [(name, ""), (margin, ""), (part, "")]
                name = ""


class Rows:
    """A table, or, where the terminal is too narrow for it, some lines for each row.

    Nothing is ever cut off: on a narrow terminal that would be the reason why a peer is
    not reached, which stands last.  ``sentence``: the last column may be folded.
    ``styles``: those of words that stand alone in a cell.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: Iterable[Sequence[str]],
        styles: Mapping[str, str] = _NO_STYLES,
        *,
        sentence: bool = False,
    ) -> None:
        self._names = names
        self._rows = [[_plain(cell) for cell in row] for row in rows]
        self._styles = styles
        self._sentence = sentence

    def lines(self, width: int) -> Iterator[Line]:
        every = zip(self._names, *self._rows, strict=True)
        *widths, last = (max(map(columns, column)) for column in every)
        room = width - sum(width + len(GAP) for width in widths)
        if room < (min(last, LEAST_SENTENCE) if self._sentence else last):
            for row in self._rows:
                yield from self._stacked(row, width)
            return
        yield table_row(self._names, widths, dict.fromkeys(self._names, "bold"))
        nothing = ["" for _ in widths]
        for row in self._rows:
            first, *more = folded(row[-1], room)
            yield table_row([*row[:-1], first], widths, self._styles)
            yield from (table_row([*nothing, part], widths, {}) for part in more)

    def _stacked(self, row: Sequence[str], width: int) -> Iterator[Line]:
        yield [(row[0], "bold"), (GAP, ""), (row[1], self._styles.get(row[1], ""))]
        rest = [*zip(self._names, row, strict=True)][2:]
        if self._sentence:
            yield from Sentence(rest.pop()[1], indent=2).lines(width)
        known = [f"{n.lower()} {cell}" for n, cell in rest if cell not in ("", "-")]
        yield from Sentence(", ".join(known), indent=2).lines(width)


def table_row(
    row: Sequence[str], widths: Sequence[int], styles: Mapping[str, str]
) -> Line:
    """One line of a table; ``widths`` are those of all columns but the last."""
    *cells, last = row
    line: list[Span] = []
    for cell, width in zip(cells, widths, strict=True):
        line.append((cell, styles.get(cell, "")))
        line.append((" " * (width - columns(cell)) + GAP, ""))
    line.append((last, styles.get(last, "")))
    return line


# Texts and the room they take


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if combining(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def folded(text: str, width: int) -> list[str]:
    """A text in lines of at most ``width`` columns, parted between words if it can."""
    text = _plain(text)
    if columns(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and columns(longer) <= width:
            lines[-1] = longer
        else:
            lines += _pieces(word, max(width, 2))
    return lines


def _pieces(word: str, width: int) -> list[str]:
    """A word in pieces that fit, for one that no line has room for."""
    pieces = [""]
    for char in word:
        if columns(pieces[-1]) + _columns(char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces


def _plain(text: str) -> str:
    """A text without what would move the cursor or colour the rest."""
    if text.isprintable():
        return text
    return "".join(
        char if category(char)[0] != "C" else " " if char.isspace() else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


# Where they are written


def show(*blocks: Block) -> None:
    """Print them; a sentence may hold a command to be copied, so it is not folded."""
    terminal = sys.stdout.isatty()
    width = terminal_size().columns if terminal else PIPE_WIDTH
    paint = painter()
    for block in blocks:
        room = UNFOLDED if isinstance(block, Sentence) else width
        text = "".join(f"{paint(line)}\n" for line in block.lines(room))
        sys.stdout.write(text)
    sys.stdout.flush()  # who reads no more is noticed here, and not at the very end


def painter() -> Callable[[Line], str]:
    """How the lines are written to standard output, by what it can."""
    codes = _CODES
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in _DUMB:
        codes = {}
    elif os.environ.get("NO_COLOR"):
        codes = _COLOURLESS

    def paint(line: Line) -> str:
        spans = list(line)
        while spans and not spans[-1][0].strip(" "):  # it would begin another line
            spans.pop()
        text = "".join(_painted(part, codes.get(style)) for part, style in spans)
        return text.rstrip(" ")

    return paint


def _painted(text: str, code: str | None) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


def terminal_size() -> os.terminal_size:
    """COLUMNS and LINES, or what the terminal says: shutil's takes 2 ms to import."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (ValueError, OSError):  # no terminal, or none any more
        size = os.terminal_size((80, 24))
    width, height = map(_number, ("COLUMNS", "LINES"))
    return os.terminal_size((width or size.columns or 80, height or size.lines or 24))


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def has_blocks() -> bool:
    """Whether there are characters for pictures.

    Python speaks UTF-8 even where the locale is C: it then sets LC_CTYPE by itself.
    """
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    said = os.environ.get
    plain = said("LANG", "C") in ("", "C", "POSIX")
    by_python = plain and said("LC_CTYPE") == "C.UTF-8"
    ctype = "" if by_python else said("LC_CTYPE")
    locale = (said("LC_ALL") or ctype or said("LANG") or "").lower()
    unicode = encoding == "utf8" and ("utf-8" in locale or "utf8" in locale)
    return unicode and said("TERM") != "linux"  # whose font has few of them


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


class Live:
    """A screen of its own, so that the shell's is as before at the end.

    A terminal that can do nothing but print gets one page below the other.
    """

    def __enter__(self) -> Self:
        self._paint = painter()
        self._dumb = os.environ.get("TERM", "") in _DUMB
        # By default it would leave the terminal as we need it, without a cursor.
        signal.signal(signal.SIGTERM, _end)
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def update(self, lines: Sequence[Line], height: int) -> None:
        """Show so many of them, from the top."""
        rows = [self._paint(line) for line in lines[:height]]
        if self._dumb:
            sys.stdout.write("\n".join(["", *rows, ""]))
        # Cleared before it is written: the cursor stays on a last column that is full.
        page = "\n".join(f"\x1b[2K{row}" for row in rows)
        self._write(f"\x1b[H{page}" + ("\n\x1b[J" if len(rows) < height else ""))

    def _write(self, text: str) -> None:
        if not self._dumb:
            sys.stdout.write(text)
        sys.stdout.flush()
