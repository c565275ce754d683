"""What the doctor says of a host, each in fresh network and mount namespaces.

sh (new namespaces, prepared) -> python: checks(...) -> JSON on stdout
"""

import json
import os
import subprocess
import sys

import pytest

from tests.netns.traffic import introduce, ping
from tools.daemons import Daemon

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


# The packet filter


FILTER = """
nft -f - <<END
table inet f {{
  chain input {{
    type filter hook input priority 0; policy {policy};
{rules}
  }}
  chain ports {{
    udp dport {{ 53, 1000-2000 }} accept
  }}
  chain refuse {{
    udp dport 1234 drop
  }}
}}
END
"""
LET_IN = "lets UDP port 1234 in"


@pytest.mark.parametrize(
    ("policy", "rules", "ok", "said"),
    [
        ("accept", "", True, LET_IN),
        ("drop", "", False, "chain input of table inet f drops UDP port 1234"),
        ("drop", "ct state established accept", None, "unless this host has asked"),
        ("drop", "ct state established accept\nudp dport 1234 accept", True, LET_IN),
        ("drop", "ct state vmap { established : accept }", None, "peers cannot begin"),
        ("drop", "jump ports", True, LET_IN),
        ("drop", "tcp dport 1234 accept", False, "drops UDP port 1234"),
        ("drop", "udp dport != 53 accept", True, LET_IN),
        ("drop", "iif lo accept", False, "drops UDP port 1234"),
        ("drop", "ip saddr 10.0.0.0/8 accept", None, "cannot be told from here"),
        ("accept", "jump refuse", False, "drops UDP port 1234"),
        ("accept", "goto ports\ndrop", True, LET_IN),
        ("accept", "counter reject", False, "drops UDP port 1234"),
        ("accept", "udp dport 1234 limit rate 1/second drop", None, "conditions on"),
        ("accept", "udp dport vmap { 1234 : drop }", None, "conditions on"),
    ],
)
def test_whether_nftables_lets_datagrams_in(policy, rules, ok, said):
    check = found(diagnose(FILTER.format(policy=policy, rules=rules)), "packet filter:")
    assert (check["ok"], said in check["what"]) == (ok, True), check
    assert ok or check["remedy"]


@pytest.mark.parametrize(
    ("rules", "ok"),
    [
        ("-P INPUT ACCEPT", True),
        ("-P INPUT DROP", False),
        ("-A INPUT -p udp -m multiport --dports 1,1000:2000 -j DROP", False),
        ("-A INPUT -p udp -m udp --dport 1234 -s 10.0.0.1 -j DROP", None),
        ("-A INPUT -p tcp -j DROP", True),
    ],
)
def test_whether_iptables_lets_datagrams_in(rules, ok):
    without = "mount --bind /dev/null /usr/sbin/nft"
    checks = diagnose(f"{without}\niptables {rules}")
    (check, *_) = [c for c in checks if "packet filter: " in c["what"]]
    assert check["ok"] is ok, check


def test_a_state_directory_that_is_read_only():
    checks = diagnose("mount -t tmpfs -o ro,mode=700 none /var/lib")
    check = found(checks, "state directory")
    assert not check["ok"]
    assert "file system that is read-only" in check["what"]
    assert check["remedy"].startswith("mount it writable, or")


def test_a_packet_filter_that_cannot_be_read_is_not_said_to_be_open():
    check = found(diagnose(run=ROOTLESS), "packet filter: whether")
    assert (check["ok"], check["remedy"]) == (None, "run as root")


# What is around


LINK = "ip link add wan type veth peer name lan\nip link set lan up\nip link set wan up"


def test_others_that_lead_packets_are_named():
    others = (
        "ip rule add pref 100 to 10.0.0.0/8 lookup 99\n"
        "ip tuntap add dev tailscale0 mode tun"
    )
    checks = diagnose(others)
    rule = found(checks, "rule of other software")
    assert "100: from all to 10.0.0.0/8 lookup 99" in rule["what"]
    assert "5209" in rule["remedy"]
    assert "tailscale0 (Tailscale)" in found(checks, "other tunnels")["what"]
    assert found(diagnose(), "no rule of other")["ok"]


@pytest.mark.parametrize(
    ("address", "ok", "said"),
    [
        ("10.1.2.3/24", None, "probably behind one"),
        ("100.64.1.2/24", None, "probably behind one"),
        ("5.6.7.8/24", True, "NAT: none"),
    ],
)
def test_nat_is_guessed_from_the_address_towards_the_internet(address, ok, said):
    gateway = address.rsplit(".", 1)[0] + ".1"
    prepare = (
        f"{LINK}\nip addr add {address} dev wan\nip route add default via {gateway}"
    )
    check = found(diagnose(prepare), "NAT: ")
    assert check["ok"] is ok
    assert said in check["what"]


def test_links_that_are_too_narrow_for_ipv6_inside_are_named():
    checks = diagnose(f"{LINK}\nip link set wan mtu 1300")
    assert found(checks, "wan takes 1300 bytes")["ok"] is None
    assert found(diagnose(LINK), "MTU: lan 1500, wan 1500")["ok"]
    assert found(diagnose(), "no link is up")["remedy"]


def test_clock_and_kernel_are_told():
    checks = diagnose()
    assert found(checks, "clock: ")["ok"]
    assert found(checks, "kernel ")["ok"]


# The way to a peer


def test_the_way_to_a_peer_is_walked_from_name_to_packet(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        one.cli("peers", "add", "vm2", vm2.address)
        steps = walked(one, "vm2")
        assert [about for about, ok in steps.items() if ok is False] == []
        assert steps["session"] is None
        with Daemon(vm2) as two:
            introduce(one, two)
            ping(vm1, vm2.address)
            steps = walked(one, "vm2")
        order = ["address", "socket", "routes", "packet filter", "session", "packets"]
        for about in order:
            assert steps[about], about
        assert [about for about in steps if about in order] == order


def test_the_first_bad_step_is_the_one_to_mend(pair):
    vm1, _ = pair
    with Daemon(vm1) as one:
        one.cli("peers", "add", "far", "203.0.113.9")
        done = one.cli("doctor", "far", check=False)
        assert done.returncode == 1
        bad = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
        assert "no link leads to far" in bad[0]


def walked(daemon, name):
    """What each step is about, and whether it is good."""
    said = json.loads(daemon.cli("doctor", name, "--json").stdout)
    return {step["what"].partition(":")[0]: step["ok"] for step in said["steps"]}
