"""The native engine where processor or libcrypto cannot do what they usually can."""

import os
import subprocess
import sys

import pytest

from tests.ground import ROOT

native = pytest.importorskip("alpha_trio.proto.engine._kernel")

# Without AES-NI and PCLMULQDQ, and without SHA-NI; and on ARM without all of them.
WITHOUT = {
    "OPENSSL_ia32cap": "~0x200000200000000:~0x20000000",
    "OPENSSL_armcap": "0",
}
ASK = """
import ctypes, sys
info = ctypes.CDLL(sys.argv[1]).OPENSSL_info
info.restype = ctypes.c_char_p
print(info(1008))
"""


FIND = """
from alpha_trio.proto.engine import find
choice = find("auto")
print(choice.name, choice.why)
"""
# As an administrator's that allows certain algorithms, and forgets AES.
NO_ALGORITHMS = """
openssl_conf = all
[all]
providers = providers
[providers]
null = null
[null]
activate = 1
"""


def said_by(*command, settings=WITHOUT):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_kernels_do_the_same_without_special_instructions():
    settings = said_by("-c", ASK, native.__file__)
    if not settings.startswith(("b'OPENSSL_ia32cap", "b'OPENSSL_armcap")):
        pytest.skip("libcrypto knows no settings for this processor")
    assert " env:" in settings  # it heeds them
    # Its own instructions are left out by the tests that are called False.
    tests = ("tests/proto/engine/test_kernels.py", "-k", "not True")
    pytest_ = ("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
    said = said_by(*pytest_, *tests)
    assert " passed" in said
    assert "skipped" not in said


def test_a_libcrypto_that_may_not_encrypt_is_not_used(tmp_path):
    config = tmp_path / "openssl.cnf"
    config.write_text(NO_ALGORITHMS)
    said = said_by("-c", FIND, settings={"OPENSSL_CONF": str(config)})
    assert said.startswith("python the native one failed its self-test (RuntimeError: ")
    assert "libcrypto has no AES-256-CTR" in said
