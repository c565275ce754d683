"""Packages of what is committed: wheel, source archive and a Debian package.

``tools/package`` writes them into build/packages, and ``tools/package lock`` renews the
lock files.  Two builds of one commit are the same bytes, wherever and whenever they are
made: they start from what git has, time stamps are those of the commit, archives are
sorted, and what builds them is locked as well.  Only the C compiler and libcrypto are
those of the system: the same bytes take the same of both.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from attrs import frozen

from tools import package_deb, package_lock, package_native
from tools.package_deb import Contents, DebError
from tools.package_lock import ARCHITECTURES, GLIBC, LockError
from tools.package_native import NativeError
from tools.package_parts import PartError

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build"

_BACKEND = """
import sys
sys.path.insert(0, sys.argv[1])
from setuptools import build_meta
getattr(build_meta, sys.argv[2])(sys.argv[3])
"""


class PackageError(Exception):
    """What keeps a package from being made; one line."""


def main() -> None:
    options = _options()
    # Files that are written have the same modes whoever builds.
    os.umask(0o022)
    try:
        if options.what == "lock":
            _renew_lock(options.wheels)
        else:
            _build(options)
    except (PackageError, LockError, PartError, DebError, NativeError) as error:
        sys.exit(f"tools/package: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/package", description="Build wheel, sdist and Debian package."
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=["build", "lock"],
        default="build",
        help="build: the packages (default); lock: renew the lock files, with the "
        "newest versions that pyproject.toml allows",
    )
    parser.add_argument(
        "--arch",
        choices=sorted(ARCHITECTURES),
        default=_architecture(),
        help="of the Debian package [%(default)s]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=BUILT / "packages",
        help="folder for the packages [build/packages]",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        default=BUILT / "wheels",
        help="folder of what is downloaded; if all of it is there, no network is "
        "needed [build/wheels]",
    )
    return parser.parse_args()


def _architecture() -> str:
    names = {platform: name for name, platform in ARCHITECTURES.items()}
    return names.get(os.uname().machine, "amd64")


def _renew_lock(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        package_lock.renew(ROOT, Path(place))
    print(_git("diff", "--stat", "--", "packaging/*.lock") or "Nothing has changed.")


# Building


def _build(options: argparse.Namespace) -> None:
    if changed := _git("status", "--porcelain", "--untracked-files=no"):
        raise PackageError(f"only what is committed is packed: {changed.split()[1]}")
    if lacking := package_lock.lacking(ROOT):
        raise PackageError(f'{lacking[0]}: run "tools/package lock"')
    options.output.mkdir(parents=True, exist_ok=True)
    options.wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        written = [
            Path(shutil.copy(path, options.output))
            for path in _packages(options, Path(place))
        ]
    for path in written:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


def _packages(options: argparse.Namespace, place: Path) -> Sequence[Path]:
    """Build all packages within a folder."""
    epoch = int(_git("log", "-1", "--format=%ct"))
    source, tools, output = place / "source", place / "tools", place / "output"
    output.mkdir()
    for wheel in _wheels(package_lock.BUILD, options):
        package_deb.unpack(wheel, tools)
    _export(source)
    sdist = _normalised(_backend("build_sdist", source, tools, output, epoch), epoch)
    workshop = Workshop(sdist, tools, place, epoch)
    wheel = _wheel(workshop, source)
    own, glibc = _module_of_the_deb(workshop, options.arch)
    contents = Contents(
        source=source,
        own=own,
        wheels=_wheels(package_lock.PROGRAM, options),
        version=_debian_version(wheel.name.split("-")[1], epoch),
        architecture=options.arch,
        glibc=max(glibc, GLIBC),
        epoch=epoch,
    )
    deb = package_deb.build(contents, place / "tree", output)
    return sdist, Path(shutil.move(wheel, output)), deb


@frozen
class Workshop:
    """What wheels are made from, and where."""

    sdist: Path  # and not the source: so it is known to have all that is needed
    tools: Path
    place: Path
    epoch: int

    def wheel(self, name: str, settings: Mapping[str, str]) -> Path:
        """Make one in a folder of that name, with what nobody else has compiled."""
        folder = self.place / name
        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder / "source")
        (unpacked,) = (folder / "source").iterdir()
        (folder / "output").mkdir()
        made = (unpacked, self.tools, folder / "output", self.epoch, settings)
        return _backend("build_wheel", *made)


def _wheel(workshop: Workshop, source: Path) -> Path:
    """The wheel for any Linux, with a libcrypto of its own."""
    (workshop.place / "libcrypto").mkdir()
    settings = package_native.with_own_libcrypto(workshop.place / "libcrypto")
    wheel = workshop.wheel("wheel", settings)
    path = workshop.place / "wheel.so"
    library = package_native.library_of(wheel, path, own_libcrypto=True)
    return package_native.declared(wheel, library, path, source)


def _module_of_the_deb(
    workshop: Workshop, architecture: str
) -> tuple[Path, tuple[int, int]]:
    """The wheel that the Debian package is made of, and the C library that it needs."""
    if architecture != _architecture():
        print(
            f"tools/package: the package for {architecture} is without the native "
            "engine, which is compiled on such a machine only",
            file=sys.stderr,
        )
        return workshop.wheel("deb", package_native.not_at_all()), GLIBC
    wheel = workshop.wheel("deb", package_native.with_the_systems())
    path = workshop.place / "deb.so"
    return wheel, package_native.library_of(wheel, path, own_libcrypto=False).glibc


def _wheels(lock: Path, options: argparse.Namespace) -> Sequence[Path]:
    return package_lock.wheels(
        package_lock.read(ROOT / lock), options.arch, options.wheels
    )


def _export(folder: Path) -> None:
    """Write what is committed, whatever lies about in the checkout."""
    command = ["git", "-c", "tar.umask=0022", "archive", "HEAD"]
    data = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder)


def _backend(
    hook: str,
    source: Path,
    tools: Path,
    output: Path,
    epoch: int,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Call a hook of the build backend (PEP 517); return what it has written."""
    before = {*output.iterdir()}
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    done = subprocess.run(
        [sys.executable, "-IB", "-c", _BACKEND, str(tools), hook, str(output)],
        cwd=source,
        env=environment | dict(settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise PackageError(f"{hook} failed:\n{done.stdout}")
    (path,) = {*output.iterdir()} - before
    return path


def _normalised(path: Path, epoch: int) -> Path:
    """Rewrite a .tar.gz: sorted, without owners, and with one time stamp."""
    content = io.BytesIO()
    with (
        tarfile.open(path) as old,
        tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime = epoch
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    path.write_bytes(gzip.compress(content.getvalue(), 9, mtime=epoch))
    return path


def _debian_version(version: str, epoch: int) -> str:
    """The release's own version; before the release one that is lower, and grows."""
    if f"v{version}" in _git("tag", "--points-at", "HEAD").split():
        return version
    commit = _git("rev-parse", "--short=10", "HEAD")
    return f"{version}~git{datetime.fromtimestamp(epoch, UTC):%Y%m%d%H%M%S}.{commit}"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise PackageError(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
