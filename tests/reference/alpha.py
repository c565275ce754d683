"""The protocol's functions as docs/protocol.md defines them, each in the fewest words.

Nothing here is checked, bounded or fast; it says which bytes are right.
"""

import hmac
from hashlib import sha256
from struct import pack

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VERSION = 1
SYN, ACK, ACKACK, DATA, S1, A1, S2, A2, COOKIE, REPORT = range(1, 11)
RELIABLE, CONTROL, EARLY_ROUND = 0x80, 0x40, 0x20
NO_EARLY = 0x01
"""A mark in SYN and ACK."""
EARLY = 0x01
"""An option in SYN and ACK."""
PACKETS_USE, EARLY_USE = 0, 1
"""Of a round's keystream."""
OPEN, ACCEPT, CLOSE, TRACE, PADDING = range(1, 6)
NOTHING = bytes(16)
NOBODY = bytes(32)
"""In the place of a key that is not known, or of a pre-shared key there is not."""


def short_hash(data):
    return sha256(data).digest()[:16]


# Hash chains


def chain_id(nonce, use, association):
    return short_hash(b"chain " + use + pack("!H", association) + nonce)


def chain(identifier, seed, length):
    """All elements; the first of the list is the anchor."""
    elements = [seed]
    for position in range(length - 1, -1, -1):
        role = b"o" if position % 2 else b"k"
        step = role + identifier + pack("!I", position) + elements[0]
        elements.insert(0, short_hash(step))
    return elements


# Pre-signatures


def key_block(identifier, number, key):
    return (b"s" + identifier + pack("!I", number) + key).ljust(64, b"\0")


def mac(identifier, number, key, packet):
    return short_hash(key_block(identifier, number, key) + packet)


def leaf(identifier, number, packet):
    block = (b"l" + identifier + pack("!I", number)).ljust(64, b"\0")
    return short_hash(block + packet)


def node(left, right):
    return short_hash(b"n" + left + right)


def root(identifier, number, key, leaves):
    """The root over ``leaves``, whose number is a power of two and at least two."""
    while len(leaves) > 2:
        leaves = [node(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)]
    return short_hash(key_block(identifier, number, key) + leaves[0] + leaves[1])


def branch(leaves, index):
    """The siblings on the way from leaf ``index`` up to its root, lowest first."""
    siblings = b""
    while len(leaves) > 1:
        siblings += leaves[index ^ 1]
        leaves = [node(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)]
        index //= 2
    return siblings


def blocks(identifier, number, packets, depth):
    """The leaves of each tree, with padding."""
    leaves = [leaf(identifier, number, packet) for packet in packets]
    size = 1 << depth
    leaves += [NOTHING] * (-len(leaves) % size)
    return [leaves[at : at + size] for at in range(0, len(leaves), size)]


def pre_signatures(identifier, number, key, packets, depth):
    if depth == 0:
        return [mac(identifier, number, key, packet) for packet in packets]
    trees = blocks(identifier, number, packets, depth)
    return [root(identifier, number, key, leaves) for leaves in trees]


def branch_of_packet(identifier, number, packets, depth, index):
    if depth == 0:
        return b""
    trees = blocks(identifier, number, packets, depth)
    return branch(trees[index >> depth], index & ((1 << depth) - 1))


# Acknowledgment trees


def ack_secret(seed, index, verdict):
    return short_hash(b"r" + seed + pack("!HB", index, verdict))


def ack_leaf(identifier, number, index, verdict, secret):
    place = pack("!IHB", number, index, verdict)
    return short_hash(b"a" + identifier + place + secret)


def ack_leaves(identifier, number, seed, packets):
    half = 1
    while half < packets:
        half *= 2
    leaves = []
    for verdict in (1, 0):
        opened = [
            ack_leaf(identifier, number, i, verdict, ack_secret(seed, i, verdict))
            for i in range(packets)
        ]
        leaves += opened + [NOTHING] * (half - packets)
    return leaves


# Keys


def hkdf(salt, secret, info, length):
    """RFC 5869 with SHA-256."""
    extracted = hmac.digest(salt, secret, "sha256")
    output, last = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        last = hmac.digest(extracted, last + info + bytes([counter]), "sha256")
        output += last
    return output[:length]


def session_keys(private_share, public_share, syn, ack, psk=b""):
    """Ciphers to responder and to initiator, tags to responder and to initiator."""
    ours = X25519PrivateKey.from_private_bytes(private_share)
    shared = ours.exchange(X25519PublicKey.from_public_bytes(public_share))
    transcript = sha256(said(syn) + signed(ack)).digest()
    keys = hkdf(transcript, shared + psk, b"alpha-trio session keys 1", 128)
    return [keys[at : at + 32] for at in range(0, 128, 32)]


