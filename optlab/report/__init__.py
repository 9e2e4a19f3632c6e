"""Reports: one self-contained HTML page, readable on a phone and in the dark, and the same charts as PNGs.

Plotly's script stands in the page once; the page asks for nothing from outside, and its content policy forbids it.
"""

from optlab.report._charts import Chart, Line, distinct, draw
from optlab.report._page import Code, Section, Table, page
from optlab.report._runs import names_of, report_runs

__all__ = ["Chart", "Code", "Line", "Section", "Table", "distinct", "draw", "names_of", "page", "report_runs"]
