"""Early data in the model: what holds, and what each of its rules is there for.

docs/model.md says what follows.
"""

import pytest

from tests.model.early import (
    BACK,
    BOUNDED,
    ENDED,
    GOES_ON,
    ONCE,
    ORDERED,
    RECEIVER,
    REFUSED,
    ROOM,
    SENDER,
    SIGNED,
    Early,
)
from tests.model.explore import explore
from tests.model.rules import ALL

BEFORE, BEHIND, BOTH_SIDES = frozenset({0}), frozenset({1}), frozenset({0, 1})
ENDS = frozenset({SENDER, RECEIVER})
THERE = " arrives at the receiver"
BETRAYING = {"attacker": BOTH_SIDES, "ends": ENDS}


def early(*without, states=10, **setting):
    """What is broken in a world of early data, with the trace that leads there."""
    result = explore(Early(ALL.without(*without), **setting))
    assert result.states > states  # something could happen
    return dict(result.broken)


# What holds


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"gives_up": False},
        {"relay": False, "rounds": 3, "packets": 3},
        {"sessions": 2, "rounds": 1},
        {"relay": False, "sessions": 2, "packets": 3, "usual": frozenset({1})},
    ],
    ids=["given-up", "patient", "three-rounds", "renewed", "among-others"],
)
def test_early_data_comes_once_and_in_order_without_an_attacker(setting):
    assert early(**setting) == {}


@pytest.mark.parametrize("place", [BEFORE, BEHIND], ids=["before", "behind"])
def test_early_data_holds_against_who_sends_late_alters_and_keeps_from_one_side(place):
    assert early(attacker=place) == {}
    assert early(attacker=place, rounds=1, sessions=2) == {}
    assert early(attacker=place, rounds=1, shapes=True, usual=frozenset({0})) == {}


def test_early_data_holds_against_relays_that_lie_with_none_that_does_not():
    setting = {"attacker": BEFORE, "relay": False, "shapes": True}
    assert early(**setting, sessions=2, packets=3, usual=frozenset({1})) == {}
    assert early(**setting, rounds=3, packets=3) == {}


def test_early_data_holds_on_both_sides_of_a_relay_with_no_way_around():
    assert early(attacker=BOTH_SIDES, gives_up=False) == {}
    assert early(attacker=BOTH_SIDES, rounds=1, packets=1, shapes=True) == {}


def test_a_betraying_sender_gets_one_packet_a_round_delivered_and_passed():
    setting = {"attacker": BEFORE, "ends": frozenset({SENDER})}
    assert early(**setting) == {}
    assert early(**setting, rounds=1, shapes=True) == {}
    assert early(**setting, relay=False, rounds=3) == {}


def test_a_betraying_receiver_has_a_relay_give_nothing_back_that_was_not_signed():
    assert early(attacker=BEHIND, ends=frozenset({RECEIVER})) == {}


def test_two_betraying_ends_get_no_more_past_a_relay_than_there_is_room_for():
    assert early(**BETRAYING) == {}
    assert early(**BETRAYING, rounds=1, shapes=True) == {}


# What does not, and is known


def test_a_way_around_the_relay_deceives_it_but_not_the_receiver():
    setting = {"rounds": 1, "packets": 1, "around": True}
    assert set(early(attacker=BOTH_SIDES, **setting)) == {GOES_ON, BACK, SIGNED}


@pytest.mark.parametrize("broken", [GOES_ON, BACK])
def test_early_data_given_up_before_its_a1_passed_is_as_a_way_around(broken):
    trace = explore(Early(attacker=BOTH_SIDES), until=broken).broken[broken]
    assert "round 0 of session 0 is given up" in trace


# What each rule is there for


def test_a_packet_comes_twice_if_it_goes_early_again_after_its_round_was_given_up():
    setting = {"relay": False}
    assert early(**setting) == {}
    trace = early("early_once_sent", **setting)[ONCE]
    assert "round 0 of session 0 is given up" in trace
    assert {f"S1 {i} of session 0 (packet 0, early){THERE}" for i in (0, 1)} < {*trace}


