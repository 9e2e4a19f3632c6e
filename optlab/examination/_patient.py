"""A run that can be looked into: its workload, its optimizer, its first state and its latest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab._rates import is_scaled
from optlab._rules import read_leaves, rules_of
from optlab.data import Batch, as_batches, evaluation_batches
from optlab.diagnosis import Evidence
from optlab.diagnosis._data import probe_data
from optlab.diagnosis._layers import probe_model, readings_of
from optlab.experiment import load_run
from optlab.experiment._load import rebuilt
from optlab.roles import layout_around
from optlab.runs import Run
from optlab.runs._folder import claimed
from optlab.training import (
    Assembly,
    StepSettings,
    TrainState,
    Workload,
    assemble,
    evaluation_params,
    make_evaluation,
    make_step,
)
from optlab.transforms.matrices._map import reported

EXAMPLES = 256  # of the batch by which gradients are measured: a unit that none of so many reaches is dead
STEPS = 3  # that are compared with their gradients
UPHILL = 0.2  # a parameter's cosine with its gradient
REPLAYED = 300  # steps that are made again to find where a divergence began
FEW, JUDGED, SHUFFLES = 20, 1024, 20  # held-out examples, and orders of their labels
SHORT = (1e-5, 1e-6)  # of a gradient: what is cut to less than that isn't seen
OFF = 10.0  # times its own median: a layer's gradient has left its scale


@dataclass(frozen=True)
class Patient:
    """A run with everything that trained it.

    Attributes:
        workload: what was trained,
        tx: with which optimizer,
        seed: and seed.
        state: the latest state that is known; None: only the initialization is.
    """

    workload: Workload
    tx: optax.GradientTransformation
    seed: int
    state: TrainState | None

    @staticmethod
    def of(
        run: Run | Any, *, workload: Workload | None, tx: optax.GradientTransformation | None, seed: int, way: str
    ) -> Patient:
        """Loads what trained a run; see `diagnose`. An error names `way`, the call that works."""
        if (workload is None) != (tx is None):
            raise TypeError("workload and tx are given together, for a run that has no config")
        if not isinstance(run, Run):
            if workload is None or tx is None:
                raise TypeError(f"a history doesn't hold what was trained; in its script say {way}")
            return Patient(workload, tx, seed, run.state)
        if workload is None or tx is None:
            if claimed(run.folder) or not (run.folder / "config.json").exists():
                raise TypeError(f"{run.folder} has no config, which holds what was trained; in its script say {way}")
            experiment = rebuilt(run.folder)
            workload, tx, seed = experiment.workload, experiment.tx, experiment.config.seed
        state = load_run(run.folder, workload=workload, tx=tx).state if run.checkpoints else None
        return Patient(workload, tx, seed, state)

    @cached_property
    def assembly(self) -> Assembly:
        return assemble(self.workload, self.tx, StepSettings(guard=None), seed=self.seed)

    @cached_property
    def first(self) -> TrainState:
        """The state before the first step."""
        return self.assembly.place_state()

    @cached_property
    def latest(self) -> TrainState:
        return self.first if self.state is None else self.state

    @cached_property
    def batches(self) -> Any:
        return as_batches(self.workload.data.train, self.workload.batch_size, self.seed, self.workload.draw)

    def probed(self, evidence: Evidence) -> dict[str, Any]:
        """The attributes of `Evidence` that a probe fills."""
        w = self.workload
        data = probe_data(w.data, batch_size=w.batch_size, seed=self.seed, draw=w.draw)
        # The key of a run's state is made of its seed: another seed had another initialization.
        is_own = bool(jnp.all(jax.random.key_data(self.latest.key) == jax.random.key_data(self.first.key)))
        began = self._first_updates()
        if self._has_rate(evidence):
            began.pop("step_size", None)
        model = probe_model(
            w,
            self.latest,
            self.first,
            self._batch(),
            is_own=is_own and not evidence.settings.get("init_from"),
            orthogonalized=self._orthogonalized(),
            **began,
            clip=self._clip(),
            is_frozen_by_name=self._is_frozen_by_name(),
            association=self._association(),
            began=self._began(evidence),
        )
        return {"data": data, "model": model}

    def _batch(self) -> Batch:
        """Examples of the first batches, as many as are there in `EXAMPLES`."""
        first = self.batches.batch(0)
        size = len(jax.tree.leaves(first)[0])
        count = max(1, EXAMPLES // size)
        more = [self.batches.batch(t) for t in range(1, count)]
        return jax.tree.map(lambda *x: np.concatenate(x), first, *more)

    def _gradient(self, state: TrainState, batch: Batch, key: Any) -> Any:
        return jax.grad(lambda p: self.workload.loss(p, state.model_state, batch, key, True)[0])(state.params)

    def _first_updates(self) -> dict[str, Any]:
        """What the first steps do: their cosine with the gradient, their norm, and the parameters that climb in all.

        Each update is compared with its own gradient: one that is too long turns the next one round. Those of SAM go
        uphill and back in turn, and the first of a warm-up is 0.
        """
        step, paths = jax.jit(make_step(self.workload.loss, self.tx, guard=None)), list(self._readings)

        @jax.jit
        def compared(state: TrainState, new: TrainState, batch: Batch) -> Any:
            grads = self._gradient(state, batch, jax.random.fold_in(state.key, state.step))
            leaves = map(jax.tree.leaves, (grads, optax.tree.sub(new.params, state.params), state.params))
            return jnp.stack(
                [jnp.stack([jnp.vdot(g, u), *map(optax.tree.norm, (g, u, x))]) for g, u, x in zip(*leaves, strict=True)]
            )

        seen, state = [], self.first
        with self.assembly.layout():
            for t in range(STEPS):
                batch = self.batches.batch(t)
                new, _ = step(state, batch)
                seen.append(np.asarray(compared(state, new, batch), np.float64))
                state = new
        seen = [x for x in seen if np.isfinite(x).all() and x[:, 2].any()]
        whole = [(x[:, 0].sum(), *np.sqrt((x[:, 1:] ** 2).sum(axis=0))) for x in seen]
        if not whole or not all(g * u * x > 0 for _, g, u, x in whole):
            return {}
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = np.stack([x[:, 0] / (x[:, 1] * x[:, 2]) for x in seen])
        climbs = [path for path, each in zip(paths, cosines.T, strict=True) if np.all(each > UPHILL)]
        return {
            "uphill": min(dot / (g * u) for dot, g, u, _ in whole),
            "climbing": tuple(climbs) if len(climbs) < len(paths) else (),
            "step_size": whole[0][2] / whole[0][3],
        }

    @cached_property
    def _readings(self) -> Any:
        return readings_of(self.workload, self.first.params)

    def _association(self) -> float | None:
        """By how many deviations the held-out loss lies below what it is with the labels shuffled; None without such.

        Whatever the loss is, this is near 0 for a model that knows nothing of which label belongs to which input.
        """
        held_out, state = self.workload.data.validation, self.latest
        if held_out is None or len(held_out) < FEW:
            return None
        batch = next(evaluation_batches(held_out, min(len(held_out), JUDGED)))
        if not hasattr(batch.get("labels"), "shape"):
            return None
        evaluate = jax.jit(make_evaluation(self.workload.loss))

        def loss(order: Any) -> float:
            shuffled = {**batch, "labels": np.asarray(batch["labels"])[order]}
            total, weight = evaluate(evaluation_params(state), state.model_state, shuffled, state.key)["loss"]
            return float(total) / float(weight)

        random, size = np.random.default_rng(0), len(batch["labels"])
        others = [loss(random.permutation(size)) for _ in range(SHUFFLES)]
        deviation, gap = float(np.std(others, ddof=1)), float(np.mean(others)) - loss(np.arange(size))
        return gap / deviation if np.isfinite(gap) and deviation > 1e-6 * abs(np.mean(others)) else None

    def _clip(self) -> float | None:
        """The norm that the optimizer cuts the first batch's gradient to; None where it cuts none.

        The update is that of a gradient twice as long, and in proportion to gradients that are far shorter: rules such
        as Adam, whose update isn't both, don't see a gradient's length.
        """
        tx, state = optax.with_extra_args_support(self.tx), self.first

        @jax.jit
        def measured(batch: Batch) -> Any:
            grads = self._gradient(state, batch, state.key)

            def update(factor: float, opt_state: Any) -> Any:
                return tx.update(optax.tree.scale(factor, grads), opt_state, state.params)

            opt_state = update(1.0, state.opt_state)[1]  # the first rate of a warm-up is 0
            nothing = update(0.0, opt_state)[0]
            own, double = (update(s, opt_state)[0] for s in (1.0, 2.0))
            short = [update(s, opt_state)[0] for s in SHORT]
            pairs = (grads, None), (own, double), *((x, nothing) for x in (own, *short))
            return [optax.tree.norm(a if b is None else optax.tree.sub(a, b)) for a, b in pairs]

        try:
            with self.assembly.layout():
                slope, more, whole, *short = map(float, measured(self.batches.batch(0)))
        except Exception:  # an optimizer that takes the loss, too
            return None
        longer, shorter = (norm / factor for norm, factor in zip(short, SHORT, strict=True))
        if not np.isfinite([slope, whole]).all() or not shorter > 0 or abs(longer / shorter - 1) > 0.02:
            return None
        is_cut = whole < 0.99 * longer and more < 1e-4 * whole
        # Entries that are cut one by one leave some that aren't. Adam's second update is half of a proportional one.
        return whole / longer * slope if is_cut or (whole < 0.2 * longer and more < 0.1 * whole) else None

    def _is_frozen_by_name(self) -> bool:
        """True if the optimizer is partitioned, and calls a part frozen, as `optlab.freeze` does."""
        kind = optax.PartitionState
        nodes = jax.tree.leaves(self.first.opt_state, is_leaf=lambda x: isinstance(x, kind))
        return any("froze" in str(key) for x in nodes if isinstance(x, kind) for key in x.inner_states)

    def _has_rate(self, evidence: Evidence) -> bool:
        """True if a learning rate was logged, or is known of a block of the optimizer."""
        return "learning_rate" in evidence.metrics or bool(self.assembly.schedules()) or is_scaled(self.tx.update)

    def _orthogonalized(self) -> tuple[str, ...]:
        """Heads and embeddings that are orthogonalized: by `orthogonalize`, or in a partition's part named "muon"."""
        params = jax.eval_shape(self.workload.init, jax.random.key(0))[0]
        tx = optax.with_extra_args_support(self.tx)
        try:
            layout, own = (w.layout() for w in (self.workload, dataclasses.replace(self.workload, roles={})))
            with layout_around(lambda: layout), reported() as reports:
                state = jax.eval_shape(tx.init, params)
                jax.eval_shape(lambda g, s, p: tx.update(g, s, p), params, state, params)
        except Exception:  # a program or an optimizer that can't be traced from shapes alone
            return ()
        leaves = read_leaves(params)
        done = [leaves[keys].path for r in reports if _is_muons(r.f) for keys, _ in r.leaves if keys in leaves]
        done += [x.path for rule in rules_of(state, leaves) if "muon" in rule.name.split("/")[-1] for x in rule.roles]
        return tuple(path for path, r in own.readings.items() if path in done and r.role in ("head", "embedding"))

    def _began(self, evidence: Evidence) -> tuple[str, int] | None:
        """The parameter whose gradient left its scale first, and the step; None where the run didn't diverge."""
        end = int(evidence.steps[-1])
        if evidence.outcome != "NonFiniteError" or end - int(self.latest.step) > REPLAYED:
            return None
        paths = list(self.workload.layout().readings)
        step = make_step(self.workload.loss, self.tx, guard=None)

        @jax.jit
        def watched(state: TrainState, batch: Batch) -> Any:
            grads = self._gradient(state, batch, jax.random.fold_in(state.key, state.step))
            norms = jnp.stack([jnp.linalg.norm(x.astype(jnp.float32)) for x in jax.tree.leaves(grads)])
            return step(state, batch)[0], norms

        state, seen = self.latest, []
        with self.assembly.layout():
            # Where the run's error is known, its last record is of the step at fault.
            last = end if evidence.error is not None else int(state.step) + REPLAYED
            for t in range(int(state.step), last):
                state, norms = watched(state, self.batches.batch(t))
                seen.append(np.asarray(norms))
                usual = np.median(seen[:-1], axis=0) if len(seen) > 3 else np.inf
                with np.errstate(invalid="ignore"):  # an infinite norm where none is usual
                    ratio = seen[-1] / np.where(usual > 0, usual, np.inf)
                if np.any(ratio > OFF):
                    return paths[int(np.nanargmax(ratio))], t + 1
                if not np.isfinite(seen[-1]).all():
                    return None
        return None


def _is_muons(f: Any) -> bool:
    """True if a function of matrices is that of `optlab.orthogonalize`."""
    return str(getattr(getattr(f, "func", f), "__module__", "")).endswith("._orthogonalize")
