"""Commands on files alone: a configuration with every kind of mistake."""

import os
import re

import alpha_trio_cli.main
import pytest
from click.testing import CliRunner

from alpha_trio.settings import config
from tests.cli.test_cli import by_nobody, call

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PSK = "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs="


def invoke(*arguments, typed=None):
    """Exit code, output and the lines of errors of a command."""
    result = CliRunner().invoke(
        alpha_trio_cli.main.main, arguments, input=typed, prog_name="alpha-trio"
    )
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, result.stdout, result.stderr.splitlines()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of which errors have the bare name."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="x.toml"):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return name

    return write


def mistakes(name):
    """What is wrong with a file, each with its place."""
    code, output, lines = invoke("check", name)
    assert (code, output) == (1, "")
    assert all(line.startswith("alpha-trio: ") and len(line) < 400 for line in lines)
    return [line.removeprefix("alpha-trio: ") for line in lines]


# A configuration


def test_a_good_file_is_good(write):
    name = write("[peers.vm2]\nendpoint = '192.168.10.61'\n")
    good = "The configuration is good; it has 1 peer.\n"
    assert invoke("check", name) == (0, good, [])
    with open(name, "rb") as file:
        assert invoke("check", "-", typed=file.read()) == (0, good, [])


def test_without_a_file_there_is_nothing_to_check(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "DEFAULT_CONFIG", tmp_path / "none")
    assert "none is needed" in call("check")
    (tmp_path / "none").write_text("port = 0")
    assert f"{tmp_path}/none:1: port: " in call("check", code=1)


@pytest.mark.parametrize("content", ["", "\n", "# x", "port = 5\r\n", "\ufeffport = 5"])
def test_what_editors_make_of_a_file_is_no_mistake(write, content):
    assert "has 0 peers" in call("check", write(content))


