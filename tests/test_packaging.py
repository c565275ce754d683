"""The files for operators, checked by the programs that will read them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from alpha_trio_cli.main import main

from alpha_trio.settings import config

PACKAGING = Path(__file__).parent.parent / "packaging"


def needs(program):
    missing = shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=f"{program} is not installed")


def output(*command):
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout


@needs("systemd-analyze")
def test_systemd_understands_every_line_of_the_unit(tmp_path):
    # The program may be installed elsewhere here; all else is as shipped.
    unit = tmp_path / "alpha-trio.service"
    text = (PACKAGING / unit.name).read_text()
    unit.write_text(text.replace("/usr/bin/alpha-trio", shutil.which("true")))
    assert output("systemd-analyze", "verify", "--man=no", unit) == ""


@needs("systemd-analyze")
def test_the_sandbox_is_as_tight_as_the_documents_say():
    unit = PACKAGING / "alpha-trio.service"
    said = output("systemd-analyze", "security", "--offline=true", unit)
    score = re.search(r"exposure level for \S+: ([\d.]+)", said)[1]
    page = PACKAGING.parent.joinpath("docs/operations.md").read_text()
    told = re.search(r"`systemd-analyze security` gives it ([\d.]+) of 10", page)[1]
    # Versions of systemd weigh a little differently.
    assert abs(float(score) - float(told)) < 0.3


PAGES = ("alpha-trio.8", "alpha-trio.toml.5")


@needs("groff")
@pytest.mark.parametrize("page", PAGES)
def test_a_manual_page_has_no_warnings(page):
    assert output("groff", "-ww", "-man", "-z", PACKAGING / page) == ""


def test_the_page_of_the_configuration_has_every_key_and_no_other():
    text = (PACKAGING / "alpha-trio.toml.5").read_text()
    keys, section = {}, None
    for macro, words in re.findall(r"^\.(SH|TP\n\.BR?) (.*)$", text, re.M):
        if macro == "SH":
            section = words
        else:
            named = words.replace("\\-", "-").replace('" , "', " ").split()
            keys.setdefault(section, set()).update(n.strip('",') for n in named)
    expected = {
        "TOP LEVEL": {*config._FILE} - {*config._TABLES, "peers"},
        **{f"[{table}]": {*known} for table, known in config._TABLES.items()},
        "[peers.NAME]": {*config._FILE_PEER},
    }
    assert {name: keys[name] - {""} for name in expected} == expected


def test_the_page_of_the_program_has_every_command():
    text = (PACKAGING / "alpha-trio.8").read_text().replace("\\-", "-")
    commands = re.split(r"^\.SH ", text, flags=re.M)[4]
    named = re.findall(r"(?:\\fB|^\.B )([a-z][a-z -]+?)(?=\\fR|$)", commands, re.M)
    known = {" ".join(names) for names, command in walked(main) if names}
    assert known - {"peers", "key", "peers del"} <= {*named}


def walked(command, *names):
    """All commands, and the words by which each is called."""
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walked(inner, *names, name)
