"""docs/protocol.md against the code: what it names exists, what it counts agrees."""

import re
from importlib import import_module
from operator import attrgetter

import pytest

from alpha_trio.proto.batch import Drop
from alpha_trio.proto.messages import Control, data, handshake, header
from alpha_trio.proto.packets import frames
from alpha_trio.proto.traces import report
from tests.test_docs import ROOT, section

PAGE = "docs/protocol.md"
TEXT = (ROOT / PAGE).read_text()
CONSTANT = re.compile(r"^\| `([\w.]+)\.(\w+)` \| ([\d.]+) \|", re.MULTILINE)
ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
COOKIE_SIZE = (
    header.HEADER_SIZE + header.NONCE_SIZE + handshake.COOKIE_SIZE + handshake.MAC_SIZE
)


def below(heading):
    """What stands below a heading of any rank, up to the next one."""
    match = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#)", TEXT, re.M | re.S)
    assert match, heading
    return match[1]


@pytest.mark.parametrize(("module", "name", "value"), CONSTANT.findall(TEXT))
def test_constants_are_those_of_the_code(module, name, value):
    found = getattr(import_module(f"alpha_trio.proto.{module}"), name)
    assert float(found) == float(value)


def test_all_constants_are_in_tables_that_were_read():
    rows = ROW.findall(section(PAGE, "Constants"))
    headings = sum(row.startswith(("| constant", "|---")) for row in rows)
    assert len(CONSTANT.findall(TEXT)) == len(rows) - headings > 50


def drawn_size(heading):
    """Bytes of the first drawing below a heading, without parts of variable size."""
    drawing = re.search(r"^```\n(.*?)^```$", below(heading), re.M | re.S)[1]
    rows = [row for row in drawing.splitlines() if row.startswith("|")]
    return sum(map(size_of_row, rows))


def size_of_row(row):
    if size := re.search(r"\((\d+) bytes\)", row):
        return int(size[1])
    return 0 if "bytes" in row else 4


@pytest.mark.parametrize(
    ("heading", "size"),
    [
        ("Header", header.HEADER_SIZE),
        ("SYN", handshake.SYN_SIZE),
        ("ACK", handshake.ACK_SIZE),
        ("ACKACK", handshake.ACKACK_SIZE),
        ("COOKIE", COOKIE_SIZE),
        ("Rounds", data.ROUND_HEAD_SIZE),
        ("S1", data.S1_FIXED_SIZE + data.TAG_SIZE),
        ("Early data", data.S1_FIXED_SIZE + data.NODE_SIZE + data.TAG_SIZE),
        ("A1", data.A1_SIZE),
        ("S2", data.S2_SIZE),
        ("A2", data.ROUND_HEAD_SIZE + data.A2_OPENING.size + data.TAG_SIZE),
        ("Bodies", frames.FRAME_WORD_SIZE),
        ("Associations", 4 + 16),
        ("Traces", 4 + 16),
        ("REPORT", report.REPORT_SIZE),
        ("Plain mode", data.DATA_SIZE),
    ],
)
def test_drawings_have_the_size_of_the_messages(heading, size):
    assert drawn_size(heading) == size


@pytest.mark.parametrize(
    ("heading", "numbers"), [("Header", header.Kind), ("Associations", Control)]
)
def test_numbers_of_messages(heading, numbers):
    rows = re.findall(r"^\| (\d+) \| `?(\w+)`? \|", below(heading), re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {
        number.name: number.value for number in numbers
    }


def test_bits_of_marks_options_and_shapes():
    rows = re.findall(
        r"^\| 1[45], \w+ \| (\w+) \| ([\w ]+) \|", below("Marks and options"), re.M
    )
    assert {name: int(bit, 16) for bit, name in rows} == {
        "NO EARLY": handshake.NO_EARLY,
        "EARLY": handshake.EARLY,
    }
    shape = dict(re.findall(r"(\w+) \((0x\w+)\)", below("Rounds")))
    assert {name: int(bit, 16) for name, bit in shape.items()} == {
        "R": data.RELIABLE,
        "C": data.CONTROL,
        "E": data.EARLY_ROUND,
        "zero": 0xFF
        ^ data.RELIABLE
        ^ data.CONTROL
        ^ data.EARLY_ROUND
        ^ data.DEPTH_MASK,
        "depth": data.DEPTH_MASK,
    }


def test_functions_that_hold_the_rules_exist():
    named = re.findall(
        r"`(\w+\.\w+)\.([A-Za-z]\w*(?:\.\w+)?)`", section(PAGE, "Security argument")
    )
    assert len(named) > 20
    for module, path in named:
        assert callable(attrgetter(path)(import_module(f"alpha_trio.proto.{module}")))


def test_reasons_for_drops_in_the_state_tables_exist():
    reasons = set(re.findall(r"`([a-z-]+)`", section(PAGE, "State tables")))
    assert len(reasons) > 5
    assert reasons <= set(map(str, Drop))
