"""Which packets of a lane's table are another lane's, and what is handed over."""

from ipaddress import ip_network
from random import Random

import pytest
from attrs import define

from alpha_trio.lanes.inbox import Handed, Inbox, What
from alpha_trio.lanes.table import LaneTable
from alpha_trio.proto.batch import Drop, Outbox
from alpha_trio.proto.messages import Kind
from alpha_trio.proto.peers import PeerTable
from alpha_trio.proto.primitives import Identity
from tests.proto.inner import Packet

LANES = 2
NAMES = "one", "two"  # of peers, by the number of their lane
REMOTES = ("192.168.10.61", 1234), ("192.168.10.62", 1234)
HERE = "192.168.10.60"


@define
class Lanes:
    """Two lanes' tables, each with both peers."""

    tables: list[LaneTable]
    inboxes: list[Inbox]

    def handed_to(self, lane):
        """What is in a lane's inbox."""
        taken = self.inboxes[lane].take(100)
        return [(h.what, bytes(h.data), h.remote, h.local) for h in taken]


@pytest.fixture
def lanes():
    pairs = [Inbox.pair() for _ in range(LANES)]
    inboxes = [Inbox(read, [write for _, write in pairs]) for read, _ in pairs]
    identity = Identity(bytes(32))
    tables = [
        LaneTable(1234, identity, Random(n).randbytes, lane=n, lanes=2, inbox=inbox)
        for n, inbox in enumerate(inboxes)
    ]
    for table in tables:
        for number, (name, remote) in enumerate(zip(NAMES, REMOTES, strict=True)):
            session = table.add(name, [remote], [ip_network(remote[0])])
            if number != table.lane:
                table.elsewhere[session] = number
    yield Lanes(tables, inboxes)
    for ends in pairs:
        for end in ends:
            end.close()


def frame_to(lane):
    return Packet(HERE, REMOTES[lane][0], payload=b"hello").frame()


def syn_of(lane, table, seed=1):
    """The SYN by which the peer of a lane asks for a session."""
    theirs = PeerTable(1234, Identity(bytes([seed]) * 32), Random(seed).randbytes)
    session = theirs.add("us", [(HERE, 1234)], [], key=table.identity.public)
    theirs.connect(session, 0.0)
    out = Outbox()
    theirs.on_deadline(0.0, out)
    (send,) = out.sends
    return theirs.identity, memoryview(bytes(send.parts[0]))


def receive(table, view, remote):
    out = Outbox()
    table.incoming(view, len(view), remote, b"local address", 0.0, out)
    return out


def test_a_frame_for_a_peer_of_another_lane_goes_into_its_inbox(lanes):
    one, frame = lanes.tables[0], frame_to(1)
    one.outgoing(frame, 0.0, Outbox())
    assert lanes.handed_to(1) == [(What.FRAME, bytes(frame), ("", 0), b"")]
    assert one.sessions["two"].queued == 0


def test_a_frame_for_a_peer_of_this_lane_stays(lanes):
    one = lanes.tables[0]
    one.outgoing(frame_to(0), 0.0, Outbox())
    assert one.sessions["one"].queued == 1
    assert lanes.handed_to(1) == lanes.handed_to(0) == []


def test_a_frame_that_was_handed_over_wrongly_goes_no_further(lanes):
    one = lanes.tables[0]
    one.take_frame(frame_to(1), 0.0, Outbox())
    assert one.counters.drops == {Drop.NO_PEER: 1}
    assert lanes.handed_to(0) == lanes.handed_to(1) == []


def test_a_frame_for_nobody_is_refused_where_it_came_in(lanes):
    one, out = lanes.tables[0], Outbox()
    one.outgoing(Packet(HERE, "192.0.2.1", payload=b"hello").frame(), 0.0, out)
    assert one.counters.drops == {Drop.NO_PEER: 1}
    assert len(out.delivers) == 1  # ICMP says so


@pytest.mark.parametrize("size", [0, 10, 29, 30, 49])
def test_what_is_no_whole_packet_is_counted(lanes, size):
    one = lanes.tables[0]
    one.outgoing(frame_to(1)[:size], 0.0, Outbox())
    assert sum(one.counters.drops.values()) == (size < 30)
    assert len(lanes.handed_to(1)) == (size >= 30)


