"""Each recipe of docs/recipes.md, followed as it is written, and what a user then sees.

The addresses are the page's.  Software that may not be installed is asked for: the
tests that need it are skipped then.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.recipes import Recipe, forward, link, route, titles
from tests.netns.traffic import Tap, assert_only_tunnel, ping, prepared, send_tcp
from tools.daemons import ending, serving
from tools.lab import wait_until

pytestmark = pytest.mark.netns

WEB = 80
TCP, UDP = 6, 17


words = str.split  # of a command


def needs(*programs):
    """Skips a test where one of these is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@pytest.fixture
def ends(lab):
    """Ends what was entered before the lab ends."""
    with ExitStack() as stack:
        yield stack


def nothing(*_):
    """What the lab does for a command that it has no need of."""


def listening(host, port=WEB):
    """A server that takes TCP connections within the block."""
    return serving(host, "tcp", port, "nc", "-k", "-l", str(port))


def dropped(recipe, here, there):
    return recipe.peer(here, there)["drops"]


def assert_healthy(recipe):
    """Nothing is lost, and no daemon has a complaint."""
    for daemon in recipe.daemons.values():
        status = daemon.status()
        assert status["health"] == []
        assert [p["reason"] for p in status["peers"]] == [None] * len(status["peers"])
        assert [p["drops"] for p in status["peers"]] == [{}] * len(status["peers"])


# -- containers

# What Docker makes of ``--publish 8080:80``, in the shape of its own rules.
DOCKER = """*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT
-A FORWARD -i docker0 -j ACCEPT
COMMIT
"""


def docker_host(lab, vm1):
    """Docker's bridge on vm1 with one container."""
    vm1.run(*words("ip link add docker0 up type bridge"))
    vm1.run(*words("ip addr add 172.17.0.1/16 dev docker0"))
    web = lab.host("web")
    inside, _ = lab.connect(web, vm1)
    vm1.run("ip", "link", "set", vm1.ports[-1], "master", "docker0")
    web.run("ip", "addr", "add", "172.17.0.2/16", "dev", inside)
    route(web, "default", via="172.17.0.1")
    forward(vm1)
    vm1.run("iptables-restore", "--noflush", stdin=DOCKER)
    return web


@pytest.mark.parametrize("cards", [1, 2])
def test_docker(cards, lab, ends):
    vm1, vm2 = lab.host("vm1"), lab.host("vm2")
    if cards == 2:
        link(lab, vm1, lab.host("storage"), "10.0.0.5 10.0.0.1/24")
    link(lab, vm1, vm2, "192.168.10.60 192.168.10.61/24")
    web = docker_host(lab, vm1)
    recipe = Recipe("Docker", ends, vm1, vm2)
    ends.enter_context(listening(web))
    recipe.follow(0, instead={"docker run": nothing})
    with Tap(vm2) as tap:
        recipe.follow(
            1,
            instead={
                "docker exec web": lambda _, command: (
                    web.run(*command.split()[3:]).stdout
                )
            },
        )
        send_tcp(web, vm2, "192.168.10.61")
        assert_only_tunnel(tap.packets())
    too_large = web.run(
        *words("ping -c 1 -W 1 -M do -s 1450 192.168.10.61"), check=False
    )
    assert f"mtu = {recipe.peer('vm1', 'vm2')['mtu']}" in too_large.stdout
    assert_healthy(recipe)


# What kube-proxy makes of a service with one pod, in the shape of its own rules.
SERVICE = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp --dport 80 -j MARK \
--set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j DNAT \
--to-destination 10.244.2.7:8080
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""


