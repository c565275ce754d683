from ipaddress import ip_address
from random import Random

import pytest
from attrs import evolve

from alpha_trio.proto.packets.icmp import Problem, error, udp_packet
from tests.proto.inner import ICMP, ICMPV6, Packet, parse, word_sum

V4 = Packet(payload=bytes(1472))
V6 = Packet("fd00::1", "fd00::2", payload=bytes(1452))


def view(packet: Packet) -> memoryview:
    return memoryview(packet.build())


@pytest.mark.parametrize(
    ("packet", "problem", "mtu", "kind"),
    [
        (V4, Problem.UNREACHABLE, 0, (ICMP, 3, 1)),
        (V4, Problem.TOO_BIG, 1400, (ICMP, 3, 4)),
        (V6, Problem.UNREACHABLE, 0, (ICMPV6, 1, 3)),
        (V6, Problem.TOO_BIG, 1400, (ICMPV6, 2, 0)),
    ],
)
def test_the_answer_comes_from_where_the_packet_went(packet, problem, mtu, kind):
    answer = parse(error(view(packet), problem, mtu))
    assert (answer.source, answer.destination) == (packet.destination, packet.source)
    assert (answer.protocol, *answer.transport[:2]) == kind
    assert int.from_bytes(answer.transport[4:8]) == mtu
    assert packet.build().startswith(answer.payload)
    assert len(answer.payload) >= 100


def test_answers_stay_within_what_every_host_takes():
    assert len(error(view(V4), Problem.UNREACHABLE)) == 576
    assert len(error(view(V6), Problem.UNREACHABLE)) == 1280


def test_a_small_packet_is_quoted_whole():
    packet = Packet(payload=b"small")
    assert parse(error(view(packet), Problem.UNREACHABLE)).payload == packet.build()


def test_an_ipv4_packet_that_may_be_fragmented_is_not_too_big():
    packet = Packet(payload=bytes(1472), dont_fragment=False)
    assert error(view(packet), Problem.TOO_BIG, 1400) is None
    assert error(view(packet), Problem.UNREACHABLE) is not None


def test_a_later_fragment_gets_no_answer():
    packet = bytearray(V4.build())
    packet[6:8] = b"\0\x01"
    assert error(memoryview(packet), Problem.UNREACHABLE) is None


@pytest.mark.parametrize("echo_type", [0, 8, 13, 17])
def test_icmp_queries_get_answers(echo_type):
    packet = Packet(protocol=ICMP, echo_type=echo_type)
    assert error(view(packet), Problem.UNREACHABLE) is not None


@pytest.mark.parametrize("error_type", [3, 4, 5, 11, 12])
def test_icmp_errors_get_no_answer(error_type):
    packet = Packet(protocol=ICMP, echo_type=error_type)
    assert error(view(packet), Problem.UNREACHABLE) is None


@pytest.mark.parametrize(("kind", "answered"), [(1, False), (127, False), (128, True)])
def test_icmpv6_errors_get_no_answer(kind, answered):
    packet = Packet("fd00::1", "fd00::2", ICMPV6, echo_type=kind)
    assert (error(view(packet), Problem.UNREACHABLE) is not None) is answered


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("0.0.0.0", "192.168.10.61"),
        ("224.0.0.1", "192.168.10.61"),
        ("255.255.255.255", "192.168.10.61"),
        ("::", "fd00::2"),
        ("ff02::1", "fd00::2"),
    ],
)
def test_a_sender_that_is_no_single_host_gets_no_answer(source, destination):
    packet = Packet(source, destination)
    assert error(view(packet), Problem.UNREACHABLE) is None


@pytest.mark.parametrize(
    "packet", [Packet(protocol=ICMP), Packet("fd00::1", "fd00::2", ICMPV6)]
)
def test_an_icmp_packet_that_ends_with_its_ip_header_gets_no_answer(packet):
    header = view(packet)[: packet.csum_start]
    assert error(header, Problem.UNREACHABLE) is None


def test_whatever_a_packet_holds_the_answer_is_well_formed():
    random = Random(1)
    answers = 0
    for _ in range(2000):
        version, least = random.choice([(4, 20), (6, 40)])
        packet = bytearray(random.randbytes(random.randrange(least, 100)))
        packet[0] = version << 4 | packet[0] & 0xF
        for problem in Problem:
            answer = error(memoryview(packet), problem, 1280)
            if answer is not None:
                parse(answer)
                answers += 1
    assert answers > 1000


@pytest.mark.parametrize("packet", [V4, V6])
def test_the_packet_of_a_datagram_can_be_quoted(packet):
    ends = [ip_address(a).packed for a in (packet.source, packet.destination)]
    source, destination = zip(ends, packet.ports, strict=True)
    made = udp_packet(source, destination, 63, 0xBA, memoryview(b"hello"))
    like = evolve(packet, payload=b"hello").build()  # TOS 0 and 64 hops
    header, hops = (20, 8) if packet is V4 else (40, 7)
    ports_and_length = made[header : header + 6]
    assert ports_and_length == like[header : header + 6]
    assert made[header + 6 :] == b"\0\0hello"
    assert made[hops] == 63
    assert int.from_bytes(made[:2]) >> (0 if packet is V4 else 4) & 0xFF == 0xBA
    assert (
        made[2 if packet is V4 else 4 : hops] == like[2 if packet is V4 else 4 : hops]
    )
    assert made[header - 8 : header] == like[header - 8 : header]
    assert packet is V6 or word_sum(made[:20]) == 0xFFFF
    answer = error(memoryview(made), Problem.TOO_BIG, 1400)
    assert answer.endswith(made)  # as only a packet that may not be fragmented is
