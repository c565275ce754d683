"""The commands of the packet filter: nft where it is installed, else iptables.

Each of our rule sets is in a table, or in chains, of its own, named after the tunnel
interface; nothing else is ever touched.
"""

from __future__ import annotations

import errno
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import trio
from attrs import frozen

from alpha_trio.errors import RoutingError

_NETLINK_NETFILTER = 12
_NOTICES = 1 << 6  # bit of sockaddr_nl.nl_groups: changes of nftables
_DELTABLE = 10 << 8 | 2  # nftables, NFT_MSG_DELTABLE
_HEADER = struct.Struct("=IH")  # nlmsghdr: length and type
_ROOM = 1 << 15  # bytes; the kernel joins notices to 8 KiB at most
_SETTLE = 0.1  # seconds; whoever removes everything often brings something new

IPTABLES = {4: "iptables", 6: "ip6tables"}
_NFT_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_TIMEOUT = 30  # seconds for a command that takes milliseconds


def has_nft() -> bool:
    """Whether rules are given to nft; else iptables is to be used."""
    return shutil.which("nft") is not None


def installed(command: str) -> bool:
    """Whether a command of the packet filter is there."""
    return shutil.which(command) is not None


def nft_table(prefix: str, interface: str) -> str:
    """Family and name of our table for an interface."""
    # Interface names may have characters that table names may not.
    return f"inet {prefix}_" + re.sub(r"\W", "_", interface, flags=re.ASCII)


def nft_replacing(table: str, content: Sequence[str]) -> str:
    """Return the text for ``nft -f -`` that makes a table anew at one stroke."""
    return "\n".join(
        [
            f"add table {table}",  # so that it can be deleted in any case
            f"delete table {table}",
            f"table {table} {{",
            *content,
            "}",
            "",
        ]
    )


def nft_has(table: str) -> bool:
    """Whether there is such a table."""
    return succeeds("nft", "list", "table", *table.split())


def nft_remove(table: str) -> bool:
    """Remove a table; False if there was none."""
    if not nft_has(table):
        return False
    run("nft", "delete", "table", *table.split())
    return True


def load_chains(command: str, text: str, table: str, jumps: Mapping[str, str]) -> None:
    """Fill chains by iptables-restore ``text``, and jump there from built-in ones.

    ``jumps``: our chain for each of the built-in ones of ``table``.
    """
    run(f"{command}-restore", "-w", "--noflush", text=text)
    for place, chain in jumps.items():
        if not succeeds(command, "-w", "-t", table, "-C", place, "-j", chain):
            run(command, "-w", "-t", table, "-A", place, "-j", chain)


def has_chains(command: str, table: str, jumps: Mapping[str, str]) -> bool:
    """Whether all the jumps of ``load_chains`` are there."""
    base = (command, "-w", "-t", table)
    return all(succeeds(*base, "-C", at, "-j", to) for at, to in jumps.items())


def is_loaded(nft_table: str, table: str, jumps: Mapping[str, str]) -> bool:
    """Whether what was loaded for us is there, by whichever command this host has."""
    if has_nft():
        return nft_has(nft_table)
    commands = filter(installed, IPTABLES.values())
    return all(has_chains(command, table, jumps) for command in commands)


def remove_chains(
    command: str, table: str, jumps: Mapping[str, str], others: Sequence[str] = ()
) -> bool:
    """Remove jumps and chains, ``others`` last; False if there were none of them."""
    base = (command, "-w", "-t", table)
    # Emptied in this order, none is removed while another jumps to it.
    chains = [*jumps.values(), *others]
    present = [chain for chain in chains if succeeds(*base, "-S", chain)]
    for place, chain in jumps.items():
        if chain in present:
            succeeds(*base, "-D", place, "-j", chain)
    for chain in present:
        run(*base, "-F", chain)
        run(*base, "-X", chain)
    return bool(present)


# --- what others' rules say of sources


@frozen
class SourceCheck:
    """A rule that drops what did not come by the way its answer would take."""

    versions: frozenset[int]  # IP versions
    by_mark: bool  # whether it looks the way up with the packet's mark
    rule: str


