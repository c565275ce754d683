"""The peer table: who owns an address, what arrives for whom, what loops."""

from ipaddress import ip_address, ip_network
from math import inf
from random import Random

import pytest

from alpha_trio.proto.batch import Drop, EventKind, Outbox
from alpha_trio.proto.messages import (
    DATA,
    HEADER_SIZE,
    SUITE_PLAIN,
    VERSION,
    Ack,
    AckAck,
    Kind,
    Syn,
    data_word,
)
from alpha_trio.proto.peers import PeerTable, Session
from alpha_trio.proto.peers.prefixes import Prefixes
from alpha_trio.proto.peers.table import KNOCK_BURST, KNOCKING_HOSTS
from alpha_trio.proto.primitives import HashChain, Identity
from alpha_trio.proto.transport import alpha
from alpha_trio.proto.transport.alpha import LATER_SPACING
from tests.proto.inner import ICMP, ICMPV6, TCP, Packet, parse
from tests.proto.simulation import PORT, Simulation, guarded, remote_of

VM2 = ("192.168.10.61", PORT)
US = b"local"
OFFER = bytes(16), bytes(32), bytes(32), bytes(16), bytes(16)
SYN = guarded(Syn(5, *OFFER, suite=SUITE_PLAIN)).pack()


def table() -> PeerTable:
    random = Random(1).randbytes
    return PeerTable(PORT, Identity(random(32)), random)


def add(peers: PeerTable, name: str, *prefixes: str, remotes=()) -> Session:
    return peers.add(name, remotes, map(ip_network, prefixes), mode="plain")


def owner_of(peers: PeerTable, address: str) -> str | None:
    """Which peer a packet to ``address`` waits for."""
    for session in peers.sessions.values():
        session.reset()
    source = "10.0.0.1" if ip_address(address).version == 4 else "fd00::1"
    peers.outgoing(Packet(source, address).frame(), 0.0, Outbox())
    owners = [n for n, s in peers.sessions.items() if s.waiting.packets]
    assert len(owners) <= 1
    return owners[0] if owners else None


# -- prefixes


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_prefix_decides(seed):
    random = Random(seed)
    peers = table()
    prefixes = {}
    for _ in range(60):
        network = _random_network(random)
        prefixes.setdefault(network, f"peer{len(prefixes)}")
    for network, name in prefixes.items():
        add(peers, name, str(network))
    for _ in range(200):
        address = _random_address(random)
        assert owner_of(peers, str(address)) == _longest(prefixes, address)


def _random_address(random: Random):
    """From few enough that prefixes overlap."""
    tail = random.getrandbits(12)
    if random.random() < 0.5:
        return ip_address(0x0A000000 | tail)
    return ip_address((0xFD00 << 112) | (tail << 40) | random.getrandbits(3))


def _random_network(random: Random):
    address = _random_address(random)
    bits = address.max_prefixlen
    length = random.choice([0, *range(8, bits + 1, 3), bits])
    return ip_network(f"{address}/{length}", strict=False)


def _longest(prefixes, address):
    holding = [
        network
        for network in prefixes
        if network.version == address.version and address in network
    ]
    best = max(holding, key=lambda network: network.prefixlen, default=None)
    return prefixes.get(best)


def test_prefixes_can_be_changed_and_go_with_their_peer():
    peers = table()
    vm2 = add(peers, "vm2", "10.1.0.0/16")
    add(peers, "vm3", "10.0.0.0/8")
    assert owner_of(peers, "10.1.2.3") == "vm2"
    peers.configure(vm2, (), [ip_network("10.2.0.0/16")])
    assert owner_of(peers, "10.1.2.3") == "vm3"
    assert owner_of(peers, "10.2.2.3") == "vm2"
    peers.remove("vm2")
    assert owner_of(peers, "10.2.2.3") == "vm3"
    peers.remove("vm3")
    assert owner_of(peers, "10.2.2.3") is None


def test_many_looked_up_addresses_take_bounded_memory():
    peers = table()
    add(peers, "vm2", "10.0.0.0/8")
    for number in range(5000):
        peers._prefixes.owner((0x0A000000 + number).to_bytes(4))
    assert len(peers._prefixes.cache) <= 4096


# -- what no peer takes


