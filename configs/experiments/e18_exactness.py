"""E18. How exact must Muon's orthogonalization be: method, steps and lower bound, one at a time.

In exact arithmetic three steps of Polar Express do for a random wide matrix what Keller Jordan's five do, and four for
a square one, at 0.57 and 0.80 of the work. Does training care? A small Transformer on bytes (with `--data
tinyshakespeare.txt`, else the sources of Python's library): two blocks of width 64, whose hidden matrices are 64 × 64
and 64 × 256, windows of 32, batches of 8, 150 steps, warm-up and cosine. By `optlab.compare` every variant has the same
grid of four learning rates in each of eight studies; initializations and batches are paired. The seconds of a step are
taken in turn, variant after variant, again and again.

Three things are varied, each beside the others held fixed: the steps of a method (3, 4, 5), the method at equal steps,
and Polar Express's lower bound at five steps, 0.02 or the library's 0.001, which isn't available with fewer steps:
`orthogonalize` refuses 0.001 with three or four and 0.005 with three, since singular values would end above 1.25. Then
steps and bound go by shape: three from 0.02 for wide matrices, four from 0.005 for square ones. What "exact" means on
Muon's real momenta, not random ones, is read off their singular values after 100 steps.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from shared import Learner, Page, estimate, main, step_seconds, stepping, text

import optlab
from optlab import data
from optlab.compare import choice, statistics
from optlab.config import Target
from optlab.models import transformer
from optlab.report import Table
from optlab.training import Workload

LENGTH, BATCH, WIDTH = 32, 8, 64
KELLER_JORDAN = optlab.orthogonalize
RATES = (0.01, 0.02, 0.04, 0.08)


def polar_express(steps, lower_bound):
    return functools.partial(optlab.orthogonalize, "polar_express", steps=steps, lower_bound=lower_bound)


def by_shape(wide, square):
    """A method for matrices at least twice as wide as high, or as high as wide, and one for the others."""
    is_wide = lambda X: max(X.shape) >= 2 * min(X.shape)
    label = lambda tree: jax.tree.map(lambda X: "wide" if is_wide(X) else "square", tree)
    return lambda: optax.partition({"wide": wide(), "square": square()}, label)


METHODS = {
    "Keller Jordan, 5": KELLER_JORDAN,
    "Keller Jordan, 4": functools.partial(KELLER_JORDAN, steps=4),
    "Keller Jordan, 3": functools.partial(KELLER_JORDAN, steps=3),
    "Polar Express, 5, from 0.02": polar_express(5, 0.02),
    "Polar Express, 4, from 0.02": polar_express(4, 0.02),
    "Polar Express, 3, from 0.02": polar_express(3, 0.02),
    "Polar Express, 5, from 0.001": polar_express(5, 0.001),
    "Polar Express, 3 or 4 and bound by shape": by_shape(polar_express(3, 0.02), polar_express(4, 0.005)),
}
BASELINE = next(iter(METHODS))
PAIRS = {  # what is varied alone: the first, and beside which
    "steps, Keller Jordan": [("Keller Jordan, 4", BASELINE), ("Keller Jordan, 3", BASELINE)],
    "steps, Polar Express from 0.02": [
        ("Polar Express, 4, from 0.02", "Polar Express, 5, from 0.02"),
        ("Polar Express, 3, from 0.02", "Polar Express, 5, from 0.02"),
    ],
    "method, at equal steps": [(f"Polar Express, {n}, from 0.02", f"Keller Jordan, {n}") for n in (5, 4, 3)],
    "lower bound, at five steps": [("Polar Express, 5, from 0.001", "Polar Express, 5, from 0.02")],
    "square matrices alone: steps and bound": [
        ("Polar Express, 3 or 4 and bound by shape", "Polar Express, 3, from 0.02")
    ],
    "by shape": [("Polar Express, 3 or 4 and bound by shape", BASELINE)],
}


def muon(learning_rate, method, **settings):
    return optlab.muon(learning_rate, orthogonalizer=method(), **settings)


def momenta(learner, steps, key):
    """Muon's momenta after some steps, the hidden matrices alone: name -> (m, n)."""
    tx = optlab.muon(0.04)
    params, step = learner.init(key), stepping(learner, tx)
    state = tx.init(params)
    for k in jax.random.split(key, steps):
        params, state = step(params, state, k)
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        if "block" in name and "kernel" in name:
            found[name] = np.asarray(x, np.float64)
    return found


def inexactness(method, matrices):
    """The root mean square of |1 − σ| of every matrix after its orthogonalization, in float64."""
    tx, ends = method(), []
    with jax.enable_x64(True):
        for X in matrices:
            tree = {"kernel": jnp.asarray(X)}
            Y = tx.update(tree, tx.init(tree))[0]["kernel"]
            ends.append(np.sqrt(np.mean((1 - np.linalg.svd(Y, compute_uv=False)) ** 2)))
    return np.array(ends)