@pytest.mark.strict
@pytest.mark.parametrize("cards", [1, 2])
def test_kubernetes(cards, lab, ends):
    vm1, vm2, pod1, pod2 = map(lab.host, ("vm1", "vm2", "pod1", "pod2"))
    if cards == 2:
        link(lab, vm1, lab.host("storage"), "10.0.0.5 10.0.0.1/24")
    link(lab, vm1, vm2, "192.168.10.60 192.168.10.61/24")
    link(lab, vm1, pod1, "10.244.1.1 10.244.1.5/24")
    link(lab, vm2, pod2, "10.244.2.1 10.244.2.7/24")
    route(pod1, "default", via="10.244.1.1")
    route(pod2, "default", via="10.244.2.1")
    route(vm1, "default", via="192.168.10.61")  # a service address needs some route
    forward(vm1, vm2)
    vm1.run("iptables-restore", "--noflush", stdin=SERVICE)
    recipe = Recipe("Kubernetes and other service addresses", ends, vm1, vm2)
    recipe.follow(0)
    with listening(pod2, 8080), Tap(vm2) as tap:
        recipe.follow(1)
        pod1.run("nc", "-z", "10.96.0.10", "80")
        assert_only_tunnel(tap.packets())
    ping(vm1, "10.244.2.7")
    assert_healthy(recipe)


# -- what else manages the network


BUS = """<busconfig><type>system</type><listen>unix:path={path}</listen>
<policy context="default"><allow user="*"/><allow own="*"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>"""


@pytest.fixture
def bus(ends, tmp_path):
    """A message bus of its own for one host; returns what finds it."""

    def start(host):
        path, settings = tmp_path / "bus", tmp_path / "bus.conf"
        settings.write_text(BUS.format(path=path))
        command = ("dbus-daemon", f"--config-file={settings}", "--nofork")
        ends.enter_context(ending(host.popen(*command)))
        wait_until(path.exists, "message bus")
        return {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}"}

    return start


@needs("firewalld", "dbus-daemon")
def test_firewalld(lab, ends, bus, tmp_path):
    vm1, vm2 = lab.lan(2)
    recipe = Recipe("firewalld", ends, vm1, vm2)
    recipe.environment = bus(vm1)
    command = ("firewalld", "--nofork", "--nopid", f"--system-config={tmp_path}")
    env = recipe.environment
    ends.enter_context(ending(vm1.popen(*command, env=env)))
    state = ("firewall-cmd", "--state")
    wait_until(lambda: vm1.run(*state, env=env, check=False).returncode == 0, "state")
    assert ping(vm2, "192.168.10.60", check=False)
    recipe.follow(0)
    assert "fib saddr" in vm1.run("nft", "list", "table", "inet", "firewalld").stdout
    zone, *_ = recipe.follow(1)
    assert zone.split() == ["alpha0"]
    with listening(vm1, 8080), Tap(vm2) as tap:
        vm2.run("nc", "-z", "192.168.10.60", "8080")
        assert_only_tunnel(tap.packets())
    assert_healthy(recipe)


# A program that keeps its state in /run sees a /run of its own, and a /sys that it may
# only read: so it does not wait for udev.
APART = "mount -o remount,ro /sys && mount -t tmpfs tmpfs /run"


@needs("NetworkManager", "nmcli", "dbus-daemon")
def test_network_manager(lab, ends, bus, tmp_path):
    vm1, vm2 = lab.lan(2)
    recipe = Recipe("NetworkManager", ends, vm1, vm2)
    recipe.environment = bus(vm1)
    recipe.daemons["vm1"].arguments = ("--address", "10.9.0.1/24")
    recipe.start()
    settings, state = tmp_path / "conf.d", tmp_path / "state"
    settings.mkdir()
    state.mkdir()
    manager = prepared(
        vm1,
        f"{APART} && mount --bind {settings} /etc/NetworkManager/conf.d"
        f" && mount --bind {state} /var/lib/NetworkManager",
    )
    (settings / "lab.conf").write_text("[main]\nplugins=keyfile\nno-auto-default=*\n")
    command = ("NetworkManager", "--no-daemon")
    ends.enter_context(ending(manager.popen(*command, env=recipe.environment)))
    ask = "nmcli --get-values GENERAL.STATE device show alpha0"

    def state_of_alpha0():
        return vm1.run(*ask.split(), env=recipe.environment, check=False).stdout

    wait_until(lambda: "connected" in state_of_alpha0(), "an external connection")
    conf = "/etc/NetworkManager/conf.d/alpha-trio.conf"
    (settings / "alpha-trio.conf").write_text(recipe.file(conf))
    recipe.follow(0)
    wait_until(lambda: state_of_alpha0() == "10 (unmanaged)\n", "unmanaged")
    assert_healthy(recipe)