@pytest.mark.parametrize(
    ("source", "destination", "protocol"),
    [
        ("192.168.10.60", "198.51.100.9", ICMP),
        ("fd00::60", "fd00::99", ICMPV6),
    ],
)
def test_a_destination_of_no_peer_is_unreachable(source, destination, protocol):
    peers, out = table(), Outbox()
    peers.outgoing(Packet(source, destination, payload=b"?").frame(), 0.0, out)
    assert peers.counters.drops == {Drop.NO_PEER: 1}
    (deliver,) = out.delivers
    answer = parse(b"".join(deliver.parts)[10:])
    assert (answer.source, answer.destination) == (destination, source)
    assert answer.protocol == protocol
    assert deliver.counters is not peers.counters


def test_a_refused_super_packet_counts_as_its_packets():
    peers = table()
    packet = Packet(protocol=TCP, payload=bytes(1000), segment_size=100)
    peers.outgoing(packet.frame(), 0.0, Outbox())
    assert peers.counters.drops == {Drop.NO_PEER: 10}


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("10.0.0.1", "224.0.0.251"),
        ("10.0.0.1", "255.255.255.255"),
        ("fe80::1", "ff02::2"),
    ],
)
def test_multicast_stays_on_the_link_without_a_word(source, destination):
    peers, out = table(), Outbox()
    peers.outgoing(Packet(source, destination).frame(), 0.0, out)
    assert peers.counters.drops == {Drop.MULTICAST: 1}
    assert not out.delivers


def test_multicast_goes_where_somebody_asked_for_it():
    peers = table()
    add(peers, "vm2", "224.0.0.0/4")
    assert owner_of(peers, "224.0.0.251") == "vm2"


@pytest.mark.parametrize(
    "packet", [b"", b"\x45", bytes(40), b"\x45" * 19, b"\x60" * 39, b"\x70" * 60]
)
def test_what_is_no_ip_packet_is_counted(packet):
    peers = table()
    peers.outgoing(memoryview(bytes(10) + packet), 0.0, Outbox())
    assert peers.counters.drops == {Drop.NOT_IP: 1}


def test_no_packet_from_the_tun_raises():
    random, peers = Random(1), table()
    add(peers, "vm2", "0.0.0.0/1", "::/1", remotes=[VM2])
    out = Outbox()
    for _ in range(3000):
        packet = bytearray(random.randbytes(random.randrange(1, 120)))
        packet[0] = random.choice([0x45, 0x46, 0x4F, 0x40, 0x60, packet[0]])
        peers.outgoing(memoryview(bytes(10) + packet), 0.0, out)


# -- loops


@pytest.mark.parametrize(
    ("source", "peer"),
    [("192.168.10.60", "192.168.10.61"), ("fd00::60", "fd00::61")],
)
def test_our_own_datagrams_are_not_tunnelled(source, peer):
    peers = table()
    session = add(peers, "vm2", peer, remotes=[remote_of(peer)])
    loop = Packet(source, peer, payload=b"outer", ports=(PORT, PORT))
    peers.outgoing(loop.frame(), 0.0, Outbox())
    assert session.counters.drops == {Drop.LOOP: 1}
    assert not session.waiting.packets


@pytest.mark.parametrize("ports", [(PORT, 5), (5, PORT)])
def test_other_udp_to_the_peer_is_tunnelled(ports):
    peers = table()
    session = add(peers, "vm2", VM2[0], remotes=[VM2])
    peers.outgoing(Packet(destination=VM2[0], ports=ports).frame(), 0.0, Outbox())
    assert session.waiting.packets == 1


def test_tcp_with_the_same_ports_is_tunnelled():
    peers = table()
    session = add(peers, "vm2", VM2[0], remotes=[VM2])
    packet = Packet(destination=VM2[0], protocol=TCP, ports=(PORT, PORT))
    peers.outgoing(packet.frame(), 0.0, Outbox())
    assert session.waiting.packets == 1


def test_a_later_fragment_is_no_loop_whatever_it_holds():
    peers = table()
    session = add(peers, "vm2", VM2[0], remotes=[VM2])
    frame = bytearray(Packet(destination=VM2[0], ports=(PORT, PORT)).frame())
    frame[16:18] = b"\0\x10"
    peers.outgoing(memoryview(frame), 0.0, Outbox())
    assert session.waiting.packets == 1


# -- what arrives


