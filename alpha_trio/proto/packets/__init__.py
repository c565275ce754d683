"""Inner IP packets: what the TUN hands over, and what it is given.

In come virtio super-packets of the TUN, out go bodies that fit into a datagram each,
and back; and the ICMP errors an inner sender is answered with.

    frames      super-packets taken apart, and joined again
    joining     which that arrived make one super-packet
    train       packets of one flow that were read one by one, as one frame
    icmp        errors, as packets for the TUN
    fragments   packets in pieces, where a path takes less than IPv6 may count on
    tcp         what a packet is to its connection
"""

from alpha_trio.proto.packets import frames, icmp
from alpha_trio.proto.packets.fragments import IPV6_LEAST, split_frame
from alpha_trio.proto.packets.frames import (
    FRAME_WORD_SIZE,
    VIRTIO_SIZE,
    Cut,
    flow_of,
    join_datagrams,
    join_untrusted,
    traffic_class_of,
)
from alpha_trio.proto.packets.joining import common_headers, is_segment, joined
from alpha_trio.proto.packets.tcp import TCP, Role, role_of
from alpha_trio.proto.packets.train import Train

__all__ = [
    "FRAME_WORD_SIZE",
    "IPV6_LEAST",
    "TCP",
    "VIRTIO_SIZE",
    "Cut",
    "Role",
    "Train",
    "common_headers",
    "flow_of",
    "frames",
    "icmp",
    "is_segment",
    "join_datagrams",
    "join_untrusted",
    "joined",
    "role_of",
    "split_frame",
    "traffic_class_of",
]
