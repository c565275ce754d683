"""How large a packet a path takes: found, kept, and found anew when it changes."""

from random import Random

import pytest
from attrs import define

from alpha_trio.proto.batch import EventKind
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.peers import State
from alpha_trio.proto.peers.pathmtu import (
    BASE,
    ENOUGH,
    GROW_EVERY,
    LADDER,
    LEAST,
    MOST_PROBES,
    PathMtu,
    Phase,
    Source,
)
from tests.proto.routed import Routed
from tests.proto.simulation import DELAY, Link, Simulation, remote_of

OUTER = 28  # IPv4 and UDP header
AROUND = 92  # and ours, in the default mode


# -- the machine alone


def search(path, takes, now=0.0):
    """Answer probes as a path would that takes so much; returns how many there were."""
    probes = 0
    while (size := path.next_probe(now, large=False)) is not None:
        probes += 1
        assert size <= path.ceiling
        path.on_arrived(now) if size <= takes else path.on_lost(now)
    return probes


@pytest.mark.parametrize("ceiling", [1280, 1500, 9000, 65535])
@pytest.mark.parametrize("version", [4, 6])
def test_every_size_is_found_within_ten_probes(version, ceiling):
    for takes in range(LEAST[version], ceiling + 1, 7):
        path = PathMtu()
        path.begin(version, ceiling, 0.0)
        assert search(path, takes) <= MOST_PROBES
        assert path.size <= takes
        if takes >= BASE:
            assert path.size >= BASE
        if takes in LADDER and takes <= 1500:
            assert takes - path.size <= ENOUGH
        assert (path.phase, path.source) == (Phase.KNOWN, Source.PROBED)


def test_what_the_link_says_is_assumed_until_a_probe_is_answered():
    path = PathMtu()
    path.begin(4, 1500, 0.0)
    assert (path.size, path.source) == (1500, Source.ROUTE)
    assert path.next_probe(0.0, large=False) == 1500
    path.on_silence(1.0)
    assert (path.size, path.source) == (1500, Source.ROUTE)
    assert 1.0 < path.deadline < 60.0


def test_a_lost_top_falls_to_the_base_when_that_arrives():
    path = PathMtu()
    path.begin(4, 9000, 0.0)
    for asked, arrives in ((9000, False), (BASE, True), (9000, False)):
        assert path.next_probe(0.1, large=False) == asked
        assert path.size == 9000
        path.on_arrived(0.1) if arrives else path.on_lost(0.1)
    assert path.size == BASE
    assert len(path.tried) == 3


def test_who_never_answers_is_asked_ever_more_seldom():
    path, now, asked = PathMtu(), 0.0, 0
    path.begin(4, 1500, now)
    while now < 3600:
        assert path.next_probe(now, large=False) == 1500
        path.on_silence(now)
        now, asked = path.deadline, asked + 1
    assert asked < 80


@pytest.mark.parametrize("version", [4, 6])
def test_a_link_below_the_least_is_believed(version):
    path = PathMtu()
    path.begin(version, 400, 0.0)
    assert search(path, 400) == 1
    assert path.phase is Phase.KNOWN
    assert path.size == 400


def test_nothing_is_checked_that_is_not_used():
    path = PathMtu()
    path.begin(4, 1500, 0.0)
    search(path, 1500)
    assert path.deadline == float("inf")
    path.in_use(5.0)
    assert path.next_probe(path.deadline, large=False) is None
    assert path.deadline == float("inf")


def checked(version, *answers):
    """A path of 1,500 in use, whose check is answered so."""
    path, now = PathMtu(), 5.0
    path.begin(version, 1500, 0.0)
    search(path, 1500)
    path.in_use(now)
    now = path.deadline
    for arrives in answers:
        assert path.next_probe(now, large=True) is not None
        path.on_arrived(now) if arrives else path.on_lost(now)
    return path


@pytest.mark.parametrize(
    ("version", "answers", "size"),
    [
        (4, [True], 1500),
        (4, [False], 1500),
        (4, [False, True], 1500),  # something else may have been wrong
        (4, [False, True, True], 1500),
        (4, [False, True, False], 1280),
        (4, [False, False], 576),
        (6, [False, False], 1500),  # there is nothing smaller, so it is not the size
        (6, [False, True, False], 1280),
    ],
)
def test_a_size_in_use_is_given_up_when_only_smaller_ones_arrive(
    version, answers, size
):
    assert checked(version, *answers).size == size


def test_a_probe_of_a_session_that_ended_is_asked_anew():
    path = PathMtu()
    path.begin(4, 1500, 0.0)
    assert path.next_probe(0.0, large=False) == 1500
    path.resume(3.0)
    assert path.next_probe(3.0, large=False) == 1500


