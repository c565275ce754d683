"""Two kernels, one behaviour: what one seals the other opens, and both refuse alike."""

import gc
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpha_trio.proto import engine
from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES
from alpha_trio.proto.engine import choice, reference, selftest
from alpha_trio.proto.engine.face import FOLLOWS, FORGED, PROMISED, round_place
from alpha_trio.proto.messages import MAX_DEPTH, NODE_SIZE, ROUND_HEAD_SIZE, S2_TAIL
from alpha_trio.proto.packets.frames import cut
from alpha_trio.proto.primitives import Presigner
from tests.proto.inner import TCP, UDP, Packet

native = pytest.importorskip("alpha_trio.proto.engine._kernel")

KEY = bytes(range(32))
LEAF, KEYED = b"l" * 64, b"s" * 64
HEAD = b"h" * ROUND_HEAD_SIZE
LIMITS = MAX_DATAGRAMS, MAX_SEND_BYTES
TAIL_AND_WORD = 16
BOTH = pytest.mark.parametrize("kernel", [reference, native], ids=["python", "native"])

fixed = settings(deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module", params=[False, True])
def pairs(request):
    """Once with libcrypto's SHA-256 alone, once with two packets hashed at once."""
    if native.pairs(request.param) is not request.param:
        pytest.skip("the processor has no instructions for SHA-256")
    yield
    native.pairs(True)


@st.composite
def frames(draw):
    """What waits for a round: super-packets, single packets, keepalives."""
    waiting = []
    for _ in range(draw(st.integers(1, 6))):
        headers = draw(st.sampled_from([b"", b"", b"h" * 28, b"x" * 52]))
        size = draw(st.integers(1, 90))
        length = draw(st.integers(1, 9 * size if headers else size))
        begin, behind = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        payload = draw(st.binary(min_size=begin, max_size=begin))
        payload += bytes(i & 0xFF for i in range(length)) + bytes(behind)
        word = draw(st.integers(0, 2**64 - 1 - 0xFFFF))
        traffic_class = draw(st.sampled_from([0, 0, 2]))
        place = begin, begin + length, size
        waiting.append((word, headers, payload, *place, traffic_class))
    if draw(st.booleans()):
        waiting.append((0, b"", b"", 0, 0, 0, 0))
    return waiting


def sealed(kernel, depth, waiting, number=7):
    cipher = kernel.cipher(KEY)
    sealing = round_place(3, number), HEAD, LEAF, KEYED, depth
    buffer, spans, roots = kernel.seal(cipher, *sealing, waiting)
    return bytes(buffer), spans, roots


def judged(kernel, view, stride, depth, roots, packets, least=TAIL_AND_WORD):
    promised = HEAD, least, depth, LEAF, KEYED, roots, packets
    return kernel.check(view, stride, *promised)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_packets_of_every_length_are_hashed_alike(count):
    """Around the ends of a block there is one more for the length, or not."""
    for size in range(1, 140):
        text = bytes(range(size)) * count
        waiting = [(0, b"", text, 0, len(text), size, 0)]
        assert sealed(native, 0, waiting) == sealed(reference, 0, waiting)


@fixed
@given(st.integers(0, MAX_DEPTH), frames())
def test_rounds_are_sealed_alike(depth, waiting):
    assert sealed(native, depth, waiting) == sealed(reference, depth, waiting)


@BOTH
@fixed
@given(st.integers(0, MAX_DEPTH), frames())
def test_what_one_sealed_is_what_the_other_promised(kernel, depth, waiting):
    other = native if kernel is reference else reference
    buffer, spans, roots = sealed(other, depth, waiting)
    packets = spans[-1][1]
    for first, until, begin, end, stride, _ in spans:
        run = buffer[begin:end]
        verdicts = judged(kernel, run, stride, depth, roots, packets)
        follow = bytes([FOLLOWS]) * (until - first - 1)
        assert verdicts == bytes([PROMISED]) + follow


@fixed
@given(st.data(), st.integers(0, MAX_DEPTH), frames())
def test_altered_runs_are_judged_alike(data, depth, waiting):
    buffer, spans, roots = sealed(reference, depth, waiting)
    packets = spans[-1][1]
    _, _, begin, end, stride, _ = data.draw(st.sampled_from(spans))
    run = [buffer[i : min(i + stride, end)] for i in range(begin, end, stride)]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(run) - 1))
        deed = data.draw(st.sampled_from(["bit", "swap", "again", "cut"]))
        if deed == "bit" and run[at]:
            altered = bytearray(run[at])
            altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1
            run[at] = bytes(altered)
        elif deed == "cut":
            run[-1] = run[-1][: data.draw(st.integers(0, len(run[-1])))]
        elif deed == "again":
            run.insert(at, run[at])
        else:
            run[at], run[-1] = run[-1], run[at]
    view = b"".join(run)
    view = view[: data.draw(st.integers(0, len(view)))]
    roots = data.draw(st.sampled_from([roots, roots[:-NODE_SIZE], roots + b"r" * 16]))
    packets += data.draw(st.integers(-1, 1))
    promised = stride, depth, roots, packets
    assert judged(native, view, *promised) == judged(reference, view, *promised)


