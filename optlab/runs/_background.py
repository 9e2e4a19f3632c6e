"""Work in the background that Python waits for before it ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from optlab._processes import CRASHED

_UNAWAITED: set[Future[None]] = set()  # work that nobody has waited for yet: its error is still to be reported


def start(work: Callable[[], None]) -> Future[None]:
    """Starts work in a thread of its own."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="optlab-checkpoint")
    finished = worker.submit(work)
    worker.shutdown(wait=False)
    _UNAWAITED.add(finished)
    return finished


def taken_over(finished: Future[None]) -> None:
    """Marks work that the caller waits for: from here on its error is the caller's."""
    _UNAWAITED.discard(finished)


def _await_all() -> None:
    """Waits for what nobody waited for, at Python's end, and reports an error.

    From Python 3.12 on Orbax can't write any more by then. Its threads would keep the process for minutes, so this
    ends it.
    """
    for finished in list(_UNAWAITED):
        if error := finished.exception():
            print(f"optlab: {error}; Checkpoints.wait() has to come before Python's end", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(CRASHED)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_UNAWAITED.clear)  # a forked worker has no such thread, and would wait for ever
threading._register_atexit(_await_all)  # type: ignore[attr-defined]  # atexit's own come after the executors' end
