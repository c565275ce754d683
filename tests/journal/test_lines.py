"""Log lines: their JSON, their priorities, and that each has a name."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alpha_trio.journal import Journal
from alpha_trio.journal.lines import LINE_NAMES, Form
from alpha_trio.proto.batch import Event, EventKind

ROOT = Path(__file__).parents[2]
RESTART = "Takes effect at the next start: port; restart the daemon."
LEVELS = ("debug", "info", "warning", "error", "exception")
OF_LIBRARIES = {"Ignored: %s (%s)", "Cannot tell NOTIFY_SOCKET %s (%s)."}

SCRIPT = """
import logging, os, sys
from alpha_trio.journal import open_log, say_end
if sys.argv[2] == "journal":
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
as_json = sys.argv[1] == "json"
open_log(0, as_json=as_json)
log = logging.getLogger("alpha_trio")
log.debug("not told")
log.info("Received SIGHUP!")
log.warning("Takes effect at the next start: %s; restart the daemon.", "port")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("The control command %s failed.", "status")
say_end("alpha-trio: no", as_json=as_json)
"""


def lines(form, stream="file"):
    """What a program writes to stderr."""
    command = [sys.executable, "-c", SCRIPT, form, stream]
    environment = {**os.environ, "JOURNAL_STREAM": "1:1"}  # of who started it
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def document(record):
    return json.loads(Form(True, to_journal=False).format(record))


def test_text_has_a_date_but_the_last_line():
    written = lines("text")
    assert written[0][4:5] == "-"
    assert written[0].endswith(" Received SIGHUP!")
    assert written[-1] == "alpha-trio: no"


def test_a_line_of_json_is_one_document():
    documents = [json.loads(line) for line in lines("json")]
    assert [d["event"] for d in documents] == [
        *("signal", "restart-needed", "command-failed", "ended")
    ]
    assert [d["level"] for d in documents] == ["info", "warning", "error", "error"]
    assert documents[1]["message"] == RESTART
    assert "ZeroDivisionError" in documents[2]["traceback"]


def test_the_journal_gets_a_priority_with_each_line():
    written = lines("text", "journal")
    assert written[0] == "<6>Received SIGHUP!"
    assert written[1] == f"<4>{RESTART}"
    assert written[-1] == "<3>alpha-trio: no"
    assert {line[:3] for line in written[2:]} == {"<3>"}
    assert len(written) > 5  # those of the traceback


def test_the_journal_gets_json_likewise():
    written = lines("json", "journal")
    assert [line[:3] for line in written] == ["<6>", "<4>", "<3>", "<3>"]
    assert json.loads(written[0][3:])["event"] == "signal"


@pytest.mark.parametrize("kind", EventKind)
def test_lines_about_events_have_their_names(kind, caplog):
    caplog.set_level(logging.DEBUG, "alpha_trio")
    Journal().record(Event(kind, "vm2", ("192.168.10.61", 1234), 2))
    (record,) = caplog.records
    line = document(record)
    assert line["event"] == kind
    assert (line["peer"], line["address"], line["count"]) == ("vm2", "192.168.10.61", 2)


def test_what_an_operator_should_look_at_is_a_warning(caplog):
    caplog.set_level(logging.INFO, "alpha_trio")
    journal = Journal()
    for kind in (EventKind.ESTABLISHED, EventKind.SYN_RECEIVED, EventKind.WRONG_KEY):
        journal.record(Event(kind, "vm2", ("192.168.10.61", 1234)))
    journal.trouble("packet filter", "it is so: for a reason")
    journal.recovered("packet filter")
    assert [record.levelname for record in caplog.records] == [
        *("INFO", "INFO", "WARNING", "WARNING", "INFO")
    ]
    events = [document(record)["event"] for record in caplog.records[-2:]]
    assert events == ["refused", "recovered"]


def test_every_line_of_the_daemon_has_a_name():
    logged = set()
    for path in (ROOT / "alpha_trio").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=level, value=ast.Name(id="_log" | "log")),
                    args=[ast.Constant(value=str(text)), *_],
                ) if level in LEVELS and path.name != "packetlog.py":
                    logged.add(text)
    assert logged - {"%s"} - OF_LIBRARIES == set(LINE_NAMES)
