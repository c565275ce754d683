"""The core makes and takes exactly the bytes of the independent implementation."""

import json
from collections.abc import Iterable

import pytest
from attrs import evolve

from alpha_trio.proto.batch import Counters, Drop, Outbox
from alpha_trio.proto.handshake import cookies
from alpha_trio.proto.handshake.exchange import FIRST_SPACING, HalfOpen, Initiation
from alpha_trio.proto.messages import (
    BadPacket,
    Cookie,
    parse_ack_untrusted,
    parse_ackack_untrusted,
    parse_cookie_untrusted,
    parse_syn_untrusted,
)
from alpha_trio.proto.packets import Cut
from alpha_trio.proto.primitives import (
    Guard,
    Identity,
    acks,
    chain,
    cipher,
    presign,
    verify_untrusted,
)
from alpha_trio.proto.traces import (
    Counts,
    Report,
    Role,
    parse_report_untrusted,
    trace_message,
)
from alpha_trio.proto.transport import (
    MODES,
    AlphaTransport,
    Arrival,
    EarlyState,
    Line,
    PlainTransport,
)
from alpha_trio.proto.transport.alpha import LATER_SPACING
from alpha_trio.proto.transport.early import Early
from tests.reference import vectors
from tests.reference.alpha import unmarked

REMOTE = ("192.0.2.1", 1234)
NOBODY = Identity(bytes(32))
COOKIES = ("cookie", "cookie_psk", "cookie_first_contact")
RENEWALS = ("renewal", "renewal_by_responder")
EARLY_HANDSHAKES = (
    *("early", "early_initiator", "early_responder"),
    *("early_marked_syn", "early_marked_ack", "early_limited"),
)
HANDSHAKES = (
    *("alpha", "plain", "psk", "first_contact", "first_contact_psk"),
    *COOKIES,
    "limited",
    *EARLY_HANDSHAKES,
    *RENEWALS,
)
ROUNDS = ("n", "c", "m", "cm", "keepalive")
EARLY = ("one", "two", "segments", "largest", "trial")
CONTROLS = ("open", "close", "unknown", "trace")


def load(name):
    return json.loads((vectors.FOLDER / f"{name}.json").read_text())


def raw(value):
    """A vector with bytes in the place of hexadecimal text."""
    if isinstance(value, str):
        return bytes.fromhex(value)
    if isinstance(value, list):
        return [raw(item) for item in value]
    return value


class Scripted:
    """Instead of the system's generator: gives the bytes it was made with, in turn."""

    def __init__(self, *values: bytes) -> None:
        self.values = list(values)

    def __call__(self, size: int) -> bytes:
        value = self.values.pop(0)
        assert len(value) == size
        return value


@pytest.mark.parametrize("name", vectors.FILES)
def test_files_are_what_the_reference_makes(name):
    assert (vectors.FOLDER / f"{name}.json").read_text() == vectors.text_of(name)


# Primitives


def test_chain():
    vector = load("primitives")["chain"]
    name = chain.chain_id(
        raw(vector["nonce"]), raw(vector["use"]), vector["association"]
    )
    made = chain.HashChain.make(name, raw(vector["seed"]), 4)
    assert name == raw(vector["chain_id"])
    assert made.length == vector["length"]
    assert made.anchor == raw(vector["elements"][0])
    assert [made.element(i) for i in range(1, 17)] == raw(vector["elements"][1:])


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_pre_signatures(depth):
    vector = load("primitives")["pre_signature"]
    place = raw(vector["chain_id"]), vector["round"], raw(vector["key"])
    packets = raw(vector["packets"])
    presigner = presign.Presigner.sign(*place, packets, depth)
    roots = raw(vector["roots"][str(depth)] if depth else vector["macs"])
    assert presigner.roots == roots
    branches = [presigner.branch(i) for i in range(5)] if depth else None
    if depth == 3:
        assert branches == raw(vector["branches_at_depth_3"])
    promised = depth, b"".join(roots), len(packets)
    checker = presign.Checker.of(presign.Promise.with_key(*place, *promised))
    heads = [(i, 0, 0) for i in range(5)]
    assert checker.check(heads, packets, branches) == [True] * 5
    assert checker.check(heads, packets[::-1], branches) == [i == 2 for i in range(5)]


