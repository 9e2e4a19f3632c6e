"""Rules on what a probe saw in the model, one a function: evidence -> a finding, or None."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from optlab.diagnosis._evidence import EXPLODED, FLAT, Evidence
from optlab.diagnosis._findings import DRAW, LESS, Finding, Rule, Severity, cause, listed, rate_times
from optlab.diagnosis._programs import EXAMPLES, KEYS
from optlab.diagnosis._rules import diverged
from optlab.diagnosis._rules_of_rates import gradient_collapsed, rate_too_high, too_high, warmup_too_short
from optlab.diagnosis._rules_of_updates import (
    APART,
    MOST,
    cut_off,
    frozen,
    hardly_turned,
    no_learning_rate,
    none_moved,
    pull,
    rounded,
    shrunk,
    uphill,
    wrong_routing,
)

if TYPE_CHECKING:
    from optlab.diagnosis._layers import Layer

SURE = 0.99  # mean of the largest probability
CROWDED = 0.75  # mean of the largest attention, of drawn weights: those of keys that are alike have a few per cent
OTHER = 0.5  # of a matrix, in spectral norms
STEEP = 1e3  # a change of one per cent changes the loss tenfold


def wrong_loss(e: Evidence) -> Finding | None:
    """The loss takes another kind of outputs than the model gives."""
    m = e.model
    if m is not None and m.is_crossed:
        return cause(
            "wrong loss for the output",
            "the loss subtracts every label from every output: (N, 1) − (N,) is (N, N)",
            "one shape for both: outputs.reshape(labels.shape), or optlab.training.squared_error",
        )
    if m is not None and e.is_class_one_number:
        return cause(
            "wrong loss for the output",
            "the labels are classes, and the model gives one number an example: it takes class 1 for half of class 2",
            "one output a class, and the cross-entropy of the outputs as logits",
            "Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2.3",
        )
    if m is not None and m.bounded:
        return _wrong_end(f"cross-entropy takes logits, numbers without bounds, and gets those of {m.bounded}")
    if m is None or m.outputs is None:
        return None
    classes = m.outputs.shape[-1] if m.outputs.ndim else 0
    labels = m.labels
    because = ""
    if m.is_cross_entropy and classes == 1:
        because = "the cross-entropy of one output is 0, whatever it is"
    elif m.is_cross_entropy and m.end in ("softmax", "logistic", "relu", "tanh"):
        because = f"cross-entropy takes logits, numbers without bounds, and the model ends in {m.end}"
    elif labels is not None and labels.dtype.kind == "f" and labels.size == m.outputs.size:
        low, high = {"softmax": (0, 1), "logistic": (0, 1), "tanh": (-1, 1), "relu": (0, math.inf)}.get(
            m.end or "", (-math.inf, math.inf)
        )
        outside = float(np.mean((labels < low) | (labels > high)))
        if outside > 0.1:
            because = f"{outside:.0%} of the labels lie outside of [{low}, {high}], where {m.end} ends the model"
    return _wrong_end(because) if because else None


def _wrong_end(because: str) -> Finding:
    return cause(
        "wrong loss for the output",
        because,
        "leave the last nonlinearity away: losses of logits have it inside",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2",
    )


def units_alike(e: Evidence) -> Finding | None:
    """All units of a layer have the same weights and the same gradient."""
    found = [layer.path for layer in e.layers if layer.is_symmetric]
    if not found:
        return None
    return cause(
        "bad initialization",
        f"all units of {listed(found)} have the same weights and the same gradient, and so they stay alike",
        DRAW,
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 8.4",
    )


def no_way_back(e: Evidence) -> Finding | None:
    """No gradient reaches any weights, neither now nor at the initialization, but biases have one."""
    matrices = [x for x in e.layers if x.is_matrix]
    if len(matrices) < 2 or any(x.gradient != 0 or x.first_gradient != 0 for x in matrices):
        return None
    if not e.is_flat_or_worse or not any(x.gradient > 0 for x in e.layers):
        return None
    return cause(
        "bad initialization",
        f"no gradient reaches {listed([x.path for x in matrices])}, as they were drawn and at step {e.at}: products of "
        "weights that are all 0 have none, or units that are all dead",
        DRAW,
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 8.4",
    )


def starts_off(e: Evidence) -> Finding | None:
    """The initial loss is far above that of a uniform guess."""
    m = e.model
    if m is None or not m.is_cross_entropy or m.first_outputs is None or m.first_outputs.shape[-1] < 2:
        return None
    chance = math.log(m.first_outputs.shape[-1])
    if not math.isfinite(m.first_loss) or m.first_loss < EXPLODED * chance:
        return None
    return cause(
        "bad initialization",
        f"before the first update the loss is {m.first_loss:.4g}, and that of a uniform guess log "
        f"{m.first_outputs.shape[-1]} = {chance:.3g}",
        "a smaller initialization of the last layer; standardized inputs",
        "Glorot and Bengio 2010; Karpathy 2019, A recipe for training neural networks",
    )


def exploded(e: Evidence) -> Finding | None:
    """The loss depends on a layer's scale a thousand times more than on its own."""
    far = [(layer, x) for layer in e.layers if layer.is_matrix and (x := pull(e, layer)) > STEEP]
    if not far or not e.is_unwell or e.share_gained >= 2 * FLAT:  # of a loss that is gone every change is large
        return None
    layer, most = max(far, key=lambda pair: pair[1])
    return cause(
        "exploded gradients",
        f"at step {e.at} a change of {layer.path} by 1 % changes the loss by {most:.3g} %",
        "normalization, residual connections, a smaller initialization; clip_norm=1.0",
        "Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063; Glorot and Bengio 2010",
        severity=_unless_burst(e),
    )