# -- two hosts and a path


@define
class Narrow(Link):
    """Loses without a word what is too large, and some of the rest."""

    takes: int  # bytes of outer packets
    loss: float
    random: Random
    largest: int = 0  # that was tried

    def carry(self, datagram):
        size = len(datagram) + OUTER
        self.largest = max(self.largest, size)
        if size <= self.takes and self.random.random() >= self.loss:
            yield DELAY, datagram


def joined(takes, ceiling=1500, loss=0.0, kind=Simulation, **settings):
    link = Narrow(takes, loss, Random(3))
    sim = kind(link=link, mode=settings.pop("mode", "adaptive"), **settings)
    sim.pair()
    for at, of in (("vm1", "vm2"), ("vm2", "vm1")):
        sim.hosts[at].table.allow(sim.session(at, of), ceiling, 0, sim.now)
    assert sim.ping("vm1", "vm2", timeout=20)
    return sim, sim.session("vm1", "vm2")


def outer(session):
    return session.mtu + AROUND


@pytest.mark.parametrize("takes", [576, 1000, 1280, 1300, 1400, 1492, 1500])
def test_a_search_ends_within_seconds(takes):
    sim, session = joined(takes)
    sim.run(3)
    assert takes - 16 <= outer(session) <= takes
    assert session.mtu_source is Source.PROBED
    assert sim.session("vm2", "vm1").mtu == session.mtu


@pytest.mark.parametrize("takes", [1500, 9000, 65535])
def test_jumbo_paths(takes):
    sim, session = joined(takes, ceiling=65535)
    sim.run(5)
    assert 0.8 * takes <= outer(session) <= takes


@pytest.mark.parametrize("seed", range(5))
def test_where_a_third_is_lost_nothing_too_large_is_used(seed):
    sim, session = joined(1400, loss=0.3, seed=seed)
    sim.run(20)
    assert outer(session) <= 1400
    stop = sim.now + 2 * GROW_EVERY
    while outer(session) < 1400 and sim.now < stop:
        sim.ping("vm1", "vm2")
        sim.run(20)
    assert outer(session) == 1400


def large(sim, at="vm1", of="vm2"):
    """A full-sized packet, as TCP sends them."""
    session = sim.session(at, of)
    sim.emit(at, sim.packet(at, of, payload=bytes(session.mtu - 28)).frame())


def use(sim, seconds):
    """Both hosts send, one large packets and one small ones."""
    for _ in range(int(seconds * 10)):
        large(sim)
        sim.send("vm2", "vm1")
        sim.run(0.1)


@pytest.mark.parametrize("reliable", [False, True])
def test_a_path_that_shrinks_without_a_word_is_usable_within_three_seconds(reliable):
    sim, session = joined(1500, reliable=reliable)
    use(sim, 2)
    sim.link.takes = 1280
    use(sim, 3)
    assert outer(session) == 1280
    arrived = len(sim.hosts["vm2"].received)
    use(sim, 1)
    assert len(sim.hosts["vm2"].received) > arrived + 5
    assert sim.hosts["vm1"].told(EventKind.PATH_MTU) >= 1


