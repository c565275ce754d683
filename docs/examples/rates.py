"""Wait for a session with a peer, then print how much goes there and comes from there.

    rates.py NAME [TIMES]

A blocking client: one thing after the other.
"""

import sys
import time

from alpha_trio.errors import AlphaTrioError
from alpha_trio.rpc import Client


def counted(client: Client, name: str) -> tuple[float, int, int]:
    """When it was, and the bytes sent and received until then."""
    for peer in client.status()["peers"]:
        if peer["name"] == name:
            return time.monotonic(), peer["tx_bytes"], peer["rx_bytes"]
    raise AlphaTrioError(f"{name} was removed meanwhile")


def main(name: str, times: int) -> None:
    client = Client()
    client.wait(name, timeout=30)
    before = counted(client, name)
    for _ in range(times):
        time.sleep(1)
        now = counted(client, name)
        seconds, sent, received = (b - a for a, b in zip(before, now, strict=True))
        print(
            f"{name}: sent {sent / seconds / 1e3:.1f} kB/s,"
            f" received {received / seconds / 1e3:.1f} kB/s",
            flush=True,
        )
        before = now


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
    except AlphaTrioError as error:
        print(f"rates.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
