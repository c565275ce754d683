"""The test vectors in tests/vectors, made by the reference implementation.

``python -m tests.reference.vectors`` writes them anew.  Inputs are fixed: every secret
is the hash of its name, so that nobody has to wonder where it came from.
"""

import json
from hashlib import sha256
from pathlib import Path
from struct import pack

from tests.reference import alpha

FOLDER = Path(__file__).parents[1] / "vectors"
SUITE_ALPHA, SUITE_PLAIN = 1, 2
FIRST_LENGTH, LATER_LENGTH = 1024, 4096
INITIATOR_ID, RESPONDER_ID = 0x11223344, 0x55667788


def secret(name, size):
    """``size`` bytes, at most 32, that belong to ``name``."""
    return sha256(name.encode()).digest()[:size]


TRACE_NONCE = secret("nonce of the TRACE", 16)
PSK = secret("pre-shared key", 32)


class Side:
    """What one host brings into the handshake of all vectors, or into ``which`` one."""

    def __init__(self, name, connection_id, which=""):
        self.name, self.connection_id = name, connection_id
        self.seed = secret(f"{name} identity", 32)
        self.identity = alpha.public_key(self.seed)
        name += which
        self.nonce = secret(f"{name} nonce", 16)
        self.share = secret(f"{name} share", 32)
        self.signature_seed = secret(f"{name} signature chain", 16)
        self.acknowledgment_seed = secret(f"{name} acknowledgment chain", 16)
        self.signatures = self.chain(b"s", 0, self.signature_seed, FIRST_LENGTH)
        self.acknowledgments = self.chain(
            b"a", 0, self.acknowledgment_seed, FIRST_LENGTH
        )

    def chain(self, use, association, seed, length):
        return alpha.chain(alpha.chain_id(self.nonce, use, association), seed, length)

    @property
    def anchors(self):
        return self.signatures[0], self.acknowledgments[0]

    def inputs(self):
        return {
            "identity_seed": self.seed,
            "identity": self.identity,
            "connection_id": self.connection_id,
            "nonce": self.nonce,
            "share_private": self.share,
            "share": alpha.public_share(self.share),
            "signature_chain_seed": self.signature_seed,
            "acknowledgment_chain_seed": self.acknowledgment_seed,
            "signature_anchor": self.anchors[0],
            "acknowledgment_anchor": self.anchors[1],
        }


class Session:
    """The handshake all other vectors stand on, and its variants."""

    def __init__(
        self,
        suite=SUITE_ALPHA,
        *,
        psk=b"",
        known=True,
        cookie=alpha.NOTHING,
        renewed_key=None,
        limits=(),
        early=(False, False),
        marks=(0, 0),
        ends=None,
    ):
        """``known``: whether the initiator knows the responder's key.

        ``renewed_key``: of the tags of a session to renew.  ``limits``: relays' on the
        way of the SYN, and the last one on that of the ACK.  ``early``: whether
        initiator and responder take early data; ``marks``: relays' in SYN and ACK.
        """
        self.initiator, self.responder = one, two = ends or both_ends()
        self.psk, self.suite = psk, suite
        share = alpha.public_share(one.share)
        said = one.connection_id, one.nonce, one.identity, share, one.anchors
        self.said = alpha.syn(suite, *said, alpha.EARLY * early[0])
        self.renewal = alpha.NOTHING
        if renewed_key is not None:
            self.renewal = alpha.renewal(renewed_key, self.said)
        self.syn_guard = alpha.guard(two.identity if known else alpha.NOBODY, psk)
        self.ack_guard = alpha.guard(one.identity, psk)
        self.syn = self.syn_with(cookie)
        for limit in limits[:-1]:
            self.syn = alpha.limited(self.syn, limit)
        self.syn = alpha.marked(self.syn, marks[0])
        share = alpha.public_share(two.share)
        said = two.connection_id, two.nonce, two.seed, share, two.anchors
        options = alpha.ack_options(self.syn, early[1])
        self.ack = alpha.ack(suite, self.syn, *said, self.ack_guard, options)
        for limit in limits[-1:]:
            self.ack = alpha.limited(self.ack, limit)
        self.ack = alpha.marked(self.ack, marks[1])
        self.keys = alpha.session_keys(one.share, share, self.syn, self.ack, psk)
        self.ackack = alpha.ackack(suite, self.syn, self.ack, one.seed, self.keys[2])

    def syn_with(self, cookie):
        return alpha.guarded_syn(self.said, self.syn_guard, cookie, self.renewal)

    def messages(self):
        names = "to_responder", "to_initiator", "tag_to_responder", "tag_to_initiator"
        return {
            "psk": self.psk,
            "guard_of_syn": self.syn_guard,
            "guard_of_ack": self.ack_guard,
            "syn": self.syn,
            "ack": self.ack,
            "ackack": self.ackack,
            "transcript": sha256(self.said + alpha.signed(self.ack)).digest(),
            "keys": dict(zip(names, self.keys, strict=True)),
        }


