"""The page in headless Chromium, where the machine has one."""

import json
import re

import pytest

from optlab.report import Chart, Line, Section, page

# What a person does, with a person's events: toggles a curve in the legend, clicks on a point, takes another abscissa.
ACTIONS = """
<script>
const wait = ms => new Promise(done => setTimeout(done, ms));
const mouse = (target, kind, x, y) =>
  target.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: x, clientY: y, view: window}));
(async () => {
  while (!document.body.dataset.drawn) await wait(50);
  const found = {}, place = document.getElementById("k");
  place.scrollIntoView();
  const toggle = place.querySelector(".legendtoggle");
  mouse(toggle, "mousedown"); mouse(toggle, "mouseup");
  await wait(800);
  found.visible = place.data.map(trace => trace.visible);
  const {xaxis, yaxis} = place._fullLayout, box = place.querySelector(".nsewdrag").getBoundingClientRect();
  const x = box.left + xaxis.d2p(2), y = box.top + yaxis.d2p(5), drag = place.querySelector(".nsewdrag");
  mouse(drag, "mousemove", x, y); await wait(300);
  mouse(drag, "mousedown", x, y); mouse(drag, "mouseup", x, y); await wait(500);
  found.details = document.getElementById("k-details").textContent;
  document.querySelector('[data-view="seconds"]').click(); await wait(500);
  found.x = place.data.map(trace => trace.x);
  found.title = place.layout.xaxis.title.text;
  found.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  found.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.found = JSON.stringify(found);
})();
</script>
"""


@pytest.mark.slow
def test_a_person_can_use_the_page(opened):
    details = [[("trial", f"mine/0/search/{i}/0")] for i in range(3)]
    lines = [
        Line("band", [1, 2, 3], [1.0, 2.0, 3.0], low=[0, 1, 2], high=[2, 3, 4]),
        Line("points", [1, 2, 3], [4.0, 5.0, 6.0], 1, style="points", details=details),
    ]
    chart = Chart("k", "Chart", "steps", "loss", lines, views={"seconds": [[0.5, 1.0, 1.5], [2, 4, 6]]})
    text = page("T", [Section("S", [chart])]).replace("</body>", ACTIONS + "</body>")
    dom = opened(text, "--window-size=700,900", "--virtual-time-budget=20000")
    shown = re.search(r'<body[^>]* data-found="([^"]*)"', dom)
    assert shown is not None, dom[-500:]
    found = json.loads(shown.group(1).replace("&quot;", '"'))
    assert found["visible"][:3] == ["legendonly"] * 3  # the curve with its band
    assert found["visible"][3] != "legendonly"
    assert found["details"] == "trialmine/0/search/1/0"
    assert found["x"] == [[0.5, 1.0, 1.5]] * 3 + [[2, 4, 6]]
    assert found["title"] == "seconds"
    assert found["requests"] == []
    assert found["width"] <= 0  # nothing to scroll sideways
