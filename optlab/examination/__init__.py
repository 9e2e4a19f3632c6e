"""Diagnoses of runs: their logs are read, and where asked their data and their model are probed.

>>> print(optlab.diagnose("runs/digits", probe=True))
"""

from optlab.examination._diagnose import diagnose

__all__ = ["diagnose"]
