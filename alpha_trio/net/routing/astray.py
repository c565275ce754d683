"""Whether packets go where the plan leads them, and if not, who leads them astray.

Rules of other software before ours decide before ours do, and nothing fails: packets
leave outside of the tunnel while both ends say that all is well.  So the plan is not
believed but checked, by asking the kernel for each prefix as a packet would be asked
for.  Pure: questions out, answers in, sentences out.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from attrs import frozen

from alpha_trio.net.routing.plan import (
    LOCAL_TABLE,
    MAIN_TABLE,
    PRIORITIES,
    Action,
    PeerRoute,
    Plan,
    Rule,
    peer_table,
)
from alpha_trio.net.routing.questions import LOCAL, Answer, Question
from alpha_trio.settings import Backend, IPAddress, IPNetwork, Settings

_DEFAULT_TABLE = 253
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_ASKABLE = (_TCP, _UDP, _ICMP, _ICMP6)  # the kernel takes no other protocol
_REFUSALS = (Action.BLACKHOLE, Action.UNREACHABLE, Action.PROHIBIT)

# Where somebody's more specific route is least likely (RFC 5737, RFC 3849).
_EXAMPLES = tuple(map(ip_address, ("192.0.2.1", "2001:db8::1")))

_TABLES = {LOCAL_TABLE: "local", MAIN_TABLE: "main", _DEFAULT_TABLE: "default"}
_OWNERS = {16: "dhcp", 18: "keepalived", 42: "babel", 11: "zebra", 12: "bird"}
_OWNERS |= {186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp"}


@frozen
class Way:
    """One prefix of a peer, and a packet that goes there."""

    prefix: IPNetwork
    question: Question
    whole: bool  # a more specific route of the host's is to win


def ways(
    settings: Settings, peer: PeerRoute, plan: Plan, home: Iterable[IPAddress]
) -> Iterator[Way]:
    """What to ask of a peer; ``home``: our addresses that a packet can come from."""
    table = peer_table(settings, peer)
    routing, home = settings.routing, set(home)
    mark = routing.mark if routing.backend is Backend.MARKS else 0
    protocol, dport = _TCP, 0
    by_rule = table != routing.table
    if by_rule:
        known = [s for s in peer.only if s.protocol in _ASKABLE]
        if not known:
            return
        protocol, ports = known[0].protocol, known[0].ports
        dport = max(ports[0], 1) if ports else 0
    for prefix in peer.prefixes:
        route = plan.routes.get((table, prefix))
        if route is not None:
            source = route.source if route.source in home else None
            question = Question(_someone_in(prefix), source, protocol, dport, mark)
            yield Way(prefix, question, whole=not by_rule)


def _someone_in(prefix: IPNetwork) -> IPAddress:
    if prefix.num_addresses == 1:
        return prefix.network_address
    for example in _EXAMPLES:
        if example.version == prefix.version and example in prefix:
            return example
    return prefix.network_address + 1


def leads_in(way: Way, answer: Answer, interface: int, blamed: bool) -> bool:
    """Whether the packet takes the tunnel, or rightly does not.

    ``blamed``: a rule before ours has decided.
    """
    if answer.error:  # unless by a more specific route of the host's, as aggregates are
        return way.whole and way.prefix.num_addresses > 1 and not blamed
    if answer.kind == LOCAL:
        return True  # our own address, which is told elsewhere
    more_specific = way.whole and answer.length > way.prefix.prefixlen
    return answer.interface == interface or more_specific


@frozen
class Others:
    """The rules of other software, and where ours are."""

    rules: Sequence[tuple[Rule, int]]  # with their tags; in the order of look-up
    first: int  # our first priority

    def culprit(self, question: Question, answer: Answer) -> tuple[Rule, int] | None:
        """Return the rule before ours that gave an answer; None if it was none."""
        before = [
            (rule, tag)
            for rule, tag in self.rules
            if rule.family == question.family
            and rule.priority < self.first
            and matches(rule, question)
        ]
        for rule, tag in before:
            if answer.error and rule.action in _REFUSALS:
                return rule, tag
            looks_up = rule.action is Action.LOOKUP
            if looks_up and not answer.error and rule.target == answer.table:
                return rule, tag
        known = (LOCAL_TABLE, MAIN_TABLE)
        if answer.error:
            for rule, tag in before:
                if rule.action is Action.LOOKUP and rule.target not in known:
                    return rule, tag
        return None

    def sentence(self, what: str, question: Question, answer: Answer, to: str) -> str:
        """Say that packets to ``what`` go ``to``, by whose rule, and what to do."""
        how = f"are refused ({os.strerror(answer.error)})" if answer.error else to
        found = self.culprit(question, answer)
        version = "" if question.family == socket.AF_INET else "-6 "
        if found is None:
            return (
                f"packets to {what} {how}; no rule before ours says so: look at "
                f"'ip {version}rule' and 'ip {version}route get {question.to}'"
            )
        rule, tag = found
        owner = f" (of {_OWNERS[tag]})" if tag in _OWNERS else ""
        ours = rule.priority - PRIORITIES
        remedy = f"move it behind ours, above {self.first + PRIORITIES - 1}"
        if ours > 0:
            remedy += f", or set priority = {ours} under [routing]"
        return (
            f"packets to {what} {how}, by the rule '{text(rule)}'{owner}, which comes "
            f"before ours: {remedy}"
        )


def not_home(address: IPAddress, answer: Answer, others: Others) -> str | None:
    """Say why an address of ours is not led to this host, if it is not."""
    if answer.kind == LOCAL and not answer.error:
        return None
    what = f"{address}, an address of this host,"
    said = others.sentence(what, Question(address), answer, "do not arrive here")
    return f"{said}; the look-up of table local has to come first"


def local_behind(rules: Iterable[tuple[Rule, int]], first: int) -> frozenset[int]:
    """Return the IP versions whose table ``local`` is looked up behind ``first``."""
    before = {
        4 if rule.family == socket.AF_INET else 6
        for rule, _ in rules
        if rule.priority < first and rule == _local_rule(rule)
    }
    return frozenset({4, 6} - before)


def _local_rule(like: Rule) -> Rule:
    return Rule(like.family, like.priority, Action.LOOKUP, LOCAL_TABLE)


def matches(rule: Rule, question: Question) -> bool:
    """Whether a rule says something about a packet of this host's."""
    ports_unknown = rule.sport is not None
    dports = rule.dport
    found = (
        (rule.to is None or question.to in rule.to)
        and _source_matches(rule, question)
        and rule.iif in ("", "lo")
        and not rule.oif
        and not rule.tos
        and rule.protocol in (0, question.protocol)
        and not ports_unknown
        and (dports is None or dports[0] <= question.dport <= dports[1])
        and question.mark & (rule.mask or rule.mark) == rule.mark
        and (rule.uids is None or rule.uids[0] == 0)
    )
    return found != rule.inverted


