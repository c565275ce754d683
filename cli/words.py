"""Sentences, sizes and times for people."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]


SENTENCES = {
    "idle": "at {endpoint}, once there is a packet for it",
    "resolving": "looking up the address of {endpoint}",
    "handshaking": "asking {endpoint}, no answer yet",
    "established": "at {endpoint}, last heard {heard}",
    "silent": "at {endpoint}, silent, last heard {heard}",
    "unreachable": "no answer from {endpoint}; new traffic tries again",
    "key-mismatch": "{endpoint} shows another key than the one known: not trusted",
}


def reached(peer: Document) -> str:
    """One sentence: how the peer is reached, or why it is not."""
    sentence = _sentence(peer).format(
        endpoint=peer["endpoint"] or peer["configured_endpoint"] or peer["name"],
        heard=ago(peer["latest_receive_seconds"]),
    )
    if peer["reason"] and peer["state"] != "key-mismatch":  # `mismatch` says more
        sentence += f" ({peer['reason']})"
    if peer["state"] == "resolving" and peer["configured_endpoint"] == peer["name"]:
        sentence += CALLER_HINT.format(**peer)
    if peer.get("nested"):
        sentence += f"; {peer['nested']}"
    return sentence


def _sentence(peer: Document) -> str:
    if peer["state"] == "idle" and not peer["configured_endpoint"]:
        return "waits to be called"
    return SENTENCES.get(peer["state"], "at {endpoint}")


# Whoever was added without endpoint may be meant to call, and never have an address.
CALLER_HINT = (
    "; if it has no address and is to call, say so by: "
    "alpha-trio peers set {name} --key KEY --allow PREFIX"
)


MTU_SOURCES = {
    "route": "as the link or the route says",
    "probed": "probed on the path",
    "set": "as set by --mtu",
}


def mtu(peer: Document) -> str:
    """The largest inner packet, and how that was found."""
    how = MTU_SOURCES.get(peer["mtu_source"], peer["mtu_source"])
    return f"{peer['mtu']}, {how}"


def early(peer: Document) -> str:
    """Whether small packets to the peer go early, or why not."""
    return f"{peer['early_state']}: {peer['early_text']}"


_NOT_EARLY = frozenset({"off-peer", "off-relay", "lost"})  # though it is wanted here


def not_early(peers: Iterable[Document]) -> Iterator[str]:
    """One sentence for each reason for which somebody else lets nothing go early."""
    names: dict[str, list[str]] = {}
    for peer in peers:
        if peer["early_state"] in _NOT_EARLY:
            names.setdefault(peer["early_text"], []).append(peer["name"])
    for why, whose in names.items():
        yield f"Early data to {_some(whose)} is off: {why}"


_NAMED = 8  # peers in a sentence; all of a thousand would fill the screen


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def place(peer: Document) -> str:
    """The endpoint and port of a peer's settings, as they are typed; may be empty."""
    host, port = peer.get("endpoint") or "", peer.get("port")
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def known_key(peer: Document) -> str:
    """Which key a listed peer must have; the whole of it would fill the line."""
    if not peer.get("key"):
        return ""
    pinned = " (pinned)" if peer["key_source"] == "pinned" else ""
    return f"{fingerprint(peer['key'])}{pinned}"


def trust(key: str | None, contact: str) -> str:
    """One sentence: which key a peer that was just configured must have."""
    if key:
        return f"It must have key {key}."
    return f"Its key will be pinned at the {contact} contact."


def restart_needed(settings: Iterable[str]) -> str:
    """One sentence: what was changed in the config file, and is not so yet."""
    return (
        f"Takes effect at the next start: {', '.join(settings)}; restart the daemon, "
        "as by 'systemctl restart alpha-trio'."
    )


def plain_warning(name: str) -> str:
    return (
        f"alpha-trio: warning: in mode plain the packets of {name} are neither "
        "authenticated nor encrypted; both sides must ask for it"
    )


def mismatch(peer: Document) -> str:
    """What an operator must know about a peer that shows a key not its own."""
    return (
        f"KEY MISMATCH: {peer['name']} shows the key {fingerprint(peer['offered_key'])}"
        f", but the one {peer['key_source']} for it is {fingerprint(peer['key'])}: "
        "either it has a new key, or somebody else answers at its address. Only if "
        "'alpha-trio key show' there prints the same key, accept it by: "
        f"alpha-trio peers set {peer['name']} --key {peer['offered_key']}"
    )


