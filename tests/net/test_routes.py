"""The plan: what should be in the kernel, without a kernel."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from alpha_trio.errors import RoutingError
from alpha_trio.net.routing import PeerRoute, Underlay
from alpha_trio.net.routing.plan import (
    MAX_LENGTHS,
    PRIORITIES,
    Action,
    Facts,
    inner_mtu,
    plan,
)
from alpha_trio.settings import Backend, RelaySettings, Selection, Settings
from alpha_trio.settings.model import RoutingSettings

TCP, UDP, ICMP = 6, 17, 1
HERE = ip_address("192.168.10.60")
VM2 = ip_address("192.168.10.61")


def peer(*prefixes, name="vm2", endpoint=VM2, only=(), overhead=52, mtu_limit=None):
    networks = tuple(map(ip_network, prefixes))
    return PeerRoute(name, endpoint, networks, only, overhead, mtu_limit)


def plan_for(*peers, settings=None, facts=None, mtu=1448, source=HERE):
    settings = settings or Settings()
    underlays = {p.name: Underlay(mtu, source) for p in peers}
    return plan(settings, peers, underlays, facts or Facts())


def look_ups(made, family=socket.AF_INET):
    """Return table and suppressed length of the look-ups, in order of priority."""
    rules = sorted(made.rules, key=lambda rule: rule.priority)
    return [
        (rule.target, rule.suppress)
        for rule in rules
        if rule.family == family and rule.action is Action.LOOKUP and not rule.to
    ]


def walk(made, *, protocol, sport=0, dport=0, iif="lo", mark=0, source=HERE, version=4):
    """Return the tables a look-up comes to, as the kernel goes through."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    rules = sorted(
        (rule for rule in made.rules if rule.family == family),
        key=lambda rule: rule.priority,
    )
    tables, position = [], 0
    while position < len(rules):
        rule = rules[position]
        position += 1
        matches = (
            rule.iif in ("", iif)
            and (rule.source is None or source in rule.source)
            and rule.protocol in (0, protocol)
            and (rule.sport is None or rule.sport[0] <= sport <= rule.sport[1])
            and (rule.dport is None or rule.dport[0] <= dport <= rule.dport[1])
            and mark & (rule.mask or rule.mark) == rule.mark
        )
        if matches == rule.inverted:
            continue
        if rule.action is Action.GOTO:
            priorities = [other.priority for other in rules]
            position = priorities.index(rule.target)
        elif rule.action is Action.LOOKUP:
            tables.append(rule.target)
    return tables


def test_without_peers_nothing_is_put_there():
    made = plan_for()
    assert made.rules == ()
    assert made.routes == {}
    assert made.mtu == 1448


def test_transparent_peer_is_routed_from_the_address_it_knows():
    made = plan_for(peer("192.168.10.61/32"))
    (route,) = made.routes.values()
    assert (route.table, route.mtu, route.source) == (5182, 1448, HERE)
    assert look_ups(made) == [(5182, 31)]


def test_own_udp_and_what_arrives_of_the_peers_pass_by():
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    assert walk(made, protocol=UDP, sport=1234, dport=1234) == []
    assert walk(made, protocol=UDP, sport=1234, dport=40000) == []
    assert walk(made, protocol=UDP, sport=40000, dport=1234) == [5182]
    # Somebody else's UDP that happens to have the port is ordinary traffic.
    assert walk(made, protocol=UDP, sport=1234, dport=1234, iif="eth0") == [5182]


def test_what_icmp_says_of_own_udp_passes_by():
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    assert walk(made, protocol=UDP, mark=0x182) == []


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, 2, 41, 47, 50, 132, 253, 255])
def test_every_used_protocol_is_led_in_under_a_strict_filter(protocol):
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    assert walk(made, protocol=protocol) == [5182]


@pytest.mark.parametrize("protocol", range(1, 256))
def test_every_packet_that_has_yet_to_get_a_source_is_led_in(protocol):
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    assert walk(made, protocol=protocol, source=ip_address("0.0.0.0")) == [5182]


def test_question_of_arp_passes_by_under_a_strict_filter():
    strict = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    assert walk(strict, protocol=0) == []
    assert walk(strict, protocol=0, iif="eth0") == [5182]  # forwarded: a packet
    loose = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=False))
    assert walk(loose, protocol=0) == [5182]


def test_rules_against_questions_are_few_enough_to_be_read():
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    of_ipv4 = [rule for rule in made.rules if rule.family == socket.AF_INET]
    assert len(of_ipv4) < 40


