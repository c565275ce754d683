"""The reference implementation checks itself: each end reads what the other one made.

An end here has its own secrets and the bytes that came, taken apart by their places in
docs/protocol.md alone; so what is right in these tests is right without the daemon.
"""

from itertools import product

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.reference import alpha, vectors
from tests.reference.vectors import PSK, SUITE_ALPHA, SUITE_PLAIN, Session, secret

COOKIE = secret("cookie", 16)
UNPROTECTED = range(12, 15)  # limit and marks


class Refused(Exception):
    """What came is not what the document asks for."""


def require(condition):
    if not condition:
        raise Refused


def require_signature(identity, label, said, signature):
    try:
        key = Ed25519PublicKey.from_public_bytes(identity)
        key.verify(signature, b"alpha-trio 1 " + label + said)
    except InvalidSignature:
        raise Refused from None


class End:
    """One host: what it has, and how it takes each message."""

    def __init__(self, side, psk):
        self.side, self.psk = side, psk
        self.identity = side.identity

    def guard_of(self, syn, known=(True, False)):
        """That of the SYN's MAC, out of those that count at the responder."""
        require(len(syn) == 208)
        require(syn[0] == alpha.SYN)
        covered = syn[:12] + bytes(3) + syn[15:160]
        for knows in known:
            guard = alpha.guard(self.identity if knows else bytes(32), self.psk)
            if alpha.tag(guard, covered) == syn[160:176]:
                return guard
        raise Refused

    def take_cookie(self, cookie, syn):
        """The cookie; ``syn`` is ours."""
        require(len(cookie) == 56)
        require(cookie[0] == alpha.COOKIE)
        require(cookie[4:8] == syn[8:12])
        require(cookie[8:24] == syn[16:32])
        guard = alpha.guard(vectors.Side("responder", 0).identity, self.psk)
        require(alpha.tag(guard, cookie[:40]) == cookie[40:])
        return alpha.seal(guard, cookie[8:24], cookie[24:40])

    def take_ack(self, ack, syn):
        """The session's keys; ``syn`` is ours."""
        require(len(ack) == 208)
        require(ack[0] == alpha.ACK)
        require(ack[4:8] == syn[8:12])
        asked, answered = syn[:12] + bytes(3) + syn[15:128], ack[:12] + bytes(3)
        signed, guard = answered + ack[15:192], alpha.guard(self.identity, self.psk)
        require(alpha.tag(guard, asked + signed) == ack[192:])
        require_signature(ack[32:64], b"ACK", asked + signed[:128], ack[128:192])
        return self.keys(ack[64:96], syn, ack)

    def take_ackack(self, ackack, syn, ack):
        """The session's keys; ``ack`` is ours."""
        require(len(ackack) == 88)
        require(ackack[0] == alpha.ACKACK)
        require(ackack[2:4] == ack[2:4])
        require(ackack[4:8] == ack[8:12])
        keys = self.keys(syn[64:96], syn, ack)
        require(alpha.tag(keys[2], ackack[:72]) == ackack[72:])
        asked, answered = syn[:12] + bytes(3) + syn[15:128], ack[:12] + bytes(3)
        said = asked + answered + ack[15:192]
        require_signature(syn[32:64], b"ACKACK", said, ackack[8:72])
        return keys

    def keys(self, share, syn, ack):
        return alpha.session_keys(self.side.share, share, syn, ack, self.psk)


def ends_of(session):
    return (
        End(session.initiator, session.psk),
        End(session.responder, session.psk),
    )


def assert_both_agree(session):
    one, two = ends_of(session)
    assert two.guard_of(session.syn) == session.syn_guard
    assert one.take_ack(session.ack, session.syn) == session.keys
    assert two.take_ackack(session.ackack, session.syn, session.ack) == session.keys


def altered(message, places):
    """The message with one bit changed at each of the places in turn."""
    for at in places:
        yield message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def places(until):
    return [at for at in range(until) if at not in UNPROTECTED]


@pytest.mark.parametrize("psk", [b"", PSK])
@pytest.mark.parametrize("suite", [SUITE_ALPHA, SUITE_PLAIN])
def test_both_ends_agree(suite, psk):
    session = Session(suite, psk=psk)
    assert_both_agree(session)
    assert len(set(session.keys)) == 4


@pytest.mark.parametrize("psk", [b"", PSK])
def test_first_contact_has_a_mac_without_the_responders_key(psk):
    first, known = Session(known=False, psk=psk), Session(psk=psk)
    assert_both_agree(first)
    _, two = ends_of(first)
    with pytest.raises(Refused):
        two.guard_of(first.syn, known=[True])
    with pytest.raises(Refused):
        two.guard_of(known.syn, known=[False])


