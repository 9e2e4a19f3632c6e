"""`optlab diagnose RUN…`: says what is wrong with a run, how that shows, and what to try next."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from optlab._extras import need

if TYPE_CHECKING:
    from optlab.diagnosis import Diagnosis

HELP = "say what is wrong with a run, and what to try next"
DESCRIPTION = (
    "Reads what runs have logged, and names what is wrong with each: with the evidence, what to try next, and the "
    "source of the rule. Writes it as diagnosis.md into the run's folder, beside a picture of the evidence."
)
EPILOG = "The exit code is 0 if all runs are healthy, 1 if one is ill, and 2 if one can't be read."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="look at the data and at the model's layers, too, at the latest checkpoint or else the initialization",
    )
    parser.add_argument(
        "--twins",
        action="store_true",
        help="train on for a tenth of its steps, at half and double the learning rate, with another seed, with larger "
        "batches, and infer from the difference",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the diagnoses, also if other runs can't be read. Returns 1 if a run is ill."""
    need("optlab diagnose", "numpy")
    from optlab.config import ConfigError
    from optlab.examination import diagnose
    from optlab.runs import Run

    found: list[Diagnosis] = []
    unread: list[str] = []
    for folder in arguments.runs:
        try:
            run = Run(folder)
            diagnosis = diagnose(run, probe=arguments.probe, twins=arguments.twins)
        except (FileNotFoundError, TypeError, ValueError) as error:
            unread.append(str(error))
            continue
        print(f"\n{diagnosis}" if found else diagnosis, flush=True)
        found.append(diagnosis)
        try:
            diagnosis.write(run.folder)
        except OSError as error:
            unread.append(f"{run.folder} can't be written to: {error}")
    if unread:
        raise ConfigError("\noptlab: ".join(unread))
    return 0 if all(diagnosis.is_healthy for diagnosis in found) else 1
