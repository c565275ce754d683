"""Traces: who answers them, what follows from the answers, and what is not believed."""

from ipaddress import ip_address
from itertools import product
from random import Random

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from alpha_trio.proto.batch import Crossing, Drop, EventKind
from alpha_trio.proto.messages import REFUSE_AFTER, BadPacket, Kind
from alpha_trio.proto.peers.session import REKEY_AFTER
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.relay.consent import WrongSide
from alpha_trio.proto.relay.traces import PassingTraces
from alpha_trio.proto.relay.verdict import Consent, RelayDrop
from alpha_trio.proto.traces import (
    MAX_HOPS,
    TRACE_LIFETIME,
    Counts,
    Report,
    Role,
    Segment,
    packed_address,
    parse_report_untrusted,
)
from alpha_trio.proto.traces.report import REPORT_BURST, REPORT_RATE, REPORT_SIZE
from alpha_trio.proto.traces.trace import MAX_CHECKS, PROBES_KEPT
from tests.proto.ends import HERE, THERE
from tests.proto.routed import Path
from tests.proto.simulation import remote_of
from tests.proto.traced import (
    ALLOWED,
    SILENT,
    Deed,
    TracedPath,
    alter,
    inject,
    is_trace,
    lose,
    repeat,
)

KEY = Identity(bytes(range(32)))


def found(segment):
    """What went wrong on it: lost, altered, injected, repeated."""
    return segment.lost, segment.altered, segment.injected, segment.repeated


def places(trace):
    return [hop.key for hop in trace.hops()]


# What a path answers


def test_all_nodes_answer_in_order():
    path = TracedPath()
    path.connect()
    path.talk(0.5)
    trace = path.trace()
    assert places(trace) == path.keys
    reports = [hop.report for hop in trace.hops()]
    assert [r and r.role for r in reports] == [None, Role.RELAY, Role.RELAY, Role.END]
    assert [str(r.place) for r in reports[1:3]] == ["192.168.11.1", "192.168.12.1"]
    assert reports[3].place is None
    assert [r.hops for r in reports[1:]] == [63, 62, 0]
    assert [found(segment) for segment in trace.segments()] == [(0, 0, 0, 0)] * 3
    assert path.one.told(EventKind.TRACED) == 1
    assert path.one.drops() == {}


def test_all_count_the_same_where_nothing_is_lost():
    path = TracedPath()
    path.connect()
    path.talk(1)
    hops = path.trace().hops()
    assert {hop.forth for hop in hops} == {hops[0].forth}
    assert hops[0].forth.passed > 100
    # Theirs was counted at one moment each, while packets went on.
    assert min(hop.back.passed for hop in hops) > 50


def test_an_idle_session_can_be_traced():
    path = TracedPath()
    path.connect()
    trace = path.begin_trace()
    path.run(3)
    assert trace.done
    assert places(trace) == path.keys


@pytest.mark.parametrize("mode", ["n", "c", "m", "cm"])
@pytest.mark.parametrize("reliable", [False, True])
def test_each_mode_can_be_traced(mode, reliable):
    path = TracedPath(mode, reliable=reliable)
    path.connect()
    path.deeds[1] = Deed(lose)
    path.talk(0.5)
    trace = path.trace()
    assert [found(segment) for segment in trace.segments()] == [
        (0, 0, 0, 0),
        (path.deeds[1].done, 0, 0, 0),
        (0, 0, 0, 0),
    ]
    assert path.deeds[1].done > 5


