"""5. A population of small Transformers, each with its own start and learning rate, beside one after another."""

from __future__ import annotations

from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Wait, milliseconds

GOAL = 8.0  # times as fast
BATCH = 8


def sizes(bench: Bench) -> tuple[floors.GPT, int]:
    """A member's sizes, and how many members."""
    toy = floors.GPT(layers=1, width=16, heads=2, vocabulary=32, length=8)
    return bench.size((floors.GPT(layers=4, width=128, heads=4, vocabulary=256, length=128), 64), (toy, 4))


def ours(bench: Bench) -> None:
    """One step of every member: in one program (vmap over states and learning rates), or by a program for one."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import optlab
    from on_gpu.jax_parts import copy
    from optlab.data import arrays
    from optlab.models import transformer
    from optlab.training import Workload, init_state, make_step

    gpt, members = sizes(bench)
    tokens = np.zeros((2, gpt.length), np.int32)
    model = transformer(
        gpt.vocabulary, length=gpt.length, width=gpt.width, depth=gpt.layers, heads=gpt.heads, dtype="bfloat16"
    )
    workload = Workload.from_model(model, arrays(tokens, tokens, validation=0, test=0))
    inputs, labels = jax.random.randint(jax.random.key(1), (2, BATCH, gpt.length), 0, gpt.vocabulary)
    batch = {"inputs": inputs, "labels": labels, "weight": jnp.ones(inputs.shape)}

    def step(state: Any, learning_rate: Any, batch: Any) -> Any:
        return make_step(workload.loss, optlab.adamw(learning_rate))(state, batch)[0]

    first = lambda key: init_state(*workload.init(key), optlab.adamw(1e-3), key=key)
    rates = jnp.geomspace(1e-4, 1e-2, members)
    states = jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(0), members))
    member = jax.jit(lambda states, i: jax.tree.map(lambda x: x[i], states))
    singles = [member(states, i) for i in range(members)]
    many, one = jax.jit(jax.vmap(step, in_axes=(0, 0, None)), donate_argnums=0), jax.jit(step, donate_argnums=0)
    programs = bench.compiled(
        {
            "together": lambda: many.lower(states, rates, batch),
            "one after another": lambda: one.lower(singles[0], rates[0], batch),
        }
    )

    def together() -> tuple[Advance, Wait]:
        box = [copy(states)]

        def advance() -> None:
            box[0] = programs["together"](box[0], rates, batch)

        return advance, lambda: jax.block_until_ready(box[0].step)

    def apart() -> tuple[Advance, Wait]:
        box, each = [copy(s) for s in singles], list(rates)

        def advance() -> None:
            for i in range(members):
                box[i] = programs["one after another"](box[i], each[i], batch)

        return advance, lambda: jax.block_until_ready([s.step for s in box])

    found = bench.measure({"together": together, "one after another": apart})
    case = f"{members} Transformers of width {gpt.width}, a step of each"
    single, all_of_them = floors.population_seconds(bench.chip, gpt, BATCH, members)
    predicted = {"together": 1e3 * all_of_them, "one after another": 1e3 * members * single}
    work = 1e3 * members * BATCH * gpt.length * gpt.flops / bench.chip.bfloat16
    for name, times in found.items():
        bench.row(case, name, milliseconds(times), "ms", floor=work, predicted=predicted[name])
    if len(found) == 2:
        ratios = [a / b for a, b in zip(found["one after another"], found["together"], strict=False)]
        bench.row(
            case,
            "together, times as fast",
            ratios,
            "times",
            predicted=members * single / all_of_them,
            goals={"": GOAL},
        )
