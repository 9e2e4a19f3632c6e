"""What the sides that measure torch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from on_gpu.bench import Advance, Bench, Wait


def wait_for(bench: Bench) -> tuple[torch.device, Wait]:
    """The device, and how to wait for it; products of float32 may be TF32, as they are in JAX."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if bench.smoke:
        torch.set_num_threads(1)
        return torch.device("cpu"), lambda: None
    return torch.device("cuda"), torch.cuda.synchronize


def compiled(bench: Bench, function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """By torch.compile; in the smoke, where a compiler may not be there, as it is."""
    return function if bench.smoke else torch.compile(function, dynamic=False, **settings)


def captured(step: Callable[[], Any]) -> Advance:
    """The step as a CUDA graph, after three that warm it up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


_as_it_is: dict[str, Callable[..., Any]] = {}


def compiled_muon(is_compiled: bool) -> None:
    """Makes torch.optim.Muon call its Newton–Schulz compiled, or as it is.

    The whole step is a loop over the matrices, which would be unrolled and compile for minutes; the function that it
    calls for each has a shape or two, as in Keller Jordan's own code.
    """
    from torch.optim import _muon

    name = "_zeropower_via_newtonschulz"
    plain = _as_it_is.setdefault("plain", getattr(_muon, name))
    if is_compiled and "compiled" not in _as_it_is:
        _as_it_is["compiled"] = torch.compile(plain, dynamic=False)
    setattr(_muon, name, _as_it_is["compiled"] if is_compiled else plain)
