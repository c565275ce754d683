"""The errors that reach a user.  One line each: what, the value, the remedy."""


class AlphaTrioError(Exception):
    """Something the user can understand and mend; printed as one line, exit 1."""

    exit_code = 1


class ConfigError(AlphaTrioError):
    """A setting cannot be used; the text names the place, the value, the remedy."""


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
