"""kernel.c, as far as it is there; ``Kernel`` says what the functions do."""

from typing import Any

from alpha_trio.proto.batch import Buffer
from alpha_trio.proto.engine.face import Frame, Joined, Span

libcrypto: str

def pairs(wanted: bool, /) -> bool: ...
def cipher(key: bytes, /) -> Any: ...
def descend(chain_id: bytes, position: int, element: bytes, count: int, /) -> bytes: ...
def seal(
    cipher: Any,
    place: bytes,
    head: bytes,
    leaf_block: bytes,
    key_block: bytes,
    depth: int,
    frames: list[Frame],
    /,
) -> tuple[bytearray, list[Span], bytes]: ...
def check(
    view: Buffer,
    stride: int,
    head: bytes,
    least: int,
    depth: int,
    leaf_block: bytes,
    key_block: bytes,
    roots: bytes,
    packets: int,
    /,
) -> bytes: ...
def open(
    cipher: Any,
    place: bytes,
    offset: int,
    view: Buffer,
    stride: int,
    size: int,
    most_packets: int,
    most_bytes: int,
    /,
) -> list[Joined]: ...
