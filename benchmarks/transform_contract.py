"""Who keeps the contract: `optlab.testing.check_transform` on the optimizers of optax, optax.contrib and optlab.

    python benchmarks/transform_contract.py            # writes benchmarks/results/transform_contract.md
    python benchmarks/transform_contract.py adam muon  # prints the full reports of those alone, of every library

Left out is what has another contract by design: lookahead (parameters of its own), dpsgd and
differentially_private_aggregate (a gradient for every example), and wrappers that add no rule of their own. On two
cores it takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(  # compiling is what takes the time
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import optax
from optax import contrib

from optlab import optimizers, transforms
from optlab.testing import CHECKS, Failure, Report, check_transform

LIBRARIES = {"optax": optax, "optax.contrib": contrib, "optlab": None}
WITH_RATE = {  # those that get a learning rate
    "optax": """adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam
        nadamw noisy_sgd novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum
        sm3 yogi scale_by_rprop""",
    "optax.contrib": """acprop ademamix adopt cocob dadapt_adamw dog dowg galore madgrad momo momo_adam muon prodigy
        schedule_free_adamw schedule_free_sgd simplified_ademamix sophia scale_by_madgrad""",
    "optlab": " ".join(optimizers.__all__),
}
WITHOUT_RATE = {
    "optax": """lbfgs polyak_sgd adaptive_grad_clip add_decayed_weights add_noise centralize clip clip_by_global_norm
        ema normalize_by_update_norm scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad
        scale_by_backtracking_linesearch scale_by_belief scale_by_distance_over_gradients scale_by_factored_rms
        scale_by_lbfgs scale_by_lion scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm
        scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rms scale_by_rss scale_by_sign scale_by_sm3
        scale_by_stddev scale_by_trust_ratio scale_by_yogi scale_by_zoom_linesearch trace""",
    "optax.contrib": """mechanize normalize reduce_on_plateau sam scale_by_acprop scale_by_ademamix scale_by_adopt
        scale_by_cocob scale_by_galore scale_by_muon scale_by_simplified_ademamix""",
    "optlab": " ".join(transforms.__all__),
}
SETTINGS: dict[str, list[dict[str, Any]]] = {  # beside the learning rate, where something has to be said or matters
    "adaptive_grad_clip": [{"clipping": 0.1}],
    "add_decayed_weights": [{"weight_decay": 0.1}],
    "add_noise": [{"eta": 0.1, "gamma": 0.5, "key": 0}],
    "cautious": [{"inner": optax.trace(0.9)}],
    "clip": [{"max_delta": 1.0}],
    "clip_by_global_norm": [{"max_norm": 1.0}],
    "decay_after_step": [{"rate": 0.1}],
    "decay_weights": [{"weight_decay": 0.1}],
    "ema": [{"decay": 0.9}],
    "galore": [{"rank": 2}],
    "mechanize": [{"base_optimizer": optax.sgd(0.1)}],
    "momentum": [{"decay": 0.9}],
    "probe": [{"name": "here"}],
    "rmsprop": [{}, {"centered": True}],
    "sam": [{"optimizer": optax.sgd(0.1), "adv_optimizer": optax.sgd(0.05)}],
    "scale_by_backtracking_linesearch": [{"max_backtracking_steps": 5}],
    "scale_by_galore": [{"rank": 2}],
    "scale_by_muon": [
        {},
        {"weight_dimension_numbers": lambda t: jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), t)},
    ],
    "scale_by_zoom_linesearch": [{"max_linesearch_steps": 5}],
    "sgd": [{}, {"momentum": 0.9}],
    "trace": [{"decay": 0.9}],
}
MATRICES = {"a": np.zeros((4, 6)), "b": np.zeros((6, 4))}  # for what moves nothing else
MATRICES_ONLY = """keep_weight_norm orthogonalize scale_by_matrix_shape scale_by_muon scale_by_neuron_rms
    scale_by_shampoo scale_by_soap scale_to_rms scale_to_weight_norm"""
MATRICES_TOO = ("sm3", "scale_by_sm3")  # break on a scalar at once, which would hide all the rest
BIAS_CORRECTED = ("adam", "adamw", "amsgrad", "scale_by_adam", "scale_by_amsgrad")
NO_DECAY = ("mechanize",)  # its weight_decay is Mechanic's λ, which moves nothing without a gradient
AFTER_SGD = ("scale_by_backtracking_linesearch", "scale_by_zoom_linesearch")  # they need a direction that descends
REASONS = (  # what was seen, in short
    (r"the update of .* is (\d+%) of its norm away.*", r"\1 off"),
    (r".*?(zero gradients|zero parameters) (in \w+) the update of .* is (NaN|infinite)", r"\3 \2"),
    (r".*the update of .* is (NaN|infinite)", r"\1"),
    (r"'(.*)' of (.*) shares its memory with '(.*)' of (.*)", r"`\1` of \2 is `\3` of \4"),
    (r".*compiled (\d) times: '(.*)' changes its weak type", r"\1 times in 3 steps: weak type of `\2`"),
    (r".*? is (\w+)\[.*\], not (\w+)\[.*\]", r"\1, not \2"),
    (r".*is off by (\S+), its largest entry being (\S+)", r"off by \1 of \2"),
    (r"ShardingTypeError: (.*?)[.].*", r"ShardingTypeError: \1"),
)


NOTES = """## Looked at by hand

- `wide_hyperparams` is nearly always one cause: `optax.scale_by_learning_rate` multiplies by the number as it is, so a
  learning rate that is an array in float32 (a traced one, or one of `inject_hyperparams(…, hyperparam_dtype=…)`) makes
  updates in bfloat16 float32. `optax.apply_updates` casts them back; until then they take twice the memory.
  `add_decayed_weights`, `add_noise`, `clip` and `ema` do the same with their numbers.
