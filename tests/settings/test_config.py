"""The config file, the command line and the values of peers."""

import os
from ipaddress import ip_interface, ip_network
from pathlib import Path
from string import ascii_lowercase

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alpha_trio.errors import ConfigError
from alpha_trio.settings import (
    Backend,
    Fail,
    HookSettings,
    Listen,
    MetricsSettings,
    Mode,
    Offload,
    PeerSettings,
    Selection,
    Settings,
    check_peers,
    config,
    load_settings,
    parse_peer,
    peer_values,
)
from alpha_trio.settings.model import Consent, RelayEarly, Unseen

PSK = "/u3c+6mYh3ZlVEMyIRAP/u3cy7qph2VUQzIhEP/u3cs="
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
FULL = f"""\
interface = "tunnel0"
port = 4321
addresses = ["10.9.0.1/24", "fd00::1/64"]
state_dir = "/srv/alpha"
socket = "/srv/alpha/sock"
socket_group = "wheel"
status_group = "adm"

[routing]
backend = "marks"
table = 77
priority = 100
mark = 0x77
protocol = 200

[relay]
enabled = true
fail = "closed"
ports = [1234, 1235]
unseen = "drop"
require_a1 = false
consent = "address"
keys = ["{KEY}"]
s1_rate = 500
sessions = 10
memory = "8 MiB"
roots = 40
trace = true
early = "off"

[offloads]
uso = false
gro = true

[peers.vm2]
endpoint = "192.168.10.61:99"
key = "{KEY}"
allow = ["fd00::/64", "10.9.0.0/24", "10.9.0.0/24"]
only = ["udp", "tcp/80-90"]
keepalive = 25
mode = "plain"

[peers."vm.x"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "alpha-trio.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(function, *args):
    with pytest.raises(ConfigError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def outcome(function, *args):
    """What it complained about, or None."""
    try:
        function(*args)
    except ConfigError as error:
        return str(error)
    return None


# Loading


def test_everything_a_file_can_say(write):
    path = write(FULL)
    settings = load_settings(path, {})
    assert settings == Settings(
        interface="tunnel0",
        port=4321,
        addresses=(ip_interface("10.9.0.1/24"), ip_interface("fd00::1/64")),
        state_dir=Path("/srv/alpha"),
        socket=Path("/srv/alpha/sock"),
        socket_group="wheel",
        status_group="adm",
        config_file=path,
        routing=config.RoutingSettings(Backend.MARKS, 77, 100, 0x77, 200),
        relay=config.RelaySettings(
            enabled=True,
            fail=Fail.CLOSED,
            ports=(1234, 1235),
            unseen=Unseen.DROP,
            require_a1=False,
            consent=Consent.ADDRESS,
            keys=(KEY,),
            s1_rate=500.0,
            sessions=10,
            memory=8 << 20,
            roots=40,
            trace=True,
            early=RelayEarly.OFF,
        ),
        disabled_offloads=frozenset({Offload.USO}),
        peers=(
            PeerSettings(
                "vm2",
                endpoint="192.168.10.61",
                port=99,
                key=KEY,
                allow=(ip_network("10.9.0.0/24"), ip_network("fd00::/64")),
                only=(Selection(6, (80, 90)), Selection(17)),
                keepalive=25.0,
                mode=Mode.PLAIN,
            ),
            PeerSettings("vm.x"),
        ),
    )


def test_options_win_and_offloads_add_up(write):
    options = {
        "interface": "alpha7",
        "port": 5,
        "address": ["10.8.0.1/24"],
        "relay": False,
        "state_dir": "state",
        "socket": "/run/x",
        "no_offload": ["gro", "tso"],
        "verbosity": 2,
    }
    settings = load_settings(write(FULL), options)
    assert settings.interface == "alpha7"
    assert settings.port == 5
    assert settings.addresses == (ip_interface("10.8.0.1/24"),)
    assert not settings.relay.enabled
    assert settings.relay.fail is Fail.CLOSED
    assert settings.state_dir == Path.cwd() / "state"
    assert settings.socket == Path("/run/x")
    assert settings.disabled_offloads == {Offload.USO, Offload.GRO, Offload.TSO}
    assert settings.verbosity == 2
    assert settings.socket_group == "wheel"


def test_options_not_given_change_nothing(write):
    absent = dict.fromkeys(["interface", "port", "relay", "socket"], None)
    path = write(FULL)
    assert load_settings(
        path, absent | {"address": (), "no_offload": ()}
    ) == load_settings(path, {})


def test_the_default_file_is_optional(write, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "DEFAULT_CONFIG", tmp_path / "absent.toml")
    assert load_settings(None, {}) == Settings()
    path = write("port = 7")
    monkeypatch.setattr(config, "DEFAULT_CONFIG", path)
    assert load_settings(None, {}) == Settings(port=7, config_file=path)


def test_a_named_file_is_not_optional(tmp_path):
    text = refusal(load_settings, tmp_path / "absent.toml", {})
    assert text == f"{tmp_path}/absent.toml: there is no such file; check --config"


def test_a_folder_is_no_file(tmp_path):
    assert "Is a directory" in refusal(load_settings, tmp_path, {})


@pytest.mark.parametrize(
    ("content", "begin", "said"),
    [
        ("port = 70000", ":1: port: ", "70000 is out of range; use 1 to 65535"),
        ("\nport = 'x'", ":2: port: ", "'x' is not a whole number"),
        ("port = true", ":1: port: ", "True is not a whole number"),
        ("prot = 5", ":1: prot: ", "unknown key; did you mean port?"),
        ("zzz = 5", ":1: zzz: ", "unknown key; known are interface, port"),
        ("relay = true", ":1: relay: ", "write [NAME] and keys below"),
        ("[relay]\nenabled = 1", ":2: relay.enabled: ", "1 is neither true nor false"),
        ("[relay]\nfail = 'shut'", ":2: relay.fail: ", "use open or closed"),
        ("[relay]\nports = [0]", ":2: relay.ports: ", "use 1 to 65535"),
        ("[relay]\nkeys = ['x']", ":2: relay.keys: ", "this is no key"),
        ("[relay]\ns1_rate = 0", ":2: relay.s1_rate: ", "use 1 to 1000000000"),
        ("[relay]\ns1_rate = nan", ":2: relay.s1_rate: ", "use 1 to 1000000000"),
        ("[relay]\nmemory = 64", ":2: relay.memory: ", "64 is not a text"),
        ("[relay]\nmemory = '64 MB'", ":2: relay.memory: ", 'write "64 MiB"'),
        ("[relay]\nmemory = '9 KiB'", ":2: relay.memory: ", "from 1 MiB"),
        ("[relay]\nroots = 513", ":2: relay.roots: ", "use 0 to 512"),
        ("[relay]\nearly = 'on'", ":2: relay.early: ", "use limited or off"),
        ("[relay]\nearly = false", ":2: relay.early: ", "False is not a text"),
        ("state_dir = 'x'", ":1: state_dir: ", "'x' is a relative path"),
        ('socket = "/a\\u0000"', ":1: socket: ", "contains a NUL"),
        ("socket_group = ''", ":1: socket_group: ", "the text is empty"),
        ("addresses = '10.0.0.1'", ":1: addresses: ", "write ['10.0.0.1']"),
        ("routing = 5", ":1: routing: ", "5 is not a table"),
        ("[routing]\n\ntabel = 5", ":3: routing.tabel: ", "did you mean table?"),
        ("[routing]\ntable = 254", ":2: routing.table: ", "the kernel's table 'main'"),
        ("[routing]\ntable = 252", ":2: routing.table: ", "253 is the kernel's table"),
        ("[routing]\ntable = 4294967295", ":2: routing.table: ", "4294967293"),
        ("[routing]\nprotocol = 12", ":2: routing.protocol: ", "bird"),
        ("[routing]\nprotocol = 4", ":2: routing.protocol: ", "use 5 to 255"),
        ("[routing]\npriority = 32766", ":2: routing.priority: ", "32700"),
        ("[routing]\nmark = 0", ":2: routing.mark: ", "use 1 to 4294967294"),
        ("[routing]\nbackend = 'x'", ":2: routing.backend: ", "rules or marks or none"),
        ("routing.table = 255", ":1: routing.table: ", "'local'"),
        ("[offloads]\nufo = true", ":2: offloads.ufo: ", "did you mean uso?"),
        ("[offloads]\nvnet-hdr = 0", ":2: offloads.vnet-hdr: ", "neither true nor"),
        ('"a\\nb" = 5', ": 'a\\nb': ", "unknown key"),
        ("peers = []", ":1: peers: ", "[] is not a table"),
        ("[peers]\na = 5", ":2: peers.a: ", "5 is not a table"),
        ("[peers.'a b']", ":1: peers.'a b': ", "'a b' is no peer name"),
        ("[peers.a]\n\nport = 0", ":3: peers.a.port: ", "use 1 to 65535"),
        ("peers.a = {port = 0}", ":1: peers.a.port: ", "use 1 to 65535"),
        (
            "[peers.vm.2]",
            ":1: peers.vm.2: ",
            'quote a name with dots, as in [peers."vm.example"]',
        ),
        (
            "[peers.a]\nmode = 'z'",
            ":2: peers.a.mode: ",
            "adaptive or n or c or m or cm",
        ),
        ("[peers.a]\nports = 5", ":2: peers.a.ports: ", "did you mean port?"),
        (
            "[peers.a]\nendpoint='h'\n[peers.b]\nendpoint='h'",
            ": ",
            "peers a and b both have endpoint h:1234",
        ),
        ("a = 1\nb = \n", ":2:5: ", "Invalid value"),
        ("a = 1\na = 2\n", ":2:6: ", "Cannot overwrite a value"),
        (b"a = 1\nb = '\xff'", ":2: ", "byte 0xff is not UTF-8"),
        ("a = " + "[" * 5000, ": ", "recursion"),
        ("port = 0x" + "f" * 5000, ":1: port: ", "a huge number is out of range"),
        ("port = " + "9" * 5000, ": ", "mend it"),
    ],
)
def test_errors_say_where_what_and_the_remedy(write, content, begin, said):
    path = write(content)
    text = refusal(load_settings, path, {})
    assert text.startswith(f"{path}{begin}")
    assert said in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 0}, "--port: 0 is out of range"),
        ({"state_dir": ""}, "--state-dir: the text is empty"),
        ({"no_offload": ["x"]}, "--no-offload: 'x' is not known; use vnet-hdr or tso"),
        ({"address": ["10.0.0.0/24"]}, "--address: '10.0.0.0/24' is the network"),
        ({"socket": "/" + "x" * 107}, "longer than 107 bytes"),
    ],
)
def test_errors_of_options_name_the_option(write, options, said):
    assert said in refusal(load_settings, write(""), options)


def test_the_second_socket_needs_a_path_as_well(write):
    options = {"socket": "/" + "x" * 102}
    load_settings(write(""), options)
    path = write('status_group = "adm"')
    assert "is longer than 107 bytes" in refusal(load_settings, path, options)


@given(st.text())
def test_any_text_is_settings_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(content, errors="replace")
    assert (outcome(load_settings, path, {}) or "ok").isprintable()


def test_hooks_are_programs_with_arguments(write):
    hooks = """on_up = ["/bin/up", "", "$(a); b"]
    on_moved = ["/bin/moved"]"""
    path = write(f"[peers.vm2]\n{hooks}")
    path.chmod(0o600)
    (peer,) = load_settings(path, {}).peers
    assert peer.hooks == HookSettings(("/bin/up", "", "$(a); b"), (), ("/bin/moved",))


@pytest.mark.parametrize("typed", ['"/bin/up"', "[]", '["up"]', '["/a", 1]', '[""]'])
def test_what_is_no_hook(write, typed):
    path = write(f"[peers.vm2]\non_up = {typed}")
    assert "peers.vm2.on_up" in refusal(load_settings, path, {})


def test_hooks_come_from_a_file_that_nobody_else_may_write(write):
    path = write('[peers.vm2]\non_up = ["/bin/up"]')
    path.chmod(0o666)
    said = refusal(load_settings, path, {})
    assert "others may write this file, and so run what they like" in said
    values = {"endpoint": "192.168.10.61", "on_up": ["/bin/up"]}
    assert "unknown key" in refusal(parse_peer, "vm2", values, "peers add")


@pytest.mark.parametrize(
    ("typed", "listen"),
    [
        ("127.0.0.1:9124", Listen("127.0.0.1", 9124)),
        ("[::1]:65535", Listen("::1", 65535)),
        ("0.0.0.0:1", Listen("0.0.0.0", 1)),
    ],
)
def test_where_metrics_are_served(write, typed, listen):
    settings = load_settings(write(f'metrics.listen = "{typed}"'), {})
    assert settings.metrics == MetricsSettings(listen)
    assert str(listen) == typed


@pytest.mark.parametrize(
    "typed",
    [
        *("", "9124", "127.0.0.1", "localhost:9124", "[::1]", "::1:9124"),
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:9124/x"),
        *("224.0.0.1:80", "[fe80::1%eth0]:80"),
    ],
)
def test_what_nobody_can_listen_at(write, typed):
    said = refusal(load_settings, write(f'[metrics]\nlisten = "{typed}"'), {})
    assert "metrics.listen" in said


def test_the_example_is_what_happens_without_a_file():
    path = Path(__file__).parents[2] / "packaging/alpha-trio.toml"
    assert load_settings(path, {}) == Settings(config_file=path)


def test_every_setting_of_the_example_can_be_used(write):
    path = Path(__file__).parents[2] / "packaging/alpha-trio.toml"
    lines = path.read_text().splitlines()
    content = [line.removeprefix("#") for line in lines if not line.startswith("# ")]
    path = write("\n".join(content))
    path.chmod(0o600)  # there is a psk in it
    settings = load_settings(path, {})
    assert len(settings.peers) > 1
    named = {line.split("=")[0].strip() for line in content if "=" in line}
    assert named >= {
        *config._FILE,
        *config._ROUTING,
        *config._RELAY,
        *config._METRICS,
        *config._OFFLOADS,
    } - {
        "routing",
        "relay",
        "metrics",
        "offloads",
        "peers",
    }
    assert named >= {*config._PEER, *config._HOOKS}
    assert any("psk_file = " in line for line in lines)


# Peers


@pytest.mark.parametrize(
    ("typed", "host", "port"),
    [
        ("192.168.10.61", "192.168.10.61", 1234),
        ("192.168.10.61:99", "192.168.10.61", 99),
        ("VM2.Example.org.", "vm2.example.org.", 1234),
        ("vm_2:65535", "vm_2", 65535),
        ("fd00:0::61", "fd00::61", 1234),
        ("[fd00::61]", "fd00::61", 1234),
        ("[fd00::61]:99", "fd00::61", 99),
        ("::ffff:10.0.0.1", "10.0.0.1", 1234),
        ("127.0.0.1.example", "127.0.0.1.example", 1234),
    ],
)
def test_endpoints(typed, host, port):
    peer = parse_peer("a", {"endpoint": typed, "key": None}, "x")
    assert (peer.endpoint, peer.host, peer.port) == (host, host, port)


def test_without_endpoint_the_name_is_looked_up():
    peer = parse_peer("vm2", {}, "x")
    assert peer == PeerSettings("vm2")
    assert peer.host == "vm2"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"endpoint": ""}, "endpoint: the text is empty"),
        ({"endpoint": ":99"}, "':99' is no endpoint; write HOST, HOST:PORT"),
        ({"endpoint": "h:"}, "'h:' is no endpoint"),
        ({"endpoint": "h:x"}, "'h:x' is no endpoint"),
        ({"endpoint": "h:65536"}, "65536 is out of range"),
        ({"endpoint": "h:" + "9" * 5000}, "999999999 is out of range"),
        ({"endpoint": "[10.0.0.1]:5"}, "is no endpoint"),
        ({"endpoint": "[fd00::1"}, "is no endpoint"),
        ({"endpoint": "fd00::1::2"}, "neither an IP address nor a host name"),
        ({"endpoint": "10.0.0.256"}, "neither an IP address nor a host name"),
        ({"endpoint": "10.1"}, "neither an IP address nor a host name"),
        ({"endpoint": "vm 2"}, "neither an IP address nor a host name"),
        ({"endpoint": "vm2\n"}, "neither an IP address nor a host name"),
        ({"endpoint": "-vm2"}, "neither an IP address nor a host name"),
        ({"endpoint": "a..b"}, "neither an IP address nor a host name"),
        ({"endpoint": "x" * 64}, "neither an IP address nor a host name"),
        ({"endpoint": "bücher.example"}, "in its xn-- form"),
        ({"endpoint": "224.0.0.1"}, "not the address of one host"),
        ({"endpoint": "ff02::1"}, "not the address of one host"),
        ({"endpoint": "0.0.0.0"}, "not the address of one host"),
        ({"endpoint": "[::]:5"}, "not the address of one host"),
        ({"endpoint": "255.255.255.255"}, "not the address of one host"),
        ({"endpoint": "fe80::1%eth0"}, "cannot be led into the tunnel"),
        ({"endpoint": "fe80::1%all", "allow": ["10.0.0.0/8"]}, "is reserved"),
        ({"endpoint": "fd00::1%eth0"}, "needs no zone"),
        ({"endpoint": "127.0.0.1"}, "never leave this host"),
        ({"endpoint": "::1"}, "never leave this host"),
        ({"endpoint": 5}, "5 is not a text"),
        ({"endpoint": "h:5", "port": 6}, "port: 6 differs from the port 5"),
        ({"port": "1234"}, "'1234' is not a whole number"),
        ({"key": "short"}, "key: this is no key (5 characters)"),
        ({"key": KEY[:-2] + "9"}, "this is no key"),  # bits beyond the last byte
        ({"key": "!" * 44}, "this is no key"),
        ({"key": "é" * 44}, "this is no key"),
        ({"allow": "10.0.0.0/8"}, "write ['10.0.0.0/8']"),
        ({"allow": ["10.1.2.3/16"]}, "the network is 10.1.0.0/16"),
        ({"allow": ["fd00::1/64"]}, "the network is fd00::/64"),
        ({"allow": ["10.0.0.0/33"]}, "is no prefix"),
        ({"allow": ["x"]}, "'x' is no prefix"),
        ({"allow": ["fe80::%eth0/64"]}, "has a zone"),
        ({"allow": [5]}, "5 is not a text"),
        ({"only": ["tpc"]}, "'tpc' is no IP protocol known here"),
        ({"only": ["0"]}, "'0' is no IP protocol"),
        ({"only": ["256"]}, "'256' is no IP protocol"),
        ({"only": ["icmp/8"]}, "icmp knows none"),
        ({"only": ["47/8"]}, "47 knows none"),
        ({"only": ["tcp/"]}, "no valid ports"),
        ({"only": ["tcp/0"]}, "no valid ports"),
        ({"only": ["tcp/9-8"]}, "no valid ports"),
        ({"only": ["tcp/1-65536"]}, "no valid ports"),
        ({"only": ["tcp/80,90"]}, "no valid ports"),
        ({"keepalive": -1}, "-1 is out of range"),
        ({"keepalive": 0.5}, "0.5 is out of range"),
        ({"keepalive": 65536}, "65536 is out of range"),
        ({"keepalive": float("nan")}, "nan is out of range"),
        ({"keepalive": float("inf")}, "inf is out of range"),
        ({"keepalive": "25"}, "'25' is not a number of seconds"),
        ({"keepalive": True}, "True is not a number of seconds"),
        ({"mtu": 255}, "255 is out of range; use 256 to 65535"),
        ({"mtu": "1400"}, "'1400' is not a whole number"),
        ({"reliable": "on"}, "'on' is neither true nor false"),
        ({"early": "off"}, "early: 'off' is neither true nor false; use one of them"),
        ({"early": 1}, "early: 1 is neither true nor false"),
        (
            {"reliable": True, "mode": "plain"},
            "in mode plain nothing is acknowledged; switch reliable off",
        ),
        ({"key": "A" * 43 + "="}, "this key is all zeros"),
        ({"psk": "A" * 43 + "="}, "this pre-shared key is all zeros"),
        ({"psk": ""}, "no pre-shared key (0 characters)"),
        ({"psk": PSK[:40]}, "no pre-shared key (40 characters)"),
        ({"psk": PSK + PSK}, "no pre-shared key (88 characters)"),
        ({"psk": "é" * 44}, "no pre-shared key (44 characters)"),
        ({"psk": True}, "a pre-shared key is a text"),
        ({"psk_file": "/etc/hostname"}, "psk_file: unknown key"),
        ({"mode": "x"}, "'x' is not known; use adaptive or n or c or m or cm or plain"),
        ({"mode": "PLAIN"}, "'PLAIN' is not known"),
        ({"mode": 0}, "mode: 0 is not a text"),
        ({"alow": []}, "alow: unknown key; did you mean allow?"),
    ],
)
def test_refused_peer_values(values, said):
    text = refusal(parse_peer, "vm2", values, "peers add vm2")
    assert text.startswith("peers add vm2: ")
    assert said in text


@pytest.mark.parametrize("key", ["key", "psk"])
def test_a_refused_key_is_not_repeated(key):
    assert "hunter2" not in refusal(parse_peer, "a", {key: "hunter2"}, "x")


@pytest.mark.parametrize("value", [["hunter2"], {"hunter2": 1}, b"hunter2"])
def test_a_refused_psk_of_any_type_is_not_repeated(value):
    assert "hunter2" not in refusal(parse_peer, "a", {"psk": value}, "x")


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "é", "a" * 65, "a\n"])
def test_refused_peer_names(name):
    assert refusal(parse_peer, name, {"endpoint": "h"}, "x").startswith("x: ")


def test_a_name_that_cannot_be_looked_up_needs_an_endpoint():
    assert "neither an IP address nor" in refusal(parse_peer, "a..b", {}, "x")
    assert parse_peer("a..b", {"endpoint": "h"}, "x").host == "h"


def test_loopback_serves_prefixes():
    values = {"endpoint": "127.0.0.1:99", "allow": ["10.9.0.0/24"]}
    assert parse_peer("a", values, "x").host == "127.0.0.1"


def test_a_key_is_taken_with_and_without_padding():
    assert parse_peer("a", {"key": KEY[:-1]}, "x").key == KEY
    assert parse_peer("a", {"psk": PSK[:-1]}, "x").psk == PSK


def test_the_mode_is_adaptive_unless_another_is_named():
    assert parse_peer("a", {}, "x").mode is Mode.ADAPTIVE
    assert parse_peer("a", {"mode": "alpha"}, "x").mode is Mode.ADAPTIVE
    assert parse_peer("a", {"mode": "cm"}, "x").mode is Mode.CM


def test_early_data_goes_with_everything_and_is_written_only_if_it_is_off():
    for more in ({"mode": "plain"}, {"reliable": True}, {"mode": "cm"}):
        assert parse_peer("a", more, "x").early is True
        off = parse_peer("a", {"early": False, **more}, "x")
        assert peer_values(off) == {"early": False, **more}


def test_the_order_of_prefixes_and_selections_does_not_matter():
    one = {"allow": ["fd00::/8", "10.0.0.0/8"], "only": ["udp/53", "udp", "icmp"]}
    other = {key: values[::-1] for key, values in one.items()}
    assert parse_peer("a", one, "x") == parse_peer("a", other, "x")


def test_values_of_a_simple_peer_are_few():
    peer = parse_peer("a", {"endpoint": "h:1234", "keepalive": 0}, "x")
    assert peer_values(peer) == {"endpoint": "h"}


PEERS = st.builds(
    PeerSettings,
    name=st.text(ascii_lowercase, min_size=1, max_size=64),
    endpoint=st.none()
    | st.just("vm2.example")
    | st.integers(1 << 24, 100 << 24).map(lambda n: str(ip_network(n)[0])),
    port=st.integers(1, 65535),
    key=st.none() | st.just(KEY),
    allow=st.sets(st.integers(0, 2**32 - 1), max_size=3).map(
        lambda found: tuple(ip_network(n) for n in sorted(found))
    ),
    only=st.sets(
        st.builds(Selection, st.integers(1, 255))
        | st.builds(
            Selection,
            st.sampled_from([6, 17, 33, 132, 136]),
            st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(
                lambda pair: (min(pair), max(pair))
            ),
        )
    ).map(lambda found: tuple(sorted(found, key=config._selection_order))),
    keepalive=st.just(0.0) | st.floats(1, 65535),
    mode=st.sampled_from(Mode),
    reliable=st.booleans(),
    early=st.booleans(),
    psk=st.none() | st.just(PSK),
).map(lambda p: evolve(p, reliable=p.reliable and p.mode is not Mode.PLAIN))


@given(PEERS)
def test_parsing_and_writing_are_inverse(peer):
    assert parse_peer(peer.name, peer_values(peer), "x") == peer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(
    st.just("vm2") | JSON,
    st.dictionaries(st.sampled_from(list(config._PEER)) | st.text(), JSON, max_size=2),
)
def test_any_values_are_a_peer_or_one_line(name, values):
    assert (outcome(parse_peer, name, values, "x") or "ok").isprintable()


# Pre-shared keys


def protected(config, mode, **more):
    """Settings of a file with one peer, or why they are refused."""
    lines = [f"{key} = {value!r}" for key, value in more.items()]
    path = config("\n".join(["[peers.vm2]", *lines]))
    path.chmod(mode)
    return load_settings(path, {}).peers[0]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_psk_comes_from_the_file_or_from_one_of_its_own(write, tmp_path, ending):
    secret = tmp_path / "psk"
    secret.write_text(PSK + ending)
    secret.chmod(0o400)
    assert protected(write, 0o600, psk=PSK).psk == PSK
    assert protected(write, 0o644, psk_file=str(secret)).psk == PSK


def test_one_psk_is_enough(write, tmp_path):
    secret = tmp_path / "psk"
    secret.write_text(PSK)
    secret.chmod(0o600)
    both = {"psk": PSK, "psk_file": str(secret)}
    text = refusal(lambda: protected(write, 0o600, **both))
    assert text.endswith(
        "alpha-trio.toml:2: peers.vm2.psk: there is a psk_file, too; give one"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_with_a_psk_is_nobody_elses_to_read(write, mode, unlike_root):
    text = refusal(lambda: protected(write, mode, psk=PSK))
    assert "others may read this file" in text
    assert "'chmod go-rwx " in text
    assert PSK not in text


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize("key", ["psk", "psk_file"])
def test_who_writes_the_file_could_replace_a_psk(
    write, tmp_path, mode, key, unlike_root
):
    secret = tmp_path / "psk"
    secret.write_text(PSK)
    secret.chmod(0o600)
    value = PSK if key == "psk" else str(secret)
    text = refusal(lambda: protected(write, mode, **{key: value}))
    assert "others may write this file" in text
    assert f"'chmod go-w {tmp_path / 'alpha-trio.toml'}'" in text
    assert protected(write, mode).psk is None  # nothing rests on it then


@pytest.fixture
def unlike_root(monkeypatch):
    """Files get a group that is not root's."""
    if os.geteuid() == 0:
        was = os.getegid()
        os.setegid(65534)
        yield
        os.setegid(was)
    else:
        yield


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_psk_file_is_nobody_elses_to_read(write, tmp_path, mode, unlike_root):
    secret = tmp_path / "psk"
    secret.write_text(PSK)
    secret.chmod(mode)
    text = refusal(lambda: protected(write, 0o600, psk_file=str(secret)))
    assert text.startswith(f"{tmp_path / 'alpha-trio.toml'}:2: peers.vm2.psk_file: ")
    assert f"{secret}: others may read this secret; forbid it" in text
    assert f"'chmod go-rwx {secret}'" in text


