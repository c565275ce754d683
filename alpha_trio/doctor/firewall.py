"""Whether this host's packet filter lets the tunnel's datagrams in.

Its rules are followed as for a datagram of somebody new to our port.  What a rule asks
beside protocol and port is not known, so three answers are possible: it comes in, it
does not, or it depends.  What stands on the way to this host cannot be told from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from attrs import define, field, frozen

from alpha_trio.doctor.finding import Check
from alpha_trio.net import netfilter

_DEEPEST = 16  # chains that lead to one another; the kernel's own limit
_OPEN_UP = {
    "firewalld": "firewall-cmd --permanent --add-port={port}/udp, then --reload",
    "ufw": "ufw allow {port}/udp",
}


class Fate(StrEnum):
    """What becomes of a datagram."""

    IN = "in"
    OUT = "out"
    DEPENDS = "depends"


@frozen
class Rule:
    """What a rule says of a datagram of somebody new to our port."""

    meant: bool | None  # None: depends on what is not known
    verdict: str  # accept, drop, return or nothing of these
    target: str = ""  # the chain where it goes on
    returns: bool = True  # and whether it comes back from there
    answers: bool = False  # it is about what this host has asked for


@define
class Chain:
    """Rules in order; ``policy`` is that of one in which packets begin."""

    table: str
    name: str
    policy: str = ""
    rules: list[Rule] = field(factory=list)


Chains = Mapping[tuple[str, str], Chain]


def checks(port: int) -> Iterator[Check]:
    """One finding for each chain that does not simply let our port in, or one for all.

    What is in the way of answers to this host's own datagrams is bad; who is only not
    asked first can still ask.
    """
    chains = _read(port)
    if chains is None:
        yield Check(
            None,
            f"packet filter: whether UDP port {port} is let in cannot be seen",
            "run as root",
        )
        return
    found = [c for c in chains.values() if c.policy]
    closed = [(chain, _fate(chain, chains)) for chain in found]
    closed = [(chain, fate) for chain, fate in closed if fate is not Fate.IN]
    for chain, fate in closed:
        yield _closed(chain, fate, chains, port)
    if not closed:
        yield Check(
            True,
            f"packet filter: this host lets UDP port {port} in; what is on the way "
            "cannot be told from here",
        )


def _closed(chain: Chain, fate: Fate, chains: Chains, port: int) -> Check:
    place = f"chain {chain.name} of table {chain.table}"
    names = f"{chain.table} " + " ".join(name for _, name in chains)
    fixed = next((way for who, way in _OPEN_UP.items() if who in names), None)
    remedy = (fixed or "accept 'udp dport {port}' in it").format(port=port)
    if fate is Fate.DEPENDS:
        return Check(
            None,
            f"packet filter: {place} has conditions on UDP port {port} that cannot be "
            "told from here",
            f"if peers get no answer: {remedy}",
        )
    if any(rule.answers for c in chains.values() for rule in c.rules):
        return Check(
            None,
            f"packet filter: {place} drops UDP port {port} unless this host has asked "
            "first, so peers cannot begin",
            f"{remedy}; or let it begin: alpha-trio peers set NAME --keepalive 25",
        )
    return Check(False, f"packet filter: {place} drops UDP port {port}", remedy)


def _fate(chain: Chain, chains: Chains) -> Fate:
    fate, sure = _follow(chain, chains, 0)
    if fate is None:
        fate = Fate.IN if chain.policy == "accept" else Fate.OUT
    return fate if sure else Fate.DEPENDS


def _follow(chain: Chain, chains: Chains, depth: int) -> tuple[Fate | None, bool]:
    """What its rules decide, None if nothing; and whether no other is possible."""
    possible: set[Fate] = set()
    for rule in chain.rules if depth < _DEEPEST else ():
        if rule.meant is False:
            continue
        decided, sure = _decided(rule, chain, chains, depth)
        if rule.meant and decided not in (None, Fate.DEPENDS):
            return decided, sure and not possible - {decided}
        if decided is not None:
            possible.add(decided)
        if rule.meant and (rule.verdict == "return" or not rule.returns):
            break
    return None, not possible


def _decided(
    rule: Rule, chain: Chain, chains: Chains, depth: int
) -> tuple[Fate | None, bool]:
    if rule.verdict in ("accept", "drop"):
        return (Fate.IN if rule.verdict == "accept" else Fate.OUT), True
    if rule.verdict == "depends":
        return Fate.DEPENDS, True
    target = chains.get((chain.table, rule.target))
    if target is None:
        return None, True
    decided, sure = _follow(target, chains, depth + 1)
    if decided is None and not sure:
        decided = Fate.DEPENDS
    return decided, sure


# --- reading


def _read(port: int) -> Chains | None:
    """All chains by table and name; None if they cannot be seen."""
    chains: dict[tuple[str, str], Chain] = {}
    tools = ["iptables-legacy-save", "ip6tables-legacy-save"]
    if netfilter.has_nft():
        listed = netfilter.output("nft", "-j", "list", "ruleset")
        if not listed:
            return None
        chains |= _of_nft(json.loads(listed)["nftables"], port)
    else:
        tools += ["iptables-save", "ip6tables-save"]
    for tool in filter(netfilter.installed, tools):
        chains |= _of_iptables(netfilter.output(tool), tool, port)
    return chains


def _of_nft(
    listed: Sequence[Mapping[str, Any]], port: int
) -> dict[tuple[str, str], Chain]:
    chains: dict[tuple[str, str], Chain] = {}
    for entry in listed:
        if chain := entry.get("chain"):
            table = f"{chain['family']} {chain['table']}"
            begins = chain.get("hook") == "input" and chain.get("type") == "filter"
            policy = chain.get("policy", "accept") if begins else ""
            if chain["family"] in ("ip", "ip6", "inet"):
                chains[table, chain["name"]] = Chain(table, chain["name"], policy)
        elif rule := entry.get("rule"):
            place = f"{rule['family']} {rule['table']}", rule["chain"]
            if place in chains:
                chains[place].rules.append(_nft_rule(rule.get("expr", []), port))
    return chains


def _nft_rule(parts: Sequence[Mapping[str, Any]], port: int) -> Rule:
    meant: bool | None = True
    verdict, target, returns, answers = "", "", True, False
    for part in parts:
        kind, value = next(iter(part.items()))
        if kind == "match":
            found = _nft_match(value, port)
            answers = answers or "established" in json.dumps(value)
            meant = False if False in (meant, found) else (meant and found)
        elif kind in ("accept", "drop", "return"):
            verdict = kind
        elif kind == "reject":
            verdict = "drop"
        elif kind in ("jump", "goto"):
            target, returns = value["target"], kind == "jump"
        elif kind == "vmap" and "established" in json.dumps(value):
            meant, answers = False, True  # what becomes of connections that are known
        elif kind == "vmap":
            verdict = "depends"
        elif kind in ("xt", "limit"):
            meant = meant and None
    return Rule(meant, verdict, target, returns, answers)


def _nft_match(match: Mapping[str, Any], port: int) -> bool | None:
    """Whether a datagram of somebody new to our port meets a condition."""
    left, right = match["left"], match["right"]
    negated = match.get("op") == "!="
    match left:
        case {"payload": {"protocol": protocol, "field": "dport"}}:
            if protocol not in ("udp", "th"):
                return False
            return _contains(right, port) != negated
        case {"payload": {"protocol": "tcp" | "icmp" | "icmpv6" | "sctp" | "dccp"}}:
            return False
        case {"meta": {"key": "l4proto"}} | {
            "payload": {"field": "protocol" | "nexthdr"}
        }:
            return (_contains(right, "udp") or _contains(right, 17)) != negated
        case {"meta": {"key": "iif" | "iifname"}} if right == "lo":
            return negated
        case {"ct": {"key": "state"}}:
            return ("new" in json.dumps(right)) != negated
    return None


def _contains(right: Any, value: object) -> bool:
    """Whether a set, range or single value of nft has ``value`` in it."""
    match right:
        case {"set": members} | list(members):
            return any(_contains(member, value) for member in members)
        case {"range": [int(first), int(last)]}:
            return isinstance(value, int) and first <= value <= last
    return bool(right == value)


def _of_iptables(saved: str, tool: str, port: int) -> dict[tuple[str, str], Chain]:
    chains: dict[tuple[str, str], Chain] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = f"{line[1:]} of {tool.removesuffix('-save')}"
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            begins = name == "INPUT" and table.startswith(("filter ", "mangle "))
            policy = policy.lower() if begins else ""
            chains[table, name] = Chain(table, name, policy)
        elif line.startswith("-A "):
            _, name, *words = line.split()
            if (table, name) in chains:
                chains[table, name].rules.append(_iptables_rule(words, port))
    return chains


_IPTABLES = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "RETURN": "return",
}


def _iptables_rule(words: Sequence[str], port: int) -> Rule:
    meant: bool | None = True
    verdict, target, returns, answers = "", "", True, False
    options = list(zip(words, [*words[1:], ""], strict=True))
    for option, value in options:
        if option in ("-j", "-g"):
            verdict, returns = _IPTABLES.get(value, ""), option == "-j"
            target = "" if verdict else value
            continue
        if not option.startswith("-") or option in ("-m", "--reject-with"):
            continue
        found: bool | None = None
        if option == "-p":
            found = value in ("udp", "all")
        elif option in ("--dport", "--dports"):
            found = _in_ports(value, port)
        elif option in ("--ctstate", "--state"):
            found = "NEW" in value
            answers = "ESTABLISHED" in value
        elif option == "-i" and value == "lo":
            found = False
        meant = False if False in (meant, found) else (meant and found)
    if "!" in words:
        meant = None
    return Rule(meant, verdict, target, returns, answers)


def _in_ports(text: str, port: int) -> bool:
    for part in text.split(","):
        numbers = [int(number) for number in re.findall(r"\d+", part)]
        if numbers and numbers[0] <= port <= numbers[-1]:
            return True
    return False
