"""E5. The learning rate in three curves, and the one-command range test.

"Too small: flat. Too large: it explodes. Between them it falls": the three curves are on every course's slides. Here
they are drawn, for an MLP on the digits by SGD with momentum and by AdamW, and then found by `optlab.lr_range` (on the
command line `optlab lr-range configs/digits.py --sweep`), which trains for a tenth and then for half of 200 steps. Each
of five seeds suggests a rate; its distance from the best of a sweep at full length, an octave apart, by the validation
accuracy, is a factor of at least 1. Beside it the four rules that read a rate off the classical ramp.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
from shared import Page, estimate, main

import optlab
from optlab import schedules
from optlab.report import Table
from optlab.training import Workload

CONTENDERS = {"SGD with momentum": functools.partial(optlab.sgd, momentum=0.9), "AdamW": optlab.adamw}


def factor(rate, best):
    return max(rate / best, best / rate)


def curve(found, regime):
    """The first look's training of a regime: of the flat ones the flattest, of the others the best, or the worst."""
    inside = [t for t in found.first if found.regimes[t.rate] == regime]
    if regime == "good":
        return min(inside, key=lambda t: np.inf if t.diverged else t.end(found.metric), default=None)
    return inside[0 if regime == "flat" else -1] if inside else None


def measure(smoke: bool) -> Page:
    seeds, steps = (range(2), 30) if smoke else (range(5), 200)
    grid = {"low": 1e-3, "high": 0.3} if smoke else {}
    rows, rules, how_far = [], {}, {}
    figure, axes = plt.subplots(1, len(CONTENDERS), figsize=(10, 3.2))
    for (name, factory), ax in zip(CONTENDERS.items(), axes, strict=True):
        tests = [
            optlab.lr_range(
                Workload.digits(), factory, steps=steps, schedule=schedules.warmup_cosine, sweep=not smoke, seed=seed,
                **grid,
            )
            for seed in seeds
        ]  # fmt: skip
        for test in tests:
            best = test.best_of_sweep.rate if test.sweep else test.suggestion
            for rule, rate in {"lr-range": test.suggestion, **test.ramp.suggestions()}.items():
                rules.setdefault((name, rule), []).append(factor(rate, best))
        for regime, color in (("flat", "C0"), ("good", "C2"), ("explodes", "C3")):
            if (training := curve(tests[0], regime)) is not None:
                ax.plot(training.losses, color=color, label=f"{regime}, η = {training.rate:.2g}")
        ax.set(title=name, xlabel="step", yscale="log", ylim=(0.05, 50))
        ax.legend(fontsize=8)
        suggested = np.array([test.suggestion for test in tests])
        bests = [test.best_of_sweep.rate if test.sweep else np.nan for test in tests]
        how_far[name] = np.array(rules[name, "lr-range"])
        spent = [sum(t.steps for t in (*test.first, *test.second)) / steps for test in tests]
        good = sorted({rate for rate, regime in tests[0].regimes.items() if regime == "good"})
        rows.append(
            [
                name,
                f"{good[0]:.2g} to {good[-1]:.2g}" if good else "none",
                f"{suggested.min():.2g} to {suggested.max():.2g}",
                "–" if smoke else f"{min(bests):.2g} to {max(bests):.2g}",
                estimate(how_far[name], 2),
                estimate(spent, 1),
            ]
        )
    axes[0].set_ylabel("training loss")
    columns = [
        "optimizer",
        "good in the first look (factors of 4)",
        "suggested, over seeds",
        "best of the sweep, over seeds",
        "factor between them",
        "cost in full trainings, without the sweep",
    ]
    both, first = list(CONTENDERS), tests[0].first[0].steps
    names = list(dict.fromkeys(rule for _, rule in rules))
    ramp = [
        [rule, *(f"{np.median(rules[n, rule]):.2g} (worst {np.max(rules[n, rule]):.2g})" for n in CONTENDERS)]
        for rule in names
    ]
    return Page(
        f"{len(seeds)} seeds, trainings of {steps} steps of 128 images with warm-up and cosine.",
        [Table(columns, rows), Table(["rule, factor from the sweep's best: median", *CONTENDERS], ramp)],
        figure,
        f"""
        The three curves are there, after {first} steps, a tenth of the run. What the slides leave out is how wide the
        good region is: of SGD with momentum {rows[0][1]}, of AdamW {rows[1][1]}, in steps of a factor of 4. One
        needn't be exact, and one can't be careless.

        The best rate is itself a matter of luck: over the seeds the sweep's best goes from {rows[0][3]} and from
        {rows[1][3]}. The range test's suggestion is within a factor of {np.max(how_far[both[0]]):.2g} of it for SGD
        with momentum and of {np.max(how_far[both[1]]):.2g} for AdamW at worst, for the price of {rows[0][5]}
        trainings. Beware of that comparison: the sweep's nine rates, an octave apart, lie around the suggestion itself,
        so that its factor can't exceed 16, and the other rules' can.

        The figure shows seed 0. Its green curve is the one that is lowest after a tenth of the training. That isn't the
        suggestion, which takes the trainings of half the length into account: a rate that is fast at first can be too
        large later, as AdamW's is here.

        Reading a rate off the classical ramp is cheap, and which rule one reads it by matters more than
        the ramp: a tenth of the minimum's rate and the valley are mostly near, the steepest point and the slide are
        off by up to {max(np.max(rules[n, r]) for n in both for r in ("steepest", "slide")):.0f}. On twelve pairs of
        other models and optimizers (`benchmarks/results/lr_range.md`) the valley is near once, and the slide more often
        than the three others: none of the four can be trusted on every problem.
        """,
    )


if __name__ == "__main__":
    main(measure)
