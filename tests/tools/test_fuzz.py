"""A few seconds of what tools/fuzz does for as long as one likes."""

from __future__ import annotations

import importlib.util
import random
from itertools import islice

import pytest

from alpha_trio.proto.engine import choose, chosen, find
from alpha_trio.proto.handshake import Agreement, exchange
from alpha_trio.proto.messages import (
    EARLY_ROUND,
    HEADER_SIZE,
    ROUND,
    TAG_SIZE,
    BadPacket,
)
from alpha_trio.proto.peers import Session, State
from alpha_trio.proto.peers.waiting import QUEUE_PACKETS
from alpha_trio.proto.primitives import ChainVerifier, Checker
from alpha_trio.proto.primitives.chain import MAX_SKIP
from alpha_trio.proto.rates import TokenBucket
from alpha_trio.proto.relay import Relay, RelayEarly, introduction
from alpha_trio.proto.relay.witness import Witness
from alpha_trio.proto.transport import receiver
from alpha_trio.proto.transport.transport import Arrival
from tests.ground import ROOT
from tools import fuzz, fuzz_kernels, sanitize, targets
from tools.fuzz_world import MODES, Broken, World, fed
from tools.targets import TARGETS

needs_native = pytest.mark.skipif(
    find("auto").name != "native", reason="the native engine was not built"
)
SECONDS = 0.25  # for each target
DATAGRAMS = 200  # of each kind and role


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_native if name == "kernels" else ())
        for name in TARGETS
    ],
)
def test_made_up_bytes_break_no_rule(name):
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    assert fuzz.mutate(target, 1, fuzz.lasting(SECONDS)) > 0


@pytest.mark.parametrize("name", fuzz.COUNTED)
def test_datagrams_of_who_has_the_keys_break_no_rule(name):
    target = TARGETS[name]
    fed.clear()
    fuzz.mutate(target, 2, fuzz.until_fed(target, DATAGRAMS))
    assert target.counted
    assert all(fed[cell] >= DATAGRAMS for cell in target.counted)


def test_what_is_counted_is_told(tmp_path, capsys):
    assert fuzz.unguided("relay", 0, 1, tmp_path, datagrams=1) == 0
    told = capsys.readouterr().out
    assert all(kind in told for _, kind in TARGETS["relay"].counted)


def test_only_what_is_counted_runs_until_there_was_enough(capsys):
    with pytest.raises(SystemExit):
        fuzz.main(["settings", "--datagrams", "5"])
    assert "authentic, signed, relay" in capsys.readouterr().err


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


# Two kernels


DIFFERENCES = {
    "a chain that is another one": ("message[0] = at & 1", "message[0] = ~at & 1"),
    "a branch beside its place": ("index >> height ^ 1", "index >> height"),
    "a length that nobody compares": ("other_size > 28 &&", ""),
    "a number that begins again": (
        "offset == (uint64_t)offset_before + stride",
        "offset - offset_before == stride",
    ),
    "a packet nobody promised": ("if (index >= to->packets ||", "if ("),
    "a tree that is climbed by half": ("if (apart >> height == 1)", "if (height)"),
    "a last packet as long as the others": ("at + 1 < count ? size : last", "size"),
    "a frame that is joined to all": ("total > most_bytes ||", ""),
}


@needs_native
@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_kernel_that_does_otherwise_is_noticed(what, tmp_path, monkeypatch):
    old, new = DIFFERENCES[what]
    text = (ROOT / sanitize.ENGINE / "kernel.c").read_text()
    assert text.count(old) == 1
    source, library = tmp_path / "kernel.c", tmp_path / sanitize.LIBRARY
    source.write_text(text.replace(old, new))
    try:
        sanitize.compile_kernel(source, library)
    except sanitize.CompileError as error:
        pytest.skip(f"nothing can be compiled: {error}"[:200])
    spec = importlib.util.spec_from_file_location("_kernel", library)
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    monkeypatch.setattr(fuzz_kernels, "native", lambda: other)
    with pytest.raises(Broken, match="alike"):
        fuzz.mutate(TARGETS["kernels"], 1, fuzz.lasting(60))


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
    world.speak(one, [b"a"])  # it goes inside its S1
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


def allow(*_args, **_settings):
    """In the place of a check that raises or returns falsehood."""
    return True


