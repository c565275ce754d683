"""What works on this host without a daemon: run, cleanup, doctor, the key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpha_trio.errors import AlphaTrioError

from .app import PATH, Command, Whole, connect, given_socket, status_of
from .complete import PeerName, Words
from .entry import importing
from .words import counted

if TYPE_CHECKING:
    from alpha_trio.doctor import Check
    from alpha_trio.settings import Settings

LOG_FORMATS = ("text", "json")
ENGINES = ("auto", "native", "python")
KEY_MISMATCH = "key-mismatch"
OFFLOADS = ("vnet-hdr", "tso", "uso", "segment", "gro")

Finding = tuple[bool | None, str, str]  # whether it is good, what, its remedy

# None: could not be seen, or does not matter.
MARKS = {
    True: click.style("good", "green"),
    False: click.style("BAD ", "red"),
    None: "-   ",
}


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """Where this host's daemon has its settings and its state."""
    for option in (
        click.option(
            "--state-dir",
            type=PATH,
            metavar="PATH",
            envvar="ALPHA_TRIO_STATE",
            help="Keep the key and the added peers here; without it, where "
            "ALPHA_TRIO_STATE says, or in /var/lib/alpha-trio.",
        ),
        click.option(
            "--config",
            type=PATH,
            metavar="FILE",
            help="Read this configuration; without it, "
            "/etc/alpha-trio/alpha-trio.toml, if that exists.",
        ),
    ):
        function = option(function)
    return function


interface_option = click.option(
    "--interface",
    metavar="NAME",
    help="Call the tunnel's interface so; without it, alpha0.",
)


def settings_of(config: str | None, **options: Any) -> Settings:
    from alpha_trio.settings import load_settings

    return load_settings(
        Path(config) if config else None, {"socket": given_socket(), **options}
    )


@click.command(cls=Command)
@settings_options
@interface_option
@click.option(
    "--port",
    type=Whole(),
    metavar="N",
    help="Listen at this UDP port; without it, 1234.",
)
@click.option(
    "--address",
    multiple=True,
    metavar="CIDR",
    help="Give the interface this address, such as 10.9.0.1/24; may be repeated.",
)
@click.option(
    "--dscp",
    metavar="N|copy",
    type=Words("copy"),
    help="Mark our datagrams with this DSCP, 0 to 63, or copy that of each packet; "
    "without it, 0.",
)
@click.option(
    "--relay",
    is_flag=True,
    default=None,
    help="Check other hosts' tunnel traffic that crosses this host, and let pass only "
    "what is genuine.",
)
@click.option(
    "--mss",
    is_flag=True,
    default=None,
    help="Lower the segment size in forwarded TCP SYNs to what the tunnel takes.",
)
@click.option(
    "--no-offload",
    multiple=True,
    type=click.Choice(OFFLOADS),
    help="Do without this facility of the kernel; may be repeated.",
)
@click.option(
    "-v", "--verbosity", count=True, help="Log more; given twice, every packet."
)
@click.option(
    "--check", is_flag=True, help="Check the configuration, and do nothing else."
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="Work on packets by this engine; auto, the default, takes the native one if "
    "it can be used, and else the one in Python.",
)
@click.option(
    "--cores",
    type=Whole(),
    metavar="N",
    help="Have N processes carry packets, each for its share of the peers; without "
    "it, 1, which does all.",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    help="Lines of text, or one JSON document in each [text].",
)
def run(config: str | None, check: bool, **options: Any) -> None:
    """Run the daemon in the foreground; it logs to stderr."""
    settings = settings_of(config, **options)
    if check:
        peers = counted(len(settings.peers), "peer")
        click.echo(f"The configuration is good; it has {peers}.")
        return
    sys.exit(start(settings))


def start(settings: Settings) -> int:
    with importing(young=5000):
        from alpha_trio.daemon import main

    return main(settings)


@click.command(cls=Command)
@settings_options
@interface_option
@click.option(
    "--keep-closed",
    is_flag=True,
    help='Leave the traffic blocked that a relay with fail = "closed" blocks.',
)
def cleanup(config: str | None, keep_closed: bool, **options: Any) -> None:
    """Remove what a killed daemon has left in the kernel."""
    settings = settings_of(config, **options)
    from alpha_trio import control
    from alpha_trio.net import host, routing, tproxy

    if not host.has_net_admin():  # who may not look at all would find nothing
        raise AlphaTrioError(
            "no permission to remove rules and routes (CAP_NET_ADMIN is missing): run "
            "this as root"
        )
    # First the socket: this is where a daemon that lives is noticed.
    removed = [
        *control.cleanup(settings),
        *tproxy.remove(settings.interface, closed=not keep_closed),
        *routing.cleanup(settings),
    ]
    for line in removed or ["There was nothing to clean up."]:
        click.echo(line)