def both_ends(which=""):
    return (
        Side("initiator", INITIATOR_ID, which),
        Side("responder", RESPONDER_ID, which),
    )


# Files


def primitives():
    nonce, seed = secret("nonce", 16), secret("seed", 16)
    identifier = alpha.chain_id(nonce, b"s", 3)
    elements = alpha.chain(identifier, seed, 16)
    key, number = elements[6], 2
    packets = [secret(f"packet {i}", 24) for i in range(5)]
    leaves = alpha.blocks(identifier, number, packets, 2)[1]
    return {
        "chain": {
            "nonce": nonce,
            "use": b"s",
            "association": 3,
            "chain_id": identifier,
            "seed": seed,
            "length": 16,
            "elements": elements,
        },
        "pre_signature": {
            "chain_id": identifier,
            "round": number,
            "key": key,
            "packets": packets,
            "key_block": alpha.key_block(identifier, number, key),
            "macs": alpha.pre_signatures(identifier, number, key, packets, 0),
            "leaf_of_packet_4": leaves[0],
            "node_of_packets_4_and_5": alpha.node(leaves[0], leaves[1]),
            "roots": {
                str(depth): alpha.pre_signatures(
                    identifier, number, key, packets, depth
                )
                for depth in (1, 2, 3)
            },
            "branches_at_depth_3": [
                alpha.branch_of_packet(identifier, number, packets, 3, i)
                for i in range(5)
            ],
        },
        "acknowledgment_trees": [acknowledgment_tree(count) for count in (1, 3)],
        "hkdf": hkdf(),
        "keystream": keystream(),
        "early_data": early_signature(),
        "tag": {
            "key": secret("tag key", 32),
            "message": b"message",
            "tag": alpha.tag(secret("tag key", 32), b"message"),
        },
        "guards": [guard(key, psk) for psk in (b"", PSK) for key in (b"", IDENTITY)],
        "sealed_cookie": sealed_cookie(),
        "identities_of_small_order": alpha.small_orders(),
    }


IDENTITY = alpha.public_key(secret("identity", 32))


def guard(key, psk):
    """Without ``key`` the one of a peer that is not known yet."""
    message = b"message"
    made = alpha.guard(key or alpha.NOBODY, psk)
    mac = alpha.tag(made, message)
    return {"identity": key, "psk": psk, "guard": made, "message": message, "mac": mac}


def sealed_cookie():
    made, nonce = alpha.guard(IDENTITY), secret("nonce", 16)
    cookie = secret("cookie", 16)
    return {
        "guard": made,
        "nonce": nonce,
        "cookie": cookie,
        "sealed": alpha.seal(made, nonce, cookie),
    }


def acknowledgment_tree(packets):
    identifier, seed = alpha.chain_id(secret("n", 16), b"a", 0), secret("acks", 16)
    key, number = secret("acknowledgment key", 16), 9
    leaves = alpha.ack_leaves(identifier, number, seed, packets)
    half = len(leaves) // 2
    return {
        "chain_id": identifier,
        "round": number,
        "key": key,
        "seed": seed,
        "packets": packets,
        "root": alpha.root(identifier, number, key, leaves),
        "openings": [
            {
                "index": index,
                "verdict": verdict,
                "secret": alpha.ack_secret(seed, index, verdict),
                "branch": alpha.branch(leaves, index + half * (1 - verdict)),
            }
            for index in range(packets)
            for verdict in (1, 0)
        ],
    }