@pytest.mark.root
def test_roots_group_may_read_a_psk_file(write, tmp_path):
    secret = tmp_path / "psk"
    secret.write_text(PSK)
    os.chown(secret, 0, 0)
    secret.chmod(0o440)
    assert protected(write, 0o600, psk_file=str(secret)).psk == PSK


@pytest.mark.root
def test_who_owns_a_psk_file_could_read_it(write, tmp_path):
    secret = tmp_path / "psk"
    secret.write_text(PSK)
    secret.chmod(0o600)
    os.chown(secret, 65534, 0)
    text = refusal(lambda: protected(write, 0o600, psk_file=str(secret)))
    assert f"'chown root {secret}'" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no pre-shared key (0 characters)"),
        (b"hunter2", "no pre-shared key (7 characters)"),
        (b"\xff" * 44, "no pre-shared key (44 characters)"),
        (b"x" * 100_000, "no pre-shared key (256 characters)"),
        (PSK.encode() + b"\nmore", "no pre-shared key (49 characters)"),
    ],
)
def test_a_psk_file_holds_a_psk(write, tmp_path, content, said):
    secret = tmp_path / "psk"
    secret.write_bytes(content)
    secret.chmod(0o600)
    text = refusal(lambda: protected(write, 0o600, psk_file=str(secret)))
    assert f"{secret}: " in text
    assert said in text
    assert "hunter2" not in text