def work(method, params):
    """Multiplications and additions of a step's orthogonalization, on a CPU, by the plan."""
    return sum(row.flops for row in optlab.explain(muon(0.01, method), params).rows)


def measure(smoke: bool, path: str | None = None) -> Page:
    shares = {"validation": 0.0005, "test": 0.0005} if smoke else {"validation": 0.01, "test": 0.02}
    model = transformer(256, width=WIDTH, depth=1 if smoke else 2, heads=2, length=LENGTH)
    workload = Workload.from_model(
        model,
        data.text(None if path is None else str(path), length=LENGTH, **shares),
        batch_size=BATCH,
        target=Target(metric="validation/loss", mode="min"),
    )
    methods = {name: METHODS[name] for name in (BASELINE, "Keller Jordan, 4")} if smoke else METHODS
    size = (
        {"steps": 10, "studies": 2, "evaluate_every": 5}
        if smoke
        else {"steps": 150, "studies": 8, "evaluate_every": 25}
    )
    rates = RATES[1:3] if smoke else RATES
    verdict = optlab.compare(
        {name: functools.partial(muon, method=method) for name, method in methods.items()},
        workload,
        spaces={name: {"learning_rate": choice(*rates)} for name in methods},
        design="grid",
        executor="series",
        paired=True,
        quiet=True,
        **size,
    )
    train, _ = text(path, LENGTH, held=16)
    learner = Learner(model, train, BATCH)
    real = momenta(learner, 5 if smoke else 100, jax.random.key(0))
    seconds = step_seconds(learner, {n: muon(0.02, m) for n, m in methods.items()}, rounds=2 if smoke else 31)
    square = [X for X in real.values() if X.shape[0] == X.shape[1]]
    wide = [X for X in real.values() if X.shape[0] != X.shape[1]]
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), train[0][:2]))
    exact = {name: (inexactness(method, square), inexactness(method, wide)) for name, method in methods.items()}
    works = {name: work(method, params) / work(methods[BASELINE], params) for name, method in methods.items()}
    scores = {name: np.array(verdict.standings[name].scores) for name in methods}
    pairs = [(what, a, b) for what, each in PAIRS.items() for a, b in each if a in methods and b in methods]
    return Page(
        f"{size['studies']} studies of {len(rates)} trials for each variant.",
        [of_variants(verdict, works, seconds, exact, rates), of_pairs(pairs, scores), by_rate(verdict, rates)],
        drawn(verdict, scores, seconds),
        said(verdict, scores, works, seconds, exact, rates),
    )


def results(verdict, name):
    return [r for r in verdict.results.values() if r.trial.contender == name]


def edges(verdict, name, rates):
    """The number of studies whose best learning rate is the lowest and the highest of the grid."""
    best = [b["learning_rate"] for b in verdict.standings[name].best]
    return best.count(rates[0]), best.count(rates[-1])


def of_variants(verdict, works, seconds, exact, rates):
    rows = []
    for name, standing in verdict.standings.items():
        low, high = edges(verdict, name, rates)
        at_edge = "; ".join(f"{where} in {n}" for where, n in (("lowest", low), ("highest", high)) if n)
        rows.append(
            [
                name,
                f"{works[name]:.2f}",
                f"{1e3 * np.median(seconds[name]):.2f}",
                estimate(seconds[name] / seconds[BASELINE]),
                *(f"{np.median(e):.2f} (worst {np.max(e):.2f})" for e in exact[name]),
                estimate(standing.scores, 4),
                ", ".join(f"{b['learning_rate']:g}" for b in standing.best),
                at_edge or "–",
            ]
        )
    columns = [
        "orthogonalization, steps, lower bound",
        "its work",
        "ms a step",
        "time of a step",
        "rms of 1 − σ on real square momenta: median",
        "on wide ones",
        "test loss",
        "best η, study by study",
        "studies with it at an edge of the grid",
    ]
    return Table(columns, rows)


def of_pairs(pairs, scores):
    rows = [[what, a, b, estimate(scores[a] - scores[b], 4)] for what, a, b in pairs]
    return Table(["varied alone", "this", "beside", "difference of test losses, study by study"], rows)


def by_rate(verdict, rates):
    rows = []
    for name in verdict.standings:
        found = [r for r in results(verdict, name) if not r.trial.is_final]
        at = lambda rate, found=found: [
            r.last("validation/loss") for r in found if r.trial.values["learning_rate"] == rate
        ]
        rows.append([name, *(estimate(at(rate), 3) for rate in rates)])
    return Table(["validation loss of the searches", *(f"η = {rate:g}" for rate in rates)], rows)