@pytest.mark.parametrize("number", [0, 1])
def test_acknowledgment_tree(number):
    vector = load("primitives")["acknowledgment_trees"][number]
    place = raw(vector["chain_id"]), vector["round"], raw(vector["key"])
    tree = acks.AckTree(*place, raw(vector["seed"]), vector["packets"])
    assert tree.root == raw(vector["root"])
    for entry in vector["openings"]:
        opening = entry["index"], entry["verdict"]
        shown = raw(entry["secret"]), raw(entry["branch"])
        assert tree.opening(*opening) == shown
        root = tree.root, vector["packets"]
        assert acks.opens(*place, *root, *opening, *shown)
        assert not acks.opens(*place, *root, opening[0], 1 - opening[1], *shown)


@pytest.mark.parametrize(("psk", "output"), [("", ""), ("psk", "_with_psk")])
def test_keys(psk, output):
    vector = load("primitives")["hkdf"]
    secrets = raw(vector["secret"]), raw(vector["salt"]), raw(vector.get(psk, ""))
    there = cipher.SessionKeys.derive(*secrets, initiator=True)
    back = cipher.SessionKeys.derive(*secrets, initiator=False)
    keys = there.send_cipher, there.receive_cipher, there.send_tag, there.receive_tag
    assert b"".join(keys) == raw(vector["output" + output])
    swapped = back.receive_cipher, back.send_cipher, back.receive_tag, back.send_tag
    assert swapped == keys


def test_keystream_and_tag():
    vector = load("primitives")["keystream"]
    keystream = cipher.Keystream(raw(vector["key"]))
    for offset in (0, 21):
        place = vector["association"], vector["round"], offset
        made = keystream.apply(*place, bytes(40))
        assert made == raw(vector[f"from_offset_{offset}"])
    place = vector["association"], vector["round"], 0
    made = keystream.apply(*place, bytes(40), cipher.EARLY_USE)
    assert made == raw(vector["of_early_data"])
    vector = load("primitives")["tag"]
    tagger = cipher.Tagger(raw(vector["key"]))
    assert tagger.tag(raw(vector["message"])) == raw(vector["tag"])


def test_pre_signature_of_early_data():
    vector = load("primitives")["early_data"]
    place = raw(vector["chain_id"]), vector["round"], raw(vector["key"])
    packets = [presign.early_packet(text) for text in raw(vector["encrypted"])]
    assert packets == raw(vector["packets"])
    for packet, root in zip(packets, raw(vector["roots"]), strict=True):
        assert presign.Presigner.sign(*place, [packet], 0).roots == [root]
        promise = presign.Promise.with_key(*place, 0, root, 1)
        fits = [promise.fits(other) for other in packets]
        assert fits == [other == packet for other in packets]


def test_guards():
    vectors_ = load("primitives")["guards"]
    assert len({vector["mac"] for vector in vectors_}) == 4
    for vector in vectors_:
        key = raw(vector["identity"]) or bytes(32)
        guard = Guard(key, raw(vector["psk"]) or None)
        message, mac = raw(vector["message"]), raw(vector["mac"])
        assert guard.mac(message) == mac
        assert guard.fits(message, mac)
        assert not guard.fits(message + b"s", mac)


def test_identities_of_small_order_sign_nothing():
    """One signature in eight, made without any key, would fit any message."""
    identities = raw(load("primitives")["identities_of_small_order"])
    for identity in identities:
        for signature in identities:
            with pytest.raises(BadPacket):
                verify_untrusted(identity, signature + bytes(32), b"ACK", b"message")


# Handshake


class Host:
    """One side of the vectors' handshake, with its secrets."""

    def __init__(self, vector, psk: bytes | None = None) -> None:
        self.identity, self.psk = Identity(raw(vector["identity_seed"])), psk
        self.id = vector["connection_id"]
        secrets = (
            "nonce",
            "signature_chain_seed",
            "acknowledgment_chain_seed",
            "share_private",
        )
        self.secrets = [raw(vector[key]) for key in secrets]
        assert self.identity.public == raw(vector["identity"])

    def initiation(self, suite, key: bytes | None, renewal, early) -> Initiation:
        said = self.identity, suite, self.id, Scripted(*self.secrets), 0.0, renewal
        return Initiation.begin(*said, key=key, psk=self.psk, early=early)

    def answer(self, syn, early) -> HalfOpen:
        random = Scripted(*self.secrets)
        place = self.id, random, REMOTE, b"", 0.0
        return HalfOpen.answer(syn, self.identity, *place, self.psk, early=early)


