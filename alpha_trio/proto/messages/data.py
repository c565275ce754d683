"""The messages of the data path: S1, A1, S2 and A2 of a round, and DATA of mode plain.

S1, A1, S2 and A2 continue the header with one more word that names the round::

     0               1               2               3
     0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
    +-------------------------------+---------------+---------------+
    |          association          |R C E zero depth|     zero      |
    +-------------------------------+---------------+---------------+
    |                             round                             |
    +---------------------------------------------------------------+
    |                  chain element (16 bytes) ...                 |

R: reliable, the receiver answers with A2.  C: the packet is one of control messages,
which is not encrypted, so that relays can read it, and always reliable.  E: the S1 has
early data behind its one root, and the S2 only says the key.  Round r uses the elements
2r+1 (S1, A1) and 2r+2 (S2, A2) of the association's chains.
"""

from __future__ import annotations

from struct import Struct

from alpha_trio.proto.messages.header import HEADER_SIZE, Kind, first_word

NODE_SIZE = 16  # a root, or a node of a tree
TAG_SIZE = 16  # what only the two ends can make, at the end of S1, A1 and A2

ROUND = Struct("!HBBI 16s")  # association, shape, zero, round, element
ROUND_HEAD_SIZE = HEADER_SIZE + ROUND.size  # 32

RELIABLE, CONTROL, EARLY_ROUND, DEPTH_MASK = 0x80, 0x40, 0x20, 0x07

# S1: head | packets, roots, zero | roots (16 each) | early data, if any | tag
S1_COUNTS = Struct("!HHI")
S1_FIXED_SIZE = ROUND_HEAD_SIZE + S1_COUNTS.size
# A1: head | digest of the S1 (16) | root of the acknowledgment tree (16) | tag
A1 = Struct("!16s 16s")
A1_SIZE = ROUND_HEAD_SIZE + A1.size + TAG_SIZE
# S2: head | branch (16 * depth) | index, zero, offset | body
S2_TAIL = Struct("!HHI")
S2_SIZE = ROUND_HEAD_SIZE + S2_TAIL.size  # without branch and body
# A2: head | openings, all of one round and so of one size | tag (8)
# opening: index, verdict, zero | secret (16) | branch (16 each)
A2_OPENING = Struct("!HBB 16s")

# DATA: header as one word, then the packet counter of the sender, then one frame
# (see packets/frames.py).  Words instead of fields: a receiver compares whole words.
DATA = Struct("!QQ")
DATA_SIZE = DATA.size


def data_word(receiver_id: int) -> int:
    """The first eight bytes of every DATA datagram to ``receiver_id``, as a word."""
    return first_word(Kind.DATA, receiver_id)
