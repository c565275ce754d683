"""The native engine in packages: what it is linked with, and what is said of that.

A wheel is for Linux systems with any libcrypto or none, so it brings its own, linked
into the module: that it asks for nothing but an old enough C library is what the name
manylinux promises.  With it come OpenSSL's licence and a bill of materials (PEP 770).

The Debian package uses the system's libcrypto, as security updates reach that one.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from tools import package_parts

LIBRARY = "alpha_trio/proto/engine/_kernel.abi3.so"

_OWN_LIBCRYPTO = "libcrypto.a"
_REMEDY = "install gcc, libc6-dev, libssl-dev and python3-dev"
_OF_EVERY_SYSTEM = {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
_OF_THE_SYSTEM = {"libcrypto.so.3"}
# Paths of whoever builds, and what is only good for a debugger, are not packed.
_COMPILED = "-g0"
_LINKED = "-Wl,--build-id=none -Wl,--as-needed -s"
# Other modules of the same process have a libcrypto as well: they do not see this one.
_HIDDEN = "-Wl,--exclude-libs,ALL -Wl,--gc-sections"
_LICENCE, _TEXT = "License-Expression: MIT", "License-File: LICENSE"
_ASK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_kernel", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.libcrypto)
"""


class NativeError(Exception):
    """A native engine that cannot be packed; one line."""


# Building


def with_own_libcrypto(folder: Path) -> Mapping[str, str]:
    """Settings for the compiler, for a module that has libcrypto in it.

    Args:
      folder: an empty one, where the linker looks first.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, f"-print-file-name={_OWN_LIBCRYPTO}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        raise NativeError(f"no C compiler: {_REMEDY}") from None
    archive = Path(done.stdout.strip())
    if not archive.is_absolute():
        raise NativeError(f"no {_OWN_LIBCRYPTO}: {_REMEDY}")
    # With nothing else beside it, the linker cannot take the shared library.
    (folder / _OWN_LIBCRYPTO).symlink_to(archive)
    return {
        "CFLAGS": _COMPILED,
        "LDFLAGS": f"{_LINKED} {_HIDDEN} -L{shlex.quote(str(folder))}",
    }


def with_the_systems() -> Mapping[str, str]:
    """Settings for the compiler, for a module that looks for libcrypto when loaded."""
    return {"CFLAGS": _COMPILED, "LDFLAGS": _LINKED}


def not_at_all() -> Mapping[str, str]:
    """Settings without which nothing is compiled, as for another architecture."""
    return {"CC": "false"}


# What came of it


@frozen
class Library:
    """A module that was built."""

    needs: frozenset[str]  # names of other libraries
    glibc: tuple[int, int]  # the oldest C library that will do


def library_of(wheel: Path, place: Path, *, own_libcrypto: bool) -> Library:
    """Look at the module in a wheel, which has to be there and be as it was asked for.

    Args:
      place: where it is written to; stays.
    """
    with zipfile.ZipFile(wheel) as archive:
        if LIBRARY not in archive.namelist():
            raise NativeError(f"the native engine was not built: {_REMEDY}")
        place.write_bytes(archive.read(LIBRARY))
    library = _looked_at(place)
    allowed = _OF_EVERY_SYSTEM | (set() if own_libcrypto else _OF_THE_SYSTEM)
    if more := library.needs - allowed:
        raise NativeError(f"the native engine needs {', '.join(sorted(more))}, too")
    return library


def _looked_at(path: Path) -> Library:
    command = ["objdump", "--private-headers", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NativeError(f"objdump failed: {done.stderr.strip()}")
    versions = re.findall(r"\sGLIBC_(\d+)\.(\d+)", done.stdout)
    return Library(
        needs=frozenset(re.findall(r"(?m)^\s+NEEDED\s+(\S+)", done.stdout)),
        glibc=max((int(major), int(minor)) for major, minor in versions),
    )


# Saying so


def declared(wheel: Path, library: Library, path: Path, source: Path) -> Path:
    """Write the wheel again, with a name that says where it runs, and what is in it.

    Args:
      path: of the module that is in the wheel.
      source: the program's files, with OpenSSL's licence.
    """
    entries = _entries(wheel)
    (home,) = {name.partition("/")[0] for name in entries if ".dist-info/" in name}
    pattern = entries[f"{home}/WHEEL"][0]
    own = wheel.stem.rpartition("-")[2]
    platform = "manylinux_{}_{}".format(*library.glibc) + f"_{os.uname().machine}"
    _edit(entries, f"{home}/WHEEL", own, platform)
    _edit(entries, f"{home}/METADATA", _LICENCE, f"{_LICENCE} AND Apache-2.0")
    _edit(entries, f"{home}/METADATA", _TEXT, f"{_TEXT}\nLicense-File: openssl.txt")
    licence = (source / "packaging/licences/openssl.txt").read_bytes()
    bill = _bill(_libcrypto_in(path)).encode()
    entries[f"{home}/licenses/openssl.txt"] = pattern, licence
    entries[f"{home}/sboms/openssl.cdx.json"] = pattern, bill
    _edit_record(entries, f"{home}/RECORD")
    wheel.unlink()
    return _write(wheel.with_name(wheel.name.replace(own, platform)), entries)


Entries = dict[str, tuple[zipfile.ZipInfo, bytes]]
"""Files of a wheel: what it has beside its bytes (time, mode), and these."""


def _entries(wheel: Path) -> Entries:
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: (info, archive.read(info)) for info in archive.infolist()
        }


def _edit(entries: Entries, name: str, old: str, new: str) -> None:
    info, data = entries[name]
    if old.encode() not in data:
        raise NativeError(f"{name} of the wheel is not as it was expected")
    entries[name] = info, data.replace(old.encode(), new.encode())


def _edit_record(entries: Entries, name: str) -> None:
    """Renew the list of a wheel's files, which has no sum of itself."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for path, (_, data) in sorted(entries.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
        value = f"sha256={digest.decode().rstrip('=')}"
        rows.writerow((path, "", "") if path == name else (path, value, len(data)))
    entries[name] = entries[name][0], text.getvalue().encode()


def _write(wheel: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, (like, data) in sorted(entries.items()):
            info = zipfile.ZipInfo(name, like.date_time)
            info.external_attr = like.external_attr
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return wheel


def _libcrypto_in(path: Path) -> str:
    """Which OpenSSL a module has: it says so itself."""
    command = [sys.executable, "-ISB", "-c", _ASK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.match(r"OpenSSL (\S+)", done.stdout)
    if found is None:
        raise NativeError(f"the native engine cannot be loaded: {done.stderr.strip()}")
    return found[1]


def _bill(version: str) -> str:
    component = package_parts.component(
        "openssl", "Apache-2.0", type="library", version=version
    )
    purl = f"pkg:generic/openssl@{version}"
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [component | {"bom-ref": purl, "purl": purl}],
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