NETWORKS = "/etc/systemd/network/"
NETWORKD = "/lib/systemd/systemd-networkd"
CATCH_ALL = "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\nAddress=10.77.0.9/24\n"


@contextmanager
def networkd(host, log, **files):
    """systemd-networkd, with these files, for as long as the block."""
    place = "/run/systemd/netif"
    write = "".join(
        f' && mkdir -p "$(dirname {path})" && cat > {path} <<"END"\n{text}END\n true'
        for path, text in files.items()
    )
    there = prepared(
        host,
        f"{APART} && mount -t tmpfs tmpfs /etc/systemd"
        f" && mkdir -p {place}/links {place}/leases {place}/lldp"
        f" && chown -R systemd-network /run/systemd{write}",
    )
    with log.open("w") as output, ending(there.popen(NETWORKD, stderr=output)):
        yield


def in_kernel(host):
    """Our rules, and our routes in either family."""
    rules = host.run("ip", "rule").stdout.splitlines()
    routes = host.run("ip", "route", "show", "table", "all", "proto", "161").stdout
    return [rule for rule in rules if "proto 161" in rule], routes


@needs(NETWORKD)
def test_systemd_networkd(lab, ends, tmp_path):
    vm1, vm2 = lab.lan(2)
    recipe = Recipe("systemd-networkd", ends, vm1, vm2)
    recipe.start()
    for one, other in ((vm1, vm2), (vm2, vm1)):
        recipe.daemons[one.name].cli("peers", "add", other.name, other.address)
    ping(vm1, vm2.address)
    ours = in_kernel(vm1)
    log, everything = tmp_path / "log", {NETWORKS + "50-all.network": CATCH_ALL}

    def addresses(link):
        return vm1.run("ip", "-4", "addr", "show", "dev", link).stdout

    with networkd(vm1, log, **everything):
        wait_until(lambda: "10.77.0.9" in addresses("alpha0"), "networkd took it over")
    vm1.run("ip", "addr", "flush", "dev", "alpha0")
    # It may not have got to this one, or have taken it away itself.
    vm1.run("ip", "addr", "del", "10.77.0.9/24", "dev", "eth0", check=False)
    paths = [
        "/etc/systemd/networkd.conf.d/alpha-trio.conf",
        NETWORKS + "10-alpha-trio.network",
    ]
    everything |= {path: recipe.file(path) for path in paths}
    restart = networkd(vm1, log, **everything)
    recipe.follow(
        0, instead={"systemctl": lambda *_: ends.enter_context(restart) or ""}
    )
    wait_until(lambda: "10.77.0.9" in addresses("eth0"), "networkd at work")
    assert "10.77.0.9" not in addresses("alpha0")
    assert "Unknown" not in log.read_text()
    wait_until(lambda: in_kernel(vm1) == ours, "rules and routes as before")
    # An older one, or one without the file, removes what it does not know.
    for rule in ours[0]:
        vm1.run("ip", "rule", "del", "priority", rule.partition(":")[0])
    vm1.run("ip", "route", "flush", "table", "5182")
    wait_until(lambda: in_kernel(vm1) == ours, "all back again")
    ping(vm1, vm2.address)


# -- a routing daemon

EXCHANGED = {"10.9.0.1": "10.9.0.2", "10.9.0.2": "10.9.0.1"}