@pytest.mark.parametrize("size", range(1, HEADER_SIZE))
def test_datagrams_shorter_than_a_header_are_counted_one_by_one(size):
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.inject("vm1", VM2, bytes(size * 5), stride=size)
    assert vm1.drops() == {Drop.MALFORMED: 5}


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (bytes(8), Drop.VERSION),
        (bytes([Kind.SYN, VERSION + 1]) + bytes(190), Drop.VERSION),
        (bytes([Kind.SYN, VERSION]) + bytes(189), Drop.MALFORMED),
        (bytes([0, VERSION]) + bytes(62), Drop.MALFORMED),
        (bytes([255, VERSION]) + bytes(62), Drop.MALFORMED),
        (Ack(9, 1, *OFFER).pack(), Drop.UNKNOWN_ID),
        (AckAck(9, bytes(64)).pack(), Drop.UNKNOWN_ID),
        (data_word(9).to_bytes(8) + bytes(40), Drop.UNKNOWN_ID),
    ],
)
def test_each_kind_of_nonsense_has_its_reason(datagram, reason):
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.inject("vm1", VM2, datagram)
    assert vm1.drops() == {reason: 1}
    assert not sim.messages(Kind.ACK)


@pytest.mark.parametrize("seed", range(8))
def test_no_bytes_from_the_network_raise_or_go_uncounted(seed):
    """Random, truncated and mutated datagrams, alone and in runs, at every stage."""
    random = Random(seed)
    sim = Simulation(seed)
    sim.pair()
    heard = [SYN, DATA.pack(data_word(5), 1)]
    for _ in range(300):
        if random.random() < 0.1:
            sim.send("vm1", "vm2")
            sim.send("vm2", "vm1")
            sim.run(random.choice([0.001, 0.02, 1, 30]))
            heard += [sent.data for sent in sim.sent[-20:]]
        for target, sender in (("vm1", VM2), ("vm2", ("192.168.10.60", PORT))):
            datagram = _mutated(random.choice(heard), random)
            run = datagram * random.choice([1, 1, 1, 3])
            stride = random.choice([len(datagram), max(1, random.randrange(90))])
            sim.inject(target, sender, run, stride)


def _mutated(datagram: bytes, random: Random) -> bytes:
    data = bytearray(datagram)
    for _ in range(random.randrange(4)):
        data[random.randrange(len(data))] = random.getrandbits(8)
    match random.randrange(5):
        case 0:
            data = data[: random.randrange(1, len(data) + 1)]
        case 1:
            data += random.randbytes(random.randrange(100))
        case 2:
            data = bytearray(random.randbytes(random.randrange(1, 100)))
        case 3:
            data[:2] = bytes([random.randrange(6), VERSION])
    return bytes(data)


def test_a_run_may_hold_messages_of_every_kind():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.block("vm1", "vm2")
    sim.send("vm1", "vm2", 2)
    one, two = (sent.data for sent in sim.messages(Kind.DATA, "vm1")[-2:])
    size = len(one)
    run = one + bytes(size) + two
    received = len(vm2.received)
    sim.inject("vm2", (vm1.address, PORT), run, stride=size)
    assert len(vm2.received) == received + 2
    assert vm2.drops() == {Drop.VERSION: 1}


# -- who is there


def test_a_peer_behind_nat_may_use_another_port():
    sim = Simulation()
    vm1, _ = sim.pair()
    sim.inject("vm1", (VM2[0], 4321), SYN)
    assert vm1.told(EventKind.SYN_RECEIVED) == 1


def test_two_peers_on_one_host_are_told_apart_by_port():
    peers, out = table(), Outbox()
    here = add(peers, "here", "10.0.0.1/32", remotes=[("192.0.2.1", 1)])
    there = add(peers, "there", "10.0.0.2/32", remotes=[("192.0.2.1", 2)])
    syn = memoryview(SYN)
    peers.incoming(syn, len(syn), ("192.0.2.1", 2), US, 0.0, out)
    answering = [len(peer.negotiation.answers) > 0 for peer in (here, there)]
    assert answering == [False, True]
    peers.incoming(syn, len(syn), ("192.0.2.1", 3), US, 0.0, out)
    assert peers.counters.drops == {Drop.STRANGER: 1}


def test_a_host_named_twice_is_still_one_peer():
    peers = table()
    session = add(
        peers, "vm2", "10.0.0.1/32", remotes=[("192.0.2.1", 1), ("192.0.2.1", 2)]
    )
    syn = memoryview(SYN)
    peers.incoming(syn, len(syn), ("192.0.2.1", 3), US, 0.0, Outbox())
    assert len(session.negotiation.answers) == 1


def test_deadlines_that_no_longer_hold_are_not_kept():
    """Nearly every packet moves one forward, and the later one stays behind."""
    sim = Simulation(1, mode="adaptive")
    vm1, _ = sim.pair()
    most = 0
    for _ in range(600):
        sim.send("vm1", "vm2")
        sim.run(0.1)
        most = max(most, len(vm1.table._heap))
    assert 200 < most < 300


