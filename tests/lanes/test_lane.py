"""What a lane tells the front."""

from alpha_trio.lanes.lane import _FarJournal


def test_that_the_host_was_suspended_is_told_by_one_lane():
    calls = []
    for lane in range(3):
        journal = _FarJournal(lane, lambda *call: calls.append(call), lambda name: None)
        journal.woke(2.5)
    assert calls == [("journal", "woke", 2.5)]
