"""The pure protocol core: time and bytes in, verdicts out.

Nothing in here imports trio, socket, os or time.  A caller hands in ``now`` and
bytes, and reads what to do from an :class:`~alpha_trio.proto.batch.Outbox`.
"""