def hosts(name: str) -> tuple[Host, Host]:
    """The initiator and the responder of the handshake called ``name``."""
    handshake = load("handshake")
    vector = handshake[name]
    ends = vector if "initiator" in vector else handshake
    psk = raw(vector["psk"]) or None
    return Host(ends["initiator"], psk), Host(ends["responder"], psk)


def agreements(name: str):
    """Both ends of the handshake called ``name``, after it went over the wire."""
    vector = load("handshake")[name]
    syn = parse_syn_untrusted(raw(vector["syn"]))
    one, two = hosts(name)
    key = None if "first_contact" in name else two.identity.public
    tagger = cipher.Tagger(raw(vector.get("tag_key", "")))
    renewal = (lambda said: tagger.tag(b"renewal" + said)) if name in RENEWALS else None
    early = vector.get("takes_early", [False, False])
    initiation = one.initiation(syn.suite, key, renewal, early[0])
    sent = initiation.variant()
    if name in COOKIES:
        assert sent == raw(vector["syn_without_cookie"])
        cookie = parse_cookie_untrusted(raw(vector["message"]))
        assert initiation.take_cookie_untrusted(cookie, 0.0)
        sent = initiation.with_cookie()
    assert sent == unmarked(raw(vector["syn"]))
    half_open = two.answer(syn, early[1])
    assert half_open.ack.pack() == unmarked(raw(vector["ack"]))
    ack = parse_ack_untrusted(raw(vector["ack"]))
    ackack = initiation.finish_untrusted(ack, one.identity)
    assert ackack.pack() == raw(vector["ackack"])
    half_open.verify_untrusted(parse_ackack_untrusted(raw(vector["ackack"])))
    there = half_open.remote, half_open.local
    return initiation.agree(ack, REMOTE, b""), half_open.agree(*there)


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake(name):
    here, there = agreements(name)
    vector, ours = load("handshake")[name]["keys"], here.keys
    assert ours.send_cipher == raw(vector["to_responder"])
    assert ours.receive_cipher == raw(vector["to_initiator"])
    assert ours.send_tag == raw(vector["tag_to_responder"])
    assert ours.receive_tag == raw(vector["tag_to_initiator"])
    assert here.offer.signatures.length == FIRST_SPACING**2 == vectors.FIRST_LENGTH
    assert there.keys == evolve(
        ours,
        send_cipher=ours.receive_cipher,
        receive_cipher=ours.send_cipher,
        send_tag=ours.receive_tag,
        receive_tag=ours.send_tag,
    )


def test_limits_of_relays():
    vector, without = load("handshake")["limited"], load("handshake")["alpha"]
    assert [vector[key] for key in ("ackack", "keys")] == [
        without[key] for key in ("ackack", "keys")
    ]
    here, there = [
        Line(end, Counters(), Scripted(), 1400, NOBODY) for end in agreements("limited")
    ]
    assert here.most_roots == vector["most_roots_of_initiator"] == 4
    assert there.most_roots == vector["most_roots_of_responder"] == 40


@pytest.mark.parametrize("name", EARLY_HANDSHAKES)
def test_who_takes_early_data_and_who_may_send_it(name):
    vector = load("handshake")[name]
    here, there = agreements(name)
    options = [raw(vector[message])[15] for message in ("syn", "ack")]
    assert [here.takes_early, there.takes_early] == list(map(bool, options))
    assert Early.agreed(here).usable == vector["initiator_may_send"]
    assert Early.agreed(there).usable == vector["responder_may_send"]


@pytest.mark.parametrize("name", COOKIES)
def test_cookie(name):
    vector = load("handshake")[name]
    place = vector["host"], vector["port"]
    door = cookies.Doorkeeper(Scripted(raw(vector["secret"])))
    cookie = door.cookie(place, 1.0)
    assert cookie == raw(vector["cookie"])
    assert door.admit(place, cookie, 1.0)
    syn = parse_syn_untrusted(raw(vector["syn_without_cookie"]))
    key = None if "first_contact" in name else hosts(name)[1].identity.public
    guard = Guard(key or bytes(32), raw(vector["psk"]) or None)
    message = Cookie(syn.sender_id, syn.nonce, guard.seal(cookie, syn.nonce))
    message = evolve(message, mac=guard.mac(message.guarded()))
    assert message.pack() == raw(vector["message"])