@pytest.mark.parametrize("psk", [b"", PSK])
def test_the_cookie_reaches_who_was_asked_for_it(psk):
    session = Session(psk=psk)
    one, two = ends_of(session)
    guard = two.guard_of(session.syn)
    message = alpha.cookie_message(session.syn, COOKIE, guard)
    assert COOKIE not in message
    assert one.take_cookie(message, session.syn) == COOKIE
    again = session.syn_with(COOKIE)
    assert two.guard_of(again) == guard
    assert again[128:144] == COOKIE


@pytest.mark.parametrize("psk", [b"", PSK])
def test_every_variant_of_a_syn_gets_the_same_answer(psk):
    plain, *others = [
        Session(psk=psk, cookie=cookie, renewed_key=renewed, limits=limits)
        for cookie, renewed, limits in product(
            [alpha.NOTHING, COOKIE], [None, secret("tag key", 32)], [(), (40, 3)]
        )
    ]
    for other in others:
        assert_both_agree(other)
        assert alpha.unmarked(other.ack) == alpha.unmarked(plain.ack)
        assert (other.ackack, other.keys) == (plain.ackack, plain.keys)


def test_a_renewal_shows_the_session_and_this_syn():
    present = Session()
    for key, back in (2, False), (3, True):
        one, two = vectors.both_ends(" renewing")[:: -1 if back else 1]
        session = Session(ends=(one, two), renewed_key=present.keys[key])
        assert_both_agree(session)
        syn = session.syn
        shown = syn[144:160]
        assert shown == alpha.tag(present.keys[key], b"renewal" + syn[:128])
        assert shown != alpha.renewal(present.keys[5 - key], syn)
        assert shown != alpha.renewal(present.keys[key], present.syn)


@pytest.mark.parametrize(("made", "wanted"), [(b"", PSK), (PSK, b""), (PSK, COOKIE)])
def test_another_pre_shared_key_gets_nowhere(made, wanted):
    wanted = wanted and wanted.ljust(32, b"\0")
    for known in True, False:
        session = Session(psk=made, known=known)
        one, two = End(session.initiator, wanted), End(session.responder, wanted)
        with pytest.raises(Refused):
            two.guard_of(session.syn)
        with pytest.raises(Refused):
            one.take_ack(session.ack, session.syn)
        with pytest.raises(Refused):
            two.take_ackack(session.ackack, session.syn, session.ack)


def test_the_pre_shared_key_is_in_the_keys_and_not_in_what_is_signed():
    without, with_ = Session(), Session(psk=PSK)
    assert not set(without.keys) & set(with_.keys)
    assert without.ack[:192] == with_.ack[:192]
    assert without.ackack[:72] == with_.ackack[:72]
    assert without.syn[:160] == with_.syn[:160]


def test_the_macs_cover_every_byte_but_limit_and_marks():
    session = Session(cookie=COOKIE)
    one, two = ends_of(session)
    for syn in altered(session.syn, places(176)):
        with pytest.raises(Refused):
            two.guard_of(syn)
    for ack in altered(session.ack, places(208)):
        with pytest.raises(Refused):
            one.take_ack(ack, session.syn)
    for ackack in altered(session.ackack, range(88)):
        with pytest.raises(Refused):
            two.take_ackack(ackack, session.syn, session.ack)
    cookie = alpha.cookie_message(session.syn, COOKIE, session.syn_guard)
    for message in altered(cookie, range(56)):
        with pytest.raises(Refused):
            one.take_cookie(message, session.syn)


def test_signatures_cover_both_messages():
    """The MACs are made anew, as who knows both public keys can."""
    session = Session()
    one, two = ends_of(session)
    for syn in altered(session.syn, places(128)):
        mac = alpha.tag(session.ack_guard, alpha.said(syn) + session.ack[:192])
        with pytest.raises(Refused):
            one.take_ack(session.ack[:192] + mac, syn)
    for ack in altered(session.ack[:192], places(192)):
        mac = alpha.tag(session.ack_guard, session.said + ack)
        with pytest.raises(Refused):
            one.take_ack(ack + mac, session.syn)
        keys = two.keys(session.syn[64:96], session.syn, ack)
        ackack = alpha.tagged(keys[2], session.ackack[:72])
        with pytest.raises(Refused):
            two.take_ackack(ackack, session.syn, ack)


