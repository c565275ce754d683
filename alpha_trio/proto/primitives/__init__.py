"""Hash chains, pre-signatures, acknowledgment trees, encryption, and who signs.

In come bytes and positions; out go hashes, verdicts on hashes, and encrypted bytes.
Nothing here knows a session, a peer or a message.

    identity    the key pair of a host: signing, verifying, keys as text
    chance      random bytes, and choices by them
    chain       hash chains: the owner's side and the checking one
    presign     pre-signatures of a round's packets: codes and hash trees
    acks        the tree by which a receiver commits to ack or nack
    cipher      session keys, encryption, the tags of the two ends
    guard       MACs of handshakes, by who knows the other's key
"""

from alpha_trio.proto.primitives.acks import (
    ACK,
    NACK,
    AckTree,
    opening_size,
    verdicts_untrusted,
)
from alpha_trio.proto.primitives.chain import (
    ACKNOWLEDGMENT_CHAIN,
    ELEMENT_SIZE,
    SIGNATURE_CHAIN,
    ChainVerifier,
    HashChain,
    chain_id,
    descend,
    descend_by,
    digest_of,
)
from alpha_trio.proto.primitives.chance import RandomBytes, any_of
from alpha_trio.proto.primitives.cipher import (
    EARLY_USE,
    PSK_SIZE,
    ROOM,
    Keystream,
    SessionKeys,
    Tagger,
)
from alpha_trio.proto.primitives.guard import Guard
from alpha_trio.proto.primitives.identity import (
    Identity,
    fingerprint,
    key_text,
    verify_untrusted,
)
from alpha_trio.proto.primitives.presign import (
    Checker,
    Presigner,
    Promise,
    depth_for,
    early_packet,
    key_block,
    leaf_block,
)

__all__ = [
    "ACK",
    "ACKNOWLEDGMENT_CHAIN",
    "EARLY_USE",
    "ELEMENT_SIZE",
    "NACK",
    "PSK_SIZE",
    "ROOM",
    "SIGNATURE_CHAIN",
    "AckTree",
    "ChainVerifier",
    "Checker",
    "Guard",
    "HashChain",
    "Identity",
    "Keystream",
    "Presigner",
    "Promise",
    "RandomBytes",
    "SessionKeys",
    "Tagger",
    "any_of",
    "chain_id",
    "depth_for",
    "descend",
    "descend_by",
    "digest_of",
    "early_packet",
    "fingerprint",
    "key_block",
    "key_text",
    "leaf_block",
    "opening_size",
    "verdicts_untrusted",
    "verify_untrusted",
]
