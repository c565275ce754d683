"""Runs of equal pieces, against slicing them one by one."""

from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.proto import engine
from alpha_trio.proto.messages import (
    ROUND_HEAD_SIZE,
    S2_TAIL,
    join_frames,
    split,
    take_bodies,
    take_run,
)
from alpha_trio.proto.messages import runs as runs_module
from alpha_trio.proto.packets import FRAME_WORD_SIZE

PREFIX, OTHER = b"p" * ROUND_HEAD_SIZE, b"q" * ROUND_HEAD_SIZE
HEADS = S2_TAIL.size + FRAME_WORD_SIZE


@given(st.binary(max_size=300), st.integers(0, 50), st.integers(1, 40))
def test_split_gives_every_byte_once_in_order(data, start, size):
    start = min(start, len(data))
    pieces = split(data, start, size)
    assert b"".join(pieces) == data[start:]
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces[-1:])


@st.composite
def runs(draw):
    """Datagrams of one stride, the last perhaps shorter; some of another round."""
    branch = draw(st.sampled_from([0, 16, 48]))
    size = draw(st.integers(0, 40))
    last = draw(st.integers(0, size))
    ours = draw(st.lists(st.booleans(), min_size=1, max_size=8))
    fill = draw(st.binary(min_size=1, max_size=1))
    lengths = [size] * (len(ours) - 1) + [last]
    datagrams = [
        (PREFIX if is_ours else OTHER) + bytes([i]) * branch + fill * length
        for i, (is_ours, length) in enumerate(zip(ours, lengths, strict=True))
    ]
    return datagrams, branch, draw(st.integers(1, 20))


@given(runs())
def test_a_run_is_what_begins_alike_and_is_long_enough(case):
    datagrams, branch, least = case
    expected = []
    for datagram in datagrams:
        rest = datagram[ROUND_HEAD_SIZE + branch :]
        if not datagram.startswith(PREFIX) or len(rest) < least:
            break
        expected.append((datagram[ROUND_HEAD_SIZE:][:branch], rest))
    view = memoryview(b"".join(datagrams))
    run = take_run(view, len(datagrams[0]), PREFIX, branch, least)
    assert run.packets == [rest for _, rest in expected]
    assert run.branches == ([nodes for nodes, _ in expected] if branch else None)
    taken = b"".join(datagrams[: len(expected)])
    assert (run.size, run.view) == (len(taken), taken)
    begin, whole = ROUND_HEAD_SIZE + branch, len(expected)
    for first in range(whole):
        stretch = b"".join(datagrams[first : min(first + 2, whole)])[begin:]
        judged = engine.Run(run.view, run.stride, run.start, bytes(whole))
        assert judged.stretch(first, first + 2) == stretch


def test_a_run_of_others_is_not_taken_apart():
    """Whoever makes up runs of all sizes must not displace the layouts in use."""
    before = runs_module._heads_layout.cache_info()
    for size in range(20, 400):
        view = memoryview((OTHER + bytes(size)) * 8)
        run = take_run(view, ROUND_HEAD_SIZE + size, PREFIX, 0, 16)
        assert (run.packets, run.size) == ([], 0)
    assert runs_module._heads_layout.cache_info() == before


@given(
    st.integers(0, 60),
    st.integers(0, 2**64 - 100),
    st.binary(max_size=40),
    st.lists(st.binary(min_size=5, max_size=5), max_size=6),
    st.binary(min_size=1, max_size=5),
)
def test_what_was_joined_is_taken_apart_again(fixed, word, headers, segments, last):
    segments = [*segments, last]
    plain = join_frames(fixed + S2_TAIL.size, word, headers, segments)
    size = HEADS + len(headers) + len(segments[0])
    frames, bodies = take_bodies(memoryview(plain)[fixed:], fixed + size, size)
    step = 1 if headers else 0  # segments are numbered, packets that stay whole are not
    assert frames == tuple(word + step * i for i in range(len(segments)))
    assert [bodies[i] for i in range(len(frames))] == [headers + s for s in segments]
    assert bodies.tails(1, len(frames), len(headers)) == segments[1:]


def test_keepalives_have_no_body():
    for count in (1, 2):
        assert take_bodies(memoryview(bytes(count * HEADS)), HEADS, HEADS)[0] == ()
    with_rest = join_frames(S2_TAIL.size, 7, b"", [b"packet"]) + bytes(HEADS)
    frames, bodies = take_bodies(memoryview(with_rest), HEADS + 6, HEADS + 6)
    assert frames == (7,)
    assert bodies[0] == b"packet"