def hkdf():
    salt, shared = secret("transcript", 32), secret("shared", 32)
    info = b"alpha-trio session keys 1"
    return {
        "salt": salt,
        "secret": shared,
        "psk": PSK,
        "info": info,
        "output": alpha.hkdf(salt, shared, info, 128),
        "output_with_psk": alpha.hkdf(salt, shared + PSK, info, 128),
    }


def keystream():
    key, association, number = secret("cipher key", 32), 0x0102, 0x03040506
    zeros = bytes(40)
    return {
        "key": key,
        "association": association,
        "round": number,
        "from_offset_0": alpha.encrypt(key, association, number, 0, zeros),
        "from_offset_21": alpha.encrypt(key, association, number, 21, zeros),
        "of_early_data": alpha.encrypt_early(key, association, number, zeros),
    }


def early_signature():
    """Of some early data, and of a trial's."""
    identifier, key = alpha.chain_id(secret("nonce", 16), b"s", 3), secret("key", 16)
    encrypted = [secret("early data", 32), b""]
    return {
        "chain_id": identifier,
        "round": 2,
        "key": key,
        "encrypted": encrypted,
        "packets": [alpha.early_packet(text) for text in encrypted],
        "roots": [alpha.early_root(identifier, 2, key, text) for text in encrypted],
    }


def handshake():
    """All between the same two ends, but what renews a session."""
    one, two = both_ends()
    return {
        "initiator": one.inputs(),
        "responder": two.inputs(),
        "alpha": Session().messages(),
        "plain": Session(SUITE_PLAIN).messages(),
        "psk": Session(psk=PSK).messages(),
        "first_contact": Session(known=False).messages(),
        "first_contact_psk": Session(known=False, psk=PSK).messages(),
        "cookie": asked_for_cookie(),
        "cookie_psk": asked_for_cookie(psk=PSK),
        "cookie_first_contact": asked_for_cookie(known=False),
        "limited": behind_relays(),
        **early_handshakes(),
        "renewal": renewing(*both_ends(" renewing"), 2),
        "renewal_by_responder": renewing(*both_ends(" renewing")[::-1], 3),
    }


COOKIE_SECRET, COOKIE_PLACE = secret("cookie", 32), ("192.0.2.1", 1234)


def asked_for_cookie(**variant):
    """COOKIE answers the SYN without one, of which only this SYN differs."""
    asked = alpha.cookie(COOKIE_SECRET, *COOKIE_PLACE)
    session = Session(**variant, cookie=asked)
    first = session.syn_with(alpha.NOTHING)
    return {
        "secret": COOKIE_SECRET,
        "host": COOKIE_PLACE[0],
        "port": COOKIE_PLACE[1],
        "cookie": asked,
        "syn_without_cookie": first,
        "message": alpha.cookie_message(first, asked, session.syn_guard),
        **session.messages(),
    }


def behind_relays():
    """A handshake that passed relays which keep few roots, one of them only three."""
    session = Session(limits=(90, 40, 3))
    return session.messages() | {
        "most_roots_of_initiator": alpha.most_roots(session.ack),
        "most_roots_of_responder": alpha.most_roots(session.syn),
    }


def early_handshakes():
    """Who takes early data, what relays think of it, and who may send some then."""
    both, mark = (True, True), alpha.NO_EARLY
    variants = {
        "early": {"early": both},
        "early_initiator": {"early": (True, False)},
        "early_responder": {"early": (False, True)},
        "early_marked_syn": {"early": both, "marks": (mark, 0)},
        "early_marked_ack": {"early": both, "marks": (0, mark)},
        "early_limited": {"early": both, "limits": (90, 40), "marks": (0xFE, 0xFE)},
    }
    made = {}
    for name, variant in variants.items():
        session = Session(**variant)
        made[name] = session.messages() | {
            "takes_early": variant["early"],
            "initiator_may_send": alpha.may_send_early(session.ack),
            "responder_may_send": alpha.may_send_early(session.syn),
        }
    return made


def renewing(one, two, key):
    """A handshake by which ``one`` renews the session "alpha"."""
    renewed = Session().keys[key]
    session = Session(ends=(one, two), renewed_key=renewed)
    return {
        "initiator": one.inputs(),
        "responder": two.inputs(),
        "tag_key": renewed,
        "renewal": session.renewal,
        **session.messages(),
        "syn_with_cookie": session.syn_with(secret("cookie", 16)),
    }


