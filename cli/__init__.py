"""The command line: speaks to the daemon over its control socket and prints.

It starts for every command a script calls, so what is heavy (trio, the daemon
itself) is imported inside the commands that need it.
"""
