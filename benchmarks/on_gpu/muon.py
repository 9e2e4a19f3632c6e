"""1. Muon's update at the shapes of GPT-2 small and of a model of 1.3 B parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Make, Wait, milliseconds

FORMS: dict[str, tuple[dict[str, str], str]] = {  # settings of `orthogonalize`, and whose peak is theirs
    "optlab": ({}, "bfloat16"),
    "optlab, bfloat16": ({"dtype": "bfloat16", "precision": "default"}, "bfloat16"),
    "optlab, float16": ({"dtype": "float16", "precision": "default"}, "bfloat16"),
    "optlab, TF32": ({"dtype": "float32", "precision": "default"}, "tf32"),
    "optlab, float32": ({"dtype": "float32", "precision": "highest"}, "float32"),
}
GOALS = {"optax.contrib.muon": 0.4, "torch.optim.Muon": 0.8}


def cases(bench: Bench) -> dict[str, floors.Shapes]:
    """The hidden matrices. Of the 24 layers of width 2048 six are enough to fill the chip, and compile in time."""
    layer = lambda width: [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    small = {"GPT-2 small": (12, 768), "1.3 B, 6 of 24 layers": (6, 2048)}
    sizes = bench.size(small, {"GPT-2 small": (1, 16)})
    return {case: layers * layer(width) for case, (layers, width) in sizes.items()}


def ours(bench: Bench) -> None:
    """optlab in every form and dtype, and optax, and the ceilings that both are under."""
    ceilings = _ceilings(bench)
    for case, shapes in cases(bench).items():
        _updates(bench, case, shapes, ceilings)


def _updates(bench: Bench, case: str, shapes: floors.Shapes, ceilings: dict[str, float]) -> None:
    """All forms and optax for matrices of these shapes."""
    import jax

    from on_gpu.jax_parts import lower_update, random_like, update_arm

    chains = {name: optlab_chain(**settings) for name, (settings, _) in FORMS.items()} | optax_chains()
    leaves = {
        name: [jax.ShapeDtypeStruct(s, "bfloat16" if "params" in name else "float32") for s in shapes]
        for name in chains
    }
    named = {name: f"{case}: {name}" for name in chains}
    programs = bench.compiled({named[name]: partial(lower_update, tx, leaves[name]) for name, tx in chains.items()})
    sources = {x[0].dtype: (random_like(x, 0), random_like(x, 1)) for x in leaves.values()}
    arms = {
        named[name]: update_arm(programs[named[name]], tx, *sources[leaves[name][0].dtype])
        for name, tx in chains.items()
        if named[name] in programs
    }
    found = bench.measure(arms)
    for name in chains:
        if times := found.get(named[name]):
            _report(bench, case, name, shapes, milliseconds(times), ceilings)


def _report(
    bench: Bench, case: str, name: str, shapes: floors.Shapes, values: list[float], ceilings: dict[str, float]
) -> None:
    kind = FORMS[name][1] if name in FORMS else ("bfloat16" if "params" in name else "tf32")
    peak, is_ours = getattr(bench.chip, kind), name in FORMS
    flops = floors.gram_flops(shapes) if kind == "float32" else floors.newton_schulz_flops(shapes)
    width = 2 if kind == "bfloat16" else 4
    predicted = floors.muon_seconds(bench.chip, shapes, peak, stacked=is_ours, width=width)
    share = flops / (values[len(values) // 2] * 1e-3) / ceilings[kind] if kind in ceilings else None
    bench.row(
        case,
        name,
        values,
        "ms",
        floor=1e3 * floors.muon_floor(bench.chip, shapes, peak, flops),
        predicted=1e3 * predicted,
        goals=GOALS if name == "optlab" else {},
        note="" if share is None else f"{share:.0%} of the {kind} ceiling",
    )


def _ceilings(bench: Bench) -> dict[str, float]:
    """Operations a second of a large product, by dtype: random numbers, for zeros are faster."""
    import jax
    import jax.numpy as jnp

    n = bench.size(8192, 64)
    kinds = {"bfloat16": ("bfloat16", "default"), "tf32": ("float32", "default"), "float32": ("float32", "highest")}
    arms: dict[str, Make] = {}
    for kind, (dtype, precision) in kinds.items():
        size = n // 2 if kind == "float32" else n
        product = jax.jit(partial(jnp.matmul, precision=precision))

        def make(dtype: str = dtype, size: int = size, product: Any = product) -> tuple[Advance, Wait]:
            a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(dtype)
            box = [product(a, b)]

            def advance() -> None:
                box[0] = product(a, b)

            return advance, lambda: jax.block_until_ready(box[0])

        arms[f"ceiling: {kind}"] = make
    found, ceilings = bench.measure(arms, turns=bench.size(3, 1)), {}
    for kind in kinds:
        if times := found.get(f"ceiling: {kind}"):
            size = n // 2 if kind == "float32" else n
            ceilings[kind] = 2 * size**3 / min(times)
            rates = [2 * size**3 / t / 1e12 for t in times]
            peak = getattr(bench.chip, kind) / 1e12
            bench.row("ceiling", f"{size}³, {kind}", rates, "TFLOP/s", floor=peak, predicted=floors.MATMUL * peak)
    return ceilings


def optlab_chain(**settings: str) -> Any:
    import optax

    import optlab

    return optax.chain(
        optlab.momentum(0.95, nesterov=True),
        optlab.orthogonalize(**settings),
        optlab.scale_by_matrix_shape("spectral"),
        optlab.decay_weights(0.1),
        optax.scale_by_learning_rate(0.02),
    )


def optax_chains() -> dict[str, Any]:
    """As it comes, with parameters in float32; and in bfloat16 for that it computes in their dtype alone."""
    import optax

    tx = optax.contrib.muon(0.02, beta=0.95, nesterov=True, weight_decay=0.1)
    return {"optax.contrib.muon": tx, "optax.contrib.muon, bfloat16 params": tx}


def theirs(bench: Bench) -> None:
    """torch.optim.Muon: as it is, with its Newton–Schulz compiled, and that in a CUDA graph; the best counts."""
    import torch

    from on_gpu.torch_parts import captured, compiled_muon, wait_for

    device, wait = wait_for(bench)
    for case, shapes in cases(bench).items():

        def make(shapes: floors.Shapes = shapes, how: str = "eager") -> tuple[Advance, Wait]:
            compiled_muon(how != "eager" and not bench.smoke)
            params = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
            for p in params:
                p.grad = torch.randn(p.shape, device=device) / max(p.shape) ** 0.5
            step = torch.optim.Muon(params, lr=0.02, momentum=0.95, weight_decay=0.1).step
            return (captured(step) if how == "graph" and not bench.smoke else step), wait

        ways = {"eager": "eager", "compiled": "compiled", "compiled, CUDA graph": "graph"}
        arms = {f"{case}: torch, {name}": partial(make, how=how) for name, how in ways.items()}
        bench.warm_up(arms)
        found = bench.measure(arms)
        if not found:
            continue
        best = min(found, key=lambda name: sorted(found[name])[len(found[name]) // 2])
        predicted = floors.muon_seconds(bench.chip, shapes, bench.chip.bfloat16, stacked=False, width=2)
        floor = floors.muon_floor(bench.chip, shapes, bench.chip.bfloat16)
        for name, times in found.items():
            who = "torch.optim.Muon" if name == best else name.removeprefix(f"{case}: ")
            note = name.removeprefix(f"{case}: torch, ") + ", the best of its kind" if name == best else ""
            values = milliseconds(times)
            bench.row(case, who, values, "ms", floor=1e3 * floor, predicted=1e3 * predicted, note=note)
