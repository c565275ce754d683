"""A daemon of several processes is one to everybody else, and ends as one.

vm1 (cores = 2) has vm2 and vm3 as peers, each in a process of its own.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import DEVNULL

import pytest

from alpha_trio.errors import StartError
from alpha_trio.net.tun import Tun
from alpha_trio.proto.messages import Kind
from tests.netns.test_addresses import renumber
from tests.netns.traffic import (
    PORT,
    Forger,
    Stream,
    Tap,
    add,
    assert_only_tunnel,
    datagrams,
    drops,
    peer,
    ping,
    send_tcp,
    send_udp,
)
from tools.daemons import Daemon
from tools.lab import wait_until

pytestmark = pytest.mark.netns

CORES = "cores = 2\n"


@pytest.fixture
def three(lab):
    """Three hosts, each with the other two as peers; the first has two cores."""
    hosts = lab.lan(3)
    with (
        Daemon(hosts[0], config=CORES) as one,
        Daemon(hosts[1]) as two,
        Daemon(hosts[2]) as three,
    ):
        daemons = one, two, three
        for daemon in daemons:
            for other in daemons:
                if other is not daemon:
                    add(daemon, other.host.name, other.host.address)
        yield daemons


def lanes(daemon):
    """The processes that carry packets."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text()
    return list(map(int, children.split()))


