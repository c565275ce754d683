"""kernel.c, as far as it is there; ``Kernel`` says what the functions do."""

from alpha_trio.proto.engine.face import Kernel

libcrypto: str

def pairs(wanted: bool, /) -> bool: ...

_kernel: Kernel
cipher = _kernel.cipher
descend = _kernel.descend
seal = _kernel.seal
check = _kernel.check
open = _kernel.open
