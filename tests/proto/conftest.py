"""What the tests of the core share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

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


@pytest.fixture(autouse=True, scope="session")
def chains_are_made_once() -> Iterator[None]:
    """The simulations' randomness is fixed, so most chains are those of other tests.

    They are the very same, element for element: only the hashing is saved, a sixth of
    what all tests of the core would take.
    """
    with pytest.MonkeyPatch.context() as patch:
        make_some = remembering(alpha.HashChain.make_some)
        patch.setattr(alpha.HashChain, "make_some", make_some)
        yield


def remembering(
    make_some: Callable[[alpha.HashChain], bool],
) -> Callable[[alpha.HashChain], bool]:
    """What ``make_some`` does, looked up where it was done before."""
    known: dict[tuple[object, ...], tuple[int, dict[int, bytes]]] = {}

    def look_up(chain: alpha.HashChain) -> bool:
        begun = chain.chain_id, chain.seed, chain.spacing, chain._made
        if begun in known:
            chain._made, checkpoints = known[begun]
            chain._checkpoints |= checkpoints
            return not chain._made
        done = make_some(chain)
        known[begun] = chain._made, dict(chain._checkpoints)
        if len(known) > MOST_CHAINS:
            del known[next(iter(known))]
        return done

    return look_up


MOST_CHAINS = 4000  # 4 kB each
