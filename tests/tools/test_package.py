"""Packages, built as by a user and installed on a system that has nothing but Debian's
base and Python, where the machine can make one, and else on a copy of this system.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression

from tests.ground import ROOT
from tests.netns.pages import Walk
from tools import package_lock, package_native, package_parts
from tools.daemons import ending
from tools.lab import Lab, wait_until

WHEN = "2026-01-02T03:04:05+00:00"
GIT = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]


def succeeded(*command, **more):
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# Building


def commit(folder):
    environment = os.environ | {"GIT_COMMITTER_DATE": WHEN, "GIT_AUTHOR_DATE": WHEN}
    succeeded(*GIT, "add", "--all", cwd=folder)
    succeeded(*GIT, "commit", "--quiet", "--message=All", cwd=folder, env=environment)


def own(home):
    """An environment for programs that may write into their user's folder."""
    return os.environ | {"HOME": str(home)}


def build(checkout, output, wheels, *, prelude="", **environment):
    command = [sys.executable, "-m", "tools.package", "--output", output]
    words = " ".join(map(str, [*command, "--wheels", wheels]))
    # The tests' own path would lead to the modules of this checkout.
    environment = own(output.parent) | {"PYTHONPATH": str(checkout)} | environment
    succeeded("sh", "-c", f"{prelude} exec {words}", cwd=checkout, env=environment)
    return {path.suffix: path for path in output.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packages")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def checkout(folder):
    """A clean checkout of what is here, committed or not."""
    for program in ("git", "dpkg-deb"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    path = folder / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, succeeded(*listed, cwd=ROOT).split("\0")):
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
    succeeded("git", "init", "--quiet", path)
    commit(path)
    return path


@pytest.fixture(scope="module")
def wheels(folder):
    """Where downloads are kept; the first build fills it."""
    return folder / "wheels"


@pytest.fixture(scope="module")
def built(folder, checkout, wheels):
    """The three packages, by the ends of their names."""
    try:
        return build(checkout, folder / "built", wheels)
    except AssertionError as error:
        if "pip download failed" in str(error) and not reaches_an_index(folder):
            pytest.skip("no package index can be reached")
        raise


def reaches_an_index(folder):
    pin = package_lock.read(ROOT / package_lock.PROGRAM)[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", folder / "probe", f"{pin.name}=={pin.version}"]
    return subprocess.run(command, capture_output=True, env=own(folder)).returncode == 0


@pytest.fixture(scope="module")
def former(folder, built):
    """The Debian package of an earlier version, with files that are no more."""
    tree = folder / "former"
    succeeded("dpkg-deb", "--raw-extract", built[".deb"], tree)
    control = tree / "DEBIAN/control"
    control.write_text(
        re.sub("(?m)^Version: .*", "Version: 0.0.9", control.read_text())
    )
    modules = tree / "usr/lib/alpha-trio/alpha_trio"
    version = modules / "__init__.py"
    version.write_text(re.sub('= "[0-9.]+"', '= "0.0.9"', version.read_text()))
    (modules / "former.py").write_text("GONE = True\n")
    (tree / "usr/share/doc/alpha-trio/docs/former.md").write_text("No longer there.\n")
    command = ("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree)
    succeeded(*command, folder / "former.deb")
    return folder / "former.deb"


# Installing

PREPARE = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir base upper work root
base=/
. /etc/os-release
if command -v mmdebstrap >/dev/null && [ "$ID" = debian ] &&
    mmdebstrap --quiet --mode=root --variant=essential --include=python3 \
        --skip=output/dev "$VERSION_CODENAME" base >&2; then
    base=$1/base
fi
mount -t overlay -o "lowerdir=$base,upperdir=upper,workdir=work" overlay root
mount --rbind /dev root/dev
mount --rbind /proc root/proc
# What is there of this machine is nothing to the other: above all its service manager.
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
echo "$base"
cat >/dev/null
"""
# With what packaging/Containerfile asks for and no more: a read-only system but for two
# folders, one capability, and no way to others.
CONTAINED = """
set -e
root=$1
shift
mount --rbind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=700 tmpfs "$root/run"
mount -t tmpfs -o mode=700 tmpfs "$root/var/lib/alpha-trio"
exec chroot "$root" setpriv --bounding-set=-all,+net_admin --no-new-privs "$@"
"""
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


class System:
    """A system of its own, in memory; what is changed on it is kept apart.

    It is made in the background.
    """

    def __init__(self, place):
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", PREPARE, "sh", place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.within = Path(f"/proc/{self.process.pid}/root")
        self.upper = self.within / str(place).lstrip("/") / "upper"
        self.root = self.within / str(place).lstrip("/") / "root"
        outside = ("nsenter", "--target", str(self.process.pid), "--mount")
        self.enter = (*outside, "chroot", f"{place}/root")
        # As another host that has the same installed, and as a container.
        script = ("unshare", "--mount", "sh", "-c", CONTAINED, "sh", f"{place}/root")
        self.enter_contained = (*outside, *script)

    @cached_property
    def base(self):
        """What it was at first; waits until that is there."""
        base = self.process.stdout.readline().strip()
        assert base, "the system could not be made"
        return self.within / base.lstrip("/")

    def run(self, *command):
        return succeeded(*self.enter, *command, env=ENVIRONMENT)

    def install(self, package):
        assert self.base.is_dir()
        shutil.copy(package, self.root / "tmp/package.deb")
        return self.run("dpkg", "--install", "/tmp/package.deb")

    def changes(self):
        """What is there now and was not, is no more, or has changed."""
        for folder, names, files in os.walk(self.upper):
            for name in [*names, *files]:
                path = Path(folder, name)
                place = path.relative_to(self.upper)
                if not self.is_as_before(path, self.base / place):
                    yield str(place)

    @staticmethod
    def is_as_before(path, before):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            return before.is_dir()
        return (
            stat.S_ISREG(mode)
            and before.is_file()
            and path.read_bytes() == before.read_bytes()
        )


@pytest.fixture(scope="module")
def system(folder):
    place = folder / "system"
    place.mkdir()
    made = System(place)
    with made.process:
        yield made
        made.process.stdin.close()


def of_the_administrator(changes):
    """Without what dpkg itself and its triggers keep for all packages."""
    own = ("var/lib/dpkg", "var/log", "var/cache", "var/lib/systemd")
    return sorted(name for name in changes if not name.startswith(own))


class Installed:
    """A host on which the package is installed, with the face of a page's machine."""

    def __init__(self, host, enter, stack):
        self.host, self._enter = host, enter
        self._log = host.directory / "installed.log"
        self._running = ExitStack()
        stack.push(self._running)
        self._inside = enter

    def run(self, *command, stdin=""):
        done = self.host.run(*self._inside, *command, env=ENVIRONMENT, stdin=stdin)
        return done.stdout

    def key(self):
        return self.run("alpha-trio", "key", "show").strip()

    def service(self, verb):
        """What systemd would do, which does not run there."""
        if verb in ("stop", "restart"):
            self._running.close()
            self._inside = self._enter
        if verb in ("start", "restart"):
            self._start()

    def _start(self):
        with self._log.open("w") as stderr:
            command = (*self._enter, "alpha-trio", "run")
            daemon = self.host.popen(*command, stderr=stderr, env=ENVIRONMENT)
        self._running.enter_context(ending(daemon))
        self._inside = ("nsenter", f"--target={daemon.pid}", "--mount", "--root")
        process = Path(f"/proc/{daemon.pid}")
        socket = process / "root/run/alpha-trio/control.sock"

        def is_ready():
            assert daemon.poll() is None, self._log.read_text()
            # Before, it is one of the programs on the way, on whichever host.
            name = (process / "comm").read_text()
            return name == "alpha-trio\n" and socket.exists()

        wait_until(is_ready, f"control socket of {self.host.name}")


def managing(system, packages):
    """``apt-get`` as dpkg does it, since there is no apt; the files are those of vm1.

    ``packages``: by the version that a page names.
    """

    def manage(machine, command):
        verb, *_, what = command.split()[1:]
        if verb != "install":
            said = system.run("dpkg", f"--{verb}", what)
            assert "arning" not in said
            return
        if machine.host.name == "vm1":
            said = system.install(packages[what.split("_")[1]])
            assert "unable" not in said
            assert "arning" not in said.replace("dpkg: warning: downgrading", "")
        machine.service("restart")

    return manage


def of_the_host(machine, command):
    """What comes with every Debian, but not with so small a system."""
    return machine.host.run("sh", "-ec", command).stdout


# A system, three packages and what they are made of: minutes where others work, too.
@pytest.mark.timeout(300)
@pytest.mark.netns
def test_from_installation_to_purge(system, built, former, monkeypatch):
    monkeypatch.delenv("ALPHA_TRIO_ENGINE", raising=False)  # of a suite run by one
    with Lab() as lab, ExitStack() as stack:
        ways = (system.enter, system.enter_contained)
        vm1, vm2 = (
            Installed(host, way, stack)
            for host, way in zip(lab.lan(2), ways, strict=True)
        )
        begin = Walk("tutorials/two-hosts.md", vm1, vm2)
        begin.instead |= {
            "apt-get ": managing(system, {"0.1.0": former}),
            "ping ": of_the_host,
            "ip ": of_the_host,
        }
        for heading in begin.headings():
            if heading != "Undo it":
                begin.follow(heading)
        assert system.run("alpha-trio", "--version") == "alpha-trio, version 0.0.9\n"
        assert "usr/share/doc/alpha-trio/docs/former.md" in system.changes()
        enabled = "etc/systemd/system/multi-user.target.wants/alpha-trio.service"
        assert enabled in system.changes()
        (system.root / "etc/alpha-trio/alpha-trio.toml").write_text("# Mine.\n")
        key = vm1.key()

        later = Walk("upgrade.md", vm1, vm2)
        later.instead |= {
            "apt-get ": managing(system, {"0.0.9": former, "0.1.0": built[".deb"]})
        }
        later.follow("Upgrade")
        assert "0.0.9" not in system.run("alpha-trio", "--version")
        assert [n for n in system.changes() if "former" in Path(n).name] == []
        assert system.run("dpkg", "--verify", "alpha-trio") == ""
        assert key == vm1.key()
        assert_programs_can_use_it(vm1)
        assert_the_engine_is_told(system, vm1)

        later.follow("Go back")
        assert "0.0.9" in system.run("alpha-trio", "--version")
        later.follow("Upgrade")
        assert key == vm1.key()
        config = system.root / "etc/alpha-trio/alpha-trio.toml"
        assert config.read_text() == "# Mine.\n"
        shutil.rmtree(system.root / "root/alpha-trio.before")

        later.follow("Remove")
        left = of_the_administrator(system.changes())
        kept = ("etc/alpha-trio", "var/lib/alpha-trio", "etc/systemd/system")
        assert [name for name in left if not name.startswith(kept)] == []
        assert "var/lib/alpha-trio/host.key" in left
        later.follow("Purge")
    assert of_the_administrator(system.changes()) == []
    assert [name for name in system.changes() if "alpha" in name] == []


def assert_programs_can_use_it(machine):
    """The ways that docs/control.md names."""
    examples = "/usr/share/doc/alpha-trio/docs/examples"
    said = machine.run("perl", f"{examples}/control.pl", "peers.show", "name=vm2")
    assert "name vm2\n" in said
    python = ("env", "PYTHONPATH=/usr/lib/alpha-trio", "python3")
    said = machine.run(*python, f"{examples}/rates.py", "vm2", "1")
    assert said.startswith("vm2: sent 0.0 kB/s")


def assert_the_engine_is_told(system, machine):
    """The native one, and the one in Python if there is no such libcrypto."""
    said = machine.run("alpha-trio", "status")
    assert re.search(r"(?m)^Engine: native, with OpenSSL 3\.", said)
    library = system.root / "usr/lib/alpha-trio" / package_native.LIBRARY
    whole = library.read_bytes()
    replace(library, whole.replace(b"libcrypto.so.3", b"libcrypto.so.9"))
    machine.service("restart")
    said = machine.run("alpha-trio", "status")
    assert "Engine: python, the native one cannot be loaded (libcrypto.so.9: " in said
    assert "packets are worked on in Python, which takes twice the CPU time" in said
    replace(library, whole)
    machine.service("restart")
    assert "Engine: native" in machine.run("alpha-trio", "status")


def replace(library, data):
    """Whoever has it loaded keeps what it was."""
    library.unlink()
    library.write_bytes(data)


# The wheel and the source archive, where there may be no compiler


@pytest.fixture(scope="module")
def environment(folder, built, wheels):
    """A virtual environment with all that the program depends on."""
    path = folder / "environment"
    succeeded(sys.executable, "-m", "venv", "--without-pip", path)
    lock = ROOT / package_lock.PROGRAM
    install(path, wheels, "--require-hashes", "--requirement", lock)
    return path


def install(environment, wheels, *what, **settings):
    command = [sys.executable, "-m", "pip", "--python", environment / "bin/python"]
    command += ["install", "--no-index", "--find-links", wheels, "--no-deps"]
    variables = own(environment.parent) | settings
    variables.pop("PYTHONPATH")
    return succeeded(*command, "--no-compile", *what, env=variables)


def doctor(environment, *options):
    """What it says of the engine."""
    done = subprocess.run(
        [environment / "bin/alpha-trio", "doctor", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "COLUMNS": "400"},
    )
    (line,) = (line for line in done.stdout.splitlines() if " engine" in line)
    return line


def test_the_wheel_has_an_engine_with_a_libcrypto_of_its_own(
    environment, built, wheels
):
    install(environment, wheels, built[".whl"])
    (home,) = environment.glob("lib/*/site-packages/alpha_trio-*.dist-info")
    bill = json.loads((home / "sboms/openssl.cdx.json").read_text())
    (openssl,) = bill["components"]
    assert "manylinux" in built[".whl"].name
    assert f"native engine (with OpenSSL {openssl['version']} " in doctor(environment)
    assert "Apache License" in (home / "licenses/openssl.txt").read_text()
    metadata = (home / "METADATA").read_text()
    assert "License-Expression: MIT AND Apache-2.0\n" in metadata
    library = home.parent / package_native.LIBRARY
    assert "libcrypto" not in succeeded("ldd", library)

    data = library.read_bytes()  # and now for a machine that there is not
    replace(library, data[:18] + b"\xff\xff" + data[20:])
    assert "python engine (the native one cannot be loaded" in doctor(environment)
    config = environment / "alpha-trio.toml"
    config.write_text('engine = "native"\n')
    said = doctor(environment, "--config", config)
    assert "the native engine cannot be used: the native one cannot be loaded" in said


def test_the_source_archive_does_without_a_compiler(environment, built, wheels):
    # With one it is known to be built: that is what the wheel is made of.
    install(environment, wheels, "--force-reinstall", built[".gz"], CC="/bin/false")
    assert (
        "python engine (the native one was not built when this was installed)"
    ) in doctor(environment)


def test_a_package_without_its_engine_is_not_made(checkout, wheels, built, folder):
    with pytest.raises(AssertionError, match="install gcc, libc6-dev, libssl"):
        build(checkout, folder / "none", wheels, CC="/bin/false")


# What is in the packages


def test_two_builds_are_the_same_bytes(folder, checkout, wheels, built):
    # Elsewhere, by somebody with other habits, and without any network.
    other = folder / "another place"
    succeeded("sh", "-c", f"umask 077; git clone -q {checkout} '{other}'")
    (other / "docs/not-committed.md").touch()
    again = build(
        other,
        folder / "again",
        wheels,
        prelude="umask 077;",
        PIP_NO_INDEX="1",
        TZ="Asia/Kolkata",
        LC_ALL="C",
        SOURCE_DATE_EPOCH="1",
    )
    assert {path.name: path.read_bytes() for path in again.values()} == {
        path.name: path.read_bytes() for path in built.values()
    }
    assert len(built) == 3


def test_what_is_not_committed_is_refused(folder, checkout, wheels):
    other = folder / "changed"
    succeeded("git", "clone", "--quiet", checkout, other)
    (other / "LICENSE").write_text("All rights reserved.\n")
    done = subprocess.run(
        [sys.executable, "-m", "tools.package", "--output", folder, "--wheels", wheels],
        cwd=other,
        env=os.environ | {"PYTHONPATH": str(other)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "tools/package: only what is committed is packed: LICENSE\n"
    assert done.returncode == 1


def test_the_wheel_brings_what_an_operator_needs(built):
    names = zipfile.ZipFile(built[".whl"]).namelist()
    data = {name.partition(".data/data/")[2] for name in names} - {""}
    assert data >= {
        "share/man/man8/alpha-trio.8",
        "share/man/man5/alpha-trio.toml.5",
        "share/alpha-trio/alpha-trio.service",
        "share/alpha-trio/alpha-trio.toml",
    }


def test_the_source_archive_has_all_that_is_committed(built, checkout):
    with tarfile.open(built[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    committed = succeeded("git", "ls-files", cwd=checkout).splitlines()
    # Those are for work on a checkout.
    assert [n for n in committed if n[0] != "." and n not in names] == []


# Parts


def test_the_lock_has_all_that_the_program_asks_for(tmp_path):
    assert package_lock.lacking(ROOT) == []
    (tmp_path / "packaging").mkdir()
    for path in (package_lock.PROGRAM, package_lock.BUILD):
        shutil.copy(ROOT / path, tmp_path / path)
    text = (ROOT / "pyproject.toml").read_text()
    asked = text.replace('"trio>=0.30"', '"trio>=9999", "not-locked"')
    assert asked != text
    (tmp_path / "pyproject.toml").write_text(asked)
    assert package_lock.lacking(tmp_path) == [
        "packaging/requirements.lock has no version for trio>=9999",
        "packaging/requirements.lock has no version for not-locked",
    ]


def test_what_is_not_in_the_lock_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    data = b"the right bytes"
    pin = package_lock.Pin("part", "1", frozenset({hashlib.sha256(data).hexdigest()}))
    (tmp_path / "right").mkdir()
    right = tmp_path / "right/part-1-py3-none-any.whl"
    right.write_bytes(data)
    assert package_lock.wheels([pin], "amd64", tmp_path / "right") == [right]
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/part-1-py3-none-any.whl").write_bytes(b"others")
    with pytest.raises(package_lock.LockError, match="pip download failed"):
        package_lock.wheels([pin], "amd64", tmp_path / "wrong")


def test_what_is_compiled_is_wanted_for_every_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    pythons = [f"cp3{minor}" for _, minor in package_lock.PYTHONS]
    names = [f"part-1-{each}-{each}-manylinux2014_x86_64.whl" for each in pythons]
    # Older C libraries will do, newer ones and other machines will not.
    others = ["cp311-cp311-manylinux_2_99_x86_64", "cp311-cp311-manylinux2014_aarch64"]
    for name in (*names, *(f"part-1-{other}.whl" for other in others)):
        (tmp_path / name).write_bytes(name.encode())
    hashes = {package_lock.digest(path) for path in tmp_path.glob("*.whl")}
    pin = package_lock.Pin("part", "1", frozenset(hashes))
    found = package_lock.wheels([pin], "amd64", tmp_path)
    assert [path.name for path in found] == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(package_lock.LockError, match="pip download failed"):
        package_lock.wheels([pin], "amd64", tmp_path)


def test_every_part_says_its_licence_and_is_in_the_bill(built, folder):
    tree = folder / "tree"
    succeeded("dpkg-deb", "--extract", built[".deb"], tree)
    bill = json.loads((tree / "usr/lib/alpha-trio/sbom.cdx.json").read_text())
    locked = package_lock.read(ROOT / package_lock.PROGRAM)
    parts = {(part["name"], part["version"]): part for part in bill["components"]}
    assert {*parts} == {(pin.name, pin.version) for pin in locked}
    copyright_file = (tree / "usr/share/doc/alpha-trio/copyright").read_text()
    for (name, version), part in parts.items():
        (licence,) = part["licenses"]
        assert canonicalize_license_expression(licence["expression"])
        assert f"\n{name} {version}\n" in copyright_file
    within = {
        each["name"] for part in parts.values() for each in part.get("components", ())
    }
    assert {"openssl", "libffi"} <= within
    references = [each["ref"] for each in bill["dependencies"]]
    needed = {each for entry in bill["dependencies"] for each in entry["dependsOn"]}
    assert needed == {*references} - {bill["metadata"]["component"]["bom-ref"]}


@pytest.mark.parametrize(
    ("metadata", "text", "said"),
    [
        ("License: all yours", "LICENSE", "part does not say its licence"),
        ("License: MIT", "README", "part-1-py3-none-any.whl brings no text"),
    ],
)
def test_a_part_without_licence_is_refused(tmp_path, metadata, text, said):
    wheel = tmp_path / "part-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        head = f"Metadata-Version: 2.1\nName: part\nVersion: 1\n{metadata}\n"
        archive.writestr("part-1.dist-info/METADATA", head)
        archive.writestr(f"part-1.dist-info/{text}", "words")
    with pytest.raises(package_parts.PartError, match=said):
        package_parts.parts([wheel], tmp_path)
