"""The text says what ``--json`` says, in the same words."""

import json
import re

import pytest

from alpha_trio.proto.peers import State
from alpha_trio.proto.transport import EarlyState
from alpha_trio.settings import Mode, PeerSettings
from tests.cli.test_cli import (
    HERE,
    KEY,
    PEER,
    RELAY,
    call,
    hop,
    segment,
)
from tests.control.memory_node import status_of

VM2 = PeerSettings("vm2", "192.168.10.61")
FULL = {
    "state": "unreachable",
    "reason": "answers come from 10.0.0.9, not from its endpoint",
    "key": KEY,
    "key_source": "pinned",
    "early_text": "the peer has it switched off for us",
    "rounds": {"n": 1, "c": 2, "m": 3, "cm": 4},
    "drops": {"queue-full": 7, "too-big": 1},
    "allowed": ["192.168.10.61/32", "fd00::1/128"],
}


def words_in(value):
    """Every text in a document, and every name of something that was counted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from words_in(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if isinstance(each, int) and not isinstance(each, bool):
                continue
            if name in ("drops", "rounds"):
                yield from (why for why, count in each.items() if count)
            else:
                yield from words_in(each)


def missing(document, text):
    """Words of a document that a text has not."""
    told = set(words_in(document))
    return {
        w for w in told if not re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text)
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        *({"state": str(state)} for state in State),
        *({"early_state": str(state)} for state in EarlyState),
        *({"mtu_source": source} for source in ("route", "probed", "set")),
        *({"key_source": source} for source in ("pinned", "configured", "none")),
    ],
)
def test_all_words_about_a_peer(node, values):
    values = FULL | values
    if values["state"] == "key-mismatch":  # then there is more to say than the reason
        values |= {"reason": None, "offered_key": KEY}
    node.document["peers"] = [status_of(VM2, **values)]
    document = json.loads(call("status", "vm2", "--json"))
    assert not missing(document, call("status", "vm2"))


@pytest.mark.parametrize("mode", Mode)
def test_the_words_for_the_mode(node, mode):
    node.document["peers"] = [status_of(PeerSettings("vm2", "10.0.0.1", mode=mode))]
    document = json.loads(call("status", "--json"))["peers"][0]
    for text in (call("status"), call("status", "vm2")):
        said = {name: document[name] for name in ("mode", "configured_mode", "state")}
        assert not missing(said, text)


def test_all_words_about_the_host(node):
    node.document |= {
        "drops": {"stranger": 3},
        "health": ["offload gro is switched off: slower"],
        "relay": RELAY,
    }
    document = json.loads(call("status", "--json"))
    policy = document["relay"].pop("policy")  # only what it does without the relay
    for end in (e for each in document["relay"]["latest"] for e in each.values()):
        if isinstance(end, dict):
            del end["key"]  # the fingerprint stands for it
            end.pop("drops", None)
    text = call("status")
    assert not missing(document, text)
    assert policy["fail"] in text


def test_all_words_about_a_peer_in_the_list(node):
    call("peers", "add", "vm2", "10.0.0.1", *("--mode", "cm", "--only", "udp/53"))
    document = json.loads(call("peers", "list", "--json"))["peers"]
    assert not missing(document, call("peers", "show", "vm2"))
    for peer in document:
        peer.pop("key_source")  # of no key there is no source
    assert not missing(document, call("peers", "list"))


def test_all_words_of_a_trace(node):
    call("peers", "add", "vm2")
    relay = hop("relay", None, "192.168.10.2", forged=3)
    found = segment(lost=1, altered=2, injected=3, repeated=4)
    node.traced = {"schema": 1, "hops": [HERE, relay, PEER], "segments": [found, found]}
    document = json.loads(call("trace", "vm2", "--json"))
    for each in document["hops"]:
        del each["fingerprint"]  # the whole key is there
        if each["name"]:
            del each["role"]  # the name stands for it
    text = call("trace", "vm2")
    assert not missing(document, text)
    for kind in ("lost", "altered", "injected", "repeated"):
        assert kind in text
