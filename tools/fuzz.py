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
from typing import Any

# Named here, too: who imports them before atheris is there fuzzes without guidance.
TARGETS = ("peers", "messages", "joining", "control", "settings", "state")
LONGEST = 4096  # bytes of one input
_WORST_RSS = 1024  # MB, of a process that runs atheris


def inputs(seeds: Sequence[bytes], dice: random.Random) -> Iterator[bytes]:
    """Inputs without end: random bytes, and mutations of ``seeds``."""
    while True:
        data = bytearray(dice.choice(seeds) if dice.random() < 0.8 else b"")
        if dice.random() < 0.5 or not data:
            data += dice.randbytes(dice.randrange(1, 400))
        for _ in range(dice.randrange(8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        yield bytes(data)


def mutate(
    target: Callable[[bytes], None], seeds: Sequence[bytes], seconds: float, seed: int
) -> int:
    """Run ``target`` for so many seconds; returns how often.  A finding is raised.

    The same seed gives the same inputs; the one that failed is noted at the error.
    """
    end, count = time.monotonic() + seconds, 0
    for data in inputs(seeds, random.Random(seed)):
        if time.monotonic() >= end:
            break
        try:
            target(data)
        except BaseException as error:
            error.add_note(f"input: {data.hex()}")
            raise
        count += 1
    return count


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
        "max_len": LONGEST,
        "len_control": 0,  # scripts are long from the start
        "rss_limit_mb": _WORST_RSS,
        "timeout": 10,
        "artifact_prefix": f"{corpus.parent / name}-",
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target.run)
    atheris.Fuzz()


def unguided(name: str, seconds: int, seed: int, findings: Path) -> int:
    """Run our own mutator on one target; returns an exit code."""
    target = importlib.import_module("tools.targets").TARGETS[name]
    try:
        count = mutate(target.run, target.seeds, seconds, seed)
    except Exception as error:
        note = error.__notes__[-1]
        found = findings / f"{name}-{seed}"
        found.write_bytes(bytes.fromhex(note.removeprefix("input: ")))
        print(f"tools/fuzz: {name}: {error!r}; the input is in {found}")
        return 1
    print(f"{name}: {count} inputs, nothing found")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Fuzz one target, or run one input."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    add = parser.add_argument
    add("target", choices=TARGETS)
    add("--seconds", type=int, default=60, help="how long (default: 60)")
    add("--seed", type=int, default=1, help="of our own mutator (default: 1)")
    add("--replay", type=Path, metavar="FILE", help="run this input and nothing else")
    add(
        "--findings",
        type=Path,
        metavar="DIR",
        help="for inputs, and what they found (default: a new one in the system's)",
    )
    options = parser.parse_args(arguments)
    if options.replay:
        targets = importlib.import_module("tools.targets").TARGETS
        targets[options.target].run(options.replay.read_bytes())
        return 0
    findings = options.findings or Path(tempfile.mkdtemp(prefix="alpha-trio-fuzz-"))
    findings.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("atheris"):
        guided(options.target, options.seconds, findings / options.target)
    return unguided(options.target, options.seconds, options.seed, findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
