"""What holds in the model with all rules, and what each rule is there for.

Without the rule the same world has a state in which a property is broken, so each of
these tests shows as well that its property can fail.  docs/model.md says what follows.
"""

import pytest

from tests.model.explore import TooMany, explore
from tests.model.handshake import Handshake
from tests.model.rounds import ATTACKER, RECEIVER, SENDER, VICTIM, Rounds
from tests.model.rules import ALL

BEFORE, BEHIND, BOTH_SIDES = frozenset({0}), frozenset({1}), frozenset({0, 1})

FROZEN = "no key leaves before the receiver froze its S1"
ONCE = "nothing forged is delivered, and nothing twice"
AGREED = "relays pass what was signed and agreed to there"
AT_HOME = "a copy does not draw all answers elsewhere"
THROUGH = "the last round gets through"

FLOWS = "data flows in both directions"
RENEWED = "the new session comes about"
ANSWERED = "a relay's sessions are those of ends that answered"
SAME = "both ends agree on ids, keys and anchors"


def rounds(*without, **setting):
    """What is broken in a world of rounds, with the trace that leads there."""
    return dict(explore(Rounds(ALL.without(*without), **setting)).broken)


def handshake(*without, **setting):
    """The same in a world of a handshake."""
    return dict(explore(Handshake(ALL.without(*without), **setting)).broken)


# Rounds


def test_rounds_hold_without_an_attacker():
    assert rounds(rounds=2) == {}
    assert rounds(relays=2) == {}


@pytest.mark.parametrize("place", [BEFORE, BEHIND], ids=["before", "behind"])
def test_rounds_hold_against_an_attacker_on_one_side_of_the_relay(place):
    assert rounds(attacker=place, junk=3) == {}
    assert rounds(attacker=place, rounds=2, junk=0) == {}


@pytest.mark.parametrize("place", [{0}, {1}, {2}, {0, 1}, {1, 2}])
def test_rounds_hold_over_two_relays(place):
    assert rounds(attacker=frozenset(place), relays=2) == {}


def test_rounds_hold_against_an_attacker_on_both_sides_with_no_way_around():
    assert rounds(attacker=BOTH_SIDES, junk=2) == {}


def test_a_way_around_the_relay_makes_it_pass_forgeries_but_the_receiver_take_none():
    broken = rounds(attacker=BOTH_SIDES, around=True)
    assert set(broken) == {AGREED, THROUGH}
    assert "on link 1" in broken[AGREED][1]  # the S1 comes to the receiver at first


def test_a_round_given_up_before_its_a1_passed_is_as_a_way_around():
    setting = {"attacker": BOTH_SIDES, "rounds": 2, "junk": 0}
    trace = explore(Rounds(**setting), until=AGREED).broken[AGREED]
    assert "the sender gives up round 0" in trace


def test_a_relay_with_fewer_places_than_there_are_forged_s1s_passes_no_genuine_one():
    assert rounds(attacker=BEFORE, junk=3, places=4) == {}
    assert set(rounds(attacker=BEFORE, junk=3, places=3)) == {THROUGH}


@pytest.mark.parametrize("end", [SENDER, RECEIVER])
@pytest.mark.parametrize("place", [BEFORE, BEHIND], ids=["before", "behind"])
def test_an_end_that_is_the_attacker_gets_nothing_past_the_relay_that_was_not_agreed_to(
    end, place
):
    assert rounds(attacker=place, ends=frozenset({end})) == {}


def test_two_keys_of_an_outsider_flood_nobody():
    ends = frozenset({SENDER, RECEIVER})
    assert rounds(attacker=BEFORE, ends=ends) == {}
    trace = rounds("answers_from_there", attacker=BEFORE, ends=ends)[AGREED]
    assert f"A1 0 (genuine) from {VICTIM}" in trace[1]
    assert f"S2 0 (genuine) from {SENDER} to {VICTIM}" in trace[2]


def test_a_sender_answers_for_its_receiver_if_a1s_are_taken_from_its_side():
    setting = {"attacker": BEFORE, "ends": frozenset({SENDER})}
    assert rounds(**setting) == {}
    assert set(rounds("answers_from_there", **setting)) == {AGREED}


def test_planted_s1_and_a1_do_not_end_a_round():
    assert rounds(attacker=BOTH_SIDES) == {}
    trace = rounds("several_s1s", attacker=BOTH_SIDES)[THROUGH]
    assert "S1 0 (junk 1)" in trace[-2]
    assert "A1 0 (junk 1)" in trace[-1]


def test_no_s1_counts_at_a_relay_that_came_after_the_first_a1():
    assert AGREED in rounds("s1s_before_a1", attacker=BOTH_SIDES)


def test_copies_of_s1_do_not_draw_the_answers_elsewhere():
    setting = {"attacker": BEFORE, "copies": True}
    assert rounds(**setting) == {}
    broken = rounds("answered_at_home", **setting)
    assert set(broken) == {AT_HOME}
    assert f"from {ATTACKER}" in broken[AT_HOME][-1]


