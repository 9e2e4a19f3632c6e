"""3. GPT-2 small in bfloat16, sequences of 1,024 tokens: a small batch, and the largest that fits."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Make, Wait, per_second

SHARE = 0.5  # of the published peak: the goal
ROOM = 0.92  # of the device's memory, for the largest batch
LARGEST = 256
LARGE = "GPT-2 small, the largest batch"


def sizes(bench: Bench) -> floors.GPT:
    return bench.size(floors.GPT(), floors.GPT(layers=1, width=16, heads=2, vocabulary=64, length=16))


def small_batch(bench: Bench) -> int:
    return bench.size(8, 2)


def largest_batch(bench: Bench, small: int, held: int, needed: int, limit: int | None) -> int:
    """Sequences: what a state needs stays, the rest grows with the batch; a multiple of 8."""
    if limit is None or bench.smoke:
        return 2 * small
    fits = int((ROOM * limit - held) / max(1, needed - held) * small)
    return min(LARGEST, max(small, fits // 8 * 8))


def contiguous(stats: dict[str, int], held: int) -> int | None:
    """Bytes that a state of `held` bytes and one large block may take together; None where that isn't known.

    Where memory isn't preallocated, JAX's allocator grows by blocks that it neither joins nor gives back: what smaller
    programs took before is of use to the state, and to no block that is larger.
    """
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - max(0, stats.get("pool_bytes", 0) - held)


def report(bench: Bench, case: str, who: str, batch: int, seconds: list[float], *, peer: str = "") -> None:
    gpt = sizes(bench)
    tokens = batch * gpt.length
    rates = per_second(seconds, tokens)
    share = sorted(rates)[len(rates) // 2] * gpt.flops / bench.chip.bfloat16
    is_ours = peer != ""
    bench.row(
        case,
        who,
        rates,
        "tokens/s",
        floor=bench.chip.bfloat16 / gpt.flops,
        predicted=1 / floors.gpt_seconds(bench.chip, gpt, flash=True, fused_loss=True),
        goals={peer: 1.0, "floor": SHARE} if is_ours else {},
        note=f"{share:.1%} of the peak, {batch} sequences",
    )


@dataclasses.dataclass
class _Program:
    """A compiled step, what it starts from and what it needs."""

    step: Any
    state: Any
    batch: Any
    held: int
    needed: int

    def arm(self) -> tuple[Advance, Wait]:
        import jax

        def advance() -> None:
            self.state, _ = self.step(self.state, self.batch)

        return advance, lambda: jax.block_until_ready(self.state.step)


class _Steps:
    """The training step of one optimizer, for any batch."""

    def __init__(self, bench: Bench, workload: Any, tx: Any):
        import jax

        from optlab.training import init_state, make_step, parallelize

        self.bench, self.workload = bench, workload
        self.parallel = parallelize(make_step(workload.loss, tx), "single")
        first = lambda params, key: init_state(params, {}, tx, key=key)
        params, _ = jax.eval_shape(workload.init, jax.random.key(0))
        self.shapes = self.parallel.shapes(jax.eval_shape(first, params, jax.random.key(0)))
        self.first = first
        self.params = params
        self.run = jax.jit(make_step(workload.loss, tx), donate_argnums=0)

    def batch(self, size: int) -> Any:
        import jax
        import jax.numpy as jnp

        shape, V = (size, sizes(self.bench).length), sizes(self.bench).vocabulary
        inputs, labels = jax.random.randint(jax.random.key(size), (2, *shape), 0, V)
        return {"inputs": inputs, "labels": labels, "weight": jnp.ones(shape)}

    def lower(self, size: int) -> Any:
        import jax

        return self.run.lower(self.shapes, jax.eval_shape(lambda: self.batch(size)))

    def program(self, compiled: Any, size: int) -> _Program:
        """With `check_memory`'s prediction, made from the very program that runs."""
        import jax

        from on_gpu.jax_parts import random_like
        from optlab.training import check_memory

        class Compiled:
            compile = staticmethod(lambda state, batch: compiled)

        batch = self.batch(size)
        parallel = copy.copy(self.parallel)
        parallel.step = Compiled()
        needed = check_memory(parallel, self.shapes, batch)
        state = self.first(random_like(self.params), jax.random.key(1))
        return _Program(compiled, state, batch, check_memory(self.parallel, self.shapes), needed)


def optimizers() -> dict[str, Any]:
    import optlab

    return {
        "optlab, AdamW": optlab.adamw(3e-4, weight_decay=0.1),
        "optlab, Muon": optlab.muon(3e-4),
        "optlab, Muon in bfloat16": optlab.muon(3e-4, orthogonalizer=optlab.orthogonalize(dtype="bfloat16")),
    }


