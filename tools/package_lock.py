"""The lock files: which wheels belong into a package, and where they are found.

``packaging/requirements.lock`` has what the program needs, ``packaging/build.lock``
what builds it, each version with the hashes of all its wheels that fit a supported
Python and architecture.  pip understands both files.

One package serves all supported versions of Python, so what is compiled is wanted once
for each of them: compiled modules have the version in their names and lie side by side.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

from attrs import frozen
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of them, and those of wheels."""

GLIBC = (2, 34)
"""The newest C library that a wheel may ask for; Debian 12 has 2.36."""

PROGRAM = Path("packaging/requirements.lock")
BUILD = Path("packaging/build.lock")

_HEAD = """\
# Written by "tools/package lock"; what it is for stands in tools/package_lock.py.
"""
_ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)$")


class LockError(Exception):
    """A lock file that is wrong, or wheels that cannot be had; one line."""


@frozen
class Pin:
    """One version of one project, and the wheels of it that may be used."""

    name: str
    version: str
    hashes: frozenset[str]

    @property
    def line(self) -> str:
        hashes = [f"    --hash=sha256:{each}" for each in sorted(self.hashes)]
        return " \\\n".join([f"{self.name}=={self.version}", *hashes])


# Files


def read(path: Path) -> list[Pin]:
    """Return what a lock file pins."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [_pin(path, line) for line in lines]


def _pin(path: Path, line: str) -> Pin:
    found = _ENTRY.match(line)
    if found is None:
        raise LockError(f"{path}: {line[:60]!r} is no version with its hashes")
    name, version, hashes = found.groups()
    return Pin(name, version, frozenset(re.findall("[0-9a-f]{64}", hashes)))


def wanted(root: Path) -> Mapping[Path, list[Requirement]]:
    """Return what pyproject.toml asks for, by the lock file that has to have it."""
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    return {
        PROGRAM: [*map(Requirement, project["project"]["dependencies"])],
        BUILD: [*map(Requirement, project["build-system"]["requires"])],
    }


def renew(root: Path, folder: Path) -> None:
    """Write both files anew, with the newest versions that pyproject.toml allows.

    Whether a project is needed at all is decided for the Python that runs this.

    Args:
      root: of the checkout.
      folder: for wheels; empty, or with those of earlier times.
    """
    for path, requirements in wanted(root).items():
        names = [*map(str, requirements)]
        resolved = _download(names, folder / "resolved" / path.stem)
        pins = [f"{name}=={version}" for name, version in sorted(_versions(resolved))]
        files = set()
        for platform in ARCHITECTURES.values():
            for python in PYTHONS:
                place = folder / path.stem / f"{platform}-{python[1]}"
                files |= set(_download(pins, place, python, platform))
        (root / path).write_text(_HEAD + "\n".join(_entries(files)) + "\n")


def _entries(files: Iterable[Path]) -> Iterator[str]:
    hashes: dict[tuple[str, str], set[str]] = {}
    for file in files:
        (key,) = _versions([file])
        hashes.setdefault(key, set()).add(digest(file))
    for (name, version), found in sorted(hashes.items()):
        yield Pin(name, version, frozenset(found)).line


def _versions(files: Iterable[Path]) -> set[tuple[str, str]]:
    parsed = [parse_wheel_filename(file.name) for file in files]
    return {(str(name), str(version)) for name, version, *_ in parsed}


# Wheels


def wheels(pins: Sequence[Pin], architecture: str, folder: Path) -> list[Path]:
    """Return the wheels for all Pythons on an architecture, in a fixed order.

    What is not in the folder yet is downloaded into it; if nothing is missing, no
    network is needed.
    """
    platform = ARCHITECTURES[architecture]
    # What serves all is there after the first; the others so do not get in each
    # other's way.
    first, *others = PYTHONS
    chosen = [_complete(pins, platform, folder, first)]
    with ThreadPoolExecutor() as pool:
        chosen += pool.map(partial(_complete, pins, platform, folder), others)
    return [*dict.fromkeys(file for files in chosen for file in files)]


def _complete(
    pins: Sequence[Pin], platform: str, folder: Path, python: tuple[int, int]
) -> list[Path]:
    present = _chosen(pins, python, platform, folder)
    if missing := [pin for pin in pins if pin.name not in present]:
        _download([pin.line for pin in missing], folder, python, platform)
        present = _chosen(pins, python, platform, folder)
    for pin in pins:
        if pin.name not in present:
            raise LockError(f"no wheel of {pin.name} {pin.version} fits {platform}")
    return [present[pin.name] for pin in pins]


def _chosen(
    pins: Sequence[Pin], python: tuple[int, int], platform: str, folder: Path
) -> dict[str, Path]:
    """The best wheel of each project, of those in the folder that have their hash."""
    places = {tag: place for place, tag in enumerate(_tags(python, platform))}
    best: dict[str, tuple[int, Path]] = {}
    hashes = {(pin.name, Version(pin.version)): pin.hashes for pin in pins}
    for file in sorted(folder.glob("*.whl")):
        name, version, _, tags = parse_wheel_filename(file.name)
        place = min((places[tag] for tag in tags if tag in places), default=None)
        if place is None or digest(file) not in hashes.get((name, version), ()):
            continue
        best[name] = min((place, file), best.get(name, (place, file)))
    return {name: file for name, (_, file) in best.items()}


@cache
def _tags(python: tuple[int, int], platform: str) -> tuple[Tag, ...]:
    """What a wheel may be tagged with, the best first."""
    platforms = _platforms(platform)
    own = cpython_tags(python, platforms=platforms)
    return (*own, *compatible_tags(python, f"cp3{python[1]}", platforms))


def _platforms(platform: str) -> list[str]:
    major, newest = GLIBC
    names = [f"manylinux_{major}_{n}_{platform}" for n in range(newest, 16, -1)]
    return [*names, f"manylinux2014_{platform}"]


@cache
def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(
    lines: Sequence[str],
    folder: Path,
    python: tuple[int, int] | None = None,
    platform: str = "",
) -> list[Path]:
    """Have pip download wheels; without a Python, for this one and all it depends on.

    Hashes in the lines are checked by pip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version = f"{python[0]}.{python[1]}" if python else ""
    asked = folder / f"requirements{version}.txt"
    asked.write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--requirement", str(asked)]
    if python:
        command += ["--no-deps", "--python-version", version]
        command += [f"--platform={name}" for name in _platforms(platform)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    asked.unlink()
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise LockError(f"pip download failed: {errors[-1] if errors else 'no word'}")
    return [*folder.glob("*.whl")]


def lacking(root: Path) -> list[str]:
    """Return what the lock files lack of what pyproject.toml asks for, in words."""
    return [
        f"{path} has no version for {requirement}"
        for path, requirements in wanted(root).items()
        for requirement in requirements
        if not _is_met(requirement, read(root / path))
    ]


def _is_met(requirement: Requirement, pins: Iterable[Pin]) -> bool:
    name = canonicalize_name(requirement.name)
    return any(
        pin.name == name and requirement.specifier.contains(pin.version) for pin in pins
    )
