"""The lanes' processes, from their start to their end."""

import subprocess
import sys

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
