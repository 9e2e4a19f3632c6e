"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The page's colours, as Plotly names them.
const theme = () => ({
  "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font.color": colour("--ink"),
  "xaxis.gridcolor": colour("--line"), "yaxis.gridcolor": colour("--line"),
  "xaxis.linecolor": colour("--line"), "yaxis.linecolor": colour("--line"),
  "hoverlabel.bgcolor": colour("--card"), "hoverlabel.font.color": colour("--ink"),
});

// A click on a point: what its trial was.
function show(chart, point) {
  const place = document.getElementById(chart.id + "-details");
  place.replaceChildren();
  for (const [label, value] of point.customdata || []) {
    const term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = label;
    what.textContent = value;
    place.append(term, what);
  }
}

// Another abscissa, or the first one again.
function view(chart, place, label) {
  const x = chart.views[label] || chart.data.map(trace => trace.x);
  Plotly.update(place, {x}, {"xaxis.title.text": label, "xaxis.autorange": true});
  for (const button of document.querySelectorAll(`[data-chart="${chart.id}"]`))
    button.setAttribute("aria-pressed", String(button.dataset.view === label));
}

const drawn = charts.map(async chart => {
  const place = document.getElementById(chart.id);
  await Plotly.newPlot(place, chart.data.map(trace => ({...trace})), chart.layout, {responsive: true, displayModeBar: false});
  await Plotly.relayout(place, theme());
  place.on("plotly_click", event => show(chart, event.points[0]));
  for (const button of document.querySelectorAll(`[data-chart="${chart.id}"]`))
    button.addEventListener("click", () => view(chart, place, button.dataset.view));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) Plotly.relayout(document.getElementById(chart.id), theme());
});
Promise.all(drawn).then(() => document.body.dataset.drawn = String(charts.length));