@pytest.mark.parametrize(
    ("link", "number", "seconds"),
    [
        *product(range(3), range(4), [0.0]),
        *((link, number, 1.0) for link, number in ((0, 0), (1, 1), (2, 2), (1, 3))),
    ],
)
def test_the_link_where_it_happens_is_named(link, number, seconds):
    path = TracedPath()
    path.connect()
    deed = path.deeds[link] = Deed([lose, alter, inject, repeat][number])
    path.talk(0.5)
    before = deed.done
    segments = path.trace(seconds).segments()
    amounts = [found(segment) for segment in segments]
    told = amounts.pop(link)
    assert amounts == [(0, 0, 0, 0)] * 2
    assert [bool(count) for count in told] == [i == number for i in range(4)]
    if seconds:
        assert 0 < told[number] <= deed.done - before
        assert segments[link].seconds == pytest.approx(seconds, abs=0.6)
    else:
        assert before <= told[number] <= deed.done
        assert segments[link].seconds is None


def test_all_links_at_once():
    path = TracedPath()
    path.connect()
    path.deeds = {0: Deed(alter), 1: Deed(lose, every=7), 2: Deed(inject, every=3)}
    path.talk(0.5)
    first, second, third = map(found, path.trace().segments())
    assert first == (0, path.deeds[0].done, 0, 0)
    assert second == (path.deeds[1].done, 0, 0, 0)
    assert third == (0, 0, path.deeds[2].done, 0)


def test_what_happened_before_does_not_count_while_comparing():
    path = TracedPath()
    path.connect()
    path.deeds[1] = Deed(lose)
    path.talk(0.5)
    del path.deeds[1]
    path.run(1)
    compared = path.trace(1.0).segments()
    assert [found(segment) for segment in compared] == [(0, 0, 0, 0)] * 3
    assert compared[1].packets > 100
    assert found(path.trace().segments()[1])[0] > 5


def test_a_relay_that_may_not_answer_is_silent():
    path = TracedPath(policies=(SILENT, ALLOWED))
    path.connect()
    path.deeds[1] = Deed(lose)
    path.talk(0.5)
    trace = path.trace()
    assert places(trace) == [path.keys[0], *path.keys[2:]]
    assert path.nodes[0].reports == []
    assert found(trace.segments()[0]) == (path.deeds[1].done, 0, 0, 0)


def test_without_relays_there_are_the_two_ends():
    path = TracedPath(policies=())
    path.connect()
    trace = path.trace()
    assert places(trace) == path.keys
    assert len(trace.segments()) == 1


def test_lost_traces_and_lost_reports_are_made_up_for():
    path = TracedPath()
    path.connect()
    traces = []

    def lose_first(datagram):
        traces.extend([datagram] if is_trace(datagram) else [])
        return [] if [datagram] == traces else [datagram]

    path.deeds[1] = lose_first
    path.nodes[0].delivers = False
    trace = path.begin_trace(2.0)
    path.talk(1.2)
    path.nodes[0].delivers = True
    while not trace.done:
        path.talk(0.1)
    assert places(trace) == path.keys
    # The one that was lost is missing behind, and counts.
    assert [s.packets > 0 for s in trace.segments()] == [True] * 3
    assert sum(found(s)[0] for s in trace.segments()) <= 1
    assert len({bytes(t) for t in traces}) == len(traces)  # none was repeated


def test_a_report_that_lacks_at_the_end_is_asked_for_again():
    path = TracedPath()
    path.connect()
    trace = path.begin_trace(1.0)
    path.run(0.9)
    path.nodes[1].delivers = False
    path.run(0.4)
    path.nodes[1].delivers = True
    path.run(1)
    assert trace.done
    assert len(trace.probes) == 4
    assert [len(probe.reports) for probe in trace.probes] == [3, 3, 2, 3]


def test_a_peer_that_no_longer_answers_ends_the_trace():
    path = TracedPath()
    path.connect()
    path.deeds[2] = lambda _datagram: []
    trace = path.begin_trace(1.0)
    path.run(10)
    assert trace.done
    assert trace.segments() == []


def test_a_trace_goes_on_in_the_next_session():
    path = TracedPath()
    path.connect()
    path.talk(0.5)
    path.run(REKEY_AFTER - 2)
    before = path.session("vm1", "vm2").current
    trace = path.begin_trace(4.0)
    while not trace.done:
        path.talk(0.1)
    now = path.session("vm1", "vm2").current
    assert now is not before
    assert trace.session == now.local_id
    assert {r.receiver_id for p in trace.probes for r in p.reports.values()} == {
        now.local_id
    }
    assert places(trace) == path.keys
    assert [found(s) for s in trace.segments()] == [(0, 0, 0, 0)] * 3


