"""Early data: a small packet that comes alone travels inside its S1.

It arrives half a round trip after it was sent, and not one and a half.  What that costs
is what a round is for: relays can check such packets only after they passed, when S2
brings the key, and the receiver's consent comes after, too.  The two ends lose nothing
but that: the bytes are encrypted, and the S1's tag is theirs alone.
"""

from __future__ import annotations

from enum import StrEnum


class EarlyState(StrEnum):
    """Whether small packets travel inside S1, or why not; the value is for machines."""

    ON = "on"
    TRYING = "trying"  # nothing was tried yet, or the answer is to come
    OFF_HERE = "off-here"  # by our own settings
    OFF_PEER = "off-peer"  # the peer does not take it
    OFF_RELAY = "off-relay"  # a relay on the way asks not to
    LOST = "lost"  # it was agreed on, but does not arrive
    NO_SESSION = "no-session"
    NO_USE = "no-use"  # reliable rounds, or a mode other than adaptive

    @property
    def text(self) -> str:
        """One sentence for people, with the remedy if there is one."""
        return _TEXTS[self]


_TEXTS = {
    EarlyState.ON: "small packets that come alone go early",
    EarlyState.TRYING: "the path is being tried",
    EarlyState.OFF_HERE: "switched off for this peer here (peers set NAME --early on)",
    EarlyState.OFF_PEER: "the peer has it switched off for us",
    EarlyState.OFF_RELAY: (
        "a relay on the way does not let it pass; its operator can (early in [relay])"
    ),
    EarlyState.LOST: (
        "something on the way lets it not pass; it is tried again with a later session"
    ),
    EarlyState.NO_SESSION: "there is no session",
    EarlyState.NO_USE: "there is none with reliable, nor in a mode other than adaptive",
}
