"""What we use of pyroute2, without all the rest of it.

The package imports whatever it has at its first import: databases, Wireguard, 9P.  That
would be a seventh of the daemon's start and a tenth of its memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def _only_the_parts_of(package: str) -> Iterator[None]:
    """Let modules of ``package`` be imported without its ``__init__`` being run.

    Who imports the package itself later gets all of it.
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is None:  # somebody has it already, or nobody: then the import says so
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _only_the_parts_of("pyroute2"):
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, nlmsg
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.rtnl import RTM_GETROUTE, rt_type
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = [
    "NLM_F_ACK",
    "NLM_F_REQUEST",
    "RTM_GETROUTE",
    "IPRoute",
    "NetlinkError",
    "nlmsg",
    "rt_type",
    "rtmsg",
]