def test_a_trace_alone_keeps_a_session():
    path = TracedPath()
    path.connect()
    before = path.session("vm1", "vm2").current
    trace = path.begin_trace(2 * REFUSE_AFTER)
    while not trace.done:
        path.run(1)
        current = path.session("vm1", "vm2").current
        assert path.now < current.established + REFUSE_AFTER
    assert current is not before
    assert places(trace) == path.keys
    assert path.now > 2 * REFUSE_AFTER
    assert path.one.drops() == {}


def test_a_long_trace_keeps_few_probes():
    path = TracedPath()
    path.connect()
    trace = path.begin_trace(20.0)
    first = None
    while not trace.done:
        path.run(0.5)
        first = first or trace.probes[0]
    assert len(trace.probes) == PROBES_KEPT
    assert trace.probes[0] is first
    assert trace.segments()[0].seconds == pytest.approx(20, abs=1)


@pytest.mark.parametrize("mode", ["plain", "adaptive"])
def test_only_an_alpha_session_can_be_traced(mode):
    path = TracedPath(mode, policies=())
    assert path.begin_trace() is None
    path.connect()
    assert (path.begin_trace() is None) == (mode == "plain")


def test_a_session_that_ends_ends_its_trace():
    path = TracedPath()
    path.connect()
    trace = path.begin_trace(2.0)
    path.session("vm1", "vm2").reset()
    path.run(1)
    assert trace.done
    assert trace.hops() == []
    path.connect()
    trace = path.begin_trace(2.0)
    path.one.table.remove("vm2")
    assert trace.done


# What is counted


def test_runs_count_as_the_datagrams_in_them():
    """At every node, whatever comes altered or twice among what is right."""
    path = Path("c")
    path.introduce()
    s1, a1, s2s = path.opened()
    path.to_two(s1)
    path.to_one(a1)
    sent = path.one.transport.sender.counts
    assert sent == Counts(len(s2s)) == Counts(7)
    run = [s2s[0], *alter(s2s[1]), *s2s[1:3], s2s[2], *s2s[3:]]
    path.to_two(b"".join(run), stride=len(s2s[0]))
    path.two.take(b"".join(run), stride=len(s2s[0]))
    (session,) = path.relay._all()
    found = Counts(passed=7, forged=1, replayed=1)
    assert session.responder.tally.counts == found
    assert path.two.receiver.counts == found
    path.to_two(s1, *s2s[:2])
    path.two.take(b"".join(s2s[:2]), stride=len(s2s[0]))
    assert session.responder.tally.counts == evolve(found, replayed=3, other=1)
    assert path.two.receiver.counts == evolve(found, replayed=3)


# What follows from the counters


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (Counts(100), (0, 0, 0, 0)),
        (Counts(88), (12, 0, 0, 0)),
        (Counts(88, forged=12), (0, 12, 0, 0)),
        (Counts(88, forged=2), (10, 2, 0, 0)),
        (Counts(88, forged=15), (0, 12, 3, 0)),
        (Counts(100, forged=3), (0, 0, 3, 0)),
        (Counts(100, unsolicited=3), (0, 0, 3, 0)),
        (Counts(98, unsolicited=3), (2, 0, 1, 0)),  # late, and one that nobody sent
        (Counts(90, forged=4, unsolicited=9), (6, 4, 3, 0)),
        (Counts(100, replayed=7), (0, 0, 0, 7)),
        (Counts(100, other=9), (0, 0, 0, 0)),
        (Counts(103), (0, 0, 0, 0)),  # overtaken, or repeated where that may be
    ],
)
def test_a_segment(there, expected):
    assert found(Segment.between(Counts(100), there, None)) == expected


