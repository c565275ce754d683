"""Leading others' traffic to a relay, as text for the packet filter."""

from alpha_trio.net import tproxy
from alpha_trio.settings import Fail, RelaySettings, Settings

BOTH = {4: 5000, 6: 6000}


def capture(listeners=BOTH, **relay):
    return tproxy.of(Settings(port=99, relay=RelaySettings(**relay)), listeners)


def test_the_ports_are_the_given_ones_or_our_own():
    assert "udp dport { 99 } jump take" in tproxy.nft_capture(capture())
    text = tproxy.nft_capture(capture(ports=(1234, 1300)))
    assert "udp dport { 1234, 1300 } jump take" in text
    assert "udp sport { 1234, 1300 } jump take" in text


def test_only_families_with_a_socket_are_taken():
    both, one = tproxy.nft_capture(capture()), tproxy.nft_capture(capture({4: 5000}))
    assert "tproxy ip to 127.0.0.1:5000 meta mark set 0x183 accept" in both
    assert "tproxy ip6 to [::1]:6000" in both
    assert "ip6" not in one
    four, six = (tproxy.iptables_capture(capture({4: 5000}), v) for v in (4, 6))
    assert four.count("-j TPROXY --on-ip 127.0.0.1 --on-port 5000") == 2
    assert "TPROXY" not in six


def test_what_is_at_its_last_hop_is_left_to_the_kernel():
    text = tproxy.nft_capture(capture())
    assert text.count("ip ttl > 1") == text.count("ip6 hoplimit > 1") == 1
    assert "-m ttl --ttl-gt 1" in tproxy.iptables_capture(capture(), 4)
    assert "-m hl --hl-gt 1" in tproxy.iptables_capture(capture(), 6)


def test_closed_is_for_what_is_forwarded():
    closed = capture(fail=Fail.CLOSED)
    assert closed.closed
    assert not capture().closed
    text = tproxy.nft_closed(closed)
    assert "hook forward" in text
    assert text.count("counter drop") == 2
    assert tproxy.iptables_closed(closed).count("-j DROP") == 2


def test_names_follow_the_interface():
    long = "x" * 15
    text = tproxy.nft_capture(tproxy.of(Settings(interface="tun-0.5"), BOTH))
    assert "table inet alpha_relay_tun_0_5 {" in text
    chains = tproxy.iptables_closed(tproxy.of(Settings(interface=long), BOTH))
    assert f":AT-{long}-closed " in chains
    assert len(f"AT-{long}-closed") <= 28
