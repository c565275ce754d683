"""No secret is in what an object says of itself: that may get into a log."""

from base64 import b64encode
from pathlib import Path
from random import Random

import pytest

from alpha_trio.proto.peers import PeerTable
from alpha_trio.proto.primitives import Identity
from alpha_trio.proto.primitives.chain import HashChain
from alpha_trio.proto.primitives.cipher import Keystream, SessionKeys, Tagger
from alpha_trio.settings import PeerSettings, Settings, config, files

random = Random(1)
SECRET = random.randbytes(32)
PSK = b64encode(SECRET).decode()
ELEMENT = random.randbytes(16)


def spelled(secret):
    """The ways in which bytes may be written."""
    return {
        repr(secret),
        repr(secret)[2:-1],
        repr(list(secret))[1:-1],
        secret.hex(),
        b64encode(secret).decode(),
        secret.decode("latin-1"),
    }


def shows(thing, secret):
    return [text for text in spelled(secret) if text in repr(thing)]


def chain():
    whole = HashChain.make(bytes(16), ELEMENT, 4)
    whole.element(6)  # a stretch between two checkpoints is made
    return whole


def test_a_secret_that_is_shown_would_be_found():
    assert shows([SECRET], SECRET)
    assert shows(SECRET.hex(), SECRET)


def session():
    table = PeerTable(1234, Identity(bytes(32)), random.randbytes)
    return table.add("vm2", (), (), psk=SECRET)


def document():
    """A config file as it was read."""
    text = f"[peers.vm2]\npsk = {PSK!r}"
    return config._Document(None, None, text, {"peers": {"vm2": {"psk": PSK}}})


@pytest.mark.parametrize(
    "thing",
    [
        PeerSettings("vm2", psk=PSK),
        Settings(peers=(PeerSettings("vm2", psk=PSK),)),
        document(),
        files.File(Path("x"), None, f"psk = {PSK!r}"),
        config._PskFile(Path("x"), PSK),
        session(),
        Identity(SECRET),
        SessionKeys(SECRET, SECRET, SECRET, SECRET),
        Keystream(SECRET),
        Tagger(SECRET),
        HashChain(bytes(16), SECRET[:16], 4),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_no_secret_is_in_a_repr(thing):
    assert type(thing).__name__ in repr(thing)
    for size in (16, 32):
        assert shows(thing, SECRET[:size]) == []


def test_no_element_of_a_chain_is_in_its_repr():
    made = chain()
    for position in range(1, made.length + 1):
        assert shows(made, made.element(position)) == []
