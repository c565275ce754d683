"""What the host refuses for a while: descriptors, memory, buffers, permissions.

vm1 192.168.10.60 --- vm2 192.168.10.61.  The kernel refuses vm1's daemon for real: by
its limit of open files, lowered from outside, and by strace, which has system calls
fail.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import ExitStack, contextmanager

import pytest

from alpha_trio.errors import AlphaTrioError
from tests.netns.traffic import PATIENCE, add, introduce, peer, ping
from tools.daemons import PROGRAM, Daemon, ending
from tools.lab import wait_until

pytestmark = pytest.mark.netns


@contextmanager
def no_descriptors(daemon):
    """Within the block the daemon can open nothing that it has not open already."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")) + 1
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used, before[1]))
    fill = free(daemon, used)
    with ExitStack() as clients:
        for _ in range(fill):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(daemon.environment["ALPHA_TRIO_SOCKET"])
        yield
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def free(daemon, limit):
    """How many descriptors below ``limit`` are not in use."""
    return limit - len(os.listdir(f"/proc/{daemon.pid}/fd"))


def is_routed(host, far):
    """Whether what goes there takes the tunnel."""
    way = host.run("ip", "route", "get", far, "ipproto", "udp", check=False)
    return "dev alpha0" in way.stdout


def health(daemon):
    """What ``status`` says of the host; nothing if another client took our place."""
    try:
        return daemon.status()["health"]
    except ConnectionResetError:
        return []


def refusal_of_a_peer(daemon):
    """Why it adds none; "" if another client took our place."""
    try:
        add(daemon, "vm3", "192.168.10.62", allow=["10.3.0.0/16"])
    except ConnectionResetError:
        return ""
    except AlphaTrioError as error:
        return str(error)
    raise AssertionError("it was added")


def disturb(host, far):
    """Take away what leads into the tunnel, so that the daemon has to put it back."""
    host.run("ip", "rule", "flush", "protocol", "161")
    host.run("ip", "rule", "add", "pref", "9", "to", "10.99.0.1", "lookup", "9")
    host.run("ip", "rule", "del", "pref", "9")


def test_without_descriptors_packets_go_on_and_status_says_why(pair):
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        introduce(one, two)
        ping(vm1, vm2.address)
        with no_descriptors(one):
            disturb(vm1, vm2.address)
            ping(vm1, vm2.address, count=5, check=False)
            wait_until(lambda: any("LimitNOFILE" in h for h in health(one)), "a word")
            wait_until(lambda: "open files" in refusal_of_a_peer(one), "a refusal")
            two.cli("status")
        wait_until(lambda: is_routed(vm1, vm2.address), "rules again")
        wait_until(lambda: one.status()["health"] == [], "all is well")
        ping(vm1, vm2.address, count=5)
        assert peer(one, "vm2")["state"] == "established"
        assert "Traceback" not in one.log


def test_clients_that_stay_take_no_descriptor_that_is_needed(pair):
    vm1, vm2 = pair
    one = Daemon(vm1)
    few = ("prlimit", "--nofile=64:64", str(PROGRAM), "run", "--config")
    with Daemon(vm2) as two, one.log_file.open("a") as log, ExitStack() as clients:
        process = vm1.popen(
            *few, str(one.config_file), stdout=log, stderr=log, env=one.environment
        )
        clients.enter_context(ending(process))
        one.wait_log("Binding")
        wait_until(lambda: os.path.exists(one.environment["ALPHA_TRIO_SOCKET"]), "it")
        introduce(one, two)
        ping(vm1, vm2.address)
        for _ in range(100):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(one.environment["ALPHA_TRIO_SOCKET"])
        disturb(vm1, vm2.address)
        wait_until(lambda: is_routed(vm1, vm2.address), "rules again")
        ping(vm1, vm2.address)
        assert one.status()["health"] == []
        assert process.poll() is None


@pytest.mark.cold
def test_the_soft_limit_of_open_files_is_raised(pair):
    vm1, _ = pair
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limit[0]), limit[1]))
        with Daemon(vm1) as one:
            soft, hard = resource.prlimit(one.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert soft == (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096))


# Not recv: Trio reads by it the byte by which a thread tells that it is done, for which
# no kernel needs memory, and ends where that fails.
REFUSALS = [
    ("recvmsg", errno.ENOMEM),
    ("recvmsg", errno.ENOBUFS),
    ("sendmsg", errno.ENOBUFS),
    ("sendmsg", errno.ENOMEM),
    ("sendmsg", errno.EPERM),
    ("readv", errno.ENOMEM),
    ("writev", errno.ENOMEM),
    ("accept4", errno.ENFILE),
    ("accept4", errno.ENOMEM),
    ("socket", errno.EMFILE),
    ("socket", errno.EACCES),
    ("openat", errno.ENFILE),
    ("openat", errno.EACCES),
    ("bind,connect,sendto", errno.ENOBUFS),
    ("clone,clone3", errno.EAGAIN),
    ("fsync,rename,unlink,unlinkat", errno.ENOSPC),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal[0])
def test_what_system_calls_refuse_for_a_while_ends_nothing(pair, refusal):
    calls, code = refusal
    vm1, vm2 = pair
    with Daemon(vm1) as one, Daemon(vm2) as two:
        add(two, "vm1", vm1.address)
        add(one, "vm2", vm2.address)
        ping(vm1, vm2.address)
        name = errno.errorcode[code]
        traced = vm1.directory / "strace"
        inject = f"inject={calls}:error={name}"
        strace = ("strace", "-f", "-qq", "-o", str(traced), "-e", f"trace={calls}")
        with ending(vm1.popen(*strace, "-e", inject, "-p", str(one.pid))):
            wait_until(lambda: tracer(one.pid), "strace")
            # Once through the tunnel for sure, and once while the rules may be gone.
            some = ("-W", "0.2", "-i", "0.05")
            ping(vm1, vm2.address, *some, count=4, check=False)
            disturb(vm1, vm2.address)
            ping(vm1, vm2.address, *some, count=4, check=False)
            vm1.run("ip", "addr", "add", "192.168.10.77/24", "dev", "eth0")
            if "clone" in calls:  # more names at once than there are idle threads
                one.reload("".join(f'[peers."p{n}.invalid"]\n' for n in range(8)))
            before = refused(traced)
            commands = [
                vm1.popen(str(PROGRAM), *command.split(), env=one.environment)
                for command in ("status", "peers add vm3 192.168.10.62")
            ]
            # They wait where nobody is let in, or no thread can tell that it is done.
            waits = calls in ("accept4", "bind,connect,sendto")
            wait_until(
                lambda: (
                    all(command.poll() is not None for command in commands)
                    or (waits and refused(traced) >= before + 2)
                ),
                "the commands",
            )
        assert refused(traced)
        for command in commands:
            command.wait(PATIENCE)
        one.cli("status")
        wait_until(lambda: one.status()["health"] == [], "all is well", 15)
        wait_until(lambda: is_routed(vm1, vm2.address), "rules again", 15)

        def answered():
            return ping(vm1, vm2.address, "-W", "0.2", check=False)

        wait_until(answered, "an answer", 15)
        # Trio complains if a thread cannot tell that it is done.
        assert "sendto" in calls or "Traceback" not in one.log


def refused(trace):
    """How many system calls strace has had fail so far."""
    return trace.read_text().count("(INJECTED)") if trace.exists() else 0


def tracer(pid):
    with open(f"/proc/{pid}/status") as status:
        return "TracerPid:\t0\n" not in status.read()
