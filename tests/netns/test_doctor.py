"""What the doctor says of a host, each in fresh network and mount namespaces.

sh (new namespaces, prepared) -> python: checks(...) -> JSON on stdout
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.netns

SCRIPT = """
import json, sys
from attrs import asdict
from alpha_trio.settings.model import Backend, RelaySettings, RoutingSettings, Settings
from alpha_trio.doctor import checks

routing = RoutingSettings(backend=Backend(sys.argv[1]))
settings = Settings(routing=routing, relay=RelaySettings(sys.argv[2] == "relay"))
print(json.dumps([asdict(check) for check in checks(settings)]))
"""

# Still user 0, but without a single capability.
ROOTLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def diagnose(prepare="", backend="rules", run=(), path=os.environ["PATH"], role="end"):
    """The checks in namespaces of their own, after the shell commands ``prepare``."""
    shell = f'{prepare}\nPATH="$1" && shift && exec "$@"'
    enter = ["unshare", "--net", "--mount", "sh", "-ec", shell, "sh", path]
    python = [sys.executable, "-c", SCRIPT, backend, role]
    done = subprocess.run(
        [*enter, *run, *python], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def found(checks, part):
    (check,) = [check for check in checks if part in check["what"]]
    return check


def test_a_host_with_everything():
    checks = diagnose("sysctl -qw net.ipv4.ip_forward=1")
    for part in ("CAP_NET_ADMIN", "/dev/net/tun", "TUN offloads", "UDP segment"):
        assert found(checks, part)["ok"], part
    assert found(checks, "socket buffers")["ok"]
    assert found(checks, "forwarding")["what"] == "forwarding: IPv4 on, IPv6 off"


@pytest.mark.parametrize(
    ("situation", "missing", "remedy"),
    [
        ({"run": ROOTLESS}, "CAP_NET_ADMIN", "run as root"),
        ({"prepare": "mount -t tmpfs none /dev/net"}, "/dev/net/tun", "modprobe tun"),
    ],
    ids=["privileges", "the tun device"],
)
def test_without_what_a_tun_needs(situation, missing, remedy):
    checks = diagnose(**situation)
    check = found(checks, missing)
    assert check["ok"] is False
    assert remedy in check["remedy"]
    assert found(checks, "TUN offloads: unknown")["ok"] is None


def test_without_ipv6():
    checks = diagnose("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    check = found(checks, "IPv6 is disabled")
    assert check["ok"] is None
    assert "disable_ipv6=0" in check["remedy"]


WAN_AND_LAN = """
ip link add wan type veth peer name lan
sysctl -qw net.ipv4.conf.all.rp_filter={all}
sysctl -qw net.ipv4.conf.wan.rp_filter={wan}
sysctl -qw net.ipv4.conf.lan.rp_filter={lan}
"""


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"all": 0, "wan": 0, "lan": 0}, ["rp_filter: off on lan, wan"]),
        ({"all": 1, "wan": 0, "lan": 1}, ["rp_filter: strict on lan, wan"]),
        (
            {"all": 1, "wan": 2, "lan": 0},
            ["rp_filter: strict on lan", "rp_filter: loose on wan"],
        ),
    ],
)
def test_the_reverse_path_filter_in_effect(settings, what):
    checks = diagnose(WAN_AND_LAN.format(**settings))
    filters = [check for check in checks if "rp_filter" in check["what"]]
    assert [check["what"] for check in filters] == what
    assert all(check["ok"] for check in filters)


def test_strict_filters_matter_to_routes_set_by_hand():
    checks = diagnose(WAN_AND_LAN.format(all=1, wan=2, lan=0), backend="none")
    assert found(checks, "strict on lan")["ok"] is None
    assert found(checks, "loose on wan")["ok"]


@pytest.mark.parametrize(("backend", "ok"), [("marks", False), ("rules", None)])
def test_no_packet_filter(backend, ok):
    checks = diagnose("mount -t tmpfs none /usr/sbin", backend, path="/nowhere")
    assert found(checks, "nft")["ok"] is ok


def of_relay(checks):
    return {c["what"]: c["ok"] for c in checks if c["what"].startswith("relay: ")}


def test_a_relay_needs_more():
    assert of_relay(diagnose()) == {}
    found = of_relay(diagnose(role="relay"))
    assert len(found) == 3
    assert all(found.values())


def test_a_relay_without_privileges():
    found = of_relay(diagnose(run=ROOTLESS, role="relay"))
    assert found["relay: no transparent sockets: Operation not permitted"] is False
    assert False in [ok for what, ok in found.items() if "cannot be led" in what]
    assert None in [ok for what, ok in found.items() if "CAP_NET_RAW" in what]


def test_a_relay_without_nft():
    found = of_relay(diagnose("mount -t tmpfs none /usr/sbin", role="relay"))
    assert None in [ok for what, ok in found.items() if "no nft" in what]
