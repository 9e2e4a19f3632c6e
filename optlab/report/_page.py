"""The page: sections of text, tables and charts, in one HTML file."""

from __future__ import annotations

import html
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass

from optlab._extras import need
from optlab.report._charts import Chart, figure

# The browser itself refuses whatever else a script might ask for.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Table:
    """Rows of text under the columns' names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Text as it stands, folded under its title where it has one."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it: a string is a paragraph, a list of strings a list."""

    title: str
    parts: Sequence[str | list[str] | Table | Code | Chart]


def page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML. All text is escaped.

    Raises:
        MissingExtraError: without plotly.
    """
    need("a report", "plotly", extra="compare")
    from plotly.offline import get_plotlyjs

    charts = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    data = json.dumps([figure(c) for c in charts], allow_nan=False).replace("<", "\\u003c")
    own = importlib.resources.files("optlab.report")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>\n{(own / 'page.css').read_text()}</style>\n</head>",
            f"<body>\n<main>\n<h1>{html.escape(title)}</h1>",
            *map(_section, sections),
            f'</main>\n<script type="application/json" id="charts">{data}</script>',
            f"<script>{get_plotlyjs()}</script>" if charts else "<script>const Plotly = null;</script>",
            f"<script>\n{(own / 'page.js').read_text()}</script>\n</body>\n</html>\n",
        ]
    )


def _section(section: Section) -> str:
    return "\n".join([f"<section>\n<h2>{html.escape(section.title)}</h2>", *map(_part, section.parts), "</section>"])


def _part(part: str | list[str] | Table | Code | Chart) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, list):
        return "\n".join(["<ul>", *(f"<li>{html.escape(text)}</li>" for text in part), "</ul>"])
    if isinstance(part, Table):
        row = lambda cells, tag: f"<tr>{''.join(f'<{tag}>{html.escape(str(c))}</{tag}>' for c in cells)}</tr>"
        body = "\n".join(row(cells, "td") for cells in part.rows)
        head = row(part.columns, "th")
        table = f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"
        return f'<div class="wide" tabindex="0">{table}</div>'
    if isinstance(part, Code):
        text = f"<pre>{html.escape(part.text)}</pre>"
        return f"<details><summary>{html.escape(part.title)}</summary>{text}</details>" if part.title else text
    return _chart(part)


def _chart(chart: Chart) -> str:
    buttons = "".join(
        f'<button type="button" data-chart="{chart.key}" data-view="{html.escape(label)}" '
        f'aria-pressed="{str(not i).lower()}">{html.escape(label)}</button>'
        for i, label in enumerate([chart.x, *chart.views])
    )
    return "\n".join(
        [
            f"<h3>{html.escape(chart.title)}</h3>",
            f'<div class="views" role="group" aria-label="abscissa">{buttons}</div>' if chart.views else "",
            f'<div class="chart" id="{chart.key}" role="img" aria-label="{html.escape(chart.title)}"></div>',
            f'<dl class="details" id="{chart.key}-details" aria-live="polite"></dl>',
            f'<p class="soft">{html.escape(chart.note)}</p>' if chart.note else "",
        ]
    )
