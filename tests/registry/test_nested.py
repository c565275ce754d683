"""Endpoints inside of another peer's prefixes."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.net.routing import PeerRoute
from alpha_trio.registry.nested import nested, notes


def route(name, endpoint, *prefixes):
    found = tuple(map(ip_network, prefixes))
    return PeerRoute(name, endpoint and ip_address(endpoint), found, (), 80)


@pytest.mark.parametrize(
    ("others", "prefix", "owner"),
    [
        ([("a", None, "10.0.0.0/8")], "10.0.0.0/8", "a"),
        ([("a", None, "0.0.0.0/0")], "0.0.0.0/0", "a"),
        (
            [("a", None, "10.0.0.0/8"), ("b", None, "10.7.0.0/16")],
            "10.7.0.0/16",
            "b",
        ),
        ([("a", None, "10.7.0.5/32")], "10.7.0.5/32", "a"),
        ([("a", "10.7.0.6", "10.6.0.0/16", "::/0")], None, None),
    ],
)
def test_the_longest_prefix_of_another_is_named(others, prefix, owner):
    peers = [
        *(route(*other) for other in others),
        route("x", "10.7.0.5", "10.8.0.0/16"),
    ]
    found = nested(peers, False).get("x")
    assert (found and str(found.prefix), found and found.owner) == (prefix, owner)


def test_packets_take_the_tunnel_of_who_has_the_longest_prefix():
    outer = route("a", "192.0.2.1", "fd00::/8")
    for own, taker in ((["fd00::5/128"], "x"), (["fd00:1::/64"], "a"), ([], "a")):
        found = nested([outer, route("x", "fd00::5", *own)], False)
        assert f"packets to it take the tunnel to {taker}, " in str(found["x"])
        assert "past a" in str(found["x"])


def test_of_routes_set_by_hand_nothing_is_promised():
    peers = [route("a", None, "10.0.0.0/8"), route("x", "10.7.0.5", "10.7.0.5/32")]
    assert "by hand" in str(nested(peers, True)["x"])


def test_ones_own_prefix_and_an_unknown_endpoint_are_no_news():
    assert nested([route("gw", "192.0.2.1", "0.0.0.0/0")], False) == {}
    assert (
        nested([route("a", None, "0.0.0.0/0"), route("b", None, "::/0")], False) == {}
    )


def test_who_gets_a_prefix_is_told_whose_endpoints_are_in_it():
    inside = [route(f"p{n}", f"10.7.0.{n}", f"10.7.0.{n}/32") for n in range(1, 9)]
    places = nested([route("gw", "192.0.2.1", "10.0.0.0/8"), *inside], False).values()
    (told,) = notes("gw", places)
    assert "endpoints of p1, p2, p3, p4, p5 and 3 more:" in told
    (told,) = notes("p3", places)
    assert told.startswith("p3: its endpoint 10.7.0.3 is in 10.0.0.0/8 of gw")
    assert notes("other", places) == []


PREFIXES = st.builds(
    lambda address, length: ip_network((address >> length << length, 32 - length)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@given(st.integers(0, 2**32 - 1), st.lists(PREFIXES, unique=True, max_size=8))
def test_it_is_what_a_look_at_every_prefix_finds(number, prefixes):
    endpoint = ip_address(number)
    peers = [route(f"p{n}", None, prefix) for n, prefix in enumerate(prefixes)]
    found = nested([*peers, route("x", endpoint)], False).get("x")
    around = [prefix for prefix in prefixes if endpoint in prefix]
    longest = max(around, key=lambda prefix: prefix.prefixlen, default=None)
    assert (found and found.prefix) == longest
