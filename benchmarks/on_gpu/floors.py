"""What each section can come to at best, and what it should come to: operations and bytes, at published peaks.

A floor is the larger of operations / peak and bytes / peak, with every input read once and every output written once.
A prediction takes the peaks that are reached in practice and counts what the programs really move; what goes into it is
said at each function, so that a figure that deviates names the assumption that was wrong.

Peaks: NVIDIA's data sheets of the H100 SXM and the H200 (dense, without sparsity; the H200 is an H100 with other
memory). In practice, from runs of PyTorch on such machines in November 2026: 798 TFLOP/s in bfloat16 for 8192³,
3.0 TB/s copied on an H100 and 4.3 on an H200.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shapes = Sequence[tuple[int, ...]]

MATMUL, COPY = 0.80, 0.90  # of the peaks that a large product and a large copy reach
LAUNCH = 3e-6  # seconds from one small kernel to the next in a CUDA graph or a queue that is full
EAGER = 5e-6  # the same where Python asks for each
STEPS = 5  # of Newton–Schulz


@dataclass(frozen=True)
class Chip:
    """Published peaks: operations a second by dtype, bytes a second, multiprocessors."""

    name: str
    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float
    processors: int = 132


H100 = Chip("H100 SXM", 989e12, 494e12, 67e12, 3.35e12)
H200 = Chip("H200", 989e12, 494e12, 67e12, 4.8e12)


def chip_of(device: str) -> Chip:
    """By the name that nvidia-smi gives; a CPU's toys are held against an H100, to no avail but that of the test."""
    return H200 if "H200" in device else H100


# --- Muon's update


def newton_schulz_flops(shapes: Shapes) -> float:
    """In the standard form: STEPS · (4m²n + 2m³) of an m × n matrix, m ≤ n; (20a + 10)·m³ for an aspect of a."""
    return float(sum(STEPS * (4 * m * m * n + 2 * m**3) for m, n in map(sorted, shapes)))


def gram_flops(shapes: Shapes) -> float:
    """In the Gram form with one restart, where that is less: (8a + 28)·m³."""
    return float(
        sum(min(8 * m * m * n + 28 * m**3, STEPS * (4 * m * m * n + 2 * m**3)) for m, n in map(sorted, shapes))
    )


def count(shapes: Shapes) -> int:
    """Numbers in them."""
    return sum(math.prod(shape) for shape in shapes)


def muon_floor(chip: Chip, shapes: Shapes, peak: float, flops: float | None = None) -> float:
    """Seconds: gradient, momentum and parameter read, momentum and parameter written, in float32."""
    flops = newton_schulz_flops(shapes) if flops is None else flops
    return max(flops / peak, 5 * 4 * count(shapes) / chip.bandwidth)


def occupancy(chip: Chip, m: int, n: int, together: int, tile: int = 128) -> float:
    """How much of the multiprocessors the tiles of so many (m, n) products fill, a whole number of waves being run."""
    tiles = together * math.ceil(m / tile) * math.ceil(n / tile)
    return tiles / (chip.processors * math.ceil(tiles / chip.processors))


def newton_schulz_seconds(chip: Chip, shapes: Shapes, peak: float, *, stacked: bool) -> float:
    """The products alone, all matrices of a shape together or one after another."""
    total = 0.0
    for shape in {tuple(sorted(s)) for s in shapes}:
        m, n = shape
        number = sum(tuple(sorted(s)) == shape for s in shapes)
        together = number if stacked else 1
        square, wide = occupancy(chip, m, m, together), occupancy(chip, m, n, together)
        work = (2 * m * m * n + 2 * m**3) / square + 2 * m * m * n / wide
        total += STEPS * number * work / (MATMUL * peak)
    return total


def muon_seconds(chip: Chip, shapes: Shapes, peak: float, *, stacked: bool, width: int) -> float:
    """Products, and the passes over memory around them, in bytes a number; `width` is that of the working dtype.

    Momentum (read two, write two) and the step of the parameters (read two, write one): 7 in float32. Normalizing: 3
    more and a cast. In each step aX + BX and bA + cA²: about 3 in the working dtype. Stacked, another 4 in float32 to
    stack and to split.
    """
    passes = 4 * (7 + 3 + (4 if stacked else 0)) + width * (1 + 3 * STEPS)
    launches = 0 if stacked else len(shapes) * 25 * LAUNCH
    products = newton_schulz_seconds(chip, shapes, peak, stacked=stacked)
    return max(products + passes * count(shapes) / (COPY * chip.bandwidth), launches)


