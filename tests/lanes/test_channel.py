"""Calls between two processes, here two ends in one."""

import pytest
import trio

from alpha_trio.lanes.channel import Channel


@pytest.fixture
def ends():
    sockets = Channel.pair()
    yield tuple(map(Channel, sockets))
    for sock in sockets:
        sock.close()


async def test_calls_come_in_order_whatever_their_size(ends):
    here, there = ends
    sent = [bytes(size) for size in (0, 1, 32_700, 32_760, 65_536, 5_000_000, 2)]
    heard = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run, {})
        for each in sent:
            here.call("take", each, last=each is sent[-1])

        def take(data, last):
            heard.append(data)
            if last:
                nursery.cancel_scope.cancel()

        nursery.start_soon(there.run, {"take": take})
    assert heard == sent


async def test_the_last_call_comes_behind_those_that_waited(ends):
    here, there = ends
    heard = []
    for number in range(10):
        here.call("take", number)
    here.call_last("take", "that is all")
    here._sock.close()
    await there.run({"take": heard.append})
    assert heard == [*range(10), "that is all"]