def exchanged(text):
    """The text for vm2: the same with the two addresses exchanged."""
    return re.sub(r"10\.9\.0\.[12]\b", lambda found: EXCHANGED[found[0]], text)


class Bird:
    """BIRD on both hosts; what ``birdc`` is typed for reaches the right one."""

    def __init__(self, recipe, ends):
        self._recipe = recipe
        for daemon in recipe.daemons.values():
            host = daemon.host
            (host.directory / "empty.conf").write_text("protocol device {}\n")
            socket, pid = host.directory / "bird.sock", host.directory / "bird.pid"
            options = f"-f -c {host.directory}/empty.conf -s {socket} -P {pid}"
            ends.enter_context(ending(host.popen("bird", *options.split())))
            wait_until(socket.exists, f"{host.name}: bird")

    def __call__(self, host, command):
        words = command.removeprefix("birdc ").strip("'")
        if path := re.search('"(/.*)"', words):
            text = self._recipe.file(path[1])
            file = host.directory / "bird.conf"
            file.write_text(exchanged(text) if host.name == "vm2" else text)
            words = words.replace(path[1], str(file))
        done = host.run("birdc", "-s", str(host.directory / "bird.sock"), words)
        assert "error" not in done.stdout, done.stdout
        return done.stdout


@pytest.fixture
def sites(lab):
    """vm1 and vm2 with a network behind each, and a host in each of these."""
    vm1, vm2, here, there = map(lab.host, ("vm1", "vm2", "here", "there"))
    link(lab, vm1, vm2, "192.168.10.60 192.168.10.61/24")
    link(lab, vm1, here, "10.50.0.1 10.50.0.7/24")
    link(lab, vm2, there, "10.60.0.1 10.60.0.7/24")
    route(here, "default", via="10.50.0.1")
    route(there, "default", via="10.60.0.1")
    forward(vm1, vm2)
    return vm1, vm2, here, there


@needs("bird", "birdc")
def test_ospf_with_named_neighbours(sites, ends):
    vm1, vm2, here, _ = sites
    recipe = Recipe("A routing daemon over the tunnel", ends, vm1, vm2)
    recipe.configure("vm1", "vm2")
    config = recipe.daemons["vm2"].config_file
    config.write_text(exchanged(config.read_text()))
    bird = Bird(recipe, ends)
    recipe.follow(0, instead={"birdc": bird})

    def learned():
        return vm1.run(*words("ip route show proto bird")).stdout

    wait_until(lambda: "10.60.0.0/24 via 10.9.0.2" in learned(), "OSPF's route", 20)
    neighbours, routes = recipe.follow(1, instead={"birdc": bird})
    assert "Full" in neighbours
    assert "dev alpha0" in routes
    with Tap(vm2) as tap:
        wait_until(lambda: ping(here, "10.60.0.7", check=False), "a way there and back")
        assert_only_tunnel(tap.packets())
    bird(vm2, "birdc disable backbone")
    wait_until(lambda: "10.60" not in learned(), "the route withdrawn", 20)
    assert here.run(*words("ping -c 1 -W 1 10.60.0.7"), check=False).returncode == 1


@needs("bird", "birdc")
def test_babel_on_a_link_inside(sites, ends):
    vm1, vm2, here, _ = sites
    recipe = Recipe("A routing daemon over the tunnel", ends, vm1, vm2)
    bird = Bird(recipe, ends)
    recipe.follow(2, 3, instead={"birdc": bird})
    find = words("ip route show proto bird")
    wait_until(lambda: "10.60.0.0/24" in vm1.run(*find).stdout, "Babel's route", 20)
    neighbours, routes = recipe.follow(4, instead={"birdc": bird})
    assert "to-vm2" in neighbours
    assert "dev to-vm2" in routes
    # Babel doubts a neighbour it has just found: its routes come and go for a while.
    full = "10.60.0.7", "-W", "1", "-s", "1200", "-M", "do"
    with Tap(vm2) as tap:
        wait_until(lambda: ping(here, *full, check=False), "a way there and back", 20)
        assert_only_tunnel(tap.packets())
    assert_healthy(recipe)


