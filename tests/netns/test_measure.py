"""The benchmark's measurements, on the plain link between two hosts."""

from __future__ import annotations

import pytest

from tools import measure
from tools.lab import LabError

pytestmark = pytest.mark.netns


def test_tcp_counts_payload_and_the_cpu_of_processes(pair):
    vm1, vm2 = pair
    idle = vm1.popen("sleep", "60")
    with measure.iperf_server(vm2):
        figures = measure.tcp(vm1, vm2.address, 1, 2, [idle.pid, idle.pid])
    assert figures["tcp_2_gbits"] > 0
    assert figures["cpu_sender_s_per_gb_2"] == 0
    assert figures["cpu_receiver_s_per_gb_2"] == 0


def test_iperf_error_says_what_was_wrong(pair):
    vm1, vm2 = pair
    with pytest.raises(
        LabError, match=r"iperf3 from vm1 to 192\.168\.10\.61: .*refused"
    ):
        measure.tcp(vm1, vm2.address, 1, 1)


def test_ping(pair):
    vm1, vm2 = pair
    figures = measure.ping(vm1, vm2.address, 0.1, "idle")
    assert 0 < figures["ping_idle_median_ms"] <= figures["ping_idle_p99_ms"]


def test_ping_beside_a_stream(pair):
    vm1, vm2 = pair
    with measure.iperf_server(vm2):
        figures = measure.loaded_ping(vm1, vm2.address, 0.1)
    assert 0 < figures["ping_loaded_median_ms"] <= figures["ping_loaded_p99_ms"]


def test_ping_without_a_reply_is_an_error(pair):
    vm1, vm2 = pair
    vm2.lose(1)
    with pytest.raises(LabError, match="no reply"):
        measure.ping(vm1, vm2.address, 0.005, "idle")


def test_first_reply_is_seen_although_requests_are_lost(pair):
    vm1, vm2 = pair
    assert measure.time_to_first_reply(vm1, vm2.address) > 0
    vm2.lose(1)
    with pytest.raises(LabError, match="no echo reply"):
        measure.time_to_first_reply(vm1, vm2.address, timeout=0.5)


def test_udp_packets_are_counted_where_they_arrive(pair):
    vm1, vm2 = pair
    with measure.packet_counter(vm2):
        delivery = measure.deliver(vm1, vm2.address, 64, 1000, seconds=0.1)
        assert 0 < delivery.received <= delivery.sent <= 1000
        vm2.lose(1, "udp dport 5300")
        delivery = measure.deliver(vm1, vm2.address, 64, 1000, seconds=0.1)
        assert delivery.loss == 1


def test_udp_packets_that_come_late_do_not_count(lab):
    vm1, vm2 = lab.lan(2, delay_ms=100)
    with measure.packet_counter(vm2):
        for grace, is_counted in ((0.01, False), (1, True)):
            delivery = measure.deliver(
                vm1, vm2.address, 64, 1000, seconds=0.05, grace=grace
            )
            assert delivery.sent > 0
            assert (delivery.received > 0) is is_counted


def test_without_a_packet_counter_there_is_no_rate(pair):
    vm1, vm2 = pair
    with pytest.raises(LabError, match=r"from vm1 to 192\.168\.10\.61: .*refused"):
        measure.deliver(vm1, vm2.address, 64, 1000)