def vanished(e: Evidence) -> Finding | None:
    """The layers next to the input have next to no gradient beside others, and the loss is flat.

    A layer inside may have little of it for a reason of its own, as queries and keys of an even attention do; what
    vanishes on its way back is least where the way is longest.
    """
    pulls = {x.path: pull(e, x) for x in e.layers if x.is_matrix and x.weight > 0 and x.gradient > 0}
    most = max((pull(e, x) for x in e.layers), default=0.0)  # of biases, too: they may be all that has a gradient
    found = [path for path, its in pulls.items() if its < APART * most]
    first = [x.path for x in e.layers if x.is_input and x.path in pulls] or list(pulls)[:1]
    if not found or not set(first) & set(found) or not e.is_flat_or_worse:
        return None
    least = min(pulls, key=lambda path: pulls[path])
    return cause(
        "vanished gradients",
        f"at step {e.at} the gradient of {listed(found)} is next to nothing: scaling {least} changes the loss by "
        f"{pulls[least]:.2g}, scaling another parameter by {most:.2g}",
        "ReLU or GELU in place of sigmoids, normalization, residual connections, he_normal or orthogonal weights",
        "Glorot and Bengio 2010; Hochreiter 1991",
        severity=_unless_burst(e),
    )


def collapsed(e: Evidence) -> Finding | None:
    """The outputs have become the same for all examples."""
    first, now = _signals(e)
    if not e.is_flat or first is None or now is None or first < APART or now >= APART:
        return None
    return cause(
        "learning rate too high",
        f"at step {e.at} outputs differ by {now:.2g} from example to example, and by {first:.2g} as they were drawn: "
        "an update too large put out all units, or shrank the weights to nothing",
        LESS,
        "Lu et al. 2019, arXiv 1903.06733 (dying units)",
        rate_times(e, 1 / 3),
    )


def no_signal(e: Evidence) -> Finding | None:
    """The outputs as they were drawn are the same for all examples, and the loss is flat.

    Those of a head that starts at 0 are exactly so, which its first update ends: that is no fault by itself.
    """
    first, now = _signals(e)
    if not e.is_flat or first is None or now is None or first >= APART or (first == 0 and now >= APART):
        return None
    return cause(
        "bad initialization",
        f"outputs differ by {first:.2g} from example to example as they were drawn, and by {now:.2g} at step {e.at}: "
        "the signal is lost on its way through the layers, and so is the gradient on its way back",
        "weights with a variance of 2/fan_in (he_normal), normalization, residual connections",
        "Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852",
    )


def starts_saturated(e: Evidence) -> Finding | None:
    """The units of a layer, or its attention, are saturated as they were drawn."""
    if e.model is None:
        return None
    shares = e.model.first_saturation
    kind = max(("tanh", "logistic"), key=lambda kind: shares.get(kind, 0.0))
    if (share := shares.get(kind, 0.0)) > MOST:
        return cause(
            "bad initialization",
            f"as a layer was drawn, {share:.0%} of the values of its {kind} are within a hundredth of their bounds, "
            "where next to no gradient comes through",
            "weights with a variance of 1/fan_in (lecun_normal), standardized inputs, normalization",
            "Glorot and Bengio 2010",
        )
    if (share := shares.get("relu", 0.0)) > MOST:
        return cause(
            "dead units",
            f"as a layer was drawn, {share:.0%} of its ReLUs are 0 for all of {EXAMPLES} examples",
            "weights with a variance of 2/fan_in and a mean of 0 (he_normal), biases that start at 0, scaled inputs",
            "Lu et al. 2019, arXiv 1903.06733",
        )
    if (largest := shares.get("softmax", 0.0)) > CROWDED:
        because = f"as a layer of attention was drawn, each query has {largest:.0%} of it for one key, on average"
        try_ = "queries and keys with a variance of 1, their products divided by the root of a head's width"
    elif (largest := shares.get("logits", 0.0)) > CROWDED and e.model.first_loss > EXPLODED * math.log(KEYS):
        because = f"as the model was drawn, it is sure ({largest:.0%} on average for one class) and wrong"
        try_ = "a smaller initialization of the last layer, or a higher temperature"
    else:
        return None
    return cause("saturated softmax", because, try_, "Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1")


