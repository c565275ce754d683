"""The drawing of an attack: what was measured is in it, where it belongs."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from tools import plot
from tools.plot import LINK_MEGABITS, Axes, Point

SVG = "{http://www.w3.org/2000/svg}"
RUNS = [
    Point(traffic, relays, attack, arrived)
    for traffic, full in (("TCP", 40), ("UDP", 10))
    for relays in (False, True)
    for attack in (0, 50, 100)
    for arrived in (full if relays else full - attack * full / 100, full / 2, full)
]


@pytest.fixture
def drawing():
    return ElementTree.fromstring(plot.draw(RUNS, ["12 runs", "3 < 4 & so on"]))


def texts(drawing):
    return [element.text for element in drawing.iter(SVG + "text")]


def test_a_line_for_each_traffic_with_relays_and_without(drawing):
    lines = [
        path.get("class")
        for path in drawing.iter(SVG + "path")
        if "line" in path.get("class")
    ]
    assert sorted(lines) == [
        "line with tcp",
        "line with udp",
        "line without tcp",
        "line without udp",
    ]
    named = {"TCP, relays", "UDP, relays", "TCP, no relays", "UDP, no relays"}
    assert named <= set(texts(drawing))


def test_a_line_goes_through_the_medians(drawing):
    (line,) = (
        path.get("d")
        for path in drawing.iter(SVG + "path")
        if path.get("class") == "line without tcp"
    )
    places = [
        tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", line)
    ]
    axes = Axes(100, LINK_MEGABITS)
    expected = [(axes.x(x), axes.y(y)) for x, y in ((0, 40), (50, 20), (100, 20))]
    assert places == [pytest.approx(place, abs=0.1) for place in expected]


def test_everything_is_within_the_drawing(drawing):
    _, _, width, height = map(float, drawing.get("viewBox").split())
    for element in drawing.iter():
        for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(element.get(name, 0)) <= most


def test_units_caption_and_figures_can_be_read(drawing):
    words = texts(drawing)
    assert sum("Mbit/s" in text for text in words) == 2
    assert {"12 runs", "3 < 4 & so on"} <= set(words)
    description = drawing.find(SVG + "desc").text
    assert "TCP without relays: 40.0 at 0, 20.0 at 50, 20.0 at 100" in description


def test_labels_do_not_lie_on_each_other(drawing):
    heights = sorted(
        float(element.get("y"))
        for element in drawing.iter(SVG + "text")
        if element.get("class") in ("with", "without")
    )
    assert all(b - a >= 14 for a, b in pairwise(heights))
