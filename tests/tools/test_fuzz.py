"""A few seconds of what tools/fuzz does for as long as one likes."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from alpha_trio.proto.peers import Session, State
from alpha_trio.proto.peers.waiting import QUEUE_PACKETS
from tools import fuzz, targets
from tools.targets import MODES, TARGETS, Broken, World

SECONDS = 0.25  # for each target


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_bytes_break_no_rule(name):
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    assert fuzz.mutate(target.run, target.seeds, SECONDS, seed=1) > 0


def test_every_target_can_be_chosen():
    assert set(fuzz.TARGETS) == set(TARGETS)


def test_the_same_seed_gives_the_same_inputs():
    seeds = [b"one", b"other"]
    once, again = (fuzz.inputs(seeds, random.Random(7)) for _ in range(2))
    assert list(islice(once, 100)) == list(islice(again, 100))


def test_a_finding_can_be_run_again(tmp_path, monkeypatch, capsys):
    def refuse(data):
        if data[-1] > 100:
            raise IndexError(data[-1])

    monkeypatch.setitem(TARGETS, "control", targets.Target(refuse, [b"seed"]))
    assert fuzz.unguided("control", 5, 1, tmp_path) == 1
    (found,) = tmp_path.iterdir()
    assert str(found) in capsys.readouterr().out
    with pytest.raises(IndexError):
        fuzz.main(["control", "--replay", str(found)])


# The harness would notice if a rule did not hold.


@pytest.fixture
def world():
    world = World("adaptive", random.Random(1))
    world.meet(6)
    return world


@pytest.mark.parametrize("mode", MODES)
def test_genuine_datagrams_lead_to_a_session(mode):
    world = World(mode, random.Random(1))
    world.meet(8)
    for end in world.ends:
        assert end.session.state(world.now) is State.ESTABLISHED
    world.check()


def test_packets_that_arrive_are_accounted_for(world):
    one, other = world.ends
    world.speak(one, [b"a", b"b", b"c"])
    assert other.owed.total() == 3
    for end in (other, one, other):
        world.carry(end)
    assert other.owed.total() == 0


def test_a_delivery_of_what_was_not_sent_is_noticed(world):
    one, other = world.ends
    world.speak(one, [b"a"])
    world.carry(other)
    world.carry(one)
    other.owed.clear()
    with pytest.raises(Broken, match="was sent"):
        world.carry(other)


def test_growth_is_noticed(world):
    world.ends[0].session.waiting.packets = QUEUE_PACKETS + 1
    with pytest.raises(Broken, match="packets waiting: at most 128, not 129"):
        world.check()


def test_a_deadline_that_recurs_is_noticed(world, monkeypatch):
    end = world.ends[0]
    monkeypatch.setattr(Session, "on_deadline", lambda session, now, out: None)
    end.session.wake = world.now
    end.table._plan(end.session)
    with pytest.raises(Broken, match="is over"):
        world.wait(1.0)