@pytest.mark.parametrize(("version", "strict"), [(4, False), (4, True), (6, False)])
def test_packet_filter_that_checks_sources_is_told_the_right_way(version, strict):
    there = {4: "192.168.10.61/32", 6: "fd00:10::61/128"}[version]
    facts = Facts(strict=strict, checked=frozenset({version}))
    made = plan_for(peer(there), facts=facts)
    source = {4: HERE, 6: ip_address("fd00:10::60")}[version]
    inner = Settings().routing.inner_mark

    def ask(**packet):
        return walk(made, version=version, source=source, **packet)

    # A datagram of the peer's has come by the link; newer kernels tell its protocol.
    assert ask(protocol=UDP) == []
    assert version == 6 or ask(protocol=0) == []
    for protocol in (0, TCP, UDP):  # the same of a packet that came by the tunnel
        assert ask(protocol=protocol, mark=inner) == [5182]
    # What this host sends.
    assert ask(protocol=UDP, sport=40000, dport=53) == [5182]
    assert ask(protocol=UDP, sport=65535, dport=53) == [5182]
    assert ask(protocol=TCP, sport=40000, dport=80) == [5182]
    assert ask(protocol=UDP, sport=1234, dport=1234) == []
    assert ask(protocol=UDP, iif="eth1") == [5182]  # a forwarded fragment


@pytest.mark.parametrize("mark", [1, 2, 3, 0x182, 0x8000_0000, 0xFFFF_FFFF])
def test_mark_of_inner_packets_is_not_taken_for_our_own(mark):
    inner = RoutingSettings(mark=mark).inner_mark
    assert inner & mark != mark
    assert inner not in (0, mark + 1)


def test_ipv6_needs_nothing_for_strict_filters():
    strict = plan_for(peer("fd00:10::61/128"), facts=Facts(strict=True))
    loose = plan_for(peer("fd00:10::61/128"), facts=Facts(strict=False))
    of_ipv6 = [rule for rule in strict.rules if rule.family == socket.AF_INET6]
    assert of_ipv6 == list(loose.rules)
    assert len(of_ipv6) == 4


def test_longest_prefix_wins_over_both_tables():
    made = plan_for(peer("10.0.0.0/8", "192.168.10.61/32", "0.0.0.0/0"))
    assert look_ups(made) == [
        (5182, 31),
        (254, 8),
        (5182, 7),
        (254, 0),
        (5182, None),
    ]


def test_number_of_rules_does_not_depend_on_number_of_peers():
    peers = [peer(f"10.0.0.{n}/32", name=f"p{n}") for n in range(200)]
    assert len(plan_for(*peers).rules) == len(plan_for(peers[0]).rules)


def test_all_priorities_are_within_the_range():
    lengths = range(32, 32 - MAX_LENGTHS, -1)
    prefixes = [f"0.0.0.0/{n}" for n in lengths]
    only = peer("10.0.0.1/32", name="only", only=(Selection(TCP, (80, 80)),))
    made = plan_for(peer(*prefixes), only, facts=Facts(strict=True))
    used = {rule.priority - 5182 for rule in made.rules}
    assert used == set(range(PRIORITIES)) - {5}  # a /32 has no need to ask main


def test_too_many_lengths_are_refused():
    prefixes = [f"0.0.0.0/{n}" for n in range(32, 31 - MAX_LENGTHS, -1)]
    with pytest.raises(RoutingError, match=r"12 different lengths .* more than 11"):
        plan_for(peer(*prefixes))


def test_jump_targets_are_added_first_and_own_udp_before_look_ups():
    made = plan_for(peer("192.168.10.61/32"), facts=Facts(strict=True))
    known = set()
    for rule in made.rules:
        assert rule.action is not Action.GOTO or rule.target in known
        known.add(rule.priority)
    assert 5182 in known
    assert made.rules[-1].action is Action.LOOKUP


def test_selection_matches_either_end():
    web = peer("192.168.10.61/32", only=(Selection(TCP, (80, 81)), Selection(ICMP)))
    made = plan_for(web)
    assert set(made.routes) == {(5183, ip_network("192.168.10.61/32"))}
    assert walk(made, protocol=TCP, dport=80, sport=4000) == [5183]
    assert walk(made, protocol=TCP, dport=4000, sport=81) == [5183]
    assert walk(made, protocol=TCP, dport=82, sport=4000) == []
    assert walk(made, protocol=ICMP) == [5183]
    assert all(rule.to for rule in made.rules if rule.action is Action.LOOKUP)


def test_ports_a_rule_cannot_have():
    every = plan_for(peer("10.0.0.1/32", only=(Selection(TCP, (0, 65535)),)))
    assert walk(every, protocol=TCP, dport=65535) == [5183]
    with pytest.raises(RoutingError, match="1024-65535 cannot be selected"):
        plan_for(peer("10.0.0.1/32", only=(Selection(TCP, (1024, 65535)),)))


