"""Commands on files alone: a configuration with every kind of mistake, WireGuard's."""

import os
import re
import subprocess
import tomllib

import alpha_trio_cli.main
import pytest
from alpha_trio_cli import toml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.settings import config, load_settings
from tests.cli.test_cli import PROGRAM, by_nobody, call

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
@pytest.mark.parametrize("command", ["check", "import-wg", "peers import"])
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, command, path, said):
    monkeypatch.chdir(tmp_path)
    assert said in call(*command.split(), path, code=1)


def test_a_closed_standard_input_is_one_line():
    command = ["sh", "-c", '"$@" <&-', "sh", *PROGRAM, "check", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == (
        "alpha-trio: standard input: cannot be read: it is closed; give a file you may "
        "read\n"
    )
    assert done.returncode == 1


@pytest.mark.root
@pytest.mark.parametrize("command", ["check", "import-wg", "peers import"])
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


# The writer


VALUES_OF_SETTINGS = st.dictionaries(
    st.text(min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)


@given(st.text(st.characters(exclude_categories=["Cs"])), VALUES_OF_SETTINGS)
def test_what_is_written_is_read_as_it_was(name, values):
    text = toml.table(["peers", name], values, "a remark\nof two lines")
    assert tomllib.loads(text) == {"peers": {name: values}}
    assert text.count("\n") == len(values) + 3


def test_a_name_is_quoted_where_it_has_to_be():
    names = {"vm2": "vm2", "a_b-C": "a_b-C", "a.b": '"a.b"', "é": '"é"', "": '""'}
    for name, written in names.items():
        assert toml.table(["peers", name], {}) == f"[peers.{written}]\n"


# WireGuard

WG_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
WG = f"""\
# made by somebody
[interface]
PRIVATEKEY = {WG_KEY}  # secret
Address = 10.0.0.1/24,fd00::1/64
address=10.1.0.1
ListenPort = 51820
DNS = 1.1.1.1, example.org
MTU = 1420
Table = 1234
FwMark = 0xca6c
PreUp = true
PostUp = iptables -A FORWARD -i %i -j ACCEPT; true = false
PostDown=true
SaveConfig = true

[Peer] # laptop
PublicKey = {WG_KEY}
PresharedKey = {WG_KEY}
AllowedIPs = 10.0.0.2/32, fd00::2

# Name = site.example.org
[Peer]
PublicKey={WG_KEY}
Endpoint = [2001:db8::1]:51821
AllowedIPs = 10.2.0.1/16
AllowedIPs = 10.3.0.0/16
PersistentKeepalive = 25

[Peer]
PublicKey = {WG_KEY}
AllowedIPs = 10.3.0.0/16, 0.0.0.0/0
Endpoint = VPN.example.org:51820
PersistentKeepalive = Off
"""

CONVERTED = {
    "addresses": ["10.0.0.1/24", "fd00::1/64", "10.1.0.1/32"],
    "port": 51820,
    "peers": {
        "laptop": {"allow": ["10.0.0.2/32", "fd00::2/128"]},
        "site.example.org": {
            "endpoint": "2001:db8::1",
            "port": 51821,
            "allow": ["10.2.0.0/16"],
            "keepalive": 25,
        },
        "peer3": {
            "endpoint": "vpn.example.org",
            "port": 51820,
            "allow": ["0.0.0.0/0", "10.3.0.0/16"],
        },
    },
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_wireguard_configuration_becomes_one_of_ours(write, ending):
    name = write(WG.replace("\n", ending), "wg0.conf")
    code, output, remarks = invoke("import-wg", name)
    assert code == 0
    assert tomllib.loads(output) == CONVERTED
    assert WG_KEY not in output + "".join(remarks)
    assert "has 3 peers" in call("check", write(output))
    with open(name, "rb") as file:
        assert invoke("import-wg", "-", typed=file.read())[1] == output
    left = [line.partition(" is left out: ") for line in remarks if "left out" in line]
    numbers = [3, *range(7, 15), 17, 18, 23, 26, 30]
    assert sorted(int(where.split(":")[1]) for where, _, _ in left) == numbers
    assert all(why.endswith(".") and len(why) > 20 for _, _, why in left)
    assert all(re.match(r"wg0.conf:\d+: ", line) for line in remarks)
    assert f"{name}:6: ListenPort is kept as port" in "\n".join(remarks)
    assert "peer laptop has no Endpoint" in "\n".join(remarks)
    assert "10.3.0.0/16 is a later peer's, as with WireGuard" in "\n".join(remarks)


def test_a_hook_that_is_none_is_not_told(write):
    wg = write("[Interface]\nPostUp =\nPreDown = \nAddress = 10.8.0.1/24\n", "wg0.conf")
    assert invoke("import-wg", wg) == (0, 'addresses = ["10.8.0.1/24"]\n', [])


def test_routes_by_hand_stay_by_hand(write):
    wg = f"[Interface]\nTable = off\n[Peer]\nPublicKey={WG_KEY}\nAllowedIPs=10.0.0.0/8"
    code, output, remarks = invoke("import-wg", write(wg, "wg0.conf"))
    assert code == 0
    assert tomllib.loads(output)["routing"] == {"backend": "none"}
    assert "Table" not in "".join(remarks)


def test_a_peer_that_is_sent_nothing_is_left_out(write):
    wg = f"[Peer]\nPublicKey = {WG_KEY}\nEndpoint = 192.0.2.1:1\nAllowedIPs =\n"
    code, output, remarks = invoke("import-wg", write(wg, "wg0.conf"))
    assert (code, output) == (0, "")
    assert "peer peer1 is left out: it has no AllowedIPs" in remarks[-1]


def test_names_from_comments_are_names_of_peers_and_all_different(write):
    comments = ("# a", "# a", "# two words", "#PublicKey = x", "# client: b", "", "# -")
    wg = "".join(
        f"[Peer]\n{comment}\nPublicKey = {WG_KEY}\nAllowedIPs = 10.0.0.{number}\n"
        for number, comment in enumerate(comments)
    )
    output = invoke("import-wg", write(wg, "wg0.conf"))[1]
    names = ["a", "peer2", "peer3", "peer4", "b", "peer6", "peer7"]
    assert list(tomllib.loads(output)["peers"]) == names


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "wg0.conf: there is neither [Interface] nor [Peer] in it"),
        ("port = 5", "wg0.conf:1: this is in no section; begin with [Interface]"),
        ("[Interfaces]", "wg0.conf:1: [Interfaces] is not known; there are"),
        ("[Interface]\nx", "wg0.conf:2: this is no KEY = VALUE"),
        (
            "[Interface]\nAdress = 1",
            "wg0.conf:2: 'Adress': unknown key; did you mean Add",
        ),
        ("[Interface]\nAllowedIPs = 1", "wg0.conf:2: 'AllowedIPs': unknown key; "),
        ("[Interface]\nPrivateKey = hunter2", "wg0.conf:2: PrivateKey: this is no key"),
        ("[Interface]\nAddress = x", "wg0.conf:2: Address: 'x' is no address"),
        (
            "[Interface]\nListenPort = 65536",
            "wg0.conf:2: ListenPort: '65536' is out of",
        ),
        ("[Interface]\nListenPort = x", "wg0.conf:2: ListenPort: 'x' is out of range"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/8", "wg0.conf:1: this peer has no PublicKey"),
        ("[Peer]\nPublicKey = x", "wg0.conf:2: PublicKey: this is no key"),
        ("P\nAllowedIPs = 10.0.0.0/33", "wg0.conf:3: AllowedIPs: '10.0.0.0/33' is no"),
        ("P\nAllowedIPs=::/0\nEndpoint=a", "wg0.conf:4: Endpoint: 'a' has no port; wr"),
        ("P\nAllowedIPs=::/0\nEndpoint=a:0", "wg0.conf:4: Endpoint: 0 is out of range"),
        (
            "P\nAllowedIPs=::/0\nEndpoint=::1:9",
            "wg0.conf:4: Endpoint: '::1:9' has no p",
        ),
        (
            "P\nAllowedIPs=::/0\nPersistentKeepalive = -1",
            "wg0.conf:4: PersistentKeepalive: '-1' is out of range; use 0 to 65535",
        ),
    ],
)
def test_a_bad_wireguard_configuration_is_one_line(write, lines, said):
    content = lines.replace("P\n", f"[Peer]\nPublicKey = {WG_KEY}\n")
    error = call("import-wg", write(content, "wg0.conf"), code=1)
    assert error.startswith(f"alpha-trio: {said}")
    assert "hunter2" not in error


LINES = (
    *("[Interface]", "[Peer]", "# name", "Address = 10.0.0.1/8", "ListenPort = 7"),
    *(f"PublicKey = {WG_KEY}", "AllowedIPs = ::/0", "AllowedIPs = 10.0.0.0/8,", ""),
    *("Endpoint = 192.0.2.1:1", "Endpoint = [::1]:2", "Endpoint = fe80::1%eth0:3"),
    *("Endpoint = 224.0.0.1:5", "Address = 224.0.0.1, 10.0.0.0/8", "Table = off"),
)


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=12), max_size=12))
def test_any_file_is_converted_to_a_good_one_or_refused_in_a_line(
    tmp_path_factory, lines
):
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_text("\n".join(lines), errors="replace")
    code, output, errors = invoke("import-wg", str(path))
    if code:
        assert len(errors) == 1
        return
    path.write_text(output)
    load_settings(path, {})