def test_what_does_not_follow_is_told():
    """A repeated packet and a gap make no stretch: both ends are as far apart."""
    frame = 0, b"", b"packet", 0, 6, 6, 0
    buffer, spans, roots = sealed(reference, 0, [frame] * 4)
    stride = spans[0][4]
    one, two, _, four = (buffer[i * stride : (i + 1) * stride] for i in range(4))
    for kernel in (reference, native):
        verdicts = judged(kernel, one + two + two + four, stride, 0, roots, 4)
        assert verdicts == bytes([PROMISED, FOLLOWS, PROMISED, PROMISED])


def test_offsets_do_not_begin_again():
    """A peer promises whatever he likes: that one follows at 0 what ends at 2**32."""
    size = ROUND_HEAD_SIZE + TAIL_AND_WORD
    offsets = 2**32 - size, 0
    packets = [S2_TAIL.pack(i, 0, at) + b"a word ." for i, at in enumerate(offsets)]
    roots = b"".join(Presigner.with_blocks(LEAF, KEYED, packets, 0).roots)
    run = b"".join(HEAD + packet for packet in packets)
    for kernel in (reference, native):
        verdicts = judged(kernel, run, size, 0, roots, 2)
        assert verdicts == bytes([PROMISED, PROMISED])


@pytest.mark.parametrize("depth", [0, 1])
def test_what_is_promised_twice_over_is_judged_alike(depth):
    """More packets than roots, and more roots than packets."""
    frame = 0, b"", b"packet", 0, 6, 6, 0
    buffer, spans, roots = sealed(reference, depth, [frame] * 4)
    stride = spans[0][4]
    for kernel in (reference, native):
        fewer = judged(kernel, buffer, stride, depth, roots[:NODE_SIZE], 9)
        assert [*map(bool, fewer)] == [n < 1 << depth for n in range(4)]
        assert [*map(bool, judged(kernel, buffer, stride, depth, roots, 3))] == [
            1,
            1,
            1,
            0,
        ]


def packet_frames():
    """Super-packets of TCP and UDP, and datagrams of one flow, as the TUN has them."""
    ports = st.sampled_from([(1, 2), (1, 3)])
    made = st.builds(
        lambda protocol, ports, size, count: Packet(
            protocol=protocol,
            ports=ports,
            payload=bytes(size * count),
            segment_size=size if count > 1 else 0,
        ).frame(),
        st.sampled_from([TCP, UDP]),
        ports,
        st.integers(1, 60),
        st.integers(1, 4),
    )
    return st.lists(made, min_size=1, max_size=8)


@fixed
@given(packet_frames(), st.integers(0, 2), st.data())
def test_packets_are_opened_alike(given_frames, depth, data):
    waiting = []
    for frame in given_frames:
        word, headers, payload, size, _, begin = cut(frame, 60_000)
        waiting.append((word, headers, payload, begin, len(payload), size, 0))
    buffer, spans, _ = sealed(reference, depth, waiting)
    before = ROUND_HEAD_SIZE + depth * NODE_SIZE
    for _, _, begin, end, stride, _ in spans:
        limits = data.draw(st.sampled_from([LIMITS, (2, 65_000), (64, 90)]))
        at = begin + before
        size = min(stride, end - begin) - before
        opening = round_place(3, 7), at, buffer[at:end], stride, size, *limits
        opened = native.open(native.cipher(KEY), *opening)
        assert opened == reference.open(reference.cipher(KEY), *opening)
        assert opened[0][0] == 0