def test_a_packet_comes_twice_if_it_goes_early_again_in_the_next_session():
    setting = {"relay": False, "sessions": 2, "rounds": 1, "gives_up": False}
    assert early(**setting) == {}
    trace = early("early_once_sent", **setting)[ONCE]
    assert "the session is renewed" in trace
    assert {f"S1 0 of session {i} (packet 0, early){THERE}" for i in (0, 1)} < {*trace}


def test_early_data_comes_again_with_a_repeated_s1_if_it_is_delivered_there():
    assert early() == {}
    trace = early("early_when_accepted")[ONCE]
    assert trace[-1] == trace[-2]


def test_early_data_comes_late_and_twice_if_elements_need_not_be_beyond_the_last():
    setting = {"relay": False, "rounds": 3, "packets": 3}
    assert early(**setting) == {}
    broken = early("early_beyond_last", **setting)
    assert set(broken) == {ONCE, ORDERED}
    rounds = [step.split()[1] for step in broken[ORDERED] if step.endswith(THERE)]
    assert rounds != sorted(rounds)


def test_the_proof_delivers_early_data_again_if_it_is_taken_for_a_packet():
    trace = early("proof_brings_nothing", relay=False)[ONCE]
    assert trace[-1] == f"S2 0 of session 0 (key, early){THERE}"


def test_early_data_of_anybody_is_delivered_without_tags():
    setting = {"attacker": BEFORE, "rounds": 1}
    assert early(**setting) == {}
    assert set(early("tag_of_s1", **setting)) == {ONCE}


def test_who_did_not_agree_to_early_data_is_delivered_some_if_it_is_not_refused():
    setting = {"attacker": BEFORE, "ends": frozenset({SENDER}), "shapes": True}
    setting |= {"rounds": 1, "taken": False}
    assert early(**setting) == {}
    assert set(early("early_if_agreed", **setting)) == {REFUSED}


def test_early_data_off_at_both_ends_leaves_nothing_to_forge():
    assert early(attacker=BEFORE, shapes=True, taken=False, rounds=1) == {}


def test_a_relay_that_has_it_off_passes_none_whatever_both_ends_do():
    assert early(**BETRAYING, shapes=True, rounds=1, let=False) == {}
    world = Early(**BETRAYING, shapes=True, rounds=1, let=False)
    assert ENDED in world.always


def test_whoever_repeats_has_a_relay_pass_as_much_as_he_likes_without_a_bound():
    setting = {"attacker": BEFORE, "rounds": 1, "packets": 1}
    assert early(**setting) == {}
    assert set(early("early_bounded", **setting)) == {BOUNDED}


def test_copies_take_the_room_of_who_comes_first_if_they_share_it():
    assert early(gives_up=False) == {}
    assert early(gives_up=False, attacker=BEHIND) == {}
    assert set(early("early_copies_apart", gives_up=False)) == {ROOM}


def test_a_relay_gives_room_back_for_forgeries_if_an_a1_is_enough():
    setting = {"attacker": BOTH_SIDES, "rounds": 1, "packets": 1}
    assert early(**setting) == {}
    trace = early("early_back_if_signed", **setting)[BACK]
    assert any("relay A1 0 of session 0 (junk 1, early)" in step for step in trace)


def test_ends_that_sign_nothing_pass_any_amount_if_that_gives_room_back():
    setting = {**BETRAYING, "rounds": 4, "room": 1}
    without = "early_back_if_signed", "early_false_ends"
    assert set(early(*without, **setting)) == {BOUNDED, BACK, ENDED}


def test_ends_that_sign_nothing_go_on_if_that_does_not_end_their_early_data():
    assert early(**BETRAYING) == {}
    assert set(early("early_false_ends", **BETRAYING)) == {ENDED}


def test_an_s1_planted_beside_one_of_another_shape_ends_early_data_if_that_is_enough():
    setting = {"attacker": BOTH_SIDES, "rounds": 1, "packets": 1}
    setting["usual"] = frozenset({0})
    assert early(**setting) == {}
    trace = early("early_false_of_all", **setting)[GOES_ON]
    assert any("relay A1 0 of session 0 (junk 1, early)" in step for step in trace)
    assert trace[-1] == "S2 0 of session 0 (packet 0) arrives at the relay"
