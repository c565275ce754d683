"""For a daemon under test: clocks that the test moves, as suspend and people do.

Python imports this before anything else when its folder is in PYTHONPATH.  The file
that CLOCKS names holds two doubles: seconds added to CLOCK_BOOTTIME, and to the wall
clock.
"""

import mmap
import os
import struct
import time

_SHIFTS = struct.Struct("=dd")
if path := os.environ.get("CLOCKS"):
    with open(path, "rb") as file:
        _shared = mmap.mmap(file.fileno(), _SHIFTS.size, access=mmap.ACCESS_READ)
    _get, _time = time.clock_gettime, time.time

    def clock_gettime(which):
        shift = _SHIFTS.unpack(_shared)[0] if which == time.CLOCK_BOOTTIME else 0.0
        return _get(which) + shift

    time.clock_gettime = clock_gettime
    time.time = lambda: _time() + _SHIFTS.unpack(_shared)[1]
