"""Throw made-up bytes at every parser and at the peer table, see tools/targets.py.

With atheris (``pip install --editable ".[fuzz]"``) guided by coverage, otherwise by
a mutator of our own.  What breaks a rule is saved, and ends the run; --replay runs it
again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.targets import Target

# Named here, too: who imports them before atheris is there fuzzes without guidance.
TARGETS = (
    "peers",
    "authentic",
    "signed",
    "relay",
    "kernels",
    "messages",
    "joining",
    "early",
    "control",
    "settings",
    "state",
)
COUNTED = ("authentic", "signed", "relay")  # which tell what they made
LONGEST = 4096  # bytes of one input
_WORST_RSS = 1024  # MB, of a process that runs atheris


def inputs(
    seeds: Sequence[bytes], dice: random.Random, longest: int = 400
) -> Iterator[bytes]:
    """Inputs without end: up to so many random bytes, and mutations of ``seeds``."""
    while True:
        data = bytearray(dice.choice(seeds) if dice.random() < 0.8 else b"")
        if dice.random() < 0.5 or not data:
            data += dice.randbytes(dice.randrange(1, longest))
        for _ in range(dice.randrange(8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        yield bytes(data)


def mutate(target: Target, seed: int, goes_on: Callable[[], bool]) -> int:
    """Run ``target`` as long as it ``goes_on``; returns how often.

    A finding is raised.  The same seed gives the same inputs; the one that failed is
    noted at the error.
    """
    count = 0
    for data in inputs(target.seeds, random.Random(seed), target.longest):
        if not goes_on():
            break
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"input: {data.hex()}")
            raise
        count += 1
    return count


def lasting(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds are not over yet."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def until_fed(target: Target, datagrams: int) -> Callable[[], bool]:
    """Whether some kind of datagram was not handed in so often yet, for each role."""
    fed = importlib.import_module("tools.fuzz_world").fed
    return lambda: any(fed[cell] < datagrams for cell in target.counted)


def guided(name: str, seconds: int, corpus: Path) -> None:
    """Run atheris on one target; ends the process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["alpha_trio"]):
        targets = importlib.import_module("tools.targets").TARGETS
    target = targets[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "max_len": max(LONGEST, target.longest),
        "len_control": 0,  # scripts are long from the start
        "rss_limit_mb": _WORST_RSS,
        "timeout": 10,
        "artifact_prefix": f"{corpus.parent / name}-",
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target.run)
    atheris.Fuzz()


def unguided(
    name: str, seconds: float, seed: int, findings: Path, datagrams: int = 0
) -> int:
    """Run our own mutator on one target; returns an exit code.

    With ``datagrams`` until there were as many of each kind, instead of a time.
    """
    target: Target = importlib.import_module("tools.targets").TARGETS[name]
    more = until_fed(target, datagrams) if datagrams else lasting(seconds)
    try:
        count = mutate(target, seed, more)
    except KeyboardInterrupt:
        print_fed(target)
        raise
    except Exception as error:
        note = error.__notes__[-1]
        found = findings / f"{name}-{seed}"
        found.write_bytes(bytes.fromhex(note.removeprefix("input: ")))
        print(f"tools/fuzz: {name}: {error!r}; the input is in {found}")
        return 1
    print_fed(target)
    print(f"{name}: {count} inputs, nothing found")
    return 0


def print_fed(target: Target) -> None:
    """How many datagrams there were of what is counted."""
    fed = importlib.import_module("tools.fuzz_world").fed
    for role, kind in target.counted:
        print(f"{role:<10} {kind:<8} {fed[role, kind]:>9}")


def main(arguments: Sequence[str]) -> int:
    """Fuzz one target, or run one input."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    add = parser.add_argument
    add("target", choices=TARGETS)
    add("--seconds", type=int, default=60, help="how long (default: 60)")
    add(
        "--datagrams",
        type=int,
        default=0,
        metavar="N",
        help="of authentic, signed and relay: until there were N of each kind for each "
        "role, by our own mutator",
    )
    add("--seed", type=int, default=1, help="of our own mutator (default: 1)")
    add("--replay", type=Path, metavar="FILE", help="run this input and nothing else")
    add(
        "--findings",
        type=Path,
        metavar="DIR",
        help="for inputs, and what they found (default: a new one in the system's)",
    )
    options = parser.parse_args(arguments)
    if options.datagrams and options.target not in COUNTED:
        parser.error(f"--datagrams is for {', '.join(COUNTED)}")
    if options.replay:
        targets = importlib.import_module("tools.targets").TARGETS
        targets[options.target].run(options.replay.read_bytes())
        return 0
    findings = options.findings or Path(tempfile.mkdtemp(prefix="alpha-trio-fuzz-"))
    findings.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("atheris") and not options.datagrams:
        guided(options.target, options.seconds, findings / options.target)
    asked = options.seconds, options.seed, findings, options.datagrams
    return unguided(options.target, *asked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
