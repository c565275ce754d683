"""What the daemon needs of this host, looked at without changing anything.

In come the settings, out go findings, each one sentence with its remedy.  Works without
privileges too; what cannot be seen then is said to be unknown.

    finding        one fact, good, bad or neither
    host           privileges, devices, sockets, limits, the daemon's own files
    surroundings   kernel, clock, links, NAT, and what else leads packets here
    firewall       whether the packet filter lets datagrams in, as far as can be told
"""

from alpha_trio.doctor.finding import Check
from alpha_trio.doctor.firewall import checks as filter_checks
from alpha_trio.doctor.host import checks

__all__ = ["Check", "checks", "filter_checks"]