IPV4_ICMP = bytes.fromhex("4500001c000040004001a516c0a80a3cc0a80a3d0800f7ff00000000")
UDP_SEGMENTS = bytes.fromhex(
    "4500000000014000401100 00c0a80a3cc0a80a3d 0923091300000000"
)
"""IPv4 and UDP header of a super-packet, before its lengths are filled in."""
SEGMENT_SIZE = 32


def whole_packet():
    """A body: frame word of a packet that is not segmented, and the packet."""
    return bytes(8) + IPV4_ICMP


def super_packet(count):
    """Headers and segments of a UDP super-packet, the last one shorter."""
    sizes = [SEGMENT_SIZE] * (count - 1) + [9]
    segments = [secret(f"segment {i}", size) for i, size in enumerate(sizes)]
    return udp_headers(sum(sizes)), segments


def udp_headers(payload):
    """Before so many bytes."""
    headers = bytearray(UDP_SEGMENTS)
    headers[2:4] = pack("!H", 28 + payload)
    headers[24:26] = pack("!H", 8 + payload)
    return bytes(headers)


def segment_bodies(headers, segments):
    """Bodies: frame words of UDP segments (type 5), the headers, a segment each."""
    words = [
        pack("!BBBBHH", 5, 28, 20, 0x80 | 6, SEGMENT_SIZE, i)
        for i in range(len(segments))
    ]
    return [
        word + headers + segment for word, segment in zip(words, segments, strict=True)
    ]


class RoundVector:
    """A round of association 0, by default from the initiator to the responder."""

    def __init__(self, bodies, depth, flags=0, ack_seed=None, number=0, back=False):
        session = Session()
        one, two = session.initiator, session.responder
        forth_keys, back_keys = session.keys[::2], session.keys[1::2]
        if back:
            one, two, forth_keys, back_keys = two, one, back_keys, forth_keys
        self.sender_id, self.receiver_id = one.connection_id, two.connection_id
        self.number, self.shape = number, flags | depth
        cipher, self.tag_forth, self.tag_back = *forth_keys, back_keys[1]
        if flags & alpha.CONTROL:
            cipher = None
        self.signing = alpha.chain_id(one.nonce, b"s", 0)
        self.acknowledging = alpha.chain_id(two.nonce, b"a", 0)
        self.signatures, self.acks = one.signatures, two.acknowledgments
        self.key = self.signatures[2 * number + 2]
        self.packets = alpha.packets_of_round(cipher, 0, number, depth, bodies)
        self.depth, self.ack_seed = depth, ack_seed

    def head(self, kind, receiver_id, element):
        place = 0, self.shape, self.number, element
        return alpha.head(kind, receiver_id, *place)

    def s1(self):
        signatures = alpha.pre_signatures(
            self.signing, self.number, self.key, self.packets, self.depth
        )
        start = self.head(
            alpha.S1, self.receiver_id, self.signatures[2 * self.number + 1]
        )
        return alpha.s1(start, len(self.packets), signatures, self.tag_forth)

    def ack_leaves(self):
        count = len(self.packets)
        return alpha.ack_leaves(self.acknowledging, self.number, self.ack_seed, count)

    def a1(self):
        ack_root = alpha.NOTHING
        if self.ack_seed is not None:
            key = self.acks[2 * self.number + 2]
            place = self.acknowledging, self.number, key
            ack_root = alpha.root(*place, self.ack_leaves())
        start = self.head(alpha.A1, self.sender_id, self.acks[2 * self.number + 1])
        return alpha.a1(start, self.s1(), ack_root, self.tag_back)

    def s2(self):
        start = self.head(alpha.S2, self.receiver_id, self.key)
        place = self.signing, self.number, self.packets, self.depth
        return [
            start + alpha.branch_of_packet(*place, index) + packet
            for index, packet in enumerate(self.packets)
        ]

    def opening(self, index, verdict):
        leaves = self.ack_leaves()
        at = index + (1 - verdict) * len(leaves) // 2
        secret_ = alpha.ack_secret(self.ack_seed, index, verdict)
        return alpha.opening(index, verdict, secret_, alpha.branch(leaves, at))

    def a2(self, *verdicts):
        """The A2 that opens these: index and verdict each."""
        start = self.head(alpha.A2, self.sender_id, self.acks[2 * self.number + 2])
        openings = [self.opening(*verdict) for verdict in verdicts]
        return alpha.a2(start, openings, self.tag_back)

    def messages(self):
        return {"s1": self.s1(), "a1": self.a1(), "s2": self.s2()}


