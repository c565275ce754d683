"""``trace NAME --svg``: the way to a peer as a picture, and where packets died on it.

One file that needs no other: no scripts, no fonts from elsewhere.  The colours follow
the reader's scheme, and what a colour says is written as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from .screen import columns, folded
from .words import became, node, place_of_hop, trace_lines

Document = Mapping[str, Any]

LEFT, TOP = 28, 86  # of the first node
BOX, STEP = 58, 128  # height of a node, and from one to the next
AXIS = LEFT + 36  # where the links are
LETTER = 7.4  # of 13 px, at most, on average
LINE = 18
THICK, THIN = 7.0, 1.5  # a link that all packets passed, and one that hardly any did

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 }
  .name { font-weight: 600 }
  .small { font-size: 11px; fill: #57606a }
  .page { fill: #ffffff }
  .node { fill: #f6f8fa; stroke: #57606a }
  .fine { stroke: #1a7f37 }
  .bad { stroke: #c62828 }
  .unknown { stroke: #57606a; stroke-dasharray: 4 5 }
  text.fine { fill: #1a7f37; stroke: none }
  text.bad { fill: #c62828; stroke: none }
  text.unknown { fill: #57606a; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .page { fill: #0d1117 }
    .node { fill: #161b22; stroke: #9198a1 }
    .fine { stroke: #3fb950 }
    .bad { stroke: #ff7b72 }
    .unknown { stroke: #9198a1 }
    text.fine { fill: #3fb950 }
    text.bad { fill: #ff7b72 }
    text.unknown { fill: #9198a1 }
  }
"""


class _Note(NamedTuple):
    """A text beside a node or a link, and what kind of news it is."""

    text: str
    kind: str = ""


class _Stop(NamedTuple):
    """A node as it is drawn: what is in its box, and what beside it."""

    names: Sequence[str]
    notes: Sequence[_Note]
    kind: str = ""


def svg(trace: Document) -> str:
    """The picture of a trace document."""
    first, *lines = trace_lines(trace)
    title = f"The way from here to {trace['peer']}"
    subtitle = f"{first.rstrip(':')}: what became of datagrams with a packet"
    stops = [*_stops(trace)]
    links = [*trace["segments"], *([None] * (len(stops) - len(trace["segments"]) - 1))]

    box = _wide(name for stop in stops for name in stop.names) + 24
    aside = LEFT + box + 24
    notes = [note.text for stop in stops for note in stop.notes]
    notes += [note.text for link in links for note in _news(link)]
    width = max(aside + _wide(notes), LEFT + _wide([title, subtitle])) + LEFT
    more = [line for line in lines if not line.startswith("  ")]
    letters = int((width - 2 * LEFT) / LETTER * 13 / 11)
    small = [part for line in more for part in folded(line, letters)]
    end = TOP + STEP * (len(stops) - 1) + BOX + 36
    height = end + LINE * len(small)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(" ".join([first, *map(str.strip, lines)]))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        _text(LEFT, 36, _Note(title, "title")),
        _text(LEFT, 58, _Note(subtitle, "small")),
    ]
    for number, link in enumerate(links):
        parts += _link(TOP + STEP * number + BOX, link)
    for number, stop in enumerate(stops):
        parts += _stop(TOP + STEP * number, stop, box, aside)
    small_notes = (_Note(line, "small") for line in small)
    parts += [_text(LEFT, end + LINE * n, note) for n, note in enumerate(small_notes)]
    return "".join(f"{part}\n" for part in [*parts, "</svg>"])


def _stops(trace: Document) -> Iterator[_Stop]:
    """The nodes that answered, and at last the peer, though it did not."""
    for hop in trace["hops"]:
        where = hop["address"] or "the host that asked"
        names = [node(hop), where, f"key {hop['fingerprint']}"]
        yield _Stop(names, [*_counts(hop)])
    if trace["hops"][-1]["role"] != "peer":
        after = place_of_hop(trace["hops"][-1])
        lost = _Note(f"did not answer: look behind {after}", "bad")
        yield _Stop([trace["peer"], "no answer"], [lost], "unknown")


def _counts(hop: Document) -> Iterator[_Note]:
    there, back = hop["forth"], hop["back"]
    yield _Note(f"{there['passed']:,} there, {back['passed']:,} back, in this session")
    for way, counts in (("there", there), ("back", back)):
        drops = [f"{why} {count:,}" for why, count in counts["drops"].items() if count]
        if drops:
            yield _Note(f"dropped on the way {way}: {', '.join(drops)}", "bad")


def _news(segment: Document | None) -> list[_Note]:
    """What became of packets between two nodes, a line for each thing."""
    kind = _kind(segment)
    return [_Note(part, kind) for part in became(segment).split(", ")]


def _kind(segment: Document | None) -> str:
    if segment is None:
        return "unknown"
    wrong = ("lost", "altered", "injected", "repeated")
    return "bad" if any(segment[how] for how in wrong) else "fine"


def _link(top: int, segment: Document | None) -> Iterator[str]:
    """From one node to the next: as thick, behind the middle, as what came through."""
    kind, long = _kind(segment), STEP - BOX
    middle, bottom = top + long // 2, top + long
    through = 1.0
    if segment is not None and segment["packets"]:
        died = segment["lost"] + segment["altered"]
        through = max(0.0, 1 - died / segment["packets"])
    yield '<g class="link">'
    yield _line(kind, AXIS, top, AXIS, middle, THICK)
    yield _line(kind, AXIS, middle, AXIS, bottom, max(THICK * through, THIN))
    if kind == "bad":
        for slope in (-1, 1):
            ends = AXIS - 9, middle - 9 * slope, AXIS + 9, middle + 9 * slope
            yield _line(kind, *ends, 3)
    news = _news(segment)
    first = middle + 5 - LINE * (len(news) - 1) // 2
    for number, note in enumerate(news):
        yield _text(AXIS + 24, first + LINE * number, note)
    yield "</g>"


def _stop(top: int, stop: _Stop, box: int, aside: int) -> Iterator[str]:
    yield '<g class="hop">'
    dashes = ' stroke-dasharray="4 5"' if stop.kind == "unknown" else ""
    yield (
        f'<rect class="node" x="{LEFT}" y="{top}" width="{box}" height="{BOX}" '
        f'rx="6"{dashes}/>'
    )
    kinds = ("name", "", "small")
    for number, (name, kind) in enumerate(zip(stop.names, kinds, strict=False)):
        yield _text(LEFT + 12, top + 19 + 16 * number, _Note(name, kind))
    first = top + BOX // 2 + 5 - LINE * (len(stop.notes) - 1) // 2
    for number, note in enumerate(stop.notes):
        yield _text(aside, first + LINE * number, note)
    yield "</g>"


def _wide(texts: Iterator[str] | Sequence[str]) -> int:
    """About how wide the widest of them is."""
    return round(max(map(columns, texts)) * LETTER)


def _text(x: int, y: int, note: _Note) -> str:
    kind = f' class="{note.kind}"' if note.kind else ""
    return f'<text x="{x}" y="{y}"{kind}>{escape(note.text)}</text>'


def _line(kind: str, x1: int, y1: int, x2: int, y2: int, width: float) -> str:
    return (
        f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" '
        f'stroke-width="{width:.3g}"/>'
    )
