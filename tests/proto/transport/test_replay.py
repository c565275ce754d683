from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.transport.replay import WINDOW, ReplayWindow

RUNS = st.lists(
    st.tuples(
        st.integers(0, 3 * WINDOW) | st.integers(0, 40) | st.integers(0, 2**64 - 1),
        st.integers(1, 70) | st.just(WINDOW),
    ),
    max_size=12,
)


def naive(seen: set[int], newest: int, first: int, count: int) -> tuple[int, int]:
    """The window as a set of every counter ever seen."""
    fresh = 0
    for i in range(count):
        counter = first + i
        if counter > newest - WINDOW and counter not in seen:
            fresh |= 1 << i
            seen.add(counter)
            newest = max(newest, counter)
    return fresh, newest


@settings(deadline=None, derandomize=True, max_examples=60)
@given(RUNS)
def test_window_accepts_what_a_set_of_all_counters_would(runs):
    window = ReplayWindow()
    seen: set[int] = set()
    newest = -1
    for first, count in runs:
        fresh, newest = naive(seen, newest, first, count)
        assert window.accept(first, count) == fresh
        assert window.newest == newest
        assert window.seen.bit_length() <= WINDOW


def test_a_counter_passes_once():
    window = ReplayWindow()
    assert [window.accept(7, 1) for _ in range(3)] == [1, 0, 0]


def test_the_oldest_counter_still_told_apart():
    window = ReplayWindow()
    window.accept(WINDOW, 1)
    assert window.accept(1, 1)
    assert not window.accept(0, 1)


def test_a_run_is_fresh_where_it_was_not_seen():
    window = ReplayWindow()
    window.accept(5, 2)
    assert window.accept(3, 6) == 0b110011


def test_a_jump_to_the_end_of_the_counters_costs_no_memory():
    window = ReplayWindow()
    window.accept(0, 1)
    assert window.accept(2**64 - 1, 1)
    assert window.seen == 1
