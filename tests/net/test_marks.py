"""The marking backend's rules as text; tests/netns has them at work."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from alpha_trio.net.routing import PeerRoute, marks
from alpha_trio.settings import Selection, Settings

TCP, ESP = 6, 50


def peer(name, *prefixes, only=()):
    networks = tuple(map(ip_network, prefixes))
    return PeerRoute(name, ip_address("192.168.10.61"), networks, only, 52)


@pytest.fixture
def made():
    web = peer("web", "10.0.0.1/32", only=(Selection(TCP, (80, 443)), Selection(ESP)))
    whole = peer("whole", "192.168.10.61/32", "10.0.0.0/8", "fd00:10::61/128")
    return marks.of(Settings(), [web, whole], "alpha0")


def lines(text):
    return [line.strip() for line in text.splitlines()]


def position(text, line):
    return lines(text).index(line)


def test_nft_replaces_its_own_table_only(made):
    text = marks.nft_ruleset(made)
    table = "table inet alpha_trio_alpha0"
    assert lines(text)[:3] == [f"add {table}", f"delete {table}", f"{table} {{"]
    assert "flush" not in text


def test_nft_takes_selections_before_the_rest_of_the_same_address_passes(made):
    text = marks.nft_ruleset(made)
    select = position(
        text, "ip daddr 10.0.0.1/32 meta l4proto 6 th dport 80-443 goto tunnel"
    )
    esp = position(text, "ip daddr 10.0.0.1/32 meta l4proto 50 goto tunnel")
    rest = position(text, "ip daddr @selected4 return")
    whole = position(text, "ip daddr @whole4 goto tunnel")
    assert select < esp < rest < whole
    assert "elements = { 192.168.10.61/32, 10.0.0.0/8 }" in lines(text)


def test_nft_keeps_own_udp_and_other_bits_of_the_mark(made):
    text = marks.nft_ruleset(made)
    assert "udp sport 1234 return" in lines(text)
    assert "meta mark set meta mark or 0x182" in lines(text)


def test_neighbour_discovery_stays_on_the_link(made):
    nft = marks.nft_ruleset(made)
    passes = position(nft, "icmpv6 type { 133, 134, 135, 136, 137 } return")
    assert passes < position(nft, "ip6 daddr @whole6 goto tunnel")
    iptables = marks.iptables_rules(made, 6)
    assert "-p icmpv6 --icmpv6-type 136 -j RETURN" in iptables
    assert "icmpv6" not in marks.iptables_rules(made, 4)


def test_nft_table_name_has_no_odd_characters():
    text = marks.nft_ruleset(marks.of(Settings(interface="tun-0.5"), [], "tun-0.5"))
    assert lines(text)[0] == "add table inet alpha_trio_tun_0_5"
    assert 'oifname "tun-0.5" ' in text


def test_iptables_fills_its_own_chains_only(made):
    text = lines(marks.iptables_rules(made, 4))
    rules = [line for line in text if line.startswith("-A ")]
    assert rules
    assert all(rule.startswith("-A AT-alpha0-") for rule in rules)
    assert [line for line in text if line.startswith(":")] == [
        ":AT-alpha0-out - [0:0]",
        ":AT-alpha0-in - [0:0]",
        ":AT-alpha0-mss - [0:0]",
        ":AT-alpha0-sel - [0:0]",
    ]


def test_iptables_takes_selections_before_the_rest_of_the_same_address_passes(made):
    text = marks.iptables_rules(made, 4)
    mark = "-j MARK --or-mark 0x182"
    chain = "-A AT-alpha0-sel -d"
    select = position(text, f"{chain} 10.0.0.1/32 -p tcp --dport 80:443 {mark}")
    rest = position(text, f"{chain} 10.0.0.1/32 -j RETURN")
    whole = position(text, f"{chain} 10.0.0.0/8 {mark}")
    assert select < rest < whole


def test_iptables_has_each_family_apart(made):
    assert "fd00" not in marks.iptables_rules(made, 4)
    six = marks.iptables_rules(made, 6)
    assert "-d fd00:10::61/128 " in six
    assert "10.0.0" not in six
