"""The two kernels, with the same made-up bytes: they have to make the same of them.

A script seals rounds, alters them as somebody on the way or a hostile peer might, and
has both kernels check, open and descend.  What they return is compared, and what they
raise, which is nothing: all of it is what the core would hand them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from typing import Any

from alpha_trio.proto.batch import MAX_DATAGRAMS, MAX_SEND_BYTES, Buffer
from alpha_trio.proto.engine import NATIVE, Frame, Kernel, find, reference, round_place
from alpha_trio.proto.messages import (
    MAX_DEPTH,
    NODE_SIZE,
    ROUND_HEAD_SIZE,
    S2_TAIL,
)
from alpha_trio.proto.primitives import Presigner
from tools.fuzz_world import HEADERS_SIZE, Choices, insist, one_of, packet

_MOST_STEPS = 40
_KEY, _LEAF, _KEYED = bytes(range(32)), b"l" * 64, b"s" * 64
_HEAD = b"h" * ROUND_HEAD_SIZE
_WORD_SIZE = 8
_LEAST = S2_TAIL.size + _WORD_SIZE
_NUMBERS = (0, 1, 2, 3, 63, 64, 255, 0xFFFE, 0xFFFF)
_OFFSETS = (0, 8, 64, 2**16, 2**31, 2**32 - 64, 2**32 - 16, 2**32 - 1)
# Whole packets, of flows and of nothing known; segments, also the last ones there are.
_WORDS = (
    0,
    0x00_00_14_86_0000_0000,
    0x00_00_28_86_0000_0000,
    0x05_1C_14_86_0014_0000,
    0x01_28_14_90_0014_0000,
    2**64 - 2,
    2**64 - 1,
)
_IPV4 = packet("192.168.10.60", "192.168.10.61", [bytes(20)])[-HEADERS_SIZE - 20 :]
_IPV6 = b"\x60" + bytes(5) + b"\x11\x40" + bytes(40)


def kernels(data: bytes) -> None:
    """A script for both; NoEngine where there is only one."""
    choices = Choices(data)
    for _ in range(_MOST_STEPS):
        if choices.over:
            break
        one_of(choices, _STEPS)(choices)


@cache
def native() -> Any:
    """The one that was built."""
    return find(NATIVE).kernel


def compare(what: str, call: Callable[[Kernel], object]) -> None:
    """Insist that both return the same, also if packets are hashed by pairs."""
    expected = call(reference)
    for pairs in (False, True):
        native().pairs(pairs)
        insist(call(native()) == expected, f"both kernels {what} alike")


# -- rounds ----------------------------------------------------------------------------


def sealed(choices: Choices) -> None:
    depth = choices.number(MAX_DEPTH + 1)
    frames = _frames(choices)
    compare("seal", lambda kernel: _sealed(kernel, depth, frames))


def _sealed(
    kernel: Kernel, depth: int, frames: list[Frame]
) -> tuple[bytes, list[tuple[int, ...]], bytes]:
    place = round_place(3, 7)
    sealing = kernel.cipher(_KEY), place, _HEAD, _LEAF, _KEYED, depth, frames
    buffer, spans, roots = kernel.seal(*sealing)
    return bytes(buffer), [*spans], roots


def _frames(choices: Choices) -> list[Frame]:
    return [_frame(choices) for _ in range(1 + choices.number(6))]


def _frame(choices: Choices) -> Frame:
    headers = bytes(one_of(choices, (0, 0, 0, 1, 28, 40, 100)))
    payload = choices.text()
    begin = choices.number(len(payload) + 1)
    end = begin + choices.number(len(payload) - begin + 1)
    length = max(1, end - begin)
    # Whole packets are one datagram each; so is what has one segment only.
    size = 1 + choices.number(length) if headers else length
    word = one_of(choices, _WORDS[:5])
    return word, headers, payload, begin, end, size, choices.number(2)


def checked(choices: Choices) -> None:
    """A run as it was sealed, and then altered; roots and numbers may be others."""
    depth = choices.number(MAX_DEPTH + 1)
    made = _of_a_peer if choices.number(2) else _of_a_hostile_one
    run, stride, roots, packets = made(choices, depth)
    for _ in range(choices.number(6)):
        _alter(choices, run, ROUND_HEAD_SIZE + depth * NODE_SIZE)
    view = b"".join(run)
    if choices.number(3) == 0:
        view = view[: choices.number(len(view) + 1)]
    if choices.number(4) == 0:
        stride = 1 + choices.number(2 * stride)
    if choices.number(4) == 0:
        roots = roots[: choices.number(len(roots) // NODE_SIZE + 1) * NODE_SIZE]
    least = one_of(choices, (_LEAST, _LEAST, S2_TAIL.size, 200))
    packets = one_of(choices, (packets, packets, *_NUMBERS))
    promised = _HEAD, least, depth, _LEAF, _KEYED, roots, packets
    compare("check", lambda kernel: kernel.check(_exact(view), stride, *promised))


Run = tuple[list[bytearray], int, bytes, int]
"""Datagrams, the distance of each from the next, roots, and how many were promised."""


def _of_a_peer(choices: Choices, depth: int) -> Run:
    """Some that are sent together, of a round as it should be."""
    buffer, spans, roots = _sealed(reference, depth, _frames(choices))
    _, _, begin, end, stride, _ = one_of(choices, spans)
    datagrams = range(begin, end, stride)
    run = [bytearray(buffer[at : min(at + stride, end)]) for at in datagrams]
    return run, stride, roots, spans[-1][1]


def _of_a_hostile_one(choices: Choices, depth: int) -> Run:
    """Datagrams that were promised, with whatever there is in them."""
    count, body = 1 + choices.number(9), choices.text()
    size = ROUND_HEAD_SIZE + depth * NODE_SIZE + S2_TAIL.size + len(body)
    first, step = one_of(choices, _OFFSETS), one_of(choices, (size, size, 0, 1))
    packets = [
        S2_TAIL.pack(number, choices.number(2), (first + number * step) % 2**32) + body
        for number in range(count)
    ]
    presigner = Presigner.with_blocks(_LEAF, _KEYED, packets, depth)
    run = [
        bytearray(_HEAD + bytes(presigner.branch(number) if depth else b"") + packet)
        for number, packet in enumerate(packets)
    ]
    return run, size, b"".join(presigner.roots), count


def _alter(choices: Choices, run: list[bytearray], start: int) -> None:
    """Do one thing to a run that is not as it should be."""
    deed, at = choices.number(5), choices.number(len(run))
    datagram = run[at]
    if deed == 0:
        run.insert(at, bytearray(datagram))
    elif deed == 1:
        other = choices.number(len(run))
        run[at], run[other] = run[other], run[at]
    elif deed == 2:
        del run[-1][choices.number(len(run[-1]) + 1) :]
    elif deed == 3 and len(datagram) >= start + S2_TAIL.size:
        index, offset = one_of(choices, _NUMBERS), one_of(choices, _OFFSETS)
        S2_TAIL.pack_into(datagram, start, index, choices.number(2), offset)
    elif datagram:
        datagram[choices.number(len(datagram))] ^= 1 << choices.number(8)


def opened(choices: Choices) -> None:
    """Packets of a peer, who has put into them what he likes."""
    count, size = 1 + choices.number(9), 1 + choices.number(120)
    word, step = one_of(choices, _WORDS), choices.number(2)
    inside = one_of(choices, (b"", _IPV4, _IPV6))
    text = bytearray()
    for number in range(count):
        text += bytes(S2_TAIL.size) + ((word + number * step) % 2**64).to_bytes(8)
        text += (inside + choices.take(choices.number(60))).ljust(size, b".")[:size]
    for _ in range(choices.number(4)):
        text[choices.number(len(text))] ^= 1 << choices.number(8)
    del text[choices.number(2 * len(text)) + 1 :]
    _compare_opened(choices, bytes(text), S2_TAIL.size + _WORD_SIZE + size)


def made_up(choices: Choices) -> None:
    """Bytes that only look like a run, in places that make no sense."""
    view, stride = choices.text(), 1 + choices.number(300)
    if choices.number(2):
        _compare_opened(choices, view, stride)
        return
    view = _HEAD + view
    depth, packets = choices.number(MAX_DEPTH + 1), one_of(choices, _NUMBERS)
    roots = choices.take(NODE_SIZE).ljust(NODE_SIZE) * choices.number(5)
    promised = _HEAD, _LEAST, depth, _LEAF, _KEYED, roots, packets
    compare("check", lambda kernel: kernel.check(_exact(view), stride, *promised))


def _compare_opened(choices: Choices, text: bytes, stride: int) -> None:
    offset = one_of(choices, _OFFSETS) + choices.number(40)
    size = stride - (choices.number(stride) if choices.number(3) == 0 else 0)
    limits = one_of(choices, ((MAX_DATAGRAMS, MAX_SEND_BYTES), (2, 65_000), (64, 90)))
    hidden = reference.cipher(_KEY).apply(3, 7, offset, text)
    opening = round_place(3, 7), offset, _exact(hidden), stride, size, *limits
    compare("open", lambda kernel: kernel.open(kernel.cipher(_KEY), *opening))


def _exact(view: Buffer) -> memoryview:
    """The same bytes, with nothing behind them that may be read without notice."""
    return memoryview(array("B", view))


# -- chains ----------------------------------------------------------------------------


def descended(choices: Choices) -> None:
    """Elements from anywhere in a chain, as far as there are any."""
    name, element = (choices.take(NODE_SIZE).ljust(NODE_SIZE) for _ in range(2))
    position = one_of(choices, (choices.number(50), 2**16, 2**31, 2**32 - 1))
    count = choices.number(1 + min(position, 40))
    place = name, position, element, count
    compare("descend", lambda kernel: kernel.descend(*place))


_STEPS = (sealed, checked, opened, made_up, descended)


def script(step: Callable[[Choices], None], *numbers: int) -> bytes:
    """What is read as this step, and then these numbers."""
    words = _STEPS.index(step), *numbers
    return b"".join(number.to_bytes(2) for number in words)


SEEDS = [
    *(script(sealed, depth, 2, 0, 3, 600, 0, 600, 20, 1) for depth in range(4)),
    *(script(checked, depth, 0, 8, 40, 7, 1, 3, 0) for depth in range(4)),
    *(script(checked, depth, 1, 2, 3, 600, 0, 600, 20) for depth in range(4)),
    *(script(opened, 8, size, 1, 0, 1) for size in (30, 60, 90)),
    script(made_up, 90, 40),
    script(descended, 5, 6, 7),
]