# --- AdamW


def adamw_bytes(numbers: int) -> float:
    """Gradient, parameter and two moments read, three of them written, in float32."""
    return 7 * 4 * float(numbers)


def adamw_seconds(chip: Chip, numbers: int, leaves: int) -> float:
    """The bytes at a large copy's speed, and a launch for every leaf, most of which are small."""
    return adamw_bytes(numbers) / (COPY * chip.bandwidth) + leaves * LAUNCH


# --- GPT-2 small


@dataclass(frozen=True)
class GPT:
    """A GPT's sizes; GPT-2 small's by default."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    length: int = 1024

    @property
    def parameters(self) -> int:
        """With biases, norms, tied embedding and positions."""
        D = self.width
        return self.layers * (12 * D * D + 13 * D) + 2 * D + (self.vocabulary + self.length) * D

    @property
    def flops(self) -> float:
        """A token, forward and backward: 6 for each parameter but the positions, 12·layers·T·D for attention.

        As in PaLM (arXiv 2204.02311, appendix B): the whole square of attention counts, whatever the causal mask saves.
        """
        return 6.0 * (self.parameters - self.length * self.width) + 12.0 * self.layers * self.length * self.width


def gpt_seconds(chip: Chip, gpt: GPT, *, flash: bool, fused_loss: bool) -> float:
    """A token. Products at three quarters of a large one's speed, for their width of 768, and what moves in memory.

    A block reads and writes about 60 numbers a channel, forward and backward, in bfloat16 (norms, residuals, biases,
    GELU, their gradients). Without a fused attention its scores, T a head and token, pass about ten times in float32.
    Logits pass six times in float32, or fused with the loss four times in bfloat16.
    """
    products = gpt.flops / (0.75 * MATMUL * chip.bfloat16)
    moved = gpt.layers * gpt.width * 60 * 2.0
    moved += 0.0 if flash else gpt.layers * gpt.heads * gpt.length * 10 * 4.0
    moved += gpt.vocabulary * (4 * 2.0 if fused_loss else 6 * 4.0)
    return products + moved / (COPY * chip.bandwidth)


# --- ResNet-20

ACTIVATIONS = 7 * 32 * 32 * 16 + 6 * 16 * 16 * 32 + 6 * 8 * 8 * 64  # numbers that its convolutions give, an image
RESNET_FLOPS = 3 * 2 * 40.8e6  # an image, forward and backward; He et al. count 40.8 M multiply-adds
RESNET_KERNELS = 450  # about: 19 convolutions with norm and ReLU, forward, backward, twice over, and the optimizer's


def resnet_floor(chip: Chip) -> float:
    """Seconds an image: each activation written and read forward, read and its gradient written and read backward."""
    return max(RESNET_FLOPS / chip.bfloat16, 5 * 2 * ACTIVATIONS / chip.bandwidth)


def resnet_seconds(chip: Chip, batch: int) -> float:
    """An image: 13 passes over the activations (convolution, statistics, norm, ReLU, each apart), or the launches."""
    return max(13 * 2 * ACTIVATIONS / (COPY * chip.bandwidth), RESNET_KERNELS * LAUNCH / batch)


# --- A population


def population_seconds(chip: Chip, gpt: GPT, batch: int, members: int) -> tuple[float, float]:
    """(one member's step by itself, all members' step in one program).

    One is launches: about 45 kernels a layer and three a leaf of the optimizer. All do the same number of launches, or
    their work, if that takes longer: products at a quarter of a large one's speed, for widths so small.
    """
    kernels = gpt.layers * 45 + 3 * (16 * gpt.layers + 4) + 30
    tokens = batch * gpt.length
    work = tokens * gpt.flops / (0.25 * MATMUL * chip.bfloat16)
    moved = tokens * (gpt.layers * (gpt.width * 60 * 2.0 + gpt.heads * gpt.length * 40.0) + gpt.vocabulary * 24.0)
    moved += 7 * 4 * gpt.parameters
    one = work + moved / (COPY * chip.bandwidth)
    return max(kernels * LAUNCH, one), max(kernels * LAUNCH, members * one)


# --- Costs


def save_seconds(numbers: int, leaves: int) -> float:
    """What a save of parameters and two moments takes from training: a copy to pageable host memory at 12 GB/s."""
    return 3 * 4 * numbers / 12e9 + 3 * leaves * 20e-6
