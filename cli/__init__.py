"""The command line: speaks to the daemon over its control socket and prints."""
