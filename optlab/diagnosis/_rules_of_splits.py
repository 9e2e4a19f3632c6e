"""Rules on the held-out loss beside the training loss, one a function: evidence -> a finding, or None."""

from __future__ import annotations

import math

import numpy as np

from optlab.diagnosis._evidence import EXPLODED, NOTHING, Evidence, smoothed
from optlab.diagnosis._findings import Finding

EARLY = 0.1  # of the run
LEARNED = 0.15  # from this share of the loss on, training has learned something
CLEAR = 2.0  # times the scatter
AFRESH = 0.5  # of its first loss: less is gained by what was trained before
RISE = 0.15  # of what the validation loss had gained


def splits_differ(e: Evidence) -> Finding | None:
    """The held-out loss is far above all training losses before it, and above those beside it in all evaluations.

    Before anything is learned, the two splits have the same loss up to sampling; running statistics of a norm, which
    make the first evaluations worse, catch up. A model that was trained before knows its training examples better: it
    gains little of its first loss, or does better than a guess on the held-out ones.
    """
    (at, losses), (when, values) = e.curve("train/loss"), e.curve("validation/loss")
    if len(values) < 4 or not len(losses) or when[0] > EARLY * e.steps[-1]:
        return None
    if e.data is not None:  # a probe compares the two themselves
        return None
    if e.share_gained < AFRESH or (e.knew(0) and values[0] < math.log(2)):
        return None
    top = float(losses[at <= when[0]].max()) if np.any(at <= when[0]) else float(losses[0])
    beside = np.interp(when, at, e.smooth)
    ratios = e.height(values) / np.maximum(e.height(beside), 1e-30)
    if e.height(values[0]) <= EXPLODED * e.height(top) or np.any(ratios <= EXPLODED):
        return None
    return Finding(
        "splits differ",
        "ill",
        f"validation/loss is {values[0]:.4g} at step {when[0]}, where train/loss had been {top:.4g} at most, and "
        f"at least {np.min(ratios):.3g} times as large in all evaluations",
        "scale every split by the statistics of the training examples, and split at random; --probe compares the two",
        "Karpathy 2019, A recipe for training neural networks",
    )


def memorizing(e: Evidence) -> Finding | None:
    """Training learned something, of which nothing holds for the held-out examples."""
    gained, values = e.held_out_gain, e.validation
    if gained is None or e.is_informed or not _is_below(e, 0.95, values[-1]):
        return None
    if values.min() < (1 - LEARNED) * e.loss[0]:  # something was learned before the first evaluation
        return None
    # What ends above its beginning held for nothing, however little training has learned; else it learned a good part.
    # A first loss may be above that of a guess, and so a fall alone doesn't show that something was learned.
    knew = e.knew(int(np.argmin(values)))
    least = LEARNED if knew is None else 4 * NOTHING
    came_back = values[-1] > values[0] and gained < least and e.smooth[0] - e.smooth[-1] > CLEAR * e.noise
    if e.share_gained < (NOTHING if came_back else LEARNED):
        return None
    if knew or (gained > NOTHING and not came_back) or (e.chance is not None and values[0] < 0.8 * e.chance):
        return None
    return Finding(
        "memorizing",
        "ill",
        f"train/loss fell by {e.share_gained:.0%}, validation/loss by {gained:.0%} at best",
        "check that labels belong to their inputs (a shuffle of one without the other?), and that both splits are made "
        "and scaled alike",
        "Zhang et al. 2017, arXiv 1611.03530",
    )


def overfitting(e: Evidence) -> Finding | None:
    """The held-out loss rises again while the training loss falls."""
    values, steps = e.validation, e.curve("validation/loss")[0]
    if len(values) < 5:
        return None
    curve = smoothed(values)
    best = int(np.argmin(curve))
    gain, rise = curve[0] - curve[best], curve[-1] - curve[best]
    if e.share_gained < AFRESH and curve[-1] <= curve[0]:  # what was trained before gains little, and wavers
        return None
    # All that was gained and lost again needs no wide gap beside it.
    below = 0.95 if curve[-1] > curve[0] else 0.7
    if rise < RISE * gain or not _is_below(e, below, curve[best]) or memorizing(e) is not None:
        return None
    # Where the first evaluation is the best one, a probe has to have seen that something held for others.
    if gain <= 0 and not (e.is_informed and rise > RISE * e.height(curve[best])):
        return None
    return Finding(
        "overfitting",
        "ill",
        f"validation/loss rose from {curve[best]:.4g} at step {steps[best]} to {curve[-1]:.4g}, while train/loss fell "
        f"to {e.late[0]:.4g}",
        "stop.patience=3, more data or augmentation, more weight decay, dropout, or a smaller model",
        "Prechelt 1998, Early stopping - but when?",
        {"stop.patience": 3} if e.settings else {},
    )


def _is_below(e: Evidence, share: float, loss: float) -> bool:
    """True if the late training loss is surely below a share of a held-out one, whatever batches were drawn."""
    mean, error = e.late
    return bool(e.height(mean) + CLEAR * error < share * e.height(loss))
