"""What a relay makes of rounds with early data among them, in one session.

It has room for a few S1s with early data that nothing has proven: once for the first
copy of the first S1 of each round, and once for all others.  The key shows what was
signed, and for that the room is given back.  Time, which gives room as well, does not
pass here.

What a relay cannot know, and properties are about, stands beside it (``Noted``).
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.rules import Rules

FORGED = "forged"  # made with the round's key
GENUINE = "packet "  # and its number: of the sender
KEY = "key"  # in the place of a packet, in the S2 of early data


class Said(NamedTuple):
    """What an S1 says, so what its digest is of; or an S2."""

    what: str  # the packet: pre-signed, and if it is early inside
    early: bool

    @property
    def fits(self) -> bool:
        """Whether the root is made with the round's key, for this packet."""
        return self.what == FORGED or self.what.startswith(GENUINE)


class Watched(NamedTuple):
    """A round as a relay sees it."""

    s1s: tuple[Said, ...] = ()
    agreed: frozenset[Said] = frozenset()  # those that an A1 was for
    keyed: bool = False  # the key is out, and nothing is agreed to any more
    passed: frozenset[Said] = frozenset()  # S2s, by the S1s that they fit


class Noted(NamedTuple):
    """What has come of it so far."""

    passed: int = 0  # S1s with early data, copies included
    signed: frozenset[int] = frozenset()  # rounds with one that fits its key
    back: frozenset[Said] = frozenset()  # what room was given back for
    false: bool = False  # all that was agreed to in a round was early, and none fits
    passed_after: bool = False  # early data, after that
    no_room: bool = False  # for the first S1 of a round


class Relay(NamedTuple):
    """One direction of one session."""

    signatures: int  # its place in the sender's chain
    rounds: tuple[Watched, ...]
    first: int  # first copies of first S1s that there is room for
    others: int  # and others
    off: bool = False  # no early data passes
    noted: Noted = Noted()


Passing = tuple[Relay, bool]
"""The relay after a message came, and whether that passes."""


