"""The programs of docs/examples, and what docs/control.md shows, with real daemons."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.netns.pages import DOCS, Machine, Walk
from tests.netns.traffic import flowing, introduce
from tools.daemons import Daemon, ending

pytestmark = pytest.mark.netns


def run(daemon, *command):
    """A program on the host of a daemon, in its environment."""
    done = daemon.host.run(*command, env=daemon.environment, check=False)
    return done.returncode, done.stdout, done.stderr


def example(name):
    return sys.executable, str(DOCS / "examples" / name)


def test_programs_in_python(pair):
    vm1, vm2 = pair
    page = (DOCS / "control.md").read_text()
    first, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with Daemon(vm1) as one, Daemon(vm2) as two:
        assert run(one, *example("rates.py"), "vm2") == (
            4,
            "",
            "rates.py: no peer is called 'vm2': see 'alpha-trio peers list'\n",
        )
        follower = vm2.popen(
            *example("follow.py"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=two.environment,
        )
        with ending(follower):
            assert follower.stdout.readline() == "listening\n"
            introduce(one, two)
            code, rtt, said = run(one, sys.executable, "-c", first)
            assert code == 0, said
            assert float(rtt) > 0
            line = follower.stdout.readline()
            key = one.status()["key"]
            assert line == f"vm1 is at {vm1.address}:1234, key {key}\n"
            with flowing(vm1, vm2, vm2.address):
                code, rate, _ = run(one, *example("rates.py"), "vm2", "1")
            assert code == 0
            assert float(re.match(r"vm2: sent ([\d.]+) kB/s", rate)[1]) > 0
            two.stop()
            assert follower.stdout.read().startswith("follow.py: the daemon at")
            assert follower.wait() == 1


def test_a_program_in_perl(pair):
    with ExitStack() as ends:
        vm1 = Machine(pair[0], ends)
        vm1.service("start")
        vm1.write("/root/control.pl", (DOCS / "examples/control.pl").read_text())
        Walk("control.md", vm1).follow("A client in another language")
