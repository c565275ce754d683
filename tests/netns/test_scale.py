"""Many sessions in one daemon, and the memory of each.

vm1, the daemon --- vm2 with an address, a key and a peer table for each peer
"""

from __future__ import annotations

import pytest

from tools import scale

pytestmark = pytest.mark.netns

SESSIONS = 100
IDLE_SESSION_KB = 200
LOADED_SESSION_KB = 8_000


def test_a_packet_for_each_of_many_peers_brings_a_session_each(pair):
    figures = scale.measure_daemon(*pair, SESSIONS)  # LabError if any is missing
    assert figures["rss_session_kb"] < IDLE_SESSION_KB


def test_memory_of_a_session_in_the_core():
    figures = scale.measure_core()
    assert 1 < figures["core_idle_kb"] < IDLE_SESSION_KB
    # As much as may wait, and what keeps account of it.
    assert 7_000 < figures["core_loaded_kb"] < LOADED_SESSION_KB