def rounds():
    """A round in each mode; datagram_size is what limits the roots of an S1."""
    whole = {"bodies": [whole_packet()], **RoundVector([whole_packet()], 0).messages()}
    empty = {"bodies": [bytes(8)], **RoundVector([bytes(8)], 0).messages()}
    return {
        "n": {"depth": 0, "datagram_size": 1472, **whole},
        "c": super_packet_round(3, 0, 1472),
        "m": super_packet_round(5, 3, 1472),
        "cm": super_packet_round(11, 3, 312),
        "keepalive": {"depth": 0, "datagram_size": 1472, **empty},
        "reliable": reliable_round(5, 600),
    }


def reliable_round(count, datagram_size):
    """One whose A2s, to all packets at once, take more than one datagram."""
    headers, segments = super_packet(count)
    bodies, seed = segment_bodies(headers, segments), secret("acks of packets", 16)
    round_ = RoundVector(bodies, 0, alpha.RELIABLE, seed)
    opened = len(round_.opening(0, 1))
    room = (datagram_size - 32 - 16) // opened
    parts = [range(count)[at : at + room] for at in range(0, count, room)]
    return {
        "depth": 0,
        "datagram_size": datagram_size,
        "acknowledgment_seed": seed,
        "headers": headers,
        "segments": segments,
        "bodies": bodies,
        **round_.messages(),
        "a2_acknowledged": [round_.a2(*((i, 1) for i in part)) for part in parts],
        "a2_refused": [round_.a2(*((i, 0) for i in part)) for part in parts],
        "a2_acknowledged_alone": [round_.a2((i, 1)) for i in range(count)],
    }


def super_packet_round(count, depth, datagram_size):
    headers, segments = super_packet(count)
    bodies = segment_bodies(headers, segments)
    return {
        "depth": depth,
        "datagram_size": datagram_size,
        "headers": headers,
        "segments": segments,
        "bodies": bodies,
        **RoundVector(bodies, depth).messages(),
    }


class EarlyVector:
    """A round with early data in the session "early", by default to the responder."""

    def __init__(self, number, bodies, back=False):
        session = Session(early=(True, True))
        one, two = session.initiator, session.responder
        forth_keys, back_keys = session.keys[::2], session.keys[1::2]
        if back:
            one, two, forth_keys, back_keys = two, one, back_keys, forth_keys
        self.sender_id, self.receiver_id = one.connection_id, two.connection_id
        (cipher, self.tag_forth), (_, self.tag_back) = forth_keys, back_keys
        self.number, self.bodies, self.back = number, bodies, back
        self.signing = alpha.chain_id(one.nonce, b"s", 0)
        self.element, self.key = one.signatures[2 * number + 1 : 2 * number + 3]
        self.ack_element = two.acknowledgments[2 * number + 1]
        self.plain = alpha.early_data(bodies)
        self.encrypted = alpha.encrypt_early(cipher, 0, number, self.plain)
        self.root = alpha.early_root(self.signing, number, self.key, self.encrypted)

    def head(self, kind, receiver_id, element):
        place = 0, alpha.EARLY_ROUND, self.number, element
        return alpha.head(kind, receiver_id, *place)

    def s1(self):
        start = self.head(alpha.S1, self.receiver_id, self.element)
        return alpha.early_s1(start, self.root, self.encrypted, self.tag_forth)

    def a1(self):
        start = self.head(alpha.A1, self.sender_id, self.ack_element)
        return alpha.a1(start, self.s1(), alpha.NOTHING, self.tag_back)

    def s2(self):
        return alpha.early_s2(self.head(alpha.S2, self.receiver_id, self.key))

    def messages(self):
        return {
            "from": "responder" if self.back else "initiator",
            "round": self.number,
            "bodies": self.bodies,
            "plain": self.plain,
            "encrypted": self.encrypted,
            "packet": alpha.early_packet(self.encrypted),
            "key": self.key,
            "root": self.root,
            "digest": alpha.s1_digest(self.s1()),
            "s1": self.s1(),
            "a1": self.a1(),
            "s2": self.s2(),
        }