def line(name):
    """The colour of a method and its lower bound, and the dashes of its steps."""
    colors = {"Keller": "C0", "shape": "C3", "0.001": "C2", "0.02": "C1"}
    color = next(color for part, color in colors.items() if part in name)
    return {"color": color, "linestyle": {"4": "--", "3": ":"}.get(name.split(", ")[1], "-"), "linewidth": 1.2}


def drawn(verdict, scores, seconds):
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), width_ratios=(3, 3, 2))
    axes[1].sharey(axes[0])
    for i, name in enumerate(verdict.standings):
        found = results(verdict, name)
        finals = [r for r in found if r.trial.is_final]
        steps = np.array(finals[0].curve["step"])
        mean = np.mean([r.curve["validation/loss"] for r in finals], axis=0)
        axes[0].plot(steps, mean, **line(name), label=name)
        axes[1].plot(steps * np.median(seconds[name]), mean, **line(name))
        beside = scores[name] - scores[BASELINE]
        found = statistics.mean(beside)
        reach = 0 if np.isnan(found.low) else (found.high - found.low) / 2
        axes[2].errorbar(found.value, -i, xerr=reach, fmt="o", markersize=4, capsize=3, color=line(name)["color"])
    axes[0].set(xlabel="step", ylabel="validation loss, nats a byte")
    axes[1].set(xlabel="seconds, by the median time of a step")
    axes[2].axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes[2].set(xlabel="test loss beside the first, 95 %", yticks=range(0, -len(scores), -1))
    axes[2].yaxis.tick_right()
    axes[2].set_yticklabels(scores, fontsize=7)
    axes[0].legend(fontsize=6, handlelength=3)
    figure.tight_layout()
    return figure


def said(verdict, scores, works, seconds, exact, rates):
    beside = lambda name, other=BASELINE: estimate(scores[name] - scores[other], 4) if name in scores else "–"
    inexact = lambda name: " and ".join(f"{np.median(e):.2f}" for e in exact[name]) if name in exact else "–"
    at_edge = [
        f"{low + high} of {len(scores[name])} studies ({name})"
        for name in scores
        for low, high in [edges(verdict, name, rates)]
        if low + high
    ]
    shaped = "Polar Express, 3 or 4 and bound by shape"
    five, four, three = (f"Polar Express, {n}, from 0.02" for n in (5, 4, 3))
    apart = [
        f"{name} ({beside(name)})"
        for name in scores
        if name != BASELINE and not statistics.mean(scores[name] - scores[BASELINE]).p >= 0.05
    ]
    pairs = [scores[a] - scores[b] for each in PAIRS.values() for a, b in each if a in scores and b in scores]
    clear = sum(not statistics.mean(x).p >= 0.05 for x in pairs)
    time_of = lambda name: estimate(seconds[name] / seconds[BASELINE]) if name in seconds else "–"
    return f"""
    Training notices, a little. Beside Keller Jordan's five steps the interval excludes 0 for
    {", ".join(apart) or "no variant"}, of {len(scores) - 1}; steps and bound by shape are among them, at
    {works.get(shaped, 1):.0%} of the work. Of the {len(pairs)} rows above {clear} have an interval that excludes 0. All
    differences are of test losses in nats, study by study, and none is corrected for the number of rows.

    Steps alone: Keller Jordan's four end {beside("Keller Jordan, 4")} from his five and three
    {beside("Keller Jordan, 3")}; Polar Express's four {beside(four, five)} and three {beside(three, five)} from its
    five. The method alone: Polar Express from 0.02 ends {beside(five)} from Keller Jordan at five steps,
    {beside(four, "Keller Jordan, 4")} at four and {beside(three, "Keller Jordan, 3")} at three. The lower bound alone,
    at five steps: 0.001 ends {beside("Polar Express, 5, from 0.001", five)} from 0.02. Any difference inside an
    interval remains possible.

    The best η lies at an edge of its grid in {"; ".join(at_edge) or "no study"}.

    More exact isn't better by itself. On Muon's real momenta, whose singular values spread far wider than a random
    matrix's, Keller Jordan's five leave a median root mean square of {inexact(BASELINE)} on square and wide matrices,
    his three {inexact("Keller Jordan, 3")}, Polar Express's five from 0.001 {inexact("Polar Express, 5, from 0.001")},
    and the steps by shape {inexact(shaped)}. Keller Jordan's three are the least exact, and aren't seen to lose.

    In time fewer steps buy little here, since the orthogonalization is only a part of a step: beside Keller Jordan's
    five a training step takes {time_of("Keller Jordan, 3")} of the time with his three, {time_of(three)} with Polar
    Express's three, and {time_of(shaped)} with steps by shape. In the middle panel the curves over seconds lie close
    together, and none is ahead for long. On large matrices the share of time would be larger; they weren't tried. So
    optlab doesn't offer steps by shape: `orthogonalize("polar_express", steps=…, lower_bound=…)` and a partition, as in
    this file, are a few lines for those who want to try.
    """


if __name__ == "__main__":
    main(measure)