def test_strangers_that_knock_are_listed_and_the_list_is_bounded():
    peers, out = table(), Outbox()
    syn = memoryview(SYN)
    for number in range(1000):
        for _ in range(2):
            peers.incoming(
                syn, len(syn), (f"10.0.{number >> 8}.{number & 255}", 1), US, 0, out
            )
    assert len(peers.knocking) == KNOCKING_HOSTS
    assert {knock.count for knock in peers.knocking.values()} == {2}
    assert "10.0.3.231" in peers.knocking
    assert peers.counters.drops == {Drop.STRANGER: 2000}
    assert not out.sends
    assert len(out.events) == KNOCK_BURST
    assert peers.deadline == inf


def test_who_knocks_again_is_kept():
    peers, out = table(), Outbox()
    syn = memoryview(SYN)
    for number in range(KNOCKING_HOSTS + 10):
        peers.incoming(syn, len(syn), ("192.0.2.1", 1), US, 0, out)
        peers.incoming(syn, len(syn), (f"10.0.0.{number}", 1), US, 0, out)
    assert peers.knocking["192.0.2.1"].count == KNOCKING_HOSTS + 10


def knocked(host: str, *, identity: bytes = bytes(32)) -> PeerTable:
    """A table without peers at which ``host`` asked, showing this key."""
    peers = table()
    syn = memoryview(Syn(5, bytes(16), identity, *OFFER[2:], suite=SUITE_PLAIN).pack())
    for other in (host, "192.0.2.99"):
        peers.incoming(syn, len(syn), (other, 1), US, 0.0, Outbox())
        syn = memoryview(SYN)
    assert list(peers.knocking) == [host, "192.0.2.99"]
    return peers


def test_who_becomes_a_peer_by_its_address_knocks_no_longer():
    peers = knocked("192.0.2.1")
    session = add(peers, "vm2", "10.0.0.1/32")
    assert list(peers.knocking) == ["192.0.2.1", "192.0.2.99"]
    remotes = [("192.0.2.7", 1), ("192.0.2.1", 9)]  # its name was resolved
    peers.configure(session, remotes, [ip_network("10.0.0.1/32")], mode="plain")
    assert list(peers.knocking) == ["192.0.2.99"]


def test_who_becomes_a_peer_by_its_key_knocks_no_longer():
    key = bytes([7] * 32)
    peers = knocked("192.0.2.1", identity=key)
    peers.add("vm2", [("192.0.2.7", 1)], [ip_network("10.0.0.1/32")], key=key)
    assert list(peers.knocking) == ["192.0.2.99"]


def test_whose_key_is_pinned_elsewhere_knocks_no_longer():
    sim = Simulation()
    vm1, vm2 = sim.pair()
    sim.inject("vm1", ("192.0.2.1", PORT), vm2.syn().pack())
    assert list(vm1.table.knocking) == ["192.0.2.1"]
    assert sim.ping("vm1", "vm2")
    assert not vm1.table.knocking


# -- peers come and go


def test_peers_come_and_go_without_disturbing_another():
    sim = Simulation()
    _, vm2 = sim.pair()
    assert sim.ping("vm1", "vm2")
    sent = []
    for number in range(10):
        name = f"vm{number + 3}"
        sim.host(name)
        sim.peer("vm1", name)
        sim.peer(name, "vm1")
        sent += sim.send("vm1", "vm2")
        assert sim.ping("vm1", name)
        sent += sim.send("vm1", "vm2")
        sim.hosts["vm1"].table.remove(name)
    sim.run(1)
    assert vm2.payloads()[1:] == sent
    assert not sim.hosts["vm1"].drops()


def test_a_removed_peer_leaves_nothing_behind():
    sim = Simulation()
    vm1, _ = sim.pair()
    assert sim.ping("vm1", "vm2")
    sim.send("vm1", "vm2")
    vm1.table.remove("vm2")
    peers = vm1.table
    assert [peers._by_id, peers._by_word, peers._planned, peers.sessions] == [{}] * 4
    sim.run_until_idle()
    assert not peers._heap


def test_a_hundred_peers_each_find_their_own_packets():
    sim = Simulation()
    _, sessions = _star(sim, 99)
    names = [session.name for session in sessions]
    sent = {name: sim.send("vm1", name, 3) for name in names}
    sim.run(1)
    assert {name: sim.hosts[name].payloads() for name in names} == sent


def test_deadlines_do_not_pile_up():
    sim = Simulation()
    vm1, _ = sim.pair()
    for _ in range(500):
        sim.send("vm1", "vm2")
        sim.run(2)
        sim.send("vm2", "vm1")
        sim.run(2)
    assert len(vm1.table._heap) <= 100


