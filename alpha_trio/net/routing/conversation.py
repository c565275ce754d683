"""A conversation with the kernel in netlink: a request, and its answer.

What is asked is answered while we wait, so a plain socket does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any, Self

from attrs import define, field

from alpha_trio.net.routing.netlink import (
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
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    SOL_NETLINK,
    Marshal,
    fibmsg,
    ifaddrmsg,
    nla,
    nlmsg,
    rtmsg,
)

_ROOM = 1 << 16  # bytes; the kernel sends half as many at once
_DUMPS = 5  # where somebody changes something without end
_PATIENCE = 10.0  # seconds; others' changes may come first

ADD = NLM_F_CREATE | NLM_F_EXCL
REPLACE = NLM_F_CREATE | NLM_F_REPLACE
"""Flags of a change that puts something there."""


class linkmsg(nlmsg):  # type: ignore[misc]  # pyroute2 has no type information
    """A network interface, as far as we look at it or change it.

    pyroute2's own knows every kind of interface: 28 modules.
    """

    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__pad", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (13, "IFLA_TXQLEN", "uint32"),
        (26, "IFLA_AF_SPEC", "families"),
        (41, "IFLA_GSO_MAX_SIZE", "uint32"),
    )

    class families(nla):  # type: ignore[misc]
        """Settings of one address family each."""

        nla_map = ((socket.AF_INET6, "AF_INET6", "inet6"),)

        class inet6(nla):  # type: ignore[misc]
            """Settings for IPv6."""

            prefix = "IFLA_INET6_"
            nla_map = ((8, "IFLA_INET6_ADDR_GEN_MODE", "uint8"),)


_MESSAGES = {
    RTM_NEWLINK: linkmsg,
    RTM_NEWADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_NEWRULE: fibmsg,
}
"""What the kernel tells, and what a refusal quotes."""


def _reader() -> Any:
    reader = Marshal()
    reader.msg_map = _MESSAGES
    return reader


@define(eq=False)
class Conversation:
    """Questions and changes, about the network namespace of who began it.

    Its calls raise NetlinkError for what the kernel refuses, and OSError if it has no
    memory for the answer or does not give one within 10 s.
    """

    _socket: socket.socket
    _reader: Any = field(factory=_reader)
    _number: int = 0

    @classmethod
    def open(cls) -> Self:
        """Begin one, to be ended by ``with``.  OSError if there is no descriptor."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        opened = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
        try:
            for option in (NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                opened.setsockopt(SOL_NETLINK, option, 1)
            opened.settimeout(_PATIENCE)
            # So the kernel knows us, and we our port, before the first change.
            opened.bind((0, 0))
        except BaseException:
            opened.close()
            raise
        return cls(opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The netlink port that notices of our changes name as their cause."""
        port: int = self._socket.getsockname()[0]
        return port

    def dump(self, kind: int, message: Any) -> list[Any]:
        """Return all there are, of those that ``message`` is about.

        What others change meanwhile may be missing, or in it twice, and the kernel says
        so: then all is asked for again.
        """
        for _ in range(_DUMPS):
            found = self._ask(kind, NLM_F_DUMP, message)
            if not any(each["header"]["flags"] & NLM_F_DUMP_INTR for each in found):
                break
        return found

    def ask(self, kind: int, message: Any, flags: int = 0) -> list[Any]:
        """Have one thing told or changed; return what is told."""
        return self._ask(kind, NLM_F_ACK | flags, message)

    def _ask(self, kind: int, flags: int, message: Any) -> list[Any]:
        self._number += 1
        message["header"] = {
            "type": kind,
            "flags": NLM_F_REQUEST | flags,
            "sequence_number": self._number,
        }
        message.encode()
        self._socket.send(message.data)
        return list(self._answers())

    def _answers(self) -> Iterator[Any]:
        while True:
            for answer in self._reader.parse(self._socket.recv(_ROOM)):
                header = answer["header"]
                if header["sequence_number"] != self._number:
                    continue  # to a question that was given up
                if header["error"] is not None:
                    raise header["error"]
                if header["type"] in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield answer


def put(message: Any, attributes: Mapping[str, Any], **fields: Any) -> Any:
    """Fill in a message and return it; an attribute that is None is left out."""
    given = [(name, value) for name, value in attributes.items() if value is not None]
    return message.setvalue({**fields, "attrs": given})
