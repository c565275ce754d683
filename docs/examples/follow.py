"""Watch events; when a peer comes or falls silent say where it is, or what is wrong.

    follow.py

A client on Trio: it looks into one peer while it listens for the next, and a look that
takes too long is given up without harm to the rest.
"""

import sys

import trio

from alpha_trio.errors import AlphaTrioError, UnknownPeer
from alpha_trio.rpc import TrioClient

COMES = {"established", "ack-received"}
GOES = {"silent", "gave-up"}
PATIENCE = 5  # seconds


async def say_where(client: TrioClient, name: str) -> None:
    for peer in (await client.status())["peers"]:
        if peer["name"] == name:
            print(f"{name} is at {peer['endpoint']}, key {peer['key']}", flush=True)


async def say_why(client: TrioClient, name: str) -> None:
    for step in await client.doctor(name):
        if step["ok"] is False:
            print(f"{name}: {step['what']}: {step['remedy']}", flush=True)


async def look(client: TrioClient, event: str, name: str) -> None:
    say = say_where if event in COMES else say_why
    with trio.move_on_after(PATIENCE) as scope:
        try:
            await say(client, name)
        except UnknownPeer:
            print(f"{name} was removed meanwhile", flush=True)
    if scope.cancelled_caught:
        print(f"{name}: no answer within {PATIENCE} s", flush=True)


async def main() -> None:
    client = TrioClient()
    async with trio.open_nursery() as nursery, client.monitor() as events:
        print("listening", flush=True)
        async for event in events:
            if event["event"] in COMES | GOES:
                nursery.start_soon(look, client, event["event"], event["peer"])


if __name__ == "__main__":
    try:
        trio.run(main)
    except* AlphaTrioError as errors:
        for error in errors.exceptions:
            print(f"follow.py: {error}", file=sys.stderr)
        sys.exit(1)