def test_long_work_is_done_in_slices_with_room_for_packets_between(monkeypatch):
    """A further association needs a hash chain, which takes milliseconds to make."""
    monkeypatch.setattr(alpha, "LATER_SPACING", LATER_SPACING)  # as long as in earnest
    sim = Simulation(mode="adaptive")
    vm1, _ = sim.pair()
    assert sim.ping("vm1", "vm2")
    session = sim.session("vm1", "vm2")
    sim.run(1)
    before = session.statistics(sim.now).associations
    session.current._open_one()
    sim.send("vm1", "vm2")
    for _ in range(3):
        vm1.table.on_deadline(sim.now, vm1.out)
        assert vm1.table.deadline <= sim.now
    sim.run(1)
    assert vm1.table.deadline > sim.now
    assert session.statistics(sim.now).associations == before + 1


def test_many_that_work_in_slices_keep_no_packet_waiting(monkeypatch):
    monkeypatch.setattr(alpha, "LATER_SPACING", LATER_SPACING)
    sim = Simulation(mode="adaptive")
    vm1, sessions = _crowd(sim, 40)
    for session in sessions:
        session.current._open_one()
        sim.send("vm1", session.name)  # which lets the table see that there is work
    made = []
    make_some = HashChain.make_some
    monkeypatch.setattr(
        HashChain, "make_some", lambda chain: made.append(chain) or make_some(chain)
    )
    for number in range(1, 2 * len(sessions) + 1):
        vm1.table.on_deadline(sim.now, vm1.out)
        assert len(made) == number, "one slice each time"
    assert [made.count(chain) for chain in dict.fromkeys(made)] == [2] * len(sessions)


def test_sessions_whose_time_has_come_at_once_take_turns():
    sim = Simulation()
    vm1, sessions = _crowd(sim, 40, keepalive=10.0)
    vm1.out = Outbox()
    later, served = sim.now + 11.0, []
    for _ in range(3):
        vm1.table.on_deadline(later, vm1.out)
        served.append(sum(session.last_sent == later for session in sessions))
    assert served == [16, 32, 40]
    assert vm1.table.deadline > later


def _star(sim: Simulation, count: int, keepalive: float = 0.0):
    """A host, and what it has for so many peers."""
    vm1 = sim.host("vm1", "10.1.0.1")
    names = [f"peer{number}" for number in range(count)]
    for number, name in enumerate(names):
        sim.host(name, f"10.1.1.{number + 1}")
        sim.peer(name, "vm1")
    return vm1, [sim.peer("vm1", name, keepalive) for name in names]


def _crowd(sim: Simulation, count: int, keepalive: float = 0.0):
    """The same, and with each of them it has a session."""
    vm1, sessions = _star(sim, count, keepalive)
    for session in sessions:
        sim.send("vm1", session.name)
    sim.run(1)
    assert all(session.current is not None for session in sessions)
    return vm1, sessions


def test_first_contacts_do_not_index_all_peers_anew(monkeypatch):
    """There may be a thousand of them within seconds."""
    rebuilt = []
    rebuild = Prefixes.rebuild
    monkeypatch.setattr(
        Prefixes, "rebuild", lambda *args: rebuilt.append(args) or rebuild(*args)
    )
    sim = Simulation()
    vm1, sessions = _crowd(sim, 20)
    assert len(rebuilt) == len(sim.hosts)
    # Their keys are known all the same: a peer may come from another address.
    for session in sessions:
        syn = Syn(5, bytes(16), session.negotiation.key, *OFFER[2:], suite=SUITE_PLAIN)
        assert vm1.table._peer_of(syn, ("192.0.2.1", 5)) is session


def test_sessions_over_ipv6_carry_both_families():
    sim = Simulation()
    sim.host("vm1", "fd00::60")
    sim.host("vm2", "fd00::61")
    sim.peer("vm1", "vm2")
    sim.peer("vm2", "vm1")
    payloads = sim.send("vm1", "vm2", 3)
    sim.run(1)
    assert sim.hosts["vm2"].payloads() == payloads
    inner = Packet("10.0.0.1", "10.0.0.2", payload=b"four in six")
    for host, prefix in (("vm1", "10.0.0.2/32"), ("vm2", "10.0.0.1/32")):
        peers = sim.hosts[host].table
        (session,) = peers.sessions.values()
        peers.configure(
            session, session.negotiation.remotes, [ip_network(prefix)], mode="plain"
        )
    sim.emit("vm1", inner.frame())
    sim.run(1)
    assert sim.hosts["vm2"].payloads()[-1] == b"four in six"
