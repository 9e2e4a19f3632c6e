"""Rules on the learning rate, and what else makes steps large or small: evidence -> a finding, or None."""

from __future__ import annotations

import math

import numpy as np

from optlab.diagnosis._evidence import FLAT, NOTHING, Evidence
from optlab.diagnosis._findings import LESS, MORE, Finding, fell, rate_times
from optlab.diagnosis._rules_of_splits import memorizing

STEADY = 0.4  # the share of its first value above which a gradient's norm counts as unchanged
COLLAPSED = 0.25  # the share below which it counts as gone
TURNED = 0.5  # of a matrix, in spectral norms: what it does is new (Yang, Simon, Bernstein 2023, arXiv 2310.17813)
ABOVE = 1.2  # times its first value
TOO_MUCH_DECAY = 0.05  # of the weights in a step


def schedule_ended(e: Evidence) -> Finding | None:
    """The learning rate was 0 for a good part of the run, and the loss stood still there."""
    steps, rates = e.rate
    if len(rates) < 5 or rates.max() <= 0 or e.length is None:
        return None
    last = steps[rates > 1e-3 * rates.max()][-1]
    idle = (e.steps[-1] - last) / e.length
    if idle < 0.15:
        return None
    return Finding(
        "schedule ended too early",
        "ill",
        f"after step {last} of {e.length} the learning rate is below a thousandth of its peak",
        "a schedule as long as the run (in configs it is; in Python give it the run's steps)",
    )


def warmup_too_long(e: Evidence) -> Finding | None:
    """The learning rate was still rising in the second half of the run."""
    steps, rates = e.rate
    if len(rates) < 5 or rates.max() <= 0 or e.length is None:
        return None
    if (top := steps[np.argmax(rates)]) <= e.length / 2:
        return None
    if rates[0] > 0.5 * rates.max():
        return None
    return Finding(
        "warm-up too long",
        "ill",
        f"the learning rate rises until step {top} of {e.length}",
        "a warm-up of a twentieth of the run",
        "Gilmer et al. 2022, arXiv 2110.04369",
        {"schedule.warmup": 0.05} if "schedule.warmup" in e.settings else {},
    )


def warmup_too_short(e: Evidence) -> Finding | None:
    """The loss jumped far above its beginning early, and fell below it at a rate that was as high."""
    (steps, losses), (at, rates) = e.curve("train/loss"), e.rate
    if not _has_burst(e) or len(rates) < 5 or rates.max() <= 0:
        return None
    top = int(np.argmax(e.smooth))
    high = steps <= at[rates >= rates.max() / 2][-1]
    late = e.smooth[high & (np.arange(len(losses)) > top)]
    if steps[top] > e.steps[-1] / 4 or not len(late) or e.height(late[-1]) > (1 - FLAT) * e.height(losses[0]):
        return None
    return Finding(
        "warm-up too short",
        "ill",
        f"train/loss rose from {losses[0]:.4g} to {e.smooth[top]:.4g} at step {steps[top]}, and fell to {late[-1]:.4g} "
        "before the learning rate was half of its peak: only the beginning doesn't bear it",
        "a warm-up of a twentieth of the run or longer, clip_norm=1.0, or a third of the learning rate",
        "Gilmer et al. 2022, arXiv 2110.04369",
        {"schedule.warmup": 0.1} if "schedule.warmup" in e.settings else {},
    )


def _ends_above(e: Evidence) -> bool:
    """True if the training loss ends clearly above its first value, and so does the held-out one."""
    values = e.validation
    if len(e.loss) < 8 or len(values) < 4 or e.floor < 0:
        return False
    is_clear = e.smooth[-1] - e.smooth[0] > 2 * e.spread
    return bool(is_clear and e.smooth[-1] > ABOVE * e.smooth[0] and values[-1] > ABOVE * values[0])


def _has_burst(e: Evidence) -> bool:
    return len(e.loss) >= 3 and e.has_exploded(int(np.argmax(e.smooth)))


def rate_too_high(e: Evidence) -> Finding | None:
    """The loss jumped far above its beginning, or ends above it."""
    if _ends_above(e):
        return too_high(e, f"train/loss rose from {e.smooth[0]:.4g} to {e.smooth[-1]:.4g}")
    if not _has_burst(e) or warmup_too_short(e) is not None:
        return None
    top = float(e.smooth.max())
    return too_high(e, f"train/loss rose from {e.loss[0]:.4g} to {top:.4g} before it fell")


