"""Clients of the daemon, for programs: a blocking one, and one for Trio.

    >>> from alpha_trio.rpc import Client

    >>> client = Client()
    >>> client.add_peer("vm2", endpoint="192.168.10.61")
    >>> client.wait("vm2", timeout=10)
    >>> print(client.status()["peers"][0]["rtt_ms"])

In goes what is wanted of the daemon; out come documents, events, and the errors of
``alpha_trio.errors``, one line each.  All of ``__all__`` keeps its meaning as long as
the major version stays, and 0.x its minor version; ``docs/control.md`` says more.

Each call has a connection of its own.  So a client holds nothing that would have to be
closed, may lie idle and outlive a restart of the daemon, and can be used by any number
of threads or tasks at once; a call that is given up takes only its own connection with
it.

The command line imports this at every start, so trio is loaded with TrioClient only.

    asking          what is sent, and what goes wrong, for either client
    blocking        Client
    trio_client     TrioClient
"""

from typing import TYPE_CHECKING, Any

from alpha_trio.rpc.asking import Changes, Document, Event, Imported, PeerSettings
from alpha_trio.rpc.blocking import Client
from alpha_trio.wire import DEFAULT_SOCKET

if TYPE_CHECKING:
    from alpha_trio.rpc.trio_client import TrioClient

__all__ = [
    "DEFAULT_SOCKET",
    "Changes",
    "Client",
    "Document",
    "Event",
    "Imported",
    "PeerSettings",
    "TrioClient",
]


def __getattr__(name: str) -> Any:
    if name == "TrioClient":
        from alpha_trio.rpc.trio_client import TrioClient

        return TrioClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
