"""The benchmark's measurements, on the plain link between two hosts."""

from __future__ import annotations

import pytest

from tools import measure
from tools.daemons import ending
from tools.lab import LabError

pytestmark = pytest.mark.netns

REJECTING = """table ip rejecting {{ chain echo {{
    type filter hook {hook} priority 0;
    icmp type echo-request reject with icmp admin-prohibited
}}
}}
"""


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
    names = ("ping_idle_median_ms", "ping_idle_p90_ms", "ping_idle_p99_ms")
    median, p90, p99 = (figures[name] for name in names)
    assert 0 < median <= p90 <= p99


@pytest.mark.parametrize(
    ("take", "name"),
    [
        (measure.ping, "ping_loaded_median_ms"),
        (measure.one_direction, "one_way_loaded_p50_ms"),
        (measure.ssh, "ssh_loaded_p50_ms"),
    ],
)
def test_latency_beside_a_stream(pair, take, name):
    vm1, vm2 = pair
    seen = []

    def measurement() -> measure.Figures:
        busy = f"-Hnt state established dst {vm2.address} dport 5201".split()
        seen.append(vm1.run("ss", *busy).stdout)
        return take(vm1, vm2.address, 0.1, "loaded")

    with measure.iperf_server(vm2), measure.far_end(vm2):
        figures = measure.beside_stream(
            vm1, vm2.address, 0.1, [measurement], round_trip=0.01
        )
    assert figures[name] > 0
    assert seen[0] != ""


def test_one_way_is_half_of_a_path_and_knows_what_is_lost(lab):
    vm1, vm2 = lab.lan(2, delay_ms=30)
    with measure.far_end(vm2):
        figures = measure.one_direction(vm1, vm2.address, 0.2, "idle")
        assert 30 <= figures["one_way_idle_p50_ms"] < 60
        assert figures["one_way_idle_p50_ms"] <= figures["one_way_idle_p90_ms"]
        assert figures["one_way_idle_p90_ms"] <= figures["one_way_idle_p99_ms"]
        assert figures["one_way_idle_lost_percent"] == 0
        vm2.lose(0.5, "udp dport 5310")
        figures = measure.one_direction(vm1, vm2.address, 0.5, "idle")
        assert 0 < figures["one_way_idle_lost_percent"] < 100


def test_key_strokes_and_their_echoes_are_timed_one_way(lab):
    vm1, vm2 = lab.lan(2, delay_ms=30)
    with measure.far_end(vm2):
        figures = measure.ssh(vm1, vm2.address, 0.3, "idle")
        assert 30 <= figures["ssh_idle_p50_ms"] < 60
        assert figures["ssh_idle_lost_percent"] == 0
        vm1.lose(1, "udp sport 5310")
        figures = measure.ssh(vm1, vm2.address, 0.1, "idle")
        assert figures["ssh_idle_lost_percent"] == 100  # they arrived, their echoes not
        vm2.lose(1, "udp dport 5310")
        with pytest.raises(LabError, match=r"from vm1 to 192\.168\.10\.61: no packet"):
            measure.ssh(vm1, vm2.address, 0.1, "idle")


def test_without_a_far_end_nothing_is_timed(pair):
    vm1, vm2 = pair
    with pytest.raises(LabError, match=r"from vm1 to 192\.168\.10\.61: .*refused"):
        measure.one_direction(vm1, vm2.address, 0.1, "idle")


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
    tried = []

    def meanwhile() -> None:
        tried.append(1)
        if len(tried) == 3:
            vm2.lose(0)

    measure.time_to_first_reply(vm1, vm2.address, every=0.01, meanwhile=meanwhile)
    assert len(tried) >= 3


def test_a_first_reply_is_awaited_while_there_is_no_way_yet(pair):
    vm1, vm2 = pair
    inner = "172.30.0.2"
    vm2.run("ip", "address", "add", inner, "dev", "lo")
    steps = [
        lambda: None,  # no route
        lambda: vm1.run("ip", "route", "add", inner, "via", vm2.address),
        lambda: vm1.run("nft", "delete", "table", "ip", "rejecting"),
        lambda: None,
        lambda: vm2.run("nft", "delete", "table", "ip", "rejecting"),
    ]
    for host, hook in ((vm1, "output"), (vm2, "input")):
        host.run("nft", "-f", "-", stdin=REJECTING.format(hook=hook))
    left = iter(steps)
    measure.time_to_first_reply(
        vm1, inner, every=0.01, meanwhile=lambda: next(left, str)()
    )
    assert list(left) == []


def test_somebody_elses_echo_is_no_reply(pair):
    vm1, vm2 = pair
    vm2.lose(1, f"ip daddr {vm2.address}")
    vm2.run("ip", "address", "add", "192.168.10.70/24", "dev", "eth0")
    other = vm1.popen("ping", "-i", "0.01", "192.168.10.70")
    with (
        ending(other),
        pytest.raises(LabError, match=r"no echo reply from 192\.168\.10\.61"),
    ):
        measure.time_to_first_reply(vm1, vm2.address, timeout=0.3)


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
