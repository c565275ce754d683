"""The Wireshark dissector names what two daemons say, and what is wrong with the rest.

vm1 ---- vm2        tcpdump on vm1
"""

import json
import shutil
import subprocess

import pytest

from alpha_trio.proto.messages import Kind
from tests.netns.traffic import Forger, introduce, peer, ping, send_tcp
from tests.reference import alpha, vectors
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        shutil.which("tshark") is None, reason="needs tshark (apt-get install tshark)"
    ),
]

SCRIPT = vectors.FOLDER.parents[1] / "tools" / "dissector" / "alpha-trio.lua"


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


def dissect(path, *options):
    """All datagrams of a capture file as tshark shows them: field name to values."""
    command = ["tshark", "-X", f"lua_script:{SCRIPT}", "-r", str(path), "-T", "ek"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Error" not in done.stderr, done.stderr
    packets = [json.loads(line) for line in done.stdout.splitlines()]
    return [packet["layers"] for packet in packets if "layers" in packet]


def messages(packets):
    """The dissector's fields of every message: each a list of texts.

    A packet may hold many: the capture sees what the kernel has not cut up yet.
    """
    found = []
    for layers in packets:
        inside = layers["alphatrio"]
        found += inside if isinstance(inside, list) else [inside]
    prefix = "alphatrio_alphatrio_"
    return [
        {
            name.removeprefix(prefix): value if isinstance(value, list) else [value]
            for name, value in message.items()
            if name.startswith(prefix)
        }
        for message in found
    ]


def kinds(packets):
    return {int(message["kind"][0]) for message in messages(packets)}


def assert_all_named(packets):
    """Nothing malformed, neither for the dissector nor for tshark itself."""
    assert packets
    for layers in packets:
        assert "malformed" not in json.dumps(layers).lower(), layers


def test_every_message_of_two_daemons_is_named(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Capture(vm1) as capture:
        introduce(one, two)
        ping(vm1, vm2.address)
        send_tcp(vm1, vm2, vm2.address)  # larger rounds, and more associations
        wait_until(lambda: peer(one, "vm2")["associations"] > 1, "more associations")
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
    (more, *_) = [m for m in said if int(m.get("packets", ["0"])[0]) > 1]
    assert len(more["root"]) == int(more["roots"][0])


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


BAD = [
    b"\x01",  # shorter than a header
    alpha.header(77, 5),  # no such kind
    b"\x05\x02" + bytes(62),  # another version
    alpha.header(alpha.SYN, 0, 1) + bytes(100),
    alpha.header(alpha.ACKACK, 5, 1) + bytes(65),
    alpha.head(alpha.S1, 5, 0, 0, 0, bytes(16)) + bytes.fromhex("0002000900000000"),
    alpha.head(alpha.A2, 5, 0, 0, 0, bytes(16)) + bytes(3),
    alpha.head(alpha.A2, 5, 0, 0, 0, bytes(16)) + bytes(8 + 2 * 36),
    alpha.head(alpha.S2, 5, 0, 3, 0, bytes(16)) + bytes(40),
]


def test_what_is_no_message_is_called_malformed(pair):
    vm1, vm2 = pair
    with Forger(vm2, vm1) as forger, Capture(vm1) as capture:
        for datagram in BAD:
            forger.send(datagram, vm2.address)
        wait_until(lambda: len(dissect(capture.path)) == len(BAD), "all captured")
    for layers in dissect(capture.path):
        assert "alphatrio_malformed" in json.dumps(layers), layers
