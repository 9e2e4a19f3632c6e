"""2. AdamW's update of GPT-2 small, beside the bytes that it must move."""

from __future__ import annotations

from functools import partial
from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Make, Wait, milliseconds

GOAL = 1.25  # of the time that the bytes take at the speed of a copy
CASE = "GPT-2 small's parameters"


def shapes(bench: Bench) -> floors.Shapes:
    """All parameters, one leaf each."""
    gpt = bench.size(floors.GPT(), floors.GPT(layers=1, width=16, vocabulary=64, length=16))
    D = gpt.width
    block = [(D, D), (D,)] * 4 + [(D,)] * 4 + [(D, 4 * D), (4 * D,), (4 * D, D), (D,)]
    return [(gpt.vocabulary, D), (gpt.length, D), *gpt.layers * block, (D,), (D,)]


def ours(bench: Bench) -> None:
    """optlab's and optax's, and a copy."""
    import jax
    import jax.numpy as jnp
    import optax

    import optlab
    from on_gpu.jax_parts import lower_update, random_like, update_arm

    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(bench)]
    settings = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1}
    chains = {"optlab.adamw": optlab.adamw(3e-4, **settings), "optax.adamw": optax.adamw(3e-4, **settings)}
    programs = bench.compiled({name: partial(lower_update, tx, leaves) for name, tx in chains.items()})
    grads, params = random_like(leaves, 0), random_like(leaves, 1)
    arms = {name: update_arm(programs[name], chains[name], grads, params) for name in programs}
    found = bench.measure(arms | {"a copy": _copying(bench)})
    numbers = floors.count(shapes(bench))
    moved = floors.adamw_bytes(numbers)
    if copied := found.pop("a copy", None):
        rates = [2 * _copied(bench) / t / 1e12 for t in copied]
        peak = bench.chip.bandwidth / 1e12
        bench.row("ceiling", "a copy", rates, "TB/s", floor=peak, predicted=floors.COPY * peak)
        best = [1e3 * moved / (2 * _copied(bench) / t) for t in copied]
        bench.row(CASE, "its bytes, copied", best, "ms", floor=1e3 * moved / bench.chip.bandwidth)
    for name, times in found.items():
        _row(bench, name, milliseconds(times), {"its bytes, copied": GOAL} if name == "optlab.adamw" else {})


def _row(bench: Bench, who: str, values: list[float], goals: dict[str, float]) -> None:
    numbers, leaves = floors.count(shapes(bench)), len(shapes(bench))
    floor = 1e3 * floors.adamw_bytes(numbers) / bench.chip.bandwidth
    predicted = 1e3 * floors.adamw_seconds(bench.chip, numbers, leaves)
    bench.row(CASE, who, values, "ms", floor=floor, predicted=predicted, goals=goals)


def _copied(bench: Bench) -> int:
    """Bytes of the array that is copied: many times the cache."""
    return bench.size(2**31, 2**16)


def _copying(bench: Bench) -> Make:
    """The array negated into another one: a read and a write of each number, that no compiler leaves out."""
    import jax
    import jax.numpy as jnp

    negated: Any = jax.jit(jnp.negative)

    def make() -> tuple[Advance, Wait]:
        x = jax.random.normal(jax.random.key(0), (_copied(bench) // 4,))
        box = [negated(x)]

        def advance() -> None:
            box[0] = negated(x)

        return advance, lambda: jax.block_until_ready(box[0])

    return make


def theirs(bench: Bench) -> None:
    """torch.optim.AdamW(fused=True), alone and in a CUDA graph."""
    import torch

    from on_gpu.torch_parts import captured, wait_for

    device, wait = wait_for(bench)

    def make(in_graph: bool = False) -> tuple[Advance, Wait]:
        params = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes(bench)]
        for p in params:
            p.grad = 0.02 * torch.randn(p.shape, device=device)
        settings: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
        step = torch.optim.AdamW(params, **settings, capturable=in_graph and not bench.smoke).step
        return (captured(step) if in_graph and not bench.smoke else step), wait

    arms = {"torch, fused": make, "torch, fused, CUDA graph": partial(make, in_graph=True)}
    for name, times in bench.measure(arms).items():
        _row(bench, name, milliseconds(times), {})
