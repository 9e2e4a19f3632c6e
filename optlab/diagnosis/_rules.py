"""The rules of a diagnosis, one a function: evidence -> a finding, or None. They compare a run with itself.

The thresholds stand between what planted faults and
healthy runs show; `benchmarks/diagnosis.py` measures both.
"""

from __future__ import annotations

import math

import numpy as np

from optlab.diagnosis._evidence import FLAT, NOTHING, Evidence, smoothed
from optlab.diagnosis._findings import Finding, Rule, rate_times

LEARNED = 0.15  # from this share of the loss on, training has learned something
EXPLODED = 3.0  # times the first loss
FAR_OFF = 15.0  # nats: the cross-entropy of a uniform guess among three million classes
STEADY = 0.4  # the share of its first value above which a gradient's norm counts as unchanged
COLLAPSED = 0.25  # the share below which it counts as gone
EARLY = 0.1  # of the run
RISE = 0.15  # of what the validation loss had gained
NOISY = 0.1  # of the first loss
TOO_MUCH_DECAY = 0.05  # of the weights in a step


def diverged(e: Evidence) -> Finding | None:
    """The loss became NaN or infinite, or ended far above where it began."""
    losses, steps = e.metrics["train/loss"], e.steps
    bad = steps[np.isinf(losses) | (np.isnan(losses) & ~np.isnan(e.metrics.get("train/gradient_norm", losses)))]
    rise = f"; the loss had risen from {e.loss[0]:.4g} to {e.loss[-1]:.4g}" if len(e.loss) > 1 else ""
    if e.outcome == "NonFiniteError" or len(bad):
        where = f"at step {bad[0]}" if len(bad) else f"after step {steps[-1]}"
        because = f"the loss or the gradient wasn't finite {where}{rise}"
    elif len(e.loss) > 2 and e.smooth[-1] > EXPLODED * e.smooth[0]:
        because = f"the loss rose from {e.smooth[0]:.4g} to {e.smooth[-1]:.4g}"
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


def nothing_moves(e: Evidence) -> Finding | None:
    """The held-out loss is the same number in every evaluation, or the learning rate is 0."""
    values, (_, rates) = e.validation, e.rate
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
        "a learning rate above 0; check what is frozen or masked (optlab explain shows each parameter's rule)",
        is_fatal=True,
    )


def starts_far_off(e: Evidence) -> Finding | None:
    """The first loss is far above that of a uniform guess."""
    if e.chance is None and "train/accuracy" not in e.metrics:
        return None  # only a classifier's loss has a scale of its own
    limit = EXPLODED * e.chance if e.chance is not None else FAR_OFF
    if not len(e.loss) or e.loss[0] <= limit:
        return None
    if e.model is not None and e.model.first_loss <= limit:
        before = (
            f"before the first update the loss is {e.model.first_loss:.4g}, and {e.loss[0]:.4g} at step {e.steps[0]}"
        )
        return _too_high(e, before)
    guess = f"a uniform guess has {e.chance:.3g}" if e.chance is not None else "a uniform guess is far below that"
    return Finding(
        "starts far off",
        "ill",
        f"train/loss is {e.loss[0]:.4g} at step {e.steps[0]}; {guess}",
        "standardize the inputs and check the initialization; if the loss before the first update is usual, a tenth "
        "of the learning rate",
        "Glorot and Bengio 2010 (initialization); LeCun et al. 1998, Efficient BackProp, section 4.3 (inputs)",
    )


def rate_too_high(e: Evidence) -> Finding | None:
    """The loss jumped far above its beginning."""
    if len(e.loss) < 3 or (top := float(e.smooth.max())) <= EXPLODED * max(e.loss[0], e.smooth[0]):
        return None
    return _too_high(e, f"train/loss rose from {e.loss[0]:.4g} to {top:.4g} before it fell")


def gradient_collapsed(e: Evidence) -> Finding | None:
    """The loss stays flat though the gradient has collapsed."""
    _, norms = e.curve("train/gradient_norm")
    if len(norms) < 5 or not e.is_flat or np.median(norms[1:]) >= COLLAPSED * norms[0]:
        return None
    return _too_high(
        e,
        f"train/loss fell by {max(e.share_gained, 0):.0%} and stays there, though the gradient's norm fell from "
        f"{norms[0]:.3g} to {np.median(norms[1:]):.3g}: the outputs hardly depend on the inputs any more",
    )


def _too_high(e: Evidence, because: str) -> Finding:
    return Finding(
        "learning rate too high",
        "ill",
        because,
        "a third of the learning rate, then a tenth; a warm-up; less weight decay if that is large",
        "Cohen et al. 2021, arXiv 2103.00065 (stability); Lu et al. 2019, arXiv 1903.06733 (dying units)",
        rate_times(e, 1 / 3),
    )


