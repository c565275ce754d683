"""A node without a tunnel: the interface the control commands need, held in memory.

``python -m tests.control.memory_node SOCKET`` serves one until it is told to stop.
"""

import sys
from pathlib import Path

import trio

from alpha_trio import __version__
from alpha_trio.control import ControlServer, commands_for, questions_for
from alpha_trio.errors import ConfigError, PeerError, UnknownPeer
from alpha_trio.journal import Journal
from alpha_trio.journal.hub import EventHub
from alpha_trio.settings import Mode, PeerSettings, Settings

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class MemoryNode:
    def __init__(self, socket: Path, status_group: str | None = None) -> None:
        self.settings = Settings(socket=socket, status_group=status_group)
        self.hub = EventHub()
        self.subscribe = self.hub.subscribe
        self.scope = trio.CancelScope()
        self.reloaded: dict[str, list[str]] | ConfigError = {}
        self.taken_over: list[str] = []
        self.forgotten: list[str] = []
        self.noted: list[str] = []
        self.established: dict[str, trio.Event] = {}
        self.steps = [{"ok": True, "what": "a fact", "remedy": ""}]
        self.traced = {"schema": 1, "hops": [], "segments": []}
        self._peers: dict[str, tuple[PeerSettings, str]] = {}
        self.document = {
            "schema": 1,
            "version": __version__,
            "uptime_seconds": 12.3,
            "interface": {
                "name": "alpha0",
                "mtu": 1400,
                "offloads": {"tun": ["tso4"], "udp": ["segment", "gro"]},
            },
            "port": 1234,
            "key": KEY,
            "peers": [],
            "knocking": [],
            "relay": None,
            "drops": {},
            "astray": [],
            "health": [],
        }

    async def serve(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            server = ControlServer(
                self.settings, commands_for(self), Journal(), questions_for(self)
            )
            await server.run(task_status=task_status)

    async def status(self, name=None):
        status = self.everything()
        if name is not None:
            peers = [peer for peer in status["peers"] if peer["name"] == name]
            if not peers:
                raise UnknownPeer(
                    f"no peer is called {name!r}: see 'alpha-trio peers list'"
                )
            status["peers"] = peers
        return status

    def keys(self):
        return {
            peer["name"]: {"key": peer["key"], "key_source": peer["key_source"]}
            for peer in self.everything()["peers"]
        }

    def everything(self):
        """The document, with a plain entry for each peer that it does not tell of."""
        entries = self.document["peers"]
        told = {entry["name"] for entry in entries}
        added = [peer for name, (peer, _) in self._peers.items() if name not in told]
        return self.document | {"peers": [*entries, *map(status_of, added)]}

    def peers(self):
        return list(self._peers.values())

    async def add_peer(self, peer, take_over):
        if (old := self._peers.get(peer.name)) is not None:
            if old[0] == peer:
                return False
            raise PeerError(
                f"peer {peer.name} exists with other settings: change it with "
                f"'alpha-trio peers set {peer.name}'"
            )
        self._keep(peer, take_over)
        self.hub.publish({"event": "peer-added", "peer": peer.name, "time": 1.0})
        return True

    async def add_peers(self, peers, take_over, replace):
        names = {peer.name: peer for peer in peers}
        was = {n: self._peers[n][0] for n in names if n in self._peers}
        changed = [name for name in was if was[name] != names[name]]
        if changed and not replace:
            raise PeerError(f"{', '.join(changed)}: other settings; give --replace")
        for peer in peers:
            self._keep(peer, take_over)
        return {
            "added": [name for name in names if name not in was],
            "changed": changed,
            "unchanged": [name for name in was if name not in changed],
        }

    def notes(self, name):
        return self.noted

    async def set_peer(self, peer, take_over):
        self._keep(peer, take_over)

    def _keep(self, peer, take_over):
        self._peers[peer.name] = (peer, "state")
        self.established.setdefault(peer.name, trio.Event())
        if take_over:
            self.taken_over.append(peer.name)

    async def remove_peer(self, name):
        if self._peers.pop(name, None) is None:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )

    async def forget_pin(self, name):
        self.forgotten.append(name)

    async def reload(self):
        if isinstance(self.reloaded, ConfigError):
            raise self.reloaded
        return self.reloaded

    async def wait_established(self, name):
        if name not in self._peers:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )
        await self.established[name].wait()

    async def walk(self, name):
        if name not in self._peers:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )
        return self.steps

    async def trace(self, name, seconds):
        if name not in self._peers:
            raise UnknownPeer(
                f"no peer is called {name!r}: see 'alpha-trio peers list'"
            )
        return self.traced | {"peer": name, "seconds": seconds}

    def stop(self, who=""):
        self.stopped_by = who
        self.scope.cancel()


def status_of(peer: PeerSettings, **values):
    """The entry of one peer in the status document."""
    return {
        "name": peer.name,
        "endpoint": f"{peer.endpoint}:{peer.port}",
        "configured_endpoint": peer.endpoint,
        "state": "idle",
        "reason": None,
        "mode": "plain" if peer.mode is Mode.PLAIN else "alpha",
        "configured_mode": str(peer.mode),
        "psk": peer.psk is not None,
        "key": peer.key,
        "key_source": "configured" if peer.key else "none",
        "offered_key": None,
        "latest_handshake_seconds": None,
        "latest_receive_seconds": None,
        "rtt_ms": None,
        "mtu": 1400,
        "mtu_source": "probed",
        "routed": True,
        "allowed": [f"{peer.endpoint}/32"],
        "tx_packets": 0,
        "tx_bytes": 0,
        "rx_packets": 0,
        "rx_bytes": 0,
        "queued": 0,
        "rounds": {"n": 0, "c": 0, "m": 0, "cm": 0},
        "associations": 0,
        "elements_left": 0,
        "reliable": peer.reliable,
        "reliable_rounds": 0,
        "early": peer.early,
        "early_state": "trying" if peer.early else "off-here",
        "early_text": "a reason",
        "early_sent": 0,
        "early_received": 0,
        "split_packets": 0,
        "drops": {},
    } | values


if __name__ == "__main__":
    trio.run(MemoryNode(Path(sys.argv[1])).serve)
