"""A recipe of docs/recipes.md, followed on hosts of the lab as it is written there.

What a reader would type is taken out of the page's ``console`` blocks, so the page
cannot drift from what was tried.  The lab has the page's own addresses; what is left
to differ are keys, and commands about software that the lab has in another way.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tools.daemons import Daemon
from tools.lab import Host, Lab

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
Act = Callable[[Host, str], str | None]
"""What the lab does for a command, given who types it; what it answers."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^([\w-]+)# (.*)$", re.MULTILINE)
_KEY = re.compile(r"KEY-OF-([A-Z0-9]+)")


def titles() -> list[str]:
    """The headings of all recipes."""
    return re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)


class Recipe:
    """One section of the page, and the daemons of those who follow it."""

    def __init__(self, title: str, ends: ExitStack, *hosts: Host) -> None:
        _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
        assert rest, f"no recipe is called {title!r}"
        self.blocks = _FENCE.findall(rest.partition("\n## ")[0])
        self.consoles = [text for kind, text in self.blocks if kind == "console"]
        self.daemons = {host.name: Daemon(host) for host in hosts}
        self.environment: dict[str, str] = {}  # of all that is typed
        self._ends = ends
        self._started: set[str] = set()

    def file(self, path: str) -> str:
        """The text of a file: a block whose first line is its path, as a comment."""
        (found,) = {
            text
            for _, text in self.blocks
            if text.partition("\n")[0].split()[:2] == ["#", path]
        }
        return found

    def configure(self, *names: str) -> None:
        """Give these daemons, before they start, the config file of the page."""
        text = self.file("/etc/alpha-trio/alpha-trio.toml")
        for name in names:
            self.daemons[name].config_file.write_text(text)

    def follow(
        self,
        *numbers: int,
        instead: Mapping[str, Act] | None = None,
    ) -> list[str]:
        """Type what these ``console`` blocks say; return what each was answered.

        ``instead``: what the lab does for a command that begins so.
        """
        return [
            self._type(name, command, instead or {})
            for number in numbers
            for name, command in _PROMPT.findall(self.consoles[number])
        ]

    def start(self) -> None:
        """Start the daemons that do not run: on a real host systemd did it."""
        for name in self.daemons:
            self._running(name)

    def peer(self, here: str, there: str) -> dict:
        """What the status on one host says about another."""
        peers = self.daemons[here].status()["peers"]
        return next(peer for peer in peers if peer["name"] == there)

    def _type(self, name: str, command: str, instead: Mapping[str, Act]) -> str:
        for beginning, act in instead.items():
            if command.startswith(beginning):
                return act(self.daemons[name].host, command) or ""
        words = shlex.split(command)
        if words[:2] == ["alpha-trio", "run"]:
            self.daemons[name].arguments = tuple(words[2:])
            self._running(name)
            return ""
        daemon = self.daemons[name]
        if words[0] == "alpha-trio":
            self._running(name)
        command = _KEY.sub(lambda found: self._key(found[1].lower()), command)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**daemon.environment, **self.environment, "PATH": path}
        return daemon.host.run("sh", "-ec", command, env=env).stdout

    def _key(self, name: str) -> str:
        return self._running(name).cli("key", "show").stdout.strip()

    def _running(self, name: str) -> Daemon:
        daemon = self.daemons[name]
        if name not in self._started:
            self._started.add(name)
            self._ends.enter_context(daemon)
        return daemon


def link(lab: Lab, left: Host, right: Host, *networks: str, mtu: int = 1500) -> None:
    """Join two hosts: of each network, ``LEFT RIGHT/LENGTH``, both get an address."""
    ports = lab.connect(left, right, mtu=mtu)
    for network in networks:
        addresses, _, length = network.partition("/")
        for host, port, address in zip(
            (left, right), ports, addresses.split(), strict=True
        ):
            host.run("ip", "addr", "add", f"{address}/{length}", "dev", port)


def forward(*hosts: Host) -> None:
    """Let these hosts forward."""
    for host in hosts:
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)


def route(host: Host, *destinations: str, via: str) -> None:
    """Lead these over a neighbour."""
    for destination in destinations:
        host.run("ip", "route", "replace", destination, "via", via)
