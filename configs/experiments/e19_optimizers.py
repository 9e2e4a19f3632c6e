"""E19. Every optimizer, tuned alike: all of optlab's on one small problem.

Papers show a new optimizer beside a baseline, seldom beside all the others, and seldom with as much tuning for each.
Here all of `optlab.optimizers` are contenders of one `optlab.compare`: the digits, two hidden layers of 64 units,
batches of 64, 150 steps, so that speed counts. In each of five studies every contender has eight learning rates of its
own, drawn from the space that `compare` gives its kind, with a warm-up and a cosine; the one of the lowest validation
loss is trained afresh, and its test loss counts. All else is an optimizer's default, its weight decay too.
Initializations and batches are paired: differences are those within a study.
"""

import functools

import matplotlib.pyplot as plt
import numpy as np
from shared import Page, estimate, main

import optlab
from optlab import data, optimizers
from optlab.config import Target
from optlab.models import mlp
from optlab.report import Table
from optlab.training import Workload

BASELINE, MOMENTUM = "adamw", "sgd, momentum 0.9"
CONTENDERS = {
    BASELINE: optimizers.adamw,
    MOMENTUM: functools.partial(optimizers.sgd, momentum=0.9),
    **{name: getattr(optimizers, name) for name in optimizers.__all__ if name != BASELINE},
}


def measure(smoke: bool) -> Page:
    names = [BASELINE, "muon", "signsgd"] if smoke else list(CONTENDERS)
    workload = Workload.from_model(
        mlp(outputs=10, widths=[64, 64]),
        data.digits(),
        batch_size=64,
        target=Target(metric="validation/loss", mode="min"),
    )
    size = {"steps": 10, "trials": 2, "studies": 2} if smoke else {"steps": 150, "trials": 8, "studies": 5}
    verdict = optlab.compare(
        {name: CONTENDERS[name] for name in names}, workload, executor="population", paired=True, quiet=True, **size
    )
    standings = sorted(verdict.standings.values(), key=lambda standing: standing.mean.value)
    return Page(
        f"{len(names)} contenders, {size['studies']} studies of {size['trials']} trials each, "
        f"{len(verdict.results):,} trainings of {size['steps']} steps.",
        [table(standings, verdict.comparisons)],
        drawn(standings, verdict.comparisons),
        said(standings, verdict.comparisons),
    )


def table(standings, comparisons):
    rows = []
    for standing in standings:
        rates = sorted(best["learning_rate"] for best in standing.best)
        edge = f", the {' and '.join(standing.edges.values())} edge" if standing.edges else ""
        found = comparisons.get(standing.name)
        beside = "–" if found is None else f"{gap(found)}: {how(found)}"
        rows.append(
            [
                standing.name,
                estimate(standing.scores),
                beside,
                f"{rates[0]:.2g} to {rates[-1]:.2g}{edge}",
            ]
        )
    columns = [
        "optimizer",
        "test loss, tuned",
        f"beside {BASELINE}, study by study",
        "best η of the studies",
    ]
    return Table(columns, rows)


def gap(comparison):
    """The difference of test losses with the half width of its interval."""
    found = comparison.difference
    return f"{found.value:+.3f} ± {(found.high - found.low) / 2:.3f}"


def how(comparison):
    """What the verdict says, with Holm's correction; the lower loss is the better one."""
    if not comparison.is_different:
        return "can't be told apart"
    return "better" if comparison.difference.value < 0 else "worse"


def drawn(standings, comparisons):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    colors = {"better": "C2", "worse": "C3", "can't be told apart": "C0"}
    for i, standing in enumerate(reversed(standings)):
        found = comparisons.get(standing.name)
        color = "black" if found is None else colors[how(found)]
        left.errorbar(standing.mean.value, i, xerr=reach(standing.mean), fmt="o", markersize=4, capsize=3, color=color)
        if found is not None:
            difference = found.difference
            right.errorbar(difference.value, i, xerr=reach(difference), fmt="o", markersize=4, capsize=3, color=color)
    left.set_yticks(range(len(standings)), [standing.name for standing in reversed(standings)], fontsize=8)
    left.set(xlabel="test loss, tuned")
    right.set(xlabel=f"beside {BASELINE}, study by study")
    right.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for words, color in colors.items():
        right.plot([], [], "o", color=color, markersize=4, label=words)
    right.legend(fontsize=7)
    figure.tight_layout()
    return figure


def reach(estimate):
    return 0 if np.isnan(estimate.low) else (estimate.high - estimate.low) / 2


def said(standings, comparisons):
    others = list(comparisons.values())
    apart = [x.name for x in others if x.is_different]
    alone = [f"{x.name} ({gap(x)})" for x in others if x.difference.low * x.difference.high > 0]
    missed = np.median([x.missed for x in others])
    rates = {x.name: np.median([best["learning_rate"] for best in x.best]) for x in standings}
    small, large = min(rates, key=rates.get), max(rates, key=rates.get)
    first, last = standings[0], standings[-1]
    return f"""
    Of {len(others)} optimizers {len(apart) or "none"} can be told apart from {BASELINE}, after Holm's correction for so
    many comparisons. By itself the interval excludes 0 for {" and ".join(alone) or "none of them"}; of {len(others)}
    about one would by chance. Five studies are few: a true difference of {missed:.2f} would be missed more than once in
    five (the median over the optimizers). So the order of the table isn't a ranking. It goes from {first.name} at
    {estimate(first.scores)} to {last.name} at {estimate(last.scores)}, and the two widest intervals are at its lower
    end: with eight learning rates tuning is partly luck, and for some more than for others.

    What differs beyond doubt is the learning rate. The median of the best ones is {rates[small]:.2g} for {small} and
    {rates[large]:.2g} for {large}, a factor of {rates[large] / rates[small]:.0f}. One rate for all would have made a
    ranking, and nothing but that rate would be behind it.

    This is one small problem, and short trainings. On text, with a Transformer, Muon and AdamW are told apart
    ([E6](e06_tokens.md)).
    """


if __name__ == "__main__":
    main(measure)
