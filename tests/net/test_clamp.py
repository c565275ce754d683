"""The packet filter's rules for the segment size of what is forwarded, as text."""

from alpha_trio.net.routing import clamp


def test_both_directions_are_seen_to():
    nft = clamp.nft_ruleset("alpha0")
    for way in ("iifname", "oifname"):
        assert f'{way} "alpha0" tcp flags & (syn | rst) == syn tcp option' in nft
    iptables = clamp.iptables_rules("alpha0")
    for way in ("-i", "-o"):
        assert f"-A AT-alpha0-fwd {way} alpha0 -p tcp " in iptables


def test_a_table_of_our_own_takes_no_odd_names():
    assert "table inet alpha_trio_mss_tun_0_5" in clamp.nft_ruleset("tun-0.5")
    # A chain has 28 characters at most, an interface up to 15.
    assert len(clamp._chain("x" * 15)) <= 28
