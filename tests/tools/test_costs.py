"""That what tools/costs measures is what it says; times themselves prove nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from alpha_trio.proto.messages import Kind
from tools import costs
from tools.costs import AT_AN_END, Case, Cost

CALLS = 40


@pytest.mark.parametrize(
    "case",
    AT_AN_END,
    ids=[f"{number}-{case.what}" for number, case in enumerate(AT_AN_END)],
)
def test_each_datagram_meets_the_fate_that_is_measured(case):
    trial = case.prepare(CALLS)
    before = trial.drops()
    assert trial.run() > 0
    expected = {case.reason: len(trial.datagrams)} if case.reason else {}
    assert trial.drops() - before == expected


def test_every_kind_of_datagram_is_there():
    told = {case.what.replace(",", " ").split()[0] for case in AT_AN_END}
    assert {kind.name for kind in Kind} <= told


def test_what_comes_beyond_a_limit_has_a_row_of_its_own():
    for case, following in pairwise(AT_AN_END):
        if following.what == "the same, too many":
            assert case.limit
            assert not following.limit


def test_the_cheapest_is_the_measure():
    cheap, dear = AT_AN_END[0], next(c for c in AT_AN_END if c.what == "SYN, answered")
    one, other = costs.measured([cheap, dear], 20, 1)
    assert (one.case, other.case) == (cheap, dear)
    assert min(one.times, other.times) == 1.0


def test_a_table_has_what_was_measured():
    case = Case("SYN, made up", None, AT_AN_END[0].prepare, "5/s")
    table = costs.printed("At an end", [Cost(case, 12.34, 5.67)])
    assert [list(column.cells) for column in table.columns] == [
        ["SYN, made up"],
        ["5/s"],
        ["12.3"],
        ["5.7"],
    ]


def test_the_command_prints_a_table(capsys):
    assert costs.main(["--calls", "2", "--repetitions", "1"]) == 0
    assert "At an end" in capsys.readouterr().out
