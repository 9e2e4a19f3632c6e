"""Writes benchmarks/results/gpu_expectations.md: python benchmarks/on_gpu/expectations.py"""

# ruff: noqa: E501 (a table's row is a line)

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from on_gpu import adamw, costs, floors, population
from on_gpu.bench import Bench
from on_gpu.floors import H100, H200, Chip
from on_gpu.muon import cases

FILE = Path(__file__).resolve().parent.parent / "results" / "gpu_expectations.md"
HEAD = """# What a GPU should measure

Written before any figure of optlab's was taken on a GPU, so that each is compared with something. `python
benchmarks/gpu.py` prints the same floors and predictions beside what it measures. Both are computed by the functions of
`benchmarks/on_gpu/floors.py`, which say what each assumes; this file is their output (`python
benchmarks/on_gpu/expectations.py`).

A **floor** is the larger of operations / peak and bytes / peak, every input read and every output written once. A
**prediction** counts what the programs move, at the share of the peaks that large products and copies reach.

| published peaks, dense | bfloat16 | TF32 | float32 | memory |
|---|---|---|---|---|
| H100 SXM | 989 TFLOP/s | 494 | 67 | 3.35 TB/s |
| H200 | 989 TFLOP/s | 494 | 67 | 4.8 TB/s |

Source: NVIDIA's data sheets "H100 Tensor Core GPU" (SXM) and "H200 Tensor Core GPU", whose tensor figures with sparsity
are twice these. Of them 80 % are taken for a large product and 90 % for a copy: 798 TFLOP/s for 8192³ in bfloat16, 3.0
and 4.3 TB/s were seen in PyTorch on such machines.
"""
MUON = """## 1. Muon's update

Five steps in the standard form are (20a + 10)·m³ multiply-adds twice for an m × am matrix, in the Gram form with a
restart (8a + 28)·m³. GPT-2 small: {small:.2f} TFLOP in the standard form, {gram:.2f} in the Gram form. In true float32
(`precision="highest"`) the products alone take {slow:.0f} ms at the peak, in bfloat16 {fast:.1f} ms. The row "optlab" is
the default of `orthogonalize`: bfloat16, and for wide matrices float16 in the Gram form with two restarts,
(12a + 22)·m³. Its floor and prediction are those of bfloat16 in the standard form.

Stacked by shape, products of 768 × 768 fill the chip; one at a time they are 36 tiles of 128 × 128 on 132
multiprocessors. That is why `optax.contrib.muon` (a graph a leaf, in TF32 for float32 parameters) and torch (a matrix
after another, bfloat16) should be slower, and why the difference should shrink for width 2048. Smaller tiles would fill
the chip better: then theirs come out faster than predicted. Goal: at most 0.4 of optax, 0.8 of torch. By the prediction
both are met for GPT-2 small, and the one beside torch is missed for width 2048: stacking and splitting are passes over
memory that one matrix after another doesn't make, and there they buy little.

"""
ADAMW = """## 2. AdamW

Seven passes of four bytes over {numbers:.1f} M numbers, {gigabytes:.2f} GB: nothing is computed that takes time. The
prediction adds a launch for each of {leaves} leaves, most of them biases and norms: where XLA puts several leaves into
one kernel it is less. Goal: at most 1.25 of what the bytes take at the speed of a copy, measured beside it.

"""
GPT = """## 3. GPT-2 small

{flops:.0f} MFLOP a token: 6 for each of the {parameters:.1f} M parameters but the positions, and 12·layers·T·D for
attention, the whole square counted. Goal: half of the peak, and torch's figure.

Without a fused attention the scores pass through memory about ten times in float32, {scores:.1f} MB a token, which
takes longer than all products: the first thing to mend. The logits in float32 are the second,
{logits:.1f} MB. The third row below is what torch should have, the first what optlab's attention by XLA comes to, the
second what it should come to with cuDNN's. Half of the peak needs the fused loss, too, and larger products than a width of 768 gives: the
prediction says that the goal is missed by both.

"""
RESNET = """## 4. ResNet-20

{flops:.0f} MFLOP an image, which the peak does in a quarter of a microsecond: with 16 to 64 channels it is all memory and launches.
{activations:,} activations an image in bfloat16, five passes at the least, about 13 in practice. A batch of 128 is too
small to hide the launches of some {kernels} kernels a step. Goal: torch's figure.

"""
POPULATION = """## 5. A population

One small Transformer is a row of launches that leave the chip idle; in one program the {members} members share them.
Attention isn't fused here either. Goal: at least 8 times as fast as one after another.

"""
COSTS = """## 6. Costs

| | prediction | why |
|---|---|---|
| guard=stop | 1.00 to 1.03 of a step | a reduction over the parameters, which XLA fuses into the update |
| guard=skip | 1.05 to 1.25 | old and new state are both there: about seven passes over the parameters |
| a probe's norms | 1.01 to 1.05 | three reductions |
| a probe's spectrum | 100 times a step or more, each time | cuSOLVER's SVD of every matrix: at `every=100` it doubles the run |
| a save every 100 steps | {lost:.0f} ms once, for {million:.1f} M parameters | the state copied to the host at 12 GB/s |
| deterministic=true | 1.0 to 1.2 of a step, or far more | scatters (the embedding's gradient) are sorted or done one by one |
| the same bits twice | yes with it; without it perhaps not | autotuning picks kernels by their time; atomic additions |

## 7. Compile times, memory, tests

| | prediction | why |
|---|---|---|
| compiling Muon's update, GPT-2 small | 5 s; optax 20 s | two products a shape to tune; optax has 72 graphs, tuned once a shape |
| compiling a step of 12 layers | 10 s as a scan, 30 s unrolled | tuning of products dominates |
| Muon's temporaries | about 3 times the matrices where whole stacks are done at once; goal 2.5 | momentum, stack, product and split in float32 |
| peak memory / `check_memory`'s | 1.00 to 1.05 | the program's own sum; the allocator rounds |
| tests/transforms | 85 to 95 % pass | tolerances of float32 are CPU's; a product is TF32 where no precision is asked for |
"""


