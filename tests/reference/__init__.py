"""A second implementation of the protocol, written from docs/protocol.md alone.

It is slow, holds no state and shares no line with ``alpha_trio.proto``: where both give
the same bytes, the document says enough.
"""
