"""The control plane: who asks the daemon, and what it answers.

In come requests over a Unix socket; out go documents, events, and calls of the node.
The messages themselves are in wire.py, which clients share: they must not load all of
this.

    server      a task for each client
    listener    the sockets: whose they are, who may connect, what is left of them
    commands    what each command takes, checks, asks of the node, and answers
    status      the document of ``status --json``
    rising      counters that should be quiet, and those that go on rising
    hops        the document of ``trace --json``
    steps       what ``doctor NAME`` says of the way to a peer
"""

from alpha_trio.control.commands import commands_for, questions_for
from alpha_trio.control.hops import trace_document
from alpha_trio.control.listener import cleanup
from alpha_trio.control.rising import Counter, Rising, watch
from alpha_trio.control.server import ControlServer
from alpha_trio.control.status import (
    Reading,
    key_document,
    peer_figures,
    quiet_counts,
    readings,
    status_document,
)
from alpha_trio.control.steps import walk

__all__ = [
    "ControlServer",
    "Counter",
    "Reading",
    "Rising",
    "cleanup",
    "commands_for",
    "key_document",
    "peer_figures",
    "questions_for",
    "quiet_counts",
    "readings",
    "status_document",
    "trace_document",
    "walk",
    "watch",
]
