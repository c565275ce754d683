"""The Wireshark dissector names what two daemons say.

vm1 ---- vm2        tcpdump on vm1
"""

import subprocess

import pytest

from alpha_trio.proto.messages import Kind
from tests.netns.traffic import introduce, peer, ping, send_tcp
from tests.tools.dissected import NEEDS_TSHARK, assert_all_named, dissect, messages
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = [
    pytest.mark.netns,
    NEEDS_TSHARK,
]


class Capture:
    """tcpdump of the tunnel's datagrams on a host's link, within the block."""

    def __init__(self, host, port=1234):
        self.path = host.directory / "capture.pcap"
        command = ("tcpdump", "-i", "eth0", "-U", "--immediate-mode", "-w", self.path)
        self._process = host.popen(
            *map(str, command), f"udp port {port}", stderr=subprocess.PIPE
        )

    def __enter__(self):
        assert "listening" in self._process.stderr.readline()
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.communicate(timeout=10)


def kinds(packets):
    return {int(message["kind"][0]) for message in messages(packets)}


def test_every_message_of_two_daemons_is_named(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Capture(vm1) as capture:
        introduce(one, two)
        ping(vm1, vm2.address)
        wait_until(lambda: has_more_associations(one, vm2), "more associations")
        one.cli("trace", "vm2", "--seconds", "0")
    packets = dissect(capture.path)
    assert_all_named(packets)
    assert kinds(packets) == {*Kind} - {Kind.DATA, Kind.COOKIE}
    said = messages(packets)
    controls = {what for message in said for what in message.get("control_kind", [])}
    assert {"1", "2", "4", "5"} <= controls
    (report,) = [m for m in said if m["kind"] == [str(int(Kind.REPORT))]]
    assert report["role"] == ["2"]
    assert int(report["forth_passed"][0]) > 10
    assert said[0]["options_early"] == [True]
    assert all(len(m["root"]) == 1 for m in said if "early" in m)
    early, proven = (
        {m["round"][0] for m in said if x in m} for x in ("early", "proof")
    )
    assert early & proven
    (more, *_) = [m for m in said if int(m.get("packets", ["0"])[0]) > 1]
    assert len(more["root"]) == int(more["roots"][0])


def has_more_associations(one, vm2):
    """Whether larger rounds needed some, after another transfer."""
    send_tcp(one.host, vm2, vm2.address)
    return peer(one, "vm2")["associations"] > 1


def test_every_verdict_of_a_reliable_session_is_named(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Capture(vm1) as capture:
        introduce(one, two, reliable=True)
        ping(vm1, vm2.address)
        send_tcp(vm1, vm2, vm2.address, 1 << 16)
        acknowledged = peer(two, "vm1")["rx_packets"]
    packets = dissect(capture.path)
    assert_all_named(packets)
    a2s = [m for m in messages(packets) if m["kind"] == [str(int(Kind.A2))]]
    assert max(int(m["openings"][0]) for m in a2s) > 1
    assert all(len(m["verdict"]) == int(m["openings"][0]) for m in a2s)
    assert sum(m["verdict"].count("1") for m in a2s) >= acknowledged


def test_every_message_of_a_plain_session_at_another_port_is_named(pair):
    vm1, vm2 = pair
    with (
        Daemon(vm1, "--port", "1300") as one,
        Daemon(vm2, "--port", "1300") as two,
        Capture(vm1, 1300) as capture,
    ):
        introduce(one, two, mode="plain", port=1300)
        send_tcp(vm1, vm2, vm2.address, 1 << 16)
    assert not any("alphatrio" in packet for packet in dissect(capture.path))
    packets = dissect(capture.path, "-o", "alphatrio.port:1300")
    assert_all_named(packets)
    assert kinds(packets) == {Kind.SYN, Kind.ACK, Kind.ACKACK, Kind.DATA}
    types = [t for m in messages(packets) for t in m.get("frame_gso_type", [])]
    assert "1" in types
