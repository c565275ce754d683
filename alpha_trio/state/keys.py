"""The key of this host, in a file of its own that only its owner may read."""

from __future__ import annotations

import errno
import os
from base64 import b64decode, b64encode
from pathlib import Path

from alpha_trio.errors import StartError
from alpha_trio.proto.messages import KEY_SIZE
from alpha_trio.proto.primitives import Identity
from alpha_trio.settings import files
from alpha_trio.state.directory import StateDirectory

KEY_FILE = "host.key"

_LET_READ = "run this as root, or as the user the file belongs to"
_REMEDIES = {errno.EACCES: _LET_READ, errno.EPERM: _LET_READ}
_OTHER_REMEDY = "mend that, or choose another place by --state-dir"

_OTHERS = 0o077  # every right of group and others


def load_identity(directory: StateDirectory) -> Identity:
    """The identity of this host; at the first start a new one, saved before use.

    Raises:
      StartError: the key file cannot be read or trusted.  It stays as it is.
      StateError: there was none, and a new one cannot be saved.
    """
    identity = read_identity(directory.path)
    if identity is None:
        identity = Identity(os.urandom(KEY_SIZE))
        directory.create(KEY_FILE, _text(identity))
    directory.remember(KEY_FILE, _text(identity))
    return identity


def _text(identity: Identity) -> bytes:
    return b64encode(identity.seed) + b"\n"


def read_identity(state_dir: Path) -> Identity | None:
    """The identity saved in a state directory; None if none was made yet.

    Raises:
      StartError: the key file cannot be read or trusted.
    """
    path = state_dir / KEY_FILE
    try:
        with files.ordinary(path) as file:
            status = os.fstat(file.fileno())
            content = file.read(files.MOST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(
            f"{path}: cannot be read: {error.strerror}; "
            f"{_REMEDIES.get(error.errno or 0, _OTHER_REMEDY)}"
        ) from None
    if status.st_uid not in (0, os.geteuid()):
        raise StartError(
            f"{path}: the secret key of this host belongs to somebody else; take it by "
            f"'chown root {path}', or move the file away for a new key"
        )
    if status.st_mode & _OTHERS:
        raise StartError(
            f"{path}: others may read or change the secret key of this host; forbid it "
            f"by 'chmod 600 {path}', or move the file away for a new key if they did"
        )
    return Identity(_parse(content, path))


def _parse(content: bytes, path: Path) -> bytes:
    try:
        seed = b64decode(content.strip(), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != KEY_SIZE:
        raise StartError(
            f"{path}: damaged: it does not hold {KEY_SIZE} bytes in base64; restore it "
            "from a backup, or move it away for a new key, which every peer then has "
            "to accept by 'alpha-trio peers set NAME --key KEY'"
        )
    return seed
