import re
from pathlib import Path

import pytest

from alpha_trio.net.host import receive_buffer

SIZE = 64 << 20


def resident():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1]) << 10


def test_a_receive_buffer_takes_memory_only_as_far_as_it_is_filled():
    before = resident()
    buffer = receive_buffer(SIZE)
    assert len(buffer) == SIZE
    assert resident() - before < SIZE // 4
    buffer[: SIZE // 2] = bytes(1) * (SIZE // 2)
    assert SIZE // 4 < resident() - before < SIZE * 3 // 4


def test_a_receive_buffer_that_does_not_fit_is_an_oserror():
    with pytest.raises(OSError, match="memory"):
        receive_buffer(1 << 60)