@given(*[st.integers(0, 2**64 - 1)] * 2, *[st.integers(0, 2**32 - 1)] * 4)
def test_nothing_is_blamed_twice(here, there, forged, replayed, unsolicited, other):
    counts = Counts(there, forged, replayed, unsolicited, other)
    segment = Segment.between(Counts(here), counts, 1.0)
    assert min(found(segment)) >= 0
    assert segment.lost + segment.altered == max(0, here - there)
    assert segment.altered + segment.injected <= forged + unsolicited
    assert segment.repeated == replayed


def test_counters_that_fall_do_not_count():
    before, now = Counts(9, 1, 2, 3, 4), Counts(10, 0, 5, 3, 4)
    assert now.since(before) == Counts(1, 0, 3, 0, 0)


# What is not believed


def report_of(probe, trace, **other):
    """A REPORT by KEY that would be taken."""
    report = Report(
        trace.session, probe.nonce, KEY.public, Role.RELAY, Counts(7), Counts(8)
    )
    return evolve(report, **other)


def asked():
    """A path with a trace under way, and its latest probe."""
    path = TracedPath(policies=())
    path.connect()
    trace = path.begin_trace(60.0)
    path.run(0.4)
    return path, trace, trace.probes[-1]


def arrive(path, *datagrams):
    """Returns how many were refused."""
    before = path.one.drops()[Drop.BAD_REPORT]
    for datagram in datagrams:
        path.inject("vm1", remote_of("192.0.2.7"), datagram)
    return path.one.drops()[Drop.BAD_REPORT] - before


def test_a_report_is_taken_once():
    path, trace, probe = asked()
    datagram = report_of(probe, trace).signed(KEY)
    assert arrive(path, datagram) == 0
    assert arrive(path, datagram) == 1
    assert list(probe.reports) == [path.keys[-1], KEY.public]


def test_a_report_altered_anywhere_is_refused():
    path, trace, probe = asked()
    datagram = report_of(probe, trace).signed(KEY)
    for at in range(len(datagram)):
        altered = bytearray(datagram)
        altered[at] ^= 1
        before = sum(path.one.drops().values())
        path.inject("vm1", remote_of("192.0.2.7"), bytes(altered))
        assert sum(path.one.drops().values()) == before + 1, at
        probe.checks = 0
    assert list(probe.reports) == [path.keys[-1]]


def test_foreign_reports_are_refused():
    path, trace, probe = asked()
    two, one = path.two.identity, path.one.identity
    other = TracedPath(policies=(), seed=5).two.identity
    probe.reports.clear()
    wrong = [
        report_of(probe, trace, nonce=bytes(16)).signed(KEY),
        report_of(probe, trace, receiver_id=trace.session ^ 1).signed(KEY),
        report_of(probe, trace, role=Role.END).signed(KEY),
        report_of(probe, trace, key=two.public).signed(two),
        report_of(probe, trace, key=one.public).signed(one),
        report_of(probe, trace, key=two.public, role=Role.END).signed(KEY),
        report_of(probe, trace).signed(other),
    ]
    for datagram in wrong:
        arrive(path, datagram)
    assert probe.reports == {}
    right = report_of(probe, trace, key=two.public, role=Role.END).signed(two)
    assert arrive(path, right) == 0
    assert list(probe.reports) == [two.public]


def test_a_report_that_comes_late_is_refused():
    path, trace, probe = asked()
    datagram = report_of(probe, trace).signed(KEY)
    path.run(TRACE_LIFETIME)
    assert arrive(path, datagram) == 1


def test_a_report_before_its_trace_has_left_is_refused():
    path, trace, probe = asked()
    probe.sent = None
    assert arrive(path, report_of(probe, trace).signed(KEY)) == 1


def test_without_a_trace_every_report_is_refused():
    path, trace, probe = asked()
    path.session("vm1", "vm2").tracing = None
    assert arrive(path, report_of(probe, trace).signed(KEY)) == 1


