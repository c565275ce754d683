"""The ground the other tests stand on: hosts appear as promised and leave no trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.daemons import Daemon
from tools.lab import DIRECTORIES, NAMESPACES, Lab, LabError, remove, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.strict]


def traces(name: str) -> list[str]:
    """Namespaces and folders that a lab of this name has on the machine."""
    return [
        path.name
        for place in (NAMESPACES, DIRECTORIES)
        for path in place.iterdir()
        if path.name.startswith(name)
    ]


def test_pair_talks_over_both_families(pair):
    vm1, vm2 = pair
    assert (vm1.address, vm2.address) == ("192.168.10.60", "192.168.10.61")
    assert (vm1.address6, vm2.address6) == ("fd00:10::60", "fd00:10::61")
    vm1.run("ping", "-c", "1", "-W", "2", vm2.address)
    vm2.run("ping", "-c", "1", "-W", "2", vm1.address6)


def test_reverse_path_filter_is_strict_and_sysctl_sets(pair):
    vm1, _ = pair
    assert vm1.sysctl("net.ipv4.conf.eth0.rp_filter") == "1"
    assert vm1.sysctl("net.ipv4.conf.eth0.rp_filter", 2) == "2"
    assert vm1.sysctl("net.ipv4.conf.all.rp_filter") == "1"


def test_socket_belongs_to_the_host(pair):
    vm1, vm2 = pair
    with vm2.socket() as receiver, vm1.socket() as sender:
        receiver.bind((vm2.address, 2323))
        receiver.settimeout(5)
        sender.sendto(b"this is a test", receiver.getsockname())
        data, source = receiver.recvfrom(100)
    assert data == b"this is a test"
    assert source[0] == vm1.address


def test_the_calling_thread_stays_where_it_was(pair):
    before = os.readlink("/proc/thread-self/ns/net")
    inside = pair[0].call(lambda: os.readlink("/proc/thread-self/ns/net"))
    assert inside != before
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_snapshot_is_stable_and_shows_a_change(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    assert "192.168.10.60/24" in before
    assert "rp_filter = 1" in before
    vm1.run("ip", "rule", "add", "to", "192.0.2.1", "lookup", "77")
    assert "192.0.2.1" in vm1.snapshot()
    vm1.run("ip", "rule", "del", "to", "192.0.2.1", "lookup", "77")
    assert vm1.snapshot() == before


def test_more_than_two_hosts_share_a_switch(lab):
    first, _, third = lab.lan(3)
    assert third.address == "192.168.10.62"
    first.run("ping", "-c", "1", "-W", "2", third.address)
    third.run("ping", "-c", "1", "-W", "2", first.address6)


def test_chain_forwards_with_strict_reverse_path_filter(lab):
    vm1, *routers, vm2 = lab.chain(routers=2)
    assert [router.name for router in routers] == ["r1", "r2"]
    assert vm2.address == "192.168.12.61"
    answer = vm1.run("ping", "-c", "1", "-W", "2", vm2.address).stdout
    assert "ttl=62" in answer
    vm2.run("ping", "-c", "1", "-W", "2", vm1.address6)


def test_loss_is_made_and_ended(pair):
    vm1, vm2 = pair
    vm2.lose(1, "icmp type echo-request")
    lost = vm1.run("ping", "-c", "1", "-W", "0.2", vm2.address, check=False)
    assert lost.returncode == 1
    vm1.run("ping", "-c", "1", "-W", "2", vm2.address6)
    vm2.lose(0)
    vm1.run("ping", "-c", "1", "-W", "2", vm2.address)
    assert "lab_loss" not in vm2.snapshot()


def test_rate_is_limited_and_freed(pair):
    vm1, _ = pair
    vm1.limit_rate(10)
    assert "rate 10Mbit" in vm1.run("tc", "qdisc", "show", "dev", "eth0").stdout
    vm1.limit_rate(0)
    assert "tbf" not in vm1.run("tc", "qdisc", "show", "dev", "eth0").stdout


def test_failing_command_is_an_error_with_its_words(pair):
    with pytest.raises(LabError, match="no-such-link"):
        pair[0].run("ip", "link", "show", "no-such-link")
    done = pair[0].run("ip", "link", "show", "no-such-link", check=False)
    assert done.returncode == 1


def test_everything_goes_after_an_exception():
    with pytest.raises(ZeroDivisionError), Lab() as lab:  # noqa: PT012
        vm1, _ = lab.lan(2)
        process = vm1.popen("sleep", "600", stdout=subprocess.PIPE)
        assert traces(lab.name)
        raise ZeroDivisionError
    assert process.returncode == -9
    assert traces(lab.name) == []


def test_a_process_nobody_waits_for_goes_too(pair, lab):
    vm1, _ = pair
    vm1.run("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!")
    pid = vm1.run("ip", "netns", "pids", vm1.namespace).stdout.split()[0]
    lab.close()
    wait_until(lambda: not is_running(pid), "end of the process")


def is_running(pid: str) -> bool:
    """Whether it exists and is not merely waiting to be reaped by its parent."""
    try:
        return ") Z " not in Path("/proc", pid, "stat").read_text()
    except FileNotFoundError:
        return False


def test_the_next_lab_removes_what_a_killed_run_left():
    killed = (
        "import os; from tools.lab import Lab; lab = Lab(); lab.lan(2);"
        "print(lab.name, flush=True); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run(
        [sys.executable, "-c", killed], capture_output=True, text=True, check=False
    )
    left = run.stdout.strip()
    assert len(traces(left)) == 3  # two hosts and their folder
    with Lab():
        assert traces(left) == []


def test_kept_hosts_stay_until_they_are_removed():
    with Lab(keep=True) as lab:
        lab.host("vm1")
    try:
        with Lab():
            assert len(traces(lab.name)) == 2
    finally:
        removed = remove(lambda name, _: name == lab.name)
    assert removed == [lab.name]
    assert traces(lab.name) == []


def tool(*arguments):
    command = [sys.executable, "-m", "tools.lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_says_what_it_takes():
    done = tool("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: tools/lab")
    assert "down" in done.stdout
    assert tool("up").returncode == tool("down", "now").returncode == 2


def test_socket_of_either_family_and_kind(pair):
    vm1, vm2 = pair
    with vm2.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
        server.bind((vm2.address6, 8080))
        server.listen()
        with vm1.socket(socket.AF_INET6, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect(server.getsockname())
            connection, peer = server.accept()
            connection.close()
    assert peer[0] == vm1.address6


def test_daemon_starts_answers_and_leaves_the_host_as_it_was(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    with Daemon(vm1, "-v") as daemon:
        assert daemon.status()["port"] == 1234
        assert "1234" in daemon.cli("status", "--json").stdout
        assert vm1.snapshot() != before
        daemon.wait_log("Binding listening socket to port 1234")
    assert vm1.snapshot() == before


def test_killed_daemon_starts_again_on_its_state(pair):
    vm1, vm2 = pair
    daemon = Daemon(vm1).start()
    daemon.cli("peers", "add", "vm2", vm2.address)
    daemon.kill9()
    with daemon:
        assert [peer["name"] for peer in daemon.status()["peers"]] == ["vm2"]


def test_daemon_reads_its_config_file_again(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as daemon:
        assert daemon.status()["peers"] == []
        daemon.reload(f'[peers.vm2]\nendpoint = "{vm2.address}"\n')
        wait_until(lambda: daemon.status()["peers"], "the peer")


def test_daemon_that_does_not_start_is_quoted(pair):
    with pytest.raises(LabError, match=r"did not start\n.*no-such-key"):
        Daemon(pair[0], config="no-such-key = 1").start()