def test_a_path_that_grows_is_found_to_have_grown():
    sim, session = joined(1400)
    use(sim, 3)
    assert outer(session) == 1400
    sim.link.takes = 1500
    for _ in range(int(GROW_EVERY) // 10 + 1):
        sim.send("vm1", "vm2")
        sim.send("vm2", "vm1")
        sim.run(10)
    assert outer(session) == 1500


def test_a_change_of_routes_has_larger_packets_tried_soon():
    sim, session = joined(1400)
    use(sim, 10)
    sim.link.takes = 1500
    sim.hosts["vm1"].table.route_changed(session, sim.now)
    use(sim, 2)
    assert outer(session) == 1500


def test_an_outage_is_not_taken_for_a_narrow_path():
    sim, session = joined(1500)
    use(sim, 2)
    sim.block("vm1", "vm2")
    sim.block("vm2", "vm1")
    use(sim, 10)
    sim.unblock()
    use(sim, 10)
    assert outer(session) == 1500
    assert sim.hosts["vm1"].told(EventKind.PATH_MTU) == 0


def test_what_was_found_outlives_the_session():
    sim, session = joined(1400)
    for _ in range(200):
        sim.send("vm1", "vm2")
        sim.send("vm2", "vm1")
        sim.run(1)
    sim.link.largest = 0
    for _ in range(200):
        sim.send("vm1", "vm2")
        sim.run(1)
    assert session.state(sim.now) is State.ESTABLISHED
    assert outer(session) == 1400
    assert sim.link.largest < 1500


def test_an_idle_session_asks_nothing_any_more():
    sim, _ = joined(1500)
    sim.run(5)
    sim.sent.clear()
    sim.run(100)
    assert all(len(sent.data) < 100 for sent in sim.messages(Kind.S2))


def test_a_fixed_size_is_used_and_not_probed():
    sim, session = joined(1500)
    sim.hosts["vm1"].table.allow(session, 1500, 1000, sim.now)
    sim.sent.clear()
    use(sim, 3)
    assert (session.mtu, session.mtu_source) == (1000, Source.SET)
    assert max(len(sent.data) for sent in sim.messages(Kind.S2, "vm1")) <= 1064
    sim.hosts["vm1"].table.allow(session, 1500, 0, sim.now)
    use(sim, 1)
    assert (outer(session), session.mtu_source) == (1500, Source.PROBED)


@pytest.mark.parametrize("takes", [1280, 1500])
def test_settings_may_change_while_a_probe_is_under_way(takes):
    sim, session = joined(takes)
    table, dice = sim.hosts["vm1"].table, Random(5)
    for _ in range(300):
        ceiling, fixed = dice.choice([(1500, 0), (9000, 0), (1400, 0), (1500, 1000)])
        table.allow(session, ceiling, fixed, sim.now)
        sim.send("vm1", "vm2")
        sim.run(dice.choice([0.0, 0.01, 0.02, 0.05, 0.3]))
    table.allow(session, 1500, 0, sim.now)
    sim.run(5)
    assert takes - 8 <= outer(session) <= takes


def test_mode_plain_believes_the_link():
    sim, session = joined(1400, mode="plain")
    sim.run(10)
    assert (session.mtu, session.mtu_source) == (1500 - 52, Source.ROUTE)


@pytest.mark.parametrize("takes", [1300, 9000])
def test_strict_relays_let_probes_pass_and_drop_nothing(takes):
    sim, session = joined(takes, ceiling=9000, kind=Routed)
    sim.run(3)
    use(sim, 3)
    assert takes - 16 <= outer(session) <= takes
    assert not sim.refused
    assert not sim.drops()


def test_forged_and_repeated_answers_prove_nothing():
    sim, session = joined(1400)
    vm2 = remote_of(sim.hosts["vm2"].address)
    answers = [sent.data for sent in sim.messages(Kind.A2, "vm2")]
    sim.hosts["vm1"].table.allow(session, 9000, 0, sim.now)
    for answer in answers:
        sim.inject("vm1", vm2, answer)
        sim.inject("vm1", vm2, answer[:-1] + bytes([answer[-1] ^ 1]))
        sim.run(0.05)
    sim.run(5)
    assert outer(session) == 1400


def test_a_sender_that_never_pauses_is_checked_as_well():
    sim, session = joined(1500)
    for seconds in range(6):
        if seconds == 2:
            sim.link.takes = 1300
        for _ in range(50):
            for _ in range(4):
                large(sim)
            sim.run(0.02)
        sim.send("vm2", "vm1")
    assert outer(session) == 1300


def test_large_first_messages_get_out_of_the_way():
    """Rounds of a hundred packets have S1s that a narrow path does not take."""
    sim, session = joined(1500)
    for seconds in range(6):
        if seconds == 2:
            sim.link.takes = 1280
        for _ in range(10):
            sim.send("vm1", "vm2", 200)
            large(sim)
            sim.run(0.1)
        sim.send("vm2", "vm1")
    assert 1272 <= outer(session) <= 1280


def associations(ceiling, gap):
    """How many a sender needs that has a packet so often, s."""
    sim = Simulation(link=Narrow(1500, 0.0, Random(3)), mode="adaptive")
    sim.pair()
    for at, of in (("vm1", "vm2"), ("vm2", "vm1")):
        if ceiling:
            sim.hosts[at].table.allow(sim.session(at, of), ceiling, 0, sim.now)
    for _ in range(int(1 / gap)):
        sim.send("vm1", "vm2")
        sim.run(gap)
    sim.run(1)
    return sim.session("vm1", "vm2").statistics(sim.now).associations


@pytest.mark.parametrize("gap", [0.003, 0.01, 0.03, 0.06, 0.1])
def test_packets_that_meet_a_probe_need_no_further_associations(gap):
    assert associations(1500, gap) == associations(0, gap)


def test_packets_wait_for_no_lost_probe():
    sim, session = joined(1280)
    for _ in range(50):
        assert sim.ping("vm1", "vm2", timeout=0.3)
    assert outer(session) == 1280
