"""Which kernel is used, and why."""

from __future__ import annotations

from attrs import frozen

from alpha_trio.proto.engine import reference
from alpha_trio.proto.engine.face import Kernel
from alpha_trio.proto.engine.selftest import differs
from alpha_trio.proto.primitives import descend_by

NATIVE, PYTHON, AUTO = "native", "python", "auto"


class NoEngine(Exception):
    """The engine that was asked for cannot be used."""


@frozen
class Choice:
    """A kernel, and what there is to say of it."""

    name: str  # "native" or "python"
    why: str  # a clause
    kernel: Kernel
    instead: bool = False  # whether the native one was to be had, and was not


def choose(wanted: str = AUTO) -> Choice:
    """Use the kernel ``wanted`` from now on, for sessions that begin.

    "auto" is the native one, unless it is not there or does not do what the other
    does.  Raises NoEngine if it must be the native one and cannot, or is none at all.
    """
    global _chosen
    _chosen = find(wanted)
    descend_by(_chosen.kernel.descend)
    return _chosen


def chosen() -> Choice:
    """The kernel in use."""
    return _chosen or choose()


def find(wanted: str) -> Choice:
    """What ``choose`` would choose."""
    if wanted not in (NATIVE, PYTHON, AUTO):
        raise NoEngine(f"{wanted!r} is no engine: use {AUTO}, {NATIVE} or {PYTHON}")
    if wanted == PYTHON:
        return Choice(PYTHON, "as it was asked for", reference)
    problem = ""
    try:
        import alpha_trio.proto.engine._kernel as kernel
    except ModuleNotFoundError:
        problem = "the native one was not built when this was installed"
    except ImportError as error:  # as for want of a library
        problem = f"the native one cannot be loaded ({error})"
    else:
        if found := differs(kernel):
            problem = f"the native one failed its self-test ({found})"
        else:
            return Choice(NATIVE, f"with {kernel.libcrypto}", kernel)
    if wanted == NATIVE:
        raise NoEngine(f"the native engine cannot be used: {problem}")
    return Choice(PYTHON, problem, reference, instead=True)


_chosen: Choice | None = None
