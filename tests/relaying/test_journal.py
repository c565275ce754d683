"""What a relay tells of answers on the wrong link, and of what it drops."""

import logging

import pytest

from alpha_trio.journal import Journal
from alpha_trio.proto.relay import RelayEvent, RelayEventKind
from alpha_trio.relaying.journal import Aside, record


def test_health_names_the_remedy_while_answers_come_by_the_wrong_link():
    journal = Journal()
    aside = Aside(journal)
    for second in range(9):
        aside.look(second, 100.0 + second)
    assert journal.troubles == {}
    aside.look(10, 110.0)
    (sentence,) = journal.troubles.values()
    assert 'consent = "address"' in sentence
    aside.look(11, 120.0)
    aside.look(11, 180.0)
    assert aside.told
    aside.look(11, 181.0)
    assert journal.troubles == {}
    assert not aside.told


def test_a_few_over_a_long_time_are_not_told():
    journal = Journal()
    aside = Aside(journal)
    for minute in range(100):
        aside.look(minute, 70.0 * minute)
        aside.look(minute, 70.0 * minute + 61)
    assert journal.troubles == {}


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("forged", "(forged)."),
        ("wrong-side", "(wrong-side): who answers was not asked there; "),
        ("early-false", "(early-false): what passed inside an S1 was not signed; "),
    ],
)
def test_a_reason_that_does_not_speak_for_itself_is_explained(caplog, reason, said):
    caplog.set_level(logging.INFO, "alpha_trio")
    ends = ("192.168.10.60", 1234), ("192.168.10.61", 1234)
    record(Journal(), RelayEvent(RelayEventKind.DROPPED, *ends, reason=reason))
    (line,) = caplog.messages
    assert line.startswith(
        f"Not relaying packets between 192.168.10.60:1234 and 192.168.10.61:1234 {said}"
    )
