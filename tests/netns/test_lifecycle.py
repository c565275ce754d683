"""Start, stop, kill and start again: the host is left as it was, peers find back.

vm1 192.168.10.60 --- eth0 === vm2 192.168.10.61
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from alpha_trio.proto.messages import Kind
from tests.netns.traffic import (
    Tap,
    add,
    assert_none_lost,
    assert_only_tunnel,
    drops,
    introduce,
    peer,
    ping,
    prepared,
    send_tcp,
)
from tools.daemons import PROGRAM, Daemon
from tools.lab import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.cold]

SETTLING_SECONDS = 2  # the last rounds still have their timers
IDLE_SECONDS = 2
HANDSHAKE = (Kind.SYN, Kind.ACK, Kind.ACKACK)


def start_and_fail(host, *arguments, config="", code=1):
    """Why ``run`` gives up: the one line it ends with."""
    daemon = Daemon(host, config=config)
    command = (str(PROGRAM), "run", "--config", str(daemon.config_file), *arguments)
    done = host.run(*command, check=False, env=daemon.environment)
    assert done.returncode == code, done.stderr
    errors = [x for x in done.stderr.splitlines() if x.startswith("alpha-trio: ")]
    assert errors == done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr
    return errors[0]


def files_of(host):
    """The files of a host's daemon, but log and config."""
    found = (path for path in host.directory.rglob("*") if not path.is_dir())
    names = {str(path.relative_to(host.directory)) for path in found}
    return names - {"log", "alpha-trio.toml"}


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
@pytest.mark.strict
def test_stop_leaves_the_host_as_it_was(pair, number):
    vm1, vm2 = pair
    before = vm1.snapshot()
    options = ("--address", "10.9.0.1/24", "--address", "fd09::1/64")
    one = Daemon(vm1, *options).start()
    add(one, "vm2", vm2.address, only=["tcp/80", "udp"])
    add(one, "vm3", "192.168.10.62", allow=["10.7.0.0/16", "fd07::/64"])
    add(one, "all", "192.168.10.63", allow=["0.0.0.0/0", "::/0"])
    assert vm1.snapshot() != before
    if number is None:
        one.cli("stop")
    else:
        one.host.run("kill", f"-{number}", str(one.pid))
    assert one.wait(timeout=5) == 0
    assert vm1.snapshot() == before
    assert files_of(vm1) == {"state/host.key", "state/peers.json"}
    assert "Traceback" not in one.log
    asked = r"'stop' from alpha-trio \(process \d+, user 0\)"
    who = asked if number is None else number.name
    assert re.search(f"Received {who}, stopping\\.$", one.log, re.MULTILINE)


def test_stop_while_traffic_flows_and_clients_watch(pair):
    vm1, vm2 = pair
    one = Daemon(vm1).start()
    add(one, "vm2", vm2.address)
    watching = vm1.popen(str(PROGRAM), "monitor", env=one.environment)
    flood = vm1.popen("ping", "-q", "-f", vm2.address)
    wait_until(lambda: drops(one, "vm2").get("queue-full"), "packets to wait in vain")
    assert one.stop(timeout=5) == 0
    assert watching.wait(timeout=5) != 0
    assert flood.poll() is None
    assert "Traceback" not in one.log


def test_more_signals_do_not_cut_the_tidying_short(pair):
    vm1, vm2 = pair
    before = vm1.snapshot()
    one = Daemon(vm1).start()
    add(one, "vm2", vm2.address)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(one.pid, number)
    assert one.wait(timeout=5) == 0
    assert vm1.snapshot() == before