def overturned(e: Evidence) -> Finding | None:
    """A guess by frequency has the loss of a model whose matrices have become others."""
    turned = [x.turned for x in e.layers if x.is_matrix and x.turned is not None]
    if not e.knows_shares_alone or not turned or min(turned) < OTHER or e.is_flat:
        return None
    found = too_high(
        e,
        "all matrices are others than they were drawn as, and the held-out loss is that of a guess by frequency, "
        f"{e.validation.min():.3g}",
    )
    return dataclasses.replace(found, needs_probe=True)  # whatever else was seen explains more


def _signals(e: Evidence) -> tuple[float | None, float | None]:
    m = e.model
    return (None, None) if m is None or not m.step else (m.signal(m.first_outputs), m.signal(m.outputs))


def dead_units(e: Evidence) -> Finding | None:
    """The gradient of most units of a layer is exactly 0 on a whole batch."""
    shares = {x.path: share for x in e.layers if (share := _dead(e, x)) is not None and share > MOST}
    if not shares:
        return None
    worst = max(shares, key=lambda path: shares[path])
    return cause(
        "dead units",
        f"at step {e.at} {shares[worst]:.0%} of the units of {worst} have no gradient on a whole batch",
        "a lower learning rate or a warm-up, biases that start at 0, leaky_relu or gelu",
        "Lu et al. 2019, arXiv 1903.06733; Maas et al. 2013",
        rate_times(e, 1 / 3),
        severity=_unless_burst(e) if e.is_unwell else "note",
    )


def _dead(e: Evidence, layer: Layer) -> float | None:
    """The share of a layer's dead units: all, where its gradient is gone and another parameter still has one."""
    is_gone = layer.is_matrix and layer.gradient == 0 and bool(layer.first_gradient)
    return 1.0 if is_gone and any(x.gradient > 0 for x in e.layers) else layer.dead


def saturated(e: Evidence) -> Finding | None:
    """The probabilities are nearly 0 and 1, and wrong."""
    m = e.model
    if m is None or not m.is_cross_entropy or m.outputs is None or m.outputs.shape[-1] < 2:
        return None
    weights = np.exp(m.outputs - m.outputs.max(axis=-1, keepdims=True))
    sure = float(np.mean(1 / weights.sum(axis=-1)))  # the largest probability
    if not math.isfinite(sure) or sure < SURE or m.loss < math.log(m.outputs.shape[-1]):
        return None
    return cause(
        "saturated softmax",
        f"at step {e.at} the largest probability is {sure:.3f} on average, and the loss {m.loss:.3g} above that of a "
        "uniform guess",
        "smaller logits: a smaller initialization or learning rate, logits divided by a temperature, label smoothing",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2.3",
        rate_times(e, 1 / 10),
        severity=_unless_burst(e),
    )


def began(e: Evidence) -> Finding | None:
    """The layer in which a divergence began."""
    if e.model is None or e.model.began is None:
        return None
    path, step = e.model.began
    return cause(
        "where it began",
        f"trained again from step {e.at}, {path} is the first whose gradient leaves its scale, at step {step}",
        "look at what stands before that layer: a logarithm, a division, an exponential, a norm of 0",
        severity="note",
    )


def _unless_burst(e: Evidence) -> Severity:
    """An ill, but a note in a model that a burst of the loss has left behind: there it is what came of that."""
    is_burst = e.at > 0 and any(
        rule(e) is not None for rule in (diverged, warmup_too_short, rate_too_high, gradient_collapsed)
    )
    return "note" if is_burst else "ill"


MODEL_RULES: tuple[Rule, ...] = (
    uphill,
    no_learning_rate,
    wrong_loss,
    units_alike,
    no_way_back,
    none_moved,
    cut_off,
    rounded,
    frozen,
    shrunk,
    exploded,
    starts_off,
    starts_saturated,
    overturned,
    collapsed,
    vanished,
    no_signal,
    wrong_routing,
    dead_units,
    saturated,
    hardly_turned,
    began,
)