def test_a_cookie_changes_no_answer():
    handshake = load("handshake")
    for with_, without in zip(COOKIES, ("alpha", "psk", "first_contact"), strict=True):
        for key in ("ack", "ackack", "keys"):
            assert handshake[with_][key] == handshake[without][key]


def test_renewals_show_the_session_they_renew():
    vectors_ = load("handshake")
    here, there = [
        Line(end, Counters(), Scripted(), 1400, NOBODY) for end in agreements("alpha")
    ]
    for name, ours, theirs in zip(RENEWALS, (here, there), (there, here), strict=True):
        shown = raw(vectors_[name]["renewal"])
        for variant in ("syn", "syn_with_cookie"):
            syn = parse_syn_untrusted(raw(vectors_[name][variant]))
            assert ours.renewal(syn.said()) == syn.renewal == shown
            assert theirs.is_renewal(syn)
            assert not ours.is_renewal(syn)
            assert not theirs.is_renewal(evolve(syn, nonce=bytes(16)))


# Rounds


class Ends:
    """Both ends of an established session; ``out`` of each is what it sent."""

    def __init__(
        self, datagram_size: int = 1472, *responder: bytes, session: str = "alpha"
    ) -> None:
        one, two = agreements(session)
        self.one = transport(one, "initiator", datagram_size, Scripted())
        random = Scripted(*responder)
        self.two = transport(two, "responder", datagram_size, random)
        self.out = Outbox()

    def sent(self) -> list[bytes]:
        """The datagrams sent since the last call."""
        datagrams = [bytes(d) for send in self.out.sends for d in send.datagrams()]
        self.out.sends.clear()
        return datagrams

    def arrive(self, at: AlphaTransport, datagrams: Iterable[bytes]) -> list[Arrival]:
        return [
            at.incoming(
                memoryview(datagram),
                len(datagram),
                REMOTE,
                b"",
                lambda packet: True,
                0.0,
                self.out,
            )[1]
            for datagram in datagrams
        ]

    def delivered(self) -> list[bytes]:
        """What would be written to the TUN, without virtio headers."""
        return [b"".join(d.parts)[10:] for d in self.out.delivers]


def transport(
    agreement, name: str, datagram_size: int, random: Scripted
) -> AlphaTransport:
    identity = Host(load("handshake")[name]).identity
    line = Line(agreement, Counters(), random, datagram_size, identity)
    made = AlphaTransport(line, 0.0, 0.0)
    made.add_first(agreement)
    return made


def cut_of(vector) -> Cut:
    first = raw(vector["bodies"][0])
    if "segments" not in vector:
        return Cut(0, b"", first[8:], len(first) - 8, len(first) - 8)
    headers, segments = raw(vector["headers"]), raw(vector["segments"])
    word = int.from_bytes(first[:8])
    return Cut(word, headers, b"".join(segments), len(segments[0]), 0)


def last_inner(vector) -> list[bytes]:
    """What comes out of the tunnel: one packet, one super-packet, or nothing."""
    if "segments" in vector:
        return [raw(vector["headers"]) + b"".join(raw(vector["segments"]))]
    packet = raw(vector["bodies"][0])[8:]
    return [packet] if packet else []


@pytest.mark.parametrize("name", ROUNDS)
def test_sender_makes_the_round(name):
    vector = load("rounds")[name]
    ends = Ends(vector["datagram_size"])
    mode = "adaptive" if name == "keepalive" else name
    ends.one.sender.restrict(mode, dict.fromkeys(MODES, 0))
    if name == "keepalive":
        ends.one.keepalive(0.0, ends.out)
    else:
        ends.one.outgoing(cut_of(vector), 0.0, ends.out)
        ends.one.push(0.0, ends.out)
    assert ends.sent() == [raw(vector["s1"])]
    ends.arrive(ends.one, [raw(vector["a1"])])
    assert ends.sent() == raw(vector["s2"])


@pytest.mark.parametrize("name", ROUNDS)
def test_receiver_takes_the_round(name):
    vector = load("rounds")[name]
    ends = Ends()
    ends.arrive(ends.two, [raw(vector["s1"])])
    assert ends.sent() == [raw(vector["a1"])]
    ends.arrive(ends.two, raw(vector["s2"]))
    assert len(ends.delivered()) == len(vector.get("segments", last_inner(vector)))
    assert ends.two.line.counters.drops == {}


