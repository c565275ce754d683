"""A page of docs/, followed from its beginning to its end as it is written there.

Who types a command is what stands before its prompt, ``vm1# ping -c 1 10.9.0.2``; a
block whose first line is ``# PATH on HOST`` is a file.  What is printed below a command
must come, in this order: numbers, keys and times may differ, and "..." stands for any
lines.  Each host has an /etc, a /var/lib, a /run and a home of its own, so that all
paths are those of the page.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tools.daemons import PROGRAM, Daemon, ending
from tools.lab import Host

DOCS = Path(__file__).parents[2] / "docs"
Act = Callable[["Machine", str], str | None]
"""What is done in place of a command, given who types it; what it answers."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^([\w-]+)# (.*)$")
_FILE = re.compile(r"# (/\S+) on ([\w-]+)")
_KEY = re.compile(r"KEY-OF-([A-Z0-9]+)")
_VARIES = (  # what of an answer differs each time, and what stands for it
    (re.compile(r"[\w+/]{43}="), "KEY"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "FINGERPRINT"),
    (re.compile(r"(?<![\w.:/])\d+(?:[.,]\d+)?(?![\w.:/])"), "N"),
    (re.compile(r"[ \t]+"), " "),
)

# Without /run/netns and the like, which no program on the page needs.
_FURNISH = """
set -e
mount --make-rprivate /
mkdir -p "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay /etc
mkdir -p /etc/alpha-trio
mount --bind "$1/etc" /etc/alpha-trio
mount --bind "$1/lib" /var/lib
mount --bind "$1/home" /root
mount --bind "$1/run" /run
echo furnished
exec cat
"""


class Machine:
    """A host of the lab with a daemon, and with files where a page has them."""

    def __init__(self, host: Host, ends: ExitStack) -> None:
        self.host = host
        folder = host.directory / "machine"
        for name in ("etc", "lib", "home", "run"):
            (folder / name).mkdir(parents=True)
        self.state, self.home = folder / "lib/alpha-trio", folder / "home"
        self.daemon = Daemon(host)
        self.daemon.config_file = folder / "etc/alpha-trio.toml"
        self.daemon.environment = {
            "ALPHA_TRIO_SOCKET": str(folder / "run/alpha-trio/control.sock"),
            "ALPHA_TRIO_STATE": str(self.state),
        }
        ends.push(self.daemon)  # ends it, if it runs then
        # Holds the mounts for as long as its pipe is open.
        keeper = host.popen(
            *("unshare", "--mount", "sh", "-c", _FURNISH, "sh", str(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        ends.enter_context(ending(keeper))
        assert keeper.stdout
        assert keeper.stdout.readline() == "furnished\n", host.name
        self._inside = ("nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--wd=/")

    def run(self, *command: str, stdin: str = "") -> str:
        env = {"PATH": f"{PROGRAM.parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
        env["HOME"] = "/root"
        return self.host.run(*self._inside, *command, env=env, stdin=stdin).stdout

    def key(self) -> str:
        try:
            return str(self.daemon.status()["key"])
        except OSError:  # it does not run yet
            return self.run("alpha-trio", "key", "show").strip()

    def write(self, path: str, text: str) -> None:
        self.run("install", "-D", "-m", "644", "/dev/stdin", path, stdin=text)

    def service(self, verb: str) -> None:
        """What ``systemctl`` does with the daemon."""
        if verb in ("stop", "restart"):
            self.daemon.stop()
        if verb in ("start", "restart", "enable"):
            self.daemon.config_file.touch()
            self.daemon.start()
        if verb == "reload":
            self.run("alpha-trio", "reload")


class Walk:
    """A page, and those who follow it."""

    def __init__(self, page: str, *machines: Machine) -> None:
        self._text = (DOCS / page).read_text()
        self.machines = {machine.host.name: machine for machine in machines}
        self.instead: dict[str, Act] = {
            "systemctl ": _systemctl,
            "apt-get ": _install,
        }

    def follow(self, heading: str) -> None:
        """Type all that stands below a heading, and write its files."""
        _, _, rest = self._text.partition(f"\n## {heading}\n")
        assert rest, f"the page has no section {heading!r}"
        self._follow(rest.partition("\n## ")[0])

    def _follow(self, text: str) -> None:
        for kind, block in _FENCE.findall(text):
            if kind == "console":
                for name, command, shown in _typed(block):
                    compare(command, shown, self._type(name, command))
            elif found := _FILE.match(block):
                self.machines[found[2]].write(found[1], self._with_keys(block))

    def installed(self, *names: str) -> None:
        """What a page may begin with: daemons that run, and know nobody."""
        for name in names:
            self.machines[name].service("start")

    def headings(self) -> list[str]:
        return re.findall(r"^## (.*)$", self._text, re.MULTILINE)

    def follow_all(self) -> None:
        self._follow(self._text)

    def _type(self, name: str, command: str) -> str:
        machine = self.machines[name]
        for beginning, act in self.instead.items():
            if command.startswith(beginning):
                return act(machine, command) or ""
        return machine.run("sh", "-ec", f"cd /root\n{self._with_keys(command)}")

    def _with_keys(self, text: str) -> str:
        return _KEY.sub(lambda found: self.machines[found[1].lower()].key(), text)


def _systemctl(machine: Machine, command: str) -> None:
    words = [word for word in command.split()[1:] if word != "--now"]
    assert words[1:] == ["alpha-trio"], command
    machine.service(words[0])


def _install(machine: Machine, command: str) -> None:
    """What is installed is there already; but the package starts the service."""
    assert "install" in command
    machine.service("start")


def _typed(block: str) -> Iterator[tuple[str, str, list[str]]]:
    """Who types what, and what the page shows as the answer."""
    for part in re.split(r"^(?=[\w-]+# )", block, flags=re.MULTILINE):
        if part.strip():
            text = part.replace("\\\n", "")
            (first, *shown) = text.rstrip().split("\n")
            found = _PROMPT.fullmatch(first)
            assert found, f"nobody types {first!r}"
            yield found[1], found[2], shown


def compare(command: str, shown: list[str], said: str) -> None:
    """Whether the lines on the page are among those that came, in this order."""
    lines = iter([_alike(line).strip() for line in said.splitlines()])
    for line in shown:
        if line == "...":
            continue
        pattern = ".*".join(
            re.escape(_alike(part)) for part in line.strip().split("...")
        )
        assert any(re.fullmatch(pattern, each) for each in lines), (
            f"{command}: the page has {line!r}; it said\n{said}"
        )


def _alike(line: str) -> str:
    for varies, word in _VARIES:
        line = varies.sub(word, line)
    return line