@pytest.mark.parametrize("marks", [*product([0, alpha.NO_EARLY], repeat=2)])
@pytest.mark.parametrize("early", [*product([True, False], repeat=2)])
def test_early_data_takes_both_ends_and_no_relay_against_it(early, marks):
    session = Session(early=early, marks=marks)
    assert_both_agree(session)
    assert [session.syn[15], session.ack[15]] == [early[0], early[1] and not marks[0]]
    to_responder = early[1] and marks == (0, 0)
    assert alpha.may_send_early(session.ack) == to_responder
    assert alpha.may_send_early(session.syn) == (early[0] and not marks[0])


def test_marks_change_nothing_but_what_is_said_of_early_data():
    without = Session(early=(True, False))
    marked = Session(early=(True, False), marks=(alpha.NO_EARLY, 0xFF))
    assert (marked.ackack, marked.keys) == (without.ackack, without.keys)
    assert alpha.unmarked(marked.syn) == without.syn
    assert alpha.unmarked(marked.ack) == without.ack


def test_options_are_part_of_what_is_signed():
    plain, *others = [Session(early=e) for e in product([False, True], repeat=2)]
    assert len({plain.ackack, *(other.ackack for other in others)}) == 4


EARLY = vectors.early()


def is_tagged(message, key):
    return alpha.tag(key, message[:-16]) == message[-16:]


@pytest.mark.parametrize("name", EARLY)
def test_the_receiver_opens_early_data(name):
    """By the places the document gives, with the keys of its own end."""
    s1, session = EARLY[name]["s1"], Session(early=(True, True))
    cipher, tag_key = session.keys[name == "back" :: 2]
    assert len(s1) <= 1472
    assert s1[0] == alpha.S1
    assert s1[10] == 0x20
    assert s1[32:40] == bytes.fromhex("0001000100000000")
    assert is_tagged(s1, tag_key)
    block = s1[8:10] + bytes([0, 1]) + s1[12:16] + bytes(8)
    stream = Cipher(algorithms.AES256(cipher), modes.CTR(block)).encryptor()
    plain, bodies = stream.update(s1[56:-16]), EARLY[name]["bodies"]
    assert plain == b"".join(len(b).to_bytes(2) + b for b in bodies)
    assert alpha.early_bodies(plain) == bodies


@pytest.mark.parametrize("name", EARLY)
def test_whoever_has_seen_the_round_can_prove_early_data(name):
    session, vector = Session(early=(True, True)), EARLY[name]
    one, two = session.initiator, session.responder
    if name == "back":
        one, two = two, one
    s1, a1, s2 = (vector[message] for message in ("s1", "a1", "s2"))
    at, identifier = 2 * vector["round"], alpha.chain_id(one.nonce, b"s", 0)
    elements = [message[16:32] for message in (s1, a1, s2)]
    acks = two.acknowledgments
    assert elements == [one.signatures[at + 1], acks[at + 1], one.signatures[at + 2]]
    assert a1[32:48] == alpha.short_hash(s1[:-16])
    assert a1[48:64] == bytes(16)
    assert {message[8:16] for message in (s1, a1, s2)} == {s1[8:16]}
    assert s2[32:] == bytes.fromhex("0000000000000020")
    assert alpha.proves(s2, s1, identifier)
    for other in altered(s1, range(40, len(s1) - 16)):
        assert not alpha.proves(s2, other, identifier)
    for other in altered(s2, range(12, 40)):
        assert not alpha.proves(other, s1, identifier)


def test_early_data_and_packets_have_nothing_of_the_keystream_in_common():
    key, zeros = secret("cipher key", 32), bytes(1400)
    of_packets = alpha.encrypt(key, 1, 2, 0, bytes(16 * 4096))
    of_early_data = alpha.encrypt_early(key, 1, 2, zeros)
    blocks = [of_early_data[at : at + 16] for at in range(0, 1392, 16)]
    assert not any(block in of_packets for block in blocks)


def test_points_of_small_order():
    """Eight times each of them is the neutral element, and there are no others."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    points = set()
    for encoded in alpha.small_orders():
        n = int.from_bytes(encoded, "little")
        y = n % 2**255 % p
        x = alpha.square_root((y * y - 1) * pow(d * y * y + 1, -1, p), p)
        x = -x % p if x % 2 != n >> 255 else x
        points.add((x, y))
        for _ in range(3):
            product_ = d * x * x * y * y
            x, y = (
                2 * x * y * pow(1 + product_, -1, p) % p,
                (y * y + x * x) * pow(1 - product_, -1, p) % p,
            )
        assert (x, y) == (0, 1)
    assert len(points) == 8