@pytest.mark.parametrize("name", ["n", "c", "m", "cm"])
def test_receiver_gives_back_what_was_sent(name):
    vector = load("rounds")[name]
    ends = Ends()
    ends.arrive(ends.two, [raw(vector["s1"])])
    ends.sent()
    s2 = raw(vector["s2"])
    run = b"".join(s2)
    consumed, arrival = ends.two.incoming(
        memoryview(run), len(s2[0]), REMOTE, b"", lambda packet: True, 0.0, ends.out
    )
    assert (consumed, arrival) == (len(run), Arrival.DATA)
    assert ends.delivered() == last_inner(vector)


@pytest.mark.parametrize("name", ROUNDS)
def test_receiver_refuses_the_round_with_any_packet_altered(name):
    vector = load("rounds")[name]
    ends = Ends()
    ends.arrive(ends.two, [raw(vector["s1"])])
    s2 = [bytes([*d[:-1], d[-1] ^ 1]) for d in raw(vector["s2"])]
    ends.arrive(ends.two, s2)
    assert ends.delivered() == []
    assert ends.two.line.counters.drops == {Drop.FORGED: len(s2)}


# Early data


def early_ends() -> Ends:
    return Ends(session="early")


def cuts_of(vector) -> list[Cut]:
    """What is read from the TUN to make these bodies."""
    bodies = raw(vector["bodies"])
    word = int.from_bytes(bodies[0][:8]) if bodies else 0
    if not word:
        return [Cut(0, b"", b[8:], len(b) - 8, len(b) - 8) for b in bodies]
    segments = [body[36:] for body in bodies]
    return [Cut(word, bodies[0][8:36], b"".join(segments), len(segments[0]), 0)]


def send_early(ends: Ends, at: AlphaTransport, vector) -> None:
    if not vector["bodies"]:
        at.sender.early.state = EarlyState.TRYING
    for cut in cuts_of(vector):
        at.outgoing(cut, 0.0, ends.out)
    at.push(0.0, ends.out)


def test_sender_makes_early_rounds():
    vectors_, ends = load("early"), early_ends()
    for name in EARLY:
        vector = vectors_[name]
        send_early(ends, ends.one, vector)
        assert ends.sent() == [raw(vector["s1"])]
        assert ends.arrive(ends.one, [raw(vector["a1"])]) == [Arrival.KEEPALIVE]
        assert ends.sent() == [raw(vector["s2"])]
    assert ends.one.sender.early.state is EarlyState.ON
    assert ends.one.line.counters.drops == {}
    sent = sum(len(vectors_[name]["bodies"]) for name in EARLY)
    assert ends.one.line.counters.early_sent == sent


def test_the_other_end_makes_its_early_rounds():
    vector, ends = load("early")["back"], early_ends()
    send_early(ends, ends.two, vector)
    assert ends.sent() == [raw(vector["s1"])]
    ends.arrive(ends.two, [raw(vector["a1"])])
    assert ends.sent() == [raw(vector["s2"])]
    ends.arrive(ends.one, [raw(vector["s1"])])
    assert ends.delivered() == [raw(vector["bodies"][0])[8:]]


def inner_of(vector) -> list[bytes]:
    """What comes out of the tunnel: packets, or one super-packet."""
    return [cut.headers + cut.payload for cut in cuts_of(vector)]


def test_receiver_delivers_early_data_once():
    ends = early_ends()
    for name in EARLY:
        vector = load("early")[name]
        s1, a1 = raw(vector["s1"]), raw(vector["a1"])
        some = Arrival.DATA if vector["bodies"] else Arrival.KEEPALIVE
        assert ends.arrive(ends.two, [s1, s1]) == [some, Arrival.NOTHING]
        assert ends.sent() == [a1, a1]
        proof = [raw(vector["s2"])]
        assert ends.arrive(ends.two, proof) == [Arrival.KEEPALIVE]
        assert ends.delivered() == inner_of(vector)
        ends.out.delivers.clear()
    assert ends.two.line.counters.drops == {}
    assert ends.two.receiver.counts.passed == len(EARLY)