def decay_too_strong(e: Evidence) -> Finding | None:
    """Decoupled decay removes a large part of the weights in every step."""
    decay, rate = e.settings.get("optimizer.weight_decay"), e.settings.get("optimizer.learning_rate")
    if not isinstance(decay, int | float) or not isinstance(rate, int | float):
        return None
    share = decay * rate
    if share < TOO_MUCH_DECAY or 1 - e.share_gained < 0.2:
        return None
    return Finding(
        "weight decay too strong",
        "ill",
        f"a step removes {share:.0%} of the weights (weight_decay={decay:g} times learning_rate={rate:g}), and "
        f"train/loss fell by {max(e.share_gained, 0):.0%} alone",
        "a tenth of the decay for each step; 0.1 is usual",
        "Loshchilov and Hutter 2019, arXiv 1711.05101",
        {"optimizer.weight_decay": 0.1},
    )


def schedule_ended(e: Evidence) -> Finding | None:
    """The learning rate was 0 for a good part of the run, and the loss stood still there."""
    steps, rates = e.rate
    if len(rates) < 5 or rates.max() <= 0:
        return None
    last = steps[rates > 1e-3 * rates.max()][-1]
    idle = 1 - last / e.steps[-1]
    if idle < 0.15:
        return None
    return Finding(
        "schedule ended too early",
        "ill",
        f"after step {last} of {e.steps[-1]} the learning rate is below a thousandth of its peak",
        "a schedule as long as the run (in configs it is; in Python give it the run's steps)",
    )


def warmup_too_long(e: Evidence) -> Finding | None:
    """The learning rate was still rising in the second half of the run."""
    steps, rates = e.rate
    if len(rates) < 5 or rates.max() <= 0 or (top := steps[np.argmax(rates)]) <= e.steps[-1] / 2:
        return None
    if rates[0] > 0.5 * rates.max():
        return None
    return Finding(
        "warm-up too long",
        "ill",
        f"the learning rate rises until step {top} of {e.steps[-1]}",
        "a warm-up of a twentieth of the run",
        "Gilmer et al. 2022, arXiv 2110.04369",
        {"schedule.warmup": 0.05} if "schedule.warmup" in e.settings else {},
    )


def clipped(e: Evidence) -> Finding | None:
    """Nearly every gradient is longer than the limit that it is clipped to."""
    limit, (_, norms) = e.settings.get("clip_norm"), e.curve("train/gradient_norm")
    if not isinstance(limit, int | float) or len(norms) < 5 or (share := float(np.mean(norms > limit))) < 0.9:
        return None
    return Finding(
        "clipped nearly always",
        "ill" if e.share_gained < FLAT else "note",
        f"{share:.0%} of the logged gradients are longer than clip_norm={limit:g}; their median is "
        f"{np.median(norms):.3g}",
        "a limit that cuts outliers alone; rules such as Adam and Muon don't see a gradient's length",
        "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063",
        {"clip_norm": float(f"{2 * float(np.median(norms)):.2g}")},
    )


def splits_differ(e: Evidence) -> Finding | None:
    """The held-out loss is far above all training losses before it, and above those beside it in all evaluations.

    Before anything is learned, the two splits have the same loss up to sampling; running statistics of a norm, which
    make the first evaluations worse, catch up.
    """
    (at, losses), (when, values) = e.curve("train/loss"), e.curve("validation/loss")
    if len(values) < 4 or not len(losses) or when[0] > EARLY * e.steps[-1] or e.smooth[0] <= 0:
        return None
    top = float(losses[at <= when[0]].max()) if np.any(at <= when[0]) else float(losses[0])
    beside = np.interp(when, at, e.smooth)
    if values[0] <= EXPLODED * top or np.any(values <= EXPLODED * beside):
        return None
    return Finding(
        "splits differ",
        "ill",
        f"validation/loss is {values[0]:.4g} at step {when[0]}, where train/loss had been {top:.4g} at most, and "
        f"at least {np.min(values / np.maximum(beside, 1e-30)):.3g} times as large in all evaluations",
        "scale every split by the statistics of the training examples, and split at random; --probe compares the two",
        "Karpathy 2019, A recipe for training neural networks",
        needs_probe=True,
    )


def memorizing(e: Evidence) -> Finding | None:
    """Training learned something, of which nothing holds for the held-out examples."""
    gained, values = e.held_out_gain, e.validation
    if gained is None or e.share_gained < LEARNED or e.smooth[-1] > 0.95 * values[-1]:
        return None
    came_back = values[-1] > values[0] and gained < 4 * NOTHING and e.share_gained > 0.5
    if (gained > NOTHING and not came_back) or (e.chance is not None and values[0] < 0.8 * e.chance):
        return None
    return Finding(
        "memorizing",
        "ill",
        f"train/loss fell by {e.share_gained:.0%}, validation/loss by {gained:.0%} at best",
        "check that labels belong to their inputs (a shuffle of one without the other?), and that both splits are made "
        "and scaled alike",
        "Zhang et al. 2017, arXiv 1611.03530",
    )


