"""One side of one section: python -m on_gpu MODULE SIDE ROWS DEADLINE DEVICE, started by `benchmarks/gpu.py`."""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import time
import traceback

from on_gpu.bench import Bench, first_line
from on_gpu.floors import chip_of


def main() -> int:
    module, side, rows, deadline, device = sys.argv[1:]
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints into the log: what was standard output is the driver's
    faulthandler.dump_traceback_later(max(0.1, float(deadline) - time.time() - 2))  # where it hung
    with open(rows, "a") as file:
        bench = Bench(device == "cpu", float(deadline), chip_of(device), file, (sys.stdin, said))
        try:
            getattr(importlib.import_module(module), side)(bench)
        except Exception as error:
            traceback.print_exc()
            bench.failed(side, error)
            print(f"{side}: {first_line(error)}", file=sys.stderr)
        sys.stderr.flush()
        said.close()
    # The rows are written: torch's and XLA's threads, and their teardown, are nobody's concern.
    os._exit(1 if bench.failures else 0)


if __name__ == "__main__":
    sys.exit(main())