def is_alive(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


def is_even(one, other):
    """Whether what either has sent has come out at the other."""
    there, here = peer(one, other.host.name), peer(other, one.host.name)
    both = [(p["tx_packets"], p["rx_packets"]) for p in (there, here)]
    return both[0] == both[1][::-1]


def cores(daemon):
    return {found["name"]: found["core"] for found in daemon.status()["peers"]}


def test_each_process_has_its_share_of_the_peers_and_all_of_them_are_reached(three):
    one, two, three = three
    assert len(lanes(one)) == one.status()["cores"] == 2
    assert sorted(cores(one).values()) == [0, 1]
    assert lanes(two) == []
    for here, there in ((one, two), (one, three), (three, one), (two, one)):
        with Tap(here.host) as tap:
            ping(here.host, there.host.address, count=2)
            send_tcp(here.host, there.host, there.host.address)
            assert_only_tunnel(tap.packets())
    for other in (two, three):
        there, here = peer(one, other.host.name), peer(other, "vm1")
        assert there["state"] == here["state"] == "established"
        assert there["key"] == other.status()["key"]
        wait_until(lambda other=other: is_even(one, other), "equal counts")
        assert there["drops"] == {}
    assert one.status()["health"] == []
    assert one.log.count("Initiating handshake") == 2


def test_packets_reach_their_peer_by_whichever_queue_they_come(three):
    one, two, three = three
    for other in (two, three):
        ping(one.host, other.host.address)
    # Each flow has a queue by its ports; so both have some that are not theirs.
    for number in range(40):
        other = two if number % 2 else three
        payloads = [b"%d %d" % (number, i) for i in range(3)]
        got = send_udp(one.host, other.host, other.host.address, *payloads)
        assert sorted(got) == payloads
    assert one.status()["drops"] == {}


def test_a_stranger_is_listed_and_let_in_once_he_is_known(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1, config=CORES) as one, Daemon(vm2), Daemon(vm3) as three:
        add(one, "vm2", vm2.address)
        add(three, "vm1", vm1.address)
        ping(vm3, vm1.address, "-W", "1", check=False)
        wait_until(lambda: one.status()["knocking"], "him knocking")
        assert one.status()["knocking"][0]["key"] == three.status()["key"]
        assert "stranger" in drops(one)
        add(one, "vm3", vm3.address)
        ping(vm1, vm3.address)
        assert one.status()["knocking"] == []
        assert cores(one) == {"vm2": 0, "vm3": 1}


def test_a_peer_is_followed_to_another_address(lab):
    vm1, *others = lab.lan(3)
    with (
        Daemon(vm1, "--address", "10.9.0.1/24", config=CORES) as one,
        Daemon(others[0], "--address", "10.9.0.2/24") as two,
        Daemon(others[1], "--address", "10.9.0.3/24") as three,
    ):
        for number, other in enumerate((two, three), start=2):
            name = other.host.name
            add(one, name, other.host.address, allow=[f"10.9.0.{number}"])
            add(other, "vm1", vm1.address, allow=["10.9.0.1"])
            ping(vm1, f"10.9.0.{number}")
        for number, host in enumerate(others, start=2):
            moved = f"192.168.10.{80 + number}"
            renumber(host, f"{host.address}/24", f"{moved}/24")
            ping(host, "10.9.0.1")
            found = f"{moved}:{PORT}"
            wait_until(
                lambda name=host.name, at=found: peer(one, name)["endpoint"] == at,
                f"{host.name} found at {moved}",
            )
            ping(vm1, f"10.9.0.{number}")
            # Who has lost its session and calls from there is known by its key.
            daemon = (two, three)[number - 2]
            daemon.stop()
            daemon.start()
            ping(host, "10.9.0.1")
            assert peer(one, host.name)["endpoint"] == found


def test_peers_come_and_go(three):
    one, two, three = three
    ping(one.host, two.host.address)
    one.request("peers.remove", name="vm2")
    assert list(cores(one)) == ["vm3"]
    ping(one.host, three.host.address)
    add(one, "vm2", two.host.address)
    ping(one.host, two.host.address)
    ping(two.host, one.host.address)
    assert sorted(cores(one).values()) == [0, 1]
    one.request("peers.set", name="vm2", settings={"keepalive": 25})
    wait_until(lambda: peer(two, "vm1")["rx_packets"] >= 2, "what it sent")
    assert peer(one, "vm2")["state"] == "established"


def test_a_trace_tells_of_the_way(three):
    one, two, three = three
    for other in (two, three):
        name = other.host.name
        ping(one.host, other.host.address)
        found = one.cli("trace", name, "--seconds", "0").stdout
        assert "here" in found
        assert other.status()["key"] in found


def test_the_way_to_a_peer_is_walked(three):
    one, two, _ = three
    ping(one.host, two.host.address)
    wait_until(lambda: peer(one, "vm2")["mtu_source"] == "probed", "the MTU")
    assert "a probe of" in one.cli("doctor", "vm2").stdout
    assert "core" in one.cli("status", "vm2").stdout


def test_a_path_that_shrinks_is_found_out(lab):
    vm1, vm2, vm3 = lab.lan(3)
    with Daemon(vm1, config=CORES) as one, Daemon(vm2) as two, Daemon(vm3):
        add(one, "vm3", vm3.address)
        add(one, "vm2", vm2.address)  # in the second process
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        wait_until(lambda: peer(one, "vm2")["mtu_source"] == "probed", "the MTU")
        before = peer(one, "vm2")["mtu"]
        vm1.run("ip", "link", "set", "eth0", "mtu", "1400")
        wait_until(lambda: peer(one, "vm2")["mtu"] == before - 100, "the smaller one")
        route = vm1.run("ip", "route", "get", vm2.address).stdout
        wait_until(lambda: "dev alpha0" in route, "the way into the tunnel")
        send_tcp(vm1, vm2, vm2.address)


def test_a_key_that_one_process_has_pinned_holds_in_all(three):
    one, two, _ = three
    ping(one.host, two.host.address)
    pinned = peer(one, "vm2")["key"]
    one.stop()
    one.start()
    assert peer(one, "vm2")["key"] == pinned
    # What goes early to one that has lost its session is never sent again.
    ping(two.host, one.host.address, count=3)
    assert peer(one, "vm2")["key_source"] == "pinned"


def test_forged_datagrams_reach_no_peer(three):
    one, two, three = three
    for other in (two, three):
        ping(one.host, other.host.address)
    with Tap(one.host) as tap, Forger(two.host, one.host) as forger:
        ping(one.host, two.host.address)
        wait_until(tap.packets, "packets on the link")
        received = peer(one, "vm2")["rx_packets"]
        for size in (1, 8, 16, 40, 100, 1400):
            for kind in range(12):
                forger.send(bytes([kind, 1, 0, 0]) + os.urandom(size), two.host.address)
        wait_until(lambda: sum(drops(one).values()) > 40, "most of it counted")
        assert peer(one, "vm2")["rx_packets"] == received
    for other in (two, three):
        ping(one.host, other.host.address)


def test_a_peer_may_go_while_the_way_to_it_is_traced(three):
    one, two, three = three
    for other in (two, three):
        ping(one.host, other.host.address)
    command = str(one.program), "trace", "vm2", "--seconds", "60"
    quiet = {"env": one.environment, "stdout": DEVNULL, "stderr": DEVNULL}
    with one.host.popen(*command, **quiet) as tracing, Tap(one.host) as tap:
        said = []

        def is_traced():  # nothing else is said again and again
            said.extend(datagrams(tap.packets(), one.host.address))
            return [datagram[0] for datagram in said].count(Kind.S1) > 5

        wait_until(is_traced, "a trace")
        one.request("peers.remove", name="vm2")
        wait_until(lambda: tracing.poll() is not None, "its end")
    ping(one.host, three.host.address)


def test_a_peer_that_falls_silent_is_told_of_at_once(three):
    one, two, _ = three
    ping(one.host, two.host.address)
    one.host.lose(1)
    ping(one.host, two.host.address, "-W", "1", check=False)

    def is_silent():
        return "is silent" in one.cli("doctor", "vm2", check=False).stdout

    wait_until(is_silent, "its silence")
    one.host.lose(0)


@pytest.mark.parametrize("lane", [0, 1])
def test_a_process_that_is_lost_at_the_start_ends_all_of_them(lab, lane):
    (vm1,) = lab.lan(1)
    one = Daemon(vm1, config=CORES)
    with one.log_file.open("a") as log:
        one._process = one._launch(log)
    wait_until(lambda: len(lanes(one)) == 2, "its processes")
    os.kill(lanes(one)[lane], signal.SIGKILL)
    assert one.wait() == 1
    assert f"process {lane} of those that carry packets has ended" in one.log
    assert "Traceback" not in one.log


@pytest.mark.parametrize("lane", [0, 1])
def test_a_process_that_is_lost_ends_all_of_them(lab, lane):
    (vm1,) = lab.lan(1)
    one = Daemon(vm1, config=CORES).start()
    pids = [one.pid, *lanes(one)]
    os.kill(lanes(one)[lane], signal.SIGKILL)
    assert one.wait() == 1
    assert f"process {lane} of those that carry packets has ended" in one.log
    assert "Traceback" not in one.log
    assert not any(map(is_alive, pids))
    assert "alpha0" not in vm1.run("ip", "link").stdout
    assert "5182" not in vm1.run("ip", "rule").stdout


def test_none_of_them_outlives_the_first_one(lab):
    vm1, vm2 = lab.lan(2)
    one = Daemon(vm1, config=CORES).start()
    others = lanes(one)
    one.kill9()
    wait_until(lambda: not any(map(is_alive, others)), "all of them gone")
    assert "alpha0" not in vm1.run("ip", "link").stdout
    with one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address)
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)


