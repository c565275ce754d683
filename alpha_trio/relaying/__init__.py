"""The daemon as a relay; imported only on one.

In come others' datagrams, led here by the packet filter; out go those the relay lets
pass, in the name of who sent them, log lines, and a part of ``status``.

    path        the tasks that carry others' packets
    journal     what it tells people
    document    its part of ``status --json``
"""

from alpha_trio.relaying.path import RelayPath

__all__ = ["RelayPath"]
