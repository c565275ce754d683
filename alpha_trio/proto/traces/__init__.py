"""Asking the nodes on a path what they counted, and what follows from their answers.

In come REPORTs, out go TRACEs, and the hops and segments of a path.  Ends ask and
answer; relays answer.

    report      REPORT: what a node counted of a session, signed
    trace       one question of an operator's, and what came back
"""

from alpha_trio.proto.traces.report import (
    MAX_HOPS,
    TRACE_LIFETIME,
    Counts,
    Report,
    Role,
    packed_address,
    parse_report_untrusted,
    report_rate,
    trace_message,
)
from alpha_trio.proto.traces.trace import Hop, Probe, Segment, Trace

__all__ = [
    "MAX_HOPS",
    "TRACE_LIFETIME",
    "Counts",
    "Hop",
    "Probe",
    "Report",
    "Role",
    "Segment",
    "Trace",
    "packed_address",
    "parse_report_untrusted",
    "report_rate",
    "trace_message",
]