def test_reports_and_signatures_of_one_trace_are_bounded():
    path, trace, probe = asked()
    keys = [Identity(bytes([n]) * 32) for n in range(2 * MAX_HOPS)]
    good = [report_of(probe, trace, key=k.public).signed(k) for k in keys]
    assert arrive(path, *good) == 0
    assert len(probe.reports) == MAX_HOPS
    path, trace, probe = asked()
    forged = report_of(probe, trace).signed(keys[0])
    assert arrive(path, *[forged] * 2 * MAX_CHECKS) == 2 * MAX_CHECKS
    assert probe.checks == MAX_CHECKS


# At a relay


ASKING = Crossing(HERE, THERE, 1)  # how the TRACE crosses the relay
ANSWERING = Crossing(THERE, HERE, 2)


def passing(nonce, key=None):
    """A relay's TRACEs, of which this is the latest, to the end with that key."""
    traces = PassingTraces(Consent.LINK, Random(0).randbytes)
    traces.add(5, nonce, key, ASKING, 10.0)
    return traces


def test_relays_let_pass_what_was_asked_for_and_no_more():
    nonce = bytes(range(16))
    report = Report(5, nonce, KEY.public, Role.RELAY, Counts(), Counts())
    datagram = report.signed(KEY)
    traces = passing(nonce)
    for _ in range(MAX_HOPS - 1):
        traces.take_untrusted(datagram, ANSWERING, 10.0 + TRACE_LIFETIME)
    with pytest.raises(BadPacket):
        traces.take_untrusted(datagram, ANSWERING, 10.0)
    for wrong in (evolve(report, receiver_id=6), evolve(report, nonce=bytes(16))):
        traces.add(5, nonce, None, ASKING, 10.0)
        with pytest.raises(BadPacket):
            traces.take_untrusted(wrong.pack(), ANSWERING, 10.0)
    with pytest.raises(BadPacket):
        traces.take_untrusted(datagram, ANSWERING, 10.1 + TRACE_LIFETIME)
    traces.forget_old(10.1 + TRACE_LIFETIME)
    assert len(traces) == 0


def test_reports_of_others_do_not_take_the_place_of_the_other_ends():
    nonce, stranger = bytes(range(16)), Identity(b"s" * 32)
    fields = Role.END, Counts(), Counts()
    genuine = Report(5, nonce, KEY.public, *fields).signed(KEY)
    others = Report(5, nonce, stranger.public, *fields).signed(stranger)
    made_up = genuine[:-1] + bytes([genuine[-1] ^ 1])
    traces, passed = passing(nonce, KEY.public), []
    for number in range(100):
        for datagram in (others, made_up):
            try:
                traces.take_untrusted(datagram, ANSWERING, 10.0 + number / 100)
            except BadPacket:
                continue
            passed.append(datagram)
    assert passed == [others] * (MAX_HOPS - 1)
    traces.take_untrusted(genuine, ANSWERING, 11.5)
    with pytest.raises(BadPacket):
        traces.take_untrusted(genuine, ANSWERING, 12.0)


@pytest.mark.parametrize("crossing", [ASKING, Crossing(THERE, HERE, 1)])
def test_a_report_comes_from_where_the_trace_went(crossing):
    nonce = bytes(range(16))
    report = Report(5, nonce, KEY.public, Role.RELAY, Counts(), Counts()).signed(KEY)
    traces = passing(nonce)
    with pytest.raises(WrongSide):
        traces.take_untrusted(report, crossing, 10.0)
    traces.take_untrusted(report, ANSWERING, 10.0)


def test_a_relay_is_sure_of_whom_a_report_is_for():
    nonce = bytes(range(16))
    report = Report(5, nonce, KEY.public, Role.RELAY, Counts(), Counts()).signed(KEY)
    refused = []
    for at in range(REPORT_SIZE):
        traces = passing(nonce)
        altered = report[:at] + bytes([report[at] ^ 0x80]) + report[at + 1 :]
        try:
            traces.take_untrusted(altered, ANSWERING, 10.0)
        except BadPacket:
            refused.append(at)
    header_and_nonce, role = range(24), 73
    assert refused == [*header_and_nonce, role]