def _source_matches(rule: Rule, question: Question) -> bool:
    if rule.source is None:
        return True
    return question.source is not None and question.source in rule.source


def text(rule: Rule) -> str:
    """Return a rule as ``ip rule`` shows it."""
    words = [f"{rule.priority}:", "not" if rule.inverted else ""]
    words.append(f"from {rule.source or 'all'}")
    selectors = {
        "to": rule.to,
        "iif": rule.iif,
        "oif": rule.oif,
        "tos": rule.tos,
        "fwmark": _mark(rule),
        "ipproto": rule.protocol,
        "sport": _range(rule.sport),
        "dport": _range(rule.dport),
        "uidrange": _range(rule.uids),
    }
    words += [f"{name} {value}" for name, value in selectors.items() if value]
    if rule.action is Action.LOOKUP:
        words.append(f"lookup {_TABLES.get(rule.target, rule.target)}")
    elif rule.action is Action.GOTO:
        words.append(f"goto {rule.target}")
    else:
        words.append(rule.action.name.lower())
    if rule.suppress is not None:
        words.append(f"suppress_prefixlength {rule.suppress}")
    return " ".join(filter(None, words))


def _mark(rule: Rule) -> str:
    if not rule.mark and not rule.mask:
        return ""
    whole = rule.mask == 0xFFFF_FFFF
    return f"{rule.mark:#x}" if whole else f"{rule.mark:#x}/{rule.mask or rule.mark:#x}"


def _range(numbers: tuple[int, int] | None) -> str:
    if numbers is None:
        return ""
    first, last = numbers
    return str(first) if first == last else f"{first}-{last}"
