"""The errors that reach a user.  One line each: what, the value, the remedy."""

import errno

_OURS = frozenset({errno.EBADF, errno.EFAULT, errno.ENOTSOCK})
"""What the kernel says to a program that is wrong, whatever the host is like."""

_REMEDIES = {
    errno.EMFILE: "close what holds them, or raise LimitNOFILE or 'ulimit -n'",
    errno.ENFILE: "close what holds them, or raise fs.file-max",
    errno.ENOMEM: "free memory, or raise the daemon's limit of it",
    errno.ENOBUFS: "free memory, or look at the sockets and queues that take it",
    errno.EAGAIN: "end other threads, or raise TasksMax or 'ulimit -u'",
    errno.EPERM: "allow it to the daemon",
    errno.EACCES: "allow it to the daemon",
}


class AlphaTrioError(Exception):
    """Something the user can understand and mend; printed as one line, exit 1."""

    exit_code = 1


class ConfigError(AlphaTrioError):
    """A setting cannot be used; the text names the place, the value, the remedy.

    Where more of them were looked at, ``lines`` has a text for each that cannot; what
    is printed is the first.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[0])
        self.lines = lines


class WrongUsage(ConfigError):
    """What was typed cannot be used, whatever the host and its peers are like."""

    exit_code = 2


class StartError(AlphaTrioError):
    """The daemon cannot start: privileges, device, port, socket or name taken."""


class DeviceLost(AlphaTrioError):
    """The TUN device was deleted under the running daemon."""


class RoutingError(AlphaTrioError):
    """A rule, route, address or mark could not be set, or belongs to another."""


class StateError(AlphaTrioError):
    """Peers could not be read from, or saved in, the state directory."""


class PeerError(AlphaTrioError):
    """A peer command cannot be carried out; nothing was changed."""


class UnknownPeer(PeerError):
    """No peer has that name."""

    exit_code = 4


class NoDaemon(AlphaTrioError):
    """Nobody answers at the control socket."""

    exit_code = 3


class TimedOut(AlphaTrioError):
    """What was waited for did not happen in time."""

    exit_code = 5


class RemoteError(AlphaTrioError):
    """The daemon refused a request, and none of the other classes says how."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


_TOLD: dict[int, type[AlphaTrioError]] = {
    error.exit_code: error for error in (WrongUsage, UnknownPeer, TimedOut)
}


def error_of(text: str, exit_code: int) -> AlphaTrioError:
    """What the daemon refused, by the code that came with its words."""
    if (error := _TOLD.get(exit_code)) is not None:
        return error(text)
    return RemoteError(text, exit_code)


def refusal(error: Exception) -> str | None:
    """What the host refused, with the remedy; None if ``error`` is nothing it said.

    That is a bug then, and has to end in a traceback.
    """
    if isinstance(error, AlphaTrioError):
        return str(error)
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "Cannot allocate memory")
    if not isinstance(error, OSError) or error.errno in _OURS:
        return None
    remedy = _REMEDIES.get(error.errno or 0)
    text = error.strerror or str(error)
    return f"{text}; {remedy}" if remedy else text
