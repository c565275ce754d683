"""The metrics listener: what a monitoring system may ask the daemon by HTTP.

In come requests of anybody who can reach the address; out go pages of metrics.  What
they are called and mean is in the room ``metrics``.

    server      connections, bounded in number, size and time; a page, made in slices
    request     reading the head of an HTTP request, and writing that of the answer
"""

from alpha_trio.exporter.server import Exporter

__all__ = ["Exporter"]