def knocking(host: Document) -> str:
    """Who asks for a session without being a peer, and how to make it one."""
    times = "once" if host["count"] == 1 else f"{host['count']} times"
    return (
        f"Knocking: {host['address']} with the key {host['fingerprint']}, {times}; if "
        "'alpha-trio key show' there prints the same key, accept it by: "
        f"alpha-trio peers add NAME {host['address']} --key {host['key']}"
    )


def relayed(relay: Document) -> str:
    """One sentence: what this relay does for others."""
    policy, sessions = relay["policy"], relay["sessions"]
    unverified = relay["unverified_packets"]
    return (
        f"Relay: {sessions} session{'' if sessions == 1 else 's'}, "
        f"{relay['forwarded_packets']} packets ({amount(relay['forwarded_bytes'])}) "
        f"forwarded{f', {unverified} of them unverified' if unverified else ''}; "
        f"without it the way is {policy['fail']}"
    )


def relayed_end(end: Document) -> str:
    """One end of a relayed session: its address, and which key it has."""
    return f"{end['address'] or 'unknown'} ({end['fingerprint'] or 'no key seen'})"


def fingerprint(key: str) -> str:
    """The same as proto.identity.fingerprint, whose import would cost too much."""
    from hashlib import sha256  # takes 3 ms, and many commands need none

    return sha256(b64decode(key)).hexdigest()[:8]


def mode(peer: Document, became: str = "") -> str:
    """The word that ``--json`` has for the mode, and which form of it rounds take."""
    if peer["mode"] == peer["configured_mode"]:
        return str(peer["mode"])
    return f"{peer['mode']}: {became or peer['configured_mode']}"


def mix(peer: Document) -> str:
    """The modes of a peer's rounds by their share; empty if there was none yet.

    Mode plain has no rounds: those it counts were before.
    """
    if peer["mode"] == "plain":
        return ""
    rounds = peer["rounds"]
    total = sum(rounds.values()) or 1
    shares = {mode: round(100 * count / total) for mode, count in rounds.items()}
    return " ".join(f"{mode} {share}%" for mode, share in shares.items() if share)


def node(hop: Document) -> str:
    """What a node of a path is called here."""
    if hop["role"] == "here":
        return "here"
    return str(hop["name"] or hop["role"])


def trace_lines(trace: Document) -> Iterator[str]:
    """What happened between the nodes of a path, and how far that is to be believed."""
    hops, peer = trace["hops"], trace["peer"]
    seconds = trace["seconds"]
    span = f"In {seconds:g} s" if seconds else "Since the session began"
    yield f"{span}, on the way to {peer}:"
    for here, there, segment in zip(hops, hops[1:], trace["segments"], strict=False):
        where = f"between {place_of_hop(here)} and {place_of_hop(there)}"
        yield f"  {where}: {became(segment)}"
    if hops[-1]["role"] != "peer":
        yield f"{peer} itself did not answer: look behind {place_of_hop(hops[-1])}."
    if any(hop["role"] == "relay" and not hop["name"] for hop in hops):
        yield (
            "Anybody on the way can answer as a relay with a key of its own: compare "
            "with 'alpha-trio key show' there."
        )


def place_of_hop(hop: Document) -> str:
    """By what a node is told from the others in a sentence."""
    return str(hop["address"]) if node(hop) == "relay" else node(hop)


def became(segment: Document | None) -> str:
    """What became of the datagrams between two nodes."""
    if segment is None:
        return "not known, since they did not answer together in time"
    of_all = f"of {segment['packets']:,}"
    missing = [how for how in ("lost", "altered") if segment[how]]
    more = [how for how in ("injected", "repeated") if segment[how]]
    return ", ".join(
        [
            *(f"{segment[how]:,} {of_all} {how}" for how in missing),
            *([] if missing else [f"nothing {of_all} lost"]),
            *(f"{segment[how]:,} {how}" for how in more),
        ]
    )


def event_line(event: Document) -> str:
    """One event, as one line without colour."""
    known = ("event", "peer", "time")
    more = [f"{key}={value}" for key, value in event.items() if key not in known]
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    return " ".join([clock, event["event"], *filter(None, [event["peer"]]), *more])


def duration(seconds: float) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    if minutes:
        return f"{minutes:.0f} min {seconds % 60 // 1:.0f} s"
    return f"{seconds:.1f} s"


def ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def counted(count: int, what: str) -> str:
    """A number of things that get an s when they are many."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def amount(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    if count < 1000:
        return f"{count} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # what rounds to 1000.0 belongs to the next unit
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