def test_a_signal_during_the_start_stops_it_in_order(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    one = Daemon(vm1, "-v")
    command = (str(PROGRAM), "run", "--config", str(one.config_file))
    with one.log_file.open("w") as log:
        process = vm1.popen(*command, stderr=log, env=one.environment)
    one.wait_log("Successfully opened tun device")
    process.terminate()
    assert process.wait(timeout=5) == 0
    assert vm1.snapshot() == before
    assert files_of(vm1) <= {"state/host.key"}


@pytest.mark.strict
def test_after_kill_9_the_next_start_and_stop_tidy_up(pair):
    vm1, vm2 = pair
    before = vm1.snapshot()
    one = Daemon(vm1).start()
    add(one, "vm2", vm2.address, allow=[vm2.address, "10.7.0.0/16", vm2.address6])
    one.kill9()
    assert vm1.snapshot() != before
    with one:
        assert [p["name"] for p in one.status()["peers"]] == ["vm2"]
    assert vm1.snapshot() == before
    assert files_of(vm1) == {"state/host.key", "state/peers.json"}


@pytest.mark.strict
def test_cleanup_after_kill_9(pair):
    vm1, vm2 = pair
    before = vm1.snapshot()
    one = Daemon(vm1).start()
    add(one, "vm2", vm2.address, allow=[vm2.address, "10.7.0.0/16"])
    refusal = one.cli("cleanup", check=False)
    assert refusal.returncode == 1
    assert "stop" in refusal.stderr
    one.kill9()
    assert "removed" in one.cli("cleanup").stdout
    assert vm1.snapshot() == before
    assert files_of(vm1) == {"state/host.key", "state/peers.json"}
    ping(vm1, vm2.address)
    assert one.cli("status", check=False).returncode == 3


@pytest.fixture
def entered():
    """A directory for sockets that any user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o755)
        yield Path(path)


ASKING = next(group for group in grp.getgrall() if group.gr_gid not in (0, 65534))


def test_a_group_asks_and_kill_9_leaves_nothing_of_its_socket(pair, entered):
    vm1, _ = pair
    one = Daemon(vm1, config=f'status_group = "{ASKING.gr_name}"\n')
    one.environment["ALPHA_TRIO_SOCKET"] = str(entered / "run" / "control.sock")

    def by_nobody(*command, gid=ASKING.gr_gid):
        become = f"setpriv --reuid=nobody --regid={gid} --clear-groups"
        program = (*become.split(), str(PROGRAM), *command)
        return vm1.run(*program, check=False, env=one.environment)

    one.start()
    one.kill9()
    assert len(list(entered.glob("run/*.sock"))) == 2
    with one:
        assert by_nobody("status").returncode == 0
        assert "only ask" in by_nobody("stop").stderr
        assert "no permission" in by_nobody("status", gid=65534).stderr
        assert one.status()["peers"] == []
    assert list(entered.rglob("*.sock")) == []
    one.start()
    one.kill9()
    one.config_file.write_text("")
    with one:  # no longer wanted
        assert [path.name for path in entered.glob("run/*")] == ["control.sock"]
    one.config_file.write_text(f'status_group = "{ASKING.gr_name}"\n')
    one.start()
    one.kill9()
    assert "control-status.sock" in one.cli("cleanup").stdout
    assert list(entered.rglob("*.sock")) == []


def test_cleanup_of_marks_is_told_which_interface_it_was(pair):
    vm1, vm2 = pair
    before = vm1.snapshot()
    config = '[routing]\nbackend = "marks"\n'
    one = Daemon(vm1, "--interface", "tun7", config=config).start()
    add(one, "vm2", vm2.address)
    one.kill9()
    one.cli("cleanup")
    assert vm1.snapshot() != before
    assert "tun7" in one.cli("cleanup", "--interface", "tun7").stdout
    assert vm1.snapshot() == before


def test_a_service_manager_is_told(pair):
    vm1, _ = pair
    place = vm1.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(10)
        one = Daemon(vm1)
        one.environment["NOTIFY_SOCKET"] = str(place)
        with one:
            one.cli("reload")
        told = [manager.recv(100).decode() for _ in range(4)]
    assert told == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_a_watchdog_is_fed_and_told_where_a_stuck_daemon_was(pair):
    vm1, _ = pair
    place = vm1.directory / "notify"
    one = Daemon(vm1)
    one.environment |= {"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "300000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(10)
        one.start()
        told = [manager.recv(100).decode() for _ in range(4)]
        assert told == ["READY=1", *["WATCHDOG=1"] * 3]
        one.host.run("kill", "-ABRT", str(one.pid))  # as systemd does
        assert one.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in one.log
    assert "in main" in one.log
    del one.environment["NOTIFY_SOCKET"]
    with one:
        assert one.status()["health"] == []


def test_a_pipe_where_the_configuration_was_holds_nothing_up(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        one.config_file.unlink(missing_ok=True)
        os.mkfifo(one.config_file)
        done = one.cli("reload", check=False)
        assert done.returncode == 1
        assert "it is no ordinary file" in done.stderr
        ping(vm1, vm2.address)


def test_an_ipv6_address_where_there_is_no_ipv6(pair):
    vm1, _ = pair
    vm1.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    text = start_and_fail(vm1, "--address", "fd09::1/64")
    assert "address fd09::1/64: IPv6 is disabled; enable it by 'sysctl -w" in text


def test_a_state_directory_removed_under_the_daemon(pair):
    vm1, vm2 = pair
    state = vm1.directory / "state"
    with Daemon(vm1) as one:
        add(one, "vm2", vm2.address)
        key = one.status()["key"]
        shutil.rmtree(state)
        (line,) = one.status()["health"]
        assert f"{state} was removed" in line
        one.cli("reload")
        assert one.status()["health"] == []
        one.wait_log("The state directory was removed: restored.")
        one.kill9()
        one.start()
        assert one.status()["key"] == key
        assert [each["name"] for each in one.status()["peers"]] == ["vm2"]


@pytest.mark.parametrize("whole", [False, True], ids=["file", "directory"])
def test_a_control_socket_that_others_remove_comes_back(pair, whole):
    vm1, _ = pair
    with Daemon(vm1) as one:
        control = Path(one.environment["ALPHA_TRIO_SOCKET"])
        for _ in range(2):
            since = len(one.log)
            if whole:
                shutil.rmtree(control.parent)
            else:
                control.unlink()
            one.wait_log(f"put back {control}.", since=since)
            assert one.status()["health"] == []
            assert control.stat().st_mode & 0o777 == 0o600
    assert files_of(vm1) == {"state/host.key"}


# The beginning, when it fails


def test_start_without_privileges(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    rootless = "setpriv --bounding-set=-all --inh-caps=-all"
    nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    for become in (rootless, nobody):
        command = (*become.split(), str(PROGRAM), "run")
        done = vm1.run(*command, check=False)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("alpha-trio: no permission")
        assert "run as root" in line
    assert vm1.snapshot() == before


def test_start_without_the_tun_device(pair):
    line = start_and_fail(prepared(pair[0], "mount -t tmpfs none /dev/net"))
    assert "/dev/net/tun" in line
    assert "modprobe tun" in line


def test_start_with_the_port_taken(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    with vm1.socket() as other:
        other.bind(("", 1234))
        line = start_and_fail(vm1)
    own_name = Path("/proc/self/comm").read_text().strip()
    assert f"UDP port 1234 is taken by {own_name}" in line
    assert f"(process {os.getpid()})" in line
    assert "--port" in line
    with vm1.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", 1234))
        assert "UDP port 1234 is taken" in start_and_fail(vm1)
    assert vm1.snapshot() == before


@pytest.mark.parametrize("port", ["80", "1023"])
def test_start_at_a_port_that_is_not_for_everyone(pair, port):
    vm1, _ = pair
    before = vm1.snapshot()
    bounded = "setpriv --bounding-set=-net_bind_service"
    command = (*bounded.split(), str(PROGRAM), "run", "--port", port)
    environment = Daemon(vm1).environment
    done = vm1.run(*command, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"alpha-trio: no permission for UDP port {port}: choose another one with "
        "--port, or grant CAP_NET_BIND_SERVICE"
    )
    assert "No AF_INET" not in done.stderr
    assert vm1.snapshot() == before


def test_start_with_the_interface_name_taken(pair):
    vm1, _ = pair
    line = start_and_fail(vm1, "--interface", "eth0")
    assert "eth0 exists already" in line
    assert "--interface" in line
    assert "delete" not in line
    for kind, can_be_deleted in (("tun", True), ("tap", False)):
        vm1.run("ip", "tuntap", "add", "dev", f"{kind}7", "mode", kind)
        line = start_and_fail(vm1, "--interface", f"{kind}7")
        assert f"{kind}7 exists already" in line
        assert ("'ip link delete tun7'" in line) == can_be_deleted


def test_start_with_an_address_that_cannot_be_set(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    assert "224.0.0.1/24" in start_and_fail(vm1, "--address", "224.0.0.1/24", code=2)
    in_file = 'addresses = ["224.0.0.1/24"]\n'
    assert "224.0.0.1/24" in start_and_fail(vm1, config=in_file)
    assert vm1.snapshot() == before
    assert files_of(vm1) <= {"state/host.key"}


def test_start_beside_another_daemon(pair):
    vm1, vm2 = pair
    elsewhere = ("--interface", "alpha1", "--port", "1300")
    tables = "[routing]\ntable = 6000\npriority = 6000\n"
    with Daemon(vm1) as one:
        add(one, "vm2", vm2.address)
        before = vm1.snapshot()
        config = one.config_file.read_text()
        line = start_and_fail(vm1)
        assert "in use by another daemon: " in line
        assert f"(process {one.pid}); stop it by 'kill {one.pid}' or" in line
        state = ("--state-dir", str(vm1.directory / "other"))
        assert "another daemon" in start_and_fail(vm1, *elsewhere, *state)
        line = start_and_fail(vm1, *elsewhere, *state, config=tables)
        assert "another daemon answers at" in line
        assert "--socket" in line
        assert vm1.snapshot() == before
        one.config_file.write_text(config)


def test_start_with_a_damaged_state_file(pair):
    vm1, _ = pair
    before = vm1.snapshot()
    state = vm1.directory / "state"
    state.mkdir(mode=0o700)
    (state / "peers.json").write_text("{")
    assert "peers.json: damaged" in start_and_fail(vm1)
    assert vm1.snapshot() == before
    assert (state / "peers.json").read_text() == "{"


def test_start_with_a_bad_config_file(pair):
    config = '[peers.vm2]\nendpoint = "192.168.10.61"\nalow = []\n'
    line = start_and_fail(pair[0], config=config)
    assert "alpha-trio.toml:3: peers.vm2.alow: unknown key" in line


def test_start_with_peers_that_clash_between_file_and_state(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        add(one, "vm2", vm2.address)
    before = vm1.snapshot()
    line = start_and_fail(vm1, config=f'[peers.other]\nendpoint = "{vm2.address}"\n')
    assert re.search(r"other \(from \S+\.toml\) and vm2 \(added by command", line)
    assert "peers.json" in line
    assert vm1.snapshot() == before


@pytest.mark.strict
def test_two_daemons_on_one_host(pair):
    vm1, vm2 = pair
    directory = vm1.directory / "second"
    directory.mkdir()
    tables = "[routing]\ntable = 6000\npriority = 6000\n"
    before = vm1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        third = prepared(vm1, "true")
        third.directory = directory
        options = ("--interface", "alpha1", "--port", "1300")
        with Daemon(third, *options, config=tables) as other:
            add(other, "far", "192.168.10.99", allow=["10.99.0.0/16"])
            ping(vm1, vm2.address)
            assert_none_lost(one, two)
    assert vm1.snapshot() == before


def test_a_host_without_ipv6(pair):
    vm1, vm2 = pair
    for host in pair:
        for scope in ("all", "default"):
            host.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
    before = vm1.snapshot()
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm1) as tap:
        introduce(one, two)
        ping(vm1, vm2.address)
        send_tcp(vm1, vm2, vm2.address)
        assert_only_tunnel(tap.packets())
        one.cli("peers", "add", "six", "fd00:10::66")
        ping(vm1, vm2.address)
    assert vm1.snapshot() == before


# Handshakes and restarts


def test_both_ends_start_at_once(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two, Tap(vm1) as tap:
        introduce(one, two)
        pings = [
            host.popen("ping", "-q", "-c", "20", "-i", "0.01", "-W", "5", to.address)
            for host, to in ((vm1, vm2), (vm2, vm1))
        ]
        assert [process.wait(timeout=20) for process in pings] == [0, 0]
        assert_none_lost(one, two)
        assert peer(one, "vm2")["state"] == peer(two, "vm1")["state"] == "established"
        sent = Counter(p.payload[8] for p in tap.packets() if p.is_tunnel)
        # One or two handshakes; for each of the 80 packets of the two pings a round of
        # its own at most, and the rounds in which either side opens more associations.
        assert sum(sent[kind] for kind in HANDSHAKE) <= 2 * 3
        assert max(sent[kind] for kind in (Kind.S1, Kind.A1, Kind.S2)) <= 80 + 20


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
def test_a_restarted_peer_is_reached_again(pair, end):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        end(two)
        two.start()
        # vm1 still has the session of before, whose packets vm2 does not know.
        wait_until(lambda: ping(vm1, vm2.address, "-W", "1", check=False), "an answer")
        ping(vm2, vm1.address)
        end(two)
        two.start()
        ping(vm2, vm1.address)  # now the restarted one begins
        ping(vm1, vm2.address)


def test_a_peer_that_comes_later_gets_what_waited(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one:
        add(one, "vm2", vm2.address)
        with vm1.socket() as early:
            early.sendto(b"early", (vm2.address, 2323))
            one.wait_log("sending SYN")
            with Daemon(vm2) as two, vm2.socket() as late:
                late.bind((vm2.address, 2323))
                late.settimeout(10)
                add(two, "vm1", vm1.address)
                assert late.recv(100) == b"early"


def test_wait_ends_with_the_session_or_the_time(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(one, "vm2", vm2.address)
        assert one.cli("wait", "vm2", "--timeout", "0.1", check=False).returncode == 5
        assert one.cli("wait", "vm9", check=False).returncode == 4
        waiting = vm1.popen(str(PROGRAM), "wait", "vm2", env=one.environment)
        add(two, "vm1", vm1.address)
        ping(vm1, vm2.address)
        assert waiting.wait(timeout=10) == 0
        one.cli("wait", "vm2")


# Idle


def test_an_idle_daemon_sleeps_and_is_small(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        send_tcp(vm1, vm2, vm2.address)
        time.sleep(SETTLING_SECONDS)
        before = wake_ups(one)
        time.sleep(IDLE_SECONDS)
        assert wake_ups(one) - before <= 3
        assert resident_kib(one) * 1024 < 60e6


def of_process(daemon, key):
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1])


def wake_ups(daemon):
    return of_process(daemon, "voluntary_ctxt_switches")


def resident_kib(daemon):
    return of_process(daemon, "VmRSS")
