"""Look at all states of worlds of the model that are too large for the suite.

Says of each how many states there are, how deep, and which properties hold; of those
that do not, the shortest way to where they break.  docs/model.md explains the worlds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from tests.model import early
from tests.model.early import Early
from tests.model.explore import TooMany, explore
from tests.model.handshake import ELSEWHERE, INITIATOR, Handshake
from tests.model.rounds import RECEIVER, SENDER, Rounds
from tests.model.rules import ALL, Rules

World = Any  # each has states of its own

_BEFORE, _BEHIND, _BOTH = frozenset({0}), frozenset({1}), frozenset({0, 1})
_ENDS = frozenset({early.SENDER, early.RECEIVER})
_KEYS = ("key 1", "key 2", "key 3")

WORLDS: dict[str, Callable[[Rules], World]] = {
    "rounds-before": lambda rules: Rounds(rules, rounds=2, attacker=_BEFORE, junk=2),
    "rounds-behind": lambda rules: Rounds(rules, rounds=2, attacker=_BEHIND, junk=3),
    "rounds-both-sides": lambda rules: Rounds(rules, attacker=_BOTH, junk=3),
    "rounds-patient": lambda rules: Rounds(
        rules, rounds=2, attacker=_BOTH, junk=1, gives_up=False
    ),
    "rounds-given-up": lambda rules: Rounds(rules, rounds=2, attacker=_BOTH, junk=0),
    "rounds-around": lambda rules: Rounds(rules, attacker=_BOTH, junk=2, around=True),
    "rounds-two-relays": lambda rules: Rounds(
        rules, relays=2, rounds=2, attacker=frozenset({1}), junk=1
    ),
    "rounds-around-two": lambda rules: Rounds(
        rules, relays=2, attacker=frozenset({0, 2}), around=True
    ),
    "rounds-copies": lambda rules: Rounds(rules, attacker=_BEFORE, copies=True, junk=2),
    "rounds-sender": lambda rules: Rounds(
        rules, rounds=2, attacker=_BEFORE, ends=frozenset({SENDER})
    ),
    "rounds-receiver": lambda rules: Rounds(
        rules, rounds=2, attacker=_BEHIND, ends=frozenset({RECEIVER})
    ),
    "early-before": lambda rules: Early(
        rules, rounds=3, packets=3, attacker=_BEFORE, usual=frozenset({1}), shapes=True
    ),
    "early-behind": lambda rules: Early(
        rules, rounds=3, packets=3, attacker=_BEHIND, shapes=True
    ),
    "early-renewed": lambda rules: Early(
        rules, sessions=2, packets=3, attacker=_BEFORE, usual=frozenset({1})
    ),
    "early-lying-relays": lambda rules: Early(
        rules,
        relay=False,
        sessions=2,
        rounds=3,
        packets=4,
        attacker=_BEFORE,
        usual=frozenset({1}),
        shapes=True,
    ),
    "early-patient": lambda rules: Early(
        rules, attacker=_BOTH, usual=frozenset({0}), shapes=True, gives_up=False
    ),
    "early-given-up": lambda rules: Early(rules, attacker=_BOTH),
    "early-around": lambda rules: Early(
        rules, attacker=_BOTH, around=True, gives_up=False
    ),
    "early-sender": lambda rules: Early(
        rules, rounds=3, attacker=_BOTH, ends=frozenset({early.SENDER})
    ),
    "early-ends": lambda rules: Early(
        rules, rounds=3, attacker=_BOTH, ends=_ENDS, shapes=True
    ),
    "handshake-keys": lambda rules: Handshake(rules, attacker=_BEHIND, keys=_KEYS),
    "handshake-around": lambda rules: Handshake(rules, attacker=_BOTH, keys=_KEYS),
    "handshake-altered": lambda rules: Handshake(
        rules, attacker=_BEHIND, alters=1, most_made=3
    ),
    "handshake-elsewhere": lambda rules: Handshake(
        rules,
        attacker=_BEHIND,
        prompt=_BEFORE,
        alters=2,
        sources=(INITIATOR, ELSEWHERE),
        cookies=True,
        most_made=3,
    ),
    "handshake-drops": lambda rules: Handshake(
        rules, attacker=_BEFORE, drops=True, alters=1, prompt=_BEHIND, cookies=True
    ),
    "handshake-first": lambda rules: Handshake(
        rules, live=False, attacker=_BEFORE, alters=1, prompt=_BEHIND, cookies=True
    ),
    "handshake-own-name": lambda rules: Handshake(
        rules, attacker=_BEFORE, keys=_KEYS[:2], asks=True
    ),
}


def main() -> int:
    """The command; exits with 1 if a property is broken, 2 beyond ``--most``."""
    arguments = _arguments()
    rules, worst = ALL.without(*arguments.without), 0
    for name in arguments.worlds or WORLDS:
        print(f"{name}:", flush=True)
        worst = max(worst, _look(WORLDS[name](rules), arguments.most))
    return worst


def _look(world: World, most: int) -> int:
    began = time.monotonic()
    try:
        result = explore(world, most)
    except TooMany as error:
        print(f"  not finished: {error}")
        return 2
    print(f"  {result.told()}\n  {time.monotonic() - began:.1f} s", flush=True)
    return 1 if result.broken else 0


def _arguments() -> argparse.Namespace:
    rules = [field.name for field in fields(Rules)]
    parser = argparse.ArgumentParser(prog="tools/model", description=__doc__)
    parser.add_argument(
        "worlds", nargs="*", metavar="WORLD", help=f"of {', '.join(WORLDS)}"
    )
    parser.add_argument(
        "--without", action="append", default=[], choices=rules, metavar="RULE",
        help=f"take a rule away, of {', '.join(rules)}; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--most", type=int, default=2_000_000, help="states of a world (%(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.worlds) - set(WORLDS):
        parser.error(f"no such world: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
