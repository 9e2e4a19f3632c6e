"""The page and its charts: what stands in them, without a browser."""

import json
import math
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from optlab.report import Chart, Code, Line, Section, Table, draw, page
from optlab.report._charts import figure

BANDED = Line("a", [1, 2, 3], [1.0, math.nan, 3.0], low=[0.5, 1, 2], high=[2, 3, 9.0])
POINTS = Line("b", [1, 2], [1.0, 2.0], 1, style="points", details=[[("rate", "0.1")], [("rate", "0.2")]])
CHART = Chart("both", "Both", "steps", "loss", [BANDED, POINTS], views={"seconds": [[0.5, 1.0, 2.0], [2.0, 4.0]]})


class Outline(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_chart_is_what_plotly_understands():
    made = figure(CHART)
    go.Figure({"data": made["data"], "layout": made["layout"]})  # raises for whatever Plotly doesn't know
    low, high, line, points = made["data"]
    assert high["fill"] == "tonexty"
    assert low["legendgroup"] == high["legendgroup"] == line["legendgroup"] == "a"
    assert line["y"] == [1.0, None, 3.0]
    assert points["customdata"] == [[["rate", "0.1"]], [["rate", "0.2"]]]
    assert made["views"] == {"seconds": [[0.5, 1.0, 2.0]] * 3 + [[2.0, 4.0]]}


def test_a_wide_band_does_not_flatten_the_lines():
    wide = Chart("k", "", "", "", [Line("a", [0, 1], [1.0, 2.0], low=[-100, -100], high=[100, 100])])
    assert wide.y_range() == pytest.approx((0.45, 2.55))
    narrow = Chart("k", "", "", "", [Line("a", [0, 1], [1.0, 2.0], low=[0.9, 1.9], high=[1.1, 2.1])])
    assert narrow.y_range() == pytest.approx((0.85, 2.15))


def test_an_axis_is_logarithmic_only_where_all_is_positive():
    make = lambda *y: Chart("k", "", "", "", [Line("a", [1, 2], y)], log_y=True)
    assert figure(make(1.0, 10.0))["layout"]["yaxis"]["type"] == "log"
    assert figure(make(0.0, 10.0))["layout"]["yaxis"]["type"] == "linear"
    assert make(1.0, 10.0).y_range() == pytest.approx((-0.05, 1.05))
    low = figure(Chart("k", "", "", "", [Line("a", [1], [1.0], low=[-2.0], high=[10.0])], log_y=True))["data"][0]
    assert low["y"] == pytest.approx([10**-0.05])  # a null there would be a gap in the band


def test_a_page_needs_nothing_from_outside_and_is_well_formed():
    text = page("T", [Section("S", ["one", ["two", "three"], Table(["a"], [["1"]]), Code("x", "fold"), CHART])])
    outline = Outline(text)
    assert not outline.open
    assert not [attrs for tag, attrs in outline.found if "src" in attrs or "href" in attrs]
    policy = next(a["content"] for tag, a in outline.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.found
    ids = [a["id"] for _, a in outline.found if "id" in a]
    assert {"both", "both-details", "charts"} <= set(ids)
    assert text.count("plotly.js v") <= 1
    assert "prefers-color-scheme: dark" in text


def test_text_is_text_wherever_it_stands():
    evil = "</script><script>alert(1)</script>"
    chart = Chart("k", evil, evil, evil, [Line(evil, [0], [1.0], details=[[(evil, evil)]])])
    text = page(evil, [Section(evil, [evil, [evil], Table([evil], [[evil]]), Code(evil, evil), chart])])
    assert evil not in text
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text).group(1)
    assert json.loads(data)[0]["data"][0]["name"] == evil


def test_a_chart_is_drawn_as_a_png(tmp_path):
    draw(CHART, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