# -- behind routers


def masquerade(host, port="eth1"):
    """Give what leaves by this link its address, in place of those behind."""
    host.run(
        *words("nft -f -"),
        stdin="table ip nat { chain post { type nat hook postrouting priority srcnat;"
        f" oifname {port} masquerade; }}; }}",
    )


def test_both_ends_behind_nat(lab, ends):
    vm1, nat1, internet, nat2, vm2 = map(
        lab.host, ("vm1", "nat1", "internet", "nat2", "vm2")
    )
    link(lab, vm1, nat1, "192.168.1.7 192.168.1.1/24")
    link(lab, nat1, internet, "203.0.113.1 203.0.113.254/24")
    link(lab, vm2, nat2, "192.168.2.7 192.168.2.1/24")
    link(lab, nat2, internet, "198.51.100.2 198.51.100.254/24")
    for host, gateway in (
        (vm1, "192.168.1.1"),
        (nat1, "203.0.113.254"),
        (nat2, "198.51.100.254"),
        (vm2, "192.168.2.1"),
    ):
        route(host, "default", via=gateway)
    forward(nat1, internet, nat2)
    masquerade(nat1)
    masquerade(nat2)
    nat2.run(
        *words("nft -f -"),
        stdin="table ip nat { chain pre { type nat hook prerouting priority dstnat;"
        " iifname eth1 udp dport 1234 dnat to 192.168.2.7; }; }",
    )
    recipe = Recipe("Both ends behind NAT", ends, vm1, vm2)
    recipe.follow(0)
    wait_until(lambda: recipe.peer("vm2", "vm1")["state"] == "established", "vm1 calls")
    recipe.follow(1)
    assert recipe.peer("vm2", "vm1")["endpoint"].startswith("203.0.113.1:")
    send_tcp(vm2, vm1, "10.9.0.1")
    assert_healthy(recipe)
    # Both start again; vm1 still calls first.
    for daemon in recipe.daemons.values():
        daemon.stop()
    for daemon in recipe.daemons.values():
        daemon.start()
    wait_until(lambda: recipe.peer("vm2", "vm1")["state"] == "established", "vm1 calls")
    ping(vm2, "10.9.0.1")


@pytest.mark.strict
def test_default_route_and_ssh(lab, ends):
    vm1, internet, gateway, client = map(
        lab.host, ("vm1", "internet", "gateway", "client")
    )
    link(lab, vm1, internet, "203.0.113.10 203.0.113.1/24")
    link(lab, gateway, internet, "198.51.100.2 198.51.100.1/24")
    link(lab, gateway, internet, "198.18.0.2 198.18.0.1/24")
    link(lab, client, internet, "192.0.2.7 192.0.2.1/24")
    route(vm1, "default", via="203.0.113.1")
    route(client, "default", via="192.0.2.1")
    route(gateway, "203.0.113.0/24", via="198.51.100.1")
    route(gateway, "default", via="198.18.0.1")
    forward(internet)
    title = "A default route through a peer, and SSH to the own address"
    recipe = Recipe(title, ends, vm1, gateway)
    with listening(vm1, 22):
        recipe.follow(0)
        outward, inward = recipe.follow(1)
        assert "dev eth0" in outward
        assert "dev alpha0" in inward
        with Tap(client) as tap:
            client.run("nc", "-z", "203.0.113.10", "22")
            assert {p.source for p in tap.packets() if p.protocol == TCP} == {
                "192.0.2.7",
                "203.0.113.10",
            }
            ping(client, "203.0.113.10")
    with Tap(vm1) as link_of_vm1, Tap(client) as tap:
        with listening(client):
            vm1.run("nc", "-z", "192.0.2.7", str(WEB))
        assert_only_tunnel(link_of_vm1.packets())
        assert "198.18.0.2" in {packet.source for packet in tap.packets()}
    assert_healthy(recipe)


