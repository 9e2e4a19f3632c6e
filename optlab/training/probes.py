"""What the probes of an optimizer measured in a step, as metrics of that step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from optlab._probes import METRICS, SPECTRUM, find_probes
from optlab.training.workload import Metrics


def probe_metrics(before: Any, after: Any) -> Metrics:
    """(value, 1) by "probe/<name>/<metric>", or (0, 0) for what wasn't measured in the step from `before` to `after`.

    Args:
      before: the optimizer's state before the step; its probes' counts tell whether they saw an update at all, which
        in `optax.MultiSteps` they do only in some steps.
      after: the state after it.

    Raises:
      ValueError: if two probes have one name; it names it.
    """
    earlier = find_probes(before)
    metrics: Metrics = {}
    for name, probe in find_probes(after).items():
        is_new = (probe.measured == probe.count) & (probe.count > earlier[name].count)
        values, weights = jnp.where(is_new, probe.values, 0), is_new.astype(probe.values.dtype)
        metrics |= {f"probe/{name}/{metric}": (values[i], weights[i]) for i, metric in enumerate(METRICS)}
    return metrics


def has_spectrum(names: Iterable[str]) -> bool:
    """Whether a probe's singular values are among the metrics of these names."""
    return any(name.startswith("probe/") and name.rpartition("/")[2] in SPECTRUM for name in names)