def test_an_inbox_that_is_full_is_no_reason_to_wait(lanes):
    one = lanes.tables[0]
    frame = Packet(HERE, REMOTES[1][0], payload=bytes(60_000)).frame()
    sent = 2_000
    for _ in range(sent):
        one.outgoing(frame, 0.0, Outbox())
    there = 0
    while more := len(list(lanes.inboxes[1].take(1_000))):
        there += more
    assert 0 < there < sent
    assert one.counters.drops == {Drop.QUEUE_FULL: sent - there}


def test_connection_ids_tell_the_lane(lanes):
    for lane, table in enumerate(lanes.tables):
        for _ in range(100):
            assert table._take_id(table.sessions["one"]) % LANES == lane


def test_a_syn_goes_to_the_lane_of_the_address_it_comes_from(lanes):
    _, syn = syn_of(1, lanes.tables[0])
    out = receive(lanes.tables[0], syn, REMOTES[1])
    assert out.sends == []
    assert lanes.handed_to(1) == [
        (What.DATAGRAM, bytes(syn), REMOTES[1], b"local address")
    ]


def test_a_syn_from_elsewhere_goes_to_the_lane_of_its_key(lanes):
    identity, syn = syn_of(1, lanes.tables[0])
    for table in lanes.tables:
        session = table.sessions["two"]
        table.configure(session, [REMOTES[1]], [], key=identity.public)
    elsewhere = "203.0.113.5", 4321
    receive(lanes.tables[0], syn, elsewhere)
    assert [what for what, *_ in lanes.handed_to(1)] == [What.DATAGRAM]
    out = Outbox()
    handed = Handed(What.DATAGRAM, syn, elsewhere)
    lanes.tables[1].take_datagram(handed, 0.0, out)
    assert out.sends  # an answer, or what proves the place first


def test_a_strangers_syn_is_noted_where_it_came_in(lanes):
    _, syn = syn_of(1, lanes.tables[0])
    receive(lanes.tables[0], syn, ("203.0.113.5", 4321))
    assert list(lanes.tables[0].knocking) == ["203.0.113.5"]
    assert lanes.handed_to(1) == []


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.ACKACK, Kind.COOKIE, Kind.REPORT])
def test_answers_go_to_the_lane_of_their_connection_id(lanes, kind):
    datagram = bytes([kind, 1, 0, 0]) + (7).to_bytes(4) + bytes(200)
    receive(lanes.tables[0], memoryview(datagram), REMOTES[0])
    assert [data for _, data, *_ in lanes.handed_to(1)] == [datagram]


def test_what_is_left_of_a_lost_session_goes_to_the_lane_of_its_peer(lanes):
    one, two = lanes.tables
    of_lane_0 = bytes([Kind.S1, 1, 0, 0]) + (8).to_bytes(4) + bytes(200)
    receive(one, memoryview(of_lane_0), REMOTES[1])
    (handed,) = lanes.inboxes[1].take(9)
    two.take_datagram(handed, 0.0, Outbox())  # which does not give it back
    assert lanes.handed_to(0) == []
    assert two.sessions["two"].attempts is not None  # it is asked for a new one


def test_what_is_left_of_a_lost_session_goes_to_the_lane_of_its_number_first(lanes):
    one, two = lanes.tables
    of_lane_1 = bytes([Kind.S1, 1, 0, 0]) + (7).to_bytes(4) + bytes(200)
    receive(one, memoryview(of_lane_1), REMOTES[0])
    (handed,) = lanes.inboxes[1].take(9)
    two.take_datagram(handed, 0.0, Outbox())
    (handed,) = lanes.inboxes[0].take(9)
    one.take_datagram(handed, 0.0, Outbox())
    assert lanes.handed_to(1) == []
    assert one.sessions["one"].attempts is not None


def test_rubbish_is_dropped_where_it_came_in(lanes):
    one, dice = lanes.tables[0], Random(3)
    for size in (1, 7, 8, 9, 40, 200):
        for kind in range(16):
            view = memoryview(bytes([kind]) + dice.randbytes(size - 1))
            receive(one, view, ("203.0.113.5", 4321))
    handed = len(lanes.handed_to(1))
    assert sum(one.counters.drops.values()) + handed == 6 * 16
