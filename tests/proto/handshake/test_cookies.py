from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto.handshake import Doorkeeper
from alpha_trio.proto.handshake.cookies import (
    ADDRESS_BURST,
    ADDRESS_RATE,
    COOKIE_BURST,
    COOKIE_RATE,
    LOAD_BURST,
    LOAD_RATE,
    SECRET_LIFETIME,
)
from alpha_trio.proto.rates import ADDRESSES_KEPT, TokenBucket

HOST = ("192.0.2.1", 1234)
NONE = bytes(16)

fixed = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture
def door() -> Doorkeeper:
    return Doorkeeper(Random(0).randbytes)


# -- cookies


def test_without_load_no_cookie_is_needed(door):
    for number in range(int(LOAD_BURST)):
        assert door.admit((f"192.0.2.{number}", 1234), NONE, 1.0) is True


def test_under_load_a_cookie_is_asked_for_and_then_honoured(door):
    while door.admit(HOST, NONE, 1.0):
        pass
    assert door.admit(HOST, NONE, 1.0) is None
    assert door.admit(HOST, door.cookie(HOST, 1.0), 1.0) is True


def test_load_that_ends_is_forgotten(door):
    while door.admit(HOST, NONE, 1.0):
        pass
    assert door.admit(HOST, NONE, 1.0 + 1 / LOAD_RATE) is True
    assert door.admit(HOST, NONE, 1.0 + 1 / LOAD_RATE) is None


@pytest.mark.parametrize(
    "other", [("192.0.2.2", 1234), ("192.0.2.1", 1235), ("192.0.2.11", 234)]
)
def test_a_cookie_is_good_for_its_address_and_port_only(door, other):
    """Text is compared as a whole: 192.0.2.1 1234 is not 192.0.2.11 234."""
    cookie = door.cookie(HOST, 1.0)
    assert door.admit(other, cookie, 1.0) is None
    assert door.admit(HOST, cookie, 1.0) is True


def test_any_bit_flipped_in_a_cookie_is_refused(door):
    cookie = door.cookie(HOST, 1.0)
    for bit in range(128):
        wrong = (int.from_bytes(cookie) ^ 1 << bit).to_bytes(16)
        assert door.admit(HOST, wrong, 1.0) is None


@pytest.mark.parametrize("age", [0.0, 1.0, SECRET_LIFETIME - 1, SECRET_LIFETIME + 1])
def test_a_cookie_outlives_one_change_of_the_secret(door, age):
    cookie = door.cookie(HOST, 1.0)
    assert door.admit(HOST, cookie, 1.0 + age) is True


@pytest.mark.parametrize("age", [2 * SECRET_LIFETIME + 1, 1e4, 1e9])
@pytest.mark.parametrize("asked", [True, False])
def test_a_cookie_is_too_old_after_two_lifetimes(door, age, asked):
    """Whether or not anybody asked for another one meanwhile."""
    cookie = door.cookie(HOST, 1.0)
    if asked:
        door.cookie(HOST, 1.0 + SECRET_LIFETIME)
    assert door.admit(HOST, cookie, 1.0 + age) is None


def test_cookies_before_the_first_question_are_none(door):
    assert door.admit(HOST, bytes(15) + b"\1", 1.0) is None


def test_no_more_cookies_are_sent_than_a_peer_can_read(door):
    """A flood in a peer's name must not become a flood of ours."""
    given = [door.cookie(HOST, 1.0) for _ in range(1000)]
    assert sum(cookie is not None for cookie in given) == COOKIE_BURST
    assert door.cookie(HOST, 1.0 + 2 / COOKIE_RATE) is not None


def test_another_door_has_other_cookies(door):
    cookie = Doorkeeper(Random(1).randbytes).cookie(HOST, 1.0)
    assert door.admit(HOST, cookie, 1.0) is None


# -- rates


def admitted(door: Doorkeeper, remote: tuple, times: int, now: float = 1.0) -> int:
    cookie = door.cookie(remote, now)
    return sum(door.admit(remote, cookie, now) is True for _ in range(times))


def test_one_address_gets_only_so_much(door):
    assert admitted(door, HOST, 100) == ADDRESS_BURST
    assert admitted(door, HOST, 100, now=1.0 + 1 / ADDRESS_RATE) == 1
    assert admitted(door, ("192.0.2.2", 1), 100) == ADDRESS_BURST


def test_the_ports_of_an_address_share_its_rate(door):
    counts = [admitted(door, ("192.0.2.1", port), 3) for port in range(5)]
    assert sum(counts) == ADDRESS_BURST


def test_addresses_of_one_ipv6_64_share_its_rate(door):
    inside = [(f"2001:db8::{number:x}", 1234, 0, 0) for number in range(1, 6)]
    assert sum(admitted(door, remote, 3) for remote in inside) == ADDRESS_BURST
    assert admitted(door, ("2001:db8:0:1::1", 1234, 0, 0), 100) == ADDRESS_BURST


def test_the_memory_for_addresses_is_bounded(door):
    for number in range(ADDRESSES_KEPT + 100):
        remote = (f"10.0.{number >> 8}.{number & 255}", 1234)
        now = number / 100
        assert door.admit(remote, door.cookie(remote, now), now) is True
        assert len(door._addresses) <= ADDRESSES_KEPT


@fixed
@given(st.lists(st.floats(0, 2), min_size=1, max_size=80))
def test_a_bucket_gives_no_more_than_burst_and_rate(gaps):
    bucket, now, taken = TokenBucket(10.0, 5.0), 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
    for i, since in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= 5.0 + 10.0 * (taken[j] - since) + 1e-6


def test_a_bucket_fills_up_again_but_not_beyond_its_burst():
    bucket = TokenBucket(1.0, 3.0)
    assert [bucket.take(1e9) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [bucket.take(2e9) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [bucket.take(2e9 + 1) for _ in range(2)] == [True, False]
