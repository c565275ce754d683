"""What is done once for each packet, a whole round or run of them in one call.

Ends seal the rounds they send, check the runs they receive, and open what they have
checked; relays check.  In come buffers and the blocks all hashes of a round begin with,
out go buffers, verdicts, and packets for the TUN.  Nothing here knows a session.

There are two kernels with one face, ``Kernel``:

    reference   in Python; says what is done, and does it where there is no other
    kernel.c    the same in C with libcrypto, for nine tenths less of the time

    choice      which of the two is used, and why
    selftest    whether they do the same
    run         datagrams of one round, one after the other, and what was found of them
"""

from alpha_trio.proto.engine.choice import (
    NATIVE,
    Choice,
    NoEngine,
    choose,
    chosen,
    find,
)
from alpha_trio.proto.engine.face import Frame, Joined, Kernel, Span, round_place
from alpha_trio.proto.engine.run import Run, check_run, is_whole, verdicts_on

__all__ = [
    "NATIVE",
    "Choice",
    "Frame",
    "Joined",
    "Kernel",
    "NoEngine",
    "Run",
    "Span",
    "check_run",
    "choose",
    "chosen",
    "find",
    "is_whole",
    "round_place",
    "verdicts_on",
]
