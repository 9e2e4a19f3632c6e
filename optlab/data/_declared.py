"""The shapes of published data sets, which are known without reading them: for what computes nothing with the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optlab.data._types import Batch, Source

IMAGES = {"cifar10": (50_000, 10_000, (32, 32, 3)), "fashion_mnist": (60_000, 10_000, (28, 28, 1))}
WINDOWS = 100_000  # of a text that isn't here: nothing depends on their number but the largest batch


@dataclass(frozen=True)
class Zeros:
    """A split of so many examples that are all 0.

    Attributes:
        size: the number of examples.
        shapes: dtype and shape of an example's arrays, by name.
    """

    size: int
    shapes: Mapping[str, tuple[Any, tuple[int, ...]]]

    def __len__(self) -> int:
        return self.size

    def take(self, indices: np.ndarray, epoch: int | None = None, seed: int = 0) -> Batch:
        return {name: np.zeros((len(indices), *shape), dtype) for name, (dtype, shape) in self.shapes.items()}


def declared(name: str, arguments: Mapping[str, Any]) -> Source | None:
    """A source of zeros in the shapes of optlab's source of that name; None for one that has to be read.

    Args:
        name: of the source's factory.
        arguments: complete, as a resolved config has them.
    """
    name = name.removeprefix("optlab.data.sources.").removeprefix("optlab.data.")
    if name in IMAGES:
        learn, final, shape = IMAGES[name]
        arrays = {"inputs": (np.float32, shape), "labels": (np.int32, ())}
        held_out = arguments["validation"]
        validation = Zeros(held_out, arrays) if held_out else None
        return Source(name, Zeros(learn - held_out, arrays), validation, Zeros(final, arrays), {"outputs": 10})
    path = arguments.get("path")
    if name == "text" and path is not None and not Path(path).expanduser().exists():
        length = arguments["length"]
        window = {"inputs": (np.int32, (length,)), "labels": (np.int32, (length,))}
        weighted = {**window, "weight": (np.float32, (length,))}
        validation, test = (Zeros(WINDOWS, weighted) if arguments[n] else None for n in ("validation", "test"))
        return Source("text", Zeros(WINDOWS, window), validation, test, {"vocabulary": 256, "length": length})
    return None
