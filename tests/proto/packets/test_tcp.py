"""What a packet is to its TCP connection."""

import pytest

from alpha_trio.proto.packets import Role, role_of
from tests.proto.inner import ACK, FIN, PSH, TCP, UDP, Packet

SYN = 0x02
TIMES = bytes([1, 1, 8, 10]) + bytes(8)  # options: a timestamp
ENDS = {4: {}, 6: {"source": "fd00:10::60", "destination": "fd00:10::61"}}
OPTIONS = {4: bytes([1, 1, 1, 0]), 6: b""}

ROLES = [
    (SYN, b"", Role.SYN),
    (SYN | ACK, b"", Role.SYN_ACK),
    (ACK, b"", Role.BARE),
    (ACK | FIN, b"", Role.BARE),
    (ACK | PSH, b"x", Role.DATA),
    (ACK | FIN, b"x" * 500, Role.DATA),
]


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize(("flags", "payload", "role"), ROLES)
@pytest.mark.parametrize("tcp_options", [b"", TIMES])
def test_it_is_told_from_flags_and_length(version, flags, payload, role, tcp_options):
    packet = Packet(
        protocol=TCP,
        flags=flags,
        payload=payload,
        tcp_options=tcp_options,
        ip_options=OPTIONS[version],
        **ENDS[version],
    ).build()
    assert role_of(packet, len(packet)) is role
    # The headers alone say it as well, if one says how long it is.
    assert role_of(packet[: len(packet) - len(payload)], len(packet)) is role


@pytest.mark.parametrize("version", ENDS)
def test_what_is_no_tcp_or_cannot_be_seen_is_something_else(version):
    fields = {"payload": b"x", "protocol": TCP, **ENDS[version]}
    whole = Packet(**fields).build()
    others = [
        b"",
        Packet(**fields | {"protocol": UDP}).build(),
        *(whole[:length] for length in range(version // 6 * 20 + 40)),
    ]
    if version == 4:
        others.append(whole[:6] + bytes([0, 7]) + whole[8:])  # a later fragment
    else:
        extension = bytes([TCP, 0, *bytes(6)])
        others.append(Packet(**fields, ip_options=extension).build())
    assert {role_of(other, 2000) for other in others} == {Role.OTHER}
