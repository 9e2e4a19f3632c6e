"""Several processes as one run: connecting them, and sharing results and errors among them."""

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
    """Connects this process with the others of its run. Call it before anything touches a device.

    Args:
        where: "auto" if JAX knows the cluster: SLURM, Open MPI, TPU pods, Kubernetes. Else "HOST:PORT,COUNT,INDEX":
            the address of process 0, the number of processes, and this one's index, such as "10.0.0.1:1234,2,0".

    Raises:
        ValueError: for another form, an index out of range, or "auto" where JAX detects no cluster.
        RuntimeError: if JAX has started its devices.
    """
    settings: dict[str, Any] = {}
    if where != "auto":
        address, count, index = _parsed(where)
        settings = {"coordinator_address": address, "num_processes": count, "process_id": index}
        settings["cluster_detection_method"] = "deactivate"  # SLURM's would choose this process' GPU
        if address.rpartition(":")[0] in LOOPBACK:  # by default it listens to the whole network
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
    """Returns (address, count, index)."""
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
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def once(work: Callable[[], T]) -> T:
    """Does `work` in process 0 alone, and returns its result, JSON data, in every process; so for its error."""
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
    """Raises an error of this kind in all processes if the block raises it in one, so that none waits for it."""
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
    """Ends one of several processes without waiting for the others, which may wait for it. Alone it does nothing."""
    if jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the log may lie on the full disk that ended the run
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def leaving(*, apart_from: tuple[type[Exception], ...]) -> Iterator[None]:
    """Ends the process at once on an error, as `leave` does, except on errors that every process raises."""
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
    """Returns every process' text, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).ravel()
    size = 1 << int(max(lengths)).bit_length()  # a power of two, since each size is compiled
    everyone = np.asarray(multihost_utils.process_allgather(np.pad(data, (0, size - len(data)))))
    return [bytes(row[:n]).decode() for row, n in zip(everyone.reshape(-1, size), lengths, strict=True)]
