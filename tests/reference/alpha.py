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
RELIABLE, CONTROL = 0x80, 0x40
OPEN, ACCEPT, CLOSE, TRACE, PADDING = range(1, 6)
NOTHING = bytes(16)


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


def session_keys(private_share, public_share, syn, ack):
    """Ciphers to responder and to initiator, tags to responder and to initiator."""
    ours = X25519PrivateKey.from_private_bytes(private_share)
    shared = ours.exchange(X25519PublicKey.from_public_bytes(public_share))
    transcript = sha256(unlimited(syn) + unlimited(ack)).digest()
    keys = hkdf(transcript, shared, b"alpha-trio session keys 1", 128)
    return [keys[at : at + 32] for at in range(0, 128, 32)]


def public_share(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def encrypt(key, association, number, offset, data):
    """``data`` whose first byte is at ``offset`` in the round's keystream."""
    counter = pack("!HHIQ", association, 0, number, 0)
    stream = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    return stream.update(bytes(offset) + data)[offset:]


def tagged(key, message):
    return message + hmac.digest(key, message, "sha256")[:8]


# Messages


def header(kind, receiver_id, suite=0):
    return pack("!BBHI", kind, VERSION, suite, receiver_id)


def sign(seed, label, messages):
    return Ed25519PrivateKey.from_private_bytes(seed).sign(
        b"alpha-trio 1 " + label + messages
    )


def public_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def syn(suite, sender_id, nonce, identity, share, anchors, cookie=NOTHING):
    ids = pack("!II", sender_id, 0)
    body = nonce + identity + share + anchors[0] + anchors[1] + cookie
    return header(SYN, 0, suite) + ids + body + bytes(48)


def limited(message, most):
    """SYN or ACK behind a relay that keeps at most so many roots of an S1."""
    limit = int.from_bytes(message[12:14])
    return message[:12] + pack("!H", min(limit or most, most)) + message[14:]


def unlimited(message):
    """SYN or ACK as it is signed."""
    return message[:12] + bytes(4) + message[16:]


def most_roots(message):
    """Of the S1s of the one who accepted this ACK, or answered this SYN."""
    return max(int.from_bytes(message[12:14]) or 512, 4)


def ack(suite, syn_, sender_id, nonce, seed, share, anchors):
    receiver_id = int.from_bytes(syn_[8:12])
    ids = pack("!II", sender_id, 0)
    body = nonce + public_key(seed) + share + anchors[0] + anchors[1]
    unsigned = header(ACK, receiver_id, suite) + ids + body
    return unsigned + sign(seed, b"ACK", unlimited(syn_) + unsigned)


def ackack(suite, syn_, ack_, seed):
    receiver_id = int.from_bytes(ack_[8:12])
    said = unlimited(syn_) + unlimited(ack_)
    return header(ACKACK, receiver_id, suite) + sign(seed, b"ACKACK", said)


def cookie(secret, host, port):
    return hmac.digest(secret, f"{host} {port}".encode(), "sha256")[:16]


def renewal(tag_key, nonce):
    return hmac.digest(tag_key, b"renewal" + nonce, "sha256")[:16]


def cookie_message(syn_, cookie_):
    return header(COOKIE, int.from_bytes(syn_[8:12])) + syn_[16:32] + cookie_


def head(kind, receiver_id, association, shape, number, element):
    place = pack("!HBBI", association, shape, 0, number)
    return header(kind, receiver_id) + place + element


def s1(start, packets, signatures, tag_key):
    counts = pack("!HHI", packets, len(signatures), 0)
    return tagged(tag_key, start + counts + b"".join(signatures))


def s1_digest(message):
    return short_hash(message[:-8])


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
