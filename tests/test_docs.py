"""The documentation, checked against what it speaks of."""

import ast
import logging
import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import attrs
import click
import pytest
from alpha_trio_cli.main import main

from alpha_trio.control import commands_for
from alpha_trio.control.commands import QUESTIONS
from alpha_trio.journal import Journal
from alpha_trio.journal.lines import ENDED, LINE_NAMES, OF_A_PACKET, UNNAMED
from alpha_trio.proto.batch import Drop, Event, EventKind
from alpha_trio.proto.peers import State
from alpha_trio.proto.relay import RelayEvent, RelayEventKind
from alpha_trio.proto.relay.verdict import RelayDrop
from alpha_trio.registry.peer import overhead
from alpha_trio.relaying.journal import record
from alpha_trio.relaying.path import Loss
from alpha_trio.settings import Mode, PeerSettings, config
from tools.rooms import rooms

ROOT = Path(__file__).parent.parent
PAGES = [
    "CONTRIBUTING.md",
    "README.md",
    "CHANGELOG.md",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
]
FOLDERS = ("alpha_trio", "cli", "docs", "packaging", "tests", "tools")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", sorted(PAGES))


def text_of(page):
    return (ROOT / page).read_text()


def prose(page):
    """A page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def section(page, heading, rank="##"):
    """What stands below a heading, up to the next one of its rank."""
    _, _, rest = text_of(page).partition(f"\n{rank} {heading}\n")
    assert rest, f"{page} has no section {heading!r}"
    return re.split(rf"\n#{{2,{len(rank)}}} ", rest)[0]


def first_cells(page, heading, rank="##"):
    """All that is written as code in the first column of a section's tables."""
    rows = re.findall(r"^\| (`.*?) \|", section(page, heading, rank), re.MULTILINE)
    return {code for row in rows for code in re.findall("`(.*?)`", row)}


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


# Pages and files


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", prose(page)):
        path, _, anchor = target.partition("#")
        linked = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert linked.is_file(), target
        if anchor:
            assert anchor in anchors(linked.relative_to(ROOT)), target


@every_page
def test_files_that_are_named_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_room_has_its_paragraph_in_the_architecture():
    named = re.findall(r"\*\*`([\w.]+)`\*\*", section("docs/architecture.md", "Rooms"))
    assert sorted(named) == sorted(rooms())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_every_module_is_in_the_list_of_its_room(room):
    modules = [name.rpartition(".")[2] for name in rooms()[room].modules]
    if len(modules) > 1:
        text = import_module(f"alpha_trio.{room}").__doc__
        named = re.findall(r"^    (\w+) ", text, re.MULTILINE)
        inside = {name for name in modules if name != room.rpartition(".")[2]}
        assert set(named) <= {*modules}
        assert inside <= {*re.findall(r"\w+", text)}


def module_of(path):
    return import_module(path.removesuffix(".py").replace("/", "."))


def test_the_way_of_a_packet_names_code_that_exists():
    steps = re.findall(r"^\d+\. .*(?:\n   .*)*", text_of("docs/packet.md"), re.M)
    assert len(steps) > 10
    for step in steps:
        files = re.findall(r"`(alpha_trio/[\w/]+\.py)`", step)
        assert files, step
        for name, path in re.findall(r"`([\w.]+)` \(`([\w/]+\.py)`\)", step):
            assert callable(attrgetter(name)(module_of(path)))
        for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", step):
            owners = [getattr(module_of(path), owner, None) for path in files]
            assert any(hasattr(found, name) for found in owners), (owner, name)


# What an operator meets


def test_every_reason_for_a_drop_is_explained():
    explained = first_cells("docs/operations.md", "Why packets are dropped")
    assert explained == set(map(str, Drop))


def test_every_reason_not_to_relay_is_explained():
    explained = first_cells("docs/relay.md", "Why packets are not relayed")
    assert explained == {*map(str, RelayDrop), *map(str, Loss)}


def test_every_state_is_explained():
    explained = first_cells("docs/operations.md", "States", "###")
    assert explained == set(map(str, State))


def test_every_mode_is_explained_with_its_mtu():
    rows = re.findall(
        r"^\| (`.*`) \| (\d+) \| (\d+) \|$",
        section("docs/operations.md", "Modes and rounds"),
        re.MULTILINE,
    )
    documented = {
        mode: (int(ipv4), int(ipv6))
        for modes, ipv4, ipv6 in rows
        for mode in re.findall("`(.*?)`", modes)
    }
    assert documented == {
        str(mode): tuple(1500 - overhead(v, str(mode)) for v in (4, 6)) for mode in Mode
    }


def calls(name):
    """The literal first arguments of calls of a method, anywhere in the daemon."""
    for path in ROOT.glob("alpha_trio/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=attribute),
                    args=[ast.Constant(value=str(text)), *_],
                ) if attribute == name:
                    yield text