@fixed
@given(st.binary(max_size=400), st.integers(1, 200), st.integers(0, 1 << 40), st.data())
def test_whatever_is_opened_is_opened_alike(view, stride, offset, data):
    """Nothing inside was checked: words and lengths are as a peer wants them."""
    size = data.draw(st.integers(1, stride))
    opening = round_place(3, 7), offset, view, stride, size, *LIMITS
    opened = native.open(native.cipher(KEY), *opening)
    assert opened == reference.open(reference.cipher(KEY), *opening)


@pytest.mark.parametrize("skip", [0, 1, 15, 16, 255])
def test_texts_of_every_length_are_encrypted_alike(skip):
    """Around whole blocks, from anywhere on."""
    cipher, expected = native.cipher(KEY), reference.cipher(KEY)
    for size in (1, 15, 16, 17, 239, 240, 241, 255, 256, 257, 511, 512, 513, 1000):
        view = bytes(i & 0xFF for i in range(TAIL_AND_WORD + size))
        for offset in (skip, 2**32 + skip, 2**36 - 256 + skip):
            opening = round_place(0xFFFF, 2**32 - 1), offset, view, len(view)
            opened = native.open(cipher, *opening, len(view), *LIMITS)
            assert len(opened[0][4]) == size
            assert opened == reference.open(expected, *opening, len(view), *LIMITS)


@fixed
@given(st.lists(st.sampled_from([0, 1, 7, 0x0114_2814_9000_0000]), max_size=6))
def test_frame_words_are_joined_alike(steps):
    """Words in sequence, with gaps, and at the end of their numbers."""
    word, text = 2**64 - 3, b""
    for step in steps:
        word = (word + step) % 2**64
        text += bytes(8) + struct.pack("!Q", word) + b"body" * 12
    place = round_place(3, 7)
    hidden = bytes(reference.cipher(KEY).apply(3, 7, 0, text))
    opening = place, 0, hidden, 64, 64, *LIMITS
    opened = native.open(native.cipher(KEY), *opening)
    assert opened == reference.open(reference.cipher(KEY), *opening)


@given(st.integers(0, 200), st.data())
def test_chains_are_made_alike(position, data):
    count = data.draw(st.integers(0, position))
    place = bytes(range(16)), position, b"e" * 16, count
    assert native.descend(*place) == reference.descend(*place)


# What a caller of ours must not ask for


WRONG = [
    (native.cipher, (b"short",)),
    (native.descend, (b"n" * 15, 9, b"e" * 16, 1)),
    (native.descend, (b"n" * 16, 9, b"e" * 16, 10)),
    (native.descend, (b"n" * 16, 9, b"e" * 16, -1)),
    (native.check, (b"", 0, HEAD, 16, 0, LEAF, KEYED, b"", 0)),
    (native.check, (b"", 9, HEAD[1:], 16, 0, LEAF, KEYED, b"", 0)),
    (native.check, (b"", 9, HEAD, 7, 0, LEAF, KEYED, b"", 0)),
    (native.check, (b"", 9, HEAD, 16, 9, LEAF, KEYED, b"", 0)),
    (native.check, (b"", 9, HEAD, 16, 0, LEAF, KEYED, b"r", 0)),
    (native.check, (b"", 9, HEAD, 16, 0, LEAF, KEYED, b"", -1)),
]


@pytest.mark.parametrize(("call", "arguments"), WRONG)
def test_what_makes_no_sense_is_refused(call, arguments):
    with pytest.raises(ValueError):
        call(*arguments)


