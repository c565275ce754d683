"""The Debian package: which file goes where, and the archive of them.

The program and its parts lie in one folder, /usr/lib/alpha-trio, which nobody else
imports from; nothing is compiled here, so a package for one architecture can be made
on another.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from tools import package_parts
from tools.package_lock import PYTHONS

_PROGRAM = "usr/lib/alpha-trio"
_DOCUMENTS = "usr/share/doc/alpha-trio"
_COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/alpha-trio",
    "zsh": "usr/share/zsh/vendor-completions/_alpha-trio",
    "fish": "usr/share/fish/vendor_completions.d/alpha-trio.fish",
}
_EXAMPLES = (".toml", ".json", ".yml")  # configuration, dashboard, rules for alerts
_SCRIPTS = ("postinst", "prerm", "postrm")


class DebError(Exception):
    """What cannot become a package; one line."""


@frozen
class Contents:
    """What a package is made of."""

    source: Path  # the program's files as committed
    own: Path  # the program's wheel
    wheels: Sequence[Path]  # of what it needs
    version: str  # Debian's
    architecture: str  # Debian's name of it
    glibc: tuple[int, int]  # the oldest C library that will do
    epoch: int  # when it was committed; the time of all files


def build(contents: Contents, tree: Path, output: Path) -> Path:
    """Write the package into a folder, and return its path.

    Args:
      tree: an empty folder, for the files as they will be installed.
    """
    _install_program(contents, tree / _PROGRAM)
    _install_system_files(contents.source, tree)
    _install_completions(tree)
    _install_documents(contents, tree)
    _write_control(contents, tree)
    _settle_modes(tree)
    return _archive(contents, tree, output)


# Files


def _install_program(contents: Contents, folder: Path) -> None:
    folder.mkdir(parents=True)
    for wheel in (contents.own, *contents.wheels):
        unpack(wheel, folder)
    others = package_parts.parts(
        contents.wheels, contents.source / "packaging/licences"
    )
    (own,) = package_parts.parts([contents.own], contents.source)
    _write(folder / "sbom.cdx.json", package_parts.bill(own, others, contents.epoch))
    documents = folder.parents[2] / _DOCUMENTS
    _write(documents / "copyright", package_parts.copyright_file(own, others))


def unpack(wheel: Path, folder: Path) -> None:
    """Put a wheel's modules into a folder, beside those of others.

    Wheels of one project for several Pythons have the same modules, apart from the
    compiled ones.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top, _, rest = name.partition("/")
            if top.endswith(".data"):
                if rest.startswith(("purelib", "platlib")):
                    raise DebError(f"{wheel.name} has modules in an unusual place")
                continue  # scripts, manual pages
            if name.endswith(("/", ".dist-info/RECORD")):
                continue  # what is where is dpkg's to know
            path, data = folder / name, archive.read(name)
            if path.exists() and not name.endswith(".dist-info/WHEEL"):
                if path.read_bytes() != data:
                    raise DebError(f"{wheel.name} has another {name} than others")
                continue
            _write(path, data)


def _install_system_files(source: Path, tree: Path) -> None:
    own = source / "packaging"
    _copy(own / "debian/alpha-trio", tree / "usr/bin/alpha-trio")
    _copy(
        own / "debian/alpha-trio.rtupdate",
        tree / "usr/share/python3/runtime.d/alpha-trio.rtupdate",
    )
    for unit in sorted(own.glob("*.service")):
        _copy(unit, tree / "usr/lib/systemd/system" / unit.name)
    for page in sorted(own.glob("*.[1-8]")):
        place = tree / f"usr/share/man/man{page.suffix[1:]}"
        _compress(page.read_text(), place / f"{page.name}.gz")
    (tree / "etc/alpha-trio").mkdir(parents=True)


def _install_completions(tree: Path) -> None:
    """Have the program itself say how each shell completes it."""
    program = (
        f"import sys; sys.path.insert(0, {str(tree / _PROGRAM)!r}); "
        "sys.argv[0] = 'alpha-trio'; "
        "from alpha_trio_cli.entry import main; main()"
    )
    for shell, place in _COMPLETIONS.items():
        done = subprocess.run(
            [sys.executable, "-ISB", "-c", program],
            env={
                "PATH": os.environ["PATH"],
                "LC_ALL": "C.UTF-8",
                "_ALPHA_TRIO_COMPLETE": f"{shell}_source",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        if "alpha-trio" not in done.stdout:
            raise DebError(f"the program does not say how {shell} completes it")
        _write(tree / place, done.stdout)


def _install_documents(contents: Contents, tree: Path) -> None:
    source, folder = contents.source, tree / _DOCUMENTS
    _copy(source / "README.md", folder / "README.md")
    for page in _files(source / "docs"):
        _copy(page, folder / page.relative_to(source))
    for example in sorted((source / "packaging").iterdir()):
        if example.suffix in _EXAMPLES:
            _copy(example, folder / "examples" / example.name)
    # The pages link to it under this name; the other is what Debian's tools look for.
    _copy(source / "CHANGELOG.md", folder / "CHANGELOG.md")
    changelog = _filled(source / "packaging/debian/changelog", contents)
    _compress(changelog, folder / "changelog.gz")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(source.stat().st_mode)


def _compress(text: str, path: Path) -> None:
    _write(path, gzip.compress(text.encode(), 9, mtime=0))


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# The archive


def _settle_modes(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)


def _md5(path: Path) -> str:
    """As dpkg wants it, against accidents; it is no matter of security."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _write_control(contents: Contents, tree: Path) -> None:
    size = sum(-(-path.stat().st_size // 1024) for path in _files(tree))
    sums = [f"{_md5(path)}  {path.relative_to(tree)}\n" for path in _files(tree)]
    given = contents.source / "packaging/debian"
    _write(tree / "DEBIAN/control", _filled(given / "control", contents, SIZE=size))
    _write(tree / "DEBIAN/md5sums", "".join(sums))
    for script in _SCRIPTS:
        _copy(given / script, tree / "DEBIAN" / script)


def _files(tree: Path) -> Iterable[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file())


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _filled(template: Path, contents: Contents, **more: object) -> str:
    newest = PYTHONS[-1]
    values = more | {
        "VERSION": contents.version,
        "ARCHITECTURE": contents.architecture,
        "DATE": email.utils.formatdate(contents.epoch),
        "OLDEST": _dotted(PYTHONS[0]),
        "TOO_NEW": _dotted((newest[0], newest[1] + 1)),
        "GLIBC": _dotted(contents.glibc),
    }
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _archive(contents: Contents, tree: Path, output: Path) -> Path:
    name = f"alpha-trio_{contents.version}_{contents.architecture}.deb"
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (contents.epoch, contents.epoch))
    # Every system with a Python this new knows zstd; xz would save a tenth and take
    # twenty times as long.  How many threads compress decides about the bytes.
    command = ["dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zzstd"]
    command += ["-z9", "--threads-max=1", "--build", str(tree), str(output / name)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(contents.epoch)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise DebError(f"dpkg-deb failed: {done.stderr.strip()}")
    return output / name