def source_checks(interface: str) -> list[SourceCheck]:
    """Return the packet filter's own reverse-path checks but those that spare us.

    What cannot be read, as without privilege, has none.
    """
    found: list[SourceCheck] = []
    if has_nft():
        found += _nft_checks(output("nft", "-t", "list", "ruleset"), interface)
    for version, command in IPTABLES.items():
        for save in (f"{command}-save", f"{command}-legacy-save"):
            if installed(save):
                found += _iptables_checks(output(save), version, interface)
    return list(dict.fromkeys(found))


def _nft_checks(ruleset: str, interface: str) -> Iterator[SourceCheck]:
    versions, ours, spared = frozenset({4, 6}), False, False
    for line in map(str.strip, ruleset.splitlines()):
        if table := re.match(r"table (\w+) (\S+)", line):
            versions = frozenset(_NFT_VERSIONS.get(table[1], ()))
            ours = table[2].startswith("alpha_trio")
        elif line.startswith("chain "):
            spared = False
        elif _spares(line, interface):
            spared = True
        check = re.search(r"\bfib saddr((?: \. \w+)*) oif", line)
        if check is None or ours or spared or "iif" not in check[1]:
            continue
        named = {number for number in versions if f"nfproto ipv{number}" in line}
        by_mark = "mark" in check[1]
        yield SourceCheck(frozenset(named) or versions, by_mark, line)


def _iptables_checks(saved: str, version: int, interface: str) -> Iterator[SourceCheck]:
    spared: set[str] = set()  # chains
    for line in saved.splitlines():
        chain = line.split()[1] if line.startswith("-A ") else ""
        if _spares(line, interface):
            spared.add(chain)
        loose = "--loose" in line
        if "-m rpfilter" in line and not loose and chain not in spared:
            yield SourceCheck(frozenset({version}), "--validmark" in line, line)


def _spares(line: str, interface: str) -> bool:
    """Whether a rule takes what comes from ``interface`` out of what follows."""
    accepts = re.search(r"\b(accept|return)\b", line, re.IGNORECASE)
    words = rf'(iifname|iif|-i) "?{re.escape(interface)}"?\b'
    others = rf'(iifname != |iif != |! -i )"?{re.escape(interface)}"?\b'
    return bool((accepts and re.search(words, line)) or re.search(others, line))


def output(*command: str) -> str:
    """What a command prints; nothing if it cannot be run, or not in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def run(*command: str, text: str = "") -> None:
    """Run a command with ``text`` as its input; RoutingError if it fails."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RoutingError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RoutingError(f"{' '.join(command)}: {lines[0]}")


def succeeds(*command: str) -> bool:
    """Run a command and tell whether it said yes."""
    try:
        run(*command)
    except RoutingError:
        return False
    return True


class Watch:
    """Hears of tables of nftables that are removed, whoever does it."""

    def __init__(self) -> None:
        """Begin to listen; OSError without nftables in the kernel is no error."""
        self._notices = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._notices.setblocking(False)
        self._notices.bind((0, _NOTICES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self._notices.close()

    async def wait_changed(self) -> None:
        """Return when anything of nftables was changed, whoever did it."""
        await trio.lowlevel.wait_readable(self._notices)
        await trio.sleep(_SETTLE)
        self._drain()

    async def wait_removed(self) -> None:
        """Return when some table was removed, or more happened than could be told."""
        while not self._drain():
            await trio.lowlevel.wait_readable(self._notices)
        await trio.sleep(_SETTLE)
        self._drain()

    def _drain(self) -> bool:
        removed = False
        while True:
            try:
                notices = self._notices.recv(_ROOM)
            except BlockingIOError:
                return removed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                removed = True
            else:
                removed = removed or _DELTABLE in _kinds(notices)


def _kinds(notices: bytes) -> Iterator[int]:
    at = 0
    while at + _HEADER.size <= len(notices):
        length, kind = _HEADER.unpack_from(notices, at)
        yield kind
        at += max(length + 3 & ~3, _HEADER.size)
