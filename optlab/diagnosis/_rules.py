"""The rules of a diagnosis, one a function: evidence -> a finding, or None. They compare a run with itself.

The thresholds stand between what planted faults and healthy runs show; `benchmarks/diagnosis.py` measures both.
"""

from __future__ import annotations

import numpy as np

from optlab.diagnosis._evidence import EXPLODED, NOTHING, Evidence, scatter
from optlab.diagnosis._findings import MOVE, NOISY, Finding, Rule, fell, rate_times
from optlab.diagnosis._rules_of_rates import (
    STEADY,
    clipped,
    decay_too_strong,
    gradient_collapsed,
    rate_too_high,
    rate_too_low,
    schedule_ended,
    too_high,
    warmup_too_long,
    warmup_too_short,
)
from optlab.diagnosis._rules_of_splits import LEARNED, memorizing, overfitting, splits_differ

RISEN = 1.5  # times the first loss that was logged
UNBOUNDED = 10.0  # times the first loss, below 0
FASTER = 0.4  # of all that is gained, in the last quarter: a quarter at an even pace, and what has a floor slows down
SEEN = 0.01  # of the first held-out loss: with labels without a meaning it jumps by less than a half of that
FAR_OFF = 15.0  # nats: the cross-entropy of a uniform guess among three million classes


def diverged(e: Evidence) -> Finding | None:
    """The loss became NaN or infinite, ended far above where it began, or falls without bound."""
    losses, steps = e.metrics["train/loss"], e.steps
    bad = steps[np.isinf(losses) | (np.isnan(losses) & ~np.isnan(e.metrics.get("train/gradient_norm", losses)))]
    rise = f"; the loss had risen from {e.loss[0]:.4g} to {e.loss[-1]:.4g}" if len(e.loss) > 1 else ""
    if e.outcome == "NonFiniteError" or len(bad):
        where = f"at step {bad[0]}" if len(bad) else f"after step {steps[-1]}"
        because = f"the loss or the gradient wasn't finite {where}{rise}"
    elif len(e.loss) > 2 and e.has_exploded(-1):
        because = f"the loss rose from {e.smooth[0]:.4g} to {e.smooth[-1]:.4g}"
    elif (falls := _falls_without_bound(e)) is not None:
        return falls
    else:
        return None
    return Finding(
        "diverged",
        "ill",
        because,
        "a tenth of the learning rate, or a longer warm-up; clip_norm=1.0 if single batches do it; if it rises from "
        "the first step on, the update points uphill: is its sign turned, or the learning rate left out?",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 8.2.4",
        rate_times(e, 1 / 10),
        is_fatal=True,
    )