@needs("traceroute")
@pytest.mark.parametrize("family", [4, 6])
def test_traceroute(family, lab, ends):
    vm1, gw1, r1, r2, gw2, vm2 = map(lab.host, ("vm1", "gw1", "r1", "r2", "gw2", "vm2"))
    link(lab, vm1, gw1, "10.50.0.7 10.50.0.1/16", "fd00:50::7 fd00:50::1/64")
    link(lab, gw1, r1, "198.51.100.1 198.51.100.254/24")
    link(lab, r1, r2, "192.0.2.1 192.0.2.2/24")
    link(lab, gw2, r2, "203.0.113.2 203.0.113.254/24")
    link(lab, vm2, gw2, "10.60.0.7 10.60.0.1/16", "fd00:60::7 fd00:60::1/64")
    route(vm1, "default", via="10.50.0.1")
    route(vm1, "default", via="fd00:50::1")
    route(vm2, "default", via="10.60.0.1")
    route(vm2, "default", via="fd00:60::1")
    route(gw1, "default", via="198.51.100.254")
    route(gw2, "default", via="203.0.113.254")
    route(r1, "default", via="192.0.2.2")
    route(r2, "default", via="192.0.2.1")
    forward(r1, r2)
    recipe = Recipe("Traceroute through site to site", ends, vm1, gw1, gw2)
    recipe.follow(0)
    ping(vm1, "10.60.0.7" if family == 4 else "fd00:60::7")
    pages = recipe.follow(1)
    hops = re.findall(r"^ *\d+  (\S+)", pages[family == 6], re.MULTILINE)
    assert (
        hops
        == {
            4: ["10.50.0.1", "10.9.0.2", "10.60.0.7"],
            6: ["fd00:50::1", "fd00:9::2", "fd00:60::7"],
        }[family]
    )
    recipe.daemons.pop("vm1")
    assert_healthy(recipe)


SILENT = """table inet silent { chain out { type filter hook output priority 0;
icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }"""
NARROW = 1280  # bytes, what IPv6 asks of every link


def test_a_path_that_filters_icmp(lab, ends):
    vm1, r1, vm2 = lab.chain(1)
    # vm2's own link looks as wide as ever; what is too large for r1 is lost in silence.
    r1.run(*f"ip link set eth1 mtu {NARROW}".split())
    r1.run(*words("nft -f -"), stdin=SILENT)
    recipe = Recipe("A path that filters ICMP", ends, vm1, vm2)
    recipe.follow(0)
    send_tcp(vm1, vm2, vm2.address)
    status, explained, path = recipe.follow(1)
    found = recipe.peer("vm1", "vm2")
    assert found["mtu"] <= NARROW
    assert found["mtu_source"] == "probed"
    assert f"mtu {found['mtu']}" in path
    assert str(found["mtu"]) in status
    assert "probe" in explained


@contextmanager
def dhcp_server(host, log, addresses):
    """dnsmasq, which leases one address for as long as the block."""
    options = f"--port=0 --no-ping --interface=eth0 --dhcp-range={addresses},2m"
    files = "--leasefile-ro --conf-file=/dev/null --pid-file --log-dhcp --user=root"
    command = ("dnsmasq", "--keep-in-foreground", "--log-facility=-")
    with log.open("w") as output:
        there = host.popen(*command, *options.split(), *files.split(), stderr=output)
        with ending(there):
            wait_until(lambda: "DHCP, IP range" in log.read_text(), "DHCP server")
            yield


