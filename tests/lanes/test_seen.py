"""What the front knows of a session, when its lane's word is older than a wish."""

from random import Random

import pytest
from attrs import evolve

from alpha_trio.lanes.seen import FarSession, Told
from alpha_trio.proto.peers import PeerTable, State
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.traces import Trace

FIRST, SECOND = ("192.168.10.61", 1234), ("192.168.10.62", 1234)
KEY = bytes(range(32))


@pytest.fixture
def there():
    """A session in a lane."""
    table = PeerTable(1234, Identity(bytes(32)), Random(1).randbytes)
    return table, table.add("vm2", [FIRST], [])


@pytest.fixture
def here():
    calls = []
    session = FarSession("vm2", 0, 0, lambda *call: calls.append(call))
    session.configure([FIRST], None)
    return session, calls


def test_the_front_knows_what_the_lane_has_told(here, there):
    (far, _), (table, session) = here, there
    table.connect(session, 1.0)
    assert not far.update(Told.of(session, 1.0, (1, 0, 0)), None)  # it is where it was
    for name in ("remote", "key", "attempts", "places", "mtu", "heard", "local"):
        assert getattr(far, name) == getattr(session, name)
    assert far.state(1.0) is session.state(1.0) is State.HANDSHAKING
    assert far.statistics(1.0) == session.statistics(1.0)


def test_a_place_it_was_told_of_does_not_hold_after_another_was_wished(here, there):
    (far, _), (_, session) = here, there
    old = Told.of(session, 1.0, (1, 0, 0))
    far.configure([SECOND], None)
    assert not far.update(old, None)
    assert far.remote == SECOND


def test_nothing_it_was_told_before_a_reset_holds(here, there):
    (far, calls), (table, session) = here, there
    table.configure(session, [FIRST], [], key=KEY)
    old = Told.of(session, 1.0, (1, 0, 0))
    far.reset()
    assert calls == [("reset", 0)]
    assert not far.update(old, None)
    assert far.key is None
    assert far.update(Told.of(session, 2.0, (1, 1, 0)), None) is False
    assert far.key == KEY


def test_routes_follow_where_a_peer_is(here, there):
    (far, _), (table, session) = here, there
    table.configure(session, [SECOND], [])
    assert far.update(Told.of(session, 1.0, (1, 0, 0)), None)
    assert far.remote == SECOND


def test_what_was_told_grows_older():
    far = FarSession("vm2", 0, 0, lambda *_: None)
    far.at, far.last = 10.0, evolve(far.last, receive_age=1.5)
    found = far.statistics(12.0)
    assert (found.receive_age, found.handshake_age) == (3.5, None)


@pytest.fixture
def traced(here):
    """What the front gives to who asked for a trace."""
    far, _ = here
    far.tracing = Trace(bytes(32), KEY, 0, 1.0, 0.0, 0.0, Random(1).randbytes)
    far.traces += 1
    return far.tracing


def test_a_trace_is_over_that_the_lane_could_not_begin(here, there, traced):
    (far, _), (_, session) = here, there
    far.update(Told.of(session, 1.0, (1, 0, 0)), None)
    assert not traced.done  # nor has it heard of it
    far.update(Told.of(session, 1.0, (1, 0, 1)), None)
    assert traced.done
    assert far.tracing is None


def test_the_end_of_a_trace_does_not_end_the_next_one(here, there, traced):
    (far, _), (_, session) = here, there
    far.end_trace()
    assert traced.done
    second = far.tracing = evolve(traced, started=2.0, done=False)
    far.traces += 1
    far.update(Told.of(session, 2.0, (1, 0, 1)), traced)
    assert not second.done


def test_a_trace_ends_with_its_session(here, traced):
    far, _ = here
    far.reset()
    assert traced.done


def test_a_lane_is_told_of_a_link_once(here):
    far, calls = here
    for _ in range(2):
        far.allow(1500, 0, 1.0)
    far.allow(1400, 0, 2.0)
    assert calls == [("allow", 0, 1500, 0, 1.0), ("allow", 0, 1400, 0, 2.0)]
    far.configure([SECOND], None)  # with another mode, say
    far.allow(1400, 0, 3.0)
    far.remote = ("fd00::5", 1234, 0, 0)
    far.allow(1400, 0, 4.0)
    assert [call[-1] for call in calls] == [1.0, 2.0, 3.0, 4.0]
