"""4. ResNet-20 on images of CIFAR-10's shapes, which lie on the device and are picked there."""

from __future__ import annotations

from functools import partial
from typing import Any

from on_gpu import floors
from on_gpu.bench import Advance, Bench, Make, Wait, per_second

PRIME = 7919  # the step from one picked image to the next: no two of a batch lie side by side
MEAN, SCALE = 121.0, 1 / 64.0


def batches(bench: Bench) -> tuple[int, ...]:
    return bench.size((128, 1024), (4,))


def images(bench: Bench) -> int:
    return bench.size(50_000, 64)


def stages(bench: Bench) -> tuple[int, ...]:
    """Blocks of each: ResNet-20's, and ResNet-8's."""
    return bench.size((3, 3, 3), (1, 1, 1))


def _report(bench: Bench, batch: int, who: str, seconds: list[float], peer: str = "", note: str = "") -> None:
    bench.row(
        f"ResNet-20, batch {batch}",
        who,
        per_second(seconds, batch),
        "images/s",
        floor=1 / floors.resnet_floor(bench.chip),
        predicted=1 / floors.resnet_seconds(bench.chip, batch),
        goals={peer: 1.0} if peer else {},
        note=note,
    )


def ours(bench: Bench) -> None:
    """optlab's model, step and SGD with momentum, in bfloat16."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import optlab
    from optlab.data import arrays
    from optlab.models import ResNet
    from optlab.training import Workload, init_state, make_step

    rng = np.random.default_rng(0)
    pixels = jax.device_put(rng.integers(0, 256, (images(bench), 32, 32, 3), np.uint8))
    classes = jax.device_put(rng.integers(0, 10, images(bench), np.int32))
    example = arrays(np.zeros((10, 32, 32, 3), np.float32), np.arange(10), validation=0, test=0)
    workload = Workload.from_model(ResNet(10, stages=stages(bench), dtype="bfloat16"), example)
    tx = optlab.sgd(0.1, momentum=0.9, weight_decay=1e-4)
    train_step = make_step(workload.loss, tx)

    def step(state: Any, pixels: Any, classes: Any, batch: int) -> Any:
        index = (state.step * batch + jnp.arange(batch)) * PRIME % len(pixels)
        inputs = (pixels[index].astype(jnp.bfloat16) - MEAN) * SCALE
        return train_step(state, {"inputs": inputs, "labels": classes[index], "weight": jnp.ones(batch)})[0]

    jitted = jax.jit(step, static_argnums=3, donate_argnums=0)
    first = jax.jit(lambda key: init_state(*workload.init(key), tx, key=key))
    state = first(jax.random.key(0))
    named = lambda batch: f"ResNet-20, batch {batch}: optlab"
    programs = bench.compiled({named(b): partial(jitted.lower, state, pixels, classes, b) for b in batches(bench)})

    def make(program: Any) -> tuple[Advance, Wait]:
        from on_gpu.jax_parts import copy

        box = [copy(state)]

        def advance() -> None:
            box[0] = program(box[0], pixels, classes)

        return advance, lambda: jax.block_until_ready(box[0].step)

    arms: dict[str, Make] = {name: partial(make, program) for name, program in programs.items()}
    found = bench.measure(arms)
    for batch in batches(bench):
        if times := found.get(named(batch)):
            _report(bench, batch, "optlab", times, "torch")


def theirs(bench: Bench) -> None:
    """torch: channels last, autocast to bfloat16, compiled into CUDA graphs, fused SGD."""
    import torch
    from torch.nn import functional

    from on_gpu.torch_models import resnet
    from on_gpu.torch_parts import compiled, wait_for

    device, wait = wait_for(bench)
    pixels = torch.randint(256, (images(bench), 3, 32, 32), dtype=torch.uint8, device=device)
    pixels = pixels.to(memory_format=torch.channels_last)
    classes = torch.randint(10, (images(bench),), device=device)

    def make(batch: int, mode: str) -> tuple[Advance, Wait]:
        model = resnet(stages(bench)).to(device)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # not a CUDA graph's own memory, which its next run overwrites
        settings = {"momentum": 0.9, "weight_decay": 1e-4, "fused": not bench.smoke}
        optimizer, at = torch.optim.SGD(model.parameters(), lr=0.1, **settings), [0]

        def loss(index: torch.Tensor) -> torch.Tensor:
            inputs = (pixels[index].to(torch.bfloat16) - MEAN) * SCALE
            return functional.cross_entropy(model(inputs).float(), classes[index])

        forward, offsets = compiled(bench, loss, mode=mode), torch.arange(batch, device=device)

        def advance() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            index = (at[0] * batch + offsets) * PRIME % images(bench)
            with torch.autocast(device.type, torch.bfloat16):
                value = forward(index)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            at[0] += 1

        for _ in range(bench.size(4, 1)):  # compiled, and captured at the third
            advance()
        wait()
        return advance, wait

    made: dict[str, tuple[Advance, Wait]] = {}  # compiled once: an arm's model stays, unlike elsewhere
    for batch in batches(bench):
        for mode in bench.size(("reduce-overhead", "default"), ("default",)):
            named = f"ResNet-20, batch {batch}: torch, {mode}"
            try:
                made[named] = make(batch, mode)
                break
            except Exception as error:
                bench.failed(named, error)
    arms: dict[str, Make] = {named: partial(made.__getitem__, named) for named in made}
    for named, times in bench.measure(arms).items():
        case, _, mode = named.partition(": torch, ")
        _report(bench, int(case.split()[-1]), "torch", times, note=f"mode {mode}")
