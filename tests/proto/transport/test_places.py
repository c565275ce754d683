"""Where the peer is: what proves that it is elsewhere now, and what does not."""

import pytest

from alpha_trio.proto.batch import Place
from alpha_trio.proto.messages import Kind
from tests.proto.ends import ELSEWHERE, HERE, THERE, End, Ends, batch, changed, of_kind

THIRD = ("192.0.2.8", 4321)


def sent_to(end: End) -> list[tuple[tuple, bytes]]:
    """What it sends, and where to, since the last call."""
    sends, end.out.sends = end.out.sends, []
    return [(send.remote, bytes(d)) for send in sends for d in send.datagrams()]


def take(end: End, datagram: bytes, source: tuple, now: float = 0.0):
    """Let it arrive from there; what is sent then, and where to."""
    view = memoryview(bytearray(datagram))
    end.transport.incoming(view, len(view), source, b"", end.owns, now, end.out)
    return sent_to(end)


def test_who_answers_where_alone_it_was_asked_is_there():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    line = ends.two.transport.line
    ((to, a1),) = take(ends.two, s1, ELSEWHERE)
    assert (to, line.proven) == (ELSEWHERE, None)
    (s2, *_) = ends.one.take(a1)
    take(ends.two, s2, THIRD)  # wherever this comes from
    assert line.proven == Place(ELSEWHERE)


def test_what_is_not_authentic_proves_nothing():
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    assert take(ends.two, changed(s1, -1), ELSEWHERE) == []
    assert ends.two.transport.line.proven is None


@pytest.mark.parametrize("first", [HERE, ELSEWHERE])
def test_a_copy_proves_nothing_even_if_it_comes_first(first):
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    then = ELSEWHERE if first == HERE else HERE
    answers = [*take(ends.two, s1, first), *take(ends.two, s1, then)]
    assert {to for to, _ in answers} == {HERE, ELSEWHERE}
    ends.two.take(*ends.one.take(answers[0][1]))
    assert ends.two.received
    assert ends.two.transport.line.proven is None


def test_a_repetition_from_elsewhere_is_answered_where_the_peer_is_known_to_be_too():
    """Who outruns each S1 by a copy of it must not get all the answers."""
    ends = Ends.make()
    (s1,) = ends.one.emit(batch())
    take(ends.two, s1, ELSEWHERE)
    (_, copied), (to, a1) = take(ends.two, s1, ELSEWHERE)
    assert (to, a1) == (HERE, copied)
    ends.two.take(*ends.one.take(a1))
    assert ends.two.received
    assert ends.two.transport.line.proven is None  # it may have come from either


def test_an_answer_from_elsewhere_makes_us_ask_there():
    ends = Ends.make()
    (a1,) = ends.two.take(*ends.one.emit(batch()))
    line = ends.one.transport.line
    *packets, (to, question) = take(ends.one, a1, ELSEWHERE)
    assert {to for to, _ in packets} == {THERE}  # the packets wait for nothing
    assert (to, question[0], line.proven) == (ELSEWHERE, Kind.S1, None)
    ((_, answer),) = take(ends.two, question, HERE)
    take(ends.one, answer, ELSEWHERE)
    assert line.proven == Place(ELSEWHERE)


def test_who_copies_answers_and_gets_no_question_through_moves_nobody():
    ends = Ends.make()
    now = 0.0
    for number in range(20):
        (s1,) = of_kind(Kind.S1, ends.one.send(b"packet %d" % number, now=now))
        (a1,) = of_kind(Kind.A1, ends.two.take(s1, now=now))
        sent = take(ends.one, a1, ELSEWHERE, now) + take(ends.one, a1, THERE, now)
        here = [datagram for to, datagram in sent if to == THERE]
        ends.two.take(*here, now=now)
        now += 0.1
        ends.settle(now=now)
    assert len(ends.two.received) == 20
    assert ends.one.transport.line.proven is None
    assert ends.one.transport.line.remote == THERE


def test_an_answer_that_went_to_both_places_does_not_tell_them_apart():
    ends = Ends.make()
    (a1,) = ends.two.take(*ends.one.emit(batch()))
    *_, (_, question) = take(ends.one, a1, ELSEWHERE)
    (again,) = of_kind(Kind.S1, ends.one.serve(1.0))
    assert again == question
    ((_, answer),) = take(ends.two, again, HERE, 1.0)
    take(ends.one, answer, ELSEWHERE, 1.0)
    assert ends.one.transport.line.proven is None


def test_an_s1_without_answer_goes_where_the_peer_was_too_for_a_while():
    ends = Ends.make()
    line = ends.one.transport.line
    line.move(Place(ELSEWHERE), 0.0)
    ends.one.emit(batch())
    ends.one.transport.on_deadline(0.6, ends.one.out)
    assert [to for to, _ in sent_to(ends.one)] == [ELSEWHERE, THERE]
    ends.one.emit(batch(), now=20.0)
    ends.one.transport.on_deadline(20.6, ends.one.out)
    assert {to for to, _ in sent_to(ends.one)} == {ELSEWHERE}