@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("end", [Daemon.kill9, Daemon.stop])
def test_one_that_is_stuck_ends_with_the_others(lab, lane, end):
    (vm1,) = lab.lan(1)
    one = Daemon(vm1, config=CORES).start()
    others = lanes(one)
    os.kill(others[lane], signal.SIGSTOP)
    assert not end(one)
    wait_until(lambda: not any(map(is_alive, others)), "all of them gone")
    assert "alpha0" not in vm1.run("ip", "link").stdout


def test_signals_that_all_of_them_get_are_the_first_ones(lab):
    (vm1,) = lab.lan(1)
    with Daemon(vm1, config=CORES) as one:
        for pid in lanes(one):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGHUP)
        assert len(lanes(one)) == 2
        assert one.status()["peers"] == []


def test_a_lost_interface_is_told_in_one_line(lab):
    (vm1,) = lab.lan(1)
    one = Daemon(vm1, config=CORES).start()
    vm1.run("ip", "link", "delete", "alpha0")
    assert one.wait() == 1
    assert one.log.splitlines()[-1].startswith("alpha-trio: the interface alpha0 is")
    assert "Traceback" not in one.log


def test_a_port_that_is_taken_is_told_in_one_line(lab):
    (vm1,) = lab.lan(1)
    with vm1.socket() as taken:
        taken.bind(("", PORT))
        daemon = Daemon(vm1, config=CORES)
        done = vm1.run(
            *(str(daemon.program), "run", "--config", str(daemon.config_file)),
            check=False,
            env=daemon.environment,
        )
    assert done.returncode == 1
    assert f"UDP port {PORT} is taken" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_interface_is_not_shared_with_somebody_else(lab):
    (vm1,) = lab.lan(1)
    # Where /sys shows other interfaces, as here, only the kernel knows.
    ours = vm1.call(lambda: Tun.open("alpha7", queued=True))
    try:
        with pytest.raises(StartError, match="in use by another process"):
            vm1.call(lambda: Tun.open("alpha7", queued=True))
        vm1.call(ours.another).close()
    finally:
        ours.close()


def test_a_relay_has_one_core(lab):
    (vm1,) = lab.lan(1)
    daemon = Daemon(vm1, "--relay", config=CORES)
    done = vm1.run(
        *(str(daemon.program), "run", "--config", str(daemon.config_file), "--relay"),
        check=False,
        env=daemon.environment,
    )
    assert done.returncode != 0
    assert "works on one core only" in done.stderr


def test_large_transfers_of_two_peers_go_side_by_side(three):
    one, two, three = three
    streams = [Stream(one.host, d.host, d.host.address) for d in (two, three)]
    data = os.urandom(1 << 20)
    for _ in range(8):
        for stream in streams:
            stream.client.sendall(data)
    for stream in streams:
        assert stream.finish() == data * 8


def test_metrics_are_of_all_processes(three):
    one, two, three = three
    for other in (two, three):
        ping(one.host, other.host.address, count=3)
    found = one.cli("metrics").stdout.splitlines()
    for name in ("vm2", "vm3"):
        assert (
            f'alpha_trio_peer_transmitted_packets_total{{peer="{name}"}} 3.0' in found
        )
