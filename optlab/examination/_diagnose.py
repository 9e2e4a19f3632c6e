"""`diagnose`: what is wrong with a run, how that shows, and what to try next."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optlab.diagnosis import Diagnosis, examine, gather, in_python
from optlab.runs import Run
from optlab.runs._folder import claimed

if TYPE_CHECKING:
    import optax

    from optlab.training import Workload


def diagnose(
    run: str | Path | Run | Any,
    *,
    probe: bool = False,
    twins: bool = False,
    workload: Workload | None = None,
    tx: optax.GradientTransformation | None = None,
    seed: int | None = None,
) -> Diagnosis:
    """Diagnoses a run by its metrics, its config and its outcome, in well under a second.

    What curves can't show (a leak between the splits, one class, an order of the examples, frozen layers, a rule that
    is routed wrong) needs a probe.

    Args:
        run: a run's folder, a `Run`, or the `History` that `train` returned.
        probe: whether to look at the data and at the model, too: at the latest checkpoint, or without one at the
            initialization. It builds the run's workload, computes gradients of one batch, and takes seconds.
        twins: whether to train the run's twins: at half and at double the learning rate, with another seed, with
            batches of twice the size, each for a tenth of its steps; it takes half as long as the run did, or longer.
        workload: what was trained, for a probe or twins of a run that has no config,
        tx: the optimizer, likewise,
        seed: and the run's seed; None is the one that its folder names, or 0.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing was logged in it.
        ValueError: if no training loss was logged.
        TypeError: if the run has no config, and a probe or twins lack workload or tx.
        ConfigError: if its config can't be built here.
    """
    run = Run(run) if isinstance(run, str | Path) else run
    evidence = gather(run)
    if probe or twins:
        from optlab.examination._patient import Patient
        from optlab.examination._twins import raise_twins

        about = claimed(run.folder) if isinstance(run, Run) else {}
        asked = [name for name, is_asked in (("probe", probe), ("twins", twins)) if is_asked]
        seed, way = about.get("seed", 0) if seed is None else seed, in_python(evidence.name, *asked)
        patient = Patient.of(run, workload=workload, tx=tx, seed=seed, way=way)
        if probe:
            evidence = dataclasses.replace(evidence, **patient.probed(evidence))
        if twins:
            steps = int(evidence.settings.get("steps", about.get("steps", evidence.steps[-1])))
            evidence = dataclasses.replace(evidence, twins=raise_twins(patient, steps))
    return Diagnosis(evidence, examine(evidence))
