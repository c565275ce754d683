"""The rules that can be taken away, one by one, to see which attack each of them meets.

The first nine, and those of early data, are answers to attacks that work without them;
the others are the base of it all, and there to show that the properties can fail.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Rules:
    """True: as docs/model.md has it."""

    answers_from_there: bool = True
    """A relay takes ACK and A1 only from the side and the address its SYN or S1 went
    to, and S2s only to there.  Without: from anywhere."""

    place_for_live_key: bool = True
    """A relay keeps a place for the ACK of the responder that the initiator has a live
    session with.  Without: the last three ACKs to a SYN, whoever signed them."""

    old_carries_on: bool = True
    """An end sends in the old session until something authentic came in the new one.
    Without: until it has the new one, which is with the ACK or the ACKACK."""

    proof_covers_syn: bool = True
    """The proof that a SYN renews a session is about all of it.  Without: its nonce."""

    answers_apart: bool = True
    """The responder keeps apart answers to SYNs that showed a session, that came from
    where the peer is, and others, a few of each.  Without: one for each address."""

    ack_for_every_variant: bool = True
    """Cookies are not signed: an ACK is for the SYN with whatever cookie, and the SYN
    is repeated without as well.  Without: only for the SYN as it was sent last, which
    takes one cookie, in the place of the proof of renewal."""

    several_s1s: bool = True
    """A relay keeps several S1s of a round, lets A1s to several of them pass, and the
    key decides.  Without: the first S1 and one more, and the first A1 freezes."""

    s1s_before_a1: bool = True
    """None of these S1s is one that came after the round's first A1.  Without: until
    the key has come, the attacker may have it before."""

    answered_at_home: bool = True
    """A repeated S1 is answered where the peer is known to be, too.  Without: where it
    came from only."""

    key_after_a1: bool = True
    """The sender discloses a key when the A1 has come.  Without: when it likes."""

    s1_freezes: bool = True
    """The receiver takes one S1 for a round.  Without: the last one."""

    each_once: bool = True
    """The receiver notes what came.  Without: it does not."""

    tag_of_s1: bool = True
    """The receiver checks the tag of an S1.  Without: its element only."""

    digest_of_a1: bool = True
    """The sender takes an A1 to exactly its S1, with the tag.  Without: to any."""

    all_is_signed: bool = True
    """Signatures are over all of SYN and ACK.  Without: not over shares and anchors."""

    # Of early data

    early_when_accepted: bool = True
    """Early data is delivered when its S1 is accepted.  Without: whenever that comes,
    and so with each repetition."""

    early_beyond_last: bool = True
    """Only an S1 whose element lies beyond the last accepted one is new.  Without: one
    of any round that is not remembered."""

    early_once_sent: bool = True
    """What went early goes in no other round and no other session.  Without: it goes
    again if its round is given up, or the session is renewed, before an A1 came."""

    early_if_agreed: bool = True
    """Who did not give the option refuses early data.  Without: it is taken."""

    proof_brings_nothing: bool = True
    """The S2 of early data is the key and delivers nothing.  Without: it delivers what
    its S1 had, as S2s do."""

    early_bounded: bool = True
    """A relay has room for so much early data that is not proven.  Without: no end."""

    early_copies_apart: bool = True
    """Copies and other versions of an S1 have room of their own there.  Without: they
    share that of the first ones."""

    early_back_if_signed: bool = True
    """A relay gives room back for what fits the key.  Without: for what an A1 came."""

    early_false_ends: bool = True
    """If an A1 came for early data, and none fits the key, no more of it passes.
    Without: more does, as far as there is room."""

    early_false_of_all: bool = True
    """But only if all that was agreed to is early data.  Without: also if there was an
    S1 of another shape, of which it is not known yet."""

    def without(self, *names: str) -> Rules:
        """These rules but for some."""
        assert set(names) <= {field.name for field in fields(self)}
        return replace(self, **dict.fromkeys(names, False))


ALL = Rules()