- `zero_gradients`, `bfloat16`, `float16`: each of these transforms was wrapped so that it computes in float32, with
  state in float32, and then passes, but for those that divide 0 by 0 in float32 too (`normalize`, `prodigy`,
  `dadapt_adamw`) and `acprop`, which divides by the second moment before the gradient, 0 after zero gradients.
- `donated_buffers`: init returns the parameters' own arrays, or one array twice (`lbfgs`); a jitted step with
  `donate_argnums=(0, 1)` then raises "Attempt to donate the same buffer twice". Jitting init is the way round it.
- `explicit_mesh`: JAX's own ShardingTypeError, from within the transform: a product over two sharded axes, in
  `adaptive_grad_clip` a choice between arrays of different shardings, in `galore` an SVD.
- `extra_args`: optax asks transforms with extra arguments to ignore those that they don't know; the line searches
  refuse them, and `sam` accepts none at all.
- `no_recompilation`: the line searches start with a weakly typed number, so that the second step compiles again.
- `scale_by_distance_over_gradients` makes an update of shape (1,) for a scalar, and with it everything of that leaf.
- `sm3` indexes into the shape of a scalar. `scale_by_muon` with its default can move a single array, but no tree.
- `dadapt_adamw` isn't compared in bfloat16: its estimate grows without end, in float32 too, when the parameters don't
  follow its updates, as in those long runs.
- `mechanize`: its `weight_decay` is Mechanic's λ, which does nothing without a gradient, so that law was left out.
"""


class Entry(NamedTuple):
    """What is checked, and what check_transform gets for it."""

    library: str
    name: str
    factory: Callable[..., Any]
    hyperparams: dict[str, Any]
    params: Any

    @property
    def title(self) -> str:
        extra = [key for key in self.hyperparams if key in ("momentum", "centered", "weight_dimension_numbers")]
        name = f"sgd + {self.name}" if self.name in AFTER_SGD else self.name
        return ", ".join([name, *extra, *(["matrices"] if self.params else [])])

    def check(self) -> Report:
        return check_transform(
            self.factory,
            self.hyperparams,
            params=self.params,
            laws=["bias_correction"] if self.name in BIAS_CORRECTED else [],
            skip=["weight_decay"] if self.name in NO_DECAY else [],
        )


def after_sgd(factory: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **settings: optax.chain(optax.sgd(1.0), factory(**settings))


def entries() -> Iterator[Entry]:
    for library, module in LIBRARIES.items():
        for names, rate in ((WITH_RATE[library], {"learning_rate": 0.1}), (WITHOUT_RATE[library], {})):
            for name in names.split():
                factory = getattr(module or (optimizers if name in optimizers.__all__ else transforms), name)
                factory = after_sgd(factory) if name in AFTER_SGD else factory
                trees = (
                    [MATRICES]
                    if name in MATRICES_ONLY.split()
                    else [None, MATRICES]
                    if name in MATRICES_TOO
                    else [None]
                )
                for settings in SETTINGS.get(name, [{}]):
                    for params in trees:
                        yield Entry(library, name, factory, {**rate, **settings}, params)


def in_short(failure: Failure) -> str:
    """The check, and what was seen in a few words."""
    for pattern, short in REASONS:
        if re.search(pattern, failure.seen):
            return f"`{failure.check}` ({re.sub('.*' + pattern, short, failure.seen)})"
    return f"`{failure.check}` ({failure.seen[:90].replace('|', '/')})"


def table(library: str, reports: list[tuple[Entry, Report]]) -> list[str]:
    clean = [entry.title for entry, report in reports if not report.failed]
    lines = [f"## {library}", "", f"Nothing fails: {'; '.join(clean) or 'none'}.", ""]
    if len(clean) < len(reports):
        lines += ["| transform | fails |", "|---|---|"]
        lines += [f"| {e.title} | {'; '.join(map(in_short, r.failed))} |" for e, r in reports if r.failed]
        lines += [""]
    return lines


def counts(reports: list[tuple[Entry, Report]]) -> list[str]:
    """How many transforms of each library fail each check."""
    of = {library: [r for e, r in reports if e.library == library] for library in LIBRARIES}
    failed = {library: Counter(check for r in rs for check in r.failures) for library, rs in of.items()}
    lines = [f"| check | {' | '.join(f'{library}, of {len(rs)}' for library, rs in of.items())} |", "|---|---|---|---|"]
    rows = [(name, [failed[library][name] for library in LIBRARIES]) for name in CHECKS]
    lines += [f"| `{name}` | {' | '.join(map(str, row))} |" for name, row in rows if any(row)]
    nobody = ", ".join(f"`{name}`" for name, row in rows if not any(row))
    return [*lines, "", f"Nobody fails {nobody}.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="print the reports of these only, and write nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "transform_contract.md")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    reports: list[tuple[Entry, Report]] = []
    for entry in entries():
        if not arguments.names or entry.name in arguments.names:
            reports.append((entry, entry.check()))
            print(f"{entry.library} {reports[-1][1]}", flush=True)
    if arguments.names:
        return
    versions = f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}"
    lines = [f"`python benchmarks/transform_contract.py`, {versions}, {jax.device_count()} simulated devices", ""]
    lines += counts(reports)
    for library in LIBRARIES:
        lines += table(library, [(e, r) for e, r in reports if e.library == library])
    arguments.out.write_text("\n".join([*lines, NOTES]))


if __name__ == "__main__":
    main()