@pytest.mark.parametrize("name", EARLY)
def test_receiver_takes_early_data_only_as_it_was_sent(name):
    vector = load("early")[name]
    s1, s2 = raw(vector["s1"]), raw(vector["s2"])
    ends = early_ends()
    changed = [*range(8, len(s1), 7)]
    ends.arrive(
        ends.two, [s1[:at] + bytes([s1[at] ^ 1]) + s1[at + 1 :] for at in changed]
    )
    assert (ends.sent(), ends.delivered()) == ([], [])
    assert ends.two.line.counters.drops == {Drop.BAD_ROUND: len(changed)}
    ends.two.line.counters.drops.clear()
    ends.arrive(ends.two, [s1, s2 + bytes(16), s2[:32] + bytes(8)])
    assert ends.two.line.counters.drops == {Drop.FORGED: 2}
    assert ends.arrive(ends.two, [s2, s2]) == [Arrival.KEEPALIVE, Arrival.NOTHING]
    assert ends.two.line.counters.drops == {Drop.FORGED: 2, Drop.REPLAYED: 1}


def test_who_did_not_give_the_option_takes_no_early_data():
    """The keys of this session are others, so the message is made anew."""
    ends = Ends(session="early_initiator")
    ends.one.sender.early.state = EarlyState.ON
    send_early(ends, ends.one, load("early")["one"])
    ends.arrive(ends.two, ends.sent())
    assert (ends.sent(), ends.delivered()) == ([], [])
    assert ends.two.line.counters.drops == {Drop.BAD_ROUND: 1}


# Reliable rounds


def reliable_ends(vector) -> Ends:
    ends = Ends(vector["datagram_size"], raw(vector["acknowledgment_seed"]))
    ends.one.sender.reliable = True
    return ends


def test_sender_makes_the_reliable_round():
    vector = load("rounds")["reliable"]
    ends = reliable_ends(vector)
    ends.one.outgoing(cut_of(vector), 0.0, ends.out)
    ends.one.push(0.0, ends.out)
    assert ends.sent() == [raw(vector["s1"])]
    ends.arrive(ends.one, [raw(vector["a1"])])
    assert ends.sent() == raw(vector["s2"])


@pytest.mark.parametrize("name", ["a2_acknowledged", "a2_acknowledged_alone"])
def test_sender_takes_the_verdicts_of_the_reliable_round(name):
    vector = load("rounds")["reliable"]
    ends = reliable_ends(vector)
    ends.one.outgoing(cut_of(vector), 0.0, ends.out)
    ends.one.push(0.0, ends.out)
    ends.arrive(ends.one, [raw(vector["a1"])])
    association = ends.one.sender.associations[0]
    for a2 in raw(vector[name]):
        assert association.round is not None
        assert ends.arrive(ends.one, [a2]) == [Arrival.KEEPALIVE]
    assert association.round is None
    assert ends.one.line.counters.drops == {}


def test_receiver_acknowledges_the_reliable_round():
    vector = load("rounds")["reliable"]
    ends = reliable_ends(vector)
    ends.arrive(ends.two, [raw(vector["s1"])])
    assert ends.sent() == [raw(vector["a1"])]
    s2 = raw(vector["s2"])
    ends.arrive(ends.two, s2)
    assert ends.sent() == raw(vector["a2_acknowledged_alone"])
    assert len(ends.delivered()) == len(s2)
    run = memoryview(b"".join(s2))  # the same again, in one piece
    view = run, len(s2[0]), REMOTE, b"", lambda packet: True, 0.0, ends.out
    assert ends.two.incoming(*view) == (len(run), Arrival.NOTHING)
    assert ends.sent() == raw(vector["a2_acknowledged"])
    assert len(ends.delivered()) == len(s2)


def test_receiver_refuses_the_reliable_round():
    vector = load("rounds")["reliable"]
    ends = reliable_ends(vector)
    ends.arrive(ends.two, [raw(vector["s1"])])
    ends.sent()
    s2 = raw(vector["s2"])
    run = memoryview(b"".join(s2))
    view = run, len(s2[0]), REMOTE, b"", lambda packet: False, 0.0, ends.out
    ends.two.incoming(*view)
    assert ends.sent() == raw(vector["a2_refused"])
    assert ends.delivered() == []


# Control messages


def control_ends() -> Ends:
    vector = load("control")
    seeds = [raw(vector[name]["acknowledgment_seed"]) for name in CONTROLS]
    chain_seed = raw(vector["acknowledgment_chain_seed"])
    return Ends(1472, seeds[0], chain_seed, *seeds[1:])


