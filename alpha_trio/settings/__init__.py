"""What the user asked for, checked.

In come files, options and control requests; out go Settings and PeerSettings, or a
ConfigError that says what is wrong with which value, and what to do.

    model       the settings as the daemon works with them
    values      checks of each kind of value
    files       what is in a file, and who else may open it
    config      the config file and the options; peers as plain values
"""

from alpha_trio.settings import files, values
from alpha_trio.settings.config import (
    allowed_prefixes,
    changed_settings,
    check_peers,
    load_peers,
    load_settings,
    parse_peer,
    peer_values,
)
from alpha_trio.settings.model import (
    COPY,
    DEFAULT_CONFIG,
    DEFAULT_SOCKET,
    Backend,
    Consent,
    Engine,
    Fail,
    HookSettings,
    IPAddress,
    IPInterface,
    IPNetwork,
    Listen,
    LogFormat,
    MetricsSettings,
    Mode,
    Offload,
    PeerSettings,
    RelayEarly,
    RelaySettings,
    Selection,
    Settings,
)

__all__ = [
    "COPY",
    "DEFAULT_CONFIG",
    "DEFAULT_SOCKET",
    "Backend",
    "Consent",
    "Engine",
    "Fail",
    "HookSettings",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "Listen",
    "LogFormat",
    "MetricsSettings",
    "Mode",
    "Offload",
    "PeerSettings",
    "RelayEarly",
    "RelaySettings",
    "Selection",
    "Settings",
    "allowed_prefixes",
    "changed_settings",
    "check_peers",
    "files",
    "load_peers",
    "load_settings",
    "parse_peer",
    "peer_values",
    "values",
]