def gradient_collapsed(e: Evidence) -> Finding | None:
    """The loss stays flat though the gradient has collapsed."""
    _, norms = e.curve("train/gradient_norm")
    if len(norms) < 5 or not e.is_flat or np.median(norms[1:]) >= COLLAPSED * norms[0]:
        return None
    if e.share_gained >= 2 * FLAT or e.floor < 0:  # it fits its training examples; below 0 a batch's loss says little
        return None
    return too_high(
        e,
        f"train/loss {fell(e.smooth[0], e.share_gained, e.smooth[-1])} and stays there, though the gradient's norm "
        f"fell from {norms[0]:.3g} to {np.median(norms[1:]):.3g}: the outputs hardly depend on the inputs any more",
    )


def too_high(e: Evidence, because: str) -> Finding:
    return Finding(
        "learning rate too high",
        "ill",
        because,
        LESS,
        "Cohen et al. 2021, arXiv 2103.00065 (stability); Lu et al. 2019, arXiv 1903.06733 (dying units)",
        rate_times(e, 1 / 3),
    )


def rate_too_low(e: Evidence) -> Finding | None:
    """The loss hardly falls, but at an even pace, and the gradient is as long as at the beginning.

    Far from where a loss ends, it falls by every step, in proportion to the learning rate; near it, as e^(−way). The
    second half of the way then brings as much as the first, or less by up to e where the run has two time constants; by
    as much more, it leaves a plateau. Where a probe saw a matrix that is another one by half, the rate isn't why.
    """
    _, norms = e.curve("train/gradient_norm")
    if len(norms) < 5 or e.gained >= FLAT or np.median(norms[1:]) < STEADY * norms[0] or e.pace is None:
        return None
    if e.is_walking or e.height(e.smooth.max()) > 1.5 * e.height(e.loss[0]) or memorizing(e) is not None:
        return None
    turned = [x.turned for x in e.layers if x.is_matrix and x.turned is not None]
    if turned and max(turned) > TURNED:
        return None
    first, second = e.pace
    if min(first, second) <= 0 or not 1 / math.e <= second / first <= math.e:
        return None
    # Slow as it is, what beats a guess is learning; without a probe or an accuracy nobody knows where a guess is.
    is_sure = not e.knows and (bool(turned) or e.knows is False or e.gained < NOTHING)
    return Finding(
        "learning rate too low",
        "ill" if is_sure else "note",
        f"the loss fell by {e.gained:.0%} in {e.steps[-1]} steps, at the end as fast for its learning rate as "
        f"at the beginning, and the gradient's norm stays ({norms[0]:.3g}, in the middle {np.median(norms):.3g})",
        MORE,
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 11.4.1",
        rate_times(e, 3),
    )


def decay_too_strong(e: Evidence) -> Finding | None:
    """Decoupled decay removes a large part of the weights in every step."""
    decay, rate = e.settings.get("optimizer.weight_decay"), e.settings.get("optimizer.learning_rate")
    if not isinstance(decay, int | float) or not isinstance(rate, int | float):
        return None
    share = decay * rate
    if share < TOO_MUCH_DECAY or len(e.loss) < 2 or 1 - e.share_gained < 0.2:
        return None
    return Finding(
        "weight decay too strong",
        "ill",
        f"a step removes {share:.0%} of the weights (weight_decay={decay:g} times learning_rate={rate:g}), and "
        f"train/loss {fell(e.smooth[0], e.share_gained, e.smooth[-1])}",
        "a tenth of the decay for each step; 0.1 is usual",
        "Loshchilov and Hutter 2019, arXiv 1711.05101",
        {"optimizer.weight_decay": 0.1},
    )


def clipped(e: Evidence) -> Finding | None:
    """Nearly every gradient is longer than the limit that it is clipped to."""
    limit, (_, norms) = e.settings.get("clip_norm"), e.curve("train/gradient_norm")
    if limit is None and e.model is not None:
        limit = e.model.clip
    if not isinstance(limit, int | float) or len(norms) < 5 or (share := float(np.mean(norms > limit))) < 0.9:
        return None
    return Finding(
        "clipped nearly always",
        "ill" if e.share_gained < FLAT or ("clip_norm" not in e.settings and e.is_left) else "note",
        f"{share:.0%} of the logged gradients are longer than the {limit:.3g} that they are cut to; their median is "
        f"{np.median(norms):.3g}",
        "a limit that cuts only outliers; rules such as Adam and Muon don't see a gradient's length",
        "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063",
        {"clip_norm": float(f"{2 * float(np.median(norms)):.2g}")} if "clip_norm" in e.settings else {},
    )
