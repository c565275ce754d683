"""The files for operators, checked by the programs that will read them."""

import shutil
import subprocess
from pathlib import Path

import pytest

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


@needs("groff")
def test_the_manual_page_has_no_warnings():
    assert output("groff", "-ww", "-man", "-z", PACKAGING / "alpha-trio.8") == ""