def test_every_event_is_explained():
    kinds = {*map(str, EventKind), *map(str, RelayEventKind)}
    events = {*kinds, *calls("publish"), "lost"}
    assert first_cells("docs/operations.md", "Events") == events


@pytest.mark.parametrize("kind", EventKind)
def test_the_log_line_of_every_event_is_explained(kind, caplog):
    caplog.set_level(logging.INFO, "alpha_trio")
    count = 1408 if kind is EventKind.PATH_MTU else 1
    Journal().record(Event(kind, "NAME", ("HOST", 1234), count))
    assert set(caplog.messages) <= first_cells("docs/operations.md", "Log")
    assert caplog.messages


@pytest.mark.parametrize("kind", RelayEventKind)
def test_the_log_line_of_every_relay_event_is_explained(kind, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "alpha_trio")
    monkeypatch.setattr("alpha_trio.relaying.journal.address", lambda remote: remote[0])
    event = RelayEvent(kind, ("INITIATOR", 1), ("RESPONDER", 1), reason="REASON")
    record(Journal(), event)
    assert set(caplog.messages) <= first_cells("docs/operations.md", "Log")
    assert caplog.messages


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_every_line_of_the_log_is_explained(level):
    explained = first_cells("docs/operations.md", "Log")
    for line in calls(level):
        pattern = re.sub("%[sd]", ".+", re.escape(line))
        assert any(re.fullmatch(pattern, text) for text in explained), line


def test_every_name_of_a_line_is_explained():
    events = first_cells("docs/operations.md", "Events")
    explained = first_cells("docs/operations.md", "JSON and priorities", "###")
    named = {*LINE_NAMES.values(), ENDED, OF_A_PACKET, UNNAMED}
    assert named - events <= explained - {"event"}


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("Top level", {*config._FILE} - {*config._TABLES, "peers"}),
        ("`[peers.NAME]`", {*config._FILE_PEER}),
        *((f"`[{table}]`", {*known}) for table, known in config._TABLES.items()),
    ],
)
def test_every_setting_is_explained(heading, known):
    rows = section("docs/configuration.md", heading).partition("\n### ")[0]
    if heading == "`[offloads]`":  # which are no table
        rows = re.sub("`(.*?)`", r"\n| `\1` |", rows.partition(", each")[0])
    cells = re.findall(r"^\| ((?:`\w[\w-]*`(?:, )?)+) \|", rows, re.MULTILINE)
    assert {name for cell in cells for name in re.findall("`(.*?)`", cell)} == known


# Commands


def test_every_setting_of_a_peer_is_in_the_control_protocol():
    lines = section("docs/control.md", "Commands").splitlines()
    (line,) = [line for line in lines if line.startswith("- `settings`")]
    listed = line.partition(" with any of ")[2].partition(", with values")[0]
    in_file_only = {"hooks"}
    settings = {field.name for field in attrs.fields(PeerSettings)} - {"name"}
    settings -= in_file_only
    assert set(re.findall("`(.*?)`", listed)) == settings


def test_every_command_of_the_control_protocol_is_a_question_or_not():
    rows = re.findall(
        r"^\| `([\w.]+)` \| (yes|no) \|", section("docs/control.md", "Commands"), re.M
    )
    assert {name for name, _ in rows} == commands_for(None).keys()
    assert {name for name, asks in rows if asks == "yes"} == QUESTIONS


def commands(command, *path):
    """All commands without subcommands, each with the words that call it."""
    if not isinstance(command, click.Group):
        yield " ".join(path)
        return
    for name, inner in command.commands.items():
        yield from commands(inner, *path, name)


@pytest.mark.parametrize("command", sorted(commands(main, "alpha-trio")))
def test_every_command_is_in_the_readme(command):
    assert f"`{command}`" in section("README.md", "The commands")


def typed(page):
    """The commands of ours that a reader is told to type, without the program."""
    blocks = FENCE.findall(text_of(page))
    console = "\n".join(text for kind, text in blocks if kind == "console")
    lines = [
        *(text for kind, text in blocks if kind == "sh"),
        *re.findall(r"^\w+# (.*)$", console, re.MULTILINE),
        *re.findall(r"`(.+?)`", prose(page)),
    ]
    calls = re.findall(r"\balpha-trio((?: [\w\'-][^\s`|;&<>]*)+)", "\n".join(lines))
    return [[word.strip("'\".,:") for word in call.split()] for call in calls]


@every_page
def test_commands_to_type_exist_with_these_options(page):
    for words in typed(page):
        command, rest = main, list(words)
        while isinstance(command, click.Group) and rest:
            name = rest.pop(0)
            assert name in command.commands, words
            command = command.commands[name]
        known = {opt for param in command.params for opt in param.opts} | {"--help"}
        given = {word for word in rest if word.startswith("--")}
        assert given <= known, words
