"""All states of a small world, the shortest way to each, and what is true in them.

A world says which steps lead on from a state, and states are values that can be
compared and hashed.  Everything that can be reached is looked at, nearest first, so
that the first state to break a property is reached by as few steps as any other.

Two kinds of properties:

* ``always``: true of every state.
* ``in_reach``: from every state another one of a kind can be reached by honest steps
  alone, as when the attacker stops and what is under way arrives.  It says that nothing
  the attacker has done is final; not how long it takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One thing that may happen."""

    said: str
    state: S  # afterwards
    honest: bool = True  # no doing of the attacker's


class World(Protocol[S]):
    """What explore needs to know."""

    @property
    def start(self) -> S: ...

    @property
    def always(self) -> Mapping[str, Callable[[S], bool]]: ...

    @property
    def in_reach(self) -> Mapping[str, Callable[[S], bool]]: ...

    def steps(self, state: S) -> Iterator[Step[S]]: ...


class TooMany(Exception):
    """There are more states than were asked for."""


@dataclass(frozen=True)
class Result:
    """What was found."""

    states: int
    depth: int  # steps to the state that is furthest away
    broken: Mapping[str, list[str]]  # by property: the steps that lead there
    properties: tuple[str, ...]

    def told(self) -> str:
        """All of it, for people."""
        lines = [f"{self.states} states, {self.depth} steps deep"]
        for name in self.properties:
            trace = self.broken.get(name)
            lines.append(f"  {'holds ' if trace is None else 'BROKEN'}  {name}")
            lines += [f"          {i}. {said}" for i, said in enumerate(trace or (), 1)]
        return "\n".join(lines)


class Explored(Generic[S]):
    """How each state was reached, and from where honest steps lead to it."""

    def __init__(self, start: S) -> None:
        self.came: dict[S, tuple[S, str] | None] = {start: None}
        self.before: dict[S, list[S]] = {}
        self.depth = 0

    def trace(self, state: S) -> list[str]:
        """The steps from the start to here."""
        said = []
        while (came := self.came[state]) is not None:
            state, words = came
            said.append(words)
        return said[::-1]

    def leading_to(self, goals: Iterable[S]) -> set[S]:
        """From which states honest steps can lead to one of these."""
        found = set(goals)
        waiting = deque(found)
        while waiting:
            for state in self.before.get(waiting.popleft(), ()):
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        return found


def explore(world: World[S], most: int = 5_000_000, until: str = "") -> Result:
    """Look at everything that can happen, or at what can until ``until`` is broken.

    Raises TooMany beyond ``most`` states.
    """
    seen: Explored[S] = Explored(world.start)
    broken: dict[str, list[str]] = {}
    _walk(world, seen, broken, most, until)
    if until in broken:
        return Result(len(seen.came), seen.depth, broken, tuple(broken))
    for name, goal in world.in_reach.items():
        good = seen.leading_to(filter(goal, seen.came))
        lost = next((state for state in seen.came if state not in good), None)
        if lost is not None:
            broken[name] = seen.trace(lost)
    names = (*world.always, *world.in_reach)
    return Result(len(seen.came), seen.depth, broken, names)


def _walk(
    world: World[S],
    seen: Explored[S],
    broken: dict[str, list[str]],
    most: int,
    until: str,
) -> None:
    always, row = world.always, [world.start]
    while row and until not in broken:
        following: list[S] = []
        for state in row:
            for name, holds in always.items():
                if name not in broken and not holds(state):
                    broken[name] = seen.trace(state)
            following += _beyond(world, seen, state)
            if len(seen.came) > most:
                raise TooMany(f"more than {most} states")
        row = following
        seen.depth += bool(row)


def _beyond(world: World[S], seen: Explored[S], state: S) -> Iterator[S]:
    """The states one step further that are new."""
    for said, reached, honest in world.steps(state):
        if reached == state:
            continue
        if honest and world.in_reach:
            seen.before.setdefault(reached, []).append(state)
        if reached not in seen.came:
            seen.came[reached] = state, said
            yield reached
