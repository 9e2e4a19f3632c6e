"""Whether a comparison can be believed: how often it finds a difference that isn't there, and one that is.

    python benchmarks/comparison_trust.py            # writes benchmarks/results/comparison_trust.md

The studies are optlab's own, from the points to the verdict; what is cheap is the training. A run's loss is a quadratic
basin, the squared distance in decades from the best hyperparameters, and noise of its seed. "A/A" is one contender
under two names, each with points of its own; "one tuning" is the usual way: both are tuned once, and five seeds of each
winner are compared by a paired t-test. A gain is planted in one contender's test losses, in standard deviations of the
tuned winners' test losses (the pipeline's, luck in tuning included).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import stats

import optlab
from optlab.compare import log_uniform, make_study, statistics
from optlab.compare.study import Study
from optlab.compare.trials import Result
from optlab.compare.verdict import judge
from optlab.training import Workload

SPACES: dict[int, dict[str, Any]] = {
    1: {"learning_rate": log_uniform(1e-4, 1e-1)},
    2: {"learning_rate": log_uniform(1e-4, 1e-1), "weight_decay": log_uniform(1e-4, 1e0)},
}
BEST = {"learning_rate": 10**-2.4, "weight_decay": 10**-1.7}


def loss(values: Mapping[str, float], noise: float, seed: int) -> float:
    """A run's: 1 decade from the best hyperparameters costs 1."""
    basin = sum((math.log10(v) - math.log10(BEST[k])) ** 2 for k, v in values.items())
    return basin + noise * float(np.random.default_rng(seed).normal())


def played(study: Study, noise: float, gain: float = 0.0) -> dict[str, Result]:
    """A study's results; the gain is taken off the second contender's test losses."""
    found: dict[str, Result] = {}
    for trial in study.all_trials(found):
        value = loss(trial.values, noise, trial.seed) - gain * (trial.contender == "again")
        test = {"test/loss": value} if trial.is_final else {}
        found[trial.id] = Result(trial, {"step": [1], "validation/loss": [value]}, test, seconds=0.0)
    return found


def share(study: Study, noise: float, repetitions: int, gain: float = 0.0) -> float:
    """In how many of so many studies the verdict is "different"."""
    found = []
    for r in range(repetitions):
        again = dataclasses.replace(study, seed=r)
        found.append(judge(again, played(again, noise, gain)).comparisons["again"].is_different)
    return float(np.mean(found))


def one_tuning(study: Study, noise: float, repetitions: int) -> float:
    """The same of one tuning each, whose winners are compared over five seeds."""
    once = dataclasses.replace(study, studies=1, finals=5)
    found = []
    for r in range(repetitions):
        again = dataclasses.replace(once, seed=r)
        results = played(again, noise)
        a, b = (
            [results[t.id].test["test/loss"] for t in again.finals_of(name, 0, results)] for name in again.contenders
        )
        found.append(statistics.paired(a, b).p < 0.05)
    return float(np.mean(found))


def spread(study: Study, noise: float, repetitions: int) -> float:
    """The standard deviation of a tuned winner's test loss."""
    once = dataclasses.replace(study, studies=1)
    scores = []
    for r in range(repetitions):
        again = dataclasses.replace(once, seed=r)
        scores += [x for s in judge(again, played(again, noise)).standings.values() for x in s.scores]
    return float(np.std(scores, ddof=1))


def interval(found: float, n: int) -> str:
    low, high = stats.binomtest(round(found * n), n).proportion_ci(method="wilson")
    return f"{100 * found:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def bounds(repetitions: int) -> str:
    """What five studies can find at best, in words."""
    welch, paired = statistics.detectable(5), statistics.detectable(5, is_paired=True)
    known, found = 100 / math.sqrt(4 * repetitions), 100 * statistics.power(2.0, 5)
    correlation = 1 - (welch / paired) ** 2 / 2
    words = (
        f"The standard deviation is that of {2 * repetitions} tunings, known to {known:.1f} %.",
        f"Of normal scores Welch's test finds a gain of 2 in {found:.0f} % of cases, and one of {welch:.2f} in 80 %;",
        "the pooled test's 79 % at 2 take both spreads to be equal.",
        "Pairing isn't used here, since both contenders have seeds of their own.",
        f"`paired=True` finds {paired:.2f} standard deviations of the winners' differences, and so pays where their",
        f"scores correlate by more than {correlation:.2f}.",
    )
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="studies for each figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "comparison_trust.md")
    arguments = parser.parse_args()
    n = arguments.repetitions
    workload = dataclasses.replace(Workload.digits(), target=optlab.config.Target())
    studies = {
        dims: make_study(
            {"adamw": "adamw", "again": "adamw"}, workload, steps=1, trials=8, studies=5,
            spaces={"adamw": space, "again": space}, executor="runs",
        )
        for dims, space in SPACES.items()
    }  # fmt: skip
    lines = [
        f"`python benchmarks/comparison_trust.py --repetitions {n}`, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, Python {platform.python_version()}. 95 % intervals of Wilson.",
        "",
        "## A/A: how often a contender differs from itself",
        "",
        "| hyperparameters | seeds' noise | 5 studies × 8 trials, Welch | one tuning, 5 seeds of it, paired t |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines))
    for dims, study in studies.items():
        for noise in (0.02, 0.1, 0.3):
            ours, usual = share(study, noise, n), one_tuning(study, noise, n)
            lines.append(f"| {dims} | {noise} | {interval(ours, n)} | {interval(usual, n)} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "## Power: how often a planted gain is found (noise 0.1, 5 studies × 8 trials)",
        "",
        "| hyperparameters | gain, SD of the pipeline | found | Welch's test of normal scores |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines[-4:]))
    for dims, study in studies.items():
        sd = spread(study, 0.1, n)
        for gain in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
            found = share(study, 0.1, n, gain * sd)
            lines.append(f"| {dims} | {gain} | {interval(found, n)} | {100 * statistics.power(gain, 5):.0f} % |")
            print(lines[-1], flush=True)
    lines += ["", bounds(n)]
    print(lines[-1])
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