def public_share(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def encrypt(key, association, number, offset, data, use=PACKETS_USE):
    """``data`` whose first byte is at ``offset`` in the round's keystream."""
    counter = pack("!HHIQ", association, use, number, 0)
    stream = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    return stream.update(bytes(offset) + data)[offset:]


def tag(key, message):
    return hmac.digest(key, message, "sha256")[:16]


def tagged(key, message):
    return message + tag(key, message)


def guard(key=NOBODY, psk=b""):
    """The key of MACs for who has this identity; without one, for whoever answers."""
    return sha256(b"alpha-trio 1 guard" + key + (psk or NOBODY)).digest()


def seal(guard_, nonce, cookie_):
    """The cookie as COOKIE carries it; of a sealed one, the cookie."""
    stream = tag(guard_, b"cookie" + nonce)
    return bytes(one ^ other for one, other in zip(cookie_, stream, strict=True))


# Messages


def header(kind, receiver_id, suite=0):
    return pack("!BBHI", kind, VERSION, suite, receiver_id)


def sign(seed, label, messages):
    return Ed25519PrivateKey.from_private_bytes(seed).sign(
        b"alpha-trio 1 " + label + messages
    )


def public_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def small_orders():
    """All encodings of Ed25519 public keys of small order; each of them is refused.

    On -x² + y² = 1 + d x² y² they have y = 1 (order 1), -1 (2), 0 (4), or, twice such a
    point being one of those with y = 0, so that x² = -y², a y with d y⁴ + 2 y² = 1 (8).
    A decoder may take y + p for y, and the highest bit is only the sign of x.
    """
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p)
    of_sum = square_root(1 + d, p)
    squares = [(at - 1) * pow(d, -1, p) for at in (of_sum, -of_sum)]
    eighth = next(filter(None, (square_root(square, p) for square in squares)))
    ys = {0, 1, p - 1, eighth, p - eighth}
    encoded = sorted(n for y in ys for n in (y, y + p) if n < 2**255)
    return [
        (n | sign_ << 255).to_bytes(32, "little") for n in encoded for sign_ in (0, 1)
    ]