def _falls_without_bound(e: Evidence) -> Finding | None:
    """A loss below 0 that falls ever faster has no least value: its sign may be turned."""
    values = e.validation if len(e.validation) >= 8 else e.smooth
    if len(values) < 8 or -values[-1] <= UNBOUNDED * abs(values[0]):
        return None
    late = (values[-1 - len(values) // 4] - values[-1]) / (values[0] - values[-1])
    if late < FASTER:
        return None
    return Finding(
        "diverged",
        "ill",
        f"the loss falls from {values[0]:.4g} to {values[-1]:.4g}, ever faster: {late:.0%} of that in the last quarter",
        "a loss that has a least value: is its sign turned? What is minimized is minus the log-likelihood",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.1.1",
        is_fatal=True,
    )


def nothing_moves(e: Evidence) -> Finding | None:
    """The held-out loss is the same number in every evaluation, or the learning rate is 0."""
    values, (_, rates) = e.validation, e.rate
    if schedule_ended(e) is not None:
        return None
    if len(values) >= 2 and np.ptp(values) <= 1e-6 * abs(values[0]):
        because = f"validation/loss is {values[0]:.6g} in all of {len(values)} evaluations"
    elif len(rates) and not np.any(rates):
        because = f"the learning rate is 0 in all of {len(rates)} records"
    else:
        return None
    return Finding(
        "nothing moves",
        "ill",
        because,
        MOVE,
        is_fatal=True,
    )


def starts_far_off(e: Evidence) -> Finding | None:
    """The first loss is far above that of a uniform guess."""
    if e.chance is None and "train/accuracy" not in e.metrics:
        return None  # only a classifier's loss has a scale of its own
    limit = EXPLODED * e.chance if e.chance is not None else FAR_OFF
    if not len(e.loss) or e.loss[0] <= limit:
        return None
    step = e.curve("train/loss")[0][0]
    first = e.model.first_loss if e.model is not None else e.twins.before if e.twins and not e.twins.start else None
    if first is not None and first <= limit:
        return too_high(e, f"before the first update the loss is {first:.4g}, and {e.loss[0]:.4g} at step {step}")
    if e.smooth.max() > RISEN * e.loss[0]:  # what was drawn badly falls from the first step on
        top = f"{e.smooth.max():.4g} later, where a uniform guess is far below that"
        return too_high(e, f"train/loss is {e.loss[0]:.4g} at step {step}, and {top}")
    guess = f"a uniform guess has {e.chance:.3g}" if e.chance is not None else "a uniform guess is far below that"
    return Finding(
        "starts far off",
        "ill",
        f"train/loss is {e.loss[0]:.4g} at step {step}; {guess}",
        "standardize the inputs and check the initialization; if the loss before the first update is usual, a tenth "
        "of the learning rate",
        "Glorot and Bengio 2010 (initialization); LeCun et al. 1998, Efficient BackProp, section 4.3 (inputs)",
        needs_probe=step > 1 and first is None,  # updates were made before
    )


def learns_nothing(e: Evidence) -> Finding | None:
    """The loss stays where it was, though there is a gradient, and not for want of a learning rate."""
    if len(e.loss) < 8 or (e.gained >= NOTHING and not e.is_guessing) or e.share_gained >= LEARNED:
        return None
    knows = e.knows or e.is_informed or e.has_learned
    if knows or e.settings.get("init_from"):  # it may have learned before the first record
        return None
    if e.held_out_gain is None and e.is_drowned:
        return None
    if any(rule(e) is not None for rule in (rate_too_low, gradient_collapsed, memorizing, noisy)):
        return None
    return Finding(
        "learns nothing",
        # Noise may be all that is left to learn; only a classifier's figures say what a guess has.
        "note" if e.knows is None and e.model is None else "ill",
        f"in {e.steps[-1]} steps train/loss {fell(e.smooth[0], e.share_gained, e.smooth[-1])}"
        + ("" if e.held_out_gain is None else f", validation/loss fell by {e.gained:.0%} at best")
        + ", and it doesn't go on falling: more of the same learning rate would change nothing",
        (
            "optlab diagnose --probe: whether labels belong to their inputs, what the model ends in, how it was drawn "
            "and what is frozen doesn't show in curves; then ten times the learning rate, and a tenth"
            if e.model is None
            else "ten times the learning rate, and a tenth; one batch alone, which a sound model and loss soon fit"
        ),
        "Karpathy 2019, A recipe for training neural networks",
        needs_probe=True,
    )


def noisy(e: Evidence) -> Finding | None:
    """The held-out loss jumps about a level that it no longer leaves, at a learning rate that doesn't fall.

    Batches differ in their losses, whatever the weights do: what the weights' jumps cost shows on the same examples.
    """
    if e.rate_falls or len(e.validation) < 8 or (e.has_learned and e.is_flat):
        return None
    late = e.validation[(len(e.validation) - 1) // 2 :]
    late = np.delete(late, np.argmax(late))  # one evaluation alone is no level
    changes, jumps = np.diff(late), scatter(late)
    least = SEEN if e.is_flat else NOTHING
    if changes[changes > 0].sum() < np.abs(changes).sum() / 4 or jumps < least * e.height(e.validation[0]):
        return None
    if e.is_flat and (
        e.model is None or not e.is_walking
    ):  # labels without a meaning look alike: a probe rules them out
        return None
    return Finding(
        "noisy",
        "ill",
        f"validation/loss goes up and down between {late.min():.4g} and {late.max():.4g} in the second half",
        "a schedule that ends at 0, a larger batch, an average of the weights (ema=0.99), or a third of the rate",
        "Bottou, Curtis, Nocedal 2018, arXiv 1606.04838, theorem 4.6",
        {"schedule": "warmup_cosine"} if e.settings else {},
        needs_probe=e.is_flat,  # whatever is wrong beside it explains more
    )


def spikes(e: Evidence) -> Finding | None:
    """The loss jumps by more than it has gained, and comes back."""
    if len(e.loss) < 20 or e.is_flat or e.share_gained <= 0:
        return None
    gained = e.smooth[0] - np.minimum.accumulate(e.smooth)
    half = np.arange(len(e.loss)) >= len(e.loss) // 4
    at = np.flatnonzero(half & (e.loss - e.smooth > np.maximum(gained, NOISY * e.height(e.smooth[0]))))
    if not len(at):
        return None
    steps = e.curve("train/loss")[0]
    return Finding(
        "spikes",
        "note",
        f"{len(at)} of {len(e.loss)} logged losses jump by more than had been gained and come back, the first at step "
        f"{steps[at[0]]}",
        "half the learning rate, a longer warm-up, clip_norm=1.0, or a lower b2 in Adam",
        "Molybog et al. 2023, arXiv 2304.09871; Cohen et al. 2021, arXiv 2103.00065",
        rate_times(e, 1 / 2),
    )


def still_improving(e: Evidence) -> Finding | None:
    """The held-out loss falls as fast at the end as in the middle, at a learning rate that doesn't fall."""
    values = e.validation
    if len(values) < 8 or e.rate_falls or e.is_flat:
        return None
    quarter = len(values) // 4
    middle, late = (values[i * quarter] - values[(i + 1) * quarter - 1] for i in (2, 3))
    if late < STEADY * middle or late <= NOTHING * values[-1] or values[-1] > values.min():
        return None
    return Finding(
        "still improving",
        "note",
        f"validation/loss fell by {late:.3g} in the last quarter of the run, and by {middle:.3g} in the one before",
        "more steps, or a higher learning rate that falls to 0 at the end",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 11.4.1",
    )


def ordered(e: Evidence) -> Finding | None:
    """Examples are drawn in the data's order."""
    if e.settings.get("draw") not in ("ordered", "stream"):
        return None
    return Finding(
        "data in order",
        "note",
        f"draw={e.settings['draw']}: neighbours in the data are neighbours in a batch",
        "draw=shuffled, unless the order is the point",
        "Bengio 2012, arXiv 1206.5533, section 2.2",
        {"draw": "shuffled"},
    )


def skipped(e: Evidence) -> Finding | None:
    """The guard left out steps."""
    if not e.skipped:
        return None
    return Finding(
        "steps skipped",
        "note",
        f"the guard left out {len(e.skipped)} steps, the first at {e.skipped[0]}",
        "look at those batches (skipped.jsonl names their examples), or half the learning rate",
    )


# In the order of their gravity: what explains the others comes first.
CURVE_RULES: tuple[Rule, ...] = (
    diverged,
    nothing_moves,
    starts_far_off,
    decay_too_strong,
    warmup_too_short,
    rate_too_high,
    gradient_collapsed,
    schedule_ended,
    warmup_too_long,
    clipped,
    splits_differ,
    memorizing,
    rate_too_low,
    learns_nothing,
    noisy,
    overfitting,
    spikes,
    still_improving,
    ordered,
    skipped,
)
