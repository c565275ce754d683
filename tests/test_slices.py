"""Long work lets others have their turn, and says what it took."""

import pytest
import trio

from alpha_trio import slices
from alpha_trio.slices import Slices, in_slices


async def test_others_have_their_turn(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 0.0)
    done, seen = [], set()

    async def look():
        while True:
            seen.add(len(done))
            await trio.lowlevel.checkpoint()

    def steps():
        for number in range(50):
            done.append(number)
            yield number

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        assert await in_slices(steps()) == [*range(50)]
        nursery.cancel_scope.cancel()
    assert len(seen) > 10


async def test_what_was_spent_is_told_though_it_fails():
    work = Slices()
    with pytest.raises(ZeroDivisionError):
        await work.take((1 / n for n in (2, 1, 0)), lambda made: None)
    assert work.spent > 0
