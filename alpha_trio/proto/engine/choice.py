"""Which kernel is used, and why."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, cast

from attrs import frozen

from alpha_trio.proto.engine import reference
from alpha_trio.proto.engine.face import Kernel
from alpha_trio.proto.engine.selftest import differs
from alpha_trio.proto.primitives import chain

VARIABLE = "ALPHA_TRIO_ENGINE"
NATIVE, PYTHON, AUTO = "native", "python", "auto"


@frozen
class Choice:
    """A kernel, and what there is to say of it."""

    name: str  # "native" or "python"
    why: str  # a clause
    kernel: Kernel


def choose(wanted: str = AUTO) -> Choice:
    """Use the kernel ``wanted`` from now on, for sessions that begin.

    "auto" is the native one, unless it is not there or does not do what the other
    does.  Raises ValueError if it must be the native one and cannot, or for a name that
    is none.
    """
    global _chosen
    _chosen = _find(wanted)
    chain.use(_chosen.kernel.descend)
    return _chosen


def chosen() -> Choice:
    """The kernel in use."""
    return _chosen or choose(os.environ.get(VARIABLE) or AUTO)


def _find(wanted: str) -> Choice:
    if wanted not in (NATIVE, PYTHON, AUTO):
        raise ValueError(f"{wanted!r} is no engine: use {AUTO}, {NATIVE} or {PYTHON}")
    if wanted == PYTHON:
        return Choice(PYTHON, "as it was asked for", cast(Kernel, reference))
    kernel, problem = _native()
    if kernel is not None:
        return Choice(NATIVE, f"with {kernel.libcrypto}", cast(Kernel, kernel))
    if wanted == NATIVE:
        raise ValueError(f"the native engine cannot be used: {problem}")
    return Choice(PYTHON, problem, cast(Kernel, reference))


def _native() -> tuple[Any, str]:
    try:
        kernel = import_module("alpha_trio.proto.engine._kernel")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return None, "the native one was not built when this was installed"
        return None, f"the native one cannot be loaded ({error})"
    if found := differs(cast(Kernel, kernel)):
        return None, f"the native one failed its self-test ({found})"
    return kernel, ""


_chosen: Choice | None = None
