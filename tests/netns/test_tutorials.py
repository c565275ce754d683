"""The pages for beginners, each followed from its beginning to its end."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.pages import DOCS, Machine, Walk, compare
from tests.netns.recipes import forward, link, route
from tests.netns.traffic import introduce, peer, ping
from tools.daemons import serving
from tools.lab import wait_until

pytestmark = pytest.mark.netns


@pytest.fixture
def ends(lab):
    """Ends what was entered before the lab ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def walk(ends):
    """A page for these hosts."""
    return lambda page, *hosts: Walk(page, *(Machine(host, ends) for host in hosts))


def test_two_hosts(pair, walk):
    walk("tutorials/two-hosts.md", *pair).follow_all()


def test_site_to_site(lab, ends, walk):
    names = ("pc1", "printer", "gw1", "internet", "gw2", "pc2")
    pc1, printer, gw1, internet, gw2, pc2 = map(lab.host, names)
    gw1.run(*["ip", "link", "add", "eth0", "up", "type", "bridge"])
    gw1.run(*["ip", "addr", "add", "10.50.0.1/24", "dev", "eth0"])
    gw1.ports.append("eth0")
    for host, number in ((pc1, 7), (printer, 9)):
        _, port = lab.connect(host, gw1)
        gw1.run("ip", "link", "set", port, "master", "eth0")
        host.run("ip", "addr", "add", f"10.50.0.{number}/24", "dev", "eth0")
    link(lab, gw2, pc2, "10.60.0.1 10.60.0.7/24")
    link(lab, gw1, internet, "198.51.100.1 198.51.100.254/24")
    link(lab, gw2, internet, "203.0.113.2 203.0.113.254/24")
    forward(internet)
    for host, gateway in (
        (pc1, "10.50.0.1"),
        (pc2, "10.60.0.1"),
        (gw1, "198.51.100.254"),
        (gw2, "203.0.113.254"),
    ):
        route(host, "default", via=gateway)
    page = walk("tutorials/site-to-site.md", pc1, printer, gw1, gw2)
    ends.enter_context(serving(pc2, "tcp", 80, "nc", "-k", "-l", "80"))
    page.follow_all()


def test_road_warrior(lab, walk):
    names = ("laptop", "nat", "internet", "office", "pc2")
    laptop, nat, internet, office, pc2 = map(lab.host, names)
    link(lab, laptop, nat, "192.168.1.7 192.168.1.1/24")
    link(lab, nat, internet, "198.51.100.1 198.51.100.254/24")
    link(lab, office, internet, "203.0.113.2 203.0.113.254/24")
    link(lab, office, pc2, "10.60.0.1 10.60.0.7/24")
    forward(nat, internet)
    nat.run(
        *["nft", "-f", "-"],
        stdin="table ip nat { chain post { type nat hook postrouting priority srcnat;"
        " oifname eth1 masquerade; }; }",
    )
    for host, gateway in (
        (laptop, "192.168.1.1"),
        (nat, "198.51.100.254"),
        (office, "203.0.113.254"),
        (pc2, "10.60.0.1"),
    ):
        route(host, "default", via=gateway)
    page = walk("tutorials/road-warrior.md", laptop, office)
    page.installed("laptop", "office")
    page.follow_all()


def test_a_relay_on_a_router(lab, walk):
    hosts = lab.chain(1)
    stranger = lab.host("stranger")
    link(lab, hosts[1], stranger, "192.168.12.1 192.168.12.9/24")
    route(stranger, "default", via="192.168.12.1")
    page = walk("tutorials/relay.md", *hosts, stranger)
    page.installed("vm1", "r1", "vm2")
    page.follow_all()


def test_backup_and_recovery(lab, walk):
    vm1, vm2, new = lab.lan(3)
    new.name = "new"
    page = walk("backup.md", vm1, vm2, new)
    page.installed("vm1", "vm2", "new")
    one, two = (page.machines[name] for name in ("vm1", "vm2"))
    introduce(one.daemon, two.daemon)
    ping(vm1, vm2.address)
    key = one.daemon.status()["key"]
    page.follow("Back up")

    def replace(former, latter):
        """One host in the place of another, as those beside it notice in time."""
        for host, verb in ((former, "del"), (latter, "add")):
            host.run("ip", "addr", verb, "192.168.10.60/24", "dev", "eth0")
        vm2.run("ip", "neigh", "flush", "all")

    # vm1 burns down; the backup lay elsewhere.
    (backup,) = one.home.glob("*.tar")
    one.service("stop")
    shutil.copy(backup, page.machines["new"].home)
    replace(vm1, new)
    page.follow("Restore on new hardware")
    assert page.machines["new"].daemon.status()["key"] == key
    ping(new, vm2.address)
    # Now with vm1 anew, of which nothing was kept.
    page.machines["new"].service("stop")
    replace(new, vm1)
    shutil.rmtree(one.state)
    one.service("start")
    two.service("restart")  # in place of the minutes until its session ends

    def refused(machine, command):
        def is_refused():
            vm2.run("ping", "-c", "1", "-W", "0.1", vm1.address, check=False)
            return peer(two.daemon, "vm1")["state"] == "key-mismatch"

        wait_until(is_refused, "the new key refused")
        return machine.run(*command.split())

    page.instead["alpha-trio status vm1"] = refused
    page.follow("A key that was lost")
    ping(vm2, vm1.address)
    lost = one.daemon.status()["key"]
    page.follow("A key that was stolen")
    ping(vm2, vm1.address)
    assert len({key, lost, one.daemon.status()["key"]}) == 3
    assert list(one.home.glob("*.stolen")) == []


# The pages themselves


SAID = """alpha-trio 0.1.0 on alpha0, up 2 s
Key: mNt/Ot+m5/swzyRpG4tOkEjFKxSaHVOmpuC1Dl7i8iM= (0040178a)
vm2   established  84 B  at 192.168.10.61:1234"""


@pytest.mark.parametrize(
    "shown",
    [
        [],
        ["..."],
        ["alpha-trio 0.1.0 on alpha0, up 17.3 s", "vm2 established 1 B at ...:1234"],
        ["Key: 59fHvDpiR4nUzb4OtljMM1NIfm+NnW6PPdQiG1LfJG0= (084756ec)"],
        ["...", "vm2   established  ..."],
    ],
)
def test_answers_may_differ_in_what_always_does(shown):
    compare("status", shown, SAID)


@pytest.mark.parametrize(
    "shown",
    [
        ["alpha-trio 0.1.0 on alpha1, up 2 s"],
        ["vm2   handshaking  ..."],
        ["vm2   established  84 B  at 192.168.10.62:1234"],
        ["vm2 established ...", "Key: ..."],
        ["Health: ..."],
    ],
)
def test_other_answers_are_told(shown):
    with pytest.raises(AssertionError, match="status: the page has"):
        compare("status", shown, SAID)


def test_every_page_for_beginners_is_followed():
    text = Path(__file__).read_text()
    pages = [path.relative_to(DOCS) for path in DOCS.glob("tutorials/*.md")]
    assert pages
    assert [page for page in pages if f'"{page}"' not in text] == []
