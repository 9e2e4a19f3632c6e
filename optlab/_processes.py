"""Several processes as one run: how they find each other, and how they agree on what one of them alone knows."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
FORMS = "auto (SLURM, Open MPI, TPU pods, whatever JAX detects) or HOST:PORT,COUNT,INDEX"
CRASHED = 70  # EX_SOFTWARE: the exit code of a process that an unforeseen error ended
LOOPBACK = ("127.0.0.1", "localhost")


def connect(where: str) -> None:
    """Makes this process one of several that run as one. Has to come before anything touches a device.

    Args:
        where: "auto", where JAX knows the cluster: SLURM, Open MPI, TPU pods, Kubernetes. Or "HOST:PORT,COUNT,INDEX":
            where process 0 listens, how many processes there are, and which one this is, such as "10.0.0.1:1234,2,0".

    Raises:
        ValueError: for another form, an index that there isn't, or "auto" where JAX detects no cluster.
        RuntimeError: if JAX has its devices already.
    """
    settings: dict[str, Any] = {}
    if where != "auto":
        address, count, index = _parsed(where)
        settings = {"coordinator_address": address, "num_processes": count, "process_id": index}
        settings["cluster_detection_method"] = "deactivate"  # else one inside SLURM would say which GPU is ours
        if address.rpartition(":")[0] in LOOPBACK:  # else it listens to the whole network
            settings["coordinator_bind_address"] = address
    if jax.distributed.is_initialized():
        raise RuntimeError(f"processes={where}: this process is connected already")
    try:
        jax.distributed.initialize(**settings)
    except ValueError as error:
        raise ValueError(
            f"processes={where}: JAX detects no cluster here ({error}); say HOST:PORT,COUNT,INDEX"
        ) from None
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise RuntimeError(f"processes={where} comes too late: JAX has its devices already; connect first") from None


def _parsed(where: str) -> tuple[str, int, int]:
    """(address, count, index)."""
    address, _, numbers = where.partition(",")
    count, _, index = numbers.partition(",")
    host, _, port = address.rpartition(":")
    if not (host and all(n.isascii() and n.isdigit() for n in (port, count, index))):
        raise ValueError(f"processes must be {FORMS}, got {where!r}")
    if not 0 < int(port) < 65536:
        raise ValueError(f"processes={where}: the port must lie in [1, 65535], got {port}")
    if int(index) >= int(count):
        raise ValueError(f"processes={where}: the index must lie in [0, {count}), got {index}")
    return address, int(count), int(index)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def once(work: Callable[[], T]) -> T:
    """What `work` gives in process 0, which alone does it, in every process: JSON data. An error is everyone's, too."""
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    error: Exception | None = None
    if is_first():
        try:
            answer = {"result": work()}
        except Exception as raised:
            error, answer = raised, {"error": f"process 0: {type(raised).__name__}: {raised}"}
    answer = json.loads(gathered(json.dumps(answer))[0])
    if error is not None:
        raise error
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


@contextlib.contextmanager
def together(kind: type[Exception]) -> Iterator[None]:
    """Work that every process does; an error of that kind in one is raised in all, so that nobody waits for it."""
    error: Exception | None = None
    try:
        yield
    except kind as raised:
        error = raised
    if jax.process_count() > 1:
        messages = gathered("" if error is None else str(error) or type(error).__name__)
        if error is None and any(messages):
            index = next(i for i, message in enumerate(messages) if message)
            raise kind(f"process {index}: {messages[index]}")
    if error is not None:
        raise error


def leave(code: int) -> None:
    """Ends one of several processes without waiting for the others, who may wait for it. Alone it does nothing."""
    if jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a full disk, where a log is too, may be why it leaves
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def leaving(*, apart_from: tuple[type[Exception], ...]) -> Iterator[None]:
    """An error ends the process at once, as `leave` does, apart from those that all processes have alike."""
    try:
        yield
    except apart_from:
        raise
    except KeyboardInterrupt:
        leave(130)
        raise
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        with contextlib.suppress(OSError):
            traceback.print_exc()
        leave(CRASHED)


def gathered(text: str) -> list[str]:
    """Every process' text, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).ravel()
    size = 1 << int(max(lengths)).bit_length()  # few sizes: each is compiled
    everyone = np.asarray(multihost_utils.process_allgather(np.pad(data, (0, size - len(data)))))
    return [bytes(row[:n]).decode() for row, n in zip(everyone.reshape(-1, size), lengths, strict=True)]
