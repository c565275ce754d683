"""The lanes' processes, from their start to their end."""

import subprocess
import sys

import pytest

FAILING = """
from alpha_trio.lanes import Crew
from alpha_trio.settings import Settings

crew = Crew.fork(Settings(cores=2))
crew.channels[1].send(b"no call at all")
assert crew.channels[1].recv(1) == b""
crew.end()
"""


def test_a_process_that_fails_says_why():
    command = [sys.executable, "-c", FAILING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("Traceback") == 1
    assert "UnpicklingError" in done.stderr


@pytest.mark.parametrize("most", ["RLIMIT_NOFILE, (20, 20)", "RLIMIT_NPROC, (0, 0)"])
def test_what_the_host_refuses_is_told_in_one_line(most):
    code = f"""
import os, resource
from alpha_trio.errors import StartError
from alpha_trio.lanes import Crew
from alpha_trio.settings import Settings

if os.geteuid() == 0:  # who may have as many processes as he likes
    os.setuid(65534)
resource.setrlimit(resource.{most})
try:
    Crew.fork(Settings(cores=8))
except StartError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot make 8 processes (")
    assert done.stdout.endswith("): set cores to less\n")