class Gate(NamedTuple):
    """The rules of a relay, and what is the same for all of its sessions."""

    rules: Rules
    room: int  # for S1s of either sort
    places: int  # for S1s of a round

    def begun(self, rounds: int, *, off: bool) -> Relay:
        """A relay that has seen no round; ``off``: its operator wants none early."""
        noted = Noted(false=off)
        return Relay(0, (Watched(),) * rounds, self.room, self.room, off, noted)

    def is_bounded(self, relay: Relay) -> bool:
        """Whether no more early data passed than was signed, and there is room for."""
        return relay.noted.passed <= 2 * self.room + len(relay.noted.signed)

    # -- S1

    def s1(self, relay: Relay, number: int, said: Said) -> Passing:
        """An S1 comes from the sender's side."""
        watched = relay.rounds[number]
        if not watched.s1s:
            return self._first_s1(relay, number, said)
        if watched.keyed:
            return relay, False
        if said not in watched.s1s:
            if watched.agreed or len(watched.s1s) >= self.places:
                return relay, False
            watched = watched._replace(s1s=(*watched.s1s, said))
        after = self._let_early(relay, number, said, first=False)
        if after is None:
            return relay, False
        return _with(after, number, watched), True

    def _first_s1(self, relay: Relay, number: int, said: Said) -> Passing:
        opening = 2 * number + 1
        if relay.signatures >= opening:
            return relay, False
        after = self._let_early(relay, number, said, first=True)
        if after is None:
            no_room = relay.noted._replace(no_room=not relay.off)
            return relay._replace(noted=no_room), False
        for before in range(number):
            after = self._overtake(after, before)
        after = after._replace(signatures=opening)
        return _with(after, number, Watched((said,))), True

    def _overtake(self, relay: Relay, number: int) -> Relay:
        """A later round began, so its key follows; without an A1 it is forgotten."""
        watched = relay.rounds[number]
        if watched.keyed:
            return relay
        if watched.agreed:
            return self._open(relay, number)
        return _with(relay, number, Watched())

    def _let_early(
        self, relay: Relay, number: int, said: Said, *, first: bool
    ) -> Relay | None:
        """None if early data may not pass, or not now."""
        if not said.early:
            return relay
        room = self._room_of(relay, first=first)
        if relay.off or (not room and self.rules.early_bounded):
            return None
        noted, most = relay.noted, 2 * self.room + len(relay.rounds)
        noted = noted._replace(
            passed=min(noted.passed + 1, most + 1),  # more makes no difference
            signed=noted.signed | ({number} if said.fits else set()),
            passed_after=noted.passed_after or noted.false,
        )
        relay = self._with_room(relay, max(0, room - 1), first=first)
        return relay._replace(noted=noted)

    def _room_of(self, relay: Relay, *, first: bool) -> int:
        apart = self.rules.early_copies_apart and not first
        return relay.others if apart else relay.first

    def _with_room(self, relay: Relay, room: int, *, first: bool) -> Relay:
        if self.rules.early_copies_apart and not first:
            return relay._replace(others=room)
        return relay._replace(first=room)

    # -- A1

    def a1(self, relay: Relay, number: int, said: Said) -> Passing:
        """An A1 comes from the receiver's side."""
        watched, opening = relay.rounds[number], 2 * number + 1
        if said not in watched.s1s or watched.keyed or relay.signatures > opening:
            return relay, False
        agreed = watched._replace(agreed=watched.agreed | {said})
        return _with(relay, number, agreed), True

    # -- S2

    def s2(self, relay: Relay, number: int, said: Said) -> Passing:
        """An S2 comes from the sender's side, and its key is right."""
        if all(s1.early != said.early for s1 in relay.rounds[number].agreed):
            return relay, False
        if not relay.rounds[number].keyed:
            relay = self._open(relay, number)
        watched = relay.rounds[number]
        fitting = next((s1 for s1 in watched.agreed if _fits(s1, said)), None)
        if fitting is None or fitting in watched.passed:
            return relay, False
        watched = watched._replace(passed=watched.passed | {fitting})
        return _with(relay, number, watched), True

    def _open(self, relay: Relay, number: int) -> Relay:
        """The key is known: see what of early data was signed."""
        watched = relay.rounds[number]
        early = [s1 for s1 in watched.s1s if s1 in watched.agreed and s1.early]
        signed = [s1 for s1 in early if s1.fits]
        back = signed if self.rules.early_back_if_signed else early
        if back:
            first = back[0] == watched.s1s[0]
            relay = self._give_back(relay, back[0], first=first)
        if early and not signed:
            relay = self._judge(relay, watched)
        relay = relay._replace(signatures=max(relay.signatures, 2 * number + 2))
        return _with(relay, number, watched._replace(keyed=True))

    def _give_back(self, relay: Relay, said: Said, *, first: bool) -> Relay:
        room = min(self.room, self._room_of(relay, first=first) + 1)
        noted = relay.noted._replace(back=relay.noted.back | {said})
        return self._with_room(relay, room, first=first)._replace(noted=noted)

    def _judge(self, relay: Relay, watched: Watched) -> Relay:
        """There is early data that was agreed to, and none of it fits the key."""
        only = all(s1.early for s1 in watched.agreed)
        ends = only or not self.rules.early_false_of_all
        off = relay.off or (ends and self.rules.early_false_ends)
        noted = relay.noted._replace(false=relay.noted.false or only)
        return relay._replace(off=off, noted=noted)


def _fits(s1: Said, s2: Said) -> bool:
    alike = s1.early == s2.early and s1.fits
    return alike and (s1.early or s1.what == s2.what)


def _with(relay: Relay, number: int, watched: Watched) -> Relay:
    rounds = (*relay.rounds[:number], watched, *relay.rounds[number + 1 :])
    return relay._replace(rounds=rounds)
