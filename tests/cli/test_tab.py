"""``--tab``: what the lines hold, and that the document about them is true."""

import re
from pathlib import Path

import pytest
from alpha_trio_cli import tab

from alpha_trio.settings import PeerSettings
from tests.cli.test_cli import KEY, call
from tests.control.memory_node import status_of

PAGE = Path(__file__).parents[2] / "docs" / "control.md"
VM2 = PeerSettings("vm2", "192.168.10.61")


def documented(command):
    """The columns of a command, in the order of the page."""
    table = PAGE.read_text().partition(f"| column | `{command}` |")[2]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", table.partition("\n\n")[0], re.M)
    assert [int(number) for number, _ in rows] == [*range(1, len(rows) + 1)]
    return [name for _, name in rows]


def rows(*arguments):
    lines = call(*arguments).split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


def test_the_columns_of_status_are_documented(node):
    document = status_of(VM2, key=KEY, rtt_ms=0.25, drops={"queue-full": 2, "age": 1})
    node.document["peers"] = [document]
    (row,) = rows("status", "--tab")
    held = dict(zip(documented("status --tab"), row, strict=True))
    assert held == {
        **{name: str(document[name]) for name in tab._STATUS},
        "latest_handshake_seconds": "-",
        "latest_receive_seconds": "-",
        "rounds": "0",
        "drops": "3",
        "allowed": "192.168.10.61/32",
        "reason": "-",
    }


def test_the_columns_of_the_list_are_documented(node):
    call("peers", "add", "vm2", "192.168.10.61", "--key", KEY, "--reliable", "on")
    call("peers", "add", "other", *("--allow", "10.9.0.0/24", "--allow", "10.8.0.1"))
    other, vm2 = rows("peers", "list", "--tab")  # in the order of their names
    names = documented("peers list --tab")
    held = dict(zip(names, vm2, strict=True))
    wanted = {"name": "vm2", "origin": "state", "endpoint": "192.168.10.61"}
    wanted |= {"key": KEY, "key_source": "configured", "reliable": "on"}
    assert held == dict.fromkeys(names, "-") | wanted
    allow = dict(zip(names, other, strict=True))["allow"]
    assert allow == "10.8.0.1/32,10.9.0.0/24"


def test_one_peer_has_the_line_it_has_among_all(node):
    node.document["peers"] = [status_of(PeerSettings(n, "10.0.0.1")) for n in "ba"]
    assert [row[0] for row in rows("status", "--tab")] == ["a", "b"]
    assert rows("status", "b", "--tab") == rows("status", "--tab")[1:]
    assert "no peer is called 'c'" in call("status", "c", "--tab", code=4)


def test_no_value_breaks_a_line(node):
    reason = "a\ttab, an\nend, a \\ and \x1b[31mred"
    node.document["peers"] = [status_of(VM2, reason=reason)]
    (row,) = rows("status", "--tab")
    assert len(row) == len(tab.STATUS)
    assert row[-1] == r"a\ttab, an\nend, a \\ and \x1b[31mred"
    assert row[-1].encode().decode("unicode_escape") == reason


def test_of_no_peers_there_are_no_lines(node):
    assert call("status", "--tab") == call("peers", "list", "--tab") == ""


@pytest.mark.parametrize(
    "arguments",
    [("status", "--tab", "--json"), ("peers", "list", "--json", "--tab")],
)
def test_one_form_at_a_time(arguments):
    assert "do not go together" in call(*arguments, code=2)
