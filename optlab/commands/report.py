"""`optlab report RUNS…`: one page of runs, or of studies."""

from __future__ import annotations

import argparse
from pathlib import Path

from optlab._extras import need
from optlab.config import ConfigError

HELP = "write one HTML page: curves of runs, and where their configs differ"
DESCRIPTION = (
    "Writes one self-contained HTML page of some run folders: how they ended, which keys of their configs differ, and "
    "their curves. Of several studies' folders: their verdicts, and a performance profile over their workloads."
)
EPILOG = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("folders", metavar="RUN", nargs="+", type=Path, help="a run's folder, or a study's")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the page (default: report.html in the common folder)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    need("optlab report", "plotly", extra="compare")
    folders = [folder.expanduser() for folder in arguments.folders]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"{missing[0]} is no folder; name run folders, such as runs/digits")
    studies = [folder for folder in folders if (folder / "trials.jsonl").exists()]
    if studies and len(studies) < len(folders):
        raise ConfigError(f"{studies[0]} is a study, and not all of the others are: report runs and studies apart")
    if unfinished := [folder for folder in studies if not (folder / "verdict.json").exists()]:
        raise ConfigError(f"{unfinished[0]} has no verdict yet: run its optlab compare to the end")
    if studies:
        need("optlab report", "scipy", extra="compare")
        from optlab.compare.report import report_studies

        text = report_studies(studies)
    else:
        from optlab.report import report_runs

        text = report_runs(folders)
    out = arguments.out or _common(folders) / "report.html"
    out.write_text(text)
    print(out)
    return 0


def _common(folders: list[Path]) -> Path:
    """The folder itself, or the closest one that all are in."""
    if len(folders) == 1:
        return folders[0]
    found = folders[0].parent
    while not all(folder.resolve().is_relative_to(found.resolve()) for folder in folders):
        found = found.resolve().parent
    return found