MOST_EARLY = 1400


def early():
    """Rounds of association 0, one after the other, and one the other way.

    One packet; two, of different flows; the segments of a super-packet; as much as
    there may be; nothing.
    """
    headers, segments = super_packet(2)
    payload = MOST_EARLY - 2 - 8 - len(headers)
    large = (secret("large", 32) * 50)[:payload]
    rounds_ = {
        "one": [whole_packet()],
        "two": [whole_packet(), bytes(8) + headers + b"".join(segments)],
        "segments": segment_bodies(headers, segments),
        "largest": [bytes(8) + udp_headers(payload) + large],
        "trial": [],
    }
    made = {
        name: EarlyVector(number, bodies).messages()
        for number, (name, bodies) in enumerate(rounds_.items())
    }
    return made | {"back": EarlyVector(0, [whole_packet()], back=True).messages()}


def controls():
    """OPEN of association 1 in round 0, and CLOSE of it in round 1."""
    one, two = Session().initiator, Session().responder
    seed = secret("initiator signature chain 1", 16)
    ack_seed = secret("responder acknowledgment chain 1", 16)
    anchor = one.chain(b"s", 1, seed, LATER_LENGTH)[0]
    ack_anchor = two.chain(b"a", 1, ack_seed, LATER_LENGTH)[0]
    opening = alpha.control(alpha.OPEN, 1, anchor)
    return {
        "chain_length": LATER_LENGTH,
        "signature_chain_seed": seed,
        "acknowledgment_chain_seed": ack_seed,
        "open": control_round(opening, 0, 1),
        "accept": control_round(
            alpha.control(alpha.ACCEPT, 1, ack_anchor), 0, 1, back=True
        ),
        "close": control_round(alpha.control(alpha.CLOSE, 1), 1, 1),
        "unknown": control_round(alpha.control(9, 1), 2, 0),
        "trace": control_round(alpha.trace(TRACE_NONCE), 3, 1),
    }


def control_round(message, number, verdict, back=False):
    flags, seed = alpha.RELIABLE | alpha.CONTROL, secret(f"acks of {number}", 16)
    round_ = RoundVector([message], 0, flags, seed, number, back)
    return {
        "message": message,
        "acknowledgment_seed": seed,
        "verdict": verdict,
        **round_.messages(),
        "a2": round_.a2((0, verdict)),
    }


def reports():
    """Answers to the TRACE of the control rounds: of a relay, and of the responder."""
    relay_seed = secret("relay identity", 32)
    address = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
    counters = [70_000_000_000, 1, 2, 3, 4], [5, 6, 7, 8, 9]
    received, sent = [4, 0, 0, 0, 0], [1, 0, 0, 0, 0]
    place = INITIATOR_ID, TRACE_NONCE
    responder = Session().responder.seed
    return {
        "nonce": TRACE_NONCE,
        "relay": {
            "identity_seed": relay_seed,
            "address": address,
            "hop_limit": 63,
            "forth": counters[0],
            "back": counters[1],
            "report": alpha.report(*place, relay_seed, address, 63, 1, *counters),
        },
        "responder": {
            "forth": received,
            "back": sent,
            "report": alpha.report(
                *place, responder, alpha.NOTHING, 0, 2, received, sent
            ),
        },
    }


def plain():
    """Datagrams of a plain session from the initiator."""
    headers, segments = super_packet(2)
    bodies = [whole_packet(), *segment_bodies(headers, segments)]
    return {
        "bodies": bodies,
        "data": [alpha.data(RESPONDER_ID, i, body) for i, body in enumerate(bodies)],
        "keepalive": alpha.data(RESPONDER_ID, len(bodies)),
    }


FILES = {
    "primitives": primitives,
    "handshake": handshake,
    "rounds": rounds,
    "early": early,
    "control": controls,
    "report": reports,
    "plain": plain,
}


def text_of(name):
    """What the file of that name has to contain."""
    return json.dumps(FILES[name](), indent=2, default=bytes.hex) + "\n"


def main():
    for name in FILES:
        (FOLDER / f"{name}.json").write_text(text_of(name))


if __name__ == "__main__":
    main()