@pytest.mark.parametrize(
    ("without", "setting", "broken"),
    [
        (["key_after_a1"], {"attacker": BEHIND}, {FROZEN}),
        (["each_once"], {"attacker": BEHIND}, {ONCE}),
        (["tag_of_s1"], {"attacker": BEHIND}, {THROUGH}),
        (
            ["tag_of_s1", "digest_of_a1"],
            {"attacker": BEHIND},
            {FROZEN, AGREED, THROUGH},
        ),
        (
            ["s1_freezes"],
            {"attacker": BEFORE, "ends": frozenset({SENDER})},
            {ONCE, AGREED},
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_rounds_break_without(without, setting, broken):
    assert set(rounds(*without, **setting)) == broken


def test_forged_packets_are_delivered_without_tags_and_with_early_keys():
    world = Rounds(ALL.without("tag_of_s1", "key_after_a1"), attacker=BOTH_SIDES)
    assert ONCE in explore(world, until=ONCE).broken


# The handshake

LATE_BEHIND = {"attacker": BEHIND, "prompt": BEFORE}
LATE_BEFORE = {"attacker": BEFORE, "prompt": BEHIND}


@pytest.mark.parametrize("live", [True, False], ids=["renewal", "first"])
def test_a_handshake_holds_without_an_attacker(live):
    assert handshake(live=live) == {}


@pytest.mark.parametrize("place", [LATE_BEFORE, LATE_BEHIND], ids=["before", "behind"])
def test_a_renewal_holds_against_who_reads_and_sends_on_one_side(place):
    assert handshake(alters=1, cookies=True, **place) == {}
    assert handshake(cookies=True, keys=("e1",), **place) == {}


@pytest.mark.parametrize("place", [LATE_BEFORE, LATE_BEHIND], ids=["before", "behind"])
def test_a_renewal_holds_against_who_drops_as_well_until_he_stops(place):
    assert handshake(drops=True, alters=1, **place) == {}


def test_two_keys_of_an_outsider_make_no_session_with_a_host_that_did_not_answer():
    setting = {"attacker": BEFORE, "keys": ("e1", "e2"), "asks": True}
    assert handshake(initiates=False, **setting) == {}
    broken = handshake("answers_from_there", initiates=False, **setting)
    assert set(broken) == {ANSWERED}
    assert "ACK(e2 0" in broken[ANSWERED][1]


def test_acks_of_others_do_not_make_a_relay_forget_the_genuine_one():
    setting = {"keys": ("e1", "e2", "e3"), **LATE_BEHIND}
    assert handshake(**setting) == {}
    broken = handshake("place_for_live_key", **setting)
    assert set(broken) == {RENEWED}
    assert [f"ACK(e{i} 0" in broken[RENEWED][i - 4] for i in (1, 2, 3)] == [True] * 3


def test_of_a_first_handshake_they_do():
    """There is no live session by which to tell whose ACK it should be."""
    setting = {"keys": ("e1", "e2", "e3"), "live": False, **LATE_BEHIND}
    assert RENEWED in handshake(**setting)


def test_the_old_session_carries_on_when_a_renewal_fails():
    fails = {"alters": 1, **LATE_BEHIND}
    assert set(handshake("answers_apart", **fails)) == {RENEWED}
    assert FLOWS in handshake("answers_apart", "old_carries_on", **fails)


def test_a_way_around_the_relay_keeps_a_renewal_from_coming_about_but_data_flows():
    assert set(handshake(attacker=BOTH_SIDES, cookies=True)) == {RENEWED}
    assert FLOWS in handshake("old_carries_on", attacker=BOTH_SIDES)


def test_an_altered_copy_of_a_renewal_does_not_displace_the_answer():
    setting = {"alters": 2, "most_made": 3, **LATE_BEHIND}
    assert handshake(**setting) == {}
    assert set(handshake("proof_covers_syn", **setting)) == {RENEWED}


def test_who_reads_cookies_does_not_displace_the_answer_to_a_renewal():
    setting = {"alters": 1, **LATE_BEHIND}
    assert handshake(**setting) == {}
    trace = handshake("answers_apart", **setting)[RENEWED]
    assert "renewal, cookie) as from initiator" in trace[-1]


def test_a_forged_cookie_does_not_stop_a_handshake():
    setting = {"attacker": BEFORE, "cookies": True}
    assert handshake(**setting) == {}
    assert handshake(drops=True, **setting) == {}
    trace = handshake("ack_for_every_variant", **setting)[RENEWED]
    assert "COOKIE(forged cookie)" in trace[-1]


def test_the_ends_disagree_if_signatures_are_not_over_everything():
    setting = {"alters": 1, **LATE_BEFORE}
    assert handshake(**setting) == {}
    assert SAME in handshake("all_is_signed", **setting)


# The harness


def test_it_gives_up_beyond_a_number_of_states():
    with pytest.raises(TooMany):
        explore(Rounds(attacker=BEFORE), most=10)


def test_it_tells_what_it_found():
    result = explore(Rounds(ALL.without("each_once")))
    told = result.told()
    assert f"{result.states} states, {result.depth} steps deep" in told
    assert f"holds   {FROZEN}" in told
    assert f"BROKEN  {ONCE}" in told
    assert f"{len(result.broken[ONCE])}. " in told
