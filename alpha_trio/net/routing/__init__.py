"""Rules and routes that lead a peer's packets into the tunnel, and only those.

In come the peers with their prefixes; out goes the kernel's state, and how each peer is
reached.  All of it bears our tag and is taken back.

    router        makes it so, notices changes, undoes it
    plan          which rules and routes should be there, as a pure function
    remnants      what in the kernel is ours, and what a killed daemon left
    questions     many look-ups at a time, as packets would be looked up
    astray        what to ask, and whose rule is to blame for a wrong answer
    kernel        rules, routes, links and look-ups in our words
    conversation  requests to the kernel and its answers
    netlink       what is used of pyroute2, without all the rest of it
    marks         the marking backend: nft and iptables rules as text
    clamp         the segment size in forwarded TCP SYNs
    inner         a mark for inner packets while the packet filter checks sources
    notices       what the kernel tells of changes
    sysctl        settings of the host that decide about our packets
"""

from alpha_trio.net.routing.plan import PeerRoute, Underlay
from alpha_trio.net.routing.remnants import cleanup, rules_before
from alpha_trio.net.routing.router import Router

__all__ = ["PeerRoute", "Router", "Underlay", "cleanup", "rules_before"]
