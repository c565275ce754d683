"""What we use of pyroute2, without all the rest of it: messages, made and read.

The package imports whatever it has at its first import: databases, Wireguard, 9P.  And
its sockets have an event loop of asyncio each, and import traffic control, other
processes and mocks of themselves.  Together that would be a fifth of the daemon's
memory and a quarter of its start; the socket is our own (``conversation``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
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


# In a version where the parts need the whole, the lines below import the whole.
with suppress(ImportError), _only_the_parts_of("pyroute2"):
    for part in ("marshal", "rtnl.fibmsg", "rtnl.ifaddrmsg", "rtnl.rtmsg"):
        import_module(f"pyroute2.netlink.{part}")

from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    nla,
    nlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    rt_scope,
    rt_type,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = [
    "NETLINK_EXT_ACK",
    "NETLINK_GET_STRICT_CHK",
    "NETLINK_ROUTE",
    "NLMSG_DONE",
    "NLMSG_ERROR",
    "NLM_F_ACK",
    "NLM_F_CREATE",
    "NLM_F_DUMP",
    "NLM_F_DUMP_INTR",
    "NLM_F_EXCL",
    "NLM_F_REPLACE",
    "NLM_F_REQUEST",
    "RTM_DELADDR",
    "RTM_DELROUTE",
    "RTM_DELRULE",
    "RTM_GETADDR",
    "RTM_GETLINK",
    "RTM_GETROUTE",
    "RTM_GETRULE",
    "RTM_NEWADDR",
    "RTM_NEWLINK",
    "RTM_NEWROUTE",
    "RTM_NEWRULE",
    "SOL_NETLINK",
    "Marshal",
    "NetlinkError",
    "fibmsg",
    "ifaddrmsg",
    "nla",
    "nlmsg",
    "rt_scope",
    "rt_type",
    "rtmsg",
]
