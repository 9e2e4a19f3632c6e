"""Whether a study under Dask loses or doubles a trial when workers or drivers are killed (kill -9) at random times.

    python benchmarks/kill_study.py                  # 20 workers, 20 drivers; writes benchmarks/results/kill_study.md
    python benchmarks/kill_study.py --tries 3

Three workers on loopback train a small study again and again, each time in a new folder. First workers are killed, one
at a time, while it runs; Dask starts others. Then drivers are, and the next one goes on in the same folder. Every
finished study must have each trial once, with the numbers of the study that nobody disturbed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import distributed
import jax
import numpy as np

from optlab.compare import make_study, run_study
from optlab.compare.study import Study
from optlab.compare.trials import Ledger, Result
from optlab.compare.verdict import judge
from optlab.config import Target
from optlab.data import arrays
from optlab.models import mlp
from optlab.training import Workload

FORKSERVER = multiprocessing.get_context("forkserver")
WORKERS = 3
SLOWEST = 600.0  # seconds of a study, after which it counts as hung
FORKED = ["optlab.compare.driver", "optlab.models", "distributed.nanny"]  # imported once for all processes


def study() -> Study:
    """30 trials of a fraction of a second each."""
    inputs = np.random.default_rng(0).normal(size=(512, 8)).astype(np.float32)
    data = arrays(inputs, (inputs.sum(axis=1) > 0).astype(np.int32), validation=0.25, test=0.25)
    workload = Workload.from_model(mlp(2, widths=[16]), data, target=Target(value=0.3), batch_size=32)
    return make_study(["adamw", "sgd"], workload, steps=100, trials=4, studies=3, executor="series")


def drive(address: str, folder: str) -> None:
    """Runs in a process of its own."""
    with distributed.Client(address) as client:
        run_study(study(), folder, workers=client.get_executor(pure=False))


def numbers(results: Mapping[str, Result]) -> dict[str, Any]:
    """All that a verdict says, and every trial, but for how long they took."""
    verdict = judge(study(), results)
    trials = {i: (r.trial, r.curve, r.test, r.diverged) for i, r in results.items()}
    return {
        "trials": trials,
        "scores": {name: x.scores for name, x in verdict.standings.items()},
        "comparisons": {name: dataclasses.replace(c, time=None) for name, c in verdict.comparisons.items()},
    }


def faults(folder: Path, undisturbed: Mapping[str, Result]) -> list[str]:
    """What is wrong with a finished study."""
    found = [json.loads(line)["id"] for line in (folder / "trials.jsonl").read_text().splitlines()]
    wrong = [f"{i} is lost" for i in undisturbed.keys() - set(found)]
    wrong += [f"{i} is there {found.count(i)} times" for i in set(found) if found.count(i) > 1]
    results = Ledger(folder, study().about()).results
    if not wrong and numbers({i: results[i] for i in undisturbed}) != numbers(undisturbed):
        wrong.append("other numbers than the undisturbed study's")
    return wrong


class Bench:
    """The cluster, and what is counted."""

    def __init__(self, cluster: Any, root: Path, random: random.Random):
        self.cluster, self.root, self.random = cluster, root, random
        self.studies, self.wrong = 0, list[str]()

    def started(self, folder: Path) -> Any:
        """A driver, in a process of its own."""
        driver = FORKSERVER.Process(target=drive, args=(self.cluster.scheduler_address, str(folder)))
        driver.start()
        return driver

    def folders(self) -> Iterator[Path]:
        while True:
            self.studies += 1
            yield self.root / str(self.studies)

    def undisturbed(self) -> tuple[dict[str, Result], float]:
        """The results of the study that nobody disturbs, and its seconds, once the workers have compiled."""
        for folder in (self.root / "first", self.root / "second"):
            began = time.monotonic()
            driver = self.started(folder)
            driver.join(SLOWEST)
            seconds = time.monotonic() - began
        return Ledger(self.root / "second", study().about()).results, seconds

    def kill_workers(self, count: int, undisturbed: Mapping[str, Result], seconds: float) -> int:
        """Kills so many, at random times of studies, and returns how many studies that took."""
        killed, before = 0, self.studies
        for folder in self.folders():
            driver = self.started(folder)
            while driver.is_alive() and killed < count:
                driver.join(self.random.uniform(0, seconds / 2))
                worker = self.random.choice(list(self.cluster.workers.values()))
                pid = getattr(worker.process, "pid", None)
                if driver.is_alive() and pid is not None and (folder / "study.json").exists():
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            driver.join(SLOWEST)
            self.check(driver, folder, undisturbed)
            if killed >= count:
                return self.studies - before
        raise AssertionError

    def kill_drivers(self, count: int, undisturbed: Mapping[str, Result], seconds: float) -> int:
        """As `kill_workers`."""
        killed, before = 0, self.studies
        for folder in self.folders():
            while True:
                driver = self.started(folder)
                driver.join(self.random.uniform(0, seconds) if killed < count else SLOWEST)
                if not driver.is_alive():
                    break
                os.kill(driver.pid, signal.SIGKILL)
                driver.join()
                killed += 1
            self.check(driver, folder, undisturbed)
            if killed >= count:
                return self.studies - before
        raise AssertionError

    def check(self, driver: Any, folder: Path, undisturbed: Mapping[str, Result]) -> None:
        """Takes down what is wrong with a study; one that hangs is ended."""
        print(f"study {folder.name} is over", flush=True)
        if driver.exitcode != 0:
            driver.kill()
            self.wrong.append(f"study {folder.name}: its driver ended with {driver.exitcode}")
        else:
            self.wrong += [f"study {folder.name}: {x}" for x in faults(folder, undisturbed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="workers that are killed, and drivers")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kill_study.md")
    arguments = parser.parse_args()
    FORKSERVER.set_forkserver_preload(FORKED)
    forkserver.ensure_running()  # else Dask, which sets a list of its own, takes what comes first
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    with (
        tempfile.TemporaryDirectory() as root,
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
    ):
        bench = Bench(cluster, Path(root), random.Random(arguments.seed))
        undisturbed, seconds = bench.undisturbed()
        print(f"undisturbed: {len(undisturbed)} trials in {seconds:.1f} s", flush=True)
        rows = []
        for what, kill in (("workers", bench.kill_workers), ("drivers", bench.kill_drivers)):
            wrong, began = len(bench.wrong), time.monotonic()
            studies = kill(arguments.tries, undisturbed, seconds)
            rows.append(f"| {what} | {arguments.tries} | {studies} | {studies * len(undisturbed)} | "
                        f"{len(bench.wrong) - wrong} | {time.monotonic() - began:.0f} s |")  # fmt: skip
            print(rows[-1], flush=True)
    lines = [
        f"`python benchmarks/kill_study.py --tries {arguments.tries}`, jax {jax.__version__}, "
        f"distributed {distributed.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores. "
        f"{WORKERS} workers on loopback; the study that nobody disturbs takes {seconds:.1f} s.",
        "",
        "| killed | times | studies | trials | lost, doubled, other numbers, hung | took |",
        "|---|---|---|---|---|---|",
        *rows,
        *(f"\n{x}" for x in bench.wrong),
    ]
    arguments.out.write_text("\n".join(lines) + "\n")
    if bench.wrong:
        raise SystemExit("\n".join(bench.wrong))


if __name__ == "__main__":
    main()