def test_trace_is_made():
    message = raw(load("control")["trace"]["message"])
    assert trace_message(raw(load("report")["nonce"])) == message


@pytest.mark.parametrize("name", CONTROLS)
def test_sender_makes_the_control_round(name):
    control = load("control")
    ends = control_ends()
    for before in CONTROLS[: CONTROLS.index(name)]:
        vector = control[before]
        ends.one.sender.controls.send([raw(vector["message"])], 0.0, ends.out)
        ends.arrive(ends.one, [raw(vector["a1"]), raw(vector["a2"])])
    ends.sent()
    vector = control[name]
    ends.one.sender.controls.send([raw(vector["message"])], 0.0, ends.out)
    assert ends.sent() == [raw(vector["s1"])]
    ends.arrive(ends.one, [raw(vector["a1"])])
    assert ends.sent() == raw(vector["s2"])
    association = ends.one.sender.associations[0]
    assert association.open_rounds
    ends.arrive(ends.one, [raw(vector["a2"])])
    assert not association.open_rounds
    assert ends.one.line.counters.drops == {}


def test_receiver_takes_control_messages_and_accepts_an_association():
    vector = load("control")
    ends = control_ends()
    answer_control(ends, vector["open"])
    while ends.two.deadline < 0:
        ends.two.on_deadline(0.0, ends.out)
    opened = ends.two.receiver.associations[1]
    assert opened.chain.length == vector["chain_length"] == LATER_SPACING**2
    assert opened.chain.anchor == raw(vector["accept"]["message"])[4:]
    assert opened.signatures.element == raw(vector["open"]["message"])[4:]
    assert ends.sent() == [raw(vector["accept"]["s1"])]
    ends.arrive(ends.two, [raw(vector["accept"]["a1"])])
    assert ends.sent() == raw(vector["accept"]["s2"])
    answer_control(ends, vector["close"])
    assert set(ends.two.receiver.associations) == {0}
    answer_control(ends, vector["unknown"])
    report = raw(load("report")["responder"]["report"])
    answer_control(ends, vector["trace"], report)


def test_report_of_a_relay():
    vector = load("report")["relay"]
    identity = Identity(raw(vector["identity_seed"]))
    report = Report(
        vectors.INITIATOR_ID,
        raw(load("report")["nonce"]),
        identity.public,
        Role.RELAY,
        Counts(*vector["forth"]),
        Counts(*vector["back"]),
        raw(vector["address"]),
        vector["hop_limit"],
    )
    assert report.signed(identity) == raw(vector["report"])
    arrived = parse_report_untrusted(raw(vector["report"]))
    arrived.verify_untrusted()
    assert evolve(arrived, signature=bytes(64)) == report


def answer_control(ends: Ends, vector, *reports: bytes) -> None:
    ends.arrive(ends.two, [raw(vector["s1"])])
    assert ends.sent() == [raw(vector["a1"])]
    ends.arrive(ends.two, raw(vector["s2"]))
    assert ends.sent() == [*reports, raw(vector["a2"])]


# Without protection


def test_plain_datagrams():
    vector = load("plain")
    here, there = agreements("plain")
    sender = PlainTransport(here, Counters(), 0.0, 0.0)
    receiver = PlainTransport(there, Counters(), 0.0, 0.0)
    whole, *segmented = raw(vector["bodies"])
    headers, segments = segmented[0][8:36], [body[36:] for body in segmented]
    word = int.from_bytes(segmented[0][:8])
    out = Outbox()
    sender.outgoing(Cut(0, b"", whole[8:], len(whole) - 8, 0), 0.0, out)
    sender.outgoing(
        Cut(word, headers, b"".join(segments), len(segments[0]), 0), 0.0, out
    )
    sender.keepalive(0.0, out)
    sent = [bytes(d) for send in out.sends for d in send.datagrams()]
    assert sent == [*raw(vector["data"]), raw(vector["keepalive"])]
    arrivals = []
    for datagram in sent:
        view = memoryview(datagram), len(datagram), REMOTE, b""
        taken = receiver.incoming(*view, lambda packet: True, 0.0, out)
        arrivals.append(taken[1])
    assert arrivals == [Arrival.DATA] * 3 + [Arrival.KEEPALIVE]
    assert b"".join(out.delivers[0].parts)[10:] == whole[8:]
