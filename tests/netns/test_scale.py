"""Many sessions in one daemon, and the memory of each.

vm1, the daemon --- vm2 with an address, a key and a peer table for each peer
"""

from __future__ import annotations

import pytest

from tools import scale

pytestmark = [pytest.mark.netns, pytest.mark.cold]

SESSIONS = 100
RELAYED_SESSION_KB = 5
IDLE_SESSION_KB = 200
LOADED_SESSION_KB = 8_000


def test_a_packet_for_each_of_many_peers_brings_a_session_each(pair):
    figures = scale.measure_daemon(*pair, SESSIONS)  # LabError if any is missing
    assert figures["rss_session_kb"] < IDLE_SESSION_KB


def test_a_relay_sees_every_session_that_crosses_it(lab):
    figures = scale.measure_relay(*lab.chain(1), SESSIONS)  # LabError if any is missing
    assert figures["relay_rss_session_kb"] < IDLE_SESSION_KB


def test_memory_of_an_idle_session_in_the_verdict_engine():
    figures = scale.measure_relay_core()
    assert 1 < figures["relay_core_idle_kb"] < RELAYED_SESSION_KB


def test_memory_of_a_session_in_the_core():
    figures = scale.measure_core()
    assert 1 < figures["core_idle_kb"] < IDLE_SESSION_KB
    # As much as may wait, and what keeps account of it.
    assert 7_000 < figures["core_loaded_kb"] < LOADED_SESSION_KB


def test_memory_of_a_session_full_of_small_packets():
    """They are mostly the objects around them, which count as well."""
    figures = scale.measure_small_packets()
    assert 7_000 < figures["core_small_kb"] < LOADED_SESSION_KB
