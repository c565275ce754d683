"""The Wireshark dissector names every field of the vectors, and what is wrong."""

import json

import pytest

from tests.reference import alpha, vectors
from tests.tools.dissected import (
    NEEDS_TSHARK,
    assert_all_named,
    dissect,
    messages,
    write_capture,
)

pytestmark = NEEDS_TSHARK

HANDSHAKE = vectors.handshake()
SYN, ACK, ACKACK = [HANDSHAKE["renewal"][name] for name in ("syn", "ack", "ackack")]
COOKIE = HANDSHAKE["cookie"]["message"]
ROUND = vectors.rounds()["reliable"]
S1, A1, A2 = ROUND["s1"], ROUND["a1"], ROUND["a2_acknowledged"][0]
EARLY = vectors.early()
EARLY_S1, PROOF, TRIAL = EARLY["two"]["s1"], EARLY["two"]["s2"], EARLY["trial"]["s1"]
NAMES = {
    *("syn", "syn_without_cookie", "syn_with_cookie", "ack", "ackack"),
    *("s1", "a1", "s2", "a2", "report", "data", "keepalive"),
    *("a2_acknowledged", "a2_refused", "a2_acknowledged_alone"),
}


def datagrams(vector):
    """Every message in a file of vectors, but that with an unknown control message."""
    found = []
    for name, value in vector.items():
        if name == "unknown":
            continue
        if isinstance(value, dict):
            found += datagrams(value)
        elif name in NAMES:
            found += value if isinstance(value, list) else [value]
        elif name == "message" and "cookie" in vector:
            found.append(value)
    return found


def shown(tmp_path, *said):
    """What tshark makes of these datagrams."""
    path = tmp_path / "said.pcap"
    write_capture(path, said)
    packets = dissect(path)
    assert len(packets) == len(said)
    return packets


def fields(tmp_path, datagram):
    """Field name to values, bytes as hexadecimal text."""
    (message,) = messages(shown(tmp_path, datagram))
    return {
        name: [str(value).replace(":", "") for value in values]
        for name, values in message.items()
    }


def test_every_message_of_the_vectors_is_named(tmp_path):
    names = "handshake", "rounds", "early", "control", "report", "plain"
    said = [d for name in names for d in datagrams(vectors.FILES[name]())]
    packets = shown(tmp_path, *said)
    assert_all_named(packets)
    seen = {int(message["kind"][0]) for message in messages(packets)}
    assert seen == set(range(alpha.SYN, alpha.REPORT + 1))


@pytest.mark.parametrize(
    ("datagram", "places"),
    [
        (
            HANDSHAKE["renewal"]["syn_with_cookie"],
            {
                "nonce": (16, 32),
                "identity": (32, 64),
                "share": (64, 96),
                "signature_anchor": (96, 112),
                "acknowledgment_anchor": (112, 128),
                "cookie": (128, 144),
                "renewal": (144, 160),
                "mac": (160, 176),
                "padding": (176, 208),
            },
        ),
        (ACK, {"nonce": (16, 32), "signature": (128, 192), "mac": (192, 208)}),
        (ACKACK, {"signature": (8, 72), "mac": (72, 88)}),
        (COOKIE, {"nonce": (8, 24), "sealed_cookie": (24, 40), "mac": (40, 56)}),
        (A1, {"digest": (32, 48), "acknowledgment_root": (48, 64), "tag": (64, 80)}),
        (S1, {"tag": (len(S1) - 16, len(S1))}),
        (EARLY_S1, {"root": (40, 56), "early": (56, -16), "tag": (-16, None)}),
    ],
    ids=["SYN", "ACK", "ACKACK", "COOKIE", "A1", "S1", "early S1"],
)
def test_fields_stand_where_the_document_has_them(tmp_path, datagram, places):
    named = fields(tmp_path, datagram)
    for name, (start, end) in places.items():
        assert named[name] == [datagram[start:end].hex()], name


def test_marks_and_options_are_told_apart(tmp_path):
    said = HANDSHAKE["early_marked_syn"]["syn"], HANDSHAKE["early"]["ack"], SYN
    shown_ = messages(shown(tmp_path, *said))
    names = "marks", "marks_no_early", "options", "options_early"
    assert [[str(one[name][0]) for name in names] for one in shown_] == [
        ["0x01", "True", "0x01", "True"],
        ["0x00", "False", "0x01", "True"],
        ["0x00", "False", "0x00", "False"],
    ]


def test_early_data_its_trial_and_its_proof_are_told_apart(tmp_path):
    said = messages(shown(tmp_path, EARLY_S1, TRIAL, PROOF, S1))
    names = {"early", "trial", "proof"}
    assert [names & one.keys() for one in said] == [
        {"early"},
        {"trial"},
        {"proof"},
        set(),
    ]
    lengths = [one["early_length"] for one in said[:2]]
    assert lengths == [[str(len(EARLY_S1) - 72)], ["0"]]


@pytest.mark.parametrize(
    "datagram",
    [SYN, ACK, ACKACK, COOKIE, A1, S1, A2, PROOF],
    ids=["SYN", "ACK", "ACKACK", "COOKIE", "A1", "S1", "A2", "proof"],
)
def test_no_other_length_passes(tmp_path, datagram):
    lengths = [9, 40, 72, 192, len(datagram) - 1, len(datagram) + 1]
    others = [
        datagram.ljust(length, b"\0")[:length]
        for length in lengths
        if length != len(datagram)
    ]
    for layers in shown(tmp_path, *others):
        assert "alphatrio_malformed" in json.dumps(layers), layers


BAD = [
    b"\x01",  # shorter than a header
    alpha.header(77, 5),  # no such kind
    b"\x05\x02" + bytes(62),  # another version
    alpha.head(alpha.S1, 5, 0, 0, 0, bytes(16)) + bytes.fromhex("0002000900000000"),
    alpha.head(alpha.A2, 5, 0, 0, 0, bytes(16)) + bytes(3),
    alpha.head(alpha.A2, 5, 0, 0, 0, bytes(16)) + bytes(16 + 2 * 36),
    alpha.head(alpha.S2, 5, 0, 3, 0, bytes(16)) + bytes(40),
    EARLY_S1[:71],  # no room for the tag
    EARLY["largest"]["s1"] + bytes(1),
    EARLY_S1[:33] + b"\x02" + EARLY_S1[34:],
    EARLY_S1[:10] + b"\xa0" + EARLY_S1[11:],
    EARLY_S1[:10] + b"\x60" + EARLY_S1[11:],
    EARLY_S1[:10] + b"\x21" + EARLY_S1[11:],
]


def test_what_is_no_message_is_called_malformed(tmp_path):
    for layers in shown(tmp_path, *BAD):
        assert "alphatrio_malformed" in json.dumps(layers), layers
