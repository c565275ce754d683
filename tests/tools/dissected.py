"""What tshark shows of datagrams with our dissector."""

import json
import shutil
import subprocess
from struct import pack

import pytest

from tests.reference import vectors

NEEDS_TSHARK = pytest.mark.skipif(
    shutil.which("tshark") is None, reason="needs tshark (apt-get install tshark)"
)
SCRIPT = vectors.FOLDER.parents[1] / "tools" / "dissector" / "alpha-trio.lua"
LINK_RAW = 101  # a capture of IP packets


def write_capture(path, datagrams, port=1234):
    """A capture file (pcap) of UDP datagrams to that port, without checksums."""
    path.write_bytes(
        pack("!IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, LINK_RAW)
        + b"".join(_record(number, d, port) for number, d in enumerate(datagrams))
    )


def _record(second, datagram, port):
    udp = pack("!HHHH", 4000, port, 8 + len(datagram), 0) + datagram
    hosts = bytes([192, 0, 2, 1, 192, 0, 2, 2])
    ip = pack("!BBHIBBH", 0x45, 0, 20 + len(udp), 0, 64, 17, 0) + hosts + udp
    return pack("!IIII", second, 0, len(ip), len(ip)) + ip


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


def assert_all_named(packets):
    """Nothing malformed, neither for the dissector nor for tshark itself."""
    assert packets
    for layers in packets:
        assert "malformed" not in json.dumps(layers).lower(), layers