def ours(bench: Bench) -> None:
    """optlab's model, loss, step and optimizers, as `train` takes them."""
    import jax

    steps = {name: _Steps(bench, _workload(bench), tx) for name, tx in optimizers().items()}
    chosen = {name: s for name, s in steps.items() if name != "optlab, Muon in bfloat16"}
    steps = bench.size(steps, chosen)
    small = small_batch(bench)
    case = f"GPT-2 small, {small} sequences"
    compiled = bench.compiled({f"{case}: {name}": partial(s.lower, small) for name, s in steps.items()})
    programs = {
        name: s.program(compiled[k], small) for name, s in steps.items() if (k := f"{case}: {name}") in compiled
    }
    found = bench.measure({f"{case}: {name}": p.arm for name, p in programs.items()})
    for name in programs:
        if times := found.get(f"{case}: {name}"):
            report(bench, case, name, small, times, peer=_peer(name))
    if not programs:
        return
    held, needed = max((p.held, p.needed) for p in programs.values())
    programs.clear()
    stats = jax.local_devices()[0].memory_stats() or {}
    size = largest_batch(bench, small, held, needed, contiguous(stats, held))
    baton = bench.baton
    for attempt in range(3):
        named = lambda name, size=size: f"GPT-2 small, the largest batch ({size}): {name}"
        compiled = bench.compiled({named(name): partial(s.lower, size) for name, s in chosen.items()})
        if attempt == 0:
            bench.take_turn()
            bench.baton = None  # kept to the end: torch must not come in between
        if _largest(
            bench, {named(n): (n, s, compiled[named(n)]) for n, s in chosen.items() if named(n) in compiled}, size
        ):
            break
        size = max(small, size * 3 // 4 // 8 * 8)
    bench.baton = baton


def _largest(bench: Bench, programs: dict[str, tuple[str, _Steps, Any]], size: int) -> bool:
    """Whether any ran; one after another, so that each has the device's memory to itself."""
    import jax

    measured = []
    for named, (name, steps, compiled) in programs.items():
        try:
            program = steps.program(compiled, size)
        except Exception as error:
            bench.failed(named, error)
            continue
        if times := bench.measure({named: program.arm}, turns=bench.size(3, 1)).get(named):
            report(bench, LARGE, name, size, times, peer=_peer(name))
            measured.append(program.needed)
        del program
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if measured and peak:
        bench.row(
            "peak memory beside check_memory's prediction",
            f"GPT-2 small, {size} sequences",
            peak / max(measured),
            "ratio",
            goals={"": 1.1},
            note=f"{peak / 2**30:.1f} GiB, predicted {max(measured) / 2**30:.1f}",
        )
    return bool(measured)


def _peer(name: str) -> str:
    return "torch, AdamW" if "AdamW" in name else "torch, Muon"


def _workload(bench: Bench) -> Any:
    import numpy as np

    from optlab.data import arrays
    from optlab.models import transformer
    from optlab.training import Workload

    gpt = sizes(bench)
    model = transformer(
        gpt.vocabulary, length=gpt.length, width=gpt.width, depth=gpt.layers, heads=gpt.heads, dtype="bfloat16"
    )
    tokens = np.zeros((2, gpt.length), np.int32)
    return Workload.from_model(model, arrays(tokens, tokens, validation=0, test=0), batch_size=small_batch(bench))


def theirs(bench: Bench) -> None:
    """The same model in torch: autocast to bfloat16, flash attention, compiled with its loss, fused AdamW."""
    import torch

    from on_gpu.torch_models import language_model
    from on_gpu.torch_parts import compiled, compiled_muon, wait_for

    device, wait = wait_for(bench)
    gpt, small = sizes(bench), small_batch(bench)
    model = language_model(gpt).to(device)
    forward = compiled(bench, model)
    compiled_muon(not bench.smoke)
    settings: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is h for h in hidden)]
    rules = {
        "torch, AdamW": [torch.optim.AdamW(model.parameters(), **settings)],
        "torch, Muon": [
            torch.optim.Muon(hidden, lr=3e-4, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, **settings),
        ],
    }

    def make(batch: int, name: str) -> tuple[Advance, Wait]:
        tokens, labels = torch.randint(gpt.vocabulary, (2, batch, gpt.length), device=device)

        def advance() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = forward(tokens, labels)
            loss.backward()
            for optimizer in rules[name]:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return advance, wait

    case = f"GPT-2 small, {small} sequences"
    arms: dict[str, Make] = {f"{case}: {name}": partial(make, small, name) for name in rules}
    bench.warm_up(arms)
    held = 0 if bench.smoke else torch.cuda.memory_allocated()
    for name, times in bench.measure(arms).items():
        report(bench, case, name.removeprefix(f"{case}: "), small, times)
    needed = 0 if bench.smoke else torch.cuda.max_memory_allocated()
    limit = None if bench.smoke else torch.cuda.get_device_properties(0).total_memory
    size = largest_batch(bench, small, held, needed, limit)
    if not bench.smoke:
        torch.cuda.empty_cache()
    case = LARGE
    bench.take_turn(last=True)  # ours ends its process first, which gives the memory back
    bench.baton = None
    for name in rules:
        for batch in (size, size * 3 // 4, size // 2):
            failures = len(bench.failures)
            named = f"{case} ({batch}): {name}"
            found = bench.measure({named: partial(make, batch, name)}, turns=bench.size(3, 1))
            if named in found:
                report(bench, case, name, batch, found[named])
            if len(bench.failures) == failures:
                break
            torch.cuda.empty_cache()