def test_a_relay_drops_what_nobody_asked_for():
    path = TracedPath()
    path.connect()
    tracer = path.session("vm1", "vm2").current.local_id
    report = Report(tracer, bytes(16), KEY.public, Role.RELAY, Counts(), Counts())
    for datagram in (report.signed(KEY), report.signed(KEY)[:-1]):
        view = memoryview(bytearray(datagram))
        relay = path.nodes[0].relay
        crossing = Crossing(remote_of("192.0.2.7"), remote_of(path.one.address))
        assert relay.transit(view, len(view), crossing, path.now) == []
    assert relay.counters.drops == {RelayDrop.BAD_REPORT: 2}


def test_nobody_gets_more_than_was_sent():
    path = TracedPath()
    path.connect()
    path.begin_trace(2.0)
    path.run(5)
    asked = [len(s.data) for s in path.messages(Kind.S2, "vm1") if is_trace(s.data)]
    assert len(asked) == 5
    for node in path.nodes:
        assert len(node.reports) == len(asked)
        assert max(map(len, node.reports)) <= min(asked)
    ends = path.messages(Kind.REPORT)
    assert [len(sent.data) for sent in ends] == [REPORT_SIZE] * len(asked)


def test_a_relay_answers_at_a_limited_rate():
    path = TracedPath()
    path.connect()
    session = path.session("vm1", "vm2")
    started = path.now
    while path.now < started + 10:  # one trace after the other
        path.begin_trace()
        path.run(0.1)
    most = REPORT_BURST + REPORT_RATE * 10
    assert most / 2 < len(path.nodes[0].reports) <= most + 1
    assert len(path.nodes[1].reports) <= most + 1
    assert most / 2 < len(path.messages(Kind.REPORT)) <= most + 1
    assert session.tracing is not None


def test_a_replayed_trace_is_not_answered_again():
    path = TracedPath()
    path.connect()
    path.deeds[0] = lambda datagram: [datagram, datagram]
    path.begin_trace()
    path.run(3)
    assert len(path.nodes[0].reports) == 1
    assert len(path.nodes[1].reports) == 1


# The message


def test_addresses():
    for host in ("192.168.10.60", "fd00:10::60", "fe80::1%eth0"):
        packed = packed_address(host)
        report = Report(
            1, bytes(16), KEY.public, Role.RELAY, Counts(), Counts(), packed
        )
        assert report.place == ip_address(host.partition("%")[0])


counts = st.builds(Counts, st.integers(0, 2**64 - 1), *[st.integers(0, 2**32 - 1)] * 4)


@given(
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
    counts,
    counts,
    st.sampled_from(Role),
    st.integers(0, 255),
)
def test_what_is_packed_comes_back(receiver, nonce, forth, back, role, hops):
    report = Report(
        receiver, nonce, KEY.public, role, forth, back, bytes(range(16)), hops
    )
    datagram = report.signed(KEY)
    assert len(datagram) == REPORT_SIZE
    parsed = parse_report_untrusted(datagram)
    parsed.verify_untrusted()
    assert parsed == evolve(report, signature=datagram[-64:])


def test_counters_that_do_not_fit_stay_at_their_end():
    many = Counts(2**40, *[2**40] * 4)
    report = Report(1, bytes(16), KEY.public, Role.RELAY, many, many)
    assert parse_report_untrusted(report.pack()).back == Counts(2**40, *[2**32 - 1] * 4)


@given(st.binary(max_size=2 * REPORT_SIZE))
@example(bytes(REPORT_SIZE))
@example(b"\x0a\x01" + bytes(REPORT_SIZE - 2))
def test_other_bytes_raise_only_bad_packet(data):
    with pytest.raises(BadPacket):
        parse_report_untrusted(data).verify_untrusted()
