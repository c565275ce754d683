"""What ``doctor NAME`` says of one peer: each thing on the way to it, step by step.

Each subject is a function in WALK, which yields the steps it knows of, in the order in
which a packet meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from attrs import asdict, frozen

from alpha_trio.proto.packets import IPV6_LEAST
from alpha_trio.proto.peers import State
from alpha_trio.registry import Peer
from alpha_trio.settings import Mode

_SHOWN = 4  # addresses and prefixes in one sentence


@frozen
class Step:
    """One fact about the way to a peer."""

    ok: bool | None  # None: it is neither good nor bad
    what: str
    remedy: str = ""  # what to do about it; empty if there is nothing to do


Subject = Callable[[Peer, float], Iterator[Step]]


def walk(peer: Peer, now: float) -> list[dict[str, Any]]:
    """All steps, as plain values."""
    return [asdict(step) for subject in WALK for step in subject(peer, now)]


# Name, address, route


def _name(peer: Peer, now: float) -> Iterator[Step]:
    settings = peer.settings
    name, found = settings.name, ", ".join(map(str, peer.addresses[:_SHOWN]))
    if settings.waits:
        yield Step(None, f"name: {name} has no endpoint, so it has to call this host")
    elif peer.error is not None:
        yield Step(
            False,
            f"name: {settings.host} cannot be used: {peer.error}",
            f"give an address: alpha-trio peers set {name} ADDRESS",
        )
    elif not found:
        yield Step(None, f"name: {settings.host} is being looked up", "wait a moment")
    elif found == settings.host:
        yield Step(True, f"address: {found}, UDP port {settings.port}")
    else:
        yield Step(True, f"name: {settings.host} is {found}, port {settings.port}")


def _tunnelled(peer: Peer, now: float) -> Iterator[Step]:
    """Whether what is meant for the peer takes the tunnel."""
    for trouble in peer.troubles:
        yield Step(False, f"routes: {trouble}")
    if peer.underlay is not None and peer.prefixes and not peer.troubles:
        some = ", ".join(map(str, peer.prefixes[:_SHOWN]))
        more = len(peer.prefixes) - _SHOWN
        yield Step(
            True,
            f"routes: what goes to {some}{f' and {more} more' if more > 0 else ''} "
            "takes the tunnel",
        )


def _link(peer: Peer, now: float) -> Iterator[Step]:
    underlay = peer.underlay
    if underlay is None or underlay.device is None:
        why = underlay.error if underlay is not None else None
        yield Step(
            False,
            f"no link leads to {peer.settings.name}: {why or 'not looked up yet'}",
            f"see 'alpha-trio status {peer.settings.name}'",
        )
        return
    if underlay.source is not None:
        yield Step(True, f"socket: datagrams leave from {underlay.source}")
    yield Step(
        True,
        f"the link, or the route, by {underlay.device} takes packets of "
        f"{underlay.path_mtu} bytes",
    )


def _nested(peer: Peer, now: float) -> Iterator[Step]:
    if peer.nested is not None:
        yield Step(None, str(peer.nested))


# Handshake and session


def _handshake(peer: Peer, now: float) -> Iterator[Step]:
    """Strangers and those with another psk get no answer, so there are many causes."""
    name, found = peer.settings.name, peer.session.statistics(now)
    if found.state is State.KEY_MISMATCH:
        yield Step(
            False,
            f"session: {name} shows another key than it must have",
            f"compare it with 'alpha-trio key show' there; 'alpha-trio status {name}' "
            "has the command that accepts it",
        )
    elif found.state is State.ESTABLISHED:
        yield Step(True, f"session: there is one, {found.handshake_age or 0:.0f} s old")
    elif found.state is State.SILENT:
        yield Step(
            False,
            f"session: there is one, but {name} is silent: {found.reason}",
            "is its daemon running, and nothing new on the way?",
        )
    elif not peer.unanswered:
        yield Step(
            None,
            f"session: there is none ({found.state})",
            f"ask for one: alpha-trio wait {name}",
        )
    if peer.unanswered:
        ours = "there is one here" if peer.settings.psk else "there is none here"
        yield Step(
            False,
            f"session: {peer.settings.name} does not answer handshakes",
            "is it up, and its UDP port reachable; is this host a peer there, with the "
            f"key that 'alpha-trio key show' prints; is the psk the same ({ours})?",
        )


# The path's MTU


def _probes(peer: Peer, now: float) -> Iterator[Step]:
    path, settings = peer.session.path, peer.settings
    if settings.mode is Mode.PLAIN:
        yield Step(
            None,
            "mode plain proves nothing, so nothing is probed: the link is believed",
            f"if large packets get lost: alpha-trio peers set {settings.name} --mtu N",
        )
    elif settings.mtu:
        yield Step(
            None,
            f"the operator has set {settings.mtu} bytes inside, so nothing is probed",
            f"to find it out: alpha-trio peers set {settings.name} --mtu auto",
        )
    elif not path.tried:
        yield Step(
            None,
            "no probe was answered or lost yet",
            f"ask for a session: alpha-trio wait {settings.name}",
        )
    for tried in path.tried:
        yield Step(
            True if tried.result == "arrived" else None,
            f"a probe of {tried.size} bytes, {now - tried.at:.0f} s ago "
            f"({tried.why}): {tried.result}",
        )


def _in_use(peer: Peer, now: float) -> Iterator[Step]:
    session, path = peer.session, peer.session.path
    yield Step(
        True,
        f"in use: {session.mtu} bytes inside, {path.size} outside "
        f"(source: {session.mtu_source})",
    )
    if now < path.grows_at < inf:
        yield Step(None, f"larger ones are tried in {path.grows_at - now:.0f} s")
    underlay = peer.underlay
    if underlay is not None and underlay.mtu != session.mtu and not underlay.error:
        yield Step(
            False,
            f"the routes still have {underlay.mtu} bytes",
            "try again in a second; if it stays so, see 'health' in the status",
        )
    sixes = any(prefix.version == 6 for prefix in peer.prefixes)
    if sixes and session.mtu < IPV6_LEAST:
        yield Step(
            None,
            f"IPv6 counts on {IPV6_LEAST} bytes: what is larger than {session.mtu} "
            f"goes as fragments, {session.counters.split_packets} packets until now",
            "a path that takes more; or IPv4 inside",
        )


# Small packets inside S1


def _early(peer: Peer, now: float) -> Iterator[Step]:
    counters = peer.session.counters
    if peer.goes_early:
        sent, received = counters.early_sent, counters.early_received
        count = f"; {sent} packets sent and {received} received so until now"
        yield Step(True, f"early data: {peer.early_text}{count}")
    else:
        yield Step(None, f"no early data now: {peer.early_text}")


# Packets


def _packets(peer: Peer, now: float) -> Iterator[Step]:
    counters, name = peer.session.counters, peer.settings.name
    sent, received = counters.tx_packets, counters.rx_packets
    if received:
        yield Step(True, f"packets: {sent} sent, {received} received")
    elif sent:
        yield Step(
            None,
            f"packets: {sent} sent, none received",
            f"if answers are missing: 'alpha-trio status' at {name} has what it drops, "
            "and its packet filter sees them come by its own tunnel interface",
        )
    else:
        first = next(iter(peer.prefixes), None)
        target = first.network_address if first is not None else "an address of it"
        yield Step(None, "packets: none was sent yet", f"send one: ping {target}")


WALK: list[Subject] = [
    _name,
    _link,
    _nested,
    _tunnelled,
    _handshake,
    _probes,
    _in_use,
    _early,
    _packets,
]