def test_overlay_is_reached_from_our_address_in_it():
    overlays = ("10.9.0.1/24", "10.8.0.1/24", "fd00:8::1/64")
    settings = Settings(addresses=tuple(map(ip_interface, overlays)))
    prefixes = ("10.8.0.2/32", "0.0.0.0/0", "192.168.10.61/32", "fd00:8::2/128")
    made = plan_for(peer(*prefixes), settings=settings)
    sources = {str(r.prefix): str(r.source) for r in made.routes.values()}
    assert sources == {
        "10.8.0.2/32": "10.8.0.1",
        "0.0.0.0/0": "10.9.0.1",
        "192.168.10.61/32": "192.168.10.60",
        "fd00:8::2/128": "fd00:8::1",
    }


def test_prefix_of_another_family_than_the_underlay_has_no_source():
    (route,) = plan_for(peer("fd00:8::/64")).routes.values()
    assert route.source is None


@pytest.mark.parametrize(
    ("path", "limit", "inner"),
    [
        (1500, None, 1448),
        (9000, None, 8948),
        (1500, 1300, 1300),
        (1300, 1400, 1248),
        (576, None, 524),
        (100, None, 68),
    ],
)
def test_inner_mtu(path, limit, inner):
    assert inner_mtu(path, peer(mtu_limit=limit)) == inner


def test_ipv6_is_never_given_less_than_its_minimum():
    made = plan_for(peer("10.0.0.1/32", "fd00::1/128"), mtu=1000)
    mtus = {prefix.version: route.mtu for (_, prefix), route in made.routes.items()}
    assert mtus == {4: 1000, 6: 1280}
    assert made.mtu == 1280


def test_interface_has_the_largest_mtu_of_the_peers():
    peers = [peer("10.0.0.1/32", name="a"), peer("10.0.0.2/32", name="b")]
    underlays = {"a": Underlay(1400), "b": Underlay(8948)}
    made = plan(Settings(), peers, underlays, Facts(ipv6=False))
    assert made.mtu == 8948
    assert made.routes[5182, ip_network("10.0.0.1/32")].mtu == 1400


def test_host_without_ipv6():
    facts = Facts(ipv6=False)
    made = plan_for(peer("10.0.0.1/32", "fd00::1/128"), facts=facts, mtu=900)
    assert {rule.family for rule in made.rules} == {socket.AF_INET}
    assert [prefix.version for _, prefix in made.routes] == [4]
    assert made.mtu == 900


def test_marks_backend_routes_what_is_marked_and_only_that():
    settings = Settings(routing=RoutingSettings(backend=Backend.MARKS, mark=0x10))
    web = peer("10.0.0.1/32", name="web", only=(Selection(TCP, (80, 80)),))
    made = plan_for(peer("0.0.0.0/0"), web, settings=settings, facts=Facts(strict=True))
    assert walk(made, protocol=TCP, mark=0) == []
    assert walk(made, protocol=TCP, mark=0x31) == [5182, 254, 5182]
    assert {table for table, _ in made.routes} == {5182}


def test_none_backend_leaves_routing_alone():
    settings = Settings(routing=RoutingSettings(backend=Backend.NONE))
    made = plan_for(peer("10.0.0.1/32"), settings=settings, mtu=1300)
    assert (made.rules, made.routes, made.mtu) == ((), {}, 1300)


# Relays


@pytest.mark.parametrize("backend", Backend)
def test_a_relay_takes_what_is_marked_for_it_before_all_else(backend):
    routing = RoutingSettings(backend=backend)
    made = plan_for(settings=Settings(routing=routing, relay=RelaySettings(True)))
    marked = {"protocol": UDP, "sport": 1234, "dport": 1234, "mark": 0x183}
    assert walk(made, **marked, iif="eth0")[:1] == [5184]
    assert 5184 not in walk(made, **marked, iif="lo")  # a reverse-path check
    assert 5184 not in walk(made, **marked | {"mark": 0x182}, iif="eth0")
    assert 5184 not in walk(made, **marked | {"mark": 0x15183}, iif="eth0")
    routes = [route for (table, _), route in made.routes.items() if table == 5184]
    assert [str(route.prefix) for route in routes] == ["0.0.0.0/0", "::/0"]
    assert all(route.local for route in routes)


def test_who_does_not_relay_has_nothing_of_it():
    made = plan_for(peer("192.168.10.61/32"))
    assert not any(rule.priority < 5182 for rule in made.rules)
    assert not any(table == 5184 for table, _ in made.routes)
