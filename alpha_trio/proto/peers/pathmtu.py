"""How large a packet the path to a peer takes: a search, a watch, a memory.

RFC 8899 (and RFC 8201 for what IPv6 calls a path), with its words in brackets.  Nothing
here believes ICMP, which anybody can forge: a size counts when a datagram of that size
was answered by the peer [PL_PTB_SIZE is not used].

    ASSUMED  --it arrives-->  KNOWN
    ASSUMED, KNOWN  --it is lost, twice, and between them a smaller one arrives-->
             SEARCH from the smaller one upward  -->  KNOWN
    KNOWN    --ten minutes, or the routes changed-->  SEARCH from what is in use

Until the first probe is answered, what the link says is assumed: the first packet is
often a TCP SYN, and the segment size in it cannot grow later.  One lost probe is not
believed: a host that is busy, or a path that loses much, answers too late as well, and
to fall costs every connection its segment size.

All sizes are bytes of outer IP packets.  Who sends the probes calls ``next_probe`` when
``deadline`` has come, and ``on_arrived``, ``on_lost`` or ``on_silence`` for each; one
is under way at a time.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from math import inf

from attrs import define, field, frozen

BASE = 1280
"""What nearly every path takes, and every IPv6 one has to [BASE_PLPMTU]."""

LEAST = {4: 576, 6: 1280}
"""What every legal path takes, by IP version [MIN_PLPMTU]."""

# Where paths end as a rule: IPv6's least, tunnels, mobile networks, PPPoE, Ethernet,
# and what jumbo frames are sold as.  What lies between is found by halving.
LADDER = (
    *(576, 1024, 1200, 1280, 1300, 1340, 1372, 1400, 1420, 1440, 1460, 1472, 1480),
    *(1492, 1500, 2048, 4352, 8166, 9000, 9216, 16384, 32768, 65535),
)
MOST_PROBES = 10  # of one search
ENOUGH = 8  # bytes of difference for which no further probe is worth its while
STEP = 4  # bytes; sizes found by halving are multiples

# All in seconds.
CHECK_EVERY = 0.8  # the size in use, while it is used [less than RFC 8899's 15 s]
GROW_EVERY = 600.0  # [PMTU_RAISE_TIMER]
GROW_SPACING = 5.0  # between searches for other reasons
SILENCE_FIRST, SILENCE_MAX = 1.0, 60.0  # the peer does not answer; doubled each time


class Source(StrEnum):
    """How a size was found, as ``status`` shows it."""

    ROUTE = "route"  # the link or a route says so, and nothing has disproved it
    PROBED = "probed"
    SET = "set"  # by the operator


class Phase(Enum):
    """What the next probe is for."""

    OFF = auto()  # nothing is known of the path, or the operator knows better
    ASSUMED = auto()
    SEARCH = auto()
    KNOWN = auto()


class Check(Enum):
    """How far the check of a size in use has come."""

    NONE = auto()
    FIRST = auto()  # the size in use
    SMALLER = auto()  # it was lost: does a smaller one arrive?
    AGAIN = auto()  # that one did: so once more


@frozen
class Tried:
    """One probe and what came of it, for ``doctor``."""

    size: int
    result: str  # "arrived", "lost" or "no answer"
    why: str
    at: float  # s


@define(eq=False)
class PathMtu:
    """One direction of one path."""

    version: int = 4  # of the outer IP
    ceiling: int = 0  # what the link or the route takes; 0: not known
    size: int = 0  # in use
    source: Source = Source.ROUTE
    phase: Phase = Phase.OFF
    tried: list[Tried] = field(factory=list)  # in the latest search, in order
    asked: int | None = None  # the size that a probe is under way for
    _good: int = 0  # largest that is known to arrive
    _lost: dict[int, int] = field(factory=dict)  # size -> how often
    _left: int = 0  # probes of this search
    _due: float = inf  # the next probe of a search
    _grow_at: float = inf
    _check_at: float = inf
    _check: Check = Check.NONE
    _checked: list[Tried] = field(factory=list)  # by the present check
    _why: str = ""
    _searched: float = -inf  # when the latest search began
    _silence: float = SILENCE_FIRST

    @property
    def least(self) -> int:
        """What any path takes; what the link takes, if that is even less."""
        return min(LEAST[self.version], self.ceiling)

    @property
    def floor(self) -> int:
        """What to fall to when the size in use is lost."""
        base = min(BASE, self.ceiling)
        return base if self.size > base else self.least

    @property
    def deadline(self) -> float:
        """When ``next_probe`` wants to be called, seconds."""
        if self.asked is not None or self.phase is Phase.OFF:
            return inf
        return min(self._due, self._check_at, self._grow_at)

    @property
    def grows_at(self) -> float:
        """When larger packets are tried again, seconds; inf: no need."""
        return self._grow_at

    # -- what is told from outside -----------------------------------------------------

    def begin(self, version: int, ceiling: int, now: float) -> None:
        """Another path, or another link before it: forget, and assume what it says."""
        self.version, self.ceiling = version, ceiling
        self.size, self.source, self.phase = ceiling, Source.ROUTE, Phase.ASSUMED
        self._start("the path is new", now)
        self._due, self._check_at, self._check = inf, now, Check.FIRST
        self._good = 0

    def stop(self, version: int, ceiling: int) -> None:
        """Ask nothing: assume what the link says."""
        self.version, self.ceiling, self.size = version, ceiling, ceiling
        self.source, self.phase = Source.ROUTE, Phase.OFF
        self.tried, self.asked = [], None

    def route_changed(self, now: float) -> None:
        """Some route of the host is another one now: there may be more room."""
        if self.phase is Phase.KNOWN and self.size < self.ceiling:
            self._grow_at = min(self._grow_at, max(now, self._searched + GROW_SPACING))

    def pause(self) -> None:
        """Nobody can be asked, until ``resume``."""
        self._due = self._grow_at = self._check_at = inf

    def resume(self, now: float) -> None:
        """There is a new session: what was asked in another one nobody will answer."""
        self.asked = None
        self._resume(now)

    def in_use(self, now: float) -> None:
        """Packets are being sent: look in a while whether they were large."""
        if (
            self.phase is Phase.KNOWN
            and self._check_at == inf
            and self.size > self.least
        ):
            self._check_at = now + CHECK_EVERY

    # -- probes ------------------------------------------------------------------------

    def next_probe(self, now: float, *, large: bool) -> int | None:
        """The size to ask for now, if any.

        ``large``: whether packets above ``floor`` were sent since the last call.
        """
        if now < self.deadline:
            return None
        if now >= self._check_at:
            if large or self._check is not Check.NONE:
                return self._ask_check()
            self._check_at = inf
        if now >= self._grow_at:
            self._start("larger packets are tried from time to time", now)
            self._good, self.phase = self.size, Phase.SEARCH
        if now >= self._due:
            return self._ask_search(now)
        return None

    def _start(self, why: str, now: float) -> None:
        self.tried, self._checked = self._checked, []
        self._lost, self._left = {}, MOST_PROBES - len(self.tried)
        self.asked = None
        self._due, self._grow_at, self._check_at = now, inf, inf
        self._check, self._why, self._searched = Check.NONE, why, now

    def _ask_check(self) -> int:
        if self._check is Check.NONE:
            self._check, self._checked = Check.FIRST, []
        self.asked = self.floor if self._check is Check.SMALLER else self.size
        return self.asked

    def _ask_search(self, now: float) -> int | None:
        size = self._candidate()
        if size is None:  # the route has changed meanwhile
            self._end(now)
            return None
        self._left -= 1
        self._due, self.asked = inf, size
        return size

    def _candidate(self) -> int | None:
        """The next size of a search, between what arrives and what was lost."""
        good, bad = self._good, self._smallest_lost
        if bad > self.ceiling:
            return self.ceiling if good < self.ceiling else None
        if good < self.size and self.size not in self._lost:
            return self.size  # the safe base, before anything is built on it
        between = [size for size in LADDER if good < size < bad]
        if between:
            return between[len(between) // 2]
        if bad - good > ENOUGH:
            return max(good + STEP, (good + bad) // 2 // STEP * STEP)
        return bad if self._lost[bad] == 1 else None  # chance may have lost it

    @property
    def _smallest_lost(self) -> int:
        larger = (size for size in self._lost if size > self._good)
        return min(larger, default=self.ceiling + 1)

    def _go_on(self, now: float) -> None:
        """Ask on at once; a search with nothing left to ask is over."""
        if self._left and self._candidate() is not None:
            self._due = now
        else:
            self._end(now)

    def _end(self, now: float) -> None:
        self.phase, self._due = Phase.KNOWN, inf
        self.size = max(self.size, self._good)
        self._grow_at = inf if self.size >= self.ceiling else now + GROW_EVERY

    # -- answers -----------------------------------------------------------------------

    def on_arrived(self, now: float) -> None:
        """The probe under way was answered."""
        size = self._answered("arrived", now)
        self._silence = SILENCE_FIRST
        if self._check is Check.SMALLER:
            self._check, self._check_at = Check.AGAIN, now
        elif self._check is Check.NONE:
            self._good = max(self._good, size)
            self._lost.pop(size, None)
            self.size, self.source = max(self.size, size), Source.PROBED
            self._go_on(now)
        elif self.phase is Phase.ASSUMED:
            self.tried, self.source, self._good = self._checked, Source.PROBED, size
            self._check, self._check_at = Check.NONE, inf
            self._end(now)
        else:
            self._check, self._check_at = Check.NONE, now + CHECK_EVERY

    def on_lost(self, now: float, *, surely: bool = False) -> None:
        """It was not, though the peer answers; ``surely``: packets say so, too."""
        size = self._answered("lost", now)
        if self._check is Check.NONE:
            self._lost[size] = self._lost.get(size, 0) + 1
            if size <= self.size:  # a base that is none
                self.size = self._good = self.least
            self._go_on(now)
        elif surely and self.size > self.least:
            self._fall(self.floor, size, now, proven=False)
        else:
            self._on_check_lost(now)

    def _on_check_lost(self, now: float) -> None:
        if self._check is Check.FIRST and self.size > self.least:
            self._check, self._check_at = Check.SMALLER, now
        elif self._check is Check.AGAIN:
            self._fall(self.floor, self.size, now)
        elif self._check is Check.SMALLER and self.floor > self.least:
            # Not even the base: then less than that, and all anew from there.
            self._fall(self.least, self.floor, now)
        else:  # there is nothing smaller, so it is not the size
            self._put_off(now)

    def _fall(self, size: int, lost: int, now: float, *, proven: bool = True) -> None:
        assumed = self.phase is Phase.ASSUMED
        self._start(self._why if assumed else "the path has become narrower", now)
        self._lost[lost] = 2
        self.size, self.source, self.phase = size, Source.PROBED, Phase.SEARCH
        # ``least`` need not be proven: there is nothing smaller to fall to.
        self._good = size if proven or size == self.least else 0

    def on_silence(self, now: float) -> None:
        """The peer answers nothing, so nothing follows from it."""
        self._answered("no answer", now)
        self._put_off(now)

    def _put_off(self, now: float) -> None:
        self._resume(now + self._silence)
        self._silence = min(2 * self._silence, SILENCE_MAX)

    def _resume(self, when: float) -> None:
        """Ask what was to be asked anew: what nobody could answer was no probe."""
        self._check, self._check_at, self._checked = Check.NONE, inf, []
        if self.phase is Phase.ASSUMED:
            self._check, self._check_at = Check.FIRST, when
        elif self.phase is Phase.SEARCH:
            self._due = when
            self._left = min(self._left + 1, MOST_PROBES)
        elif self.phase is Phase.KNOWN and self.size < self.ceiling:
            self._grow_at = max(when, self._searched + GROW_EVERY)

    def _answered(self, result: str, now: float) -> int:
        assert self.asked is not None
        size, self.asked = self.asked, None
        tried = self.tried if self._check is Check.NONE else self._checked
        why = "what is in use is checked" if self.phase is Phase.KNOWN else self._why
        tried.append(Tried(size, result, why, now))
        return size
