"""What a relay tells of answers that come by their questions' link."""

from alpha_trio.journal import Journal
from alpha_trio.relaying.journal import Aside


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
