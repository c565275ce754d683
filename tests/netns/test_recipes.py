"""Each recipe of docs/recipes.md, followed as it is written, and what a user then sees.

The addresses are the page's.  Software that may not be installed is asked for: the
tests that need it are skipped then.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.netns.recipes import Recipe, forward, link, route, titles
from tests.netns.traffic import Tap, assert_only_tunnel, peer, ping, prepared, send_tcp
from tools.daemons import ending, serving
from tools.lab import wait_until

pytestmark = pytest.mark.netns

WEB = 80
TESTED = set()


def needs(*programs):
    """Skips a test where one of these is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@pytest.fixture
def ends(lab):
    """Ends what was entered before the lab ends."""
    with ExitStack() as stack:
        yield stack


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
    vm1.run(*"ip link add docker0 up type bridge".split())
    vm1.run(*"ip addr add 172.17.0.1/16 dev docker0".split())
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
    recipe.follow(0, instead={"docker run": lambda *_: None})
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
        *"ping -c 1 -W 1 -M do -s 1450 192.168.10.61".split(), check=False
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
def bus(ends):
    """A message bus of its own for one host; returns what finds it."""

    def start(host):
        path, settings = host.directory / "bus", host.directory / "bus.conf"
        settings.write_text(BUS.format(path=path))
        command = ("dbus-daemon", f"--config-file={settings}", "--nofork")
        ends.enter_context(ending(host.popen(*command)))
        wait_until(path.exists, "message bus")
        return {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}"}

    return start


@needs("firewalld", "dbus-daemon")
def test_firewalld(lab, ends, bus):
    vm1, vm2 = lab.lan(2)
    recipe = Recipe("firewalld", ends, vm1, vm2)
    recipe.environment = bus(vm1)
    settings = vm1.directory / "firewalld"
    settings.mkdir()
    command = ("firewalld", "--nofork", "--nopid", f"--system-config={settings}")
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
