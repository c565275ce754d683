"""What the tests of the core share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from alpha_trio.proto.engine import choose
from alpha_trio.proto.transport import alpha


@pytest.fixture(autouse=True, scope="session")
def engine(own_ground: None) -> None:
    """The one that ALPHA_TRIO_ENGINE names, as in daemons; see ``--engine``."""
    choose(os.environ.get("ALPHA_TRIO_ENGINE") or "auto")


@pytest.fixture(autouse=True, scope="module")
def short_chains() -> Iterator[None]:
    """Chains of 1,024 elements, as the first ones are, where others have 4,096.

    To make them is a third of what a simulation costs, and shorter ones have to be
    renewed more often.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alpha, "LATER_SPACING", 32)
        yield
