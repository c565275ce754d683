"""What happened, for people: log lines, events, and the log of single packets.

In come events of the core and of the daemon; out go lines of the log, and events for
whoever listens.

    journal     one log line and one event for each
    lines       the form of log lines, and the name of each
    hub         hands events to all subscribers
    packetlog   what ``-vv`` logs of each packet
"""

from alpha_trio.journal import packetlog
from alpha_trio.journal.hub import Event
from alpha_trio.journal.journal import Journal
from alpha_trio.journal.lines import open_log, say_end
from alpha_trio.journal.packetlog import address

__all__ = ["Event", "Journal", "address", "open_log", "packetlog", "say_end"]
