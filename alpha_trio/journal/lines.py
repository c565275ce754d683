"""The form of log lines: text for people, JSON for programs, priorities for systemd.

Every line has a name that stays what it is when its words change.  Lines about events
bear the event's; those of the daemon itself are named here, by their template.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from attrs import frozen

LINE_NAMES = {
    "Successfully opened tun device (%s)": "tun-opened",
    "Working on packets by the %s engine (%s)": "engine-chosen",
    "Binding listening socket to port %d": "port-bound",
    "No %s here (%s).": "family-missing",
    "Adding host %s (%s).": "host-added",
    "Deleting host %s (%s).": "host-deleted",
    "%s is %s.": "resolved",
    "Peer %s is in the config file and was added by command as well: the config file "
    "counts.": "peer-hidden",
    "Sending datagrams to %s one by one: the way there takes no batches (%s).": (
        "batches-refused"
    ),
    "The packet filter rules of the relay were removed: restored.": "rules-restored",
    "Others removed what is ours: put back %s.": "put-back",
    "The state directory was removed: restored.": "state-restored",
    "Received SIGHUP!": "signal",
    "Received %s, stopping.": "stopping",
    "Nothing was changed: %s": "reload-refused",
    "Takes effect at the next start: %s; restart the daemon.": "restart-needed",
    "Reloaded: %s.": "reloaded",
    "Could not undo everything: run 'alpha-trio cleanup'.": "undo-failed",
    "The control command %s failed.": "command-failed",
    "A scrape of the metrics failed.": "scrape-failed",
    "This host was suspended for %d s. Asking peers anew.": "woke",
    "%s: works again.": "recovered",
    "%s: %s happened %d times until now.": "failures-counted",
    "Repeating SYN to %s (attempt %d).": "syn-sent",
}
"""By the template with which it is logged."""

ENDED = "ended"  # the line by which a daemon says why it ends
OF_A_PACKET = "packet"
UNNAMED = "other"  # of a library

_PACKETS = "alpha_trio.trace"
_DETAILS = ("peer", "address", "count", "subject")
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def open_log(verbosity: int, *, as_json: bool) -> None:
    """Log to stderr from now on."""
    form = Form(as_json, to_journal=_is_journal())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(form)
    logging.basicConfig(handlers=[handler], force=True)
    level = logging.DEBUG if verbosity else logging.INFO
    logging.getLogger("alpha_trio").setLevel(level)
    packets = logging.DEBUG if verbosity >= 2 else logging.INFO
    logging.getLogger(_PACKETS).setLevel(packets)


def say_end(text: str, *, as_json: bool) -> None:
    """The last line on stderr, which has no date where it is for people."""
    form = Form(as_json, to_journal=_is_journal(), dated=False)
    line = logging.LogRecord("alpha_trio", logging.ERROR, "", 0, text, None, None)
    line.event = ENDED
    print(form.format(line), file=sys.stderr)


def _is_journal() -> bool:
    """Whether stderr leads to systemd's journal, and to nothing else since."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


class Form(logging.Formatter):
    """Makes one line of a record, or one for each of its lines."""

    def __init__(self, as_json: bool, *, to_journal: bool, dated: bool = True) -> None:
        date = "%(asctime)s " if dated and not to_journal else ""
        super().__init__(f"{date}%(message)s", "%Y-%m-%d %H:%M:%S")
        self._as_json = as_json
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        text = _document(record) if self._as_json else super().format(record)
        if not self._to_journal:
            return text
        # The journal takes each line for one of its own.
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in text.splitlines())


def _priority(level: int) -> int:
    """As syslog(3) has it."""
    return next((p for least, p in _PRIORITIES if level >= least), _DEBUG)


def _document(record: logging.LogRecord) -> str:
    """One JSON document in one line."""
    written = datetime.fromtimestamp(record.created, UTC)
    line: dict[str, object] = {
        "time": written.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": _name(record),
        "message": record.getMessage(),
    }
    details = {key: getattr(record, key, None) for key in _DETAILS}
    line |= {key: value for key, value in details.items() if value is not None}
    if record.exc_info:
        line["traceback"] = logging.Formatter().formatException(record.exc_info)
    return json.dumps(line)


def _name(record: logging.LogRecord) -> str:
    given = getattr(record, "event", None)
    if given is not None:
        return str(given)
    if record.name == _PACKETS:
        return OF_A_PACKET
    return LINE_NAMES.get(record.msg, UNNAMED)


@frozen
class About:
    """What a line is about, for who reads its fields and not its words."""

    event: str
    peer: str | None = None
    address: str | None = None
    count: int | None = None
    subject: str | None = None

    @property
    def extra(self) -> dict[str, object]:
        """As ``logging`` takes it."""
        return {
            "event": self.event,
            "peer": self.peer,
            "address": self.address,
            "count": self.count,
            "subject": self.subject,
        }