@click.command(cls=Command)
@settings_options
@click.argument("name", required=False, type=PeerName())
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, for programs."
)
def doctor(
    name: str | None, config: str | None, state_dir: str | None, as_json: bool
) -> None:
    """Check whether this host has what the tunnel needs, or the way to the peer NAME.

    The host is checked without a daemon; of a peer the running daemon tells, from its
    name to its packets.  It ends with 1 if something is BAD; what is marked by "-" is
    neither good nor bad, or cannot be seen from here.
    """
    if name is not None:
        with connect() as client:
            steps = client.call("doctor", {"name": name})["steps"]
            port = client.call("status")["port"]
        walked = [(step["ok"], step["what"], step["remedy"]) for step in steps]
        diagnose(_with_filter(walked, port), as_json)
        return
    settings = settings_of(config, state_dir=state_dir)
    from alpha_trio.doctor import checks

    found = [*checks(settings), *_told_by_daemon(settings)]
    diagnose([(check.ok, check.what, check.remedy) for check in found], as_json)


def _with_filter(found: list[Finding], port: int) -> list[Finding]:
    """Put what the packet filter does before the session, which it may be against.

    The daemon does not look at it: that takes longer than packets are to wait.
    """
    for at, (_, what, _) in enumerate(found):
        if what.startswith("session:"):
            from alpha_trio.doctor import filter_checks

            seen = [(c.ok, c.what, c.remedy) for c in filter_checks(port)]
            return [*found[:at], *seen, *found[at:]]
    return found


def diagnose(found: Sequence[Finding], as_json: bool) -> None:
    """Print what was found, good or bad, with its remedy; raise if some is bad."""
    if as_json:
        names = ("ok", "what", "remedy")
        steps = [dict(zip(names, step, strict=True)) for step in found]
        click.echo(json.dumps({"schema": 1, "steps": steps}, indent=2))
    for good, what, remedy in () if as_json else found:
        click.echo(f"{MARKS[good]}  {what}{f'; {remedy}' if remedy else ''}")
    if failed := sum(good is False for good, *_ in found):
        raise AlphaTrioError(
            f"{failed} of {len(found)} checks failed: follow the lines marked BAD"
        )


def _told_by_daemon(settings: Settings) -> list[Check]:
    """What a running daemon sees going wrong, and what it would tell in ``health``."""
    from alpha_trio.doctor import Check
    from alpha_trio.rpc import Client

    try:
        status = status_of(Client(settings.socket))
    except AlphaTrioError:  # there is a line about it already
        return []
    astray = status.get("astray", ())  # a daemon of before an upgrade has none
    health = [
        Check(None if line not in astray else False, line) for line in status["health"]
    ]
    return health + [
        Check(False, f"key of peer {name}: it shows another one than it must have", see)
        for name in (p["name"] for p in status["peers"] if p["state"] == KEY_MISMATCH)
        for see in [f"compare both, then see 'alpha-trio status {name}'"]
    ]


def pre_shared(path: str) -> str:
    """The pre-shared key in a file, or in standard input.  Raises ConfigError."""
    from alpha_trio.settings import files, values

    if path != "-":
        return files.read_psk(Path(path))
    if sys.stdin is None:
        raise AlphaTrioError("standard input is closed; write the key into it")
    content = sys.stdin.buffer.read(files.MOST)
    return values.psk(content.decode("ascii", "replace").strip())


@click.command(cls=Command)
@settings_options
def keygen(config: str | None, state_dir: str | None) -> None:
    """Make the key of this host before the first start, and print its public half.

    A host that has a key keeps it; then that one is printed.
    """
    settings = settings_of(config, state_dir=state_dir)
    from alpha_trio.proto.primitives import key_text
    from alpha_trio.state import PeerStore, read_identity

    identity = read_identity(settings.state_dir)
    if identity is None:
        with PeerStore(settings.state_dir) as store:
            identity = store.identity()
    click.echo(key_text(identity.public))


def saved_key(config: str | None, state_dir: str | None) -> str | None:
    """The public key of this host as the daemon saved it; None if it made none yet."""
    settings = settings_of(config, state_dir=state_dir)
    from alpha_trio.proto.primitives import key_text
    from alpha_trio.state import read_identity

    identity = read_identity(settings.state_dir)
    return None if identity is None else key_text(identity.public)