@pytest.mark.parametrize(
    "frame",
    [
        (0, b"", b"", 0, 0, 0),
        (0, b"", b"text", 3, 2, 1, 0),
        (0, b"", b"text", 0, 5, 1, 0),
        (0, b"", b"text", 0, 4, 0, 0),
    ],
)
def test_a_frame_that_is_none_is_refused(frame):
    with pytest.raises(ValueError):
        sealed(native, 0, [frame])
    with pytest.raises(ValueError):
        sealed(native, 0, [])


FRAME = 0x05_1C_14_86_0014_0000, b"h" * 28, b"p" * 90, 0, 90, 20, 0


def seals_and_opens():
    buffer, spans, roots = sealed(native, 1, [FRAME])
    _, packets, begin, end, stride, _ = spans[0]
    assert judged(native, buffer, stride, 1, roots, packets)
    at = begin + ROUND_HEAD_SIZE + NODE_SIZE
    size = stride - ROUND_HEAD_SIZE - NODE_SIZE
    opening = round_place(3, 7), at, buffer[at:end], stride, size, *LIMITS
    assert native.open(native.cipher(KEY), *opening)
    native.descend(bytes(16), 9, b"e" * 16, 9)


def refuses():
    wrong = (native.seal, (native.cipher(KEY), bytes(8), HEAD, LEAF, KEYED, 9, []))
    more = (native.open, (native.cipher(KEY), bytes(8), 0, b"text", 0, 0, *LIMITS))
    for call, arguments in (*WRONG, wrong, more):
        with pytest.raises(ValueError):
            call(*arguments)
    for frame in (FRAME[:-1], ("word", *FRAME[1:]), (*FRAME[:3], 9, 8, 1, 0)):
        with pytest.raises((ValueError, TypeError)):
            sealed(native, 0, [FRAME, frame])


@pytest.mark.parametrize("use", [seals_and_opens, refuses])
def test_nothing_is_kept_of_a_call(use):
    """Neither of one that does what it is asked for, nor of one that refuses."""
    use()
    tracemalloc.start()
    try:
        use()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            use()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200 * 16  # less than the least object for each call


# Which of them is used


@pytest.fixture
def as_before():
    """What a test chooses does not last."""
    before = engine.chosen()
    yield
    engine.choose(before.name)


@pytest.mark.usefixtures("as_before")
def test_the_native_one_is_taken_unless_told_otherwise():
    assert engine.choose().name == "native"
    assert engine.choose("python").kernel is reference
    assert engine.chosen().name == "python"
    assert engine.choose("native").kernel is native
    with pytest.raises(engine.NoEngine, match="use auto, native or python"):
        engine.choose("fast")


def test_this_run_has_the_engine_that_it_was_asked_for(pytestconfig):
    asked = pytestconfig.getoption("engine") or engine.find("auto").name
    assert engine.chosen().name == asked


class Otherwise:
    """A kernel that does one thing as it should not."""

    def __init__(self, name, instead):
        self._name, self._instead = name, instead

    def __getattr__(self, name):
        return self._instead if name == self._name else getattr(reference, name)


def seals_without_its_last_root(*arguments):
    buffer, spans, roots = reference.seal(*arguments)
    return buffer, spans, roots[:-1]


def raises(*arguments):
    raise RuntimeError("no such thing")


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(
    ("name", "instead", "problem"),
    [
        ("seal", seals_without_its_last_root, "depth 0 are sealed otherwise"),
        ("check", lambda *arguments: b"\1" * 4, "depth 0 are checked otherwise"),
        ("open", lambda *arguments: [], "opened otherwise"),
        ("descend", lambda *arguments: b"", "chains are made otherwise"),
        ("cipher", raises, "RuntimeError: no such thing"),
    ],
)
def test_one_that_fails_its_test_is_not_used(name, instead, problem, monkeypatch):
    assert selftest.differs(reference) == ""
    assert problem in selftest.differs(Otherwise(name, instead))
    monkeypatch.setattr(choice, "differs", lambda kernel: "it does")
    found = engine.choose()
    assert (found.kernel, found.instead) == (reference, True)
    assert found.why == "the native one failed its self-test (it does)"
    with pytest.raises(engine.NoEngine, match="cannot be used: the native one failed"):
        engine.choose("native")


def test_forged_is_falsehood():
    assert not FORGED
