"""Counters that go on rising, in virtual time."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from alpha_trio.control.rising import INTERVAL, LOOKS, Rising, watch
from alpha_trio.proto.batch import Drop

LOST = ("vm2", Drop.NO_AGREEMENT)
OTHER = ("vm3", Drop.TOO_BIG)


class Counted:
    """Counts that a test raises, and packets that move when it says so."""

    def __init__(self):
        self.counts = {}
        self.looks = 0
        self.active = trio.Event()

    def drop(self, counter=LOST):
        self.counts[counter] = self.counts.get(counter, 0) + 1
        self.active.set()

    def read(self):
        self.looks += 1
        return self.counts

    async def wait_active(self):
        self.active = trio.Event()
        await self.active.wait()


@asynccontextmanager
async def watching():
    counted, rising = Counted(), Rising()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, rising, counted.read, counted.wait_active)
        await wait_all_tasks_blocked()
        yield counted, rising
        nursery.cancel_scope.cancel()


async def test_what_is_lost_once_is_no_news(autojump_clock):
    async with watching() as (counted, rising):
        counted.drop()
        for _ in range(10):
            await trio.sleep(INTERVAL)
            assert rising.counters == []


async def test_what_goes_on_is_told_and_is_over_when_it_stops(autojump_clock):
    async with watching() as (counted, rising):
        counted.drop(OTHER)
        # Between two looks: what is due at one moment is done in any order.
        await trio.sleep(INTERVAL / 2)
        for _ in range(4):
            counted.drop()
            await trio.sleep(INTERVAL)
        assert rising.counters == [LOST]
        await trio.sleep(LOOKS * INTERVAL)
        assert rising.counters == []


async def test_what_was_lost_before_the_first_look_is_not_counted():
    rising = Rising()
    rising.look({LOST: 1000})
    for _ in range(LOOKS):
        rising.look({LOST: 1000})
    assert rising.counters == []
    assert rising.over


async def test_a_new_counter_has_risen_from_nothing():
    rising = Rising()
    rising.look({})
    rising.look({LOST: 1})
    rising.look({LOST: 2})
    assert rising.counters == [LOST]


async def test_nobody_looks_while_nothing_moves(autojump_clock):
    async with watching() as (counted, _):
        counted.drop()
        await trio.sleep(100 * INTERVAL)
        looks = counted.looks
        await trio.sleep(100 * INTERVAL)
        assert counted.looks == looks
        counted.drop()
        await trio.sleep(2 * INTERVAL)
        assert counted.looks > looks
