"""What `import optlab` costs beside `import optax`, each in a fresh interpreter, in turns.

    python benchmarks/imports.py                  # writes benchmarks/results/imports.md

`import optlab` alone imports next to nothing, so the third figure, every public name looked up, is the honest one.
Both are read from bytecode, as installed packages are, even where PYTHONDONTWRITEBYTECODE keeps a clone without any.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
PROGRAMS = {
    "import optax": "import optax",
    "import optlab": "import optlab",
    "import optlab, and one optimizer": "import optlab; optlab.muon",
    "import optlab, and every block, optimizer and schedule": (
        "import optlab; optlab.schedules; "
        "[getattr(optlab, n) for n in (*optlab.transforms.__all__, *optlab.optimizers.__all__)]"
    ),
}


def seconds(program: str) -> float:
    command = [sys.executable, "-c", TIMED.format(program)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    for program in PROGRAMS.values():  # into the disk's cache, and compiled to bytecode
        seconds(program)
    rows = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(turns)]
    table = ["| | s, median | ratio to optax, median |", "|---|---|---|"]
    for name in PROGRAMS:
        ratio = statistics.median(row[name] / row["import optax"] for row in rows)
        table.append(f"| `{name}` | {statistics.median(row[name] for row in rows):.3f} | {ratio:.3f} |")
        print(table[-1])
    head = f"`python benchmarks/imports.py --turns {turns}`, Python {platform.python_version()}, two CPU cores"
    (Path(__file__).parent / "results" / "imports.md").write_text("\n".join([head, "", *table]) + "\n")


if __name__ == "__main__":
    main()