def allow_near(chain, position, _element):
    """The same for elements of chains, but not for those that are too far away."""
    if not 0 < position - chain.position <= MAX_SKIP:
        raise BadPacket


@pytest.fixture
def any_engine():
    """What a test chooses does not last."""
    before = chosen()
    yield
    choose(before.name)


@pytest.mark.usefixtures("any_engine")
@pytest.mark.parametrize(
    ("name", "where", "check", "rule", "instead"),
    [
        ("authentic", ChainVerifier, "check_untrusted", "was sent", allow_near),
        ("signed", exchange, "verify_untrusted", "the stranger has no session", allow),
        ("relay", introduction, "_signed", "ACKACK that passes is signed", allow),
        ("relay", ChainVerifier, "check_untrusted", "its sender's", allow_near),
        ("relay", Checker, "_climb", "what its sender signed", allow),
    ],
)
def test_a_check_that_is_left_out_is_noticed(
    name, where, check, rule, instead, monkeypatch
):
    monkeypatch.setattr(where, check, instead)
    choose("python")  # of which a check can be left out
    fed.clear()
    target = TARGETS[name]
    with pytest.raises(Broken, match=rule):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_a_packet_taken_twice_is_noticed(monkeypatch):
    take = receiver.Receiver._round_untrusted

    def forgetful(self, datagram):
        association, found = take(self, datagram)
        found.seen = 0
        return association, found

    monkeypatch.setattr(receiver.Receiver, "_round_untrusted", forgetful)
    fed.clear()
    target = TARGETS["authentic"]
    with pytest.raises(Broken, match="only once"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_early_data_taken_twice_is_noticed(monkeypatch):
    accept = receiver.Receiver.on_s1_untrusted

    def forgetful(self, datagram, remote, local, owns_source, out):
        arrival = accept(self, datagram, remote, local, owns_source, out)
        message = datagram[:-TAG_SIZE]
        number, shape, _, index, _ = ROUND.unpack_from(message, HEADER_SIZE)
        if arrival is Arrival.NOTHING and shape & EARLY_ROUND:
            early = self._early_untrusted(message, number, shape, index)
            self._deliver_early(*early, owns_source, out)
        return arrival

    monkeypatch.setattr(receiver.Receiver, "on_s1_untrusted", forgetful)
    fed.clear()
    target = TARGETS["authentic"]
    with pytest.raises(Broken, match="only once"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_early_data_taken_by_who_wants_none_is_noticed(monkeypatch):
    always = property(lambda agreement: True, lambda agreement, value: None)
    monkeypatch.setattr(Agreement, "takes_early", always)
    fed.clear()
    target = TARGETS["authentic"]
    with pytest.raises(Broken, match="comes early to who takes none"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_early_data_beyond_what_there_is_room_for_is_noticed(monkeypatch):
    """A relay that gives back what nobody signed."""
    monkeypatch.setattr(TokenBucket, "take", allow)
    fed.clear()
    target = TARGETS["relay"]
    with pytest.raises(Broken, match="nobody has proven is bounded"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_early_data_that_a_relay_takes_for_signed_is_noticed(monkeypatch):
    def proven(self, association, round_, s1s):
        return s1s[0][0].early

    monkeypatch.setattr(Witness, "_prove_early", proven)
    fed.clear()
    target = TARGETS["relay"]
    with pytest.raises(Broken, match="what its sender signed"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, 4 * DATAGRAMS))


def test_early_data_of_honest_ends_that_is_ended_is_noticed(monkeypatch):
    def judge(self, round_):
        self.early = RelayEarly.OFF

    monkeypatch.setattr(Witness, "_judge_early", judge)
    with pytest.raises(Broken, match="keep their early data"):
        TARGETS["relay"].run(TARGETS["relay"].seeds[0])


def test_wrong_sums_of_a_relay_are_noticed(monkeypatch):
    monkeypatch.setattr(Witness, "_forget", allow)
    fed.clear()
    target = TARGETS["relay"]
    with pytest.raises(Broken, match="a session knows what it holds"):
        fuzz.mutate(target, 1, fuzz.until_fed(target, DATAGRAMS))


def test_a_genuine_session_that_is_disturbed_is_noticed(monkeypatch):
    monkeypatch.setattr(Relay, "_on_round", lambda self, run, at, size, *_: size)
    with pytest.raises(Broken, match="is not disturbed"):
        TARGETS["relay"].run(TARGETS["relay"].seeds[0])
