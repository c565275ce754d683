"""From where an answer has to come: from where its question went.

Who sits at one place can make both ends of a session with two keys of its own, and send
what both would say.  All of it is signed, and a relay that looked at signatures alone
would let it go on to whom it is addressed, who never said a word.  So an answer counts
only if it comes from the address and port to which its question went, and by another
link than the question came by: whoever asks cannot answer.

Hosts move, a NAT takes another port, a name has several addresses: so of each question
a few places are known to which it went.  Which of them is forgotten for another one
chance decides, or copies that are sent elsewhere would displace the right one.
"""

from __future__ import annotations

from attrs import define

from alpha_trio.proto.batch import Crossing
from alpha_trio.proto.primitives import RandomBytes, any_of
from alpha_trio.proto.relay.verdict import Consent, Refused, RelayDrop

PLACES = 8  # to which one question went

Place = tuple[str, int]  # address and port


@define(eq=False)
class Sides:
    """Where one question went, and by which link it came in."""

    _known: tuple[tuple[Place, int], ...] = ()

    @classmethod
    def of(cls, crossing: Crossing) -> Sides:
        """It passes for the first time."""
        return cls(((crossing.goal, crossing.interface),))

    def add(self, crossing: Crossing, random: RandomBytes) -> None:
        """It passes, once more perhaps."""
        side = crossing.goal, crossing.interface
        if side in self._known:
            return
        kept = list(self._known)
        if len(kept) >= PLACES:
            del kept[any_of(PLACES, random)]
        self._known = *kept, side

    def went_to(self, goal: Place) -> bool:
        """Whether it went there."""
        return any(place == goal for place, _ in self._known)

    def check_untrusted(self, answer: Crossing, consent: Consent) -> None:
        """Raises WrongSide unless an answer may come so."""
        if consent is Consent.ANY:
            return
        own = 0 if consent is Consent.ADDRESS else answer.interface
        asked = False
        for place, link in self._known:
            if place == answer.origin:
                if not own or link != own:
                    return
                asked = True
        raise WrongSide(same_link=asked)


class WrongSide(Refused):
    """An answer that does not come from where its question went."""

    def __init__(self, *, same_link: bool = False) -> None:
        super().__init__(RelayDrop.WRONG_SIDE)
        self.same_link = same_link  # from the right address, but with its question