def rate_too_low(e: Evidence) -> Finding | None:
    """The loss hardly falls, but at an even pace, and the gradient is as long as at the beginning.

    Far from where a loss ends, it falls in proportion to the learning rate; near it, as e^(−way). The second half of
    the way then brings as much as the first, or less by up to e where the run is two time constants long.
    """
    _, norms = e.curve("train/gradient_norm")
    if len(norms) < 5 or e.gained >= FLAT or np.median(norms[1:]) < STEADY * norms[0] or e.pace is None:
        return None
    if e.smooth.max() > 1.5 * e.loss[0] or memorizing(e) is not None:
        return None
    first, second = e.pace
    if second <= 0 or second < first / math.e:
        return None
    return Finding(
        "learning rate too low",
        "ill",
        f"the loss fell by {max(e.gained, 0):.0%} in {e.steps[-1]} steps, at the end as fast for its learning rate as at "
        f"the beginning, and the gradient's norm is where it was ({norms[0]:.3g}, in the middle {np.median(norms):.3g})",
        "three times the learning rate, then ten times; if that changes nothing: is the gradient clipped?",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 11.4.1",
        rate_times(e, 3),
    )


def learns_nothing(e: Evidence) -> Finding | None:
    """The loss stays where it was, though there is a gradient, and not for want of a learning rate."""
    if len(e.loss) < 8 or (e.gained >= NOTHING and not e.is_guessing) or e.share_gained >= LEARNED or e.has_learned:
        return None
    if rate_too_low(e) is not None or gradient_collapsed(e) is not None or memorizing(e) is not None:
        return None
    return Finding(
        "learns nothing",
        "ill",
        f"in {e.steps[-1]} steps train/loss fell by {max(e.share_gained, 0):.0%}"
        + ("" if e.held_out_gain is None else f", validation/loss by {max(e.gained, 0):.0%} at best")
        + ", and it doesn't go on falling: more of the same learning rate would change nothing",
        "optlab diagnose --probe: whether labels belong to their inputs, what the model ends in, how it was drawn and "
        "what is frozen doesn't show in curves; then ten times the learning rate, and a tenth",
        "Karpathy 2019, A recipe for training neural networks",
        needs_probe=True,
    )


def noisy(e: Evidence) -> Finding | None:
    """The loss jumps about a level that it no longer leaves, at a learning rate that doesn't fall."""
    _, rates = e.rate
    falls = len(rates) > 4 and rates[-1] < 0.5 * rates.max()
    if falls or len(e.loss) < 20 or e.noise < NOISY * e.smooth[0] or e.is_flat:
        return None
    quarter = len(e.loss) // 4
    early, late = np.median(e.loss[quarter : 2 * quarter]), np.median(e.loss[-quarter:])
    if late < 0.5 * early:
        return None
    return Finding(
        "noisy",
        "ill",
        f"train/loss scatters by {e.noise:.3g} about {late:.3g} in the second half, and was {early:.3g} before",
        "a schedule that ends at 0, a larger batch, or an average of the weights (ema=0.99)",
        "Bottou, Curtis, Nocedal 2018, arXiv 1606.04838, theorem 4.6",
        {"schedule": "warmup_cosine"} if e.settings else {},
    )


def overfitting(e: Evidence) -> Finding | None:
    """The held-out loss rises again while the training loss falls."""
    values, steps = e.validation, e.curve("validation/loss")[0]
    if len(values) < 5:
        return None
    curve = smoothed(values)
    best = int(np.argmin(curve))
    gain, rise = curve[0] - curve[best], curve[-1] - curve[best]
    if gain <= 0 or rise < RISE * gain or e.smooth[-1] > 0.7 * curve[best]:
        return None
    if e.noise > NOISY * e.smooth[0] or memorizing(e) is not None:
        return None
    return Finding(
        "overfitting",
        "ill",
        f"validation/loss rose from {curve[best]:.4g} at step {steps[best]} to {curve[-1]:.4g}, while train/loss fell "
        f"to {e.smooth[-1]:.4g}",
        "stop.patience=3, more data or augmentation, more weight decay, dropout, or a smaller model",
        "Prechelt 1998, Early stopping - but when?",
        {"stop.patience": 3} if e.settings else {},
    )


def spikes(e: Evidence) -> Finding | None:
    """The loss jumps by more than it has gained, and comes back."""
    if len(e.loss) < 20 or e.is_flat or e.share_gained <= 0:
        return None
    gained = e.smooth[0] - np.minimum.accumulate(e.smooth)
    half = np.arange(len(e.loss)) >= len(e.loss) // 4
    at = np.flatnonzero(half & (e.loss - e.smooth > np.maximum(gained, NOISY * e.smooth[0])))
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
    values, (_, rates) = e.validation, e.rate
    falls = len(rates) > 4 and rates[-1] < 0.5 * rates.max()
    if len(values) < 8 or falls or e.is_flat:
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
