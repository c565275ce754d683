"""What docs/control.md says is enough to write a client, is what the daemon does."""

import re
import shutil

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alpha_trio import rpc, wire
from alpha_trio.control import server
from alpha_trio.control.server import MAX_ASKING, MAX_CLIENTS
from alpha_trio.journal import hub
from tests.control.memory_node import MemoryNode
from tests.ground import ROOT

PAGE = (ROOT / "docs/control.md").read_text()
EXAMPLE = ROOT / "docs/examples/control.pl"


@pytest.fixture
async def node(tmp_path, nursery):
    node = MemoryNode(tmp_path / "control.sock")
    await nursery.start(node.serve)
    return node


def written(what):
    """The bytes of one side of the exchange on the page."""
    _, _, rest = PAGE.partition(f"\n{what}\n")
    block = re.split(r"\n\n|\n```", rest)[0]
    lines = [
        re.match(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})", line)[0]
        for line in block.splitlines()
    ]
    return bytes.fromhex(" ".join(lines))


async def test_the_exchange_on_the_page_is_what_happens(node):
    async with await trio.open_unix_socket(node.settings.socket) as stream:
        await stream.send_all(written("request"))
        reply = written("reply")
        got = b""
        while len(got) < len(reply):
            got += await stream.receive_some(len(reply) - len(got))
    assert got == reply


def test_the_words_beside_the_bytes_are_those_in_them():
    for line in PAGE.splitlines():
        if found := re.match(r'((?:[0-9a-f]{2} )+) +"(.*)"$', line):
            data, text = bytes.fromhex(found[1]), found[2].encode()
            assert data.removeprefix(bytes([0xA0 | len(text)])) == text, line


def test_the_limits_on_the_page_are_those_of_the_server():
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]*\|$", PAGE, re.MULTILINE))
    assert rows["body of a request"] == f"{wire.MAX_REQUEST // 1024} KiB"
    assert rows["body of a reply"] == f"{wire.MAX_REPLY >> 20} MiB"
    (read,) = [v for k, v in rows.items() if k.startswith("time until a request")]
    assert read == f"{server.READ_SECONDS:g} s"
    taken = rows["time until a result or an error is taken"]
    assert taken == f"{server.WRITE_SECONDS:g} s"
    assert rows["events that wait for a client"] == str(hub.EVENT_QUEUE)
    assert rows["connections at once"].startswith(f"{MAX_CLIENTS},")
    (second,) = [v for k, v in rows.items() if k.startswith("connections at the")]
    assert second.startswith(f"{MAX_ASKING},")


NUMBERS = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32, 2**63, -1, -32, -33, -129]
NUMBERS += [-32769, -(2**31) - 1, 0.5, -1e300]
TEXTS = ["", "vm2", "x" * 31, "x" * 32, "x" * 300, "x" * 70_000, "Köln ✓"]
MANY = {f"peer{number:03}": [number] for number in range(300)}


async def by_perl(node, *arguments, code=0):
    if not shutil.which("perl"):
        pytest.skip("perl is not installed")
    done = await trio.run_process(
        ["perl", str(EXAMPLE), *arguments],
        env={"ALPHA_TRIO_SOCKET": str(node.settings.socket)},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return (done.stderr if code else done.stdout).decode()


async def test_a_client_of_another_make_reads_whatever_is_told(node):
    values = {"numbers": NUMBERS, "texts": TEXTS, "many": MANY, "none": [None, True]}
    node.document = node.document | values
    said = await by_perl(node, "status")
    lines = [line.partition(" ")[::2] for line in said.splitlines()]
    told = dict(lines)
    for name in ("numbers", "texts"):
        for place, value in enumerate(values[name]):
            text = told[f"{name}.{place}"]
            assert (float(text) if isinstance(value, float) else text) == (
                value if isinstance(value, float) else str(value)
            )
    assert [told[f"many.{name}.0"] for name in MANY] == [
        str(n) for (n,) in MANY.values()
    ]
    assert (told["none.0"], told["none.1"]) == ("null", "true")


async def test_a_client_of_another_make_is_told_what_is_wrong(node):
    said = await by_perl(node, "peers.show", "name=vm9", code=4)
    assert said == "no peer is called 'vm9': see 'alpha-trio peers list'\n"
    assert "this daemon knows" in await by_perl(node, "fly", code=1)
    node.stop()
    await wait_all_tasks_blocked()
    assert "no daemon answers" in await by_perl(node, "status", code=3)


async def test_a_client_of_another_make_hears_events(node):
    await by_perl(node, "peers.add", "name=vm2")
    node.established["vm2"].set()
    said = await by_perl(node, "wait", "name=vm2")
    assert said.splitlines()[:2] == ["event established", "peer vm2"]


def test_all_that_is_stable_is_on_the_page():
    for name in rpc.__all__:
        assert f"`{name}`" in PAGE
    for name in vars(rpc.Client):
        if not name.startswith("_"):
            assert f"`{name}(" in PAGE, name
    assert len(EXAMPLE.read_text().splitlines()) == int(
        re.search(r"in Perl, in (\d+) lines", PAGE)[1]
    )