def square_root(square, p):
    """Modulo a prime p that is 5 modulo 8; None if there is none."""
    for factor in 1, pow(2, (p - 1) // 4, p):
        found = pow(square % p, (p + 3) // 8, p) * factor % p
        if (found * found - square) % p == 0:
            return found
    return None


def syn(suite, sender_id, nonce, identity, share, anchors, options=0):
    """What is said, and signed, of a SYN."""
    ids = pack("!IHBB", sender_id, 0, 0, options)
    return header(SYN, 0, suite) + ids + nonce + identity + share + b"".join(anchors)


def guarded_syn(said_, guard_, cookie_=NOTHING, renewal_=NOTHING):
    """The whole SYN, with what is for the responder alone."""
    return tagged(guard_, said_ + cookie_ + renewal_) + bytes(32)


def limited(message, most):
    """SYN or ACK behind a relay that keeps at most so many roots of an S1."""
    limit = int.from_bytes(message[12:14])
    return message[:12] + pack("!H", min(limit or most, most)) + message[14:]


def marked(message, marks):
    """SYN or ACK behind a relay that sets these."""
    return message[:14] + bytes([message[14] | marks]) + message[15:]


def unmarked(message):
    """SYN or ACK as its end sends it: without what relays write into it."""
    return message[:12] + bytes(3) + message[15:]


def said(message):
    """S of a SYN, A of an ACK."""
    return unmarked(message)[:128]


def signed(ack_):
    """A': what an ACK says, and its signature."""
    return unmarked(ack_)[:192]


def most_roots(message):
    """Of the S1s of the one who accepted this ACK, or answered this SYN."""
    return max(int.from_bytes(message[12:14]) or 512, 4)


def may_send_early(message):
    """Who accepted this ACK, or answered this SYN, as it came."""
    return bool(message[15] & EARLY) and not message[14] & NO_EARLY


def ack_options(syn_, takes_early):
    """Of the ACK to this SYN, as it came first."""
    return EARLY if takes_early and not syn_[14] & NO_EARLY else 0


def ack(suite, syn_, sender_id, nonce, seed, share, anchors, guard_, options=0):
    """``guard_`` is that of the initiator."""
    receiver_id = int.from_bytes(syn_[8:12])
    ids = pack("!IHBB", sender_id, 0, 0, options)
    identity = public_key(seed)
    start = header(ACK, receiver_id, suite) + ids + nonce + identity + share
    unsigned = start + b"".join(anchors)
    unguarded = unsigned + sign(seed, b"ACK", said(syn_) + unsigned)
    return unguarded + tag(guard_, said(syn_) + unguarded)


def ackack(suite, syn_, ack_, seed, tag_key):
    """``tag_key`` is that of the new session, to the responder."""
    receiver_id = int.from_bytes(ack_[8:12])
    signature = sign(seed, b"ACKACK", said(syn_) + signed(ack_))
    return tagged(tag_key, header(ACKACK, receiver_id, suite) + signature)


def cookie(secret, host, port):
    return hmac.digest(secret, f"{host} {port}".encode(), "sha256")[:16]


def renewal(tag_key, syn_):
    """``tag_key`` is that of the present session, in the direction of the SYN."""
    return tag(tag_key, b"renewal" + said(syn_))


def cookie_message(syn_, cookie_, guard_):
    """``guard_`` is the one of the SYN's MAC."""
    nonce = syn_[16:32]
    start = header(COOKIE, int.from_bytes(syn_[8:12])) + nonce
    return tagged(guard_, start + seal(guard_, nonce, cookie_))


def head(kind, receiver_id, association, shape, number, element):
    place = pack("!HBBI", association, shape, 0, number)
    return header(kind, receiver_id) + place + element


def s1(start, packets, signatures, tag_key):
    counts = pack("!HHI", packets, len(signatures), 0)
    return tagged(tag_key, start + counts + b"".join(signatures))


def s1_digest(message):
    return short_hash(message[:-16])


def a1(start, message, ack_root, tag_key):
    return tagged(tag_key, start + s1_digest(message) + ack_root)


def packets_of_round(key, association, number, depth, bodies):
    """What is pre-signed: head and, unless ``key`` is None, encrypted body of each."""
    before = 32 + 16 * depth  # round head and branch of each S2
    packets, offset = [], 0
    for index, body in enumerate(bodies):
        offset += before
        text = body
        if key is not None:
            text = encrypt(key, association, number, offset + 8, body)
        packets.append(pack("!HHI", index, 0, offset) + text)
        offset += 8 + len(body)
    return packets


# Early data


def early_data(bodies):
    """Before it is encrypted."""
    return b"".join(pack("!H", len(body)) + body for body in bodies)


def early_bodies(plain):
    """The bodies of early data that was decrypted."""
    bodies = []
    while plain:
        end = 2 + int.from_bytes(plain[:2])
        bodies.append(plain[2:end])
        plain = plain[end:]
    return bodies


def encrypt_early(key, association, number, plain):
    """And the other way, as that is the same."""
    return encrypt(key, association, number, 0, plain, EARLY_USE)


EARLY_HEAD = pack("!HHI", 0, 0, 32)
"""Index, zero and offset of the one packet of a round with early data."""


def early_packet(encrypted):
    """What is pre-signed."""
    return EARLY_HEAD + short_hash(encrypted)


def early_root(identifier, number, key, encrypted):
    return mac(identifier, number, key, early_packet(encrypted))


def early_s1(start, root_, encrypted, tag_key):
    return tagged(tag_key, start + pack("!HHI", 1, 1, 0) + root_ + encrypted)


def early_of(message):
    """The early data of an S1, encrypted."""
    return message[56:-16]


def early_s2(start):
    """``start`` has the key; there is nothing more to say."""
    return start + EARLY_HEAD


def proves(s2_, s1_, identifier):
    """Whether the key in an S2 shows that its sender signed the S1's early data."""
    number, key = int.from_bytes(s2_[12:16]), s2_[16:32]
    root_ = early_root(identifier, number, key, early_of(s1_))
    return s2_[32:] == EARLY_HEAD and s1_[40:56] == root_


# Verdicts, control messages, reports


def opening(index, verdict, secret, siblings):
    return pack("!HBB", index, verdict, 0) + secret + siblings


def a2(start, openings, tag_key):
    return tagged(tag_key, start + b"".join(openings))


def control(what, association, anchor=NOTHING):
    return pack("!BBH", what, 0, association) + anchor


def trace(nonce):
    """TRACE, and PADDING until its S2 is no shorter than a REPORT."""
    message = control(TRACE, 0, nonce)
    while 40 + len(message) < 188:
        message += control(PADDING, 0)
    return message


def report(receiver_id, nonce, seed, address, hops, role, forth, back):
    """``forth`` and ``back``: passed, forged, replayed, unsolicited, other."""
    place = address + pack("!BBH", hops, role, 0)
    counters = pack("!QIIII", *forth) + pack("!QIIII", *back)
    start = header(REPORT, receiver_id) + nonce + public_key(seed)
    unsigned = start + place + counters
    return unsigned + sign(seed, b"REPORT", unsigned)


def data(receiver_id, counter, body=b""):
    return header(DATA, receiver_id) + pack("!Q", counter) + body
