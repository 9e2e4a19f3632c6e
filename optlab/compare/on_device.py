"""Data that stay on the device, where a program picks its batches: only the numbers of examples are sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from optlab.data import Batches, Split
from optlab.data._arrays import ArraySplit
from optlab.data._images import PAD, ImageSplit, outcomes
from optlab.data._random import AUGMENT, random_bits


class Rows(Protocol):
    """A split whose batches a program can pick. They are those of the run that has them from the host.

    Attributes:
        arrays: what stays on the device.
    """

    arrays: Any

    def items(self, batches: Batches, steps: Sequence[int]) -> Any:
        """What is sent for each step, an array or a tree of arrays of the shape (steps, B)."""
        ...

    def pick(self, arrays: Any, item: Any) -> Any:
        """The batch of one step, inside of a program."""
        ...


def rows_of(split: Split) -> Rows | None:
    """The rows of optlab's own splits in memory, by a type that is known; None for any other."""
    if type(split) is ArraySplit:
        return _Plain(split)
    return _Images(split) if type(split) is ImageSplit else None


class _Plain:
    def __init__(self, split: ArraySplit):
        self.arrays: Any = split.take(np.arange(len(split)))

    def items(self, batches: Batches, steps: Sequence[int]) -> Any:
        return np.stack([batches.indices(t)[0] for t in steps]).astype(np.int32)

    def pick(self, arrays: Any, item: Any) -> Any:
        return jax.tree.map(lambda x: x[item], arrays)


class _Images:
    """Pixels of one byte, a quarter of what standardized ones take; they are standardized when they are picked."""

    def __init__(self, split: ImageSplit):
        self.arrays: Any = {"images": split.images[split.rows], "labels": split.labels[split.rows]}
        self.mean, self.scale, self.is_augmented = split.mean, split.scale, split.augment

    def items(self, batches: Batches, steps: Sequence[int]) -> Any:
        indices, epochs = map(np.stack, zip(*(batches.indices(t) for t in steps), strict=True))
        found = {"index": indices.astype(np.int32)}
        if self.is_augmented:
            bits = random_bits(AUGMENT, batches.seed, epochs.ravel(), indices.ravel()).reshape(indices.shape)
            found |= {
                name: x.astype(np.int32) for name, x in zip(("flip", "down", "right"), outcomes(bits), strict=True)
            }
        return found

    def pick(self, arrays: Any, item: Any) -> Any:
        images = arrays["images"][item["index"]]
        shape = images.shape
        flat = images.reshape(shape[0], -1).astype(jnp.float32)
        images = ((flat - self.mean[None]) * self.scale[None]).reshape(shape)
        if self.is_augmented:
            images = jax.vmap(_augmented)(images, item["flip"], item["down"], item["right"])
        return {"inputs": images, "labels": arrays["labels"][item["index"]]}


def _augmented(image_HxWxC: Any, flip: Any, down: Any, right: Any) -> Any:
    padded = jnp.pad(image_HxWxC, ((PAD, PAD), (PAD, PAD), (0, 0)))
    crop = jax.lax.dynamic_slice(padded, (down, right, 0), image_HxWxC.shape)
    return jnp.where(flip, crop[:, ::-1], crop)