KINDS = {
    "of type": ("port = '1'", ":1: port: '1' is not a whole number; use 1 to 65535"),
    "key": ("\nprot = 1", ":2: prot: unknown key; did you mean port?"),
    "table": ("[rely]\nx = 1", ":1: rely: unknown key; did you mean relay?"),
    "twice": ("port = 1\nport = 2", ":2: Cannot overwrite a value; mend it there"),
    "table twice": ("[relay]\n[relay]", ":2:7: Cannot declare ('relay',) twice; mend"),
    "range": ("port = 65536", ":1: port: 65536 is out of range; use 1 to 65535"),
    "choice": (
        "log_format = 'x'",
        ":1: log_format: 'x' is not known; use text or json",
    ),
    "empty": (
        "interface = ''",
        ":1: interface: the text is empty; fill it in or leave",
    ),
    "relative": ("state_dir = 'x'", ":1: state_dir: 'x' is a relative path; begin it"),
    "prefix": (
        "[peers.a]\nallow = ['10.0.0.1/8']",
        ":2: peers.a.allow: '10.0.0.1/8' has bits set beyond its length; the network",
    ),
    "same prefix": (
        "[peers.a]\nallow = ['10.0.0.0/8']\n[peers.b]\nallow = ['10.0.0.0/8']",
        ": peers a and b both have prefix 10.0.0.0/8; take it from one of them",
    ),
    "same place": (
        "[peers.a]\nendpoint = 'h'\n[peers.b]\nendpoint = 'h'",
        ": peers a and b both have endpoint h:1234; take it from one of them",
    ),
    "public key": (
        "[peers.a]\nkey = 'x'",
        ":2: peers.a.key: this is no key (1 characters); give the 32 bytes in base64",
    ),
    "unquoted dot": (
        "[peers.a.b]\nendpoint = 'h'",
        ":1: peers.a.b: a peer holds no tables; quote a name with dots, as in",
    ),
    "name": ("[peers.'a b']", ":1: peers.'a b': 'a b' is no peer name; use 1 to 64"),
    "no value": ("port =", ":1: Invalid value; mend"),
    "quote": ("interface = 'x", ':1: Expected "\'"; mend'),
    "bracket": ("addresses = ['10.0.0.1'", ":1: Unclosed array"),
    "line end": ("port = 5\r", ":1:9: Expected newline or end of document"),
    "NUL": ("port = 5\0", ":1:9: Expected newline or end of document"),
    "mark within": ("port = 5\ufeff", ":1:9: Expected newline or end of document"),
    "latin-1": (b"\n# f\xfcr", ":2: byte 0xfc is not UTF-8; save the file in that"),
    "UTF-16": (
        "port = 5".encode("utf-16"),
        ":1: byte 0xff is not UTF-8; save the file",
    ),
    "binary": (b"\x7fELF\x02\x01\0", ":1:1: Invalid statement; mend it there"),
    "JSON": ('{"port": 5}', ":1:1: Invalid statement; mend it there"),
    "INI": ("[Interface]\nListenPort = 5", ":1: Interface: unknown key; did you mean"),
    "huge number": ("port = " + "9" * 5000, ": Exceeds the limit"),
    "deep": ("a = " + "[" * 5000, ": "),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_each_kind_is_one_line_with_place_and_remedy(write, kind):
    content, said = KINDS[kind]
    (line,) = mistakes(write(content))
    assert line.startswith(f"x.toml{said}")
    assert "; " in line


def test_all_mistakes_of_a_file_are_named(write):
    name = write(
        "prot = 1\nport = 0\naddresses = ['x', 'y']\n[relay]\nfail = 3\nports = 5\n"
        "[offloads]\nufo = true\n[peers]\nz = 7\n[peers.a]\nkey = 'k'\nalow = []\n"
        "[peers.b]\nendpoint = 'h'\n[peers.c]\nendpoint = 'h'\n"
    )
    places = [line.partition(": ")[0] for line in mistakes(name)]
    numbers = [1, 2, 3, 3, 5, 6, 8, 10, 12, 13]
    assert places == [*(f"{name}:{number}" for number in numbers), name]
    # The daemon itself, which does not start, says the first of them.
    (first,) = invoke("run", "--check", "--config", name)[2]
    assert first.startswith(f"alpha-trio: {name}:1: prot: ")


TABLES = {"": config._FILE, **config._TABLES, "peers.a": config._FILE_PEER}
VALUES = (
    *(
        "-1",
        "0",
        "1",
        "9" * 30,
        "1.5",
        "nan",
        "-inf",
        "true",
        "''",
        "'x'",
        "'a\\u0000'",
    ),
    *(
        "[]",
        "['x']",
        "[1]",
        "[[]]",
        "{}",
        "{x = 1}",
        "1979-05-27T07:32:00Z",
        "07:32:00",
    ),
)


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table in TABLES for key in TABLES[table]]
)
def test_any_value_of_any_key_is_taken_or_named(write, table, key):
    for value in VALUES:
        head = f"[{table}]\n" if table else ""
        name = write(f"{head}{key} = {value}\n")
        os.chmod(name, 0o600)
        code, output, lines = invoke("check", name)
        assert output.startswith("The configuration is good") == (code == 0)
        line = 2 if table else 1
        where = ".".join(filter(None, (table, key)))
        for said in lines:
            # Of a peer also what follows from one for others.
            assert re.match(rf"alpha-trio: {name}(:{line})?: {where}", said) or (
                table == "peers.a" and said.startswith(f"alpha-trio: {name}:")
            ), said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent", "absent: there is no such file; check the name"),
        (".", ".: cannot be read: Is a directory; give a file you may read"),
        ("/dev/zero", "/dev/zero: there are more than 8 MiB in it"),
        ("x" * 300, ": cannot be read: File name too long; give"),
    ],
)
@pytest.mark.parametrize("command", ["check"])
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, command, path, said):
    monkeypatch.chdir(tmp_path)
    assert said in call(*command.split(), path, code=1)


@pytest.mark.root
@pytest.mark.parametrize("command", ["check"])
def test_who_may_not_read_a_file_is_told_in_one_line(tmp_path, command):
    path = tmp_path / "x.toml"
    path.touch(0o600)
    done = by_nobody("/nowhere", *command.split(), str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"alpha-trio: .*x.toml: cannot be read: Permission denied; ", line)


def test_a_file_with_very_many_mistakes_is_told_of_soon(write):
    name = write("".join(f"[peers.p{n}]\nport = 0\n" for n in range(3000)))
    assert len(mistakes(name)) == 3000
