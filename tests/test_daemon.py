"""What the daemon does to its process before it opens anything."""

import json
import subprocess
import sys

SCRIPT = """
import ctypes, json, os, resource
from alpha_trio.daemon import main
from alpha_trio.settings import Settings

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
prctl = ctypes.CDLL(None).prctl
if os.geteuid() == 0:  # without privileges it ends as soon as it has begun
    os.setgroups([])
    os.setresgid(*[65534] * 3)
    os.setresuid(*[65534] * 3)
prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # changing the user has taken it away
_, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
code = main(Settings())
dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
print(json.dumps([code, dumpable, *resource.getrlimit(resource.RLIMIT_CORE)]))
"""


def test_memory_with_keys_is_never_dumped():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert "no permission" in done.stderr
    code, dumpable, *limits = json.loads(done.stdout)
    assert (code, dumpable, limits) == (1, 0, [0, 0])