def rows(table: list[tuple[str, Callable[[Chip], float], Callable[[Chip], float | None]]], unit: str) -> str:
    """A line each, floor and prediction of both chips."""
    number = lambda x: "" if x is None else f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"
    lines = [f"| {unit} | H100 floor | prediction | H200 floor | prediction |", "|---|---|---|---|---|"]
    for name, floor, predicted in table:
        cells = [number(f(chip)) for chip in (H100, H200) for f in (floor, predicted)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def muon(bench: Bench) -> str:
    small = cases(bench)["GPT-2 small"]
    flops, gram = floors.newton_schulz_flops(small), floors.gram_flops(small)
    facts = {"small": flops / 1e12, "gram": gram / 1e12, "slow": 1e3 * gram / H100.float32}
    table = []
    for case, shapes in cases(bench).items():
        for who, kind, stacked in (
            ("optlab, bfloat16", "bfloat16", True),
            ("optlab, TF32", "tf32", True),
            ("optlab, float32, Gram", "float32", True),
            ("optax.contrib.muon, TF32", "tf32", False),
            ("torch.optim.Muon, bfloat16", "bfloat16", False),
        ):
            flops_of = floors.gram_flops if kind == "float32" else floors.newton_schulz_flops
            width = 2 if kind == "bfloat16" else 4
            floor = lambda chip, s=shapes, k=kind, f=flops_of: 1e3 * floors.muon_floor(chip, s, getattr(chip, k), f(s))
            predicted = lambda chip, s=shapes, k=kind, t=stacked, w=width: (
                1e3 * floors.muon_seconds(chip, s, getattr(chip, k), stacked=t, width=w)
            )
            table.append((f"{case}: {who}", floor, predicted))
    return MUON.format(fast=1e3 * flops / H100.bfloat16, **facts) + rows(table, "ms")


def text() -> str:
    """The whole file."""
    bench = Bench(False, 0.0, H100, sys.stderr)
    parts = [HEAD, "\n", muon(bench)]
    shapes = adamw.shapes(bench)
    numbers, leaves = floors.count(shapes), len(shapes)
    parts.append(ADAMW.format(numbers=numbers / 1e6, gigabytes=floors.adamw_bytes(numbers) / 1e9, leaves=leaves))
    least = lambda chip: 1e3 * floors.adamw_bytes(numbers) / chip.bandwidth
    parts.append(rows([("AdamW", least, lambda chip: 1e3 * floors.adamw_seconds(chip, numbers, leaves))], "ms"))
    gpt = floors.GPT()
    parts.append(
        GPT.format(
            flops=gpt.flops / 1e6,
            parameters=gpt.parameters / 1e6,
            scores=gpt.layers * gpt.heads * gpt.length * 40 / 1e6,
            logits=gpt.vocabulary * 24 / 1e6,
        )
    )
    kinds = {
        "attention and loss not fused": (False, False),
        "attention fused": (True, False),
        "both fused": (True, True),
    }
    speed = lambda flash, fused: lambda chip: 1 / floors.gpt_seconds(chip, gpt, flash=flash, fused_loss=fused)
    peak = lambda chip: chip.bfloat16 / gpt.flops
    parts.append(rows([(name, peak, speed(*kind)) for name, kind in kinds.items()], "tokens/s"))
    facts = {"activations": floors.ACTIVATIONS, "kernels": floors.RESNET_KERNELS}
    parts.append(RESNET.format(flops=floors.RESNET_FLOPS / 1e6, **facts))
    images = lambda batch: lambda chip: 1 / floors.resnet_seconds(chip, batch)
    least = lambda chip: 1 / floors.resnet_floor(chip)
    parts.append(rows([(f"batch {batch}", least, images(batch)) for batch in (128, 1024)], "images/s"))
    member, members = population.sizes(bench)
    parts.append(POPULATION.format(members=members))
    work = lambda chip: 1e3 * members * population.BATCH * member.length * member.flops / chip.bfloat16
    of = lambda i, n: lambda chip: 1e3 * n * floors.population_seconds(chip, member, population.BATCH, members)[i]
    ratio = lambda chip: of(0, members)(chip) / of(1, 1)(chip)
    table = [("one after another, ms", work, of(0, members)), ("together, ms", work, of(1, 1))]
    parts.append(rows([*table, ("times as fast", lambda chip: None, ratio)], f"{members} members"))
    model = costs.sizes(bench)[0]
    lost = floors.save_seconds(model.parameters, 16 * model.layers + 4)
    parts.append(COSTS.format(lost=1e3 * lost, million=model.parameters / 1e6))
    return "".join(parts)


if __name__ == "__main__":
    FILE.write_text(text())
