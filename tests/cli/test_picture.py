"""``trace --svg``: what the picture shows, read as a program would read it."""

from xml.etree import ElementTree

import pytest
from alpha_trio_cli import picture

from tests.cli.test_cli import (
    HERE,
    PEER,
    call,
    hop,
    segment,
)

SVG = "{http://www.w3.org/2000/svg}"
TRACE = {
    "schema": 1,
    "peer": "vm2",
    "seconds": 2.0,
    "hops": [HERE, hop("relay", None, "192.168.10.2", 48117, forged=31), PEER],
    "segments": [segment(), segment()],
}


def texts(group):
    return [text.text for text in group.iter(f"{SVG}text")]


def drawn(trace):
    """The picture, and the texts of its nodes and of its links."""
    root = ElementTree.fromstring(picture.svg(trace))
    groups = [*root.iter(f"{SVG}g")]
    hops, links = (
        [texts(group) for group in groups if group.get("class") == kind]
        for kind in ("hop", "link")
    )
    return root, hops, links


def test_the_nodes_and_what_became_of_packets_between_them():
    _, hops, links = drawn(TRACE)
    assert [names[0] for names in hops] == ["here", "relay", "vm2"]
    assert hops[1][1] == "192.168.10.2"
    for shown, told in zip(hops, TRACE["hops"], strict=True):
        assert f"key {told['fingerprint']}" in shown
        assert any(f"{told['forth']['passed']:,} there" in text for text in shown)
    assert "dropped on the way there: forged 31" in hops[1]
    assert len(links) == len(TRACE["segments"])


@pytest.mark.parametrize("kind", ["lost", "altered", "injected", "repeated"])
def test_a_link_on_which_something_happened_stands_out(kind):
    trace = TRACE | {"segments": [segment(4321), segment(4321, **{kind: 12})]}
    root, _, links = drawn(trace)
    assert links[0] == ["nothing of 4,321 lost"]
    assert any("12" in text and kind in text for text in links[1])
    first, second = (g for g in root.iter(f"{SVG}g") if g.get("class") == "link")
    whole, crossed = ([*group.iter(f"{SVG}line")] for group in (first, second))
    assert {line.get("class") for line in whole} == {"fine"}
    assert {line.get("class") for line in crossed} == {"bad"}
    assert len(crossed) > len(whole)


def test_a_link_is_as_thick_as_what_came_through():
    widths = []
    for lost in (0, 50, 100):
        root, *_ = drawn(TRACE | {"segments": [segment(100, lost=lost), segment()]})
        _, behind, *_ = root.iter(f"{SVG}line")
        widths.append(float(behind.get("stroke-width")))
    assert widths[0] > widths[1] > widths[2] > 0


def test_who_did_not_answer_is_drawn_as_such():
    trace = TRACE | {"hops": TRACE["hops"][:-1], "segments": [None]}
    _, hops, links = drawn(trace)
    assert hops[-1][:2] == ["vm2", "no answer"]
    assert "did not answer" in hops[-1][-1]
    assert len(links) == len(hops) - 1
    assert all("not known" in link[0] for link in links)


def test_it_needs_nothing_else_and_can_be_read_aloud():
    root, *_ = drawn(TRACE)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "g", "line", "text"}
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text.endswith("vm2")
    assert "between here and" in root.find(f"{SVG}desc").text
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style


def test_no_name_breaks_it_or_is_cut_off():
    long = "<script>&\"'" + "x" * 50
    hops = [hop | {"name": long} for hop in TRACE["hops"]]
    root, drawn_hops, _ = drawn(TRACE | {"hops": hops, "peer": long})
    assert drawn_hops[-1][0] == long
    (box, *_) = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "node"]
    assert len(long) * 6 < float(box.get("width")) < float(root.get("width"))


def test_it_goes_to_a_file_or_to_standard_output(node, tmp_path):
    call("peers", "add", "vm2", "192.168.10.61")
    node.traced = TRACE
    assert call("trace", "vm2", "--svg", str(tmp_path / "way.svg")) == ""
    written = (tmp_path / "way.svg").read_text()
    assert call("trace", "vm2", "--svg", "-") == written
    assert ElementTree.fromstring(written).tag == f"{SVG}svg"
    said = call("trace", "vm2", "--svg", str(tmp_path / "no" / "way.svg"), code=1)
    assert "No such file or directory" in said
    assert "do not go together" in call("trace", "vm2", "--svg", "-", "--json", code=2)