@needs("dnsmasq", "busybox")
@pytest.mark.strict
@pytest.mark.parametrize("exempt", [False, True])
def test_dhcp_from_a_peer(exempt, lab, ends, tmp_path):
    vm1, vm2 = lab.host("vm1"), lab.host("vm2")
    link(lab, vm1, vm2, "192.168.10.60 192.168.10.61/24")
    recipe = Recipe("DHCP from a peer", ends, vm1, vm2)
    log = tmp_path / "log"
    ends.enter_context(dhcp_server(vm2, log, "192.168.10.60,192.168.10.60"))
    ask = words("busybox udhcpc -f -i eth0 -s /bin/true")

    def leases():
        return log.read_text().count("DHCPACK(eth0)")

    client = vm1.popen(*ask)
    ends.enter_context(ending(client))
    wait_until(lambda: leases() == 1, "a lease")
    answers = recipe.follow(0, 1, instead={} if exempt else {"ip rule": nothing})
    assert all(("dev eth0" in way) == exempt for way in answers[-2:])
    ping(vm1, "192.168.10.61")
    with Tap(vm2) as tap:

        def asked():
            return (68, 67) in {p.ports for p in tap.packets() if p.protocol == UDP}

        client.send_signal(signal.SIGUSR1)  # half of the lease is over
        wait_until(asked, "the question outside of the tunnel")
    if exempt:
        wait_until(lambda: leases() == 2, "the lease renewed")
    # A broadcast gets through in any case.
    vm1.run(*ask, "-q", "-n")
    assert leases() == 2 + exempt
    assert_healthy(recipe)


# -- roaming


@needs("sshd", "ssh", "ssh-keygen")
def test_ssh_while_roaming(lab, ends, tmp_path):
    vm1, r1, vm2 = lab.host("vm1"), lab.host("r1"), lab.host("vm2")
    link(lab, vm1, r1, "192.168.1.7 192.168.1.1/24")
    link(lab, vm1, r1, "192.168.2.7 192.168.2.1/24")
    link(lab, vm2, r1, "198.51.100.2 198.51.100.1/24")
    route(vm1, "default", via="192.168.1.1")
    route(vm2, "default", via="198.51.100.1")
    forward(r1)
    recipe = Recipe("SSH while roaming", ends, vm1, vm2)
    recipe.follow(0)
    for name in ("host", "user"):
        vm1.run("ssh-keygen", "-q", "-N", "", "-f", str(tmp_path / name))
    server = (
        "/usr/sbin/sshd -D -e -f /dev/null -o UsePAM=no -o StrictModes=no"
        f" -o HostKey={tmp_path}/host -o AuthorizedKeysFile={tmp_path}/user.pub"
    )
    there = prepared(vm2, "mount -t tmpfs tmpfs /run && mkdir /run/sshd")
    ends.enter_context(serving(there, "tcp", 22, *server.split()))
    login = (
        f"ssh -i {tmp_path}/user -o StrictHostKeyChecking=no"
        f" -o UserKnownHostsFile=/dev/null -F /dev/null 10.9.0.2 cat"
    )
    session = vm1.popen(
        *login.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, detached=True
    )
    with session:
        try:
            echo(session, "at home")
            where = recipe.peer("vm2", "vm1")["endpoint"]
            assert where == "192.168.1.7:1234"
            # From one network to the other: the old address is gone at once.
            vm1.run(*words("ip link set eth0 down"))
            vm1.run(*words("ip addr flush dev eth0"))
            route(vm1, "default", via="192.168.2.1")
            echo(session, "on the way")
            assert recipe.peer("vm2", "vm1")["endpoint"] == "192.168.2.7:1234"
            assert "192.168.2.7" in recipe.follow(1)[0]
        finally:
            session.kill()
    assert_healthy(recipe)


def echo(session, line):
    """Type a line in a session whose program repeats it."""
    session.stdin.write(f"{line}\n")
    session.stdin.flush()
    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(session.stdout.readline).result(timeout=20) == f"{line}\n"


def test_every_recipe_is_followed_here():
    text = Path(__file__).read_text()
    assert [title for title in titles() if f'"{title}"' not in text] == []
