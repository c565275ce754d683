"""What of the kernel's rules and routes is ours, and what a killed daemon has left."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from alpha_trio.errors import RoutingError
from alpha_trio.net.routing import clamp, inner, marks
from alpha_trio.net.routing.astray import text
from alpha_trio.net.routing.kernel import Installed, Kernel, connect
from alpha_trio.net.routing.plan import (
    LOCAL_TABLE,
    MAIN_TABLE,
    PRIORITIES,
    RELAY_PRIORITIES,
    Action,
    Rule,
    adding_order,
)
from alpha_trio.settings import Settings

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def cleanup(settings: Settings) -> list[str]:
    """Remove what a killed daemon left behind; return a line for each thing removed.

    RoutingError if the daemon, or another one with the same table, still runs.
    """
    with connect(settings.routing.protocol) as kernel:
        left = remnants(kernel, settings, interface=0)
        undo(kernel, left)
    rules, routes = left
    counts = {"routing rules": len(rules), "routes": len(routes)}
    lines = [f"removed {count} {what}" for what, count in counts.items() if count]
    interface = settings.interface
    filters = [*marks.remove(interface), *clamp.remove(interface)]
    return [*lines, *filters, *inner.remove(settings)]


def rules_before(settings: Settings) -> list[str]:
    """Return others' rules that are looked up before ours, as ``ip rule`` shows them.

    Nothing is changed.  RoutingError if the kernel tells none.
    """
    first = settings.routing.priority
    with connect(settings.routing.protocol) as kernel:
        return [
            text(rule)
            for family in _FAMILIES
            for rule, tag in kernel.rules(family)
            if rule.priority < first
            and tag != kernel.tag
            and (rule.action, rule.target) != (Action.LOOKUP, LOCAL_TABLE)
        ]


Remnants = tuple[list[Rule], list[Installed]]


def _tables(settings: Settings, relay: bool) -> Sequence[int]:
    first = settings.routing.table
    return range(first, first + (3 if relay else 2))


def _rules_in_range(
    kernel: Kernel, settings: Settings, relay: bool
) -> list[tuple[Rule, int]]:
    after = settings.routing.priority + PRIORITIES
    first = settings.routing.priority - (RELAY_PRIORITIES if relay else 0)
    return [
        (rule, tag)
        for family in _FAMILIES
        for rule, tag in kernel.rules(family)
        if first <= rule.priority < after
    ]


def _routes(kernel: Kernel, tables: Sequence[int]) -> list[Installed]:
    return [
        route
        for family in _FAMILIES
        for table in tables
        for route in kernel.routes(family, table)
    ]


def tagged(kernel: Kernel, settings: Settings) -> Remnants:
    """Return the rules and routes with our tag in our places."""
    # Those of a relay in any case: the run that left them may have been one.
    found = _rules_in_range(kernel, settings, relay=True)
    rules = [rule for rule, tag in found if tag == kernel.tag]
    tables = _tables(settings, relay=True)
    routes = [r for r in _routes(kernel, tables) if r.tag == kernel.tag]
    return rules, routes


def remnants(kernel: Kernel, settings: Settings, interface: int) -> Remnants:
    """Return what a killed run left; RoutingError if the places are not ours.

    ``interface``: the index of our own, 0 if there is none.
    """
    first, relay = settings.routing.priority, settings.relay.enabled
    for rule, tag in _rules_in_range(kernel, settings, relay):
        if tag != kernel.tag:
            raise RoutingError(
                f"the routing rule of priority {rule.priority} belongs to other "
                f"software: set another priority than {first} under [routing]"
            )
    rules, routes = tagged(kernel, settings)
    ours = set(_tables(settings, relay))
    led = {rule.target for rule in rules if rule.action is Action.LOOKUP}
    others = {
        index: name for index, name in socket.if_nameindex() if index != interface
    }
    for found in _routes(kernel, sorted(ours | led - {MAIN_TABLE})):
        table = found.route.table
        through_another = found.interface in others and not found.route.local
        if found.tag == kernel.tag and through_another:
            raise RoutingError(
                f"another daemon, on interface {others[found.interface]}, routes with "
                f"table {table}: stop it, or set another table and priority under "
                f"[routing]"
            )
        if found.tag != kernel.tag and table in ours:
            raise RoutingError(
                f"the route to {found.route.prefix} in table {table} belongs to other "
                f"software: set another table under [routing]"
            )
    return rules, routes


def undo(kernel: Kernel, remnants: Remnants) -> None:
    rules, routes = remnants
    for rule in sorted(rules, key=adding_order, reverse=True):
        kernel.delete_rule(rule)
    for found in routes:
        kernel.delete_route(found.route)
