"""Rules on what a run's updates did to its parameters, one a function: evidence -> a finding, or None."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from optlab.diagnosis._evidence import Evidence
from optlab.diagnosis._findings import MORE, MOVE, Finding, cause, listed, rate_times
from optlab.diagnosis._rules_of_rates import clipped, schedule_ended, warmup_too_long

if TYPE_CHECKING:
    from optlab.diagnosis._layers import Layer

MOST = 0.5  # of a layer's units
# ‖∂L/∂w‖‖w‖/L is by how much the loss changes where a layer's weights are scaled. It is of order 1 in layers that are
# alike; where one's is a ten-thousandth of another's, one learns and the other doesn't.
APART = 1e-4
TURNED = 0.1  # of itself: a tenth of one order
ROUNDED = 0.25  # of the entries, where much of the loss is left
SHRUNK, GONE = 0.5, 0.2  # of each matrix: of two, a quarter of their product
UNRATED = 0.3  # of the weights in one step


def uphill(e: Evidence) -> Finding | None:
    """The optimizer's update has a positive cosine with the gradient."""
    is_measured = e.model is not None and e.model.uphill is not None and e.model.uphill > 0.1
    if e.model is not None and e.model.climbing:
        return cause(
            "updates point uphill",
            f"the first updates of {listed(list(e.model.climbing))} go along the gradient, and others against it",
            "end each part of the optimizer in optlab.scale_by_learning_rate, which turns the sign",
        )
    if e.outcome != "UphillError" and not (is_measured and e.is_unwell):
        return None
    cosine = f": its cosine with the gradient is {e.model.uphill:.2f}" if e.model and is_measured else ""
    return cause(
        "updates point uphill",
        f"the first update goes along the gradient, not against it{cosine}",
        "end the optimizer in optlab.scale_by_learning_rate, which turns the sign",
    )


def no_learning_rate(e: Evidence) -> Finding | None:
    """No learning rate was logged, and an update is as large as the weights."""
    size = None if e.model is None else e.model.step_size
    if size is None or size < UNRATED:
        return None
    return cause(
        "no learning rate",
        f"no learning rate is known of the optimizer, and its first updates have {size:.0%} of the weights' norm each",
        "end it in optlab.scale_by_learning_rate(1e-3)",
    )


def none_moved(e: Evidence) -> Finding | None:
    """No parameter has changed, though running statistics may have."""
    if not e.at or not e.layers or any(x.moved != 0 for x in e.layers):
        return None
    found = cause(
        "nothing moves",
        f"in {e.at} steps no entry of any parameter has changed",
        MOVE,
    )
    return dataclasses.replace(found, is_fatal=True)


def cut_off(e: Evidence) -> Finding | None:
    """No gradient reaches some weights, neither now nor at the initialization."""
    weights = [x for x in e.layers if x.is_matrix or x.role == "embedding"]
    found = [x.path for x in weights if x.gradient == 0 and x.first_gradient == 0]
    if e.model is not None and e.model.first_saturation.get("relu", 0.0) > MOST:
        return None  # that is why
    if not e.at or not found or len(found) == len(weights):
        return None
    return cause(
        "a part frozen",
        f"no gradient reaches {listed(found)}, neither at the initialization nor at step {e.at}",
        "is there a stop_gradient, a branch that isn't used, or a layer of dead units behind them?",
        severity="ill" if e.is_unwell or any(x.is_used for x in e.layers if x.path in found) else "note",
    )


def rounded(e: Evidence) -> Finding | None:
    """Updates are smaller than half a unit in the last place."""
    low = [x for x in e.layers if x.bits < 23 and x.stuck is not None and (x.is_matrix or x.role == "embedding")]
    found = [x for x in low if x.stuck is not None and x.stuck > (ROUNDED if e.is_left else MOST)]
    if not e.at or len(found) <= len(low) / 2 or all(x.stuck == 1 for x in low):
        return None  # where nothing at all moves, that has a rule of its own
    worst = max(found, key=lambda x: x.stuck or 0)
    return cause(
        "updates round to nothing",
        f"after {e.at} steps {worst.stuck:.0%} of the entries of {worst.path} are what they were drawn as: with "
        f"{worst.bits} bits an update below {2.0 ** -(worst.bits + 1):.2g} of a weight is lost",
        "parameters in float32 (bfloat16 in the model alone), or stochastic rounding",
        "Micikevicius et al. 2018, arXiv 1710.03740, section 3.1",
    )


def frozen(e: Evidence) -> Finding | None:
    """Weights with a gradient still are what they were drawn as."""
    matrices = [x for x in e.layers if x.is_matrix or x.role == "embedding"]
    least = APART * max((pull(e, x) for x in matrices), default=0.0)  # below it updates may round to nothing
    found = [x.path for x in matrices if x.moved == 0 and pull(e, x) > least]
    if not e.at or not found:
        return None
    if all(x.moved == 0 for x in e.layers):
        return None  # nothing moves at all: that has a rule of its own
    return cause(
        "a part frozen",
        f"in {e.at} steps no entry of {listed(found)} has changed since it was drawn, though there is a gradient",
        "optlab explain shows each parameter's rule: is one masked, without a rule, or set to zero?",
        severity="note" if e.model is not None and e.model.is_frozen_by_name else "ill",
    )


def shrunk(e: Evidence) -> Finding | None:
    """All matrices have shrunk, and much of the loss is left; or next to nothing of them is there."""
    sizes = {x.path: x.weight / x.first_weight for x in e.layers if x.is_matrix and x.first_weight}
    if len(sizes) < 2 or (most := max(sizes.values())) > (SHRUNK if e.is_left else GONE):
        return None
    return cause(
        "weight decay too strong",
        f"at step {e.at} no matrix has more than {most:.0%} of the norm that it was drawn with",
        "a tenth of the weight decay, or of the penalty in the loss",
        "Loshchilov and Hutter 2019, arXiv 1711.05101",
    )


def wrong_routing(e: Evidence) -> Finding | None:
    """A rule for hidden matrices moves a head or an embedding."""
    if e.model is None or not e.model.orthogonalized:
        return None
    return cause(
        "wrong routing",
        f"{listed(list(e.model.orthogonalized))} is a head or an embedding, and a rule that orthogonalizes moves it",
        'optlab.by_role({"matrix": …, "default": …}) routes by role; a layout of yours may override one',
        "Jordan et al. 2024, Muon: an optimizer for hidden layers",
    )


def hardly_turned(e: Evidence) -> Finding | None:
    """The loss is flat, and no matrix does anything else than it did at the initialization.

    What a layer does changes by the spectral norm of its update over its own; features are learned where the two are
    of one order.
    """
    if any(rule(e) is not None for rule in (schedule_ended, warmup_too_long, clipped)):
        return None  # these are why
    turned = {x.path: x.turned for x in e.layers if x.is_matrix and x.turned is not None}
    if not e.at or not turned or not e.is_flat_or_worse or not 0 < (most := max(turned.values())) < TURNED:
        return None
    return cause(
        "learning rate too low",
        f"in {e.at} steps no matrix changed by more than {most:.2g} of itself (spectral norms), and the loss is flat",
        MORE,
        "Yang, Simon, Bernstein 2023, arXiv 2310.17813",
        rate_times(e, 3),
    )


def pull(e: Evidence, layer: Layer) -> float:
    """By how much the loss changes, in parts of itself, where a layer's weights are scaled."""
    assert e.model is not None
    loss = abs(e.model.loss)
    return layer.gradient * layer.weight / loss if loss > 0 else 0.0