def test_a_psk_file_that_cannot_be_read(write, tmp_path):
    for path, said in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "no ordinary file"),
        (Path("relative"), "relative path"),
    ):
        if path.name == "pipe":
            os.mkfifo(path)
        assert said in refusal(lambda: protected(write, 0o600, psk_file=str(path)))  # noqa: B023


def test_the_daemon_never_waits_for_a_config_that_is_a_pipe(tmp_path):
    """It would carry no packets meanwhile; and what was read from one is gone."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert f"{path}: cannot be read: it is no ordinary file" in refusal(
        load_settings, path, {}
    )
    assert load_settings(Path(os.devnull), {}).peers == ()


def test_who_only_looks_may_give_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b"port = 5")
    os.close(writer)
    try:
        assert load_settings(Path(f"/dev/fd/{reader}"), {}, pipe=True).port == 5
    finally:
        os.close(reader)


# Peers side by side


def peer(name, **values):
    return parse_peer(name, values, "x")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (peer("a", endpoint="h"), peer("a", endpoint="i"), "two peers are called a"),
        (peer("a"), peer("b", endpoint="a"), "both have endpoint a:1234"),
        (
            peer("a", endpoint="fd00::1", allow=["10.0.0.0/8"]),
            peer("b", endpoint="fd00:0::1", allow=["11.0.0.0/8"]),
            "peers a and b both have endpoint [fd00::1]:1234",
        ),
        (
            peer("a", endpoint="h", allow=["0.0.0.0/0"]),
            peer("b", endpoint="i", allow=["0.0.0.0/0"]),
            "peers a and b both have prefix 0.0.0.0/0",
        ),
        (
            peer("a", endpoint="10.0.0.1:1"),
            peer("b", endpoint="10.0.0.1:2"),
            "both have prefix 10.0.0.1/32",
        ),
        (
            peer("a", endpoint="10.0.0.1"),
            peer("b", endpoint="h", allow=["10.0.0.1"]),
            "both have prefix 10.0.0.1/32",
        ),
    ],
)
def test_peers_that_cannot_exist_side_by_side(one, other, said):
    assert said in refusal(check_peers, [one, other])


def test_a_clash_between_places_names_them():
    peers = [peer("a", endpoint="h"), peer("b", endpoint="h")]
    places = {"a": "a (here)", "b": "b (there)"}
    said = refusal(check_peers, peers, places.__getitem__)
    assert said.startswith("peers a (here) and b (there) both have endpoint h:1234; ")


def test_nested_prefixes_and_shared_addresses_are_fine():
    check_peers(
        [
            peer("a", endpoint="10.0.0.1:1", allow=["10.0.0.0/8", "fd00::1"]),
            peer("b", endpoint="10.0.0.1:2", allow=["10.0.0.0/16"]),
            peer("c", endpoint="10.0.0.2"),
        ]
    )


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "all", "a b", "a/b", "a:b", "a%d", "a\x7f", "x" * 16, "é" * 8],
)
def test_refused_interface_names(write, name):
    assert "--interface: " in refusal(load_settings, write(""), {"interface": name})


@pytest.mark.parametrize("name", ["x" * 15, "é" * 7, "wan.100", "-"])
def test_interface_names_the_kernel_takes(write, name):
    assert load_settings(write(""), {"interface": name}).interface == name


@pytest.mark.parametrize(
    "typed",
    [
        "x",
        "10.0.0.1/33",
        "127.0.0.1/8",
        "::",
        "ff02::1/64",
        "10.0.0.255/24",
        "fd00::/64",
        "fe80::1%eth0/64",
    ],
)
def test_refused_addresses(write, typed):
    assert "--address: " in refusal(load_settings, write(""), {"address": [typed]})


@pytest.mark.parametrize("typed", ["10.0.0.1", "10.0.0.0/31", "fd00::/127", "fd00::1"])
def test_addresses_of_an_interface(write, typed):
    assert load_settings(write(""), {"address": [typed]}).addresses == (
        ip_interface(typed),
    )


@pytest.mark.parametrize(
    ("name", "more", "waits"),
    [
        ("laptop", {}, True),
        ("Laptop_1", {}, True),  # no host name, and need not be one
        ("laptop.example", {}, False),
        ("laptop", {"endpoint": "192.0.2.1"}, False),
        ("laptop", {"key": None}, False),
        ("laptop", {"allow": None}, False),
    ],
)
def test_who_has_nothing_to_be_looked_up_is_waited_for(name, more, waits):
    given = {"key": "A" * 42 + "E=", "allow": ["10.9.0.1/32"]} | more
    assert parse_peer(name, given, "peers add").waits is waits


@pytest.mark.parametrize("typed", ["fe80::1%eth0", "[fe80::1%eth0]:1234"])
def test_a_link_local_endpoint_keeps_its_zone(typed):
    given = {"endpoint": typed, "allow": ["10.9.0.1/32"]}
    peer = parse_peer("vm2", given, "peers add")
    assert peer.endpoint == "fe80::1%eth0"
    assert parse_peer("vm2", peer_values(peer), "file") == peer
