"""What the tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from alpha_trio.proto.transport import alpha


@pytest.fixture(autouse=True, scope="module")
def short_chains() -> Iterator[None]:
    """Chains of 1,024 elements, as the first ones are, where others have 4,096.

    To make them is a third of what a simulation costs, and shorter ones have to be
    renewed more often.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alpha, "LATER_SPACING", 32)
        yield
